"""`--wait`: until every live gateway of every region uses what was written, by the registry that they keep.

A gateway's row says how far it and all its workers use each region's log. Each region's own Redis is asked for its
gateways' rows, since ours has them later; where it does not answer, ours has to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

from gateway.cli.regions import Regions
from gateway.control.registry import live
from gateway.control.replication.region_map import GatewayRow, MapUnavailable
from gateway.core.replication import Offset, parse_offset

POLL_S: Final = 0.05


class Acknowledged(NamedTuple):
    """`gateways` that use it; a line for each of the `laggards`, and for each region of which nobody is heard."""

    gateways: int
    laggards: tuple[str, ...]
    silent: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"gateways": self.gateways, "laggards": list(self.laggards), "silent": list(self.silent)}


async def wait(regions: Regions, written: Iterable[str], limit_s: float, lost: Collection[str] = ()) -> Acknowledged:
    """Wait until all that live use what was written in the regions `written`, or the limit has passed.

    The gateways of regions that are `lost`, which somebody has just taken over from, are not waited for.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    try:
        targets = await _targets(regions, written)
    except MapUnavailable as error:
        return Acknowledged(0, (f"how far its log goes is not known: {error}",), ())
    while True:
        found = _judge(targets, await _rows(regions, lost))
        if not found.laggards or loop.time() >= deadline:
            later = (f"{region}: taken over from: its gateways hear of it once it is back" for region in sorted(lost))
            return found._replace(silent=(*found.silent, *later))
        await asyncio.sleep(min(POLL_S, max(0.0, deadline - loop.time())))


async def _targets(regions: Regions, written: Iterable[str]) -> dict[str, Offset]:
    """The ends of the logs now: what was written is before them."""
    targets = {}
    for region in sorted(written):
        head = await regions.maps[region].head()
        targets[region] = Offset(head.log_id, head.log.last)
    return targets


async def _rows(regions: Regions, lost: Collection[str]) -> dict[str, list[GatewayRow] | str]:
    """The live gateways of each region, or why nothing is known of them."""
    names = [region for region in regions.maps if region not in lost]
    asked = await asyncio.gather(*(_gateways(regions, region) for region in names))
    ours = next((rows for region, rows in zip(names, asked, strict=True) if region == regions.own), "")
    found: dict[str, list[GatewayRow] | str] = {}
    for region, rows in zip(names, asked, strict=True):
        known = ours if isinstance(rows, str) and not isinstance(ours, str) else rows
        of_region = known if isinstance(known, str) else [row for row in live(known) if row.region == region]
        found[region] = of_region or (rows if isinstance(rows, str) else "")
    return found


async def _gateways(regions: Regions, region: str) -> list[GatewayRow] | str:
    try:
        return await regions.maps[region].gateways()
    except MapUnavailable as error:
        return str(error)


def _judge(targets: dict[str, Offset], known: dict[str, list[GatewayRow] | str]) -> Acknowledged:
    done, laggards, silent = 0, [], []
    for region, rows in known.items():
        if isinstance(rows, str):
            if rows:
                laggards.append(f"{region}: its gateways cannot be asked: {rows}")
            else:
                silent.append(f"{region}: no gateway is alive")
            continue
        for row in rows:
            lacks = [why for origin, target in targets.items() if (why := _lacks(row, origin, target))]
            done += not lacks
            laggards += [f"{region}/{row.id}: {why}" for why in lacks]
    return Acknowledged(done, tuple(laggards), tuple(silent))


def _lacks(row: GatewayRow, origin: str, target: Offset) -> str:
    """What a gateway lacks of a region's log; empty when it has all of it."""
    used = parse_offset(row.applied.get(origin, ""))
    if used is None:
        return f"has nothing of {origin} yet"
    if used.log_id != target.log_id:
        return f"follows another log of {origin} ({used.log_id} instead of {target.log_id})"
    if used.seq < target.seq:
        return f"lacks {target.seq - used.seq} of {origin}'s writes (it is at {used.seq} of {target.seq})"
    return ""
