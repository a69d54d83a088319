"""Whose errors they are: a tenant's own breaker before the cluster's, and the cluster's where nobody is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.blame import TENANTS_MAX, Blame, Turn
from gateway.core.breaker import BreakerRule, State

RULE = BreakerRule(min_requests=20)
Works = Callable[[str, float], bool]


class Traffic:
    """Requests of tenants in turn, each passing the breakers as a worker lets it. `rates` are per second."""

    def __init__(self, rule: BreakerRule = RULE) -> None:
        self.now = 1000.0
        self.blame = Blame(rule, self.now, lambda: 0.0)
        self.sent: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    def run(self, seconds: float, rates: dict[str, float], works: Works) -> Traffic:
        times = sorted((n / rate, tenant) for tenant, rate in rates.items() for n in range(int(seconds * rate)))
        start, ticked = self.now, self.now
        for at, tenant in times:
            self.now = start + at
            while ticked + 0.1 <= self.now:
                ticked += 0.1
                self.blame.tick(ticked)
            self.ask(tenant, works)
        self.now = start + seconds
        self.blame.tick(self.now)
        return self

    def ask(self, tenant: str, works: Works) -> None:
        if self.blame.refusing(tenant, self.now) is not None:
            self.refused[tenant] = self.refused.get(tenant, 0) + 1
        else:
            self.sent[tenant] = self.sent.get(tenant, 0) + 1
            self.blame.note(tenant, works(tenant, self.now), self.now, self.now)

    def states(self) -> dict[str, State]:
        return {name: mine.state for name, mine in self.blame.tenants.items() if mine.state is not State.CLOSED}


def fails(*tenants: str) -> Works:
    return lambda tenant, now: tenant not in tenants


def works(tenant: str, now: float) -> bool:
    return True


def dead(tenant: str, now: float) -> bool:
    return False


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ({"a": 900}, {"b": 100}),
        ({"a": 100}, {"b": 900}),
        ({"a": 990}, {"b": 1}),
        ({"a": 450, "b": 450}, {"c": 100}),
        ({"a": 300, "b": 300, "c": 300}, {"d": 100}),
        ({"a": 500, "b": 90}, {"c": 20, "d": 20}),
    ],
)
@pytest.mark.parametrize("before_s", [0.0, 5.0])
def test_tenants_that_fail_do_not_take_others_down(bad: dict, good: dict, before_s: float) -> None:
    traffic = Traffic().run(before_s, {**bad, **good}, works)
    traffic.run(30.0, {**bad, **good}, fails(*bad))
    assert traffic.blame.own.state is State.CLOSED
    assert not set(good) & set(traffic.refused)
    assert set(traffic.states()) == set(bad)
    assert Turn("", State.OPEN) not in traffic.blame.turns


def test_a_stranger_comes_through_beside_a_tenant_that_fails_alone() -> None:
    traffic = Traffic().run(1.9, {"a": 1000}, dead)
    assert traffic.states() == {"a": State.OPEN}
    assert traffic.blame.sole() == "a", "what is shown is that the cluster serves nobody"
    traffic.ask("b", works)
    assert traffic.refused.keys() == {"a"}
    assert traffic.blame.sole() is None


@pytest.mark.parametrize(
    "rates",
    [
        {"a": 500, "b": 500},
        {"a": 980, "b": 20},
        {"a": 400, "b": 300, "c": 200, "d": 100},
        {f"t{n}": 1 for n in range(400)},
        {"a": 500, **{f"t{n}": 1 for n in range(100)}},
    ],
)
@pytest.mark.parametrize("before_s", [0.0, 5.0])
def test_where_all_fail_the_cluster_opens_soon(rates: dict[str, float], before_s: float) -> None:
    traffic = Traffic().run(before_s, rates, works)
    traffic.run(2.3, rates, dead)
    assert traffic.blame.own.state is State.OPEN
    assert traffic.states() == {}, "one breaker has to let it back in, not two"
    traffic.refused.clear()
    traffic.run(1.0, rates, dead)
    assert sum(traffic.refused.values()) == sum(rates.values())


def test_a_connection_that_cannot_be_made_is_no_tenants_fault() -> None:
    traffic = Traffic()
    for n in range(1100):
        traffic.now += 0.001
        traffic.blame.note("" if n >= 50 else "a", n < 50, traffic.now, traffic.now)
    assert traffic.blame.own.state is State.OPEN
    assert traffic.blame.tenants == {}


def test_back_from_an_outage_all_are_served_soon_and_none_is_flooded() -> None:
    rates = {"a": 500.0, "b": 300.0, "c": 1.0}
    traffic = Traffic().run(3.0, rates, dead)
    since = traffic.blame.own.since
    sent: list[float] = []

    def healed(tenant: str, now: float) -> bool:
        sent.append(now - since)
        return True

    traffic.sent.clear()
    traffic.run(12.0, rates, healed)
    assert traffic.blame.own.state is State.CLOSED
    counts = [sum(n <= at < n + 1 for at in sent) for n in range(12)]
    assert counts[:5] == [0] * 5
    assert counts[5] == 1
    assert 80 < counts[6] < counts[7] < counts[8], counts
    assert counts[10] >= 800


def test_a_tenant_whose_probe_failed_does_not_spend_everybodys_next_one() -> None:
    rates = {"a": 900.0, "b": 90.0, "c": 9.0}
    traffic = Traffic().run(3.0, rates, dead)
    traffic.run(60.0, rates, fails("a"))
    assert traffic.blame.own.state is State.CLOSED
    assert traffic.states() == {"a": State.OPEN}
    traffic.refused.clear()
    traffic.run(30.0, rates, fails("a"))
    assert traffic.refused.keys() == {"a"}


def test_memory_is_bounded_and_given_back() -> None:
    traffic = Traffic(BreakerRule(min_requests=10**9))
    for n in range(3 * TENANTS_MAX):
        traffic.now += 0.0001
        traffic.ask(f"t{n}", dead)
    assert len(traffic.blame.tenants) == TENANTS_MAX
    traffic.blame.tick(traffic.now + 2.5)
    assert traffic.blame.tenants == {}


def test_no_tenant_is_judged_once_too_many_are_open() -> None:
    blame = Blame(RULE, 0.0, lambda: 0.0)
    for n in range(TENANTS_MAX):
        blame.force(f"t{n}", True, 100.0, "test", 0.0)
    blame.note("one more", False, 1.0, 1.0)
    assert len(blame.tenants) == TENANTS_MAX
    assert blame.active == TENANTS_MAX


def test_an_operator_holds_a_tenants_and_the_clusters_own() -> None:
    blame = Blame(RULE, 0.0, lambda: 0.0)
    blame.force("a", True, 10.0, "abuse", 0.0)
    assert [blame.refusing(tenant, 1.0) is not None for tenant in "ab"] == [True, False]
    assert blame.sole() == "a"
    blame.force("", True, 5.0, "broken", 1.0)
    assert blame.refusing("b", 2.0) is blame.own
    blame.tick(5.0)
    assert blame.own.state is State.HALF_OPEN
    blame.force("", False, 50.0, "must serve", 6.0)
    for n in range(2000):
        blame.note("b", False, 6.0 + n / 500, 6.0 + n / 500)
    assert blame.own.state is State.FORCED_CLOSED
    assert blame.tenants["b"].state is State.OPEN, "its tenants still have breakers of their own"
    blame.release("", 10.5)
    blame.release("a", 10.5)
    assert (blame.own.state, blame.tenants["a"].state) == (State.CLOSED, State.HALF_OPEN)
    blame.release("nobody", 10.5)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("ok", "bad", "reset")), st.integers(0, 40)),
                max_size=120))  # fmt: skip
def test_whatever_happens_one_whose_requests_succeed_is_refused_only_with_all(steps: Iterable) -> None:
    """`d` sends all the time and is always answered: only the cluster's own breaker, tripped by two others' failures
    of connections, may ever stop it; and counts never go below nothing."""
    blame = Blame(BreakerRule(min_requests=5), 0.0, lambda: 0.5)
    now, resets = 0.0, 0
    for number, (tenant, what, gap) in enumerate(steps):
        now += gap / 16
        if number % 3 == 0:
            blame.tick(now)
        refused = blame.refusing("d", now)
        assert refused is None or refused is blame.own
        if refused is None:
            blame.note("d", True, now, now)
        resets += what == "reset"
        if blame.refusing(tenant, now) is None:
            blame.note("" if what == "reset" else tenant, what == "ok", now, now)
        if not resets:
            assert blame.own.state is State.CLOSED
        for window in (blame.own.window, *(mine.window for mine in blame.tenants.values())):
            assert 0 <= window.failures <= window.total
        active = [mine for mine in (blame.own, *blame.tenants.values()) if mine.state is not State.CLOSED]
        assert blame.active == len(active)
