"""Keeps this gateway's shares: asks the region's Redis ten times a second, and tells the workers what is theirs.

No request waits for any of this. Without a Redis (the tenants file, or a Redis that is gone) the workers' limits add up
to the gateway's part all the same: the last one for half a minute, then on a line to an equal part of the gateways last
seen. A control that is new gives nothing away before it knows how many they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from gateway.bus.messages import Demands, Hello
from gateway.bus.server import BusPeer
from gateway.control.registry import gateway_id
from gateway.control.shares.region import RegionShares, SharesUnavailable
from gateway.control.shares.split import DEMAND_MIN, Split
from gateway.core.shares import EQUAL_S, FLOOR, HOT_S, SETTLE_S, Answer, Report, drift
from gateway.settings.schema import RedisSettings, Settings
from gateway.store import seen

LOG = logging.getLogger("landbridge.control")

TICK_S: Final = 0.1
IDLE_S: Final = 0.2
"""How often the Redis is asked while nothing is hot anywhere."""
OFF_S: Final = 0.5
"""The same without `throttle`: then only tenants' own limits may become hot."""
KEYS_MAX: Final = 500
"""Keys that are shared out by demand, the hottest first: the others keep equal parts, and the sum holds as well."""
LOCAL: Final = "g:"


class HotKey(NamedTuple):
    """One key as operators see it: parts of the whole limit, and requests refused since it is hot."""

    key: str
    share: float
    demand: float
    refused: int


class ShareKeeper:
    """`spawn` keeps a task, `settings` are those that hold now. `asked_at`: when the last question that was answered
    was asked; None before the first."""

    def __init__(
        self,
        state_dir: Path,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        settings: Callable[[], Settings],
    ) -> None:
        self._state_dir = state_dir
        self._spawn = spawn
        self._settings = settings
        self._now = asyncio.get_running_loop().time
        self.split = Split()
        self.gateways = seen.read(state_dir)
        self.divisor = 0
        self.problem = ""
        self.asked_at: float | None = None
        self._started = self._now()
        self._older: list[tuple[int, int]] = []
        self._shares: dict[str, float] = {}
        self._hot_at: dict[str, float] = {}
        self._region: RegionShares | None = None
        self._redis: RedisSettings | None = None
        self._id = ""

    # --- workers

    def hello(self, peer: BusPeer, message: Hello) -> None:
        """A worker is there: all are told anew, since there is one more to share with."""
        count = len(self.split.members) + 1
        self.split.come(peer, self._equal() / count, 1.0 / count, self._now())
        self.tick()

    def left(self, peer: BusPeer) -> None:
        self.split.leave(peer)
        self.tick()

    def demands(self, peer: BusPeer, message: Demands) -> None:
        self.split.heard(peer, message, self._now())

    # --- what this gateway may hold

    def _equal(self) -> float:
        """This gateway's part of what is cold."""
        return 1.0 / self.divisor if self.divisor else FLOOR / self.gateways

    def _is_known(self, now: float) -> bool:
        """Whether the number of gateways is: heard of, or waited for long enough."""
        if self._settings().tenant_map.redis is None:
            self.gateways = self.divisor = 1
        elif self.asked_at is None:
            if now - self._started < SETTLE_S:
                return False
            self.divisor = self.divisor or self.gateways
        return True

    def share(self, key: str, now: float) -> float:
        """This gateway's part of a hot key, of the whole limit."""
        if key.startswith(LOCAL) or self._settings().tenant_map.redis is None:
            return 1.0
        known = self._shares.get(key)
        if known is None:
            return self._equal()
        return known if self.asked_at is None else drift(known, self._equal(), now - self.asked_at)

    def _totals(self, reports: dict[str, Report], now: float) -> dict[str, float]:
        """What is hot, with this gateway's part of it; what has not been asked for in a while is cold again."""
        for key, report in reports.items():
            if report.demand >= DEMAND_MIN:
                self._hot_at[key] = now
        for key in self.split.adopted:
            self._hot_at.setdefault(key, now)
        self.split.adopted.clear()
        silent_s = 0.0 if self.asked_at is None else now - self.asked_at
        for key in [key for key, at in self._hot_at.items() if now - at > HOT_S]:
            del self._hot_at[key]
            if silent_s > EQUAL_S:
                self._shares.pop(key, None)
        hot = {*self._hot_at, *self._shares}
        if len(hot) > KEYS_MAX:
            hot = set(sorted(hot, key=lambda key: -self.split.demand(key))[:KEYS_MAX])
        return {key: self.share(key, now) for key in hot}

    def tick(self) -> None:
        """Divide what there is among the workers, and tell those for whom something is new."""
        now = self._now()
        if not self._is_known(now):
            return
        totals = self._totals(self.split.reports(), now)
        floor = FLOOR / (self.gateways * max(1, len(self.split.members)))
        for peer, message in list(self.split.divide(totals, self._equal(), floor, now)):
            cast(BusPeer, peer).send(message)

    async def run(self) -> None:
        while True:
            try:
                self.tick()
            except Exception:  # the workers have their last shares: a bug here must not end the telling
                LOG.exception("the shares could not be told")
            await asyncio.sleep(TICK_S)

    # --- the region's Redis

    async def ask(self) -> None:
        """Report to the Redis what this gateway holds and is asked for, for ever."""
        self._id = await asyncio.to_thread(gateway_id, self._state_dir)
        while True:
            began = self._now()
            await self._follow_settings()
            if self._region is not None:
                await self._call(self._region, began)
            await asyncio.sleep(max(0.02, self._pause() - (self._now() - began)))

    def _pause(self) -> float:
        if self._hot_at or self._shares:
            return TICK_S
        return OFF_S if self._region is None or self._settings().throttle is None else IDLE_S

    async def _follow_settings(self) -> None:
        settings = self._settings()
        redis = settings.tenant_map.redis
        if redis == self._redis:
            return
        self._redis = redis
        if self._region is not None:
            await self._region.close()
        self._region = None if redis is None else RegionShares(redis, settings.region)

    def _reports(self) -> dict[str, Report]:
        """For the Redis: what may be in use here of each key that is not of this gateway alone."""
        held = {key: report for key, report in self.split.reports().items() if not key.startswith(LOCAL)}
        now = self._now()
        keys = {key for key in held if key in self._hot_at} | set(self._shares)
        if len(keys) > KEYS_MAX:
            keys = set(sorted(keys, key=lambda key: -held.get(key, Report(0.0, 0.0)).demand)[:KEYS_MAX])
        found = {}
        for key in keys:
            at_hand = held.get(key, Report(0.0, 0.0))
            found[key] = Report(max(self.share(key, now), at_hand.held), at_hand.demand)
        return found

    def _using(self) -> int:
        """The divisor that some worker may still go by: the one that makes the largest parts."""
        acked = self.split.acked()
        self._older = [(divisor, seq) for divisor, seq in self._older if seq > acked]
        divisors = [divisor for divisor in (self.divisor, *(old for old, _ in self._older)) if divisor]
        return min(divisors, default=0)

    async def _call(self, region: RegionShares, began: float) -> None:
        try:
            answer = await region.call(self._id, self._using(), self.gateways, self._reports())
        except SharesUnavailable as error:
            if not self.problem:
                LOG.warning("shares of limits: the Redis cannot be asked, the last ones hold: %s", error)
            self.problem = str(error)
            return
        if self.problem:
            LOG.info("shares of limits: the Redis answers again")
            self.problem = ""
        self.take(answer, began)

    def take(self, answer: Answer, asked_at: float) -> None:
        """The Redis's word."""
        self.asked_at = asked_at
        if answer.divisor != self.divisor:
            if self.divisor:
                self._older.append((self.divisor, self.split.last + 1))
            self.divisor = answer.divisor
        if answer.gateways != self.gateways:
            self.gateways = answer.gateways
            self._spawn(asyncio.to_thread(seen.keep, self._state_dir, self.gateways), "keep the number of gateways")
        for key, share in answer.shares.items():
            if share is None:
                self._shares.pop(key, None)
                self._hot_at.pop(key, None)
            else:
                self._shares[key] = share
        self.tick()

    async def close(self) -> None:
        """This gateway ends: what it held is free at once."""
        if self._region is not None:
            with suppress(SharesUnavailable):
                await self._region.leave(self._id)
            await self._region.close()

    # --- what operators see

    def age_s(self) -> float | None:
        """How old the region's word is; None before the first."""
        return None if self.asked_at is None else self._now() - self.asked_at

    def hot(self) -> list[HotKey]:
        """What is shared out by demand, most refused first."""
        now = self._now()
        rows = [
            HotKey(key, self.share(key, now), self.split.demand(key), self.split.refused.get(key, 0))
            for key in {*self._hot_at, *self._shares}
        ]
        return sorted(rows, key=lambda row: (-row.refused, -row.demand, row.key))
