"""The processes of a region: replicators, of which one holds the lease, and the gateways' controls.

What they decide is decided by the program's own functions (`core/replication.py`, `control/replication/progress.py`,
`incoming.py`); what they do here is what the real ones do around them, cut at every point where they wait for an
answer: between a question and the answer anything may happen, and the answer may never come, or come twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from gateway.control.replication import incoming, progress
from gateway.core import replication as rules
from gateway.core.placement import Version, newer
from gateway.core.replication import HLC_MAX, Offset, Outcome, Step
from tests.simulator.redis import EPOCH_MS, Broken, Down, FeedEntry, LeaseLost, Record, SimRedis

if TYPE_CHECKING:
    from tests.simulator.world import Region, World

CHUNKS: Final = 2
"""What differs in a whole map is read in so many answers."""

ALL: Final = 1_000_000
"""More entries than any stream has here."""

Entries = list[tuple[str, bytes]]


class Resync:
    """A comparison of whole maps, as far as it has come."""

    __slots__ = ("buckets", "chunk", "feed_seq", "is_complete", "offset", "own_log")

    def __init__(
        self, offset: Offset, feed_seq: int, own_log: str, is_complete: bool, buckets: Collection[str]
    ) -> None:
        self.offset = offset
        self.feed_seq = feed_seq
        self.own_log = own_log
        self.buckets = buckets
        self.is_complete = is_complete
        self.chunk = 0 if buckets else CHUNKS


class Replicator:
    """One of a region's replicators. `tick` is one look at one peer; a new token is a new process."""

    def __init__(self, world: World, region: Region, number: int) -> None:
        self._world = world
        self._region = region
        self.name = f"{region.name}/{number}"
        self._lives = itertools.count(1)
        self.start()

    def start(self) -> None:
        """Begin again, with nothing in memory."""
        self.token = f"{self.name}.{next(self._lives)}"
        self._seen: tuple[int, str] | None = None
        self._offsets: dict[str, Offset] = {}
        self._resyncs: dict[str, Resync] = {}
        self._looks: dict[str, dict[str, int]] = {}

    def tick(self, peer: Region, repairs: bool) -> None:
        """Do the next thing about this peer, whatever it is."""
        redis = self._region.redis
        try:
            if not redis.acquire(self.token):
                self._seen = None
                self._world.changed()  # all is not quiet while the lease is somebody's who may be gone
                return
            state = redis.state
            if self._seen != (redis.run, state.log_id) or not state.log_id:
                self._begin(redis)
            if self._world.reaches(self._region, peer):
                self._look(redis, peer, repairs)
        except (Down, LeaseLost):
            self._seen = None

    def _begin(self, redis: SimRedis) -> None:
        """The lease is ours, or our Redis is another process than before, or was emptied: what it has may be less."""
        redis.begin()
        if self._seen is None:
            self._resyncs.clear()
        self._seen = (redis.run, redis.state.log_id)
        self._offsets = dict(redis.state.offsets)
        self._looks.clear()

    def _look(self, redis: SimRedis, peer: Region, repairs: bool) -> None:
        head = peer.redis.log_head()
        resync = self._resyncs.get(peer.name)
        if resync is not None and resync.offset.log_id == head.log_id:
            self._resync(peer, resync)
            return
        offset = self._offsets.get(peer.name)
        is_complete, is_peer_complete = redis.state.complete, peer.redis.state.complete
        match progress.what_next(offset, head, complete=is_complete, peer_complete=is_peer_complete):
            case progress.Next.RESYNC:
                buckets = progress.differences(redis.digests(), peer.redis.digests()).keys()
                offset, feed_seq = Offset(head.log_id, head.last), peer.redis.feed_head().last
                resync = Resync(offset, feed_seq, redis.state.log_id, is_peer_complete, buckets)
                self._resyncs[peer.name] = resync
                self._resync(peer, resync)
            case progress.Next.FOLLOW:
                assert offset is not None
                if offset.seq < head.last:
                    self._follow(peer, offset)
                elif repairs and redis.state.digest != peer.redis.state.digest:
                    self._compare(redis, peer)
            case progress.Next.WAIT:
                pass

    def _follow(self, peer: Region, offset: Offset) -> None:
        first, entries = peer.redis.read_log(offset.seq, self._world.batch())
        assert progress.first_fault(offset, range(first, first + len(entries))) is None
        entries = self._world.damaged(entries)
        self._world.send(peer, self._region, self._take, (self.token, peer.name, offset.log_id, first, entries))

    def _take(self, token: str, peer: str, log_id: str, first: int, entries: Entries) -> None:
        redis = self._region.redis
        batch = incoming.admit(entries, HLC_MAX)
        for bad in batch.bad:
            redis.bury(bad.tenant, bad.reason)
            self._world.bad = True
        result = redis.follow(peer, token, log_id, first, batch.entries)
        if self._world.verbose:
            self._world.say(f"{token} follows {peer} {log_id} {first}+{len(entries)}: {_shown(result)}")
        if token != self.token:
            return
        self._offsets.pop(peer, None)
        offset = redis.state.offsets.get(peer)
        if offset is not None and result is not Step.RESYNC:
            self._offsets[peer] = offset
        self._world.changed()

    def _resync(self, peer: Region, resync: Resync) -> None:
        """Ask for the next part of the peer's whole map; last for what became current there since we began."""
        if resync.chunk < CHUNKS:
            part = [entry for entry in _in_buckets(peer, resync.buckets) if int(entry[0][1:]) % CHUNKS == resync.chunk]
        else:
            if not rules.can_follow(Offset(resync.offset.log_id, resync.feed_seq), peer.redis.feed_head()):
                del self._resyncs[peer.name]  # some of it was trimmed, or all of it rolled back: once more
                self._world.changed()
                return
            _, entries = peer.redis.read_feed(resync.feed_seq, ALL)
            part = [(entry.tenant, entry.value) for entry in entries if entry.value]
        answer = (peer.name, resync, resync.chunk, self._world.damaged(part))
        self._world.send(peer, self._region, self._resync_take, answer)

    def _resync_take(self, peer: str, resync: Resync, chunk: int, part: Entries) -> None:
        if self._resyncs.get(peer) is not resync or resync.chunk != chunk:
            return
        self._merge(peer, part)
        resync.chunk += 1
        if self._world.verbose:
            self._world.say(f"{self.token} resyncs from {peer} {resync.offset}: {resync.chunk} of {CHUNKS + 1}")
        if resync.chunk > CHUNKS:
            del self._resyncs[peer]
            redis = self._region.redis
            redis.resynced(peer, resync.offset, self.token, resync.own_log, resync.is_complete)
            self._offsets = dict(redis.state.offsets)
            self._world.check_claim(self._region, peer)
        self._world.changed()

    def _compare(self, redis: SimRedis, peer: Region) -> None:
        """Digests: what differs in the same at two looks in a row is fetched."""
        now = progress.differences(redis.digests(), peer.redis.digests())
        wanted = progress.lasting(self._looks.get(peer.name, {}), now)
        self._looks[peer.name] = now
        if wanted:
            part = self._world.damaged(_in_buckets(peer, wanted))
            self._world.send(peer, self._region, self._repair_take, (self.token, peer.name, part))
        self._world.changed()

    def _repair_take(self, token: str, peer: str, part: Entries) -> None:
        if token == self.token:
            self._merge(peer, part)

    def _merge(self, peer: str, part: Entries) -> None:
        redis = self._region.redis
        batch = incoming.admit(part, HLC_MAX)
        for bad in batch.bad:
            redis.bury(bad.tenant, bad.reason)
            self._world.bad = True
        wall_ms = EPOCH_MS + self._world.clock.now
        ours = redis.state.tenants
        wanted = [
            (tenant, value)
            for tenant, value in batch.entries
            if value and incoming.is_wanted(ours[tenant].value if tenant in ours else None, value, tenant, wall_ms)
        ]
        if wanted:
            outcomes = redis.merge(wanted, lease=self.token)
            if self._world.verbose:
                self._world.say(f"{self.token} merges from {peer}: {_shown(outcomes)}")
            self._world.changed()


class Gateway:
    """A gateway's control and its store, which outlives every Redis. It asks its own region's Redis and nobody else."""

    def __init__(self, world: World, region: Region, number: int) -> None:
        self._world = world
        self._region = region
        self.name = f"{region.name}#{number}"
        self.store: dict[str, Record] = {}
        self.offset: Offset | None = None
        self.origins: dict[str, Offset] = {}
        self.alarm = False
        self._asked = 0
        self._highest: dict[str, Version] = {}

    def tick(self, restores: bool = False) -> None:
        """Follow the feed, or compare whole. `restores`: an operator said that what is missing is to be put back."""
        redis = self._region.redis
        try:
            head = redis.feed_head()
            if self.offset is None or not rules.can_follow(self.offset, head):
                self._compare(redis, restores)
            elif self.offset.seq < head.last:
                first, entries = redis.read_feed(self.offset.seq, self._world.batch())
                answer = (self._asked, head.log_id, first, entries)
                self._world.send(self._region, self._region, self._take, answer)
        except Down:
            pass

    def _take(self, asked: int, log_id: str, first: int, entries: Sequence[FeedEntry]) -> None:
        if asked != self._asked:
            return  # one question at a time: a comparison began since
        for seq, entry in enumerate(entries, first):
            if rules.step(self.offset, log_id, seq) is not Step.APPLIED:
                continue
            if entry.value:
                self._put(entry.tenant, self._world.values.read(entry.tenant, entry.value))
            if entry.origin is not None:
                self._heard(*entry.origin)
            self.offset = Offset(log_id, seq)
            self._world.changed()

    def _heard(self, region: str, offset: Offset) -> None:
        known = self.origins.get(region)
        if known is None or known.log_id != offset.log_id or known.seq < offset.seq:
            self.origins[region] = offset

    def _put(self, tenant: str, record: Record) -> None:
        """As the store does: never an older one; an equal version takes its place."""
        known = self.store.get(tenant)
        if known is None or not newer(known.stamp.version, record.stamp.version):
            if known is not None:
                self._world.audit.overtook(tenant, known)
            self.store[tenant] = record
            if newer(self._highest.get(tenant, Version()), record.stamp.version):
                raise Broken(f"{self.name}: {tenant} went back to {record.stamp.version}")
            self._highest[tenant] = record.stamp.version

    def _compare(self, redis: SimRedis, restores: bool) -> None:
        """Both maps whole: what Redis lacks, or never heard of, is written back before anything of ours is replaced."""
        log, feed = redis.log_head(), redis.feed_head()
        offsets = dict(redis.state.offsets)
        tenants = redis.state.tenants.copy()
        missing = [tenant for tenant in self.store if tenant not in tenants]
        if missing and len(missing) == len(self.store) and not restores:
            self.alarm = True
            if self._world.verbose:
                self._world.say(f"{self.name}: all is gone, the last map stays")
            return
        self.alarm = False
        back = self._to_give_back(tenants)
        if log.log_id:
            offsets[self._region.name] = Offset(log.log_id, log.last)
        at = Offset(feed.log_id, feed.last) if feed.log_id else None
        self._asked += 1
        answer = (self._asked, at, offsets, tenants, back, restores)
        self._world.send(self._region, self._region, self._compared, answer)

    def _to_give_back(self, tenants: dict[str, Record]) -> Entries:
        """Our records that Redis lacks, or has an older one of.

        A store does not keep what a record replaced: it is given back as what came after the one that Redis has.
        """
        back: Entries = []
        for tenant, record in self.store.items():
            theirs = tenants.get(tenant)
            version = record.stamp.version
            if theirs is None or theirs.stamp.version < version:
                replaces = () if theirs is None else (theirs.stamp.version, *theirs.stamp.replaces)
                body = record.value.partition(b"\n")[2]
                back.append((tenant, rules.encode_value(tenant, version, replaces, body)))
                self._world.audit.rebuilt.add(tenant)
        return back

    def _compared(
        self,
        asked: int,
        at: Offset | None,
        offsets: dict[str, Offset],
        tenants: dict[str, Record],
        back: Entries,
        restores: bool,
    ) -> None:
        redis = self._region.redis
        if asked != self._asked:
            return
        if back:
            outcomes = redis.merge(back, relog=True)
            if self._world.verbose:
                self._world.say(f"{self.name} writes back: {_shown(outcomes)}")
            self._world.changed()
        if restores:
            redis.mark_complete()
        for tenant, record in tenants.items():
            self._put(tenant, record)
        for region, offset in offsets.items():
            self._heard(region, offset)
        if at != self.offset:
            self.offset = at
            self._world.changed()


def _in_buckets(peer: Region, buckets: Collection[str]) -> Entries:
    """What a peer's map has in these buckets."""
    if not buckets:
        return []
    tenants = peer.redis.state.tenants.items()
    return [(tenant, record.value) for tenant, record in tenants if incoming.bucket_of(record.value) in buckets]


def _shown(result: list[Outcome] | Step) -> str:
    return result.name if isinstance(result, Step) else "".join(result) or "-"
