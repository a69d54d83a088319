"""A region's Redis and a store that follows it, in this process: what a control with `source: redis` has of both."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from gateway.bus.messages import MapChanged
from gateway.control.registry import Replication
from gateway.control.reload import Outcome
from gateway.control.replication.region_map import RegionMap, Write, Written
from gateway.control.sources.redis_feed import RedisFeed
from gateway.control.sources.source import Ground
from gateway.core.placement import Placement, Version
from gateway.core.replication import encode_body, encode_value, stamp_of
from gateway.settings.schema import (
    Address,
    ClusterSettings,
    Listen,
    MapSource,
    RedisSettings,
    RegionSettings,
    Settings,
    TenantMapSettings,
)
from gateway.store.writer import Writer
from tests.support.eventually import eventually
from tests.support.valkey import Valkey

US, EU = "us-east-1", "eu-west-1"


def placement(tenant: str, home: str = US, **more: object) -> Placement:
    return Placement(tenant=tenant, home=home, **more)  # type: ignore[arg-type]


def value_of(tenant: str, version: Version, **more: object) -> bytes:
    return encode_value(tenant, version, (), encode_body(placement(tenant, **more)))  # type: ignore[arg-type]


class Region:
    """See the module. Restart the gateway's side with `stop()` and `start()`."""

    def __init__(self, folder: Path, server: Valkey) -> None:
        self.folder = folder
        self.server = server
        self.map = RegionMap(server.url, US)
        self.settings = Settings(
            region=US,
            listen=Listen(Address("127.0.0.1", 0)),
            state_dir=str(folder),
            hop_keys=("k" * 32,),
            regions={US: RegionSettings("http://{tenant}.us.test"), EU: RegionSettings("http://{tenant}.eu.test")},
            clusters={"app": ClusterSettings((Address("127.0.0.1", 9000),))},
            tenant_map=TenantMapSettings(
                str(folder / "tenants.yaml"),
                MapSource.REDIS,
                redis=RedisSettings(server.url, {EU: "redis://127.0.0.1:1"}),
            ),
        )
        self.writer = Writer(folder / "map")
        self.changes: list[MapChanged] = []
        self.outcomes: list[Outcome] = []
        self.rejected: Counter[str] = Counter()
        self.suspected: list[str] = []
        self.feed = self._made()
        self.task: asyncio.Task[None] | None = None

    def _made(self) -> RedisFeed:
        return RedisFeed(
            Ground(
                self.writer,
                lambda: self.settings,
                self.changes.append,
                self.outcomes.append,
                lambda: time.time_ns() // 1_000_000,
                lambda reason: self.rejected.update((reason,)),
                self.suspected.append,
                "1.2.3",
                random.Random(1),
            )
        )

    def start(self) -> None:
        self.feed = self._made()
        self.task = asyncio.get_running_loop().create_task(self.feed.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    def kill_server(self) -> None:
        """SIGKILL, once what was acknowledged is on the disk: `everysec` may keep it for two seconds."""
        assert self.server.cli("WAITAOF", "1", "0", "10000").startswith(b"*2")
        self.server.kill()

    async def start_server(self) -> None:
        """Start the server again, and connect to it anew: the old connection would fail once."""
        self.server.start()
        await self.map.close()
        self.map = RegionMap(self.server.url, US)

    # --- what is written

    async def write(self, *tenants: str, epoch: int = 1, **more: object) -> list[Written]:
        """A new version of each of these, whatever is there."""
        done = []
        for at in range(0, len(tenants), 500):
            some = tenants[at : at + 500]
            now = [None if value is None else stamp_of(value).version for value in await self.map.get(some)]
            items = [
                Write(t, v, max(epoch, v.epoch if v else 0), encode_body(placement(t, **more)))  # type: ignore[arg-type]
                for t, v in zip(some, now, strict=True)
            ]
            for result in await self.map.write(items):
                assert isinstance(result, Written), result
                done.append(result)
        return done

    def hset(self, tenant: str, value: bytes) -> None:
        """What somebody's hand does."""
        self.server.cli("HSET", "{landbridge}:tenants", tenant, value)

    # --- what is followed

    def home(self, tenant: str) -> str | None:
        found = self.writer.placement(tenant)
        return None if found is None else found.home

    def version(self, tenant: str) -> Version | None:
        found = self.writer.newest(tenant)
        return None if found is None else found.version

    def records(self) -> int:
        return self.writer.meta().records

    @property
    def known(self) -> Replication:
        return self.feed.replication()

    async def followed(self) -> None:
        """Wait until everything that is in Redis now is in the store, and nothing is to be settled."""
        head = await self.map.head()
        at = (head.log_id, head.feed.last)

        def holds() -> bool:
            stored = self.writer.source()
            return not self.feed.stale and stored is not None and (stored.log_id, stored.seq) == at

        await eventually(holds)

    def reconfigure(self, **changes: object) -> None:
        self.settings = msgspec.structs.replace(self.settings, **changes)


@asynccontextmanager
async def followed_region(
    folder: Path, *, filled: Sequence[str] = (), follow: bool = True, durable: bool = True
) -> AsyncIterator[Region]:
    """A region with these tenants at home here, its map complete, and followed."""
    server = Valkey(folder / "valkey", durable=durable)
    region = Region(folder, server)
    try:
        await region.write(*filled)
        await region.map.mark_complete()
        if follow:
            region.start()
            await region.followed()
        yield region
    finally:
        await region.stop()
        await region.map.close()
        region.writer.close()
        server.kill()
