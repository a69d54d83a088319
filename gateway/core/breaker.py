"""A circuit breaker: a rolling window of how tries ended, and a table of states (Nygard, Release It!, 2007).

It trips when at least `error_rate` of at least `min_requests` tries of the last `window` failed. Then nothing passes
for `open`, doubled with each trip that follows too soon, and jittered, so that gateways do not come back together.
After that single requests pass as probes, and once those succeeded a growing share of all does, so that what has just
recovered is not thrown down by everybody's return. An operator may force it either way, for a time.

Pure: `now` is monotonic seconds, `chance` is in [0, 1). Whose tries are told to it, and when it trips, is up to the
owner (`core.blame`); it never trips by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

BUCKETS: Final = 10
"""A window moves in tenths, at the same moments for all of its length: one can be taken out of another."""

JITTER: Final = 0.2
"""An open time is shortened by up to this share, never lengthened: `open_max` is a promise."""

RAMP_FIRST: Final = 0.1
"""The share that passes as a ramp begins."""

DOUBLINGS_MAX: Final = 30
"""More would only overflow: `open_max` bounds what comes of them."""


class State(Enum):
    """What a breaker does with the next request. The values are what operators read."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RAMPING = "ramping"
    FORCED_OPEN = "forced_open"
    FORCED_CLOSED = "forced_closed"


class Event(Enum):
    """What may happen to a breaker. `WAITED`: its open time is over; `RELEASED`: a forced state ended."""

    TRIPPED = "tripped"
    WAITED = "waited"
    PROBES_OK = "probes_ok"
    PROBE_FAILED = "probe_failed"
    RAMPED = "ramped"
    FORCED_OPEN = "forced_open"
    FORCED_CLOSED = "forced_closed"
    RELEASED = "released"


_FORCED: Final = {
    (state, event): target
    for state in State
    for event, target in ((Event.FORCED_OPEN, State.FORCED_OPEN), (Event.FORCED_CLOSED, State.FORCED_CLOSED))
}

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBES_OK): State.RAMPING,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.RAMPING, Event.TRIPPED): State.OPEN,
    (State.RAMPING, Event.RAMPED): State.CLOSED,
    (State.FORCED_OPEN, Event.RELEASED): State.HALF_OPEN,  # nobody knows how it fares: ask, do not flood
    (State.FORCED_CLOSED, Event.RELEASED): State.CLOSED,
    **_FORCED,
}
"""A pair that is not here cannot happen."""

SHOWN: Final = {state: number for number, state in enumerate(State)}
"""The numbers of `landbridge_breaker_state`: in the order of the states."""

# Bound once: looking an enum member up by its class costs more than the comparison it is for.
_CLOSED: Final = State.CLOSED
_FORCED_CLOSED: Final = State.FORCED_CLOSED
_HALF_OPEN: Final = State.HALF_OPEN
_RAMPING: Final = State.RAMPING


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When it trips, and how it comes back. Seconds; `min_requests` is one worker's share of the gateway's.

    `fallback` is the cluster that answers in place of one whose breaker refuses.
    """

    error_rate: float = 0.5
    min_requests: int = 20
    window: float = 2.0
    open: float = 5.0
    open_max: float = 60.0
    probes: int = 2
    probe_interval: float = 1.0
    ramp: float = 3.0
    fallback: str | None = None


class Window:
    """Counts of the last `window_s` seconds: all tries, and those that failed.

    `failing_since` is when the first failure came of those that it has held without a pause; None while it holds none.
    Successes of the tenth that runs until `ends` may be counted in `fresh` by whoever is in a hurry.
    """

    __slots__ = (
        "_at",
        "_failed",
        "_number",
        "_past",
        "_totals",
        "_width",
        "ends",
        "failing_since",
        "failures",
        "fresh",
    )

    def __init__(self, window_s: float, now: float) -> None:
        self._width = window_s / BUCKETS
        self.clear(now)

    def clear(self, now: float) -> None:
        self._past = self.fresh = self.failures = self._at = 0
        self.failing_since: float | None = None
        self._totals = [0] * BUCKETS
        self._failed = [0] * BUCKETS
        self._number = int(now / self._width)
        self.ends = (self._number + 1) * self._width

    @property
    def total(self) -> int:
        """All tries, failures included."""
        return self._past + self.fresh

    def add(self, ok: bool, now: float) -> None:
        """One try ended."""
        if now >= self.ends:
            self.advance(now)
        self.fresh += 1
        if not ok:
            if not self.failures:
                self.failing_since = now
            self.failures += 1
            self._failed[self._at] += 1

    def advance(self, now: float) -> None:
        """Let go of what is older than the window."""
        if now < self.ends:
            return
        number = int(now / self._width)
        steps = number - self._number
        if steps >= BUCKETS:
            self.clear(now)
            return
        self._number, self.ends = number, (number + 1) * self._width
        self._settle()
        for _ in range(steps):
            self._at = at = (self._at + 1) % BUCKETS
            self._past -= self._totals[at]
            self.failures -= self._failed[at]
            self._totals[at] = self._failed[at] = 0
        if not self.failures:
            self.failing_since = None

    def _settle(self) -> None:
        self._totals[self._at] += self.fresh
        self._past += self.fresh
        self.fresh = 0

    def withdraw(self, other: Window, now: float) -> None:
        """Take out what `other`, of the same length, holds: as if it had not been told here."""
        self.advance(now)
        other.advance(now)
        self._settle()
        other._settle()
        for back in range(BUCKETS):
            mine, theirs = (self._at - back) % BUCKETS, (other._at - back) % BUCKETS
            total = min(self._totals[mine], other._totals[theirs])
            failed = min(self._failed[mine], other._failed[theirs])
            self._totals[mine] -= total
            self._failed[mine] -= failed
            self._past -= total
            self.failures -= failed
        if not self.failures:
            self.failing_since = None


class Breaker:
    """One breaker: of a cluster, or of a tenant at a cluster. `since` is when its state began, `until` when that ends
    by time (0: not by time), `trips` how often it opened in a row; `reason` is an operator's, of a forced state."""

    __slots__ = (
        "_credit",
        "_open_s",
        "_probe_at",
        "_proved",
        "reason",
        "rule",
        "since",
        "state",
        "trips",
        "until",
        "window",
    )

    def __init__(self, rule: BreakerRule, now: float) -> None:
        self.rule = rule
        self.window = Window(rule.window, now)
        self.state = State.CLOSED
        self.since = now
        self.until = 0.0
        self.trips = 0
        self.reason = ""
        self._open_s = 0.0
        self._probe_at = 0.0
        self._proved = 0
        self._credit = 0.0

    def use(self, rule: BreakerRule, now: float) -> None:
        """Go by another rule from now on; a window of another length begins empty."""
        if rule.window != self.rule.window:
            self.window = Window(rule.window, now)
        self.rule = rule

    # ---- what it is asked

    def admit(self, now: float) -> bool:
        """Whether this request may pass. Asking counts: a probe that was allowed is not allowed again at once."""
        state = self.state
        if state is _CLOSED or state is _FORCED_CLOSED:
            return True
        if state is _HALF_OPEN:
            if now < self._probe_at:
                return False
            self._probe_at = now + self.rule.probe_interval
            return True
        if state is _RAMPING:
            part = (now - self.since) / self.rule.ramp if self.rule.ramp else 1.0
            self._credit += RAMP_FIRST + (1 - RAMP_FIRST) * min(part, 1.0)
            if self._credit >= 1.0:
                self._credit -= 1.0
                return True
        return False

    def failing(self, now: float) -> bool:
        """Whether what it was told of would trip it.

        It must also have failed for so long that even a window full of successes before that would say the same: a
        breaker that was made with the first failure has not seen them.
        """
        if self.state is not _CLOSED and self.state is not _RAMPING:
            return False
        window, rule = self.window, self.rule
        window.advance(now)
        return (
            window.total >= rule.min_requests
            and window.failures >= rule.error_rate * window.total
            and window.failing_since is not None
            and now - window.failing_since >= rule.error_rate * rule.window
        )

    def retry_after_s(self, now: float) -> int:
        """Whole seconds after which it is worth to ask again: at least one."""
        waits = self._probe_at if self.state is _HALF_OPEN else self.until
        return max(1, math.ceil(waits - now))

    # ---- what it is told; each says whether its state changed

    def note(self, ok: bool, began: float, now: float) -> bool:
        """A try that was sent at `began` ended. What was sent before this state began says nothing about it."""
        state = self.state
        if state is _CLOSED or state is _FORCED_CLOSED:
            self.window.add(ok, now)
        elif began < self.since:
            return False
        elif state is _RAMPING:
            self.window.add(ok, now)
        elif state is _HALF_OPEN:
            if not ok:
                return True  # the owner reopens it, by `reopen`: that takes a chance
            self._proved += 1
            if self._proved >= self.rule.probes:
                self._turn(Event.PROBES_OK, now)
                return True
        return False

    def trip(self, now: float, chance: float) -> bool:
        """Open: it was failing. Nothing happens in a state that cannot trip."""
        return (self.state, Event.TRIPPED) in TRANSITIONS and self._open(Event.TRIPPED, now, chance)

    def reopen(self, now: float, chance: float) -> bool:
        """A probe failed."""
        return self.state is _HALF_OPEN and self._open(Event.PROBE_FAILED, now, chance)

    def heal(self, now: float) -> bool:
        """Somebody else found that it is well again: do not wait any longer, but ask."""
        return self.state is State.OPEN and self._turn(Event.WAITED, now)

    def tick(self, now: float) -> bool:
        """What time alone changes."""
        match self.state:
            case State.OPEN if now >= self.until:
                return self._turn(Event.WAITED, now)
            case State.RAMPING if now >= self.until:
                return self._turn(Event.RAMPED, now)
            case State.FORCED_OPEN | State.FORCED_CLOSED if now >= self.until:
                return self._turn(Event.RELEASED, now)
        return False

    def force(self, is_open: bool, until: float, reason: str, now: float) -> bool:
        """An operator's word, until then."""
        self._turn(Event.FORCED_OPEN if is_open else Event.FORCED_CLOSED, now)
        self.until, self.reason = until, reason
        return True

    def release(self, now: float) -> bool:
        """The operator takes it back."""
        return (self.state, Event.RELEASED) in TRANSITIONS and self._turn(Event.RELEASED, now)

    # ----

    def _open(self, event: Event, now: float, chance: float) -> bool:
        rested = self.state is _CLOSED and now - self.since >= self._open_s
        self.trips = 1 if rested or not self.trips else self.trips + 1
        rule = self.rule
        whole_s = min(rule.open * 2.0 ** min(self.trips - 1, DOUBLINGS_MAX), rule.open_max)
        self._open_s = whole_s * (1 - JITTER * chance)
        self._turn(event, now)
        self.until = now + self._open_s
        return True

    def _turn(self, event: Event, now: float) -> bool:
        self.state = TRANSITIONS[self.state, event]
        self.since = now
        self.until = now + self.rule.ramp if self.state is _RAMPING else 0.0
        self.reason = ""
        self._probe_at, self._proved, self._credit = now, 0, 0.0
        if event is not Event.RAMPED:  # what the ramp saw still counts; before that, everything was another world
            self.window.clear(now)
        return True
