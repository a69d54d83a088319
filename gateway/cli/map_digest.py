"""`landbridge map digest`: whether all regions hold the same map, and which tenants differ where they do not.

A digest is the exclusive or of all values' sums, kept in 256 buckets by the sums' first digits. Two maps whose buckets
are equal are equal. Where they are not, the values of those buckets are compared, one map in memory as a few bytes a
tenant, the other as it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.cli.output import Exit, fail, note, print_json, print_record, print_table, progress
from gateway.cli.regions import Regions, redis_of, run
from gateway.cli.tenants import settings_of
from gateway.control.replication.incoming import weigh
from gateway.control.replication.progress import differences
from gateway.control.replication.region_map import MapUnavailable, RegionMap
from gateway.core.replication import BadValue, stamp_of

NAMED_MAX: Final = 20
"""Tenants that are named of those that differ: enough to look at one."""
DAMAGED_MAX: Final = 20
TRIES: Final = 5
"""Counting again while records change: each try compares with what was there when it began."""


def digest(config: Path, region: str | None, *, recount: bool, peers: bool, as_json: bool) -> int:
    """Print digests, of our region, or of all. Returns the exit code: 1 where something differs."""
    settings = settings_of(config, region)
    redis_of(settings)

    async def work() -> int:
        async with Regions(settings) as regions:
            report: dict[str, Any] = {"region": regions.own}
            code = Exit.DONE
            if recount:
                report["recount"] = counted = await _recount(regions.here)
                code = Exit.FAILED if counted["wrong_buckets"] or counted["damaged"] else code
            ours = await regions.here.digests()
            report |= {"digest": total(ours), "records": (await regions.here.head()).records}
            if peers:
                report["peers"] = compared = {peer: await _compare(regions, peer) for peer in regions.peers}
                code = Exit.FAILED if any(found.get("buckets") != 0 for found in compared.values()) else code
            _print(report, as_json)
            return int(code)

    return run(work())


def total(digests: Mapping[str, str]) -> str:
    """The digest over all buckets."""
    whole = 0
    for part in digests.values():
        whole ^= int(part, 16)
    return f"{whole:016x}"


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    record = {key: value for key, value in report.items() if key not in ("peers", "recount")}
    if counted := report.get("recount"):
        record["counted anew"] = counted["outcome"]
        record["damaged"] = counted["damaged"]
    print_record(record.items())
    if "peers" in report:
        print()
        rows = [
            (peer, found.get("records"), found.get("digest"), found["outcome"], found.get("tenants"))
            for peer, found in report["peers"].items()
        ]
        print_table(("peer", "records", "digest", "compared", "tenants that differ"), rows)


# --- counting anew


async def _recount(map_: RegionMap) -> dict[str, Any]:
    """Count the digests from the records, say where they did not hold, and keep the right ones."""
    for _ in range(TRIES):
        head = await map_.head()
        kept = await map_.digests()
        counted: dict[str, int] = {}
        damaged: list[str] = []
        seen: set[str] = set()  # a scan may give a record twice
        with progress("counting", head.records) as done:
            async for rows in map_.scan():
                for tenant, value in rows:
                    if tenant in seen:
                        continue
                    seen.add(tenant)
                    named, is_whole = weigh(tenant, value)
                    if not is_whole and len(damaged) < DAMAGED_MAX:
                        damaged.append(tenant)
                    if named:
                        counted[named[:2]] = counted.get(named[:2], 0) ^ int(named, 16)
                done(len(seen))
        anew = {bucket: f"{part:016x}" for bucket, part in counted.items() if part}
        wrong = sorted(differences(kept, anew))
        if await map_.set_digests(head.feed.last, anew):
            outcome = f"{len(wrong)} of 256 buckets did not hold, and do now" if wrong else "it held"
            return {"outcome": outcome, "wrong_buckets": wrong, "damaged": damaged}
    fail(f"{map_.region}: records changed during each of {TRIES} counts: try again when it is calmer")


# --- comparing two regions


class _Differing(NamedTuple):
    """Tenants of which two regions hold different values."""

    tenants: int
    first: list[str]


async def _compare(regions: Regions, peer: str) -> dict[str, Any]:
    """How a peer's map differs from ours, by now. What is on its way is told from what stays by looking twice."""
    try:
        map_ = regions.maps[peer]
        before = differences(await regions.here.digests(), await map_.digests())
        if before:
            await asyncio.sleep(1.0)
        theirs = await map_.digests()
        now = differences(await regions.here.digests(), theirs)
        found: dict[str, Any] = {"digest": total(theirs), "records": (await map_.head()).records, "buckets": len(now)}
        if not now:
            return found | {"outcome": "the same", "differing": 0, "tenants": []}
        named = await _differing(regions.here, map_, now.keys())
    except MapUnavailable as error:
        note(f"the Redis of {error}")
        return {"outcome": "it does not answer", "problem": str(error)}
    names = f"{named.tenants} tenants in {len(now)} buckets differ"
    if not named.tenants:
        names = "the same records, but one of the digests does not hold: --recount in both regions"
    return found | {"outcome": names, "differing": named.tenants, "tenants": named.first}


async def _differing(ours: RegionMap, theirs: RegionMap, buckets: Collection[str]) -> _Differing:
    """The tenants whose values differ, looking only at values that count in these buckets."""
    here: dict[str, str] = {}
    async for rows in ours.scan():
        here.update((tenant, mark) for tenant, value in rows if (mark := _mark(value))[-16:-14] in buckets)
    other: list[str] = []
    count = 0
    async for rows in theirs.scan():
        for tenant, value in rows:
            mark = _mark(value)
            if mark[-16:-14] in buckets and here.pop(tenant, None) != mark:
                count += 1
                if len(other) < NAMED_MAX:
                    other.append(tenant)
    count += len(here)  # what is left is not there, or in a bucket that is the same: both is other than ours
    return _Differing(count, sorted([*other, *list(here)[: NAMED_MAX - len(other)]]))


def _mark(value: bytes) -> str:
    """What tells a value from another: its version and sum; its beginning where it has none."""
    try:
        stamp = stamp_of(value)
    except BadValue:
        return value[:80].hex()
    return f"{stamp.version} {stamp.sum}"
