"""A dict with a bound: the oldest eighth goes when it is full. Reading is a plain dict look-up, for the hot path."""

from __future__ import annotations

from itertools import islice
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

EVICTED_PART: Final = 8
"""An eighth at a time: one in many insertions pays, and what is used often comes back with one look-up."""


class Bounded(Generic[K, V]):
    """Read `items` directly; write through `put`."""

    __slots__ = ("_size_max", "items")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self.items: dict[K, V] = {}

    def put(self, key: K, value: V) -> None:
        if len(self.items) >= self._size_max:
            for old in list(islice(self.items, max(1, self._size_max // EVICTED_PART))):
                del self.items[old]
        self.items[key] = value

    def clear(self) -> None:
        self.items.clear()
