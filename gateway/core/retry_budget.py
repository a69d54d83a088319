"""How many retries a cluster may get: a share of the requests sent to it, so that a storm of failures stays a storm of
requests.

A token bucket whose clock is the requests themselves: each earns a little, each retry costs a whole token (Finagle's
`RetryBudget`, and `RetryBudget` of tower, which deposit and withdraw so). Counting what is in flight, as Envoy does,
would not hold the number of attempts where retries fail faster than requests succeed.

Four fifths of the share are earned. The last fifth pays for the reserve, which lets a sudden failure of everything in
hand be retried: so, however full it was, a stretch that has more than four times the requests of the busiest second
before it (and more than 150) holds no more retries than the share of its requests. Pure; turns come once a second.
"""

from __future__ import annotations

from typing import Final

UNIT: Final = 1_000_000
"""One retry. Whole numbers: a sum over any number of requests is exact."""

EARNED: Final = 0.8

RESERVE_MIN: Final = 3
"""Retries that a cluster without traffic gets at once: an idle connection that was closed is met by somebody."""


class Budget:
    """One cluster's, in one worker: its requests are its share of the gateway's, so nothing is shared out.

    `requests` is counted up by whoever sends one for the first time: all that the plain path does for this. What they
    earned is reckoned when a retry asks for it.
    """

    __slots__ = ("_at_turn", "_earns", "_has", "_holds_max", "_reckoned", "requests")

    def __init__(self, share: float) -> None:
        self.requests = 0
        self._reckoned = 0
        self._at_turn = 0
        self._earns = 0
        self._holds_max = 0
        self._has = 0
        self.use(share)
        self._has = self._holds_max

    def __repr__(self) -> str:
        return f"<{self.left:.2f} of at most {self._holds_max / UNIT:.2f} retries, {self._earns / UNIT:g} each request>"

    @property
    def left(self) -> float:
        """Retries that could be made now."""
        self._reckon()
        return self._has / UNIT

    def use(self, share: float) -> None:
        """Go by another share (0 to 1) from now on. 0: no retry at all."""
        self._reckon()
        earns = round(share * EARNED * UNIT)
        if earns != self._earns:  # each new View comes here, and must not empty the reserve
            self._earns = earns
            self._hold(0)

    def withdraw(self) -> bool:
        """Pay for one retry. False where there is not enough: then there must be none."""
        self._reckon()
        if self._has < UNIT:
            return False
        self._has -= UNIT
        return True

    def turn(self) -> None:
        """A second is over: the reserve is what its requests have earned."""
        self._reckon()
        self._hold(self.requests - self._at_turn)
        self._at_turn = self.requests

    def _hold(self, requests: int) -> None:
        self._holds_max = max(RESERVE_MIN * UNIT if self._earns else 0, requests * self._earns)
        self._has = min(self._has, self._holds_max)

    def _reckon(self) -> None:
        new = self.requests - self._reckoned
        if new:
            self._reckoned = self.requests
            self._has = min(self._holds_max, self._has + new * self._earns)
