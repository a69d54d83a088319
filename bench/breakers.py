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
import time
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.hot_path import one_round, place
from gateway.core.breaker import BreakerRule
from gateway.core.outliers import OutlierRule
from tests.support.dataplane import cluster, view

KINDS: dict[str, dict[str, Any]] = {
    "breaker": {"breaker": BreakerRule()},
    "outliers": {"outliers": OutlierRule()},
    "both (the default)": {"breaker": BreakerRule(), "outliers": OutlierRule()},
}


async def run(options: argparse.Namespace) -> None:
    bare = cluster("app", 9)
    async with place(view(bare, access_log_path=None)) as (plane, down, up):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options))


if __name__ == "__main__":
    main()
