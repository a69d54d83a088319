"""Executing a plan: every change in the Redis of its region, over the very version that it was planned on.

A record that was changed meanwhile is planned once more; only when that gives the same change, it is written, else it
is reported and left as it is. A call whose answer is lost is made again: what it may have written is found to be so
already. Interrupted, it has written a part; applying again does the rest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gateway.cli.plans import batches
from gateway.cli.regions import Regions
from gateway.control.replication.region_map import MapUnavailable, Refused, RegionMap, Write
from gateway.core.placement import Placement, Version
from gateway.core.planning import Author, Change, Kind, moved_to, plan
from gateway.core.replication import BadValue, decode_value, encode_body

WRITES_MAX: Final = 250
"""In one call: Redis does nothing else meanwhile, for some 10 ms."""
CALLS_MAX: Final = 4
"""At once: while Redis writes one, the next ones are made and sent."""
TRIES: Final = 4
WAIT_S: Final = 0.5
"""Before another try, twice as long each time: a failover takes a second or three."""


@dataclass(slots=True)
class Result:
    """What came of it. `overtaken`: a line for each change that was not made, since the record is another now."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    regions: set[str] = field(default_factory=set)
    already: int = 0
    overtaken: list[str] = field(default_factory=list)
    done: int = 0

    @property
    def written(self) -> int:
        return sum(self.kinds.values())


async def write(
    regions: Regions, changes: Iterable[Change], lost: frozenset[str], result: Result, progress: Callable[[int], None]
) -> None:
    """Write all of them, counting in `result`. `lost`: regions whose changes are written here, as takeovers.

    Raises MapUnavailable when a region does not answer for some seconds; what was written until then stays.
    """
    for batch in batches(changes, WRITES_MAX * CALLS_MAX):
        by_region: dict[str, list[Change]] = {}
        for change in batch:
            made = moved_to(change, regions.own) if change.region in lost else change
            by_region.setdefault(made.region, []).append(made)
        calls = [
            _write_some(regions, region, piece, result)
            for region, part in by_region.items()
            for piece in batches(part, WRITES_MAX)
        ]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
        result.done += len(batch)
        progress(result.done)


async def _write_some(regions: Regions, region: str, changes: Sequence[Change], result: Result) -> None:
    map_ = regions.maps[region]
    again: list[Change] = []
    for change, answer in zip(changes, await _send(map_, changes), strict=True):
        if not isinstance(answer, Refused):
            _count(result, change)
            continue
        replanned = _replanned(change, answer.current, regions.own)
        if replanned is None:
            result.already += 1
            result.regions.add(region)
        elif isinstance(replanned, str):
            result.overtaken.append(replanned)
        else:
            again.append(replanned)
    if not again:
        return
    for change, answer in zip(again, await _send(map_, again), strict=True):
        if isinstance(answer, Refused):
            result.overtaken.append(f"{change.tenant}: it is being changed in {region} all the time: plan again")
        else:
            _count(result, change)


def _count(result: Result, change: Change) -> None:
    result.kinds[change.kind] += 1
    result.regions.add(change.region)


async def _send(map_: RegionMap, changes: Sequence[Change]) -> Sequence[object]:
    items = [Write(change.tenant, change.expected, change.epoch, encode_body(change.placement)) for change in changes]
    for attempt in range(TRIES):
        try:
            return await map_.write(items)
        except MapUnavailable:
            if attempt == TRIES - 1:
                raise
            await asyncio.sleep(WAIT_S * 2**attempt)
    raise AssertionError("the last try returns or raises")


def _replanned(change: Change, value: bytes | None, own: str) -> Change | str | None:
    """The same change over the record as it is now; None when it is so already, or why it is not the same any more."""
    try:
        current = None if value is None else decode_value(change.tenant, value)
    except BadValue as error:
        return f"{change.tenant}: its record in {change.region} cannot be read: {error}"
    placement = change.placement
    author = Author(placement.by, placement.why)
    asks_epoch = "epoch" in change.keys or change.kind is Kind.CREATED
    wanted = msgspec.structs.replace(placement, version=Version(change.epoch if asks_epoch else 0, 0, ""))
    found = plan(wanted, current, own, author)
    if found is None:
        return None
    is_takeover = placement.takeover
    if _shown(found) == _shown(change) and (is_takeover or found.region == change.region):
        return moved_to(found, change.region) if is_takeover else found
    return f"{change.tenant}: it was changed meanwhile ({_who(current)}): plan again"


def _shown(change: Change) -> object:
    """What an operator saw of it, as it comes back from a file."""
    return msgspec.to_builtins((change.kind, change.differences))


def _who(current: Placement | None) -> str:
    if current is None:
        return "it is not there any more"
    by = f" by {current.by}" if current.by else ""
    return f"version {current.version}{by}"
