"""Our own map looked through: is every value whole, do the digests hold, which tombstones may go.

The digests are kept incrementally, by the function that writes; so a value that was changed by hand, by a defect or by
another program does not show in them. That is what this finds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from gateway.control.replication.incoming import old_tombstone, weigh
from gateway.control.replication.region_map import MapHead
from gateway.control.replication.tenure import Tenure
from gateway.core.placement import Version

EVERY_S: Final = 60.0
DUTY: Final = 0.05
"""Of the time at most so much is spent on it: a map of a million records is looked through every few minutes."""

BREATH: Final = 2.0
"""So many times as long as a piece took is waited before the next: whoever follows a peer goes first."""

DAMAGED_MAX: Final = 10_000
TOMBSTONES_MAX: Final = 10_000
"""A run reports so many at most; the next one finds the rest."""


@dataclass
class Count:
    """What one run found. `settled`: nothing was applied while it ran, so the digests can be compared."""

    records: int = 0
    digests: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    tombstones: list[tuple[str, Version]] = field(default_factory=list)
    settled: bool = False
    took_s: float = 0.0

    def hex(self) -> dict[str, str]:
        """Digests as Redis keeps them, without empty buckets."""
        return {bucket: f"{digest:016x}" for bucket, digest in self.digests.items() if digest}

    def pause_s(self) -> float:
        """How long until the next run."""
        return max(EVERY_S, self.took_s / DUTY)


async def recount(tenure: Tenure) -> tuple[Count, MapHead]:
    """Look through our whole map, and what it said of itself before. Raises MapUnavailable."""
    started = tenure.now()
    head = await tenure.own.head()
    found = Count()
    async for rows in tenure.own.scan():
        at = tenure.now()
        for tenant, value in rows:
            _take(found, tenant, value, tenure.clock_ms())
        found.records += len(rows)
        if len(rows) < head.records:  # one piece was not all
            await asyncio.sleep((tenure.now() - at) * BREATH)
    found.settled = (await tenure.own.head()).feed == head.feed
    found.took_s = tenure.now() - started
    return found, head


def _take(found: Count, tenant: str, value: bytes, clock_ms: int) -> None:
    named, is_whole = weigh(tenant, value)
    if not is_whole and len(found.damaged) < DAMAGED_MAX:
        found.damaged.append(tenant)
    if named:  # damaged or not: it is what the function takes out of the digest when the value is replaced
        bucket = named[:2]
        found.digests[bucket] = found.digests.get(bucket, 0) ^ int(named, 16)
    if len(found.tombstones) < TOMBSTONES_MAX and (old := old_tombstone(value, clock_ms)) is not None:
        found.tombstones.append((tenant, old.version))
