#!/usr/bin/env python3
"""What shedding costs: CPU per request with it off and on in turn, in one worker, and per request that is refused.

    python bench/shedding.py [--requests 20000] [--rounds 15]

As `bench/hot_path.py`: a worker with everything but a kernel. Each round measures both, so that a busy machine slows
both; the medians of the rounds and of their differences are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.hot_path import ANSWER, HEAD, place
from gateway.core.shedding import RANKS, Shedding
from gateway.proxy.upstream import Upstream
from tests.support.dataplane import DataPlane, cluster, view

RULES = Shedding(1_000, 10_000, "priority")
TICK_EVERY = 500
"""Requests between two ticks: some 5,000 a second."""


def one_round(plane: DataPlane, down: object, up: Upstream, requests: int) -> float:
    """Microseconds of CPU per request, ticks included."""
    head = HEAD % 0
    received, answered, shedder = down.data_received, up.data_received, plane.worker.shedder  # type: ignore[attr-defined]
    start = time.thread_time()
    for n in range(requests):
        received(head)
        answered(ANSWER)
        if not n % TICK_EVERY and shedder.rules is not None:
            shedder.tick(plane.worker.now())
    return (time.thread_time() - start) / requests * 1e6


def refused_round(down: object, requests: int) -> float:
    head = HEAD % 0
    start = time.thread_time()
    for _ in range(requests):
        down.data_received(head)  # type: ignore[attr-defined]
    return (time.thread_time() - start) / requests * 1e6


async def run(options: argparse.Namespace) -> None:
    async with place(view(cluster("app", 9), access_log_path=None)) as (plane, down, up):
        off, on = [], []
        for n in range(options.rounds + 1):
            for rules, times in ((None, off), (RULES, on)) if n % 2 else ((RULES, on), (None, off)):
                plane.swap(shedding=rules)
                one_round(plane, down, up, 1000)
                times.append(one_round(plane, down, up, options.requests if n else 2000))
        pairs = [after - before for before, after in zip(off[1:], on[1:], strict=True)]
        shares = [after / before - 1 for before, after in zip(off[1:], on[1:], strict=True)]
        plane.swap(shedding=RULES)
        one_round(plane, down, up, 100)
        plane.worker.shedder.limiters["app"].ceilings = (0,) * RANKS
        refused = [refused_round(down, options.requests // 4) for _ in range(5)]
        print(f"off {statistics.median(off[1:]):.2f} us, on {statistics.median(on[1:]):.2f} us per request; "
              f"difference {statistics.median(pairs):+.2f} us, {statistics.median(shares):+.1%}; "
              f"refused: {statistics.median(refused):.2f} us")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=15)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
