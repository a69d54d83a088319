"""What the replicated map sustains: real Valkey servers and replicators as processes, written to at a rate.

    python bench/replication.py                      one origin, 10,000 changes a second, two following regions, 30 s
    python bench/replication.py --mode mesh          three regions, 2,500 changes a second each
    python bench/replication.py --mode single        1,000 single writes: how soon is each in the other two regions

Lag is sampled twice a second: entries of an origin's log that are not in a follower's map yet, summed over all pairs.
`--json` prints one object. CPU is each kind of process's share of one core while it was written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


import msgspec

from gateway.control.replication.region_map import RegionMap, Write, Written
from gateway.core.placement import Placement, Version
from gateway.core.replication import encode_body
from tests.support.eventually import eventually
from tests.support.replication import AP, EU, US, Region, World, until, world

REGIONS: Final = (US, EU, AP)
SAMPLE_S: Final = 0.5
TENANTS: Final = 20_000
WRITERS: Final = 4
"""Batches on their way at once: what is measured is the replication, not how long one writer waits for answers."""
EMPTY_LIMIT_S: Final = 60.0


# --- the writer, a process of its own


async def write(url: str, region: str, rate: int, seconds: float, batch: int) -> dict[str, float]:
    """Change tenants in turn, in batches at even intervals, several on their way at once; what was acknowledged."""
    region_map = RegionMap(url, region, timeout_s=30.0)  # on a busy machine it writes late, and says so
    start = time.monotonic()
    done = await asyncio.gather(
        *(
            _write_some(region_map, f"{region}-{writer}", rate / WRITERS, start + seconds, batch)
            for writer in range(WRITERS)
        )
    )
    took = time.monotonic() - start
    await region_map.close()
    return {"changes": sum(done), "seconds": took, "rate": sum(done) / took}


async def _write_some(region_map: RegionMap, prefix: str, rate: float, until_s: float, batch: int) -> int:
    """Change tenants of our own; how many changes were acknowledged."""
    names = [f"{prefix}-{number:06d}" for number in range(TENANTS // WRITERS)]
    versions: list[Version | None] = [None] * len(names)
    placement = Placement(tenant="any", home=region_map.region, standby=(EU,), labels={"plan": "gold"}, by="bench")
    start = time.monotonic()
    done = 0
    while time.monotonic() < until_s:
        if (wait := start + done / rate - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        body = encode_body(msgspec.structs.replace(placement, why=f"change {done}"))
        chosen = [number % len(names) for number in range(done, done + batch)]
        items = [Write(names[number], versions[number], 1, body) for number in chosen]
        for number, result in zip(chosen, await region_map.write(items), strict=True):
            assert isinstance(result, Written), result
            versions[number] = result.version
        done += batch
    return done


# --- looking


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def behind(regions: Sequence[Region]) -> int:
    """Entries that are in some log and not everywhere, summed over all pairs."""
    heads = {region.name: (await region.map.head()).log for region in regions}
    total = 0
    for region in regions:
        offsets = await region.map.offsets()
        for peer in regions:
            head, offset = heads[peer.name], offsets.get(peer.name)
            if peer is not region:
                total += head.last - offset.seq if offset and offset.log_id == head.log_id else head.last
    return max(0, total)


async def is_even(w: World) -> bool:
    return await behind(w.regions) == 0


async def sustained(w: World, origins: Sequence[Region], rate: int, seconds: float, batch: int) -> dict[str, Any]:
    followers = [region.processes[0].pid for region in w.regions]
    servers = [region.server.pid for region in w.regions]
    before = {pid: cpu_s(pid) for pid in (*followers, *servers)}
    writers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--write", region.server.url, "--region", region.name),
            *("--rate", str(rate), "--seconds", str(seconds), "--batch", str(batch)),
            stdout=asyncio.subprocess.PIPE,
        )
        for region in origins
    ]
    outputs = asyncio.gather(*(writer.communicate() for writer in writers))
    samples = []
    while not outputs.done():
        samples.append(await behind(w.regions))
        await asyncio.wait([outputs], timeout=SAMPLE_S)
    ended = time.monotonic()
    used = {pid: cpu_s(pid) - was for pid, was in before.items()}
    written = [json.loads(out) for out, _ in await outputs]
    await until(lambda: is_even(w), EMPTY_LIMIT_S)
    empty_s = time.monotonic() - ended
    took = max(one["seconds"] for one in written)
    entries = sum(one["changes"] for one in written) * (len(w.regions) - 1)
    return {
        "changes_per_s": round(sum(one["rate"] for one in written)),
        "asked_per_s": rate * len(origins),
        "seconds": round(took, 1),
        "lag_max": max(samples),
        "lag_median": statistics.median(samples),
        "to_zero_s": round(empty_s, 3),
        "equal": await w.converged(),
        "replicator_cpu": {r.name: round(used[r.processes[0].pid] / took, 2) for r in w.regions},
        "server_cpu": {r.name: round(used[r.server.pid] / took, 2) for r in w.regions},
        "replicator_us_per_entry": round(sum(used[pid] for pid in followers) / entries * 1e6, 1),
    }


async def single(w: World, count: int) -> dict[str, Any]:
    """One write after the other in the first region: how soon each is in the others' maps, by their feeds."""
    origin, *others = w.regions
    arrived: dict[str, dict[str, float]] = {region.name: {} for region in others}

    async def watch(region: Region) -> None:
        at = (await region.map.head()).feed.last
        while True:
            for entry in await region.map.read_feed(at, 100, 500):
                arrived[region.name].setdefault(entry.tenant, time.monotonic())
                at = entry.seq

    watchers = [asyncio.get_running_loop().create_task(watch(region)) for region in others]
    sent = {}
    for number in range(count):
        await asyncio.sleep(0.01)
        await origin.write(name := f"single-{number}")
        sent[name] = time.monotonic()
    await eventually(lambda: all(seen.keys() >= sent.keys() for seen in arrived.values()), EMPTY_LIMIT_S)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    took = sorted(max(0.0, seen[name] - at) * 1000 for seen in arrived.values() for name, at in sent.items())
    return {
        "writes": count,
        "median_ms": round(statistics.median(took), 2),
        "p99_ms": round(took[int(len(took) * 0.99)], 2),
        "max_ms": round(took[-1], 2),
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder), *REGIONS, durable=options.durable) as w:
            for region in w.regions:
                await region.start()
                await region.write(f"first-{region.name}")
            await until(lambda: is_even(w), EMPTY_LIMIT_S)
            if options.mode == "single":
                return await single(w, options.count)
            origins = w.regions if options.mode == "mesh" else w.regions[:1]
            rate = options.rate or (2500 if options.mode == "mesh" else 10_000)
            return await sustained(w, origins, rate, options.seconds, options.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("origin", "mesh", "single"), default="origin")
    parser.add_argument("--rate", type=int, default=0, help="changes a second in each origin")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--durable", action="store_true", help="servers keep an append-only file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--region", default=US, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(
            json.dumps(asyncio.run(write(options.write, options.region, options.rate, options.seconds, options.batch)))
        )
        return
    found = asyncio.run(run(options))
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
