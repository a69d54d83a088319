"""How requests come back to a cluster that could not serve: not all at once, and each client once.

Each client of a tenant has a *place* in [0, 1) that never changes, a cluster that is coming back a *share* that grows
from `SHARE_FIRST` to 1. A request goes home when its place is below the share. So a client moves back once and stays:
two of its requests never go to different regions in turn, which an application that replicates with some lag would show
as a write that vanishes and comes back. One large tenant still comes back in parts, which it would not if places
were those of tenants. Every gateway of every region computes the same place, so it does not matter where a request
enters. Pure.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

RETURN_S: Final = 5.0
"""From the first clients to all: long enough for connections and caches to fill, short against an outage."""

SHARE_FIRST: Final = 0.1
STEPS: Final = 20
"""Shares are told in twentieths: each step is a new View for all workers, so there are not more than four a second."""

PLACES: Final = 1 << 16


def place(tenant: str, client: str) -> float:
    """The place of a tenant's client (its address), the same in every process."""
    mixed = crc32(client.encode("utf-8", "replace"), crc32(tenant.encode("utf-8", "replace") + b"\0"))
    # Addresses that differ in a bit have sums that differ in few: multiplied, the high bits depend on all of them.
    return ((mixed * 0x9E3779B1 & 0xFFFFFFFF) >> 16) / PLACES


def share(since_s: float) -> float:
    """The share of a cluster that has been coming back for so many seconds; negative: it is not, yet."""
    if since_s < 0.0:
        return 0.0
    if since_s >= RETURN_S:
        return 1.0
    grown = SHARE_FIRST + (1.0 - SHARE_FIRST) * since_s / RETURN_S
    return int(grown * STEPS + 1e-9) / STEPS
