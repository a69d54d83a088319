#!/usr/bin/env python3
"""The plain path without a kernel: microseconds of Python per request, from the client's bytes to the last write.

    python bench/hot_path.py [--requests 20000] [--rounds 7] [--profile] [--fresh] [--throttle]

A worker with its real filters, map, counters and pools; only the two transports are stand-ins that drop what is
written. `--fresh` makes one field line of every request new, as a load balancer's trace id does. Prints the median
and the fastest of the rounds; use it to compare two trees on one machine, not as a claim about sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.core.limits import Limit, Throttle
from gateway.core.placement import Placement
from gateway.core.view import View
from gateway.proxy.downstream import Downstream
from gateway.proxy.upstream import Upstream
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.transports import Dropped

HEAD = b"\r\n".join(
    (
        b"GET /api/v1/items?x=1 HTTP/1.1",
        b"Host: acme.test",
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        b"Accept: application/json, text/plain, */*",
        b"Accept-Encoding: gzip, deflate, br",
        b"Accept-Language: en-US,en;q=0.9",
        b"X-Forwarded-For: 203.0.113.7",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Port: 443",
        b"X-Amzn-Trace-Id: Root=1-67891233-%024d",
        b"Cookie: session=abcdef0123456789; theme=dark",
        b"\r\n",
    )
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: app\r\nDate: Tue, 24 Nov 2026 19:22:40 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 120\r\nConnection: keep-alive\r\n\r\n" + b"x" * 120
)


def one_round(down: object, up: Upstream, requests: int, fresh: bool) -> float:
    heads = [HEAD % (n if fresh else 0) for n in range(requests)]
    received, answered = down.data_received, up.data_received  # type: ignore[attr-defined]
    start = time.perf_counter()
    for head in heads:
        received(head)
        answered(ANSWER)
    return (time.perf_counter() - start) / requests * 1e6


def throttled(plane: DataPlane, down: object, up: Upstream, options: argparse.Namespace) -> None:
    """Rounds with limits and without in turn, in CPU time: what else runs here is left out."""
    kinds = {
        "a tenant's limit": Throttle(tenant=Limit(1e6, 1e6)),
        "a tenant's and a client's": Throttle(tenant=Limit(1e6, 1e6), client=Limit(1e6, 1e6)),
        "all four, with slots": Throttle(
            tenant=Limit(1e6, 1e6, 1000),
            client=Limit(1e6, 1e6),
            gateway=Limit(1e6, 1e6, 1000),
            routes=((b"/", Limit(1e6, 1e6)),),
        ),
    }
    for name, limits in kinds.items():
        pairs = []
        for _ in range(options.rounds):
            costs = []
            for throttle in (None, limits):
                plane.swap(throttle=throttle)
                one_round(down, up, 500, options.fresh)
                start = time.process_time()
                one_round(down, up, options.requests, options.fresh)
                costs.append((time.process_time() - start) / options.requests * 1e6)
            pairs.append(costs)
        without, with_ = (statistics.median(costs) for costs in zip(*pairs, strict=True))
        least = [min(costs) for costs in zip(*pairs, strict=True)]
        parts = sorted(on / off - 1 for off, on in pairs)
        print(
            f"{name}: {with_:.2f} us of CPU per request against {without:.2f} without; "
            f"fastest {least[1]:.2f} and {least[0]:.2f}; "
            f"median of {options.rounds} pairs {100 * statistics.median(parts):+.1f} %"
        )


class Place(NamedTuple):
    """A worker without a kernel: one client's connection, and a warm one to the application."""

    plane: DataPlane
    down: Downstream
    up: Upstream


@asynccontextmanager
async def place(snapshot: View) -> AsyncIterator[Place]:
    """`snapshot` has the cluster `app` with the endpoint 127.0.0.1:9."""
    with tempfile.TemporaryDirectory() as folder:
        async with data_plane(Path(folder), snapshot, [Placement(tenant="acme", home="us-east-1")]) as plane:
            worker = plane.worker
            down = worker.accept_on(8080, "http")()
            down.connection_made(Dropped())  # type: ignore[arg-type]
            pool = worker.clusters["app"].endpoints["127.0.0.1:9"]
            up = Upstream(worker, pool)
            up.connection_made(Dropped())  # type: ignore[arg-type]
            pool.busy = pool.size = 1
            pool.release(up, worker.now() + 1e6)
            yield Place(plane, down, up)
            worker.downs.clear()
            worker.ups.clear()


async def run(options: argparse.Namespace) -> None:
    async with place(view(cluster("app", 9), access_log_path=None)) as (plane, down, up):
        one_round(down, up, 2000, options.fresh)
        profile = cProfile.Profile() if options.profile else None
        if profile:
            profile.enable()
        times = [one_round(down, up, options.requests, options.fresh) for _ in range(options.rounds)]
        if profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)
        assert up.transport is not None
        if options.throttle:
            throttled(plane, down, up, options)
        print(f"{statistics.median(times):.2f} us per request, fastest round {min(times):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--throttle", action="store_true", help="compare with and without limits, in pairs")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options))


if __name__ == "__main__":
    main()
