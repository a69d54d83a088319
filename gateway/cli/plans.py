"""A plan: what a wish would change in the map, worked out in pieces and kept in a temporary file.

What is kept is exactly what was planned: `apply` writes that, each change over the version it was planned on, so
nothing is written that nobody was shown. However many tenants there are, a plan in memory is counts, a few names and
16 bytes a tenant.
"""

from __future__ import annotations

import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from gateway.cli.claims import Claims
from gateway.cli.output import time_of
from gateway.cli.regions import DELETED, LIVING_EXACT_MAX, Regions, living
from gateway.control.registry import SAID_MS, live
from gateway.control.replication.progress import Condition
from gateway.control.replication.region_map import MapUnavailable
from gateway.control.sources import confirm as guard
from gateway.core.placement import Placement, State
from gateway.core.planning import Author, Change, Fleet, Tally, plan, tombstone
from gateway.core.replication import VALUE_BYTES_MAX, BadValue, decode_value, encode_body
from gateway.settings.problems import Invalid, Problem
from gateway.settings.schema import Settings

BATCH: Final = 500
"""Records asked for at once."""

SIZE_LOOKED_AT_FROM: Final = 64
"""A record with fewer hosts, URLs and labels than this in all cannot be too long."""
NOTED_LAG_S: Final = 1.0
"""Below it a region is as far as it can be: something is always on its way."""
HEAD_BYTES_MAX: Final = 1024
"""What a value has before its body: version, lineage, sum."""

T = TypeVar("T")


class Spool:
    """Changes in a temporary file, in order."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Change)

    def add(self, change: Change) -> None:
        data = self._encoder.encode(change)
        self._file.write(len(data).to_bytes(4, "big"))
        self._file.write(data)

    def __iter__(self) -> Iterator[Change]:
        self._file.seek(0)
        while size := self._file.read(4):
            yield self._decoder.decode(self._file.read(int.from_bytes(size, "big")))

    def close(self) -> None:
        self._file.close()


class Ids:
    """Which tenants were seen, as 8 bytes each: `in` once all were added."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._sorted: Sequence[int] | None = None

    def add(self, tenant: str) -> None:
        self._keys.append(hash(tenant) & 0xFFFF_FFFF_FFFF_FFFF)

    def __contains__(self, tenant: str) -> bool:
        if self._sorted is None:
            self._sorted = self._keys = array("Q", sorted(self._keys))
        key = hash(tenant) & 0xFFFF_FFFF_FFFF_FFFF
        at = bisect_left(self._sorted, key)
        return at < len(self._sorted) and self._sorted[at] == key


@dataclass(slots=True)
class Plan:
    """`left_alone`: tenants of the map that nothing was said of; with `is_exact` False deleted ones are among them.

    `damaged`: records that cannot be read, so that nothing can be said of these tenants.
    """

    changes: Spool = field(default_factory=Spool)
    tally: Tally = field(default_factory=Tally)
    tenants: int = 0
    left_alone: int = 0
    is_exact: bool = True
    damaged: list[str] = field(default_factory=list)
    claims: Claims = field(default_factory=lambda: Claims(lambda host: None))

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.changes.close()

    def add(self, change: Change, current: Placement | None, regions: Collection[str]) -> None:
        """One more change, of the record `current`. `regions`: those of the configuration."""
        self.changes.add(change)
        self.tally.add(change, regions)
        self.claims.see(change, current)


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


async def make_plan(
    made: Plan,
    regions: Regions,
    settings: Settings,
    wanted: Iterable[Placement],
    author: Author,
    *,
    prune: bool = False,
    choose: Callable[[Change], Change | None] = lambda change: change,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Plan, in `made`, what makes the map, as our region's Redis has it, what `wanted` says.

    `choose` may give another change instead, or none. Raises MapUnavailable, Invalid.
    """
    ids = Ids()
    found = done = 0
    for batch in batches(wanted):
        values = await regions.here.get([placement.tenant for placement in batch])
        for placement, value in zip(batch, values, strict=True):
            ids.add(placement.tenant)
            found += value is not None
            if (current := _current(made, placement.tenant, value)) is None and value is not None:
                continue
            change = plan(placement, current, regions.own, author)
            if change is None:
                made.tally.unchanged += 1
                continue
            _check_size(change)
            if (chosen := choose(change)) is not None:
                made.add(chosen, current, settings.regions)
        done += len(batch)
        progress(done)
    made.tenants, made.is_exact = await living(regions.here)
    if prune:
        await _prune(regions, settings, made, ids, author)
        made.is_exact = True
    else:
        made.left_alone = await _others(regions, ids, found)


async def make_edits(
    made: Plan, regions: Regions, settings: Settings, wanted: Mapping[str, Placement | None], author: Author
) -> dict[str, Placement | None]:
    """Plan what becomes of these tenants, None for a deletion. Returns their records as they are now (None: none)."""
    records: dict[str, Placement | None] = {}
    for tenant, value in zip(wanted, await regions.here.get(list(wanted)), strict=True):
        current = records[tenant] = _current(made, tenant, value)
        if current is None and value is not None:
            continue
        placement = wanted[tenant]
        change: Change | None = None
        if placement is not None:
            change = plan(placement, current, regions.own, author)
        elif current is not None and current.state is not State.DELETED:
            change = tombstone(current, author)
        if change is None:
            made.tally.unchanged += 1
        else:
            made.add(change, current, settings.regions)
    made.tenants, made.is_exact = await living(regions.here)
    return records


def _current(made: Plan, tenant: str, value: bytes | None) -> Placement | None:
    """The record in a value. None without one, and, noted in the plan, for a damaged one."""
    if value is None:
        return None
    try:
        return decode_value(tenant, value)
    except BadValue as error:
        made.damaged.append(f"{tenant}: its record cannot be read: {error}")
        return None


def _check_size(change: Change) -> None:
    placement = change.placement
    if len(placement.hosts) + len(placement.public) + len(placement.labels) < SIZE_LOOKED_AT_FROM:
        return
    size, most = len(encode_body(placement)), VALUE_BYTES_MAX - HEAD_BYTES_MAX
    if size > most:
        raise Invalid([Problem(change.tenant, 0, "", f"a record of at most {most} bytes", f"{size}")])


async def _prune(regions: Regions, settings: Settings, made: Plan, ids: Ids, author: Author) -> None:
    """Plan the deletion of every tenant that was not wanted."""
    pruned: set[str] = set()  # a scan may give a record twice
    async for rows in regions.here.scan():
        for tenant, value in rows:
            if tenant in ids or tenant in pruned or DELETED in value:
                continue
            if (current := _current(made, tenant, value)) is not None:
                pruned.add(tenant)
                made.add(tombstone(current, author), current, settings.regions)


async def _others(regions: Regions, ids: Ids, found: int) -> int:
    """How many tenants of the map nothing was said of."""
    records = (await regions.here.head()).records
    if records > LIVING_EXACT_MAX:
        return max(0, records - found)
    others = {
        tenant
        async for rows in regions.here.scan()
        for tenant, value in rows
        if DELETED not in value and tenant not in ids
    }
    return len(others)


# --- what is known of the regions


async def fleet_of(regions: Regions, settings: Settings, made: Plan, lost: Iterable[str]) -> Fleet:
    """What the rules of safety need to know. Raises MapUnavailable for our own Redis only."""
    alive: dict[str, int] = {}
    for row in live(await regions.here.gateways()):
        alive[row.region] = alive.get(row.region, 0) + 1
    for region in made.tally.moved_to:
        if not alive.get(region) and region in regions.maps and region != regions.own:
            alive[region] = await _alive_there(regions, region)
    head = await regions.here.head()
    states = await regions.here.replication()
    waiting = guard.waiting(Path(settings.state_dir))
    return Fleet(
        own=regions.own,
        tenants=made.tenants,
        regions=frozenset(settings.regions),
        live=alive,
        lag_s={
            peer: None if (state := states.get(peer)) is None or head.clock_ms - state.at_ms > SAID_MS else state.lag_s
            for peer in regions.peers
        },
        lost=frozenset(lost),
        complete=head.complete,
        waiting="" if waiting is None else f"{waiting.removed} of {waiting.known}, since {time_of(waiting.since_ms)}",
    )


async def _alive_there(regions: Regions, region: str) -> int:
    """Asked of its own Redis: the news may not have reached ours."""
    try:
        return sum(row.region == region for row in live(await regions.maps[region].gateways()))
    except MapUnavailable:
        return 0


async def lag_notes(regions: Regions) -> list[str]:
    """What makes a plan uncertain: what was written elsewhere and is not known here yet."""
    head = await regions.here.head()
    states = await regions.here.replication()
    notes = []
    for peer in regions.peers:
        state = states.get(peer)
        if state is None or head.clock_ms - state.at_ms > SAID_MS:
            notes.append(
                f"nothing is known of how far {regions.own} is behind {peer}: what changed there may be missing"
            )
        elif state.lag_s >= NOTED_LAG_S or state.state != Condition.FOLLOWING:
            behind = f"{state.lag_records} records, {state.lag_s:.1f} s" if state.lag_records else state.state
            notes.append(f"{regions.own} is behind {peer} ({behind}): what changed there may be missing")
    return notes
