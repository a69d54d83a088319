"""The buckets of clients: a million of them in arrays of a fixed size, the least recently used out.

A client needs one number (`core.limits.Bucket.zero`), found by a hash in a set of four places. Of a full set the one
with the lowest number goes: its bucket is the fullest, so least is forgotten with it, and it was asked longest ago.
Python's hash of a text is seeded anew for each process: nobody outside can choose who shares a set.
"""

from __future__ import annotations

import mmap
from typing import Final

WAYS: Final = 4
PLACES: Final = 1 << 21
"""Twice a million: with half of them taken, one client in fifty finds its set full."""
BYTES: Final = PLACES * 16
"""32 MiB of address space; of it only pages that clients are in take memory."""


class Clients:
    """`places`: a power of two."""

    __slots__ = ("_mask", "_tags", "_zeros")

    def __init__(self, places: int = PLACES) -> None:
        assert places & (places - 1) == 0, "a mask finds the set"
        self._mask = places // WAYS - 1
        self._tags = memoryview(mmap.mmap(-1, places * 8)).cast("q")
        self._zeros = memoryview(mmap.mmap(-1, places * 8)).cast("d")

    def take(self, key: str, now: float, interval: float, window: float) -> float:
        """As `Bucket.take`: 0.0, or the seconds until there is a token."""
        tag = hash(key) or 1
        at = (tag & self._mask) * WAYS
        if self._tags[at] != tag:  # most clients are in the first place: found without a call
            at = self._find(key, now - window)
        zero, floor = self._zeros[at], now - window
        if zero < floor:
            zero = floor
        zero += interval
        if zero > now:
            return zero - now
        self._zeros[at] = zero
        return 0.0

    def zero(self, key: str, floor: float) -> float:
        """Since when the client's tokens count."""
        return max(self._zeros[self._find(key, floor)], floor)

    def put(self, key: str, zero: float) -> None:
        """The client's bucket was kept elsewhere for a while, and is here again."""
        self._zeros[self._find(key, zero)] = zero

    def _find(self, key: str, full: float) -> int:
        tag = hash(key) or 1  # 0 is a place that nobody has
        first = (tag & self._mask) * WAYS
        tags = self._tags
        if tags[first] == tag:
            return first
        if tags[first + 1] == tag:
            return first + 1
        if tags[first + 2] == tag:
            return first + 2
        if tags[first + 3] == tag:
            return first + 3
        zeros = self._zeros
        at = min(range(first, first + WAYS), key=lambda place: zeros[place] if tags[place] else float("-inf"))
        tags[at] = tag
        zeros[at] = full
        return at
