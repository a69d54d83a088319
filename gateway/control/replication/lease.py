"""Which of a region's replicators is at work: the one that holds the lease in the region's Redis.

The lease only spares work. What keeps two holders from doing harm is the function in Redis, which looks at the token
before it writes: a holder that was stopped, and wakes after another took over, writes nothing any more. Whether we
hold it is judged by our monotonic clock, counted from before the question was asked, so that we never think so longer
than the server does.
"""

from __future__ import annotations

import random
from typing import Final

TTL_MS: Final = 3000
"""Above two renewals that are late; a holder that dies is replaced within this and one look."""

RENEW_S: Final = 1.0
LOOK_S: Final = 0.5
"""How often a standby asks; up to a fifth more or less, so that several do not ask together."""

_JITTER: Final = 0.2


class Lease:
    """What we know of our hold on it. Pure: `now` is monotonic seconds."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._until = 0.0

    def holds(self, now: float) -> bool:
        return now < self._until

    def left_s(self, now: float) -> float:
        """How long it is ours without another word of the server's."""
        return max(0.0, self._until - now)

    def answered(self, asked_at: float, granted: bool) -> None:
        """The server said so, to a question that was asked at `asked_at`."""
        self._until = asked_at + TTL_MS / 1000 if granted else 0.0

    def lost(self) -> None:
        """The server took no write for our token: it is another's, or nobody's."""
        self._until = 0.0

    def pause_s(self, now: float, rng: random.Random) -> float:
        """When to ask again: a holder before it runs out, a standby soon."""
        if self.holds(now):
            return min(RENEW_S, self.left_s(now) / 2)
        return LOOK_S * rng.uniform(1 - _JITTER, 1 + _JITTER)
