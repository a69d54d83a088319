"""One region's Redis in memory: what `functions.lua` does, on the rules of `core/replication.py`, and what befalls it.

The operations have the names, the checks and the order of the function's. What a server does besides is here too: it is
down, it starts again from what it had synced, a replica is promoted that lacks the last seconds, somebody empties it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gateway.core import replication as rules
from gateway.core.placement import Version
from gateway.core.replication import Head, Offset, Outcome, Stamp, Step

HISTORY_MAX: Final = 20
LEASE_MS: Final = 3000
EPOCH_MS: Final = 1_800_000_000_000
"""Where every wall clock begins."""
PASTS_MAX: Final = 40
"""Earlier states that are kept to fall back to."""

Origin = tuple[str, Offset]


class Broken(AssertionError):
    """A promise was not kept: the seed that led here is a bug's."""


class Down(Exception):
    """No answer: the server is down, or cannot be reached."""


class LeaseLost(Exception):
    """Another replicator holds the lease: nothing was written."""


class Record(NamedTuple):
    value: bytes
    stamp: Stamp


class FeedEntry(NamedTuple):
    """Tenant "" is a marker: only its origin counts."""

    tenant: str
    value: bytes
    origin: Origin | None


class _State:
    """Everything that a server holds, and a replica holds a little later."""

    __slots__ = (
        "complete",
        "dead",
        "digest",
        "feed",
        "feed_first",
        "history",
        "hlc",
        "lease",
        "lease_until",
        "log",
        "log_first",
        "log_id",
        "offsets",
        "run",
        "tenants",
    )

    def __init__(self) -> None:
        self.tenants: dict[str, Record] = {}
        self.history: dict[str, tuple[Record, ...]] = {}
        self.digest: dict[str, int] = {}
        self.offsets: dict[str, Offset] = {}
        self.dead: dict[str, str] = {}
        self.log: list[tuple[str, bytes]] = []
        self.feed: list[FeedEntry] = []
        self.log_first = self.feed_first = 1
        self.hlc = self.run = 0
        self.log_id = ""
        self.complete = False
        self.lease = ""
        self.lease_until = 0

    def copied(self) -> _State:
        copy = _State()
        copy.tenants = self.tenants.copy()
        copy.history = self.history.copy()
        copy.digest = self.digest.copy()
        copy.offsets = self.offsets.copy()
        copy.dead = self.dead.copy()
        copy.log = self.log.copy()
        copy.feed = self.feed.copy()
        copy.log_first, copy.feed_first = self.log_first, self.feed_first
        copy.hlc, copy.run, copy.log_id, copy.complete = self.hlc, self.run, self.log_id, self.complete
        copy.lease, copy.lease_until = self.lease, self.lease_until
        return copy


class Clock:
    """A server's wall clock beside the time that passes for all."""

    def __init__(self) -> None:
        self.now = 0
        """Milliseconds since the beginning: never goes back."""
        self.ahead_ms: dict[str, int] = {}


Judged = Callable[[str, Record | None, Record, Outcome, set[Version]], None]


class Values:
    """Values that were read once, with what they say: a pure function's answers, kept for a run."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, bytes], Record] = {}

    def read(self, tenant: str, value: bytes) -> Record:
        """Raises BadValue."""
        record = self._records.get((tenant, value))
        if record is None:
            record = self._records[tenant, value] = Record(value, rules.check_value(tenant, value))
        return record

    def wrote(self, tenant: str, version: Version, replaces: tuple[Version, ...], body: bytes) -> Record:
        """A value that is written here and now."""
        value = rules.encode_value(tenant, version, replaces, body)
        total = value[value.index(b"\n") - rules.SUM_DIGITS :][: rules.SUM_DIGITS].decode()
        record = self._records[tenant, value] = Record(value, Stamp(version, replaces, total))
        return record


class SimRedis:
    """The server of one region; `judged` is told every verdict."""

    def __init__(self, region: str, clock: Clock, values: Values, judged: Judged) -> None:
        self.region = region
        self.is_up = True
        self.keeps_pasts = False
        self._time = clock
        self._values = values
        self._judged = judged
        self._state = _State()
        self._run = 1
        self._logs = 0
        self._pasts: list[tuple[int, _State]] = []

    def _clock(self) -> int:
        return EPOCH_MS + self._time.now + self._time.ahead_ms[self.region]

    # --- reading

    @property
    def state(self) -> _State:
        """What is there, for a command; Down when nobody answers."""
        if not self.is_up:
            raise Down
        return self._state

    @property
    def inside(self) -> _State:
        """What is there, for whoever looks on from outside."""
        return self._state

    @property
    def run(self) -> int:
        """Which process this is."""
        return self._run

    def log_head(self) -> Head:
        state = self.state
        return Head(state.log_id, state.log_first, len(state.log))

    def feed_head(self) -> Head:
        state = self.state
        return Head(state.log_id, state.feed_first, len(state.feed))

    def read_log(self, after: int, count: int) -> tuple[int, list[tuple[str, bytes]]]:
        """The seq of the first entry beyond `after` that is still there, and so many from it on."""
        state = self.state
        first = max(after + 1, state.log_first)
        return first, state.log[first - 1 : first - 1 + count]

    def read_feed(self, after: int, count: int) -> tuple[int, list[FeedEntry]]:
        state = self.state
        first = max(after + 1, state.feed_first)
        return first, state.feed[first - 1 : first - 1 + count]

    def get(self, tenant: str) -> Record | None:
        return self.state.tenants.get(tenant)

    def digests(self) -> dict[str, str]:
        return {bucket: f"{digest:016x}" for bucket, digest in self.state.digest.items()}

    # --- the function

    def _own_the_log(self) -> _State:
        state = self.state
        if self.keeps_pasts:
            self._remember()
        if state.run != self._run or not state.log_id:
            now = self._clock()
            if state.log_id:
                state.hlc = max(now, state.hlc) + rules.FAILOVER_MARGIN_MS
            self._logs += 1
            state.run = self._run
            state.log_id = f"{self.region}.{self._logs}"
        return state

    def begin(self) -> None:
        self._own_the_log()

    def write(self, tenant: str, expected: Version | None, epoch: int, body: bytes) -> Record | None:
        """The new record; None when the one here is another than expected."""
        state = self._own_the_log()
        was = state.tenants.get(tenant)
        if (None if was is None else was.stamp.version) != expected or (was and epoch < was.stamp.version.epoch):
            return None
        known = state.hlc if was is None else max(state.hlc, was.stamp.version.hlc)
        version = Version(epoch, rules.next_hlc(self._clock(), known), self.region)
        replaces = rules.lineage(was.stamp if was else None)
        record = self._values.wrote(tenant, version, replaces, body)
        self._put(state, tenant, record, was)
        state.log.append((tenant, record.value))
        state.feed.append(FeedEntry(tenant, record.value, (self.region, Offset(state.log_id, len(state.log)))))
        return record

    def follow(
        self, peer: str, lease: str, log_id: str, first: int, entries: Sequence[tuple[str, bytes]]
    ) -> list[Outcome] | Step:
        state = self.state
        self._fence(state, lease)
        offset = state.offsets.get(peer)
        verdict = rules.step(offset, log_id, first)
        if verdict in (Step.GAP, Step.RESYNC):
            return verdict
        self._own_the_log()
        outcomes: list[Outcome] = []
        is_told = True
        for seq, (tenant, value) in enumerate(entries, first):
            if rules.step(offset, log_id, seq) is Step.APPLIED:
                if offset is None or (offset.log_id == log_id and seq != offset.seq + 1):
                    raise Broken(f"{self.region} takes {seq} of {peer} {log_id}, and is at {offset}")
                offset = Offset(log_id, seq)
                if value:
                    outcomes.append(self._take(state, tenant, value, (peer, offset)))
                is_told = bool(value) and outcomes[-1] in rules.TAKES
        if offset is not None and rules.goes_forward(state.offsets.get(peer), offset, resynced=False):
            state.offsets[peer] = offset
            if not is_told:
                state.feed.append(FeedEntry("", b"", (peer, offset)))
        return outcomes

    def merge(self, entries: Sequence[tuple[str, bytes]], *, lease: str = "", relog: bool = False) -> list[Outcome]:
        state = self.state
        self._fence(state, lease)
        self._own_the_log()
        outcomes: list[Outcome] = []
        for tenant, value in entries:
            origin = (self.region, Offset(state.log_id, len(state.log) + 1)) if relog else None
            outcomes.append(self._take(state, tenant, value, origin))
            if relog and outcomes[-1] in rules.TAKES:
                state.log.append((tenant, value))
        return outcomes

    def resynced(self, peer: str, offset: Offset, lease: str, own_log: str, complete: bool) -> None:
        """Nothing, if our log is not called `own_log` any more: what was compared may be lost again."""
        state = self.state
        self._fence(state, lease)
        self._own_the_log()
        if state.log_id != own_log:
            return
        before = state.offsets.get(peer)
        if rules.goes_forward(before, offset, resynced=True):
            if before is not None and before.log_id == offset.log_id and offset.seq < before.seq:
                raise Broken(f"{self.region} goes back from {before} to {offset}")
            state.offsets[peer] = offset
        state.complete = state.complete or complete
        state.feed.append(FeedEntry("", b"", (peer, offset)))

    def mark_complete(self) -> None:
        self._own_the_log().complete = True

    def bury(self, tenant: str, reason: str) -> None:
        self.state.dead[tenant] = reason

    def acquire(self, token: str) -> bool:
        """Whether the lease is ours now. One that lives longer than any was given is of a clock that went back."""
        state = self.state
        now = self._clock()
        if state.lease not in ("", token) and now < state.lease_until <= now + LEASE_MS:
            return False
        state.lease, state.lease_until = token, now + LEASE_MS
        return True

    def _fence(self, state: _State, lease: str) -> None:
        if lease and (state.lease != lease or self._clock() >= state.lease_until):
            raise LeaseLost

    def _take(self, state: _State, tenant: str, value: bytes, origin: Origin | None) -> Outcome:
        incoming = self._values.read(tenant, value)
        was = state.tenants.get(tenant)
        past = state.history.get(tenant, ())
        history = {record.stamp.version for record in past}
        outcome = rules.judge(was.stamp if was else None, incoming.stamp, history)
        self._judged(tenant, was, incoming, outcome, history)
        if outcome in rules.TAKES:
            self._put(state, tenant, incoming, was)
            state.feed.append(FeedEntry(tenant, value, origin))
        elif outcome is Outcome.CONFLICT_LOST:
            state.history[tenant] = (incoming, *past)[:HISTORY_MAX]
            state.hlc = max(state.hlc, incoming.stamp.version.hlc)
        state.dead.pop(tenant, None)
        return outcome

    def _put(self, state: _State, tenant: str, record: Record, was: Record | None) -> None:
        digest = state.digest
        if was is not None:
            state.history[tenant] = (was, *state.history.get(tenant, ()))[:HISTORY_MAX]
            self._count(digest, was.stamp.sum)
        self._count(digest, record.stamp.sum)
        state.tenants[tenant] = record
        state.hlc = max(state.hlc, record.stamp.version.hlc)

    @staticmethod
    def _count(digest: dict[str, int], total: str) -> None:
        bucket = total[:2]
        digest[bucket] = digest.get(bucket, 0) ^ int(total, 16)
        if not digest[bucket]:
            del digest[bucket]

    # --- what befalls a server

    def _remember(self) -> None:
        self._pasts.append((self._time.now, self._state.copied()))
        del self._pasts[:-PASTS_MAX]

    def fall_back(self, since_ms: int, calls: int) -> bool:
        """Another process takes over that lacks the last `calls` of the function, as far as they were made since then.

        Whether there were any.
        """
        earlier = self._state
        for at, past in reversed(self._pasts[len(self._pasts) - calls :] if calls else ()):
            if at < since_ms:
                break
            earlier = past
        self._pasts.clear()
        self._run += 1
        is_less = earlier is not self._state
        if is_less:
            self._state = earlier
        self.is_up = True
        return is_less

    def flush(self) -> None:
        """FLUSHALL, by the same process."""
        self._state = _State()
        self._pasts.clear()

    def trim(self, log_first: int, feed_first: int) -> None:
        """Forget what is below: at most up to the ends."""
        state = self._state
        state.log_first = max(state.log_first, min(log_first, len(state.log) + 1))
        state.feed_first = max(state.feed_first, min(feed_first, len(state.feed) + 1))
