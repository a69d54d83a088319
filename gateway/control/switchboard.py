"""Region-wide switches, as this gateway has them: on disk, in the region's Redis, and in what workers are told.

An operator sets one at a gateway, by its admin API or by `landbridge region` on its machine. It counts there at once,
and with a replicated map it is written to the region's Redis, which every control of the region reads twice a second.
Without that Redis it counts here, and is written when it answers again; what a Redis lost is written back. `state_dir`
keeps all of them, so that a start needs nobody. When one ends is counted by the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.control.conditions import Switched
from gateway.control.registry import live
from gateway.control.replication.region_map import MapUnavailable, RegionMap
from gateway.control.sources.source import Source
from gateway.core.draining import is_stranded
from gateway.core.switches import Name, Switch, merged, problem, rate_of
from gateway.core.view import View
from gateway.settings.schema import RedisSettings, Settings
from gateway.store.record import StoreError
from gateway.store.switches import FILE, decode
from gateway.store.whole import write_whole
from gateway.store.writer import Writer

LOG = logging.getLogger("landbridge.control")

WANTED_FILE: Final = "switch.wanted"
ANSWER_FILE: Final = "switch.answer"

POLL_S: Final = 0.1
READ_S: Final = 0.5
"""How often the region's Redis is read: every gateway follows a switch within a second."""
TIMEOUT_S: Final = 1.0
PAGE: Final = 1000
NAMED_MAX: Final = 20


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks for. `lasts_s` 0: until it is set again. `id` is of the asker's choice."""

    name: str
    value: str
    by: str
    why: str
    lasts_s: float = 0.0
    force: bool = False
    id: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`refused`: `input` or `safety`, and `detail` says why; "" when it is done. `everywhere`: whether the region's
    Redis has it; None where there is none."""

    id: str = ""
    refused: str = ""
    detail: str = ""
    switch: Switch | None = None
    everywhere: bool | None = None


class Known(Protocol):
    """What the switchboard reads of all that control knows (`facts.Facts`)."""

    view: View
    tenants: Source
    writer: Writer

    @property
    def settings(self) -> Settings: ...


class Ground(NamedTuple):
    """What the switchboard stands on. `changed` is called when workers have to hear of something new."""

    state_dir: Path
    facts: Callable[[], Known]
    changed: Callable[[], None]
    wall_ms: Callable[[], int]


class Switchboard:
    """See the module. `switched` is what the judge reads."""

    def __init__(self, ground: Ground, switched: Switched) -> None:
        self.known: dict[str, Switch] = {}
        self.problem = ""
        self._ground = ground
        self._switched = switched
        self._ends: dict[tuple[str, int], float] = {}
        self._map: RegionMap | None = None
        self._redis: RedisSettings | None = None
        self._read_at = 0.0

    # --- life

    def load(self) -> None:
        """Take in what `state_dir` has. Blocks; called once, before the first View."""
        try:
            self.known = decode((self._ground.state_dir / FILE).read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            LOG.error("%s: the region's switches are off until its Redis says otherwise: %s", FILE, error)
            return
        self._apply(tell=False)
        for name, switch in self.on().items():
            LOG.warning("region switch %s: %s, set by %s: %s", name, switch.value, switch.by, switch.why)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._asked()
            now = asyncio.get_running_loop().time()
            if now >= self._read_at:
                self._read_at = now + READ_S
                await self._exchange()
            self._apply()

    async def close(self) -> None:
        if self._map is not None:
            await self._map.close()

    # --- what counts

    def on(self) -> dict[str, Switch]:
        """Those that are on now."""
        now, wall_ms, found = time.monotonic(), self._ground.wall_ms(), {}
        for name, switch in self.known.items():
            if not switch.value or problem(name, switch.value):
                continue
            if switch.until_ms:
                key = name, switch.at_ms
                if key not in self._ends:
                    self._ends = {k: end for k, end in self._ends.items() if k[0] != name}
                    self._ends[key] = now + (switch.until_ms - wall_ms) / 1000
                if now >= self._ends[key]:
                    continue
            found[name] = switch
        return found

    def ends_in_s(self, name: str, switch: Switch) -> float | None:
        """Seconds that are left to a switch that is on; None: until it is set again."""
        end = self._ends.get((name, switch.at_ms))
        return None if end is None else max(0.0, end - time.monotonic())

    def _apply(self, tell: bool = True) -> None:
        """Have the judge conclude from what is on, when that is another thing than before."""
        on, switched = self.on(), self._switched
        before = (switched.failover_mode, switched.max_traffic, switched.drained)
        mode, limit = on.get(Name.FAILOVER_MODE), on.get(Name.MAX_TRAFFIC)
        rate = None if limit is None else rate_of(limit.value)
        switched.failover_mode = "" if mode is None else mode.value
        switched.max_traffic = None if rate is None else rate / self._gateways()
        switched.drain(Name.DRAIN in on, time.monotonic())
        if tell and before != (switched.failover_mode, switched.max_traffic, switched.drained):
            self._ground.changed()

    def _gateways(self) -> int:
        """How many share the region's traffic: those that live, or lived when it was last known."""
        known, region = self._ground.facts().tenants.replication(), self._ground.facts().settings.region
        rows = () if known is None else live(known.gateways)
        return max(1, sum(row.region == region for row in rows))

    # --- setting one

    async def set(self, wanted: Wanted) -> Answer:
        """Set a switch, here and in the region's Redis. Refused where it breaks a rule of safety without `force`."""
        if why := problem(wanted.name, wanted.value):
            return Answer(id=wanted.id, refused="input", detail=f"{wanted.name}: {why}, found {wanted.value!r}")
        if not wanted.force and (why := await asyncio.to_thread(self._unsafe, wanted)):
            return Answer(id=wanted.id, refused="safety", detail=why)
        wall_ms = self._ground.wall_ms()
        known = self.known.get(wanted.name)
        switch = Switch(
            value=wanted.value,
            by=wanted.by,
            why=wanted.why,
            at_ms=max(wall_ms, 0 if known is None else known.at_ms + 1),
            until_ms=wall_ms + int(wanted.lasts_s * 1000) if wanted.lasts_s else 0,
        )
        everywhere = await self._put(wanted.name, switch)
        if everywhere is not None and everywhere > 0:
            switch = msgspec.structs.replace(switch, at_ms=everywhere)
        self._take({**self.known, wanted.name: switch})
        self._apply()
        return Answer(id=wanted.id, switch=switch, everywhere=None if everywhere is None else everywhere > 0)

    async def _put(self, name: str, switch: Switch) -> int | None:
        """When it was set by the Redis's clock, 0 where that does not answer, None where there is none."""
        region_map = await self._region_map()
        if region_map is None:
            return None
        try:
            return await region_map.put_switch(name, msgspec.structs.replace(switch, at_ms=0))
        except MapUnavailable as error:
            self._failed(error)
            return 0

    def _unsafe(self, wanted: Wanted) -> str:
        """Why this needs `force`; "" if it does not. Blocks: a drain looks at every record."""
        if wanted.name == Name.FAILOVER_MODE and wanted.value == "all":
            return (
                "failover mode for all tenants also serves those that do not name this region as a standby: its "
                "application may have no data of theirs, and their home may be serving them at the same time"
            )
        if wanted.name != Name.DRAIN or not wanted.value:
            return ""
        view, count, after = self._ground.facts().view, 0, ""
        first: list[str] = []
        try:
            while page := self._ground.facts().writer.page(after, PAGE):
                after = page[-1].tenant
                for placement in page:
                    if is_stranded(placement, view):
                        count += 1
                        if len(first) < NAMED_MAX:
                            first.append(placement.tenant)
        except StoreError as error:
            return f"the map cannot be read, so nobody knows who has another region to go to: {error}"
        if not count:
            return ""
        more = f" and {count - len(first)} more" if count > len(first) else ""
        who = "1 tenant has" if count == 1 else f"{count} tenants have"
        return f"{who} no other region that takes all their requests, and would stay here: {', '.join(first)}{more}"

    # --- the region's Redis, and the disk

    async def _region_map(self) -> RegionMap | None:
        settings = self._ground.facts().settings
        redis = settings.tenant_map.redis if settings.tenant_map.source == "redis" else None
        if redis != self._redis:
            before, self._redis, self._map = self._map, redis, None
            if redis is not None:
                self._map = RegionMap(
                    redis.url, settings.region, redis.tls, timeout_s=TIMEOUT_S, name="landbridge-switches"
                )
            if before is not None:
                await before.close()
        return self._map

    async def _exchange(self) -> None:
        """Take in what the region's Redis has later, and write there what it has not."""
        region_map = await self._region_map()
        if region_map is None:
            return
        try:
            found = await region_map.switches()
            for name, switch in self.known.items():
                if name not in found or found[name].at_ms < switch.at_ms:
                    await region_map.put_switch(name, switch)
        except MapUnavailable as error:
            self._failed(error)
            return
        if self.problem:
            LOG.info("region switches: the Redis answers again")
            self.problem = ""
        self._take(merged(self.known, found))

    def _failed(self, error: MapUnavailable) -> None:
        if str(error) != self.problem:
            self.problem = str(error)
            LOG.warning("region switches: they stay as they are here: %s", error)

    def _take(self, switches: dict[str, Switch]) -> None:
        """Let these count from now on, also after the next start."""
        if switches == self.known:
            return
        for name, switch in sorted(switches.items()):
            if self.known.get(name) != switch:
                value = switch.value or ("none" if name == Name.MAX_TRAFFIC else "off")
                LOG.warning("region switch %s: %s, set by %s: %s", name, value, switch.by, switch.why)
        self.known = switches
        try:
            write_whole(self._ground.state_dir / FILE, msgspec.json.encode(switches), sync=True)
        except OSError as error:
            LOG.error("%s: a start without the region's Redis will not know the switches: %s", FILE, error)

    async def _asked(self) -> None:
        """What `landbridge region` left in `state_dir`; it waits for the answer beside it."""
        path = self._ground.state_dir / WANTED_FILE
        if not path.exists():
            return
        try:
            wanted = msgspec.json.decode(path.read_bytes(), type=Wanted)
            path.unlink()
        except (OSError, msgspec.MsgspecError) as error:
            LOG.error("%s: %s", WANTED_FILE, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return
        answer = await self.set(wanted)
        try:
            write_whole(self._ground.state_dir / ANSWER_FILE, msgspec.json.encode(answer))
        except OSError as error:
            LOG.error("%s: %s", ANSWER_FILE, error)
