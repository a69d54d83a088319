"""Who is refused first where a region's traffic is limited."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.traffic import HOLDS_MIN, HOLDS_S, Traffic


def taken(rate: float, own: float, over: float, seconds: float = 20.0) -> tuple[float, float]:
    """Requests a second that are taken, of those at home and of those that failed over, once it has settled."""
    traffic, found, now = Traffic(rate, 0.0), {False: 0, True: 0}, 0.0
    due = {False: 0.0, True: 0.0}
    every = {False: 1 / own if own else 1e9, True: 1 / over if over else 1e9}
    while now < 2 * seconds:
        failed_over = due[True] < due[False]
        now = due[failed_over]
        due[failed_over] += every[failed_over]
        if traffic.takes(failed_over, now) and seconds <= now < 2 * seconds:
            found[failed_over] += 1
    return found[False] / seconds, found[True] / seconds


@pytest.mark.parametrize(
    ("own", "over", "expected"),
    [
        (40, 40, (40, 40)),  # below the limit nobody is refused
        (40, 200, (40, 60)),  # what failed over gets what those at home leave
        (90, 90, (90, 10)),
        (300, 0, (100, 0)),  # alone, those at home are refused too
        (300, 300, (100, 0)),  # and first of all those that failed over
        (0, 300, (0, 100)),
    ],
)
def test_those_at_home_come_first(own: float, over: float, expected: tuple[float, float]) -> None:
    assert taken(100.0, own, over) == pytest.approx(expected, abs=2.5)


@settings(deadline=None)
@given(
    st.floats(0.1, 1000.0),
    st.lists(st.tuples(st.floats(0.0, 0.5), st.booleans()), min_size=1, max_size=200),
)
def test_never_more_than_the_limit_and_a_bucket(rate: float, asked: list[tuple[float, bool]]) -> None:
    traffic, now, count = Traffic(rate, 0.0), 0.0, 0
    for pause, failed_over in asked:
        now += pause
        count += traffic.takes(failed_over, now)
    assert count <= rate * now + max(HOLDS_MIN, rate * HOLDS_S) + 1e-6


def test_another_limit_fills_no_bucket() -> None:
    traffic = Traffic(10.0, 0.0)
    while traffic.takes(False, 0.0):
        pass
    traffic.use(1000.0)
    assert not traffic.takes(False, 0.0)
    assert traffic.takes(False, 0.01)


def test_a_clock_that_stands_gives_nothing() -> None:
    traffic = Traffic(10.0, 5.0)
    assert sum(traffic.takes(False, 5.0 - step) for step in range(100)) == HOLDS_MIN
