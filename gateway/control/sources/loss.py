"""The loss guard of a replicated map: what becomes of records that the store has and Redis lacks.

A few are written back: a server that fell back to an older copy lost them, and the store did not. Where they are too
many, somebody emptied the Redis or pointed the gateway at another one, and it cannot be told which of both maps is
meant: the last map stays, an alarm goes up, and an operator says it, or the records come back by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gateway.control.replication.region_map import MapHead, RegionMap
from gateway.control.sources import confirm
from gateway.control.sources.attempt import Attempts
from gateway.control.sources.comparison import Found, is_foreign, write_back
from gateway.control.sources.confirm import Confirmation, Pending, too_many
from gateway.control.sources.followed import Followed
from gateway.control.sources.source import Ground

LOG = logging.getLogger("landbridge.control")


class Decided(NamedTuple):
    """`owes`: something of ours is still to be written back, or to be decided. `lacking`: records that Redis lacks."""

    owes: bool
    lacking: int


class LossGuard:
    """`pending` is the loss that waits, None without one."""

    def __init__(self, ground: Ground, state_dir: Path, followed: Followed, attempts: Attempts) -> None:
        self.pending: Pending | None = None
        self._ground = ground
        self._state_dir = state_dir
        self._followed = followed
        self._attempts = attempts

    def is_answered(self) -> bool:
        """Whether an operator said something of what waits."""
        return self.pending is not None and confirm.confirmed(self._state_dir) is not None

    async def decide(self, map_: RegionMap, head: MapHead, found: Found) -> Decided:
        """Do what is to be done now. Raises MapUnavailable, StoreError."""
        fraction = self._ground.settings().tenant_map.loss_guard
        said = await asyncio.to_thread(confirm.confirmed, self._state_dir)
        missing: Sequence[str] = found.missing
        if too_many(len(missing), found.known, fraction):
            if said is None or said.change != found.change:
                await asyncio.to_thread(self._wait, found, head, map_.place, said)
                return Decided(True, len(missing))
            if not said.restore:
                LOG.warning("an operator confirmed that %d of %d tenants go", len(missing), found.known)
                await self._followed.forget(missing)
                missing = ()
        await self._followed.forget(found.expired)
        foreign = await asyncio.to_thread(self._foreign, missing) if missing else []
        if head.complete and not (said is not None and said.restore):
            await self._followed.forget(foreign)
            foreign = []
        if missing or found.behind:
            writing = write_back(map_, self._ground.writer, [*found.behind, *missing])
            written = await self._attempts.write("what Redis lacks", writing)
            if written is None:
                return Decided(True, len(missing))
            if written.taken:
                LOG.warning("%d records that Redis lacked or had older were written back", written.taken)
            if written.conflicts:
                LOG.warning("%d of them took the place of records that they do not descend from", written.conflicts)
        if said is not None or await asyncio.to_thread(confirm.waiting, self._state_dir) is not None:
            LOG.info("no loss of tenants waits any more")
            if said is not None and not head.complete and self._ground.writer.complete():
                # Redis forgot with its records that it had all of them. An operator just said what all of them are.
                await self._attempts.write("that the map is complete", map_.mark_complete())
            await asyncio.to_thread(confirm.forget, self._state_dir)
        self.pending = None
        return Decided(False, len(foreign))

    def _foreign(self, tenants: Sequence[str]) -> list[str]:
        """Those that never were in a replicated map: they come of a tenants file, from before the source changed."""
        ours = ((tenant, self._ground.writer.newest(tenant)) for tenant in tenants)
        return [tenant for tenant, placement in ours if placement is not None and is_foreign(placement)]

    def _wait(self, found: Found, head: MapHead, place: str, said: Confirmation | None) -> None:
        """Say what waits, and since when. Blocks."""
        change, lost = found.change, len(found.missing)
        fraction = self._ground.settings().tenant_map.loss_guard
        if said is not None:
            LOG.error("change %s was confirmed, but it is change %s that waits now", said.change, change)
            confirm.forget(self._state_dir)
        before = self.pending or confirm.waiting(self._state_dir)
        since = self._ground.wall_ms() if before is None else before.since_ms
        first = tuple(found.missing[: confirm.NAMED_MAX])
        pending = Pending(change, place, lost, found.known, head.records, first, since)
        if pending == self.pending:
            return
        if self.pending is None or self.pending.change != change:
            LOG.error(
                "Redis lacks %d of %d tenants, which loss_guard (%.0f%%) does not let pass: the last map stays. "
                "`landbridge map confirm --change %s` if they are meant to go, with --restore to write them back",
                *(lost, found.known, fraction * 100, change),
            )
        with suppress(OSError):  # a full disk: the log and the admin API say it too
            confirm.tell(self._state_dir, pending)
        self.pending = pending
