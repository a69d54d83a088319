"""A whole map in Redis held against the one in the store: what is newer there, what is newer here, what is gone there.

The store is walked in pages and each page asked for in Redis, so neither map is ever in memory, and what is missing is
known exactly. Ids that the store lacks are looked for afterwards, if the numbers say that there are any. The feed is
followed meanwhile; where both touch a tenant the newer record stays, whoever comes first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from gateway.control.replication.incoming import TOMBSTONE_MS
from gateway.control.replication.region_map import RegionMap
from gateway.control.sources.judged import Judged, Reason, Rejected, Rules, Unfit, judge_value, quick
from gateway.core.placement import Placement, State
from gateway.core.replication import CONFLICTS, TAKES, BadValue, Stamp, encode_body, encode_value, stamp_of
from gateway.store.following import Known
from gateway.store.writer import Writer

PAGE: Final = 1000
"""Records asked for at once: a few milliseconds of Redis, and of a thread here."""

EMPTY: Final = b" "
"""What an empty value is judged as: in the feed it would say that a tenant was purged."""

BACK: Final = 200
"""Records written back in one call: a server does nothing else meanwhile."""


@dataclass(slots=True)
class Found:
    """What a comparison found. `missing`: tenants of ours that Redis lacks altogether; `behind`: of which it has an
    older or a damaged record; `expired`: tombstones that it lacks because their time is over; `strangers`: ids in Redis
    whose value is no record, and of which the store has none.
    """

    known: int = 0
    matched: int = 0
    missing: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    strangers: set[str] = field(default_factory=set)

    @property
    def change(self) -> str:
        """A name for this loss, for an operator to confirm: these tenants and no others."""
        name = hashlib.blake2b(digest_size=8)
        for tenant in self.missing:
            name.update(tenant.encode() + b"\0")
        return name.hexdigest()


class Comparison:
    """One comparison. `take(judged)` is awaited with what has to be applied; `deep` also holds records of one version
    against each other, and each against its sum, which takes three times as long.
    """

    def __init__(
        self,
        map_: RegionMap,
        writer: Writer,
        rules: Rules,
        take: Callable[[Judged], Awaitable[None]],
        *,
        deep: bool,
        wall_ms: int,
    ) -> None:
        self._map = map_
        self._writer = writer
        self._rules = rules
        self._take = take
        self._deep = deep
        self._oldest_ms = wall_ms - TOMBSTONE_MS

    async def run(self) -> Found:
        """Raises MapUnavailable, StoreError."""
        found = Found()
        after = ""
        while known := await asyncio.to_thread(self._writer.known, after, PAGE):
            values = await self._map.get([tenant for tenant, _ in known])
            await self._apply(await asyncio.to_thread(self._page, known, values, found))
            after = known[-1].tenant
        if (await self._map.head()).records > found.matched:
            async for rows in self._map.scan():
                await self._apply(await asyncio.to_thread(self._unknown, rows, found))
        return found

    async def _apply(self, judged: Judged) -> None:
        if judged.changes or judged.rejected:
            await self._take(judged)

    def _page(self, known: Sequence[Known], values: Sequence[bytes | None], found: Found) -> Judged:
        judged = Judged([], [], {})
        found.known += len(known)
        for ours, value in zip(known, values, strict=True):
            if value is None:
                (found.expired if self._is_expired(ours) else found.missing).append(ours.tenant)
                continue
            found.matched += 1
            if value.startswith(b"1 %b " % str(ours.version).encode()):
                if self._deep:
                    self._same_version(ours.tenant, value, found, judged)
                continue
            try:
                is_newer = stamp_of(value).version > ours.version
            except BadValue as error:
                judged.rejected.append(Rejected(ours.tenant, value, Reason.MALFORMED, str(error)))
                is_newer = False
            if is_newer:
                judge_value(self._rules, ours.tenant, value, judged)
            else:
                found.behind.append(ours.tenant)
        return judged

    def _same_version(self, tenant: str, value: bytes, found: Found, judged: Judged) -> None:
        """Somebody's hand changed a record and left its version: theirs counts if it is one, ours otherwise."""
        theirs = quick(tenant, value)
        if theirs is None or not self._rules.is_plain(theirs):
            try:
                theirs = self._rules.read(tenant, value)
            except Unfit as unfit:
                judged.rejected.append(Rejected(tenant, value, unfit.reason, str(unfit)))
                if unfit.reason in (Reason.MALFORMED, Reason.OVERSIZED):
                    found.behind.append(tenant)
                return
        if theirs != self._writer.newest(tenant):
            judge_value(self._rules, tenant, value, judged)

    def _unknown(self, rows: Sequence[tuple[str, bytes]], found: Found) -> Judged:
        """Records of tenants that the store does not have."""
        judged = Judged([], [], {})
        for tenant, value in rows:
            if self._writer.newest(tenant) is None:
                judge_value(self._rules, tenant, value or EMPTY, judged)
        stored = {change.tenant for change in judged.changes}
        found.strangers.update(r.tenant for r in judged.rejected if r.tenant not in stored)
        return judged

    def _is_expired(self, known: Known) -> bool:
        if known.version.hlc >= self._oldest_ms or not known.version.region:
            return False
        ours = self._writer.newest(known.tenant)
        return ours is not None and ours.state is State.DELETED


class WrittenBack(NamedTuple):
    """`conflicts`: how many of them took the place of a record that ours does not descend from."""

    taken: int
    conflicts: int


async def write_back(map_: RegionMap, writer: Writer, tenants: Sequence[str]) -> WrittenBack:
    """Give Redis, and by its log the other regions, our records of these tenants where they are newer than its own.

    Raises MapUnavailable, StoreError.
    """
    taken = conflicts = 0
    rest = iter(tenants)
    while chunk := list(islice(rest, BACK)):
        theirs = await map_.get(chunk)
        entries = await asyncio.to_thread(_newer_here, writer, chunk, theirs)
        if entries:
            merged = await map_.merge(entries, relog=True)
            taken += sum(outcome in TAKES for outcome in merged.outcomes)
            conflicts += sum(outcome in CONFLICTS for outcome in merged.outcomes)
    return WrittenBack(taken, conflicts)


def _newer_here(writer: Writer, tenants: Sequence[str], theirs: Sequence[bytes | None]) -> list[tuple[str, bytes]]:
    entries = []
    for tenant, value in zip(tenants, theirs, strict=True):
        ours = writer.newest(tenant)
        if ours is None or is_foreign(ours):
            continue
        stamp = _stamp(value)
        if stamp is None or stamp.version <= ours.version:
            # The store does not keep what a record replaced. That ours came after theirs, in this very map, is known.
            replaces = () if stamp is None or stamp.version == ours.version else (stamp.version, *stamp.replaces)
            entries.append((tenant, encode_value(tenant, ours.version, replaces, encode_body(ours))))
    return entries


def is_foreign(placement: Placement) -> bool:
    """Whether this record never was in a replicated map: it comes of a tenants file, from before the source changed."""
    return not placement.version.region


def _stamp(value: bytes | None) -> Stamp | None:
    try:
        return None if value is None else stamp_of(value)
    except BadValue:
        return None
