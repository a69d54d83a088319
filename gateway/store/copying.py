"""What changes in the map while it is copied in slices, so that the copy can be held against a digest all the same.

A copy of a large map takes seconds, and a map that follows a source changes all the time. To read it in one transaction
would keep the writer from reusing pages, and grow the file by all that is written meanwhile. So each slice is a
transaction of its own: a copy holds every tenant's record as it was at some moment of the copy. That is as good as one
moment for all, since records of different tenants come in no order anyway. What each change added to count and digest
is noted here; of a change to what is copied already nothing is in the copy.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.store.record import DIGEST_MODULUS, MapMeta

NOTED_MAX: Final = 1_000_000
"""A copy that stands still (a disk that does not answer) is given up before this takes much memory."""


class Step(NamedTuple):
    """What the change of one record did to count and digest."""

    key: bytes
    records: int
    digest: int


class Copy:
    """One copy under way: `records` and `digest` are what it holds once it is done. `void`: begin again."""

    def __init__(self, meta: MapMeta) -> None:
        self.meta = meta
        self.void = False
        self.records = meta.records
        self._digest = int(meta.digest, 16)
        self._lock = threading.Lock()
        self._noted: deque[tuple[int, Sequence[Step]]] = deque()
        self._count = 0

    @property
    def digest(self) -> int:
        return self._digest % DIGEST_MODULUS

    def note(self, transaction: int, steps: Sequence[Step]) -> None:
        """The writer is about to commit this. Before and not after it: a slice may be read right upon the commit."""
        with self._lock:
            self._noted.append((transaction, steps))
            self._count += len(steps)
            if self._count > NOTED_MAX:
                self.void = True

    def forget_after(self, transaction: int) -> None:
        """What was noted for later transactions was not committed."""
        with self._lock:
            while self._noted and self._noted[-1][0] > transaction:
                self._count -= len(self._noted.pop()[1])

    def read(self, transaction: int, after: bytes) -> None:
        """A slice of what is above `after` was read in this transaction: what came before it is in the copy."""
        with self._lock:
            while self._noted and self._noted[0][0] <= transaction:
                _, steps = self._noted.popleft()
                self._count -= len(steps)
                for key, records, digest in steps:
                    if key > after:
                        self.records += records
                        self._digest += digest
