"""Using and watching a replicated map while things break: no version may go back, no write may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence

from gateway.control.replication.region_map import MapUnavailable, Refused, Write, Written
from gateway.core.placement import Placement, Version, parse_version
from gateway.core.replication import decode_value, encode_body
from tests.support.fleet import LIMIT_S, until
from tests.support.redis_fleet import RedisFleet

PAGE = 1000


class Versions:
    """`async with Versions(fleet):` samples all tenants of every gateway: no version may ever go back or vanish."""

    def __init__(self, fleet: RedisFleet) -> None:
        self.fleet = fleet
        self.samples = 0
        self.gone_back: list[str] = []
        self._highest: dict[tuple[str, str], Version] = {}
        self._enough = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Versions:
        loop = asyncio.get_running_loop()
        for name in self.fleet.gateways:
            await self._look(name)
        self._tasks = [loop.create_task(self._watch(name)) for name in self.fleet.gateways]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        await asyncio.gather(*self._tasks)
        for name in self.fleet.gateways:
            await self._look(name)
        assert self.gone_back == []

    async def _watch(self, name: str) -> None:
        while not self._enough.is_set():
            with contextlib.suppress(OSError, EOFError):
                await self._look(name)
            await asyncio.sleep(0.1)

    async def _look(self, name: str) -> None:
        self._compare(name, await versions_of(self.fleet, name))

    def _compare(self, name: str, now: dict[str, Version]) -> None:
        self.samples += 1
        for (gateway, tenant), before in self._highest.items():
            if gateway == name and now.get(tenant, Version()) < before:
                self.gone_back.append(f"{name}: {tenant}: {before}, then {now.get(tenant)}")
        self._highest |= {(name, tenant): version for tenant, version in now.items()}


async def versions_of(fleet: RedisFleet, name: str) -> dict[str, Version]:
    """Every tenant's version in the store of a gateway, by its admin API."""
    rows = (await fleet[name].api(f"tenants?limit={PAGE}"))["tenants"]
    return {row["tenant"]: parse_version(row["version"]) for row in rows if row["version"]}


class Writing:
    """`async with Writing(fleet, tenants, regions):` changes records in turn, in each region's Valkey.

    What was acknowledged is in `fleet.acknowledged`; a region that cannot be written is tried again with the next one.
    """

    def __init__(self, fleet: RedisFleet, tenants: Sequence[str], regions: Sequence[str], rate: float = 100.0) -> None:
        self.fleet = fleet
        self.tenants = tenants
        self.regions = regions
        self.pause_s = len(regions) / rate
        self.acknowledged = 0
        self.unavailable = 0
        self.refused = 0
        self._enough = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Writing:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._write(region)) for region in self.regions]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        await asyncio.gather(*self._tasks)

    async def goes_on(self, count: int) -> None:
        """Wait until `count` more are acknowledged."""
        wanted = self.acknowledged + count

        async def more() -> bool:
            return self.acknowledged >= wanted

        await until(more, f"{count} more writes are acknowledged", LIMIT_S + count * self.pause_s)

    def __str__(self) -> str:
        return f"{self.acknowledged} writes acknowledged, {self.refused} refused, {self.unavailable} not possible"

    async def _write(self, region: str) -> None:
        rng = random.Random(region)
        for count in itertools.count():
            if self._enough.is_set():
                return
            try:
                await self._one(region, rng.choice(self.tenants), count)
            except MapUnavailable:
                self.unavailable += 1
            await asyncio.sleep(self.pause_s)

    async def _one(self, region: str, tenant: str, count: int) -> None:
        region_map = self.fleet.maps[region]
        value = (await region_map.get([tenant]))[0]
        before = None if value is None else decode_value(tenant, value)
        home = region if before is None else before.home
        after = Placement(tenant=tenant, home=home, labels={"by": region, "n": str(count)}, by="test")
        epoch, expected = (1, None) if before is None else (before.version.epoch, before.version)
        done = (await region_map.write([Write(tenant, expected, epoch, encode_body(after))]))[0]
        if isinstance(done, Refused):
            self.refused += 1
            return
        assert isinstance(done, Written)
        self.acknowledged += 1
        self.fleet.acknowledged.setdefault(tenant, []).append(done.version)
