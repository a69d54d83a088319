"""A limit to what a region takes on, in which its own tenants come first.

One bucket that refills at the limit and holds half a second of it. Requests for tenants at home here take what there
is; those that failed over here only what is above the reserve, half of the bucket. So when more comes than the limit,
the level falls to the reserve, and the requests that failed over share what those at home leave; when those at home
alone are more than the limit, they empty the bucket and are refused too. Pure; time is an argument.
"""

from __future__ import annotations

from typing import Final

HOLDS_S: Final = 0.5
HOLDS_MIN: Final = 8.0
"""Requests: a bucket of one or two would refuse what comes in pairs."""
RESERVE: Final = 0.5


class Traffic:
    """`rate` in requests a second."""

    __slots__ = ("_at", "_level", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = self._holds
        self._at = now

    @property
    def _holds(self) -> float:
        return max(HOLDS_MIN, self.rate * HOLDS_S)

    def use(self, rate: float) -> None:
        """Another limit from now on; what the bucket holds is cut, never filled."""
        self.rate = rate
        self._level = min(self._level, self._holds)

    def takes(self, failed_over: bool, now: float) -> bool:
        """Whether one more request is taken on."""
        holds = self._holds
        level = min(holds, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now
        taken = level - 1.0 >= (holds * RESERVE if failed_over else 0.0)
        self._level = level - 1.0 if taken else level
        return taken
