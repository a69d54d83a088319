"""Shares: fair, adding up to the whole, and never more than that at any moment, whoever is silent, comes or goes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.core.shares import (
    AHEAD_S,
    EQUAL_S,
    FLAT_S,
    FLOOR,
    FORGOTTEN_S,
    Answer,
    Report,
    Table,
    divisor,
    drift,
    fill,
    grant,
    reserved,
    targets,
)

DEMANDS = st.lists(st.floats(0, 5), min_size=1, max_size=8)


@given(DEMANDS, st.floats(0, 1))
def test_filling_is_max_min_fair(wants: list[float], total: float) -> None:
    got = fill(wants, total)
    assert sum(got) == pytest.approx(min(total, sum(wants)))
    for want, has in zip(wants, got, strict=True):
        assert has <= want + 1e-9
        if has < want - 1e-9:
            assert all(other <= has + 1e-9 for other in got)


@given(DEMANDS, st.floats(0.01, 1))
def test_targets_are_the_whole_and_never_below_the_floor(demands: list[float], total: float) -> None:
    floor = FLOOR / len(demands)
    got = targets(demands, total, floor)
    assert sum(got) == pytest.approx(total)
    assert min(got) >= min(floor, total / len(demands)) - 1e-9


@pytest.mark.parametrize(
    ("demands", "expected"),
    [
        ([0, 0, 0, 0], [0.25] * 4),
        ([3, 3, 3, 3], [0.25] * 4),
        ([3, 0, 0, 0], [0.98875, 0.00375, 0.00375, 0.00375]),
        ([2.7, 0.12, 0.09, 0.09], [0.685, 0.126, 0.0945, 0.0945]),
        ([0.5, 0, 0, 0], [0.525 + 0.11595, 0.11970, 0.11970, 0.11970]),
    ],
)
def test_targets_of_skewed_demands(demands: list[float], expected: list[float]) -> None:
    assert targets(demands, 1.0, FLOOR / 4) == pytest.approx(expected, abs=1e-3)


def test_a_grant_waits_for_what_others_hold() -> None:
    assert grant(0.9, 1.0, 0.97, 0.004) == pytest.approx(0.03)
    assert grant(0.9, 1.0, 1.2, 0.004) == 0.004
    assert grant(0.2, 1.0, 0.1, 0.004) == 0.2


@pytest.mark.parametrize(
    ("silent_s", "held"),
    [(0, 0.9), (FLAT_S, 0.9), (FLAT_S + 15, 0.575), (EQUAL_S, 0.25), (500, 0.25)],
)
def test_drift(silent_s: float, held: float) -> None:
    assert drift(0.9, 0.25, silent_s) == pytest.approx(held)


def test_room_is_made_for_a_silent_one_before_it_is_due() -> None:
    assert reserved(0.05, 0.25, FLAT_S) == pytest.approx(drift(0.05, 0.25, FLAT_S + AHEAD_S))
    assert reserved(0.9, 0.25, FLAT_S + 5) == pytest.approx(drift(0.9, 0.25, FLAT_S + 5))
    assert reserved(0.9, 0.25, FORGOTTEN_S + 1) == 0.0


def test_a_newcomer_waits_until_all_have_made_room() -> None:
    assert divisor(5, [4, 4, 4, 4]) == 0
    assert divisor(5, [5, 4, 4, 4]) == 0
    assert divisor(5, [5, 5, 5, 5]) == 5
    assert divisor(1, []) == 1
    assert divisor(4, [5, 5, 5]) == 4


class Gateway:
    """A gateway as control makes it: it holds the more of what it was given before and is given now, until it has said
    so; without an answer it drifts."""

    def __init__(self) -> None:
        self.using = 0
        self.seen = 1
        self.equal_of = 1
        self.shares: dict[str, float] = {}
        self.demand = 0.0
        self.asked_at = 0.0

    def holds(self, now: float) -> float:
        """What its workers may spend of the key at this moment."""
        equal = 1 / self.using if self.using else FLOOR / self.seen if self.asked_at else 0.0
        share = self.shares.get("k")
        return equal if share is None else drift(share, equal, now - self.asked_at)

    def ask(self, table: Table, name: str, now: float) -> Answer:
        reports = {}
        if "k" in self.shares or self.demand:
            reports["k"] = Report(self.holds(now), self.demand)
        self.asked_at = now
        return table.call(name, self.using, self.seen, reports, now)

    def take(self, answer: Answer) -> None:
        self.seen, self.using = answer.gateways, answer.divisor
        share = answer.shares.get("k")
        if share is None:
            self.shares.pop("k", None)
        else:
            self.shares["k"] = share


class Region(RuleBasedStateMachine):
    """Gateways that ask, fall silent, come and leave, in any order; their answers arrive before they ask again."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.now = 100.0
        self.table = Table(self.now)
        self.gateways: dict[str, Gateway] = {}
        self.names = 0
        for _ in range(count):
            self.come()
        for _ in range(3):
            self.everyone_asks()

    def one(self, number: int) -> str:
        return sorted(self.gateways)[number % len(self.gateways)]

    @rule()
    def come(self) -> None:
        if len(self.gateways) < 5:
            self.names += 1
            self.gateways[f"g{self.names}"] = Gateway()

    @rule(number=st.integers(0, 9))
    def leave(self, number: int) -> None:
        if len(self.gateways) > 1:
            name = self.one(number)
            del self.gateways[name]
            self.table.leave(name)

    @rule(number=st.integers(0, 9), demand=st.sampled_from([0.0, 0.01, 0.2, 0.9, 3.0]))
    def demand(self, number: int, demand: float) -> None:
        self.gateways[self.one(number)].demand = demand

    @rule(number=st.integers(0, 9))
    def ask(self, number: int) -> None:
        gateway = self.gateways[name := self.one(number)]
        gateway.take(gateway.ask(self.table, name, self.now))

    @rule(times=st.integers(1, 40))
    def everyone_asks(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 0.1
            for name, gateway in self.gateways.items():
                gateway.take(gateway.ask(self.table, name, self.now))

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.5, 10.0, 29.0]), asks=st.integers(0, 31))
    def some_ask(self, seconds: float, asks: int) -> None:
        """Time passes in steps of a tenth of a second, in which only some ask."""
        steps = max(1, round(seconds / 0.1))
        for _ in range(steps):
            self.now += seconds / steps
            for index, (name, gateway) in enumerate(sorted(self.gateways.items())):
                if asks >> index & 1:
                    gateway.take(gateway.ask(self.table, name, self.now))
            self.never_above_the_limit()

    @invariant()
    def never_above_the_limit(self) -> None:
        if hasattr(self, "gateways"):
            assert (
                sum(gateway.holds(self.now) for gateway in self.gateways.values()) <= 1.0 + 2.5 * FLOOR + 1e-6
            )  # floors of those who just came


Region.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestRegion = Region.TestCase


def asks(table: Table, gateways: dict[str, Gateway], now: float, rounds: int) -> float:
    for _ in range(rounds):
        now += 0.1
        for name, gateway in gateways.items():
            gateway.take(gateway.ask(table, name, now))
    return now


@pytest.mark.parametrize("demands", [(0.75, 0.75, 0.75, 0.75), (2.7, 0.12, 0.09, 0.09), (3.0, 0.0, 0.0, 0.0)])
def test_within_a_second_the_limit_is_used(demands: tuple[float, ...]) -> None:
    table, gateways = Table(0.0), {f"g{n}": Gateway() for n in range(4)}
    now = asks(table, gateways, 0.0, 50)
    assert [gateway.using for gateway in gateways.values()] == [4] * 4
    for gateway, demand in zip(gateways.values(), demands, strict=True):
        gateway.demand = demand
    now = asks(table, gateways, now, 5)
    used = sum(min(g.holds(now), g.demand) for g in gateways.values())
    assert 0.98 <= used <= 1.0 + 1e-9


def test_what_cools_is_shared_equally_again_and_forgotten() -> None:
    table, gateways = Table(0.0), {f"g{n}": Gateway() for n in range(4)}
    gateways["g0"].demand = 3.0
    now = asks(table, gateways, 0.0, 50)
    assert gateways["g0"].holds(now) > 0.98
    gateways["g0"].demand = 0.0
    now = asks(table, gateways, now, 40)
    assert all("k" not in gateway.shares and gateway.holds(now) == 0.25 for gateway in gateways.values())
    assert not any(row.keys for row in table.rows.values())


def test_a_new_table_gives_nothing_until_all_have_reported() -> None:
    old, gateways = Table(0.0), {f"g{n}": Gateway() for n in range(4)}
    gateways["g0"].demand = 3.0
    now = asks(old, gateways, 0.0, 50)
    table = Table(now)
    gateways["g1"].demand = 3.0
    for name in ("g1", "g2", "g3"):
        gateways[name].take(gateways[name].ask(table, name, now + 0.1))
    assert gateways["g1"].holds(now) < 0.01
    now = asks(table, gateways, now + 0.1, 10)
    assert gateways["g0"].holds(now) == pytest.approx(0.49625, abs=0.01)
    assert gateways["g1"].holds(now) == pytest.approx(0.49625, abs=0.01)


def test_a_new_table_waits_two_seconds_for_those_who_never_report() -> None:
    old, gateways = Table(0.0), {f"g{n}": Gateway() for n in range(4)}
    asks(old, gateways, 0.0, 50)
    table, alone = Table(10.0), {"g1": gateways["g1"]}
    alone["g1"].demand = 3.0
    now = asks(table, alone, 10.0, 15)
    assert alone["g1"].holds(now) == 0.25
    now = asks(table, alone, now, 10)
    assert alone["g1"].holds(now) == pytest.approx(1.0)
