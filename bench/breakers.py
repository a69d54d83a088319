#!/usr/bin/env python3
"""What breakers and outlier detection cost a request that is answered: microseconds of CPU, in pairs.

    python bench/breakers.py [--requests 20000] [--rounds 9]

The plain path of `hot_path.py`, with and without them in turn. Prints the median of the pairs' differences.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.hot_path import one_round
from gateway.core.breaker import BreakerRule
from gateway.core.outliers import OutlierRule
from gateway.core.placement import Placement
from gateway.proxy.upstream import Upstream
from tests.support.dataplane import cluster, data_plane, view
from tests.support.transports import Dropped

KINDS: dict[str, dict[str, Any]] = {
    "breaker": {"breaker": BreakerRule()},
    "outliers": {"outliers": OutlierRule()},
    "both (the default)": {"breaker": BreakerRule(), "outliers": OutlierRule()},
}


async def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bare = cluster("app", 9)
        snapshot = view(bare, access_log_path=None)
        async with data_plane(Path(folder), snapshot, [Placement(tenant="acme", home="us-east-1")]) as plane:
            worker = plane.worker
            down = worker.accept_on(8080, "http")()
            down.connection_made(Dropped())  # type: ignore[arg-type]
            pool = worker.clusters["app"].endpoints["127.0.0.1:9"]
            up = Upstream(worker, pool)
            up.connection_made(Dropped())  # type: ignore[arg-type]
            pool.busy = pool.size = 1
            pool.release(up, worker.now() + 1e6)
            one_round(down, up, 2000, False)
            for name, rules in KINDS.items():
                pairs = []
                for _ in range(options.rounds):
                    costs = []
                    for config in (bare, dataclasses.replace(bare, **rules)):
                        plane.swap(clusters={"app": config})
                        one_round(down, up, 500, False)
                        start = time.process_time()
                        one_round(down, up, options.requests, False)
                        costs.append((time.process_time() - start) / options.requests * 1e6)
                    pairs.append(costs)
                more = statistics.median(on - off for off, on in pairs)
                off = statistics.median(off for off, _ in pairs)
                print(f"{name}: {more:+.2f} us on {off:.2f} ({more / off:+.1%}), median of {options.rounds} pairs")
            worker.downs.clear()
            worker.ups.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options))


if __name__ == "__main__":
    main()
