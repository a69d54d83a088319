"""How this process keeps freed memory: one setting of glibc's allocator, where there is one.

uvloop reads up to 256 KiB at a time into a new `bytes`. By default glibc maps or trims blocks of that size, so that
every read of a large body costs 64 page faults; kept on the heap the same pages come again. Measured with 1 MiB
responses: a third of all CPU. What is kept is bounded by what was in use at once.
"""

from __future__ import annotations

import ctypes
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""mallopt(3), malloc.h."""

MMAP_BYTES: Final = 4 << 20
"""Blocks up to this stay on the heap: no single read or joined buffer is larger."""
TRIM_BYTES: Final = 16 << 20
"""Free memory at the heap's end that is kept: some 60 reads."""


def keep_freed_memory() -> bool:
    """Whether the allocator took the setting: glibc does, musl has none and returns pages in its own way."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
