"""The store of a map that follows a feed: how far it is, and every change on its way in.

What is said of how far it is holds by construction: records, offset and origins change in one transaction. As long as
something that the Redis has may be missing (`compared` is false), or something is owed to it, the offset on disk names
no log, so that a control that starts compares both maps again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.bus.messages import MapChanged
from gateway.control.registry import Acknowledged, Progress
from gateway.control.replication.region_map import MapHead
from gateway.control.sources.judged import Judged, Reason
from gateway.control.sources.source import Ground
from gateway.core.placement import State
from gateway.core.replication import Offset, can_follow, goes_forward, parse_offset
from gateway.store.changes import Change, SourceState

Origins = dict[str, Offset]


class Rebuilt(Exception):
    """The store is another one, made of a snapshot: what it lacks is only found by comparing."""


class _Applied(NamedTuple):
    judged: Judged
    origins: Origins
    change: MapChanged
    older: int


class Followed:
    """One change at a time, each in a thread. `progressed()` is called when more than before is in use.

    `offset`: everything in the feed that came after the last comparison began is in, up to here. `owes`: Redis lacks
    something of ours, and it is not decided or done yet.
    """

    def __init__(self, ground: Ground, progressed: Callable[[], None]) -> None:
        self.offset: Offset | None = None
        self.compared = False
        self.owes = False
        self.acknowledged = Acknowledged()
        self._ground = ground
        self._writer = ground.writer
        self._progressed = progressed
        self._lock = asyncio.Lock()
        self._is_known = False
        self._generation = ground.writer.generation
        self._origins: Origins = {}
        self._held: Origins = {}  # what the feed says while not all that is before it is in

    @property
    def is_settled(self) -> bool:
        return self.compared and not self.owes

    @property
    def is_of_this_store(self) -> bool:
        return self._generation == self._writer.generation

    async def take_up(self, head: MapHead) -> bool:
        """Go on where the store is; False where that cannot be. Raises StoreError."""
        if not self.is_of_this_store:
            self._generation, self._is_known = self._writer.generation, True
            self.offset, self.compared, self._origins, self._held = None, False, {}, {}
            self.acknowledged.restart()
        if not self._is_known:
            self._is_known = True
            state = await asyncio.to_thread(self._writer.source)
            if state is not None:
                self._origins = {r: o for r, text in state.origins.items() if (o := parse_offset(text)) is not None}
                self.offset = Offset(state.log_id, state.seq) if state.log_id else None
                self.compared = self.offset is not None
                self._note(self._writer.transaction())
        return self.compared and can_follow(self.offset, head.feed)

    def restart(self, head: MapHead) -> None:
        """Follow from the feed's end; what is before it has to be compared."""
        self.offset = Offset(head.log_id, head.feed.last)
        self.compared = False
        self._held = {}

    async def commit(
        self, judge: Callable[[], Judged], upto: Offset | None = None, *, complete: bool = False
    ) -> Judged:
        """Judge and apply, and tell everybody. `upto`: the feed is in up to here then. Raises StoreError, Rebuilt."""
        async with self._lock:
            offset = self.offset if upto is None else upto
            done = await asyncio.to_thread(self._apply, judge, offset, complete)
            if done.change.generation != self._generation:
                raise Rebuilt
            self.offset = offset
            if self.compared:
                self._origins = done.origins
            else:
                self._held = done.origins
            for _ in range(done.older):
                self._ground.rejected(Reason.OLDER)
            if done.change.from_txn != done.change.to_txn:
                self._ground.changed(done.change)
            self._note(done.change.to_txn)
            return done.judged

    def _apply(self, judge: Callable[[], Judged], offset: Offset | None, complete: bool) -> _Applied:
        """The part of a commit that blocks."""
        judged = judge()
        changes: Sequence[Change] = judged.changes
        if any(change.placement is None for change in changes):
            changes = self._without_bold_purges(changes)
        origins = merged(self._origins if self.compared else self._held, judged.origins)
        state = self._state(offset, origins if self.compared else self._origins)
        ignored = self._writer.ignored
        change = self._writer.apply(changes, state, self._ground.wall_ms(), complete)
        return _Applied(judged, origins, change, self._writer.ignored - ignored)

    async def forget(self, tenants: Sequence[str]) -> None:
        """Remove these, whatever they are: that was decided elsewhere. Raises StoreError."""
        if tenants:
            changes = [Change(tenant, None) for tenant in tenants]
            async with self._lock:
                state = self._state(self.offset, self._origins)
                now_ms = self._ground.wall_ms()
                change = await asyncio.to_thread(self._writer.apply, changes, state, now_ms, False)
                self._ground.changed(change)

    async def settle(self, head: MapHead, offsets: Origins, *, owes: bool) -> bool:
        """A comparison that began at `head` has ended, and `offsets` are of the peers' logs as of then: everything that
        Redis had is in. False when the log is another by now. Raises StoreError, Rebuilt.
        """
        async with self._lock:
            if self.offset is None or self.offset.log_id != head.log_id:
                return False
            self._origins = merged(merged(self._origins, offsets), self._held)
            self._held = {}
            self.compared, self.owes = True, owes
        await self.commit(lambda: Judged([], [], {}), complete=head.complete)
        return True

    def _state(self, offset: Offset | None, origins: Origins) -> SourceState:
        texts = {region: str(origin) for region, origin in origins.items()}
        if offset is None or not self.is_settled:
            return SourceState("", 0, texts)
        return SourceState(offset.log_id, offset.seq, texts)

    def _without_bold_purges(self, changes: Sequence[Change]) -> list[Change]:
        """Without those that would remove what is no tombstone: no function of ours purges that."""
        latest: dict[str, State] = {}
        kept = []
        for change in changes:
            if change.placement is not None:
                latest[change.tenant] = change.placement.state
            elif latest.get(change.tenant) is not State.DELETED:
                ours = self._writer.newest(change.tenant)
                if ours is None or ours.state is not State.DELETED:
                    continue
            kept.append(change)
        return kept

    def _note(self, transaction: int) -> None:
        texts = {region: str(origin) for region, origin in self._origins.items()}
        feed = str(self.offset) if self.offset is not None and self.compared else ""
        if self.acknowledged.committed(transaction, Progress(feed, texts)):
            self._progressed()


def merged(before: Origins, after: Origins) -> Origins:
    """Each region's later offset. Another log is named once all before it is in: it takes the old one's place."""
    found = dict(before)
    for region, offset in after.items():
        if goes_forward(found.get(region), offset, resynced=True):
            found[region] = offset
    return found
