"""Regions, each with a real Valkey and as many replicators as a test wants: in this process, where they can be looked
into, or as processes of their own, where they can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.bus.stats import read_series
from gateway.control.reload import write_last_good
from gateway.control.replication import keys
from gateway.control.replication.counters import Counters
from gateway.control.replication.region_map import MapUnavailable, PeerState, Refused, RegionMap, Write, Written
from gateway.control.replication.replicator import Replicator
from gateway.core.placement import Placement, Version
from gateway.core.replication import encode_body, encode_value, stamp_of
from gateway.settings.loader import read_sources
from tests.support.eventually import LIMIT_S
from tests.support.valkey import Valkey

US, EU, AP = "us-east-1", "eu-west-1", "ap-southeast-2"
ROOT = Path(__file__).resolve().parents[2]

START_LIMIT_S = 60.0
"""Half a dozen interpreters that start at once on a busy machine take their time; it only bounds a failure."""


async def until(holds: Callable[[], Awaitable[object]], limit_s: float = LIMIT_S) -> None:
    """Return as soon as `await holds()`; TimeoutError when it does not within `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not await holds():
            await asyncio.sleep(0.02)


def body(home: str = US, **more: object) -> bytes:
    return encode_body(Placement(tenant="any", home=home, **more))  # type: ignore[arg-type]


def value_of(tenant: str, version: Version, replaces: Sequence[Version] = (), **more: object) -> bytes:
    return encode_value(tenant, version, replaces, body(**more))  # type: ignore[arg-type]


class Region:
    """One region: its server, its map as a test looks at it, and its replicators."""

    def __init__(self, world: World, name: str, *, durable: bool) -> None:
        self.name = name
        self.world = world
        self.folder = world.folder / name
        self.server = Valkey(self.folder / "valkey", durable=durable)
        self.map = RegionMap(self.server.url, name)
        self.running: list[tuple[Replicator, asyncio.Task[None], Counters]] = []
        self.processes: list[Process] = []

    async def write(self, *tenants: str, epoch: int = 1, **more: object) -> list[Written]:
        """Write a version of each, whatever is there, at this epoch or that of what is there."""
        done = []
        for at in range(0, len(tenants), 200):
            some = tenants[at : at + 200]
            now = [None if value is None else stamp_of(value).version for value in await self.map.get(some)]
            items = [
                Write(tenant, version, max(epoch, version.epoch if version else 0), body(**more))  # type: ignore[arg-type]
                for tenant, version in zip(some, now, strict=True)
            ]
            for result in await self.map.write(items):
                assert not isinstance(result, Refused), result
                done.append(result)
        return done

    async def restart(self) -> None:
        """Kill the server and start it again: with what was on its disk, if it is durable."""
        self.server.kill()
        self.server.start()
        await until(self._answers)  # connections that ended are found to have, so that the test meets none

    async def _answers(self) -> bool:
        try:
            return bool(await self.map.head())
        except MapUnavailable:
            return False

    async def content(self) -> dict[str, bytes]:
        return {tenant: value async for rows in self.map.scan() for tenant, value in rows}

    async def current(self, tenant: str) -> bytes | None:
        return (await self.map.get([tenant]))[0]

    async def state(self, peer: Region) -> PeerState | None:
        return (await self.map.replication()).get(peer.name)

    async def is_even_with(self, peer: Region) -> bool:
        """Whether all of the peer's log is here, going by our offset."""
        head, offset = await peer.map.head(), (await self.map.offsets()).get(peer.name)
        return offset is not None and (offset.log_id, offset.seq) == (head.log_id, head.log.last)

    async def has_state(self, peer: Region, state: str) -> bool:
        said = await self.state(peer)
        return said is not None and said.state == state

    # --- in this process

    def replicate(self, token: str = "") -> Replicator:
        """One more replicator, in this process."""
        number = len(self.running)
        peers = [RegionMap(other.server.url, other.name) for other in self.world.regions if other is not self]
        counters = Counters(self.folder / f"state{number}", tuple(peer.region for peer in peers))
        token = token or f"{self.name}.{number}"
        made = Replicator(RegionMap(self.server.url, self.name), peers, token, counters, random.Random(number))
        self.running.append((made, asyncio.get_running_loop().create_task(made.run()), counters))
        return made

    def count(self, name: str, **labels: str) -> int:
        """A counter, over all replicators that ever ran here."""
        series = read_series(self.folder.glob("state*/stats/*.stats"))
        return series.get((name, tuple(labels.items())), 0)

    async def close(self) -> None:
        for replicator, task, counters in self.running:
            replicator.stop()
            await task
            for region_map in (replicator.own, *replicator.peers):
                await region_map.close()
            counters.close()
        for process in self.processes:
            await process.close()
        await self.map.close()
        self.server.kill()

    # --- as processes

    async def start(self) -> Process:
        """One more replicator, as a process."""
        made = Process(self, len(self.processes))
        self.processes.append(made)
        await made.start()
        return made

    def config(self) -> str:
        regions = "".join(f"  {region.name}: {{gateways: ['127.0.0.1:9']}}\n" for region in self.world.regions)
        peers = ", ".join(f"{r.name}: '{r.server.url}'" for r in self.world.regions if r is not self)
        return (
            f"region: {self.name}\nlisten: {{http: '127.0.0.1:0', hop: '127.0.0.1:0'}}\nworkers: 1\n"
            f"state_dir: state\nhop_keys: ['{'k' * 32}']\nregions:\n{regions}"
            "clusters: {app: {endpoints: ['127.0.0.1:9']}}\n"
            f"tenancy: {{resolvers: [{{header: X-Tenant-ID}}]}}\n"
            f"tenant_map: {{source: redis, redis: {{url: '{self.server.url}', peers: {{{peers}}}}}}}\n"
        )


class Process:
    """One replicator under a supervisor's channel."""

    def __init__(self, region: Region, number: int) -> None:
        self.region = region
        self.state_dir = region.folder / f"state{number}"
        self.log_file = region.folder / f"replicator{number}.log"
        self.process: asyncio.subprocess.Process | None = None
        self.channel: socket.socket | None = None
        self.state_dir.mkdir(mode=0o700)
        config = region.folder / f"gateway{number}.yaml"
        config.write_text(region.config())
        write_last_good(self.state_dir, read_sources(config, {}))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Start it and wait until it serves."""
        await self.launch()
        assert await self.said(START_LIMIT_S) == {"state": "serving"}

    async def launch(self) -> None:
        if self.channel is not None:
            self.channel.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.channel = ours
        with theirs, self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, *(("-X", "dev") if self.region.world.dev else ())),
                *("-m", "gateway.control.replication.main"),
                *("--state-dir", str(self.state_dir), "--channel", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    async def said(self, limit_s: float = LIMIT_S) -> Any:
        """What it says next."""
        assert self.channel is not None
        async with asyncio.timeout(limit_s):
            data = await asyncio.get_running_loop().sock_recv(self.channel, 65536)
        assert data, f"it ended: {self.log()}"
        return json.loads(data)

    def tell(self, **command: Any) -> None:
        assert self.channel is not None
        self.channel.sendall(json.dumps(command).encode() + b"\n")

    def hang_up(self) -> None:
        """What the kernel does when the supervisor is killed."""
        assert self.channel is not None
        self.channel.close()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
        self.process = None
        return code

    async def holds_the_lease(self) -> bool:
        holder = self.region.server.cli("GET", keys.LEASE)
        return f".{self.pid}.".encode() in holder

    def log(self) -> str:
        return self.log_file.read_text()

    async def close(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGCONT)
            self.tell(cmd="stop")
            assert await self.ended() == 0, self.log()
        self.hang_up()


class World:
    """Regions that know each other. `dev`: processes run in Python's development mode, which is slow."""

    def __init__(self, folder: Path, dev: bool = False) -> None:
        self.folder = folder
        self.dev = dev
        self.regions: list[Region] = []

    async def converged(self) -> bool:
        """Whether all maps are the same, value for value."""
        first, *others = [await region.content() for region in self.regions]
        return all(other == first for other in others)


@asynccontextmanager
async def world(folder: Path, *names: str, durable: bool = False, dev: bool = False) -> AsyncIterator[World]:
    made = World(folder, dev)
    try:
        for name in names or (US, EU):
            made.regions.append(Region(made, name, durable=durable))
        yield made
    finally:
        for region in made.regions:
            await region.close()
