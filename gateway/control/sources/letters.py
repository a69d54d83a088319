"""Values that were not taken in: each counted, logged and put to the dead letters once, however often it is met."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from gateway.control.replication.region_map import Letter, RegionMap
from gateway.control.sources.attempt import Attempts
from gateway.control.sources.judged import NAMED_MAX, Judged, Reason, Rejected

LOG = logging.getLogger("landbridge.control")

REMEMBERED_MAX: Final = 10_000
"""Tenants whose last value was not taken in; beyond these one may be counted twice."""

LOGGED_MAX: Final = 20
"""Lines for one batch: a script that went wrong spoils thousands of values with one mistake."""

SOURCE: Final = "feed"
"""Who met it, in the letter: the gateways of the region, not the replicator."""


class Letters:
    """`rejected(reason)` counts one more."""

    def __init__(self, rejected: Callable[[str], None], attempts: Attempts) -> None:
        self._rejected = rejected
        self._attempts = attempts
        self._known: dict[str, int] = {}

    async def take(self, map_: RegionMap, judged: Judged, wall_ms: int) -> None:
        """Count and bury what is new among the rejected; drop the letters of tenants that are well again."""
        if self._known:
            for change in judged.changes:
                if change.routable and self._known.pop(change.tenant, None) is not None:
                    await self._attempts.write("a dead letter", map_.drop_letter(change.tenant))
        if not judged.rejected:
            return
        new = [found for found in judged.rejected if self._known.get(found.tenant) != hash(found.value)]
        for found in new:
            self._rejected(found.reason)
            if len(self._known) < REMEMBERED_MAX:
                self._known[found.tenant] = hash(found.value)
        _log(new)
        for found in new:
            if found.reason is not Reason.UNKNOWN_REGION:  # it waits here for the region: it is not dead
                letter = Letter(found.tenant, SOURCE, f"{found.reason}: {found.why}", wall_ms, found.value)
                await self._attempts.write("a dead letter", map_.bury(letter))


def _log(new: Sequence[Rejected]) -> None:
    for found in new[:LOGGED_MAX]:
        LOG.error("tenant %.*r keeps its route, a record is %s: %s", NAMED_MAX, found.tenant, found.reason, found.why)
    if len(new) > LOGGED_MAX:
        LOG.error("and %d more records that were not taken in", len(new) - LOGGED_MAX)
