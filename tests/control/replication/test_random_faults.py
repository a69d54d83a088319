"""Three regions that all write, while servers and replicators are killed, stopped and trimmed at random: a history of
what was acknowledged, held against what is there in the end. A failing seed is run again by its number.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.control.replication import keys
from gateway.control.replication.incoming import weigh
from gateway.control.replication.region_map import MapUnavailable, Refused, Write
from gateway.core.placement import Version
from gateway.core.replication import stamp_of
from tests.support.replication import AP, EU, US, Region, World, body, until, world

TENANTS = 2500
"""So many that no history, twenty records long, forgets what was written."""

CONVERGED_S = 15.0
"""A replicator that was just killed is replaced within five; its successor then has all peers to hear."""


class Acknowledged(NamedTuple):
    tenant: str
    version: Version
    region: str


class Storm:
    """Writers in every region, and one fault after the other, for `seconds`."""

    def __init__(self, w: World, rng: random.Random, seconds: float) -> None:
        self.w = w
        self.rng = rng
        self.end = time.monotonic() + seconds
        self.acknowledged: list[Acknowledged] = []
        self.faults: list[str] = []

    async def run(self) -> None:
        await asyncio.gather(*(self.write(region) for region in self.w.regions), self.break_things())

    async def write(self, region: Region) -> None:
        """Read, then compare-and-set, as a tool does; where that fails nobody knows whether it was written."""
        while time.monotonic() < self.end:
            tenants = [f"t{self.rng.randrange(TENANTS)}" for _ in range(self.rng.choice((1, 1, 3, 10)))]
            try:
                for tenant, result in zip(tenants, await self.change(region, tenants), strict=True):
                    if not isinstance(result, Refused):
                        self.acknowledged.append(Acknowledged(tenant, result.version, region.name))
            except MapUnavailable:
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.rng.random() * 0.02)

    async def change(self, region: Region, tenants: list[str]) -> list[object]:
        items = []
        for tenant, value in zip(tenants, await region.map.get(tenants), strict=True):
            now = None if value is None else stamp_of(value).version
            epoch = max(1, now.epoch + self.rng.randrange(2)) if now else 1
            items.append(Write(tenant, now, epoch, body(home=region.name, by=str(len(self.acknowledged)))))
        return list(await region.map.write(items))

    async def break_things(self) -> None:
        kinds: list[Callable[[Region], Awaitable[None]]] = [
            self.kill_server,
            self.stop_server,
            self.kill_replicator,
            self.stop_replicator,
            self.trim_log,
        ]
        while time.monotonic() < self.end:
            await asyncio.sleep(self.rng.random())
            region, kind = self.rng.choice(self.w.regions), self.rng.choice(kinds)
            self.faults.append(f"{kind.__name__} in {region.name}")
            await kind(region)

    async def kill_server(self, region: Region) -> None:
        region.server.kill()
        await asyncio.sleep(self.rng.random())
        await region.restart()

    async def stop_server(self, region: Region) -> None:
        region.server.stop()
        await asyncio.sleep(self.rng.random() * 3)
        region.server.cont()

    async def kill_replicator(self, region: Region) -> None:
        process = self.rng.choice(region.processes)
        process.signal(signal.SIGKILL)
        await process.ended()
        await process.start()

    async def stop_replicator(self, region: Region) -> None:
        process = self.rng.choice(region.processes)
        process.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.random() * 4)
        process.signal(signal.SIGCONT)

    async def trim_log(self, region: Region) -> None:
        region.server.cli("XTRIM", keys.LOG, "MAXLEN", str(self.rng.randrange(5)))


async def kept(w: World, acknowledged: list[Acknowledged]) -> set[tuple[str, Version]]:
    """(tenant, version) of all that is current or in a history anywhere, or that one of these descends from."""
    found: set[tuple[str, Version]] = set()
    for region in w.regions:
        values = list((await region.content()).items())
        for tenant in {one.tenant for one in acknowledged}:
            values += [(tenant, entry.value) for entry in await region.map.history(tenant)]
        for tenant, value in values:
            stamp = stamp_of(value)
            found.update((tenant, version) for version in (stamp.version, *stamp.replaces))
    return found


async def digests_of(region: Region) -> dict[str, str]:
    """What the digests have to be, counted here."""
    sums: dict[str, int] = {}
    for tenant, value in (await region.content()).items():
        named, holds = weigh(tenant, value)
        assert holds
        sums[named[:2]] = sums.get(named[:2], 0) ^ int(named, 16)
    return {bucket: f"{total:016x}" for bucket, total in sums.items() if total}


async def hold(folder: Path, seed: int, seconds: float, replicators: int) -> None:
    async with world(folder, US, EU, AP, durable=True) as w:
        await asyncio.gather(*(region.start() for region in w.regions for _ in range(replicators)))
        storm = Storm(w, random.Random(seed), seconds)
        await storm.run()

        async def is_over() -> bool:
            try:
                return await w.converged() and all(
                    [await a.is_even_with(b) for a in w.regions for b in w.regions if a is not b]
                )
            except MapUnavailable:
                return False

        try:
            await until(is_over, CONVERGED_S)
        except TimeoutError:
            states = [await region.map.replication() for region in w.regions]
            raise AssertionError(f"seed {seed}: not converged after {storm.faults}: {states}") from None
        here = await kept(w, storm.acknowledged)
        lost = [one for one in storm.acknowledged if (one.tenant, one.version) not in here]
        assert not lost, f"seed {seed}: {len(lost)} of {len(storm.acknowledged)} lost, {lost[:3]}, by {storm.faults}"
        for region in w.regions:
            assert await region.map.digests() == await digests_of(region)
            for process in region.processes:
                assert "Traceback" not in process.log()
        assert storm.acknowledged


async def test_nothing_acknowledged_is_lost_whatever_fails(tmp_path: Path) -> None:
    await hold(tmp_path, seed=20, seconds=3.0, replicators=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [101, 102, 103])
async def test_nothing_acknowledged_is_lost_in_a_long_storm(tmp_path: Path, seed: int) -> None:
    await hold(tmp_path, seed, seconds=40.0, replicators=2)
