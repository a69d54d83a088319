"""Who is refused first: classes, ranks, fair levels, and a worker's own overload, as tables and by small models."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.shedding import (
    LAG_S,
    RANKS,
    REFUSED_MAX,
    RETRY_AFTER_MAX_S,
    Pressure,
    Priority,
    Shedding,
    ceilings,
    chances,
    class_of,
    fair_level,
    retry_after_s,
    share_in_hand,
)

RULES = Shedding(
    1, 10, "priority", b"x-priority", ((b"/pay/export", Priority.BULK), (b"/pay", Priority.CRITICAL), (b"/", None))
)
CRITICAL, DEFAULT, BULK = Priority


@pytest.mark.parametrize(
    ("hop", "claimed", "target", "labels", "wanted"),
    [
        (None, [], b"/", {}, DEFAULT),
        (None, [], b"/", {"priority": "bulk"}, BULK),
        (None, [], b"/", {"priority": "gold"}, DEFAULT),
        (None, [], b"/", {"plan": "bulk"}, DEFAULT),
        (None, [], b"/pay/now", {"priority": "bulk"}, CRITICAL),
        (None, [], b"/pay/export?x", {"priority": "critical"}, BULK),
        (None, [b"Critical "], b"/pay/export", {}, CRITICAL),
        (None, [b"bulk", b"bulk"], b"/pay", {}, BULK),
        (None, [b"bulk", b"critical"], b"/pay", {}, CRITICAL),
        (None, [b"urgent"], b"/", {"priority": "bulk"}, BULK),
        ({"priority": "bulk"}, [], b"/pay", {}, BULK),
        ({"priority": "urgent"}, [], b"/pay", {}, CRITICAL),
        ({}, [], b"/", {"priority": "bulk"}, BULK),
    ],
)
def test_a_class_is_the_hops_the_proxys_the_routes_or_the_tenants(hop, claimed, target, labels, wanted) -> None:
    assert class_of(RULES, hop, claimed, target, labels) is wanted


def test_ranks_are_in_order() -> None:
    assert [BULK.over, DEFAULT.over, CRITICAL.over] == [0, 2, 4]
    assert RANKS == 6


@given(st.floats(1, 1e5))
def test_a_lower_rank_is_never_let_in_where_a_higher_one_is_not(limit: float) -> None:
    found = ceilings(limit)
    assert len(found) == RANKS
    assert list(found) == sorted(found)
    assert found[0] >= 1
    assert found[DEFAULT.over] >= 0.9 * limit > found[BULK.over + 1] - 1 - 0.1 * limit
    assert found[CRITICAL.over + 1] >= 2 * limit


@given(st.lists(st.integers(0, 50), max_size=30), st.floats(0.5, 500))
def test_a_level_is_max_min_fair(counts: list[int], total: float) -> None:
    """What is below it fits just; without it everybody fits."""
    level = fair_level(counts, total)
    if sum(counts) <= total:
        assert level == float("inf")
    else:
        assert sum(min(count, level) for count in counts) == pytest.approx(total)


def test_shares_of_what_is_in_hand() -> None:
    assert share_in_hand([], 100) == 95  # nobody is there yet: all but a little
    assert share_in_hand([90], 100) == pytest.approx(85)
    assert share_in_hand([80, 2, 3], 100) == 95  # it fits still
    assert share_in_hand([90, 2, 3], 100) == pytest.approx(80)
    assert share_in_hand([30, 30, 30], 60) == pytest.approx(17)
    assert share_in_hand([1] * 100, 4) == 1  # one request is never too many


@given(st.floats(0, 1), st.lists(st.integers(0, 500), min_size=RANKS, max_size=RANKS))
def test_chances_refuse_the_whole_share_from_the_lowest_rank_up(refused: float, offered: list[int]) -> None:
    found = chances(refused, offered)
    counts = [max(1, count) for count in offered]
    assert sum(chance * count for chance, count in zip(found, counts, strict=True)) == pytest.approx(
        refused * sum(counts)
    )
    for lower, higher in itertools.pairwise(found):
        assert lower >= higher
        assert higher == 0 or lower == pytest.approx(1)


def test_a_stall_or_two_are_no_overload() -> None:
    pressure = Pressure()
    for late_s in (0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.15, *[0.0] * 10):
        pressure.tick(late_s, [0] * RANKS, [])
        assert pressure.refused <= 0.1
    assert pressure.refused == 0


def test_a_lasting_lag_refuses_more_and_more_and_its_end_lets_all_in_again() -> None:
    pressure = Pressure()
    for _ in range(100):
        pressure.tick(0.2, [10] * RANKS, [10])
    assert pressure.refused == pytest.approx(REFUSED_MAX)
    ticks = 0
    while pressure.refused > 0:
        pressure.tick(0.0, [10] * RANKS, [10])
        ticks += 1
    assert ticks <= 40


@pytest.mark.parametrize("overload", [1.5, 2.0, 3.0])
def test_a_busy_worker_settles_where_it_has_just_time_enough(overload: float) -> None:
    """A worker that can do 1,000 a second, refusals at a quarter of the work, is asked `overload` times that: what it
    lets in is most of what it could do at all besides refusing the rest."""
    rng, pressure, backlog_s, admitted, lags = random.Random(5), Pressure(), 0.0, [], []
    for tick in range(600):
        count = int(overload * 100 + rng.gauss(0, 5))
        let_in = sum(rng.random() >= pressure.refused for _ in range(count))
        work_s = let_in * 0.001 + (count - let_in) * 0.00025
        backlog_s = max(0.0, backlog_s + work_s - 0.1)
        late_s = rng.random() * min(backlog_s, 1.0)  # clients wait for answers: what queues is bounded
        backlog_s = min(backlog_s, 1.0)
        pressure.tick(late_s, [0, 0, 0, count, 0, 0], [count])
        if tick > 200:
            admitted.append(let_in)
            lags.append(backlog_s)
    best = (100 - overload * 100 * 0.25) / 0.75
    assert sum(admitted) / len(admitted) >= 0.8 * best
    assert sorted(lags)[len(lags) // 2] < 10 * LAG_S


def test_who_is_refused_comes_back_when_those_before_it_have_been_served() -> None:
    assert retry_after_s(0, 0, 0.9) == retry_after_s(5, 100, 0.5) == 1
    assert [retry_after_s(400, 100, chance) for chance in (0.0, 0.5, 0.99)] == [3, 5, 6]
    assert retry_after_s(1e6, 100, 0.0) == retry_after_s(1e6, 0, 0.5) == RETRY_AFTER_MAX_S
