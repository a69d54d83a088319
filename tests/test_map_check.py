"""The supervisor's look at the map, with real children: what asks for it, what it holds up, and that it always ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from gateway import map_check
from gateway.map_check import MapCheck

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")
WORKS = (sys.executable, "-c", "import sys; sys.exit(0 if sys.argv[1:2] == ['--state-dir'] else 9)")
FAILS = (sys.executable, "-c", "raise SystemExit(1)")
KILLED = 9
SEGV, BUS, ABRT, TERM = 11, 7, 6, 15


class Operator(list[str]):
    """What was logged."""


@pytest.fixture
def lines() -> Operator:
    return Operator()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """One in which a gateway ran before."""
    (tmp_path / "map").mkdir()
    return tmp_path


def made(command: tuple[str, ...], state_dir: Path, lines: Operator) -> MapCheck:
    return MapCheck(command, state_dir, dict(os.environ), lines.append)


def reap(check: MapCheck) -> None:
    pid, status = os.waitpid(-1, 0)
    assert check.reaped(pid, status)


def test_after_a_death_the_map_is_walked_whole(state_dir: Path, lines: Operator) -> None:
    code = "import sys; sys.exit(sys.argv[3:].index('--start') + 10 * len(sys.argv[3:]))"
    check = made((sys.executable, "-c", code), state_dir, lines)
    assert check.holds_starts(0.0)
    reap(check)
    check.child_died(SEGV)
    assert check.holds_starts(0.0)
    assert check.deadline == map_check.WHOLE_LIMIT_S
    reap(check)
    assert [line.split()[-1] for line in lines] == ["10", "20"]


def test_a_first_start_waits_for_nothing(tmp_path: Path, lines: Operator) -> None:
    assert not made(SLEEPS, tmp_path, lines).holds_starts(0.0)


@pytest.mark.parametrize("left", ["map", "map.snapshot"])
def test_starts_wait_until_it_is_over(tmp_path: Path, lines: Operator, left: str) -> None:
    (tmp_path / left).touch()
    check = made(WORKS, tmp_path, lines)
    assert check.holds_starts(0.0)
    assert check.holds_starts(0.1)
    assert not check.reaped(os.getpid(), 0)
    reap(check)
    assert not check.holds_starts(0.2)
    assert lines == []


def test_what_it_found_does_not_hold_the_gateway_up(state_dir: Path, lines: Operator) -> None:
    check = made(FAILS, state_dir, lines)
    assert check.holds_starts(0.0)
    reap(check)
    assert not check.holds_starts(0.1)
    assert lines == ["the check of the map ended with 1"]


@pytest.mark.parametrize("command", [(), ("/nowhere/at/all",)])
def test_one_that_cannot_be_started_does_not_either(state_dir: Path, lines: Operator, command: tuple[str, ...]) -> None:
    check = made(command, state_dir, lines)
    assert not check.holds_starts(0.0)
    assert bool(lines) == bool(command)


def test_one_that_hangs_is_ended(state_dir: Path, lines: Operator) -> None:
    check = made(SLEEPS, state_dir, lines)
    now = time.monotonic()
    assert check.holds_starts(now)
    assert check.deadline == now + map_check.LIMIT_S
    assert not check.holds_starts(check.deadline)
    assert "given up" in lines[0]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    ("status", "asks"),
    [(SEGV, True), (BUS, True), (ABRT, True), (KILLED, False), (TERM, False), (1 << 8, False), (0, False)],
)
def test_only_a_death_that_a_bad_map_makes_asks_for_another(
    state_dir: Path, lines: Operator, status: int, asks: bool
) -> None:
    check = made(WORKS, state_dir, lines)
    assert check.holds_starts(0.0)
    reap(check)
    check.child_died(status)
    assert check.holds_starts(1.0) is asks
    check.stop()
