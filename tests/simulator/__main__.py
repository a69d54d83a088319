"""`python -m tests.simulator --seed N [--verbose]`, or `--seeds COUNT [--from N] [--jobs N]`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from tests.simulator.redis import Broken
from tests.simulator.world import World

BLOCK = 100
"""Seeds that a process takes at once."""

SHOWN_MAX = 20


def fails(seed: int, only: frozenset[str] | None = None) -> str | None:
    """What this seed breaks, in words; None when all is kept. `only`: with these faults, whatever the seed says."""
    try:
        World(seed, only=only).run()
    except Broken as broken:
        return str(broken)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def fails_in(seeds: range) -> list[tuple[int, str]]:
    gc.disable()  # a run is over in milliseconds and is one circle of references: collected together, not by the way
    found = [(seed, why) for seed in seeds if (why := fails(seed)) is not None]
    gc.collect()
    return found


def one(seed: int, verbose: bool) -> int:
    """Run one seed; with `verbose` its transcript is printed. What is no broken promise is raised."""
    try:
        World(seed, print if verbose else None).run()
    except Broken as broken:
        print(f"seed {seed}: {broken}")
        return 1
    print(f"seed {seed}: kept")
    return 0


def many(first: int, count: int, jobs: int) -> int:
    """Run seeds over processes, say how it goes, name those that fail."""
    blocks = [range(at, min(at + BLOCK, first + count)) for at in range(first, first + count, BLOCK)]
    began, done, failed = time.monotonic(), 0, 0
    is_terminal = sys.stderr.isatty()
    with ProcessPoolExecutor(jobs) as pool:
        results: Iterable[list[tuple[int, str]]] = pool.map(fails_in, blocks)
        for block, found in zip(blocks, results, strict=True):
            done += len(block)
            for seed, why in found:
                failed += 1
                if failed <= SHOWN_MAX:
                    print(f"seed {seed}: {why[:300]}", flush=True)
            if is_terminal or done == count:
                spent = time.monotonic() - began
                print(f"\r{done:,} of {count:,} seeds, {failed} failed, {spent:.1f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    if failed:
        print("replay one: python -m tests.simulator --seed N --verbose")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--verbose", action="store_true", help="print what happens in it")
    parser.add_argument("--seeds", type=int, default=10_000, help="run so many")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="in so many processes")
    given = parser.parse_args()
    if given.seed is not None:
        return one(given.seed, given.verbose)
    return many(given.first, given.seeds, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
