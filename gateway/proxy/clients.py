"""The buckets of clients: a million of them in arrays of a fixed size, the least recently used out.

A client needs one number (`core.limits.Bucket.zero`), found by a hash in a set of four places. Of a full set the one
with the lowest number goes: its bucket is the fullest, so least is forgotten with it, and it was asked longest ago.
Python's hash of a text is seeded anew for each process: nobody outside can choose who shares a set.
"""

from __future__ import annotations

import mmap
from typing import Final

WAYS: Final = 4
WIDTH: Final = 2
"""A place is two numbers, tag and `zero`, side by side: a set is one line of the processor's cache, in one page."""
PLACES: Final = 1 << 21
"""Twice a million: with half of them taken, one client in fifty finds its set full."""
BYTES: Final = PLACES * WIDTH * 8
"""32 MiB of address space; of it only pages that clients are in take memory."""


class Clients:
    """`places`: a power of two."""

    __slots__ = ("_mask", "_tags", "_zeros")

    def __init__(self, places: int = PLACES) -> None:
        assert places & (places - 1) == 0, "a mask finds the set"
        self._mask = places // WAYS - 1
        room = memoryview(mmap.mmap(-1, places * WIDTH * 8))
        self._tags = room.cast("q")
        self._zeros = room.cast("d")

    def take(self, key: str, now: float, interval: float, window: float) -> float:
        """As `Bucket.take`: 0.0, or the seconds until there is a token."""
        tag = hash(key) or 1
        at = (tag & self._mask) * (WAYS * WIDTH)
        if self._tags[at] != tag:  # most clients are in the first place: found without a call
            at = self._find(key, now - window)
        zero, floor = self._zeros[at + 1], now - window
        if zero < floor:
            zero = floor
        zero += interval
        if zero > now:
            return zero - now
        self._zeros[at + 1] = zero
        return 0.0

    def zero(self, key: str, floor: float) -> float:
        """Since when the client's tokens count."""
        return max(self._zeros[self._find(key, floor) + 1], floor)

    def put(self, key: str, zero: float) -> None:
        """The client's bucket was kept elsewhere for a while, and is here again."""
        self._zeros[self._find(key, zero) + 1] = zero

    def _find(self, key: str, full: float) -> int:
        """Where the client's tag stands; its `zero` is beside it. One that is new begins with a full bucket."""
        tag = hash(key) or 1  # 0 is a place that nobody has
        first = (tag & self._mask) * (WAYS * WIDTH)
        tags, zeros = self._tags, self._zeros
        places = range(first, first + WAYS * WIDTH, WIDTH)
        for at in places:
            if tags[at] == tag:
                return at
        at = min(places, key=lambda place: zeros[place + 1] if tags[place] else float("-inf"))
        tags[at] = tag
        zeros[at + 1] = full
        return at
