"""The time in which the lease is ours, and what everybody who writes for this region shares in it: our Redis, the
token that fences each write, counters, the server's clock, and the two ways in which values of a peer come in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gateway.control.replication.counters import APPLIED, BAD_VALUES, CONFLICTS, FAR_AHEAD, Counters
from gateway.control.replication.incoming import Bad, Batch, admit, bad_to_the_end
from gateway.control.replication.region_map import Letter, MapHead, Merged, RegionMap
from gateway.core.replication import (
    CONFLICTS as CONFLICTING,
)
from gateway.core.replication import (
    FAR_AHEAD_MS,
    BadValue,
    Outcome,
    Step,
    decode_value,
)

LOG = logging.getLogger("landbridge.replicator")

LETTERS_MAX: Final = 10_000
"""A peer whose whole map is garbage must not fill our Redis with it: what is beyond is counted and logged only."""

LINES_MAX: Final = 20
LINES_EVERY_S: Final = 10.0
"""Lines of one kind that the log gets in so many seconds; the rest is told as a number."""


class Taken(NamedTuple):
    """How many values became the current ones, and how many conflicts there were."""

    applied: int
    conflicts: int


class Lines:
    """Log lines of one kind, so many in a while. `now` is monotonic seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since = 0.0
        self._said = 0
        self._kept_back = 0

    def warn(self, now: float, text: str, *arguments: object) -> None:
        if now - self._since >= LINES_EVERY_S:
            if self._kept_back:
                LOG.warning("%d more %s", self._kept_back, self._what)
            self._since, self._said, self._kept_back = now, 0, 0
        if self._said >= LINES_MAX:
            self._kept_back += 1
            return
        self._said += 1
        LOG.warning(text, *arguments)


class Tenure:
    """See the module. `complete` is whether our map is, as far as was heard."""

    def __init__(self, own: RegionMap, token: str, counters: Counters, now: Callable[[], float]) -> None:
        self.own = own
        self.token = token
        self.counters = counters
        self.now = now
        self.complete = False
        self.log_id = ""
        self.slack_ms: dict[str, int] = {}
        """How far ahead of the clock a peer's records may be for no other reason than that it wrote many at once: each
        write moves its hybrid clock on by a millisecond at least."""
        self._clock_ms = time.time_ns() // 1_000_000
        self._clock_at = now()
        self._conflict_lines = Lines("conflicts")
        self._bad_lines = Lines("values that are no records")
        self._clock_lines = Lines("records from the future")

    def heard(self, head: MapHead, at: float) -> None:
        """What our own map said of itself at `at`."""
        self.complete = head.complete
        self.log_id = head.log_id
        self._clock_ms, self._clock_at = head.clock_ms, at

    def clock_ms(self) -> int:
        """Our Redis's clock, as far as it can be told without asking."""
        return self._clock_ms + int((self.now() - self._clock_at) * 1000)

    async def follow(
        self, peer: str, log_id: str, first_seq: int, entries: Sequence[tuple[str, bytes]]
    ) -> Taken | Step:
        """Take in dense entries of a peer's log; what is no record goes to the letters, and counts."""
        batch = self._admit(peer, entries)
        await self._bury(peer, batch.bad)
        merged = await self.own.follow(peer, log_id, first_seq, batch.entries, self.token)
        if isinstance(merged, Step):
            return merged
        await self._bury(peer, bad_to_the_end(batch), again=True)
        return self._count(peer, batch.entries[merged.duplicates :], merged)

    async def merge(self, source: str, entries: Sequence[tuple[str, bytes]]) -> Taken:
        """Take in values of a peer's map, in no order."""
        batch = self._admit(source, entries)
        await self._bury(source, batch.bad)
        good = [entry for entry in batch.entries if entry[1]]
        if not good:
            return Taken(0, 0)
        return self._count(source, good, await self.own.merge(good, lease=self.token))

    def _admit(self, source: str, entries: Sequence[tuple[str, bytes]]) -> Batch:
        batch = admit(entries, self.clock_ms() + FAR_AHEAD_MS + self.slack_ms.get(source, 0))
        if batch.far_ahead:
            self.counters.count(FAR_AHEAD, len(batch.far_ahead))
            tenant, value = batch.entries[batch.far_ahead[0]]
            version = value.split(b" ", 2)[1].decode()
            self._clock_lines.warn(
                self.now(),
                "%s: version %s of tenant %s, and %d more, are over %d s ahead of the clock here (%d): taken in",
                source,
                version,
                tenant,
                len(batch.far_ahead) - 1,
                FAR_AHEAD_MS // 1000,
                self.clock_ms(),
            )
        return batch

    async def _bury(self, source: str, bad: Sequence[Bad], again: bool = False) -> None:
        if not bad:
            return
        if not again:
            self.counters.count(BAD_VALUES, len(bad), source)
        room = LETTERS_MAX - await self.own.dead_count()
        for at, (tenant, value, reason) in enumerate(bad):
            if not again:
                self._bad_lines.warn(self.now(), "%s: tenant %.80r: %s: not taken in", source, tenant, reason)
            if at < room or again:
                await self.own.bury(Letter(tenant, source, reason, self.clock_ms(), value))

    def _count(self, source: str, entries: Sequence[tuple[str, bytes]], merged: Merged) -> Taken:
        outcomes = merged.outcomes
        applied = outcomes.count(Outcome.APPLIED) + outcomes.count(Outcome.CONFLICT_WON)
        self.counters.count(APPLIED, applied, source)
        if not merged.ours:
            return Taken(applied, 0)
        self.counters.count(CONFLICTS, len(merged.ours))
        judged = [entry for entry in entries if entry[1]]
        assert len(judged) == len(outcomes), "each value that is not empty is judged"
        ours = iter(merged.ours)
        for (tenant, value), outcome in zip(judged, outcomes, strict=True):
            if outcome in CONFLICTING:
                kept, lost = next(ours), value
                if outcome is Outcome.CONFLICT_WON:
                    kept, lost = lost, kept
                self._conflict_lines.warn(
                    self.now(),
                    "conflict over tenant %s with %s: %s stays, %s is in its history",
                    tenant,
                    source,
                    told(tenant, kept),
                    told(tenant, lost),
                )
        return Taken(applied, len(merged.ours))


def told(tenant: str, value: bytes) -> str:
    """A record in one line of the log."""
    try:
        record = decode_value(tenant, value)
    except BadValue as error:
        return f"a value that is no record ({error})"
    standby = f" standby {','.join(record.standby)}" if record.standby else ""
    by = f" by {record.by}" if record.by else ""
    return f"{record.version} ({record.state.value} in {record.home}{standby}{by})"
