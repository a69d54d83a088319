"""One region's replicator: stands by, and while the lease is ours follows every peer's log into our own Redis.

Several gateways of a region run one each. Who holds the lease works; the others ask for it twice a second. What a
holder knows that matters (records, offsets) is in Redis, in the same writes; so any other goes on where it ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from gateway.control.replication.counters import RETRIES, TAKEOVERS, Counters
from gateway.control.replication.follower import Follower
from gateway.control.replication.lease import TTL_MS, Lease
from gateway.control.replication.region_map import LeaseLost, MapUnavailable, RegionMap
from gateway.control.replication.registry import RegistryCopies, forget_gone
from gateway.control.replication.repair import OwnRepair, PeerRepair
from gateway.control.replication.tenure import Tenure
from gateway.control.tasks import TaskSet

LOG = logging.getLogger("landbridge.replicator")

PUBLISH_S: Final = 0.5
FORGET_EVERY_S: Final = 30.0


class Replicator:
    """See the module. `run` until `stop`, or until cancelled. `token` is this process's, and nobody else's."""

    def __init__(
        self,
        own: RegionMap,
        peers: Sequence[RegionMap],
        token: str,
        counters: Counters,
        rng: random.Random,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own = own
        self.peers = peers
        self.counters = counters
        self.lease = Lease(token)
        self.followers: list[Follower] = []
        self._rng = rng
        self._now = now
        self._tasks = TaskSet()
        self._changed = asyncio.Event()
        self._ask_at_once = asyncio.Event()
        self._stopped = asyncio.Event()
        self._complaint = ""
        self._begin_anew = False

    async def run(self) -> None:
        """Stand by and work, in turns, until `stop`."""
        try:
            while not self._stopped.is_set():
                self._ask_at_once.clear()
                await self._ask_for_lease()
                if self._is_at_work() and (self._begin_anew or not self.lease.holds(self._now())):
                    await self._stand_back()
                if self.lease.holds(self._now()) and not self._is_at_work():
                    await self._take_over()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.lease.pause_s(self._now(), self._rng)):
                        await self._ask_at_once.wait()
        finally:
            await self._stand_back()
            if self._stopped.is_set() and not self._complaint:
                with suppress(MapUnavailable):
                    await self.own.release(self.lease.token)

    def stop(self) -> None:
        """Leave the lease to another, and end."""
        self._stopped.set()
        self._ask_at_once.set()

    # --- lease

    async def _ask_for_lease(self) -> None:
        asked_at = self._now()
        limit_s = self.lease.left_s(asked_at) or None
        try:
            async with asyncio.timeout(limit_s):  # a server that hangs must not have us believe longer than it does
                granted = await self.own.acquire(self.lease.token, TTL_MS)
        except TimeoutError:
            self._complain("the lease could not be renewed in time")
        except MapUnavailable as error:
            self._complain(str(error))
        else:
            self.lease.answered(asked_at, granted)
            if self._complaint:
                LOG.info("%s: reached again", self.own.region)
            self._complaint = ""

    def _complain(self, why: str) -> None:
        self.counters.count(RETRIES)
        if not self._complaint:
            LOG.error("our own Redis: %s; tried again for ever", why)
        self._complaint = why

    def _over(self) -> None:
        """What our Redis is, or whose, is not what this work began with: it ends, and begins anew if it is ours."""
        self._begin_anew = True
        self._ask_at_once.set()

    # --- work

    def _is_at_work(self) -> bool:
        return len(self._tasks) > 0

    async def _take_over(self) -> None:
        tenure = Tenure(self.own, self.lease.token, self.counters, self._now)
        try:
            await self.own.begin()
            asked_at = self._now()
            head = await self.own.head()
            before = await self.own.replication()
        except MapUnavailable as error:
            self._complain(str(error))
            return
        tenure.heard(head, asked_at)
        if not self._begin_anew:
            self.counters.count(TAKEOVERS)
        self._begin_anew = False
        LOG.info("the lease is ours: following %s", ", ".join(peer.region for peer in self.peers) or "nobody")
        self.followers = []
        for peer in self.peers:
            known = before.get(peer.region)
            since_s = max(0, head.clock_ms - known.at_ms) / 1000 if known else 0.0
            self.followers.append(Follower(tenure, peer, self._rng, self._changed.set, known, since_s))
        for follower in self.followers:
            self._keep(follower.run, f"follow {follower.peer.region}")
            self._keep(PeerRepair(tenure, follower).run, f"compare with {follower.peer.region}")
            self._keep(RegistryCopies(tenure, follower.peer).run, f"copy the registry of {follower.peer.region}")
        self._keep(OwnRepair(tenure, self.followers).run, "look through our map")
        self._keep(lambda: self._publish(tenure), "publish")
        self._keep(self._forget, "forget gateways that are gone")

    async def _stand_back(self) -> None:
        if self._is_at_work() and not self.lease.holds(self._now()):
            LOG.info("the lease is not ours any more: standing by")
            self._begin_anew = False
        await self._tasks.close()

    def _keep(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        async def fenced() -> None:
            try:
                await work()
            except LeaseLost:
                self.lease.lost()
                self._over()

        self._tasks.keep(fenced, name)

    async def _publish(self, tenure: Tenure) -> None:
        """Say each half second, and when a peer's condition changes, how we stand; hear how our own map is."""
        while True:
            try:
                asked_at = self._now()
                log_id, head = await self.own.begin(), await self.own.head()
                if log_id != tenure.log_id:
                    LOG.warning("our own Redis is another process than before, or was emptied: all is compared anew")
                    self._over()
                    return
                tenure.heard(head, asked_at)
                await self.own.put_replication({f.peer.region: f.state() for f in self.followers})
            except MapUnavailable:
                self.counters.count(RETRIES)
            with suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_S):
                    await self._changed.wait()
            self._changed.clear()

    async def _forget(self) -> None:
        while True:
            with suppress(MapUnavailable):
                await forget_gone(self.own)
            await asyncio.sleep(FORGET_EVERY_S)
