"""The tenant map's source `redis`: this region's Redis, whose feed is followed change by change into the store.

Nothing here is on a request's way. While the Redis is gone, hangs or answers nonsense, the last map stays and is marked
stale. What was applied is remembered with how far the feed was followed, so a start goes on where the last one ended;
where counting on would skip something (another log, a gap, a map that was rolled back) both maps are compared whole
while the feed is followed already. The newer record wins in both directions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gateway.control.registry import Registry, Replication, Where
from gateway.control.reload import APPLIED, REFUSED, Outcome
from gateway.control.replication.region_map import FeedEntry, MapHead, MapUnavailable, RegionMap
from gateway.control.sources import confirm
from gateway.control.sources.attempt import Attempts
from gateway.control.sources.comparison import Comparison
from gateway.control.sources.confirm import Pending
from gateway.control.sources.followed import Followed, Rebuilt
from gateway.control.sources.judged import Judged, Rules, judge_entries
from gateway.control.sources.letters import Letters
from gateway.control.sources.loss import LossGuard
from gateway.control.sources.source import Ground
from gateway.core.backoff import pause_s
from gateway.core.replication import Offset, can_follow
from gateway.settings.problems import masked_url
from gateway.settings.schema import RedisSettings, Settings
from gateway.store.changes import Change
from gateway.store.record import CorruptRecord, StoreError

LOG = logging.getLogger("landbridge.control")

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 1.0
"""The Redis of our own region costs nothing to ask, and is to be found within two seconds of its start."""

LOOK_S: Final = 0.5
"""How often the head is looked at, and what a read of the feed waits for news."""

COUNT: Final = 500
"""Entries of one read: the loop stands still for a few milliseconds while they are parsed."""

PACE_S: Final = 0.01
"""Between two reads that found something: what a batch costs besides its changes (a transaction, a message to each
worker) is a millisecond, so at a thousand changes a second ten of them share it. A change that comes alone never waits.
"""

STALE_S: Final = 2.5
"""Without an answer for longer than this the map counts as stale: a read takes half a second, and two more at most."""

SEEN_FILE: Final = "map.seen"
SEEN_EVERY_MS: Final = 10_000
"""How exactly the age of the map is known after a start without a Redis."""

COMPARE_PAUSE_S: Final = 0.5
COMPARE_SHARE: Final = 5
"""After a comparison the next one waits this long, or five times as long as it took."""

GAPS_MAX: Final = 7
"""Where no comparison helps (an entry that no function wrote ends the feed) they slow down to one a minute."""

SWEEP_S: Final = 300.0
SWEEP_SHARE: Final = 100
"""Every five minutes both maps are compared record by record, or for a hundredth of the time where that takes longer:
a change by hand that left version and number of records as they were is found then."""

DEEP_BELOW: Final = 50_000
"""So few records are always compared to the last byte: half a second of a thread."""

PAGE: Final = 1000


class _Again(Exception):
    """This connection ends and the next one begins: the configuration, or the store, is another."""


class RedisFeed:
    """One region's feed and the store that follows it."""

    def __init__(self, ground: Ground) -> None:
        settings = ground.settings()
        self.last: Outcome | None = None
        self.last_error: Outcome | None = None
        self._ground = ground
        self._writer = ground.writer
        self._state_dir = Path(settings.state_dir)
        self._redis = redis_of(settings)
        self._rules = Rules(settings)
        self._registry = Registry(self._state_dir, ground.program, ground.settings, self._where)
        self._followed = Followed(ground, self._registry.progressed)
        self._attempts = Attempts()
        self._letters = Letters(ground.rejected, self._attempts)
        self._guard = LossGuard(ground, self._state_dir, self._followed, self._attempts)
        self._registry.lost(self.place, "it was not asked yet")
        self._head: MapHead | None = None
        self._answered_at: float | None = None
        self._kept_seen_ms = _seen_ms(self._state_dir)
        self._current_ms = max(ground.writer.meta().written_ms, self._kept_seen_ms)
        self._reopen = False
        self._difference = 0
        """Records that Redis has beyond the store, at rest: another number means that something came or went."""
        self._wanted: list[str] = []
        """Why both maps have to be compared."""
        self._deep = False
        self._compare_at = 0.0
        self._sweep_at = 0.0
        self._is_comparing = False
        self._gaps = 0
        """Reads in a row that did not go on from our offset."""

    # --- what control is told

    @property
    def place(self) -> str:
        return masked_url(self._redis.url)

    @property
    def pending(self) -> Pending | None:
        return self._guard.pending

    @property
    def heard_at(self) -> float | None:
        return self._registry.heard_at

    @property
    def stale(self) -> bool:
        if not self._followed.is_settled or self._answered_at is None:
            return True
        return asyncio.get_running_loop().time() - self._answered_at > STALE_S

    @property
    def age_s(self) -> float | None:
        if not self.stale:
            return 0.0
        return max(0.0, (self._ground.wall_ms() - self._current_ms) / 1000) if self._current_ms else None

    def settle(self) -> None:
        """Nothing is noticed that would have to be forgotten."""

    async def read_all(self, cause: str) -> None:
        """Have both maps compared whole. It does not wait for that: the Redis may be gone."""
        if cause != "start":
            self._want(cause, deep=True, at_once=True)

    async def reload(self, cause: str) -> bool:
        """The configuration, the store, or an operator's mind has changed."""
        settings = self._ground.settings()
        redis = redis_of(settings)
        if redis != self._redis or not self._followed.is_of_this_store:
            self._redis = redis
            self._reopen = True
        self._rules = Rules(settings)
        try:
            await self._judge_again()
            lost = await asyncio.to_thread(self._unknown_here)
        except (StoreError, Rebuilt) as error:
            lost = ()
            LOG.error("records cannot be judged again: %s", error)
        if lost:
            LOG.error("tenants are in regions that are not configured (%s), their records stay:", cause)
            for problem in lost:
                LOG.error("%s", problem)
            self.last_error = Outcome(self._ground.wall_ms(), "tenants", cause, REFUSED, lost)
            self._ground.ended(self.last_error)
        self._want(cause, deep=True, at_once=True)
        return not self.stale

    def acknowledged(self, transaction: int | None) -> None:
        if self._followed.acknowledged.acknowledged(transaction):
            self._registry.progressed()

    def replication(self) -> Replication:
        offset = self._followed.offset
        return msgspec.structs.replace(self._registry.known, offset="" if offset is None else str(offset))

    def _where(self) -> Where:
        return Where(self._head, self._followed.acknowledged.used)

    # --- the connection

    async def run(self) -> None:
        """Follow the feed, connect again whenever that ends, until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._reopen = False
            began = loop.time()
            why = ""
            try:
                await self._connection()
            except* (_Again, Rebuilt):
                pass
            except* MapUnavailable as group:
                why = _message(group)
            except* CorruptRecord as group:
                why = _message(group)
                self._ground.suspect(why)
            except* StoreError as group:
                why = _message(group)  # a full disk, say: what is on it is whole
            if (me := asyncio.current_task()) is not None and me.cancelling():
                raise asyncio.CancelledError  # a task group that ends by an error of its own keeps this to itself
            if not why:
                continue
            failures = 1 if self._answered_at is not None and self._answered_at > began else failures + 1
            self._lost(why)
            await asyncio.sleep(pause_s(failures, BACKOFF_FIRST_S, BACKOFF_MAX_S, self._ground.rng.random()))

    async def _connection(self) -> None:
        """One connection's life: it ends by an exception."""
        region = self._ground.settings().region
        map_ = RegionMap(self._redis.url, region, self._redis.tls, name="landbridge-control")
        self._is_comparing = False
        try:
            head = await self._first_head(map_)
            self._answered()
            if await self._followed.take_up(head):
                self._difference = 0  # if a record is missing on either side, the first look finds it
                LOG.info("the tenant map follows %s from %s", self.place, self._followed.offset)
                if self._followed.is_settled:
                    self._took_in("followed")
            else:
                self._start_over(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._registry.run(map_, self._attempts))
                await self._follow(map_, head, group)
        finally:
            await map_.close()

    async def _first_head(self, map_: RegionMap) -> MapHead:
        """The head, after a server that was restarted has named its log anew; one that refuses that can be read."""
        refused = None
        try:
            await map_.begin()
        except MapUnavailable as error:
            refused = error
        head = await map_.head()
        if refused is not None:
            self._attempts.failed("the name of the log", refused)
        return head

    def _start_over(self, head: MapHead) -> None:
        """Counting on would skip something: follow from the feed's end, and compare all that is before it."""
        was = self._followed.offset
        self._followed.restart(head)
        why = "it was not followed yet" if was is None else f"its feed does not go on from {was}"
        self._want(why, at_once=not self._gaps)

    def _lost(self, why: str) -> None:
        """The Redis cannot be read, or the store not be written: the map stays as it is."""
        known = self._registry.known
        if known.connected or known.problem != why:
            LOG.error("the tenant map cannot be followed and stays as it is: %s", why)
            self.last_error = Outcome(self._ground.wall_ms(), "tenants", "follow", REFUSED, (why,))
        self._answered_at = None
        self._registry.lost(self.place, why)

    def _answered(self) -> None:
        """The Redis answered just now."""
        self._answered_at = asyncio.get_running_loop().time()
        if self._followed.is_settled:
            self._current_ms = self._ground.wall_ms()

    def _took_in(self, cause: str) -> None:
        self.last_error = None
        self.last = Outcome(self._ground.wall_ms(), "tenants", cause, APPLIED)
        self._ground.ended(self.last)

    # --- following

    async def _follow(self, map_: RegionMap, head: MapHead, group: asyncio.TaskGroup) -> None:
        """Read, apply, look, until the configuration wants another connection."""
        loop = asyncio.get_running_loop()
        await self._look(map_, head, group)
        look_at = loop.time() + LOOK_S
        while not self._reopen:
            offset = self._followed.offset
            assert offset is not None, "the first look has seen to it"
            entries = await map_.read_feed(offset.seq, COUNT, int(1000 * LOOK_S))
            self._answered()
            came_at = loop.time()
            if entries:
                await self._take_entries(map_, entries)
            is_marked = any(not entry.tenant for entry in entries) and not self._writer.complete()
            if is_marked or self._wanted or loop.time() >= look_at:
                look_at = loop.time() + LOOK_S
                await self._look(map_, await map_.head(), group)
            if 0 < len(entries) < COUNT:
                await asyncio.sleep(max(0.0, PACE_S - (loop.time() - came_at)))
        raise _Again

    async def _take_entries(self, map_: RegionMap, entries: Sequence[FeedEntry]) -> None:
        """Apply what goes on from our offset; what does not leads to a comparison."""
        assert self._followed.offset is not None
        log_id, seq = self._followed.offset
        fits = _from(seq, entries)
        if not fits:
            self._gaps += 1
            self._followed.compared = False
            self._want(f"its feed has nothing between {seq} and {entries[0].seq}")
            await asyncio.sleep(BACKOFF_FIRST_S)  # the same entries come again until a look has found the way
            return
        self._gaps = 0
        rules = self._rules
        judged = await self._followed.commit(lambda: judge_entries(rules, fits), Offset(log_id, fits[-1].seq))
        await self._letters.take(map_, judged, self._ground.wall_ms())

    async def _look(self, map_: RegionMap, head: MapHead, group: asyncio.TaskGroup) -> None:
        """Twice a second: is it the log that we follow, has anything come or gone without it, is it complete?"""
        followed = self._followed
        self._head = head
        self._answered()
        now = asyncio.get_running_loop().time()
        if not can_follow(followed.offset, head.feed):
            self._start_over(head)
        elif followed.offset is not None and followed.offset.seq == head.feed.last and not self._is_comparing:
            await self._count(head)
        if self._guard.is_answered():
            self._want("an operator answered", at_once=True)
        if followed.is_settled:
            await asyncio.to_thread(self._keep_seen)
            if now >= self._sweep_at > 0:
                self._want("a look at all records", deep=True)
        if self._wanted and not self._is_comparing and now >= self._compare_at:
            self._is_comparing = True
            cause, deep = "; ".join(dict.fromkeys(self._wanted)), self._deep
            self._wanted, self._deep = [], False
            group.create_task(self._compare(map_, head, cause, deep))

    async def _count(self, head: MapHead) -> None:
        """All that the feed says is in: so the numbers of records differ by what they always differ by."""
        meta = await asyncio.to_thread(self._writer.meta)
        difference = head.records - meta.records
        if difference != self._difference:
            self._want(f"Redis has {head.records} records and the store {meta.records}")
        if self._followed.compared and head.complete and not meta.complete:
            await self._followed.commit(lambda: Judged([], [], {}), complete=True)
            LOG.info("the tenant map is complete: %d records", meta.records)

    def _want(self, cause: str, *, deep: bool = False, at_once: bool = False) -> None:
        """Have both maps compared, when it is time for that."""
        self._wanted.append(cause)
        self._deep = self._deep or deep
        if at_once:
            self._compare_at = 0.0

    def _keep_seen(self) -> None:
        """Remember over a restart that the map is current. Blocks."""
        if self._current_ms - self._kept_seen_ms >= SEEN_EVERY_MS:
            self._kept_seen_ms = self._current_ms
            with suppress(OSError):  # a full disk: then the age after a start is that of the last change
                (self._state_dir / SEEN_FILE).write_text(f"{self._current_ms}\n")

    # --- comparing

    async def _compare(self, map_: RegionMap, head: MapHead, cause: str, deep: bool) -> None:
        """Make the store hold what Redis has newer, and Redis what the store has newer."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            offsets = await map_.offsets()
            offsets[self._ground.settings().region] = Offset(head.log_id, head.log.last)
            comparison = Comparison(
                map_,
                self._writer,
                self._rules,
                lambda judged: self._take(map_, judged),
                deep=deep or head.records < DEEP_BELOW,
                wall_ms=self._ground.wall_ms(),
            )
            found = await comparison.run()
            owes, lacking = await self._guard.decide(map_, head, found)
            self._difference = len(found.strangers) - lacking
            if await self._followed.settle(head, offsets, owes=owes) and not owes:
                self._answered()
                LOG.info("the tenant map is what %s holds (%s)", self.place, cause)
                self._took_in(cause)
        finally:
            took = loop.time() - began
            pause = COMPARE_PAUSE_S * 2 ** min(self._gaps, GAPS_MAX)
            self._compare_at = loop.time() + max(pause, COMPARE_SHARE * took)
            self._sweep_at = loop.time() + max(SWEEP_S, SWEEP_SHARE * took)
            self._is_comparing = False
        if owes and self._guard.pending is None:
            self._want("records are to be written back")

    async def _take(self, map_: RegionMap, judged: Judged) -> None:
        """Apply what a comparison found."""
        await self._followed.commit(lambda: judged)
        await self._letters.take(map_, judged, self._ground.wall_ms())

    # --- what the configuration says of records

    async def _judge_again(self) -> None:
        """Records that wait because they name an unknown region: it may be known now."""
        rules, after = self._rules, ""
        while waiting := await asyncio.to_thread(self._writer.waiting, after, PAGE):
            after = waiting[-1].tenant
            changes = [Change(p.tenant, p, True) for p in waiting if rules.routable(p)]
            if changes:
                judged = Judged(changes, [], {})
                await self._followed.commit(lambda judged=judged: judged)  # type: ignore[misc]  # bound early on purpose
                LOG.info("%d records that waited for their region to be known decide now", len(changes))

    def _unknown_here(self) -> tuple[str, ...]:
        """Which deciding records name a region that is not known (any more), a line each, the first some. Blocks."""
        problems: list[str] = []
        after, count = "", 0
        while page := self._writer.page(after, PAGE):
            after = page[-1].tenant
            for placement in page:
                if not self._rules.routable(placement):
                    count += 1
                    if count <= confirm.NAMED_MAX:
                        problems.append(f"{placement.tenant} names {self._rules.unknown(placement)}, no region of ours")
        if count > confirm.NAMED_MAX:
            problems.append(f"and {count - confirm.NAMED_MAX} more tenants")
        return tuple(problems)


def _from(seq: int, entries: Sequence[FeedEntry]) -> Sequence[FeedEntry]:
    """Those that go on from `seq` without a gap. Their numbers grow strictly, so the ends mostly tell."""
    if entries[0].seq == seq + 1 and entries[-1].seq == seq + len(entries):
        return entries
    return [entry for at, entry in enumerate(entries, seq + 1) if entry.seq == at]


def redis_of(settings: Settings) -> RedisSettings:
    redis = settings.tenant_map.redis
    assert redis is not None, "the loader sees to it where the source is redis"
    return redis


def _seen_ms(state_dir: Path) -> int:
    """When the map was last known to be current, as kept before; 0 where that is not known. Blocks."""
    try:
        return int((state_dir / SEEN_FILE).read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _message(group: BaseExceptionGroup[BaseException]) -> str:
    """The first of its exceptions, in words."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first)
