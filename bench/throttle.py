"""How exactly a limit holds over four gateways of two workers: evenly loaded, skewed, and with their Redis killed.

    python bench/throttle.py [--scale 0.25] [--shapes even,skewed,one] [--outage 35] [--json]

A tenant of 1,000/s with a burst of 100 is offered 3,000/s (both times `--scale`, for machines that cannot carry that
many processes). After the first second, over ten: admitted as a part of the limit. Then the Redis is killed in the
middle of a longer run: at no time more than the limit, and most of it for half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop

from gateway.core.limits import TenantLimits
from gateway.core.placement import Placement
from tests.support.fleet import US
from tests.support.offered import Application, Load, Result, Target, sums
from tests.support.redis_fleet import RedisFleet

RATE: Final = 1000.0
BURST: Final = 100
OFFERED: Final = 3000.0
SHAPES: Final = {"even": (25, 25, 25, 25), "skewed": (90, 4, 3, 3), "one": (100, 0, 0, 0)}
NAMES: Final = (US, f"{US}/2", f"{US}/3", f"{US}/4")
CONNECTIONS: Final = 32
"""Over so many every worker gets some: which one is the kernel's to say."""


def targets(fleet: RedisFleet, shape: tuple[int, ...], scale: float) -> list[Target]:
    rates = [OFFERED * scale * part / 100 for part in shape]
    return [
        Target(fleet[name].http, "acme.demo.test", rate, CONNECTIONS if rate > 200 * scale else 8)
        for name, rate in zip(NAMES, rates, strict=True)
        if rate
    ]


def part(results: list[Result], start_s: float, end_s: float, scale: float) -> float:
    """What was admitted, as a part of what the limit allows in that time."""
    return sum(result.admitted(start_s, end_s) for result in results) / (RATE * scale * (end_s - start_s))


async def measure(fleet: RedisFleet, shape: str, scale: float) -> dict[str, object]:
    async with Load(targets(fleet, SHAPES[shape], scale), 11.0) as load:
        results = await load.results()
    seconds = [round(part(results, n, n + 1, scale), 3) for n in range(11)]
    return {
        "shape": shape,
        "admitted": round(part(results, 1.0, 11.0, scale), 4),
        "seconds": seconds,
        "by gateway": [round(part([result], 1.0, 11.0, scale), 4) for result in results],
        "answers": dict(sums(results)),
        "missed": sum(result.missed for result in results),
    }


async def outage(fleet: RedisFleet, shape: str, scale: float, seconds: float) -> dict[str, object]:
    """The Redis is killed after six seconds, and nobody starts it again."""
    async with Load(targets(fleet, SHAPES[shape], scale), 6.0 + seconds) as load:
        await asyncio.sleep(max(0.0, load.begin + 6.0 - asyncio.get_running_loop().time()))
        fleet.servers[US].kill()
        results = await load.results()
    after = [round(part(results, n, n + 1, scale), 3) for n in range(6, 6 + int(seconds))]
    fleet.servers[US].start()
    return {
        "shape": shape,
        "outage": True,
        "before": round(part(results, 1.0, 6.0, scale), 4),
        "after": round(part(results, 6.0, 6.0 + seconds, scale), 4),
        "first 30 s": round(part(results, 6.0, min(36.0, 6.0 + seconds), scale), 4),
        "most in 10 s": max(round(part(results, n, n + 10, scale), 4) for n in range(1, int(seconds) - 4)),
        "seconds": after,
        "answers": dict(sums(results)),
    }


async def run(options: argparse.Namespace) -> None:
    scale = options.scale
    with tempfile.TemporaryDirectory() as folder:
        fleet = RedisFleet(Path(folder), NAMES, relayed=False)
        async with Application() as application:
            for gateway in fleet.gateways.values():
                gateway.workers = 2
                gateway.application.port = application.port
                gateway.more = "probes: {}\n"
            limits = TenantLimits(RATE * scale, max(1, round(BURST * scale)))
            await fleet.seed({"acme": Placement(tenant="acme", home=US, limits=limits)})
            try:
                await fleet.start()
                for shape in options.shapes.split(","):
                    await asyncio.sleep(5.0)
                    print(json.dumps(await measure(fleet, shape, scale)), flush=True)
                if options.outage:
                    for shape in options.shapes.split(","):
                        await asyncio.sleep(5.0)
                        print(json.dumps(await outage(fleet, shape, scale, options.outage)), flush=True)
            finally:
                for gateway in fleet.gateways.values():
                    await gateway.stop()
                for server in fleet.servers.values():
                    server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--shapes", default="even,skewed,one")
    parser.add_argument("--outage", type=float, default=35.0)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
