"""Silent divergence found and repaired: between our map and each peer's, and inside our own.

Following the logs keeps maps equal. This is for what no log tells: a Redis that was rolled back, a value that a hand or
a defect changed. It looks at the start, each minute, and after each resync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from gateway.control.replication.compare import pieces, take_buckets
from gateway.control.replication.counters import REPAIRED, RETRIES
from gateway.control.replication.follower import Follower
from gateway.control.replication.incoming import holds
from gateway.control.replication.progress import differences, lasting
from gateway.control.replication.recount import EVERY_S, Count, recount
from gateway.control.replication.region_map import Letter, MapUnavailable, RegionMap
from gateway.control.replication.tenure import Tenure
from gateway.core.placement import Version
from gateway.core.replication import BadValue, Offset, stamp_of

LOG = logging.getLogger("landbridge.replicator")

LOOKS: Final = 5
LOOKS_APART_S: Final = 1.0
"""A bucket that differs in the same at three looks in a row is no matter of what is on its way. At two it may be: a
record that was here first is replaced here first, and differs as much before as after it came there."""

GET_MAX: Final = 500
NAMED_MAX: Final = 5
"""Tenants that a line of the log names."""


class PeerRepair:
    """Our map against one peer's."""

    def __init__(self, tenure: Tenure, follower: Follower) -> None:
        self._tenure = tenure
        self._follower = follower
        self._peer = follower.peer

    async def run(self) -> None:
        """Look each minute, and after each resync, until cancelled. Raises LeaseLost."""
        while True:
            try:
                await self.look()
            except MapUnavailable:
                self._tenure.counters.count(RETRIES)  # the follower says what is the matter
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._follower.resynced.wait()
            self._follower.resynced.clear()

    async def look(self) -> int:
        """Compare the digests until they agree or differ for good, and repair; how many records were."""
        before: Mapping[str, int] = {}
        twice: frozenset[str] = frozenset()
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(LOOKS_APART_S)
            theirs = await self._peer.digests()
            now = differences(await self._tenure.own.digests(), theirs)
            if not now:
                return 0
            if not self._follower.caught_up():  # what its log still has for us explains it
                before, twice = {}, frozenset()
                continue
            stays = lasting(before, now)
            if buckets := stays & twice:
                return await self._repair(buckets)
            before, twice = now, stays
        return 0

    async def _repair(self, buckets: frozenset[str]) -> int:
        compared = await take_buckets(self._tenure, self._peer, buckets)
        self._tenure.counters.count(REPAIRED, compared.applied)
        if compared.applied:
            LOG.warning(
                "%s: the maps differed in %d buckets without a log that told so: %d records taken from there",
                self._peer.region,
                len(buckets),
                compared.applied,
            )
        return compared.applied


class OwnRepair:
    """Our map against itself."""

    def __init__(self, tenure: Tenure, followers: Sequence[Follower]) -> None:
        self._tenure = tenure
        self._followers = followers

    async def run(self) -> None:
        """Look through our map from time to time, until cancelled. Raises LeaseLost."""
        while True:
            pause_s = EVERY_S
            try:
                pause_s = (await self.look()).pause_s()
            except MapUnavailable:
                self._tenure.counters.count(RETRIES)
            await asyncio.sleep(pause_s)

    async def look(self) -> Count:
        """One run: replace what is damaged, set the digests right, forget old tombstones."""
        found, head = await recount(self._tenure)
        if found.damaged and await self._replace(found.damaged):
            found, head = await recount(self._tenure)
        if found.settled:
            kept = await self._tenure.own.digests()
            wrong = differences(found.hex(), kept)
            if wrong and await self._tenure.own.set_digests(head.feed.last, found.hex()):
                LOG.warning("digests of %d buckets did not hold: something else than us writes this map", len(wrong))
                for follower in self._followers:
                    follower.resynced.set()  # what the digests hid shows at the next look
        if found.tombstones:
            await self._purge(found.tombstones)
        return found

    async def _replace(self, damaged: Sequence[str]) -> int:
        """Take damaged records from the peers; how many could be."""
        replaced: set[str] = set()
        for follower in self._followers:
            with suppress(MapUnavailable):
                replaced |= await self._replace_from(follower.peer, damaged)
        for tenant in damaged:
            if tenant not in replaced:
                LOG.error("tenant %.80r: its record here is damaged, and no peer has a whole one", tenant)
                value = (await self._tenure.own.get([tenant]))[0] or b""
                letter = Letter(tenant, self._tenure.own.region, "damaged here", self._tenure.clock_ms(), value)
                await self._tenure.own.bury(letter)
        self._tenure.counters.count(REPAIRED, len(replaced))
        if replaced:
            LOG.warning(
                "%d records here were damaged, and were taken from peers: %s",
                *(len(replaced), ", ".join(sorted(replaced)[:NAMED_MAX])),
            )
        return len(replaced)

    async def _replace_from(self, peer: RegionMap, damaged: Sequence[str]) -> set[str]:
        whole: list[tuple[str, bytes]] = []
        for at in range(0, len(damaged), GET_MAX):
            tenants = damaged[at : at + GET_MAX]
            values = await peer.get(tenants)
            whole += [(t, v) for t, v in zip(tenants, values, strict=True) if v is not None and holds(t, v)]
        replaced = set()
        for piece in pieces(whole):
            await self._tenure.merge(peer.region, piece)
            now = await self._tenure.own.get([tenant for tenant, _ in piece])
            replaced |= {
                tenant for (tenant, _), value in zip(piece, now, strict=True) if value and holds(tenant, value)
            }
        return replaced

    # --- tombstones

    async def _purge(self, tombstones: Sequence[tuple[str, Version]]) -> None:
        """Forget those that every configured peer has too, or has forgotten, if nothing is on its way anywhere.

        An entry that is still on its way could be older than the tombstone, and would bring the tenant back.
        """
        with suppress(MapUnavailable):
            if not await self._all_even():
                return
            for at in range(0, len(tombstones), GET_MAX):
                some = tombstones[at : at + GET_MAX]
                for follower in self._followers:
                    values = await follower.peer.get([tenant for tenant, _ in some])
                    some = [one for one, value in zip(some, values, strict=True) if _is_same(value, one[1])]
                for tenant, version in some:
                    await self._tenure.own.purge(tenant, version, self._tenure.token)
                if some:
                    LOG.info("%d tombstones that every region has were old enough, and are forgotten", len(some))

    async def _all_even(self) -> bool:
        """Whether we have all of every peer's log, and each of them all of ours."""
        log = (await self._tenure.own.head()).log
        for follower in self._followers:
            theirs = (await follower.peer.offsets()).get(self._tenure.own.region)
            if not follower.caught_up() or theirs is None or theirs < Offset(log.log_id, log.last):
                return False
            if theirs.log_id != log.log_id:
                return False
        return True


def _is_same(value: bytes | None, version: Version) -> bool:
    try:
        return value is None or stamp_of(value).version == version
    except BadValue:
        return False
