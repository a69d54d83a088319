"""One peer: its log is followed into our Redis, for as long as the lease is ours.

Everything here may be ended at any await: what was taken in stands in our Redis together with the offset, and who
comes next goes on from there. A failure of the peer's Redis, or of ours, is tried again for ever.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from typing import Final

from gateway.control.replication.compare import catch_up, compare
from gateway.control.replication.counters import RESYNCS, RETRIES
from gateway.control.replication.progress import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    HEARD_S,
    READ_FIRST,
    Condition,
    Lag,
    Next,
    condition_of,
    first_fault,
    read_count,
    read_count_after_failure,
    what_next,
)
from gateway.control.replication.region_map import MapHead, MapUnavailable, PeerState, RegionMap
from gateway.control.replication.tenure import Tenure
from gateway.core.backoff import pause_s
from gateway.core.replication import Head, Offset, Step, lag_records

LOG = logging.getLogger("landbridge.replicator")

LOOK_S: Final = 0.5
"""How often a peer's head is read: that is how soon another log, or a log that was cut, is seen."""

TAKE_MAX: Final = 500
"""Entries that one call takes in: Redis does nothing else meanwhile, for some 10 ms."""

BLOCK_MS: Final = 500
"""How long a read waits for the next entry; an entry ends it at once."""


class Follower:
    """See the module. `changed()` is called when the condition is another. `before`: what was last known, by whoever
    held the lease, and `since_s` ago."""

    def __init__(
        self,
        tenure: Tenure,
        peer: RegionMap,
        rng: random.Random,
        changed: Callable[[], None],
        before: PeerState | None = None,
        since_s: float = 0.0,
    ) -> None:
        self.peer = peer
        self.lag = Lag(tenure.now(), since_s + before.lag_s if before else 0.0)
        self.offset: Offset | None = None
        self.head: MapHead | None = None
        self.reason = ""
        self.retries = before.retries if before else 0
        self.conflicts = before.conflicts if before else 0
        self.resynced = asyncio.Event()
        """Set after each resync; whoever waits for it clears it."""
        self._tenure = tenure
        self._rng = rng
        self._changed = changed
        self._failures = 0
        self._failing_since: float | None = None
        self._resyncing = False
        self._looked_at = 0.0
        self._next = Next.WAIT
        self._resynced_at = -math.inf
        self._count = READ_FIRST
        self._shown = Condition.RETRYING

    async def run(self) -> None:
        """Follow until cancelled. Raises LeaseLost."""
        while True:
            try:
                await self._begin()
                while True:
                    await self._step()
            except MapUnavailable as error:
                await self._failed(str(error))
            finally:
                self._resyncing = False

    def condition(self) -> Condition:
        return condition_of(self._failing_since, self._resyncing, self._tenure.now())

    def state(self) -> PeerState:
        """What is published."""
        head = self.head
        return PeerState(
            state=self.condition().value,
            offset=str(self.offset) if self.offset else "",
            head=str(Offset(head.log_id, head.log.last)) if head and head.log_id else "",
            lag_records=lag_records(self.offset, head.log) if head else 0,
            lag_s=round(self.lag.seconds(self._tenure.now()), 3),
            retries=self.retries,
            conflicts=self.conflicts,
            holder=self._tenure.token,
            at_ms=self._tenure.clock_ms(),
            reason=self.reason,
        )

    def caught_up(self) -> bool:
        """Whether the whole of the peer's log was here at the last look, a moment ago."""
        is_recent = self._tenure.now() - self._looked_at <= HEARD_S
        return is_recent and self._next is Next.FOLLOW and not self.lag.records

    # --- steps

    async def _begin(self) -> None:
        """Our offset, then their head: a head that is read before the offset may be behind it."""
        await self._read_offset()
        await self._look()

    async def _step(self) -> None:
        """One read of the log, or what has to be done before it can go on."""
        if self._tenure.now() - self._looked_at >= LOOK_S:
            await self._look()
        head = self.head
        assert head is not None, "it was looked at"
        match self._next:
            case Next.WAIT:
                await asyncio.sleep(LOOK_S)
            case Next.RESYNC:
                await self._resync(head, self._why_not(head.log))
            case Next.FOLLOW:
                assert self.offset is not None, "an offset that can be followed"
                await self._read_on(self.offset)
        self._is_well()

    async def _look(self) -> MapHead:
        asked_at = self._tenure.now()
        head = await self.peer.head()
        self.head, self._looked_at = head, asked_at
        self._tenure.slack_ms[self.peer.region] = max(head.records, head.log.last - head.log.first + 1)
        # Judged here and only here: between two looks the offset moves on beyond what the head was.
        self._next = what_next(self.offset, head.log, complete=self._tenure.complete, peer_complete=head.complete)
        if self._next is Next.FOLLOW:
            self.lag.heard(asked_at, head.log.last)
        return head

    async def _read_offset(self) -> None:
        offset = (await self._tenure.own.offsets()).get(self.peer.region)
        if offset != self.offset:
            self.offset = offset
            self.lag.moved(offset.seq if offset else 0)

    async def _read_on(self, offset: Offset) -> None:
        rows = await self.peer.read_log(offset.seq, self._count, BLOCK_MS)
        if not rows:
            return
        fault = first_fault(offset, [row[0] for row in rows])
        if fault is not None:
            await self._resync(await self._look(), f"{fault.value} beyond {offset}: the log goes on with {rows[0][0]}")
            return
        for at in range(0, len(rows), TAKE_MAX):
            piece = rows[at : at + TAKE_MAX]
            entries = [(tenant, value) for _, tenant, value in piece]
            taken = await self._tenure.follow(self.peer.region, offset.log_id, piece[0][0], entries)
            if isinstance(taken, Step):
                await self._begin()  # our own Redis was rolled back, or flushed
                return
            self.conflicts += taken.conflicts
            self.offset = Offset(offset.log_id, piece[-1][0])
            self.lag.applied(self.offset.seq)
        self._count = read_count(self._count, len(rows), sum(len(row[2]) for row in rows))

    async def _resync(self, head: MapHead, why: str) -> None:
        """Compare whole. The head was read before the map is: what is written meanwhile is followed afterwards."""
        self.reason = why
        self._resyncing = True
        self.lag.unknown()
        self._say()
        if self._tenure.now() - self._resynced_at < LOOK_S:
            await asyncio.sleep(
                LOOK_S
            )  # it was of no use: the log has no new name yet, or somebody writes there by hand
        self._resynced_at = self._tenure.now()
        self._tenure.counters.count(RESYNCS, peer=self.peer.region)
        own_log = self._tenure.log_id
        compared = await compare(self._tenure, self.peer)
        self.conflicts += compared.conflicts
        since = await catch_up(self._tenure, self.peer, Offset(head.log_id, head.feed.last))
        if since is None:
            await self._begin()  # emptied or rolled back meanwhile, it is not the map that its head spoke of: once more
            return
        self.conflicts += since.conflicts
        offset = Offset(head.log_id, head.log.last)
        if await self._tenure.own.resynced(self.peer.region, offset, self._tenure.token, head.complete, own_log):
            self._tenure.complete = self._tenure.complete or head.complete
        await self._begin()
        LOG.info(
            "%s: compared whole (%s): %d of %d records sent, %d taken, %d conflicts; followed from %s on",
            *(self.peer.region, self.reason, compared.sent, compared.looked, compared.applied, compared.conflicts),
            self.offset,
        )
        self._resyncing = False
        self.resynced.set()

    def _why_not(self, head: Head) -> str:
        offset = self.offset
        if offset is None:
            return "never followed before"
        if offset.log_id != head.log_id:
            return f"another log: {head.log_id}, followed was {offset.log_id}"
        if offset.seq > head.last:
            return f"the log was rolled back to {head.last}, followed up to {offset.seq}"
        if offset.seq < head.first - 1:
            return f"the log was trimmed up to {head.first - 1}, followed up to {offset.seq}"
        return "its map is complete, and ours is not"

    # --- what is said of it

    async def _failed(self, why: str) -> None:
        now = self._tenure.now()
        self._failures += 1
        self._count = read_count_after_failure(self._count)
        self.retries += 1
        self._tenure.counters.count(RETRIES)
        if self._failing_since is None:
            self._failing_since = now
            LOG.warning("%s: not followed: %s", self.peer.region, why)
        self.reason = why
        self._resyncing = False
        self._say()
        await asyncio.sleep(pause_s(self._failures, BACKOFF_FIRST_S, BACKOFF_MAX_S, self._rng.random()))

    def _is_well(self) -> None:
        if self._failing_since is not None:
            LOG.info("%s: followed again", self.peer.region)
        self._failures, self._failing_since = 0, None
        if not self._resyncing:
            self.reason = ""
        self._say()

    def _say(self) -> None:
        condition = self.condition()
        if condition is not self._shown:
            self._shown = condition
            self._changed()
