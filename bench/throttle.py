"""How exactly a limit holds over four gateways of two workers: evenly loaded, skewed, and with their Redis killed.

    python bench/throttle.py [--scale 0.5] [--only limit,outage,cpu,hot] [--shapes even,skewed,one]

A tenant of 1,000/s with a burst of 100 is offered 3,000/s (both times `--scale`, for machines that cannot carry that
many processes). After the first second, over ten: admitted as a part of the limit. Then the Redis is killed in the
middle of a longer run: at no time more than the limit, and most of it for half a minute.

`cpu`: CPU time of a worker per request, kernel included, with `throttle` and without it in turn, by reloads. `hot`: a
tenant at twenty times its limit beside others, and the others without it, in turn: what they lose, and their p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop

from gateway.core.limits import TenantLimits
from gateway.core.placement import Placement
from tests.support.fleet import US, Fleet, Gateway, until
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


def cpu_s(pid: int) -> float:
    """Time on a processor of a process's main thread, which is all that a worker has; in nanoseconds, unlike `stat`."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


ON: Final = "throttle: {tenant: {rate: 100000/s}, client: {rate: 100000/s}}\n"


async def reload(gateway: Gateway, more: str) -> None:
    """Another configuration, and the moment when the worker goes by it."""
    text = gateway.config.read_text()
    before = (await gateway.api("status"))["config"]["generation"]
    gateway.config.write_text("".join(line for line in text.splitlines(True) if not line.startswith("throttle")) + more)
    gateway.signal(signal.SIGHUP)

    async def applied() -> bool:
        status = await gateway.api("status")
        return bool(status["config"]["generation"] > before)

    await until(applied, "the configuration is applied")


async def cpu(gateway: Gateway, rounds: int, rate: float = 1000.0) -> dict[str, object]:
    """Pairs of seconds under one steady load: microseconds of the worker's CPU per request, with limits and without."""
    target = [Target(gateway.http, "plain.demo.test", rate, 16)]
    (pid,) = await gateway.serving()
    pairs = []
    async with Load(target, 4.0 * rounds + 20.0):
        for number in range(rounds):
            found: dict[str, float] = {}
            for more in ("", ON) if number % 2 else (ON, ""):
                await reload(gateway, more)
                await asyncio.sleep(0.1)
                start, at = cpu_s(pid), time.monotonic()
                await asyncio.sleep(1.0)
                found[more] = (cpu_s(pid) - start) / ((time.monotonic() - at) * rate) * 1e6
            pairs.append((found[""], found[ON]))
    off, on = (statistics.median(costs) for costs in zip(*pairs, strict=True))
    parts = [with_ / without - 1 for without, with_ in pairs]
    return {
        "cpu us per request": {"off": round(off, 1), "on": round(on, 1)},
        "least": {"off": round(min(off for off, _ in pairs), 1), "on": round(min(on for _, on in pairs), 1)},
        "pairs": [f"{100 * part:+.1f} %" for part in parts],
        "median of pairs": f"{100 * statistics.median(parts):+.1f} %",
        "of medians": f"{100 * (on / off - 1):+.1f} %",
    }


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))]


async def beside_a_hot_one(gateway: Gateway, rounds: int, seconds: float = 5.0) -> dict[str, object]:
    """Others at 200/s, alone and beside a tenant that asks for 20 times its limit of 10/s, in turn."""
    others = [Target(gateway.http, f"other-{n}.demo.test", 50.0, 4) for n in range(4)]
    noisy = Target(gateway.http, "noisy.demo.test", 200.0, 16)
    pairs, lost, passed = [], 0, []
    for _ in range(rounds):
        found = []
        for is_noisy in (False, True):
            async with AsyncExitStack() as stack:  # two processes: what it costs to offer so much is not measured
                beside = await stack.enter_async_context(Load([noisy], seconds + 1.0)) if is_noisy else None
                load = await stack.enter_async_context(Load(others, seconds))
                results = await load.results()
                if beside is not None:
                    (hot,) = await beside.results()
                    passed.append(round(hot.admitted(1.0, seconds) / (seconds - 1.0), 1))
            found.append(p99([second for result in results for second in result.seconds]))
            lost += sum(sums([result]).total() - result.total(200) for result in results)
        pairs.append(found)
    without, with_noise = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "others": "4 tenants of 50/s beside one that asks for 200/s of its 10/s",
        "lost": lost,
        "noisy admitted a second": passed,
        "p99 ms": {"alone": round(without * 1e3, 2), "beside": round(with_noise * 1e3, 2)},
        "pairs": [f"{100 * (after / before - 1):+.0f} %" for before, after in pairs],
    }


async def alone(options: argparse.Namespace, wanted: set[str]) -> None:
    """What is measured on one gateway of one worker."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("plain", "noisy", *(f"other-{n}" for n in range(4)))
        tenants = "".join(
            f"  {name}: {{home: {US}{', limits: {rate: 10/s}' if name == 'noisy' else ''}}}\n" for name in names
        )
        fleet = Fleet(Path(folder), [US], "tenants:\n" + tenants)
        async with Application() as application:
            fleet[US].application.port = application.port
            try:
                await fleet.start()
                if "cpu" in wanted:
                    print(json.dumps(await cpu(fleet[US], options.rounds)), flush=True)
                if "hot" in wanted:
                    await reload(fleet[US], "")
                    print(json.dumps(await beside_a_hot_one(fleet[US], options.rounds)), flush=True)
            finally:
                await fleet[US].stop()


async def run(options: argparse.Namespace) -> None:
    wanted = set(options.only.split(","))
    if wanted & {"cpu", "hot"}:
        await alone(options, wanted)
    if wanted & {"limit", "outage"}:
        await region(options, wanted)


async def region(options: argparse.Namespace, wanted: set[str]) -> None:
    """What is measured on four gateways."""
    scale = options.scale
    with tempfile.TemporaryDirectory() as folder:
        fleet = RedisFleet(Path(folder), NAMES, relayed=False)
        async with Application() as application:
            for gateway in fleet.gateways.values():
                gateway.workers = 2
                gateway.application.port = application.port
            limits = TenantLimits(RATE * scale, max(1, round(BURST * scale)))
            await fleet.seed({"acme": Placement(tenant="acme", home=US, limits=limits)})
            try:
                await fleet.start()
                for shape in options.shapes.split(",") if "limit" in wanted else ():
                    await asyncio.sleep(5.0)
                    print(json.dumps(await measure(fleet, shape, scale)), flush=True)
                if "outage" in wanted:
                    for shape in options.shapes.split(","):
                        await asyncio.sleep(5.0)
                        print(json.dumps(await outage(fleet, shape, scale, options.outage)), flush=True)
            finally:
                await fleet.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--only", default="limit,outage,cpu,hot")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", default="even,skewed,one")
    parser.add_argument("--outage", type=float, default=35.0)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
