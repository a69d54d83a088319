"""How one peer's log is followed, the part that only thinks: what to do next, how far behind we are, what to say of it.

Pure: `now` is monotonic seconds and an argument, so that tests and the simulator run on the same rules as the
process. What an entry or a head means for a follower stands in `core/replication.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from gateway.core.replication import Head, Offset, Step, can_follow, step

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
"""A peer that is back is heard again within this, and a dead one costs a try a second."""

UNREACHABLE_S: Final = 3.0
"""How long tries may fail before a peer counts as unreachable: a restart of its Redis is shorter."""

HEARD_S: Final = 1.5
"""A peer that was heard this long ago, with nothing missing, is not behind: it is asked twice a second."""

SAMPLES_MAX: Final = 64
"""Heads remembered while we are behind: enough to tell the lag to a few percent, however long it lasts."""

READ_FIRST: Final = 100
READ_MAX: Final = 5000
READ_BYTES_MAX: Final = 4 << 20
"""Entries a read asks for: few at first, then as many as stay below so many bytes, whatever their size. So a region
that is a fifth of a second away and writes ten thousand a second is kept up with."""


def read_count(asked: int, came: int, size_bytes: int) -> int:
    """How many entries the next read asks for, after one of `came` entries of `size_bytes`."""
    if size_bytes > READ_BYTES_MAX:
        return max(1, asked // 2)
    if came == asked and size_bytes * 2 <= READ_BYTES_MAX:
        return min(READ_MAX, asked * 2)
    return asked


def read_count_after_failure(asked: int) -> int:
    """How many the next read asks for after one that failed: it may have been too much for the line."""
    return max(1, min(READ_FIRST, asked // 2))


class Condition(StrEnum):
    """What goes on with a peer."""

    FOLLOWING = "following"
    RETRYING = "retrying"
    """Something failed a moment ago, and is tried again."""
    RESYNCING = "resyncing"
    """Both maps are compared whole: counting on would skip something."""
    UNREACHABLE = "unreachable"
    """Every try has failed for a while. Nothing is lost, its log is followed from our offset once it is back."""


class Next(StrEnum):
    """What a follower that sees a peer's head does."""

    FOLLOW = "follow"
    RESYNC = "resync"
    WAIT = "wait"
    """Nothing was ever written there: there is no log yet."""


def what_next(offset: Offset | None, head: Head, *, complete: bool, peer_complete: bool) -> Next:
    """Follow the log, compare whole, or wait. `complete`: whether our map is, `peer_complete`: whether theirs is.

    A map that is not complete becomes so by comparing it with a complete one, even if no entry of the log is missing:
    what the peer had from others stands in no log that we follow there.
    """
    if not head.log_id:
        return Next.WAIT
    if not can_follow(offset, head) or (peer_complete and not complete):
        return Next.RESYNC
    return Next.FOLLOW


def first_fault(offset: Offset, seqs: Sequence[int]) -> Step | None:
    """Why a read of the log beyond `offset` cannot be followed; None when it is dense, which takes two looks.

    Seqs grow strictly, Redis sees to that: so the ends tell whether one is missing.
    """
    if not seqs or (seqs[0] == offset.seq + 1 and seqs[-1] == offset.seq + len(seqs)):
        return None
    first = step(offset, offset.log_id, seqs[0])
    return first if first is not Step.APPLIED else Step.GAP


class Lag:
    """How far we are behind one peer, in records and in seconds.

    Seconds are measured on our own monotonic clock: the age of the last moment of which it is known that everything
    that had been written there by then is here. No two clocks are ever compared.
    """

    def __init__(self, now: float, behind_s: float = 0.0) -> None:
        """`behind_s`: what the one before us knew, plus the time since."""
        self._fresh_at = now - behind_s
        self._heard_at: float | None = None
        self._head = 0
        self._here = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._spacing_s = 0.0

    def moved(self, seq: int) -> None:
        """We are at `seq` of the log, or of another one: what was known of its head does not count any more."""
        self._samples.clear()
        self._head = self._here = seq

    def unknown(self) -> None:
        """It cannot be told what is missing, until the peer is heard again."""
        self._heard_at = None

    def heard(self, asked_at: float, last: int) -> None:
        """The log ended at `last`, at `asked_at` or later. `asked_at` never goes back."""
        self._heard_at = asked_at
        self._head = max(self._head, last)
        if last <= self._here:
            self._fresh_at = max(self._fresh_at, asked_at)
            return
        if not self._samples:
            self._spacing_s = 0.0
        elif asked_at - self._samples[-1][0] < self._spacing_s:
            return
        self._samples.append((asked_at, last))
        if len(self._samples) > SAMPLES_MAX:
            self._samples = deque(list(self._samples)[::2])
            self._spacing_s = 2 * (asked_at - self._samples[0][0]) / SAMPLES_MAX

    def applied(self, seq: int) -> None:
        """Everything up to `seq` is here."""
        self._here = max(self._here, seq)
        while self._samples and self._samples[0][1] <= self._here:
            self._fresh_at = max(self._fresh_at, self._samples.popleft()[0])

    @property
    def records(self) -> int:
        """Entries that are known to be there and are not here."""
        return max(0, self._head - self._here)

    def seconds(self, now: float) -> float:
        """0 when nothing is missing and the peer was heard just now."""
        if not self.records and self._heard_at is not None and now - self._heard_at <= HEARD_S:
            return 0.0
        return max(0.0, now - self._fresh_at)


def condition_of(failing_since: float | None, resyncing: bool, now: float) -> Condition:
    """`failing_since`: when the first of the failures in a row was; None after a success."""
    if failing_since is not None:
        return Condition.UNREACHABLE if now - failing_since >= UNREACHABLE_S else Condition.RETRYING
    return Condition.RESYNCING if resyncing else Condition.FOLLOWING


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, int]:
    """The buckets in which two maps differ, and in what: the exclusive or of all sums that one of the two lacks.

    A bucket that is not there is one without records.
    """
    found = {
        bucket: _digest(ours.get(bucket, "0")) ^ _digest(theirs.get(bucket, "0"))
        for bucket in ours.keys() | theirs.keys()
    }
    return {bucket: difference for bucket, difference in found.items() if difference}


def _digest(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 1 << 64  # somebody's hand: it is no digest, and equal to none


def lasting(before: Mapping[str, int], now: Mapping[str, int]) -> frozenset[str]:
    """The buckets that differ in the same at two looks. What is only on its way differs in something else by then."""
    return frozenset(bucket for bucket, difference in now.items() if before.get(bucket) == difference)
