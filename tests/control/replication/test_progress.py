"""What a follower does next, how far behind it is, what it reads: tables and properties, no server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.replication.progress import (
    HEARD_S,
    READ_BYTES_MAX,
    READ_FIRST,
    READ_MAX,
    SAMPLES_MAX,
    UNREACHABLE_S,
    Condition,
    Lag,
    Next,
    condition_of,
    differences,
    first_fault,
    lasting,
    read_count,
    read_count_after_failure,
    what_next,
)
from gateway.core.replication import Head, Offset, Step

AT_10 = Offset("log", 10)


@pytest.mark.parametrize(
    ("offset", "head", "complete", "peer_complete", "expected"),
    [
        (None, Head("", 1, 0), False, False, Next.WAIT),
        (AT_10, Head("", 1, 0), True, False, Next.WAIT),  # it was emptied, and nobody has written since
        (None, Head("log", 1, 0), False, False, Next.RESYNC),
        (AT_10, Head("log", 1, 10), True, True, Next.FOLLOW),
        (AT_10, Head("log", 11, 20), True, True, Next.FOLLOW),
        (AT_10, Head("log", 12, 20), True, True, Next.RESYNC),  # trimmed beyond us
        (AT_10, Head("log", 1, 9), True, True, Next.RESYNC),  # rolled back
        (AT_10, Head("other", 1, 20), True, True, Next.RESYNC),
        (AT_10, Head("log", 1, 20), False, True, Next.RESYNC),  # what completes it may stand in no log
        (AT_10, Head("log", 1, 20), False, False, Next.FOLLOW),
        (AT_10, Head("log", 1, 20), True, False, Next.FOLLOW),
    ],
)
def test_what_is_next(offset: Offset | None, head: Head, complete: bool, peer_complete: bool, expected: Next) -> None:
    assert what_next(offset, head, complete=complete, peer_complete=peer_complete) is expected


@pytest.mark.parametrize(
    ("seqs", "expected"),
    [
        ([], None),
        ([11], None),
        ([11, 12, 13], None),
        ([12], Step.GAP),
        ([11, 13], Step.GAP),
        ([10, 11], Step.DUPLICATE),
    ],
)
def test_a_read_that_is_not_dense_is_not_followed(seqs: list[int], expected: Step | None) -> None:
    assert first_fault(AT_10, seqs) is expected


def test_reads_grow_while_entries_are_small_and_shrink_when_they_are_not() -> None:
    count = READ_FIRST
    for _ in range(10):
        count = read_count(count, count, count * 400)
    assert count == READ_MAX
    assert read_count(count, count - 1, 1000) == count
    assert read_count(count, count, READ_BYTES_MAX + 1) == count // 2
    assert read_count(1, 1, READ_BYTES_MAX + 1) == 1
    assert read_count_after_failure(READ_MAX) == READ_FIRST
    assert [read_count_after_failure(n) for n in (READ_FIRST, 3, 1)] == [READ_FIRST // 2, 1, 1]


@settings(deadline=None)
@given(asked=st.integers(1, READ_MAX), each=st.integers(1, 200_000))
def test_reads_settle_below_the_limit(asked: int, each: int) -> None:
    for _ in range(20):
        asked = read_count(asked, asked, asked * each)
    assert asked == 1 or asked * each <= READ_BYTES_MAX
    assert asked == READ_MAX or (asked + 1) * each * 4 > READ_BYTES_MAX


# --- lag


def test_who_has_everything_and_heard_so_just_now_is_not_behind() -> None:
    lag = Lag(0.0)
    assert lag.seconds(5.0) == 5.0
    lag.moved(10)
    lag.heard(6.0, 10)
    assert (lag.records, lag.seconds(6.0), lag.seconds(6.0 + HEARD_S)) == (0, 0.0, 0.0)


def test_a_peer_that_is_silent_makes_us_behind_since_it_was_heard() -> None:
    lag = Lag(0.0)
    lag.moved(10)
    lag.heard(6.0, 10)
    assert lag.seconds(36.0) == 30.0
    assert lag.records == 0


def test_seconds_are_since_the_last_moment_of_which_everything_is_here() -> None:
    lag = Lag(0.0)
    lag.moved(10)
    lag.heard(1.0, 10)
    lag.heard(2.0, 100)
    lag.heard(3.0, 200)
    assert (lag.records, lag.seconds(3.5)) == (190, 2.5)
    lag.applied(150)
    assert (lag.records, lag.seconds(3.5)) == (50, 1.5)
    lag.applied(200)
    assert (lag.records, lag.seconds(3.5)) == (0, 0.0)


def test_what_the_last_holder_knew_goes_on() -> None:
    lag = Lag(100.0, behind_s=40.0)
    assert lag.seconds(101.0) == 41.0
    lag.moved(5)
    lag.heard(102.0, 9)
    assert lag.seconds(103.0) == 43.0


def test_another_place_in_the_log_forgets_what_was_known_of_its_head() -> None:
    lag = Lag(0.0)
    lag.moved(10)
    lag.heard(1.0, 1000)
    lag.moved(3)
    assert lag.records == 0
    lag.heard(2.0, 4)
    assert lag.records == 1


def test_what_cannot_be_told_is_not_said_to_be_nothing() -> None:
    lag = Lag(0.0)
    lag.moved(10)
    lag.heard(1.0, 10)
    lag.unknown()
    assert lag.seconds(1.5) == 0.5


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.integers(0, 50), st.integers(0, 60)), max_size=300))
def test_seconds_never_claim_more_than_is_known(steps: list[tuple[float, int, int]]) -> None:
    """Against every head ever heard: the age is at least that of the newest moment of which all is here."""
    lag, now, head, here = Lag(0.0), 0.0, 0, 0
    heads: list[tuple[float, int]] = [(0.0, 0)]
    for pause, written, applied in steps:
        now += pause
        head += written
        lag.heard(now, head)
        heads.append((now, head))
        here = min(head, here + applied)
        lag.applied(here)
        truth = now - max(at for at, last in heads if last <= here)
        if here < head:
            assert lag.seconds(now) >= truth - 1e-9
            assert lag.records == head - here
        else:
            assert lag.seconds(now) == 0.0


def test_a_long_lag_takes_no_memory_and_stays_about_right() -> None:
    lag = Lag(0.0)
    for second in range(100_000):
        lag.heard(float(second), second + 1)
    assert len(lag._samples) <= SAMPLES_MAX
    lag.applied(50_000)
    assert 50_000 <= lag.seconds(100_000.0) <= 60_000


@pytest.mark.parametrize(
    ("failing_since", "resyncing", "expected"),
    [
        (None, False, Condition.FOLLOWING),
        (None, True, Condition.RESYNCING),
        (100.0, False, Condition.RETRYING),
        (100.0, True, Condition.RETRYING),
        (100.5 - UNREACHABLE_S, True, Condition.UNREACHABLE),
    ],
)
def test_conditions(failing_since: float | None, resyncing: bool, expected: Condition) -> None:
    assert condition_of(failing_since, resyncing, 100.5) is expected


# --- digests


def test_differences_name_buckets_and_what_differs() -> None:
    ours = {"00": "0000000000000003", "01": "0000000000000001", "02": "0000000000000000"}
    theirs = {"00": "0000000000000001", "01": "0000000000000001", "03": "00000000000000ff"}
    assert differences(ours, theirs) == {"00": 2, "03": 255}
    assert differences(ours, theirs) == differences(theirs, ours)
    assert differences({}, {}) == {}


def test_only_what_differs_in_the_same_twice_is_repaired() -> None:
    assert lasting({"00": 2, "03": 255, "04": 1}, {"00": 2, "03": 254, "05": 1}) == {"00"}
    assert lasting({}, {"00": 2}) == frozenset()
