"""Buckets against a plain model of tokens, and what clients are told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.core.limits import (
    Bucket,
    Limit,
    Scope,
    TenantLimits,
    client_key,
    limit_for,
    limit_of,
    pace,
    policy_field,
    rate_refusal,
    slots_of,
    state_field,
)

SHARES = st.sampled_from([1.0, 0.5, 0.125, 0.9, 0.0019])
LIMITS = st.builds(
    Limit, st.sampled_from([0.5, 1.0, 50.0, 1000.0]), st.sampled_from([1.0, 7.0, 100.0, 2000.0]), st.none()
)
SLACK = 1e-6


class Buckets(RuleBasedStateMachine):
    """The model holds tokens as a number that grows with time up to the burst, and is never raised otherwise."""

    @initialize(limit=LIMITS, share=SHARES)
    def begin(self, limit: Limit, share: float) -> None:
        self.now = 1000.0
        self.limit, self.share = limit, share
        self.bucket = Bucket("k", limit, share, 1.0, self.now)
        self.tokens = self.burst

    @property
    def rate(self) -> float:
        assert self.limit.rate is not None
        return self.limit.rate * self.share

    @property
    def burst(self) -> float:
        return max(1.0, self.limit.burst * self.share)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.1, 1.0, 30.0, 1e5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tokens = min(self.burst, self.tokens + seconds * self.rate)

    @rule(times=st.integers(1, 60))
    def take(self, times: int) -> None:
        for _ in range(times):
            wait_s = self.bucket.take(self.now)
            if wait_s == 0.0:
                assert self.tokens >= 1.0 - SLACK
                self.tokens -= 1.0
            else:
                assert self.tokens < 1.0 + SLACK
                assert wait_s == pytest.approx((1.0 - self.tokens) / self.rate, abs=1e-3, rel=1e-3)

    @rule(limit=LIMITS, share=SHARES)
    def retune(self, limit: Limit, share: float) -> None:
        before = self.bucket.tokens(self.now)
        self.limit, self.share = limit, share
        self.bucket.retune(limit, share, self.now)
        assert self.bucket.tokens(self.now) <= before + SLACK
        self.tokens = min(self.tokens, self.burst)

    @precondition(lambda self: hasattr(self, "bucket"))
    @invariant()
    def agree(self) -> None:
        assert self.bucket.tokens(self.now) == pytest.approx(self.tokens, abs=1e-4)


Buckets.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBuckets = Buckets.TestCase


@given(st.lists(st.floats(0, 0.02), min_size=50, max_size=400), st.lists(SHARES, min_size=1, max_size=20))
def test_no_more_than_burst_and_rate_whatever_the_shares(gaps: list[float], shares: list[float]) -> None:
    """Over any time: at most the first burst, and what the largest share gives from then on."""
    limit = Limit(100.0, 10.0)
    bucket, now, taken = Bucket("k", limit, shares[0], 1.0, 0.0), 0.0, 0
    for n, gap in enumerate(gaps):
        now += gap
        if n % 20 == 19:
            bucket.retune(limit, shares[(n // 20) % len(shares)], now)
        taken += bucket.take(now) == 0.0
    assert taken <= max(1.0, 10 * shares[0]) + 100 * max(shares) * now + 1e-6


def test_a_bucket_gains_a_rate_and_loses_it() -> None:
    bucket = Bucket("k", Limit(concurrency=3), 1.0, 1.0, 0.0)
    assert (bucket.take(0.0), bucket.take(0.0), bucket.slots) == (0.0, 0.0, 3)
    bucket.retune(Limit(10.0, 2.0), 1.0, 5.0)
    assert [bucket.take(5.0) > 0 for _ in range(3)] == [False, False, True]
    bucket.retune(Limit(concurrency=1), 1.0, 6.0)
    assert all(bucket.take(6.0) == 0.0 for _ in range(10))


@pytest.mark.parametrize(
    ("limit", "share", "slots"),
    [
        (Limit(concurrency=50), 1.0, 50),
        (Limit(concurrency=50), 0.125, 6),
        (Limit(concurrency=50), 0.02, 1),
        (Limit(concurrency=50), 0.0001, 1),
        (Limit(concurrency=10), 0.3, 3),
    ],
)
def test_slots(limit: Limit, share: float, slots: int) -> None:
    assert slots_of(limit, share) == slots


def test_a_share_of_a_burst_is_one_at_least() -> None:
    assert pace(Limit(1000.0, 100.0), 0.5, 0.5) == (0.002, pytest.approx(0.1))
    assert pace(Limit(1000.0, 100.0), 0.001, 0.001) == (1.0, 1.0)


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.97, 0.01, 0.01, 0.01)])
def test_shares_of_a_burst_are_the_burst(shares: tuple[float, ...]) -> None:
    limit = Limit(1000.0, 1000.0)
    buckets = [Bucket("k", limit, share, 1.0, 0.0, Scope.TENANT, 0.25) for share in shares]
    assert sum(bucket.tokens(0.0) for bucket in buckets) == pytest.approx(1000.0)
    assert min(bucket.tokens(0.0) for bucket in buckets) >= 125.0


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        (None, None, None),
        (None, Limit(10, 20), Limit(10, 20)),
        (TenantLimits(), None, None),
        (TenantLimits(5.0), Limit(10, 20, 3, True), Limit(5.0, 5.0, 3, True)),
        (TenantLimits(5.0, 7), Limit(10, 20), Limit(5.0, 7.0)),
        (TenantLimits(concurrency=4), Limit(10, 20), Limit(10, 20, 4)),
        (TenantLimits(concurrency=4), None, Limit(None, 1.0, 4)),
        (TenantLimits(burst=99), Limit(10, 20), Limit(10, 99)),
        (TenantLimits(0.5), None, Limit(0.5, 1.0)),
    ],
)
def test_a_tenants_own_limits(own: TenantLimits | None, default: Limit | None, expected: Limit | None) -> None:
    assert limit_for(own, default) == expected


def test_a_limit_without_burst_holds_a_second() -> None:
    assert limit_of(50.0, None, None) == Limit(50.0, 50.0)
    assert limit_of(None, None, None) is None


@pytest.mark.parametrize(
    ("limit", "policy"),
    [
        (Limit(1000.0, 2000.0), b'"tenant";q=2000;w=2'),
        (Limit(50.0, 100.0), b'"tenant";q=100;w=2'),
        (Limit(1000.0, 100.0), b'"tenant";q=1000;w=1'),
        (Limit(0.1, 1.0), b'"tenant";q=1;w=10'),
    ],
)
def test_the_policy_as_a_structured_field(limit: Limit, policy: bytes) -> None:
    assert policy_field(Scope.TENANT, limit) == policy


def test_what_is_left_is_counted_up_from_the_share() -> None:
    limit = Limit(100.0, 200.0)
    bucket = Bucket("k", limit, 0.5, 1.0, 0.0)
    assert state_field(Scope.TENANT, bucket, 0.0) == b'"tenant";r=200;t=0'
    for _ in range(50):
        bucket.take(0.0)
    assert state_field(Scope.TENANT, bucket, 0.0) == b'"tenant";r=100;t=1'


def test_a_refusal_says_when_to_come_back() -> None:
    bucket = Bucket("k", Limit(0.2, 1.0), 1.0, 1.0, 0.0)
    assert bucket.take(0.0) == 0.0
    wait_s = bucket.take(0.5)
    refusal = rate_refusal(Scope.CLIENT, bucket, wait_s, 0.5)
    assert (refusal.rule, refusal.retry_after_s) == ("client.rate", math.ceil(wait_s))
    assert refusal.fields == ((b"RateLimit-Policy", b'"client";q=1;w=5'), (b"RateLimit", b'"client";r=0;t=5'))
    assert bucket.take(0.5 + refusal.retry_after_s) == 0.0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("unix:", "unix:"),
    ],
)
def test_clients_by_address(address: str, key: str) -> None:
    assert client_key(address) == key
