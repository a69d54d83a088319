"""The adaptive limit, before simulated applications: what it lets through, how long that takes, and what it learns."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.concurrency import (
    PHASES,
    SAMPLES_MIN,
    START,
    WINDOW_LONG_S,
    WINDOW_MIN_S,
    Concurrency,
    Event,
    Phase,
    middle,
)
from gateway.core.shedding import Priority
from tests.support.queueing import Simulation, Source

Service = Callable[[float, random.Random], float]


def steady(seconds: float) -> Service:
    return lambda now, rng: seconds


def varied(seconds: float) -> Service:
    return lambda now, rng: rng.expovariate(1 / seconds)


def test_every_phase_and_event() -> None:
    """A trial goes EMPTY, MEASURE, and back; or on to the next one, as long as a halving costs nothing."""
    found = {(phase, event): PHASES.get((phase, event)) for phase in Phase for event in Event}
    assert found == {
        (Phase.FOLLOW, Event.WINDOW): Phase.FOLLOW,
        (Phase.FOLLOW, Event.STALE): Phase.EMPTY,
        (Phase.FOLLOW, Event.UNHURT): None,
        (Phase.EMPTY, Event.WINDOW): Phase.MEASURE,
        (Phase.EMPTY, Event.STALE): None,
        (Phase.EMPTY, Event.UNHURT): None,
        (Phase.MEASURE, Event.WINDOW): Phase.FOLLOW,
        (Phase.MEASURE, Event.UNHURT): Phase.EMPTY,
        (Phase.MEASURE, Event.STALE): None,
    }


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=100))
def test_the_middle_is_among_the_samples_and_ignores_few_that_are_far_off(samples: list[float]) -> None:
    found = middle(samples)
    assert min(samples) <= found * (1 + 1e-9)
    assert found <= max(samples) * (1 + 1e-9)
    far = [*samples, *[1e9] * (len(samples) // 4)]
    assert middle(far) < 1e9 or len(far) < 5


def test_a_window_ends_with_enough_samples_after_one_latency() -> None:
    limit = Concurrency(1, 1000, 0.0)
    quick, slow = [0.01] * SAMPLES_MIN, [0.5] * SAMPLES_MIN
    assert not limit.due([], 1000.0)
    assert not limit.due(quick, WINDOW_MIN_S - 0.01)
    assert limit.due(quick, WINDOW_MIN_S)
    assert not limit.due(quick[1:], WINDOW_MIN_S)
    assert limit.due(quick[1:], WINDOW_LONG_S)
    assert not limit.due(slow, 0.4)
    assert limit.due(slow, 0.5)
    assert not limit.due([15.0], 14.0)


@pytest.mark.parametrize(("slots", "service_s"), [(1, 0.02), (5, 0.02), (20, 0.1), (100, 0.05), (4, 1.0)])
@pytest.mark.parametrize("kind", [steady, varied])
def test_three_times_too_much_for_a_minute(slots: int, service_s: float, kind: object) -> None:
    """Goodput stays, latency is bounded, and nothing drifts: an overload that lasts is not taken for normal."""
    capacity = slots / service_s
    source = Source("acme", lambda now: capacity * (3.0 if 10 < now < 70 else 0.6))
    simulation = Simulation([source], lambda now: slots, kind(service_s))  # type: ignore[operator]
    simulation.run(90)
    assert simulation.goodput(20, 70) >= 0.8 * capacity
    waits = max(4 * service_s, 25 * service_s / slots)  # in tiny applications a queue of few is long
    tail = 5 * service_s if kind is varied else 0.0
    assert simulation.latency_s(40, 70) <= 1.5 * waits + tail
    assert simulation.latency_s(40, 70, 0.5) <= waits + 0.01
    calm = simulation.goodput(72, 90)
    assert calm >= 0.5 * capacity  # of 0.6 that are asked for, at once after it


def test_a_worker_that_begins_in_an_overload_finds_the_unqueued_latency_by_trials() -> None:
    simulation = Simulation([Source("acme", lambda now: 150.0)], lambda now: 1, steady(0.02))
    simulation.run(60)
    assert simulation.goodput(30, 60) >= 0.9 * 50
    assert simulation.latency_s(30, 60, 0.5) <= 0.25  # 32 in hand at the start would be 0.64


def test_an_application_that_loses_and_regains_most_of_itself() -> None:
    simulation = Simulation(
        [Source("acme", lambda now: 140.0)], lambda now: 8 if 20 < now < 60 else 20, steady(0.1), high=1000
    )
    simulation.run(90)
    assert simulation.goodput(22, 60) >= 0.9 * 80
    assert simulation.latency_s(30, 60) <= 0.5
    assert simulation.goodput(61, 90) >= 0.97 * 140


def test_a_hang_of_ten_seconds_is_over_when_it_is_over() -> None:
    simulation = Simulation([Source("acme", lambda now: 140.0)], lambda now: 0 if 20 < now < 30 else 20, steady(0.1))
    simulation.run(60)
    assert simulation.total < 40
    assert simulation.goodput(32, 60) >= 0.97 * 140


@pytest.mark.parametrize("later", [0.3, 1.0])
def test_an_application_that_is_slower_but_does_not_queue_is_believed(later: float) -> None:
    """0.02 s, then many times that, with room for all of it: after a moment nobody is refused any more."""
    found = []
    for seconds in (32, 60):
        source = Source("acme", lambda now: 140.0)
        Simulation([source], lambda now: 10_000, lambda now, rng: 0.02 if now < 20 else later).run(seconds)
        found.append(source.refused)
    assert found[0] <= 140 * 12 * 0.6
    assert found[1] <= found[0] * 1.1 + 5


def test_a_mix_that_changes_between_quick_and_slow_requests_refuses_few() -> None:
    def mixed(now: float, rng: random.Random) -> float:
        return 0.005 if rng.random() < (0.7 if int(now) % 10 < 5 else 0.3) else 0.4

    source = Source("acme", lambda now: 500.0)
    Simulation([source], lambda now: 10_000, mixed).run(60)
    assert source.refused / source.offered < 0.1


def test_a_burst_of_ten_times_as_many_finds_room() -> None:
    source = Source("acme", lambda now: 60.0 if now < 20 else 600.0)
    Simulation([source], lambda now: 400, varied(0.1)).run(60)
    assert source.refused / source.offered < 0.02


def test_what_a_busy_hour_left_decays_in_a_quiet_one() -> None:
    simulation = Simulation([Source("acme", lambda now: 2000.0 if now < 20 else 40.0)], lambda now: 1000, steady(0.1))
    simulation.run(120)
    at_peak, later = simulation.limits[190][1], simulation.limits[-1][1]
    assert at_peak > 400
    assert later < at_peak / 2
    assert later >= min(START, at_peak)


def test_critical_requests_pass_while_bulk_is_shut_out() -> None:
    critical = Source("acme", lambda now: 50.0 if now > 10 else 10.0, Priority.CRITICAL)
    default = Source("acme", lambda now: 100.0 if now > 10 else 20.0)
    bulk = Source("acme", lambda now: 400.0 if now > 10 else 20.0, Priority.BULK)
    Simulation([critical, default, bulk], lambda now: 20, steady(0.1)).run(60)
    assert critical.refused <= critical.offered * 0.002
    assert default.refused / default.offered < 0.4
    assert bulk.refused / bulk.offered > 0.75


def test_a_tenant_at_twenty_times_its_share_is_refused_first() -> None:
    """Nineteen that use half of the application, and one that wants twice all of it."""
    small = [Source(f"t{number}", lambda now: 5.0) for number in range(19)]
    hog = Source("hog", lambda now: 400.0 if now > 10 else 0.0)
    simulation = Simulation([*small, hog], lambda now: 20, steady(0.1))
    simulation.run(60)
    assert hog.refused / hog.offered > 0.7
    assert sum(one.refused for one in small) <= sum(one.offered for one in small) * 0.005
    assert simulation.goodput(15, 60) >= 0.95 * 200


@pytest.mark.parametrize(("slots", "service_s", "herd"), [(40, 0.2, 1500), (20, 0.2, 200), (20, 0.05, 2000)])
def test_a_herd_that_does_as_it_is_told_is_served_as_fast_as_can_be(slots: int, service_s: float, herd: int) -> None:
    """On top of a load of 0.4: four fifths of the herd are served in little more than its share of the time."""
    capacity = slots / service_s
    base, clients = Source("acme", lambda now: 0.4 * capacity), Source("herd", lambda now: 0.0, herd=herd, at=10.0)
    simulation = Simulation([base, clients], lambda now: slots, steady(service_s))
    simulation.run(10 + 0.8 * herd / (0.6 * capacity))
    assert simulation.goodput(10.5, 10 + 0.8 * herd / (0.6 * capacity)) >= 0.8 * capacity
    assert clients.offered - clients.refused >= 0.6 * herd
    assert base.refused <= 0.05 * base.offered


@given(
    st.lists(
        st.tuples(st.floats(0.0005, 20), st.integers(1, 600), st.integers(0, 3000), st.floats(0.1, 30)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 50),
    st.integers(50, 2000),
)
def test_whatever_windows_say_the_limit_stays_within_its_bounds(
    windows: list[tuple[float, int, int, float]], low: int, high: int
) -> None:
    limit, now = Concurrency(low, high, 0.0), 0.0
    for latency, count, peak, seconds in windows:
        now += seconds
        limit.end_window([latency] * min(count, 512), count, peak, 0.0, now)
        assert low <= limit.value <= high
        assert low <= limit.limit <= high
        assert limit.latency_s > 0
        assert limit.unqueued_s > 0


def test_a_reload_moves_the_bounds_at_once() -> None:
    limit = Concurrency(1, 1000, 0.0)
    limit.bound(100, 200)
    assert limit.limit == 100
    limit.bound(1, 10)
    assert limit.limit == 10
