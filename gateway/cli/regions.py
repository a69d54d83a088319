"""The regions' Redis as a command uses them: our own, and the peers' that the configuration names.

A region that does not answer is told in one line that names it and where its Redis is, never with a password.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, TypeVar

import typer

from gateway.cli.output import Exit, fail
from gateway.control.replication.region_map import MapHead, MapUnavailable, RegionMap
from gateway.settings.schema import MapSource, RedisSettings, Settings

TIMEOUT_S: Final = 3.0
"""For one call: a person waits, who would rather have an answer late than none."""

LIVING_EXACT_MAX: Final = 50_000
"""Records that are looked at one by one to tell how many of them are deleted: half a second's work."""

DELETED: Final = b'"state":"deleted"'
"""How a tombstone's body says it."""

T = TypeVar("T")


def redis_of(settings: Settings) -> RedisSettings:
    """The Redis of a replicated map. Where a file is the map, that is said, and the command ends with 2."""
    redis = settings.tenant_map.redis
    if settings.tenant_map.source is not MapSource.REDIS or redis is None:
        fail(
            f"the tenants come from {settings.tenant_map.file} (tenant_map.source: yaml): edit that file, the gateways "
            "watch it; this command is for `tenant_map.source: redis`",
            Exit.BAD_INPUT,
        )
    return redis


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do it; exit 1 with a line when a Redis that it cannot do without does not answer."""
    try:
        return asyncio.run(work)
    except BrokenPipeError:  # `landbridge tenants export | head`, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(int(Exit.DONE)) from None
    except MapUnavailable as error:
        fail(f"the Redis of {error}")


class Regions:
    """All regions' maps by name. Nothing is connected before it is used; leaving it closes what was."""

    def __init__(self, settings: Settings) -> None:
        redis = redis_of(settings)
        self.own = settings.region
        self.peers = sorted(redis.peers)
        self.maps = {
            region: RegionMap(url, region, redis.tls, timeout_s=TIMEOUT_S, name="landbridge-cli")
            for region, url in {self.own: redis.url, **redis.peers}.items()
        }

    @property
    def here(self) -> RegionMap:
        return self.maps[self.own]

    async def __aenter__(self) -> Regions:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.gather(*(map_.close() for map_ in self.maps.values()))

    async def head(self, region: str) -> MapHead | str:
        """What a region's map says of itself, or why it says nothing."""
        map_ = self.maps.get(region)
        if map_ is None:
            return f"{region}: tenant_map.redis.peers has no URL for it"
        try:
            return await map_.head()
        except MapUnavailable as error:
            return str(error)

    async def heads(self, regions: Iterable[str]) -> dict[str, MapHead | str]:
        """Of several regions at once."""
        names = list(regions)
        return dict(zip(names, await asyncio.gather(*map(self.head, names)), strict=True))


async def living(map_: RegionMap) -> tuple[int, bool]:
    """(tenants that are not deleted, whether that is exact: a large map counts its deleted ones too)."""
    records = (await map_.head()).records
    if records > LIVING_EXACT_MAX:
        return records, False
    found = {tenant async for rows in map_.scan() for tenant, value in rows if DELETED not in value}
    return len(found), True
