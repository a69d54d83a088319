"""Two maps compared: what a peer has and we lack, or have in an older state, is merged. Nothing is ever removed.

The digests tell in which of 256 buckets the maps differ; only values of those are looked at, and only what has
something to tell our Redis is sent to it. A value that became another meanwhile may have left such a bucket for one
that is not looked at: what the peer's feed got since we began is taken in last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from gateway.control.replication.incoming import bucket_of, is_wanted
from gateway.control.replication.progress import differences
from gateway.control.replication.region_map import RegionMap
from gateway.control.replication.tenure import Tenure
from gateway.core.replication import BadValue, Offset, can_follow

MERGE_BYTES_MAX: Final = 1 << 20
MERGE_MAX: Final = 250
"""In one call: Redis does nothing else meanwhile, for some 5 ms."""

FEED_COUNT: Final = 500


class Compared(NamedTuple):
    """`looked` values of the peer's were looked at, `sent` had something to tell, `applied` are current here now."""

    looked: int = 0
    sent: int = 0
    applied: int = 0
    conflicts: int = 0


async def compare(tenure: Tenure, peer: RegionMap) -> Compared:
    """Take in all that a peer's map has, as it is now. Raises MapUnavailable, LeaseLost."""
    theirs = await peer.digests()
    buckets = differences(await tenure.own.digests(), theirs).keys()
    return await take_buckets(tenure, peer, buckets) if buckets else Compared()


async def catch_up(tenure: Tenure, peer: RegionMap, began: Offset) -> Compared | None:
    """Take in what became current in a peer's map since its feed was at `began`. Raises MapUnavailable, LeaseLost.

    None when that is not known: the feed was trimmed beyond it, rolled back, or is another one.
    """
    feed = (await peer.head()).feed
    if not can_follow(began, feed):
        return None
    looked = sent = applied = conflicts = 0
    at = began.seq
    while at < feed.last:
        rows = await peer.read_feed(at, FEED_COUNT, 0)
        if not rows or rows[0].seq != at + 1:
            return None
        for piece in pieces(await wanted(tenure, [(row.tenant, row.value) for row in rows if row.value])):
            taken = await tenure.merge(peer.region, piece)
            sent += len(piece)
            applied += taken.applied
            conflicts += taken.conflicts
        looked += len(rows)
        at = rows[-1].seq
    return Compared(looked, sent, applied, conflicts)


async def take_buckets(tenure: Tenure, peer: RegionMap, buckets: Collection[str]) -> Compared:
    """Take in what a peer's map has in these buckets. Raises MapUnavailable, LeaseLost."""
    looked = sent = applied = conflicts = 0
    async for rows in peer.scan():
        suspects = [row for row in rows if (bucket := bucket_of(row[1])) is None or bucket in buckets]
        looked += len(rows)
        for piece in pieces(await wanted(tenure, suspects)):
            taken = await tenure.merge(peer.region, piece)
            sent += len(piece)
            applied += taken.applied
            conflicts += taken.conflicts
        await asyncio.sleep(0)  # who follows the other peers meanwhile has its turn
    return Compared(looked, sent, applied, conflicts)


async def wanted(tenure: Tenure, theirs: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Those that have something to tell our Redis. What is no record is among them: it is buried on its way in."""
    found = []
    ours = await tenure.own.get([tenant for tenant, _ in theirs])
    for (tenant, value), current in zip(theirs, ours, strict=True):
        try:
            is_news = is_wanted(current, value, tenant, tenure.clock_ms())
        except BadValue:
            is_news = True
        if is_news:
            found.append((tenant, value))
    return found


def pieces(entries: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Cut into what one call may take."""
    piece: list[tuple[str, bytes]] = []
    size = 0
    for entry in entries:
        if piece and (len(piece) >= MERGE_MAX or size + len(entry[1]) > MERGE_BYTES_MAX):
            yield piece
            piece, size = [], 0
        piece.append(entry)
        size += len(entry[1])
    if piece:
        yield piece
