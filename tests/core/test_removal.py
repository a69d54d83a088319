"""Ten errors in ten seconds: the table, and any sequence of times against the rule said plainly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.removal import ERRORS_MAX, WINDOW_S, Failures


@pytest.mark.parametrize(
    ("times", "out"),
    [
        ([0.0] * 9, False),
        ([0.0] * 10, True),
        ([float(n) for n in range(10)], True),
        ([*([0.0] * 9), 10.0], True),
        ([*([0.0] * 9), 10.1], False),
        ([*([0.0] * 9), 11.0, *([11.0] * 8)], False),
        ([*([0.0] * 9), *([11.0] * 10)], True),
        ([n * 1.2 for n in range(100)], False),
    ],
)
def test_the_tenth_error_in_ten_seconds(times: list[float], out: bool) -> None:
    failures = Failures()
    assert [failures.note("f", now) for now in times][-1] is out


def test_each_filter_has_errors_of_its_own() -> None:
    failures = Failures()
    assert not any(failures.note(name, 0.0) for name in "ab" for _ in range(9))
    assert failures.note("a", 0.0)
    assert failures.note("b", 0.0)


@given(st.lists(st.floats(0, 5), max_size=60))
def test_any_times(gaps: list[float]) -> None:
    failures, now, past = Failures(), 0.0, []
    for gap in gaps:
        now += gap
        past.append(now)
        assert failures.note("f", now) is (len(past) >= ERRORS_MAX and now - past[-ERRORS_MAX] <= WINDOW_S)
