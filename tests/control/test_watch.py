"""The stand-still rule as a table, and the poll on real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.control import watch as watch_module
from gateway.control.watch import Stamps, StandStill, Watch, stamps_of

A: Stamps = (("f", (1, 1, 1)),)
B: Stamps = (("f", (2, 2, 1)),)
C: Stamps = (("f", (3, 3, 1)),)
GONE: Stamps = (("f", None),)


@pytest.mark.parametrize(
    ("seen", "acts"),
    [
        ([(A, 0), (A, 99)], []),
        ([(B, 0), (B, 1), (B, 2)], [2]),
        ([(B, 0), (B, 1)], []),
        ([(B, 0), (B, 2), (B, 4), (B, 99)], [2]),
        ([(B, 0), (C, 1), (C, 2), (C, 3)], [3]),
        ([(B, 0), (A, 1), (A, 4)], []),
        ([(B, 0), (A, 1), (B, 2), (B, 3), (B, 4)], [4]),
        ([(GONE, 0), (B, 1), (B, 3)], [3]),
        ([(GONE, 0), (GONE, 2), (A, 3), (A, 5)], [2, 5]),
        ([(B, 0), (B, 2), (A, 9), (A, 11)], [2, 11]),
    ],
)
def test_a_change_counts_once_it_stood_still(seen: list[tuple[Stamps, int]], acts: list[int]) -> None:
    """Times are in eighths of a second: two of them are long enough, one is not."""
    rule = StandStill(A)
    assert [now for stamps, now in seen if rule.observe(stamps, now / 8)] == acts


def test_settle_forgets_a_change_that_somebody_else_acted_upon() -> None:
    rule = StandStill(A)
    rule.observe(B, 0.0)
    rule.settle(B)
    assert not rule.pending
    assert not rule.observe(B, 5.0)


@pytest.fixture
async def acted(tmp_path: Path) -> AsyncIterator[tuple[Path, asyncio.Queue[str]]]:
    """A watched file that does not exist yet, and what it held at each act."""
    path = tmp_path / "tenants.yaml"
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def act() -> None:
        seen.put_nowait(path.read_text() if path.exists() else "")

    task = asyncio.get_running_loop().create_task(Watch(lambda: [path], act).run())
    yield path, seen
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_file_written_in_pieces_is_read_once_and_whole(acted: tuple[Path, asyncio.Queue[str]]) -> None:
    path, seen = acted
    with path.open("w") as file:
        for _ in range(6):
            file.write("x")
            file.flush()
            await asyncio.sleep(0.1)  # the writer's own pace, shorter than the rule's patience
    assert await asyncio.wait_for(seen.get(), 5) == "xxxxxx"
    assert seen.empty()


async def test_replacement_deletion_and_a_swapped_symlink_are_changes(acted: tuple[Path, asyncio.Queue[str]]) -> None:
    path, seen = acted
    path.write_text("one")
    assert await asyncio.wait_for(seen.get(), 5) == "one"
    other = path.with_suffix(".new")
    other.write_text("two")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # same size, same mtime: another inode
    other.rename(path)
    assert await asyncio.wait_for(seen.get(), 5) == "two"
    path.unlink()
    assert await asyncio.wait_for(seen.get(), 5) == ""
    target = path.with_name("revision-2")
    target.write_text("three")
    path.symlink_to(target)
    assert await asyncio.wait_for(seen.get(), 5) == "three"


def test_stamps_of_what_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert stamps_of([tmp_path / "none"]) == ((str(tmp_path / "none"), None),)


async def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    watch = Watch(lambda: [file], lambda: asyncio.sleep(0))
    assert await watch.at_rest(), "there is none"
    file.write_text("a")
    written_s = file.stat().st_mtime_ns / 1e9
    clock = [written_s + 0.05, written_s + 0.19, written_s + 0.2]
    assert await watch.at_rest(lambda: clock.pop(0))
    assert clock == []
    assert await watch.at_rest(lambda: written_s - 1), "its time has yet to come: a clock was set"


async def test_a_file_that_never_rests_is_left_to_the_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "REST_LIMIT_S", 0.4)
    file = tmp_path / "tenants.yaml"
    file.write_text("a")
    watch = Watch(lambda: [file], lambda: asyncio.sleep(0))
    assert not await watch.at_rest(lambda: file.stat().st_mtime_ns / 1e9 + 0.1)
