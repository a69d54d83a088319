"""Which gateways there are: each writes a row in its own region's Redis, and the replicator carries the peers' rows
here, so that every region sees the whole fleet, also a region that cannot be reached any more.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.control.replication.counters import RETRIES
from gateway.control.replication.region_map import MapUnavailable, RegionMap
from gateway.control.replication.tenure import Tenure

EVERY_S: Final = 1.0
FORGOTTEN_MS: Final = 5 * 60 * 1000
"""A gateway that was not heard for so long is gone, not late."""


class RegistryCopies:
    """One peer's rows, carried here."""

    def __init__(self, tenure: Tenure, peer: RegionMap) -> None:
        self._tenure = tenure
        self._peer = peer

    async def run(self) -> None:
        """Each second until cancelled. Raises LeaseLost."""
        while True:
            try:
                await self.copy()
            except MapUnavailable:
                self._tenure.counters.count(RETRIES)
            await asyncio.sleep(EVERY_S)

    async def copy(self) -> None:
        """A peer's rows of its own region, with their age, as long as they are not forgotten."""
        for row in await self._peer.gateways():
            if row.region == self._peer.region and row.age_ms < FORGOTTEN_MS:
                await self._tenure.own.register(row)


async def forget_gone(own: RegionMap) -> None:
    """Remove the rows, of whatever region, that were not heard for too long. Raises MapUnavailable."""
    for row in await own.gateways():
        if row.age_ms >= FORGOTTEN_MS:
            await own.forget_gateway(row.region, row.id)
