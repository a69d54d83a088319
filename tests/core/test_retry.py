"""What may be sent once more: every failure with every kind of request, and how long to wait before."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.retry import IDEMPOTENT, SAFE, Failure, NotRetried, Retries, pause_s, why_not

METHODS = sorted({*IDEMPOTENT, b"POST", b"PATCH", b"LOCK"})


@pytest.mark.parametrize(
    ("failure", "methods"),
    [
        (Failure.CONNECT, METHODS),
        (Failure.STALE, IDEMPOTENT),
        (Failure.RESET, SAFE),
        (Failure.TIMEOUT, SAFE),
        (Failure.STATUS, SAFE),
    ],
)
def test_every_failure_with_every_method(failure: Failure, methods: object):
    for method, keyed, region in product(METHODS, (False, True), (False, True)):
        found = why_not(failure, method, keyed, True, 1, region)
        if region and failure in (Failure.TIMEOUT, Failure.STATUS):
            assert found is NotRetried.LAYER
        elif keyed or method in methods:  # type: ignore[operator]
            assert found is None
        else:
            assert found is NotRetried.METHOD


def test_all_failures_are_in_the_table():
    assert len(Failure) == 5


@pytest.mark.parametrize("failure", list(Failure))
def test_a_body_that_is_gone_and_tries_that_are_used_up_end_it(failure: Failure):
    assert why_not(failure, b"GET", False, False, 1, False) is NotRetried.BODY
    assert why_not(failure, b"GET", False, True, 0, False) is NotRetried.ATTEMPTS


@given(
    made=st.integers(0, 10_000), share=st.floats(0, 1, exclude_max=True), base=st.floats(0, 60), most=st.floats(0, 60)
)
def test_a_pause_is_at_most_the_doubled_base_and_the_longest(made: int, share: float, base: float, most: float):
    found = pause_s(Retries(backoff_s=base, backoff_max_s=most), made, lambda: share)
    assert 0 <= found <= min(most, base * 2.0 ** min(made, 100))


def test_pauses_double_and_are_anything_from_none_to_all():
    retries = Retries(backoff_s=0.1, backoff_max_s=0.5)
    assert [pause_s(retries, made, lambda: 0.5) for made in range(5)] == [0.05, 0.1, 0.2, 0.25, 0.25]
    assert pause_s(retries, 3, lambda: 0.0) == 0.0
