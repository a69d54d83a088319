"""What a worker says of the map to control: how far it decides by it, once that is so."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.bus.messages import MapApplied, MapChanged
from gateway.core.placement import Placement
from gateway.proxy.worker import MAP_CHECK_S
from gateway.store import generations
from gateway.store.making import Content, make
from gateway.store.record import Summary
from gateway.store.wanted import Wanted
from tests.support.dataplane import DataPlane, cluster, data_plane, view

MOVE = """
import sys
from pathlib import Path
from gateway.core.placement import Placement
from gateway.store.writer import Writer
writer = Writer(Path(sys.argv[1]))
change = writer.replace([Placement(tenant="acme", home=sys.argv[2])], 2)
print(change.from_txn, change.to_txn, change.generation)
"""


async def move(tmp_path: Path, home: str) -> MapChanged:
    """Another process, as control is one, moves acme; what it would tell the workers."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MOVE, str(tmp_path / "map"), home), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    from_txn, to_txn, generation = map(int, out.split())
    return MapChanged(from_txn, to_txn, ("acme",), (), generation)


def applied(plane: DataPlane) -> list[MapApplied]:
    """What was said since the last call."""
    said = [message for message in plane.said if isinstance(message, MapApplied)]
    plane.said.clear()
    return said


def home(plane: DataPlane) -> str:
    found = plane.worker.placement("acme")
    assert found is not None
    return found.home


@asynccontextmanager
async def told_only(tmp_path: Path) -> AsyncIterator[DataPlane]:
    """A worker that knows acme and looks after the map only when it is told to."""
    async with data_plane(tmp_path, view(cluster("app", 1))) as plane:
        plane.worker._next_map_check = math.inf
        assert home(plane) == "us-east-1"
        assert [said.generation for said in applied(plane)] == [1], "it has opened a map"
        yield plane


async def test_a_change_is_applied_before_that_is_said(tmp_path: Path) -> None:
    async with told_only(tmp_path) as plane:
        change = await move(tmp_path, "eu-west-1")
        assert home(plane) == "us-east-1", "it is remembered"
        plane.worker.map_changed(change)
        assert applied(plane) == [MapApplied(1, change.to_txn)]
        assert home(plane) == "eu-west-1"
        plane.worker.map_changed(change)
        assert applied(plane) == [MapApplied(1, change.to_txn)], "what is told again is said again"


async def test_after_a_gap_and_after_everything_the_whole_memory_is_dropped_first(tmp_path: Path) -> None:
    async with told_only(tmp_path) as plane:
        for told in (lambda c: MapChanged(c.from_txn - 1, c.to_txn, (), (), 1), lambda c: MapChanged(0, c.to_txn)):
            before = home(plane)
            change = await move(tmp_path, "eu-west-1" if before == "us-east-1" else "us-east-1")
            plane.worker.map_changed(told(change))
            assert applied(plane) == [MapApplied(1, change.to_txn)]
            assert home(plane) != before


async def test_nothing_is_said_of_a_generation_that_is_not_followed(tmp_path: Path) -> None:
    async with told_only(tmp_path) as plane:
        plane.worker.map_changed(MapChanged(3, 4, ("acme",), (), generation=9))
        assert applied(plane) == []


def rebuild(tmp_path: Path, home: str) -> int:
    wanted = Wanted.of([Placement(tenant="acme", home=home)])
    with generations.locked(tmp_path / "map"):
        return make(tmp_path / "map", content=Content(wanted.tenants.items(), Summary(1, wanted.digest, 7)))


async def test_another_generation_is_followed_and_said_with_its_own_count(tmp_path: Path) -> None:
    async with told_only(tmp_path) as plane:
        generation = rebuild(tmp_path, "eu-west-1")
        plane.worker.map_changed(MapChanged(0, 3, generation=generation))
        assert applied(plane) == [MapApplied(generation, 3)]
        assert home(plane) == "eu-west-1"
        last = rebuild(tmp_path, "us-east-1")
        plane.worker._check_map(plane.worker.now())
        [said] = applied(plane)
        assert said == MapApplied(last, plane.worker._reader.transaction())
        assert home(plane) == "us-east-1"


async def test_a_map_that_moved_without_a_word_is_caught_up_with_and_said(tmp_path: Path) -> None:
    async with data_plane(tmp_path, view(cluster("app", 1))) as plane:
        assert home(plane) == "us-east-1"
        applied(plane)
        change = await move(tmp_path, "eu-west-1")
        async with asyncio.timeout(10 * MAP_CHECK_S):
            while not (said := applied(plane)):
                await asyncio.sleep(0.02)
        assert said == [MapApplied(1, change.to_txn)]
        assert home(plane) == "eu-west-1"
