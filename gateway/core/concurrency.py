"""How many requests an application may have in hand at once: a limit that follows its latency.

After Netflix's concurrency-limits (Gradient2) and Envoy's adaptive concurrency: the limit is multiplied by how the
latency of now stands to that of an application that does not queue, and a square root of itself is added as the queue
that it may always have. Four things are done otherwise, each for a failing that users of those reported:

- What the unqueued latency is, is learnt while no limit binds, and kept while one does. Netflix averages over minutes,
  so a lasting overload becomes the new normal and the limit climbs; Envoy lets next to nothing through to measure.
- A limit that was cut without any latency won was cut in vain: what it took for a queue is an application that has
  become slower, or another mix of requests. That latency is then the unqueued one, and the limit is what it was.
- Where that cannot tell, a *trial* does: the limit is halved for two windows. A queue loses latency by it and next to
  no throughput. As long as the unqueued latency was never seen without load (a worker that began in an overload), a
  halving that costs no throughput is kept and followed by the next one.
- A window's latency is the mean of its middle half: a few long polls do not raise it, nor does a change of the mix make
  it jump from one kind of request to the other, as a median does.

The limit shrinks only while it is used by half, and grows while it is used by a quarter: so it stands at some four
times of what a quiet application has in hand, and a burst finds room.

Pure: time and samples are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from math import sqrt
from typing import Final, NamedTuple

START: Final = 32
"""What one worker begins with: a fresh one must neither refuse a busy gateway's share nor flood a small application."""
TOLERANCE: Final = 1.5
"""Times the unqueued latency that is no sign of a queue yet (Gradient2's default)."""
SLACK_S: Final = 0.005
"""As that, absolute: an application that answers in 1 ms and now in 3 is not overloaded, the machine is busy."""
SHRINK_MAX: Final = 0.5
"""What one window may take at most: one bad window is not believed further (Gradient2's floor)."""
AIM_WEIGHT: Final = 0.6
"""How far one window takes the limit to where it points: windows of few samples point to and fro."""
GROWTH: Final = 0.25
"""What one window may add where latency is as good as unqueued: a burst finds its room within a second."""
USED_TO_SHRINK: Final = 0.5
USED_TO_GROW: Final = 0.25
UNUSED: Final = 0.125
"""Below this share of use the limit decays, so that what a busy hour left does not let a night's queue grow long."""
DECAY: Final = 0.99

WINDOW_MIN_S: Final = 0.1
WINDOW_LONG_S: Final = 2.0
SAMPLES_MIN: Final = 16
"""A window ends with so many samples, or with fewer after long; and never before one latency has passed: what it shows
must come of the limit that it judges."""
SAMPLES_MAX: Final = 512
"""Kept of a window: more do not make its middle better known."""
LEARN_S: Final = 10.0
"""The unqueued latency is the lowest of the last one to two times so long in which no limit bound."""
CALM_WEIGHT: Final = 0.2
"""Of one window among those: the lowest of many that vary would be too low."""
TRIAL_AFTER_S: Final = 30.0
"""How long a limit binds before a trial: two windows each so often at nine tenths of the throughput, at worst."""
TRIAL_UNSURE_S: Final = 10.0
"""As that, where the unqueued latency was only seen under load."""
FEWER: Final = 0.6
WON: Final = 0.8
"""With FEWER times as many in hand, a queue would be shorter: latency would be below WON times what it was."""
CONFIRMED: Final = 1.4
"""A trial that measures more than so many times what was known makes it unsure."""
UNHURT: Final = 0.95
"""A trial that let through so much of what went through before it shows that there is a queue still."""
RATE_WEIGHT: Final = 0.25
"""Of one window in what goes through: few samples make it vary."""


class Phase(Enum):
    """FOLLOW: the limit follows latency. EMPTY: it is halved, and what was in hand leaves. MEASURE: what is seen now
    is the unqueued latency."""

    FOLLOW = auto()
    EMPTY = auto()
    MEASURE = auto()


class Event(Enum):
    """A window ended. STALE: while the limit binds and what is known of the unqueued latency is old; UNHURT: as much
    went through as before the trial; WINDOW: otherwise."""

    STALE = auto()
    UNHURT = auto()
    WINDOW = auto()


PHASES: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.FOLLOW, Event.WINDOW): Phase.FOLLOW,
    (Phase.FOLLOW, Event.STALE): Phase.EMPTY,
    (Phase.EMPTY, Event.WINDOW): Phase.MEASURE,
    (Phase.MEASURE, Event.WINDOW): Phase.FOLLOW,
    (Phase.MEASURE, Event.UNHURT): Phase.EMPTY,
}
"""A trial cannot become stale, and only what was measured can be unhurt."""


def middle(samples: Sequence[float]) -> float:
    """The mean of the middle half of `samples`, of which there is at least one."""
    ordered = sorted(samples)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


class Cut(NamedTuple):
    """Where a limit began to be cut: its value, how many were in hand, and how long they took."""

    value: float
    peak: int
    latency_s: float


class Concurrency:
    """One worker's limit for one cluster. `low` and `high` bound it; `value` is what it follows to.

    `unqueued_s` and `latency_s` are 0 while nothing is known.
    """

    def __init__(self, low: int, high: int, now: float) -> None:
        self.low, self.high = low, high
        self.value = float(min(max(START, low), high))
        self.phase = Phase.FOLLOW
        self.latency_s = 0.0
        self.unqueued_s = 0.0
        self._sure = False
        self._sure_since = now
        self._calm_s = self._lowest_s = self._lowest_before_s = 0.0
        self._turned_at = now
        self._began = now
        self._rate = 0.0
        self._cut_from: Cut | None = None
        self._fewer = False

    @property
    def limit(self) -> float:
        """What holds now: half of `value` in a trial."""
        return self.value if self.phase is Phase.FOLLOW else max(float(self.low), self.value / 2)

    def bound(self, low: int, high: int) -> None:
        """Take other bounds: a reload's."""
        self.low, self.high = low, high
        self.value = min(max(self.value, low), high)

    def due(self, samples: Sequence[float], now: float) -> bool:
        """Whether the window may end: after one latency of its samples, with enough of them or after long."""
        age = now - self._began
        if age < WINDOW_MIN_S or not samples or (len(samples) < SAMPLES_MIN and age < WINDOW_LONG_S):
            return False
        return age >= middle(samples)

    def end_window(self, samples: Sequence[float], done: int, peak: int, own_lag_s: float, now: float) -> None:
        """Judge one window: its latencies in seconds, at least one; how many requests were answered, of which those
        are a sample; the most that were in hand; and what of their latency is our own, because this worker was busy."""
        rate = done / (now - self._began)
        self._began = now
        self.latency_s = latency = middle(samples)
        if self.phase is Phase.FOLLOW:
            self._rate += (rate - self._rate) * RATE_WEIGHT
            self._follow(latency, len(samples), peak, own_lag_s, now)
            return
        event = Event.WINDOW
        if self.phase is Phase.MEASURE:
            kept = not self._sure and rate >= self._rate * UNHURT and self.limit > self.low
            if kept:
                self.value, event = self.limit, Event.UNHURT
            self._know(latency, kept or latency <= self.unqueued_s * CONFIRMED or not self._sure, now)
        self.phase = PHASES[self.phase, event]

    def _follow(self, latency: float, count: int, peak: int, own_lag_s: float, now: float) -> None:
        if not self.unqueued_s:
            self._know(latency, False, now)
        known = self.unqueued_s
        wanted = known * TOLERANCE + SLACK_S + own_lag_s
        value = self.value
        if latency > wanted and peak >= value * USED_TO_SHRINK:
            if self._in_vain(latency, peak):
                return
            aim = value * max(SHRINK_MAX, wanted / latency) + sqrt(value)
            self.value = self._bounded(value + (aim - value) * AIM_WEIGHT)
            stale = now - self._sure_since >= (TRIAL_AFTER_S if self._sure else TRIAL_UNSURE_S)
            self.phase = PHASES[self.phase, Event.STALE if stale else Event.WINDOW]
            return
        if latency <= wanted and peak >= value * USED_TO_GROW:
            calm = latency <= (known * TOLERANCE + known) / 2 + SLACK_S
            self.value = self._bounded(value + (max(sqrt(value), value * GROWTH) if calm else sqrt(value)))
        elif peak < value * UNUSED:
            self.value = self._bounded(max(value * DECAY, min(value, START)))
        if peak < value * USED_TO_SHRINK:
            self._cut_from = None
            if count >= SAMPLES_MIN or not self._sure:
                self._learn(latency, now)

    def _bounded(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def _in_vain(self, latency: float, peak: int) -> bool:
        """Whether cutting the limit has won nothing: then what was taken for a queue is how long it takes."""
        cut = self._cut_from
        if cut is None:
            self._cut_from, self._fewer = Cut(self.value, peak, latency), False
            return False
        if peak > cut.peak * FEWER:  # what latency an earlier window's crowd met may show only now: the worst counts
            at_most = Cut(max(cut.value, self.value), max(cut.peak, peak), max(cut.latency_s, latency))
            self._cut_from, self._fewer = at_most, False
        elif not self._fewer:
            self._fewer = True  # those who were in hand before are still among this window's samples
        elif latency < cut.latency_s * WON:
            self._cut_from, self._fewer = Cut(self.value, peak, latency), False
        else:
            self.value = self._bounded(cut.value)
            self._know(latency, False, self._began)
            return True
        return False

    def _know(self, latency: float, sure: bool, now: float) -> None:
        """Take a latency for the unqueued one."""
        self.unqueued_s = self._calm_s = self._lowest_s = self._lowest_before_s = latency
        self._sure, self._sure_since, self._turned_at = sure, now, now
        self._cut_from = None

    def _learn(self, latency: float, now: float) -> None:
        """No limit is in the way: what is seen now is how long it takes."""
        self._calm_s += (latency - self._calm_s) * CALM_WEIGHT if self._calm_s else latency
        latency = self._calm_s
        if now - self._turned_at >= LEARN_S:
            self._turned_at = now
            self._lowest_before_s, self._lowest_s = self._lowest_s, latency
        self._lowest_s = min(self._lowest_s, latency) if self._lowest_s else latency
        before = self._lowest_before_s
        self.unqueued_s = min(self._lowest_s, before) if before else self._lowest_s
        self._sure, self._sure_since = True, now
