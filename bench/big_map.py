#!/usr/bin/env python3
"""What a map of very many tenants costs: building it, looking something up, a worker's memory, a cold start.

    python bench/big_map.py [--tenants 100000] [--touched 60000] [--folder DIR] [--keep] [--json]

Each tenant has a custom domain, a standby region and a label. The map is built through the store's Writer in batches of
1,000, as control does; look-ups go through a worker's own methods, each of them timed alone (reading the clock is taken
off), the best of five rounds, since machines are shared; memory and cold start are those of a real `landbridge serve`
with one worker, no Redis and no tenants file, so that nothing but the map on disk can answer. 1,000,000 tenants take
some two minutes and 600 MB, 10,000,000 half an hour and 6 GB in `--folder` (by default a temporary one); `--keep`
leaves the map there, and uses it again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.core.placement import Placement, Version
from gateway.proxy.chain import build_chain
from gateway.proxy.main import GC_THRESHOLDS
from gateway.proxy.memory import keep_freed_memory
from gateway.proxy.worker import HOSTS_MAX, PLACEMENTS_MAX, Worker
from gateway.store import generations, snapshot
from gateway.store.changes import Change, SourceState
from gateway.store.writer import Writer
from gateway.supervisor import child_environ, python_module
from gateway.telemetry.access_log import AccessLog
from tests.support.dataplane import cluster, view
from tests.support.processes import free_ports

BATCH: Final = 1000
BASE_MS: Final = 1_700_000_000_000
LOOKUPS: Final = 50_000
CACHED: Final = 1000
CONNECTIONS: Final = 4
ROUNDS: Final = 5
STARTS: Final = 3
READY_S: Final = 60.0


def tenant(n: int) -> str:
    return f"tenant-{n:08}"


def host(n: int) -> str:
    return f"shop-{n}.example.test"


def placement(n: int, hlc: int = 0) -> Placement:
    return Placement(
        tenant=tenant(n),
        home="us-east-1",
        standby=("eu-west-1",),
        hosts=(host(n),),
        labels={"plan": "gold"},
        version=Version(1, BASE_MS + hlc, "us-east-1"),
    )


def build(state: Path, tenants: int) -> dict[str, float]:
    """The map and its snapshot, and then changes of random tenants."""
    found: dict[str, float] = {}
    with closing(Writer(state / "map")) as writer:

        def apply(batches: Iterator[list[Placement]]) -> float:
            """Changes a second, of the time within the store."""
            spent = count = 0.0
            for number, batch in enumerate(batches):
                changes = [Change(p.tenant, p) for p in batch]
                began = time.perf_counter()
                writer.apply(changes, SourceState("log", number), BASE_MS, complete=True)
                spent += time.perf_counter() - began
                count += len(batch)
            return count / spent

        if writer.meta().records != tenants:
            every = range(0, tenants, BATCH)
            found["new tenants/s"] = apply([placement(n) for n in range(at, min(at + BATCH, tenants))] for at in every)
        rng = random.Random(1)
        found["changes/s"] = apply(
            [placement(rng.randrange(tenants), hlc) for _ in range(BATCH)] for hlc in range(1, 31)
        )
        began = time.perf_counter()
        assert snapshot.write(state / snapshot.SNAPSHOT_FILE, writer) is not None
        found["snapshot s"] = time.perf_counter() - began
        path = generations.path_of(state / "map", writer.generation) / generations.DATA_FILE
        found["map MB"] = path.stat().st_size / 1e6
        found["snapshot MB"] = (state / snapshot.SNAPSHOT_FILE).stat().st_size / 1e6
    return found


# --- look-ups


def percentiles(look: Callable[[str], object], names: list[str]) -> tuple[float, float]:
    """Median and 99th percentile of one call, in microseconds; reading the clock taken off."""
    clock = time.perf_counter_ns
    empty = []
    for _ in range(10_000):
        began = clock()
        empty.append(clock() - began)
    times = []
    for name in names:
        began = clock()
        look(name)
        times.append(clock() - began)
    off = sorted(empty)[len(empty) // 2]
    times.sort()
    return (times[len(times) // 2] - off) / 1e3, (times[len(times) * 99 // 100] - off) / 1e3


async def look_up(state: Path, tenants: int) -> dict[str, float]:
    """Through a worker that nothing else happens in."""
    loop = asyncio.get_running_loop()
    keep_freed_memory()
    gc.set_threshold(*GC_THRESHOLDS)  # as a worker's own main does
    gc.freeze()
    worker = Worker(loop, view(cluster("app", 9)), build_chain, state, 0, lambda _: None, AccessLog(None))
    rng = random.Random(2)
    found = {}
    for what, look, name in (("tenant", worker.placement, tenant), ("host", worker.host_owner, host)):
        few = [name(rng.randrange(tenants)) for _ in range(CACHED)]
        many = [name(n) for n in rng.sample(range(tenants), min(tenants, LOOKUPS))]
        uncached = []
        for one in many:  # so that its pages are in memory, and the cache is full, as in a gateway that runs
            look(one)
        for _ in range(ROUNDS):
            if len(many) <= max(PLACEMENTS_MAX, HOSTS_MAX):
                worker._drop_map_caches()  # otherwise what comes next was evicted since it came last
            uncached.append(percentiles(look, many))
        for one in few:
            look(one)
        cached = [percentiles(look, few * (LOOKUPS // CACHED)) for _ in range(ROUNDS)]
        for kind, times in (("uncached", uncached), ("cached", cached)):
            found[f"{what} {kind} p50 us"] = min(p50 for p50, _ in times)
            found[f"{what} {kind} p99 us"] = min(p99 for _, p99 in times)
        worker._drop_map_caches()
    worker.close()
    worker.stats_close()
    return found


# --- a whole gateway

CONFIG: Final = """region: us-east-1
listen: {{http: "127.0.0.1:{http}", hop: "127.0.0.1:{hop}", admin: "127.0.0.1:{admin}"}}
workers: 1
state_dir: state
regions:
  us-east-1: {{public: "https://{{tenant}}.us.example.com", gateways: ["127.0.0.1:{hop}"]}}
  eu-west-1: {{public: "https://{{tenant}}.eu.example.com", gateways: ["127.0.0.1:9"]}}
hop_keys: ["a key of at least thirty-two bytes!"]
clusters:
  app: {{endpoints: ["127.0.0.1:{origin}"]}}
tenancy: {{resolvers: [{{host: "{{tenant}}.example.com"}}]}}
tenant_map: {{file: gone.yaml}}
access_log: {{path: none}}
"""


class Application(asyncio.Protocol):
    """Answers each request with the tenant that it is for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.held = b""

    def data_received(self, data: bytes) -> None:
        *heads, self.held = (self.held + data).split(b"\r\n\r\n")
        for head in heads:
            said = next((line[10:].strip() for line in head.split(b"\r\n") if line[:10].lower() == b"x-tenant: "), b"")
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)
            self.transport.write(answer)  # type: ignore[attr-defined]


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, n: int) -> bool:
    """One request of tenant `n`, by its own domain; whether it was served right."""
    writer.write(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host(n).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
    body = await reader.readexactly(int(fields[b"content-length"]))
    return head.startswith(b"HTTP/1.1 200 ") and body == tenant(n).encode()


@contextmanager
def serving(folder: Path, origin: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A gateway that has just been started, and its port."""
    http, hop, admin = free_ports(3)
    (folder / "gateway.yaml").write_text(CONFIG.format(http=http, hop=hop, admin=admin, origin=origin))
    environ = child_environ({k: v for k, v in os.environ.items() if not k.startswith("LANDBRIDGE")})
    command = [*python_module("gateway"), "serve", "-c", "gateway.yaml"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
    try:
        yield process, http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def first_answer(port: int, tenants: int) -> float:
    """Seconds until a tenant's request was served right."""
    began = time.perf_counter()
    while time.perf_counter() - began < READY_S:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            served = await ask(reader, writer, random.randrange(tenants))
            writer.close()
            if served:
                return time.perf_counter() - began
        except (OSError, asyncio.IncompleteReadError):
            pass
        await asyncio.sleep(0.005)
    raise SystemExit("the gateway serves nothing: see its log")


def anonymous_mb(process: subprocess.Popen[bytes]) -> float:
    """RssAnon of the only worker."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"gateway.proxy.main" in Path(f"/proc/{child}/cmdline").read_bytes():
            lines = Path(f"/proc/{child}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
    raise SystemExit("there is no worker")


async def touch(port: int, numbers: list[int]) -> None:
    """One request for each of these tenants."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in numbers:
        if not await ask(reader, writer, n):
            raise SystemExit(f"{tenant(n)} was not served right")
    writer.close()


async def serve(folder: Path, tenants: int, touched: int) -> dict[str, float]:
    server = await asyncio.get_running_loop().create_server(Application, "127.0.0.1", 0)
    origin = server.sockets[0].getsockname()[1]
    starts = []
    for _ in range(STARTS):
        with serving(folder, origin) as (_, port):
            starts.append(await first_answer(port, tenants))
    with serving(folder, origin) as (process, port):
        await first_answer(port, tenants)
        before = anonymous_mb(process)
        numbers = random.Random(3).sample(range(tenants), min(touched, tenants))
        await asyncio.gather(*(touch(port, numbers[n::CONNECTIONS]) for n in range(CONNECTIONS)))
        after = anonymous_mb(process)
    server.close()
    return {
        "cold start median s": sorted(starts)[STARTS // 2],
        "cold start worst s": max(starts),
        "RssAnon at first MB": before,
        f"RssAnon after {len(numbers)} tenants MB": after,
    }


def measure(folder: Path, tenants: int, touched: int) -> dict[str, float]:
    """Each part in a process of its own: what one leaves in memory is nothing of the next one's."""
    found: dict[str, float] = {"tenants": tenants}
    state = folder / "state"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in ("build", "look", "serve"):
        command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
        command += ["--tenants", str(tenants), "--touched", str(touched)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found |= json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=100_000)
    parser.add_argument("--touched", type=int, default=60_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the map in --folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=("build", "look", "serve"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        state = options.folder / "state"
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "build": lambda: build(state, options.tenants),
            "look": lambda: asyncio.run(look_up(state, options.tenants)),
            "serve": lambda: asyncio.run(serve(options.folder, options.tenants, options.touched)),
        }
        print(json.dumps(parts[options.part]()))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="landbridge-big-map-"))
    try:
        found = measure(folder, options.tenants, options.touched)
    finally:
        if not (options.keep and options.folder):
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32} {value:14,.2f}" if isinstance(value, float) else f"{name:32} {value:14,}")


if __name__ == "__main__":
    main()
