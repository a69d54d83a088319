"""Three regions write the same tenants while servers and replicators are killed: nothing acknowledged is lost.

Each region has a real Valkey server that keeps what it acknowledged (append-only file), and a replicator process. Who
is killed when, and who writes what, comes from a seed; when each of it takes place is up to the machine. At the end all
maps are the same, and every acknowledged write is current or in the history of some region.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.control.replication.region_map import MapUnavailable, RegionMap, Write, Written
from gateway.core.placement import Placement, State, Version
from gateway.core.replication import decode_value, encode_body, stamp_of
from tests.support.replication import AP, EU, US, Region, World, until, world

REGIONS = (US, EU, AP)
CONVERGED_LIMIT_S = 30.0
"""For a lease that a killed replicator left (3 s), and a machine that does other things."""

TRIES_MAX = 20
"""Writes that one tenant may see: so many a history remembers."""

PAUSE_S = 0.005


class Acknowledged(NamedTuple):
    tenant: str
    version: Version


class Writers:
    """One writer per region: it changes what its region has, by compare-and-set. Tenants are deleted at home only."""

    def __init__(self, w: World, seed: int, tenants: int) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.unanswered = 0
        self.refused = 0
        self.deleted: dict[str, Version] = {}
        self._left = {f"t{number:05d}": TRIES_MAX for number in range(tenants)}
        self._maps = [RegionMap(region.server.url, region.name, timeout_s=1.0) for region in w.regions]
        self._rng = random.Random(seed)
        self._over = asyncio.Event()
        self._tasks = [asyncio.get_running_loop().create_task(self._write(map_)) for map_ in self._maps]

    async def stop(self) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)
        for map_ in self._maps:
            await map_.close()

    async def _write(self, map_: RegionMap) -> None:
        while not self._over.is_set() and self._left:
            tenant = self._rng.choice(list(self._left)[:50])
            self._left[tenant] -= 1
            if not self._left[tenant]:
                del self._left[tenant]
            try:
                await self._change(map_, tenant)
            except MapUnavailable:
                self.unanswered += 1
                await asyncio.sleep(PAUSE_S * 4)
            await asyncio.sleep(PAUSE_S)

    async def _change(self, map_: RegionMap, tenant: str) -> None:
        value = (await map_.get([tenant]))[0]
        home = REGIONS[int(tenant[1:]) % len(REGIONS)]
        now = Placement(tenant=tenant, home=home) if value is None else decode_value(tenant, value)
        if now.state is State.DELETED or (value is None and map_.region != home):
            return
        is_end = map_.region == home and self._rng.random() < 0.03
        label = {"n": str(len(self.acknowledged)), "by": map_.region}
        changed = Placement(tenant=tenant, home=home, labels=label, state=State.DELETED if is_end else State.ACTIVE)
        epoch = max(1, now.version.epoch + is_end)
        expected = None if value is None else now.version
        result = (await map_.write([Write(tenant, expected, epoch, encode_body(changed))]))[0]
        if not isinstance(result, Written):
            self.refused += 1
            return
        self.acknowledged.append(Acknowledged(tenant, result.version))
        if is_end:
            self.deleted[tenant] = result.version


async def kill_one(region: Region, rng: random.Random) -> str:
    """Kill this region's server or its replicator, and start it again."""
    if rng.random() < 0.6:
        region.server.kill()
        await asyncio.sleep(rng.uniform(0, 0.5))
        await asyncio.to_thread(region.server.start)
        return f"server of {region.name}"
    process = region.processes[0]
    process.signal(signal.SIGKILL)
    await process.ended()
    await process.start()
    return f"replicator of {region.name}"


async def same_digests(w: World) -> bool:
    """Whether all maps are the same, by their digests, and everybody has all of everybody's log."""
    try:
        digests = [await region.map.digests() for region in w.regions]
        pairs = [(one, other) for one in w.regions for other in w.regions if one is not other]
        return digests[0] == digests[1] == digests[2] and all([await one.is_even_with(other) for one, other in pairs])
    except MapUnavailable:
        return False  # a pooled connection to a server that was killed


async def assert_nothing_is_lost(w: World, writers: Writers) -> None:
    assert await w.converged()
    tenants = {write.tenant for write in writers.acknowledged}
    current = {tenant: stamp_of(value).version for tenant, value in (await w.regions[0].content()).items()}
    known = {(tenant, version) for tenant, version in current.items()}
    for region in w.regions:
        for tenant in tenants:
            known |= {(tenant, stamp_of(entry.value).version) for entry in await region.map.history(tenant)}
    assert len(set(writers.acknowledged)) == len(writers.acknowledged), "no version is given twice"
    assert [write for write in writers.acknowledged if tuple(write) not in known] == []
    assert [write for write in writers.acknowledged if current[write.tenant] < write.version] == []
    content = await w.regions[0].content()
    alive = [tenant for tenant in writers.deleted if decode_value(tenant, content[tenant]).state is not State.DELETED]
    assert alive == [], "who was deleted stays deleted"


async def run(folder: Path, seed: int, kills: int, pause_s: float, tenants: int) -> Writers:
    rng = random.Random(seed)
    async with world(folder, *REGIONS, durable=True) as w:
        await asyncio.gather(*(region.start() for region in w.regions))
        writers = Writers(w, seed, tenants)
        killed = []
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.5, 1.5) * pause_s)
            killed.append(await kill_one(rng.choice(w.regions), rng))
        await asyncio.sleep(pause_s)
        await writers.stop()
        await until(lambda: same_digests(w), CONVERGED_LIMIT_S)
        await assert_nothing_is_lost(w, writers)
    print(
        f"seed {seed}: {len(writers.acknowledged)} writes acknowledged, {writers.refused} refused,"
        f" {writers.unanswered} unanswered, {len(writers.deleted)} tenants deleted; killed: {', '.join(killed)}"
    )
    return writers


async def test_nothing_acknowledged_is_lost_when_servers_and_replicators_are_killed(tmp_path: Path) -> None:
    writers = await run(tmp_path, seed=4, kills=3, pause_s=0.7, tenants=300)
    assert len(writers.acknowledged) > 100
    assert writers.unanswered > 0, "a server was away while somebody wrote"


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_acknowledged_is_lost_in_half_a_minute_of_kills(tmp_path: Path, seed: int) -> None:
    writers = await run(tmp_path, seed=seed, kills=20, pause_s=1.2, tenants=3000)
    assert len(writers.acknowledged) > 1000
