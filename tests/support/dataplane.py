"""A real worker in the test's own loop: real sockets, real map on disk, a View made by keyword."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.bus.messages import FromWorker
from gateway.core.exchange import Exchange
from gateway.core.filtering import Chain
from gateway.core.placement import Placement
from gateway.core.view import Cluster, ClusterTimeouts, Endpoint, HostResolver, HostTemplate, PublicUrl, Region, View
from gateway.proxy.chain import build_chain
from gateway.proxy.worker import SWEEP_S, Worker
from gateway.store.writer import Writer
from gateway.telemetry.access_log import AccessLog

KEY = b"k" * 32


@dataclass
class Lines(AccessLog):
    """An access log whose exchanges a test can look at."""

    exchanges: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(None)

    def write(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)


@dataclass
class DataPlane:
    worker: Worker
    port: int
    hop_port: int
    log: Lines
    said: list[FromWorker]

    def swap(self, **changes: object) -> None:
        self.worker.swap(dataclasses.replace(self.worker.view, **changes))  # type: ignore[arg-type]


def template(text: str) -> HostTemplate:
    prefix, brace, suffix = text.partition("{tenant}")
    return HostTemplate(prefix, suffix, bool(brace))


def cluster(name: str, *ports: int, timeouts: ClusterTimeouts | None = None, **more: object) -> Cluster:
    endpoints = tuple(Endpoint(f"127.0.0.1:{port}", "127.0.0.1", port) for port in ports)
    return Cluster(name, endpoints, timeouts or ClusterTimeouts(), **more)  # type: ignore[arg-type]


def view(*clusters: Cluster, region: str = "us-east-1", **more: object) -> View:
    """Two regions, tenants by `{tenant}.test`, the given clusters."""
    regions = {
        name: Region(name, PublicUrl("https", template("{tenant}." + name + ".test"), None))
        for name in ("us-east-1", "eu-west-1")
    }
    values: dict[str, object] = {
        "regions": regions,
        "clusters": {c.name: c for c in clusters},
        "resolvers": (HostResolver(template("{tenant}.test")),),
        "hop_keys": (KEY,),
        "access_log_path": "-",
    }
    return View(region, **(values | more))  # type: ignore[arg-type]


@asynccontextmanager
async def data_plane(
    tmp_path: Path,
    snapshot: View,
    placements: Iterable[Placement] = (Placement(tenant="acme", home="us-east-1"),),
    chain_for: Callable[[View], Chain] = build_chain,
) -> AsyncIterator[DataPlane]:
    """Start a worker, stop it, and fail if it leaves a connection or a task behind."""
    writer = Writer(tmp_path / "map")
    writer.replace(placements, 1)
    writer.close()  # LMDB opens a map once per process, and the worker is the one that needs it here
    loop = asyncio.get_running_loop()
    log, said = Lines(), []
    worker = Worker(loop, snapshot, chain_for, tmp_path, 0, said.append, log)
    servers, ports = [], []
    for listener in ("http", "hop"):
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        ports.append(sock.getsockname()[1])
        servers.append(await loop.create_server(worker.accept(sock, listener), sock=sock))
    stop = False

    def sweep() -> None:
        if not stop:
            loop.call_later(SWEEP_S, sweep)
            worker.sweep()

    sweep()
    try:
        yield DataPlane(worker, ports[0], ports[1], log, said)
    finally:
        stop = True
        for server in servers:
            server.close()
        worker.close()
        async with asyncio.timeout(5):
            while worker.downs or worker.ups or worker.tasks:
                await asyncio.sleep(0.005)
        worker.stats_close()
