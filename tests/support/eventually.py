"""Waiting for what no event tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LIMIT_S = 15.0
"""Longer than anything that a test waits for takes on a busy machine: it only bounds a failure."""


async def eventually(holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Return as soon as `holds()`; TimeoutError when it does not within `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.01)
