"""Endpoints that answer worse than others: who is left out, for how long, and never too many."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.core.outliers import OutlierRule, Outliers

RULE = OutlierRule(consecutive_errors=5, eject=10.0, eject_max=25.0, interval=10.0, requests_min=20)


def outliers(count: int, rule: OutlierRule = RULE) -> Outliers:
    made = Outliers(rule, 0.0)
    made.cover(f"e{n}" for n in range(count))
    return made


def test_errors_in_a_row_while_the_same_tenant_is_answered_elsewhere() -> None:
    found = outliers(4)
    ejected = []
    for n in range(6):
        found.note("e1", "acme", True, float(n))
        ejected.append(found.note("e0", "acme", False, n + 0.5))
    assert ejected == [False] * 4 + [True, False]
    assert found.out == {"e0": 14.5}
    assert found.why("e0") == "5 errors in a row"
    assert found.usable(["e0", "e1", "e2"]) == {"e1", "e2"}
    assert (found.tick(14.4), found.back) == ([], [])
    found.tick(14.5)
    assert (found.out, found.back) == ({}, ["e0"])


def test_a_tenant_that_fails_everywhere_blames_no_endpoint() -> None:
    found, rng = outliers(4), random.Random(1)
    for n in range(10_000):
        now = n / 1000
        assert not found.note(f"e{rng.randrange(4)}", "acme", False, now)
        if rng.random() < 0.3:
            found.note(f"e{rng.randrange(4)}", "globex", True, now)
    assert found.out == {}


def test_an_endpoint_that_fails_for_many_small_tenants_is_left_out() -> None:
    found = outliers(4)
    found.note("e0", "t0", False, 0.0)
    found.note("e1", "somebody", True, 0.05)
    assert [found.note("e0", f"t{n}", False, n / 10) for n in range(1, 5)] == [False, False, False, True]


def test_a_success_ends_a_streak() -> None:
    found = outliers(2)
    for n in range(50):
        assert not found.note("e0", "acme", n % 5 == 4, float(n))
        found.note("e1", "acme", True, float(n))
    assert found.out == {}


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)])
def test_never_more_than_the_share_and_never_the_last(count: int, most: int) -> None:
    found = outliers(count)
    for n in range(count * 10):
        for _ in range(RULE.consecutive_errors):
            found.note(f"e{n % count}", "acme", False, 0.1)
        found.note("e9" if count == 10 else f"e{(n + 1) % count}", "acme", True, 0.2)
    assert len(found.out) <= most
    assert len(found.usable([f"e{n}" for n in range(count)])) >= count - most


def test_where_too_few_are_left_all_are_used() -> None:
    rule = OutlierRule(max_fraction=1.0, panic_fraction=0.3, consecutive_errors=1)
    found = outliers(10, rule)
    for n in range(8):
        found.note(f"e{n}", "acme", False, 1.0)
        found.note("e9", "acme", True, 1.0)
        found.note(f"e{n}", "acme", False, 1.0)
    assert len(found.out) == 8
    keys = [f"e{n}" for n in range(10)]
    assert found.usable(keys) == frozenset(keys), "2 of 10 are less than 30 percent"
    assert found.usable(["e0", "e1"]) == {"e0", "e1"}, "the others are down"
    found.tick(31.0)
    assert found.out == {}


def test_a_success_rate_far_below_the_others_is_ejected_at_the_intervals_end() -> None:
    found = outliers(6)
    for n in range(6):
        for k in range(100):
            found.note(f"e{n}", "acme", not (k % 3 == 0 and n == 2), 5.0)
    assert found.tick(9.9) == []
    assert found.tick(10.0) == ["e2"]
    for n in range(6):
        for _ in range(100):
            found.note(f"e{n}", "acme", True, 11.0)
    found.note("e3", "acme", False, 11.0)
    assert found.tick(20.0) == [], "a percent below is as good as the others"


def test_times_grow_and_shrink_with_intervals_that_were_well() -> None:
    found, now, lasted = outliers(4), 0.0, []
    for _ in range(4):
        while "e0" not in found.out:
            found.note("e1", "acme", True, now)
            found.note("e0", "acme", False, now)
        lasted.append(found.out["e0"] - now)
        now = found.out["e0"]
        found.tick(now)
    assert lasted == [10.0, 20.0, 25.0, 25.0]
    for _ in range(3):
        now += 10.0
        found.tick(now)
    while "e0" not in found.out:
        found.note("e1", "acme", True, now)
        found.note("e0", "acme", False, now)
    assert found.out["e0"] - now == 20.0


def test_an_endpoint_that_left_is_forgotten() -> None:
    found = outliers(4)
    for _ in range(6):
        found.note("e1", "acme", True, 1.0)
        found.note("e0", "acme", False, 1.0)
    found.cover(["e1", "e2"])
    assert found.out == {}
    assert not found.note("e0", "acme", False, 2.0)
    assert found.why("e0") == ""


class Life(RuleBasedStateMachine):
    """Beside a model that keeps every answer: streaks and who was answered elsewhere are looked up anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.rule = OutlierRule(consecutive_errors=3, eject=10.0, eject_max=25.0, interval=1e9)
        self.keys = [f"e{n}" for n in range(4)]
        self.found = Outliers(self.rule, 0.0)
        self.found.cover(self.keys)
        self.now = 0.0
        self.said: list[tuple[float, str, str, bool]] = []
        self.since: dict[str, int] = dict.fromkeys(self.keys, 0)
        self.out: dict[str, float] = {}
        self.times: dict[str, int] = dict.fromkeys(self.keys, 0)
        self.failed_at: dict[str, float] = {}
        """When a tenant failed first: only from then on is it remembered when it is answered."""

    @rule(key=st.sampled_from(["e0", "e1", "e2", "e3"]), tenant=st.sampled_from("ab"), ok=st.booleans())
    def answers(self, key: str, tenant: str, ok: bool) -> None:
        self.now += 1 / 16
        self.said.append((self.now, key, tenant, ok))
        if not ok:
            self.failed_at.setdefault(tenant, self.now)
        got = self.found.note(key, tenant, ok, self.now)
        streak = []
        for at, whose, who, fine in reversed(self.said[self.since[key] :]):
            if whose == key:
                if fine:
                    break
                streak.append((at, who))
        expected = False
        if len(streak) >= self.rule.consecutive_errors and key not in self.out and len(self.out) < 2:
            began, tenants = streak[-1][0], {who for _, who in streak}
            expected = any(
                fine and who in tenants and at >= max(began, self.failed_at[who]) for at, _, who, fine in self.said
            )
        assert got is expected
        if got:
            self.times[key] += 1
            self.out[key] = self.now + min(self.rule.eject * self.times[key], self.rule.eject_max)
            self.since[key] = len(self.said)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.found.tick(self.now)
        self.out = {key: until for key, until in self.out.items() if until > self.now}

    @invariant()
    def agrees(self) -> None:
        assert self.found.out == self.out
        assert self.found.usable(self.keys) == set(self.keys) - set(self.out)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
