"""Regions, the network between them, time, and the seed that decides everything else.

A run is a number of steps: time passes, what was sent arrives, and then one thing happens, drawn from what this seed
allows: an operator, a replicator or a control does the next thing, or something breaks. Then the faults stop, everybody
goes on until nothing changes, and the audit looks at what is left.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final

from gateway.core.placement import Placement
from gateway.core.replication import BadValue, Offset, can_follow, decode_value
from tests.simulator.audit import Audit, Key, full_histories, keys_of
from tests.simulator.operators import Operators
from tests.simulator.processes import Entries, Gateway, Replicator
from tests.simulator.redis import Broken, Clock, Down, LeaseLost, Record, SimRedis, Values

NAMES: Final = ("ap", "eu", "sa", "uk", "us")
HOUR_MS: Final = 3_600_000
QUIET_ROUNDS_MAX: Final = 60
"""Far more than it takes; who needs them goes round in circles."""

FAULTS: Final = (
    "loss",
    "cuts",
    "clocks",
    "crashes",
    "failovers",
    "flushes",
    "handovers",
    "trims",
    "damage",
    "takeovers",
)
ODDS: Final = (0.5, 0.5, 0.25, 0.3, 0.4, 0.12, 0.3, 0.35, 0.15, 0.4)
"""How many seeds of a hundred know each fault."""


class Region:
    __slots__ = ("gateways", "name", "redis", "replicators")

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.redis = SimRedis(name, world.clock, world.values, world.audit.judged)
        self.replicators = [Replicator(world, self, number) for number in (1, 2)]
        self.gateways = [Gateway(world, self, number) for number in range(1, world.rng.choice((2, 2, 3)))]


class World:
    def __init__(self, seed: int, say: Callable[[str], None] | None = None, only: frozenset[str] | None = None) -> None:
        """`only`: the faults to know, whatever the seed says."""
        self.rng = rng = random.Random(seed)
        self.verbose = say is not None
        self._write = say
        self.clock = Clock()
        self.values = Values()
        self.audit = Audit()
        self.bad = False
        """Something damaged came: its place in a log was counted, and only the digests bring it."""
        count = rng.choice((3, 3, 3, 3, 3, 3, 3, 4, 4, 5))
        skew_ms = rng.choice((100, 2000))
        self.clock.ahead_ms = {name: rng.randint(-skew_ms, skew_ms) for name in NAMES}
        self.regions = [Region(self, name) for name in NAMES[:count]]
        self.faults = frozenset(f for f, odds in zip(FAULTS, ODDS, strict=True) if rng.random() < odds)
        if only is not None:
            self.faults = only
        for region in self.regions:
            region.redis.keeps_pasts = bool(self.faults & {"crashes", "failovers"})
        self.tenants = [f"t{number}" for number in range(rng.randint(1, 4))]
        self.steps = 30 + int(rng.random() ** 2 * 91)
        self._drop, self._twice, self._slow_ms = (
            (rng.uniform(0, 0.3), rng.uniform(0, 0.2), rng.choice((50, 500, 5000)))
            if "loss" in self.faults
            else (0, 0, 1)
        )
        self._cuts: set[frozenset[str]] = set()
        self._sent: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._changes = 0
        self._quiet = False
        self.operators = Operators(self)

    # --- what the processes need

    def say(self, line: str) -> None:
        if self._write is not None:
            self._write(f"{self.clock.now / 1000:9.3f}  {line}")

    def changed(self) -> None:
        self._changes += 1

    def batch(self) -> int:
        """How many entries one answer brings."""
        return 1000 if self._quiet else self.rng.choice((1, 2, 5, 1000))

    def reaches(self, a: Region, b: Region) -> bool:
        return not self._cuts or frozenset((a.name, b.name)) not in self._cuts

    def placement(self, tenant: str, record: Record) -> Placement:
        return self.audit.writes[Key(tenant, record.stamp.sum)].placement

    def damaged(self, entries: Entries) -> Entries:
        """What arrives of these."""
        if self._quiet or "damage" not in self.faults or not entries or self.rng.random() > 0.1:
            return entries
        at = self.rng.randrange(len(entries))
        tenant, value = entries[at]
        byte = self.rng.randrange(len(value))
        broken = value[:byte] + bytes((value[byte] ^ 0x55,)) + value[byte + 1 :]
        try:
            decode_value(tenant, broken)
        except BadValue:
            return [*entries[:at], (tenant, broken), *entries[at + 1 :]]
        return entries  # the byte was one of the lineage's, which the sum leaves out

    def send(self, a: Region, b: Region, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Let `act` happen in region b when word from a arrives: now or later, twice, or never."""
        if self._quiet or "loss" not in self.faults:
            self._arrive(act, arguments)
            return
        rng = self.rng
        if rng.random() < self._drop or not self.reaches(a, b):
            return
        self._post(rng.random() ** 3 * self._slow_ms, act, arguments)
        if a is not b and rng.random() < self._twice:
            self._post(rng.random() * 2 * self._slow_ms, act, arguments)

    def _post(self, delay_ms: float, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._count += 1
        heapq.heappush(self._sent, (self.clock.now + int(delay_ms), self._count, act, arguments))

    def _arrive(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            act(*arguments)
        except (Down, LeaseLost):
            pass

    def loses_answer(self) -> bool:
        """Whether this acknowledgement gets lost."""
        return not self._quiet and "loss" in self.faults and self.rng.random() < self._drop

    # --- what happens

    def run(self) -> None:
        """Raises Broken."""
        rng = self.rng
        if self.verbose:
            self.say(f"{len(self.regions)} regions, {self.tenants}, {self.steps} steps, {sorted(self.faults)}")
        self.operators.begin()
        if rng.random() < 0.6:
            self._level()
        acts, weights = self._acts()
        pace_ms = rng.choice((100, 2000, 10_000))
        for _ in range(self.steps):
            if rng.random() < 0.7:  # or all happens at once
                self.clock.now += int(rng.random() ** 4 * pace_ms) + 1
            while self._sent and self._sent[0][0] <= self.clock.now:
                _, _, act, arguments = heapq.heappop(self._sent)
                self._arrive(act, arguments)
            acts[bisect(weights, rng.random() * weights[-1])]()
        self._end()

    def _level(self) -> None:
        """Begin with maps that are the same, each region following each other."""
        for region in self.regions:
            for peer in self.regions:
                if peer is not region:
                    state = peer.redis.state
                    region.redis.merge([(tenant, record.value) for tenant, record in state.tenants.items()])
                    offset = Offset(state.log_id, len(state.log))
                    region.redis.resynced(peer.name, offset, "", region.redis.state.log_id, complete=True)

    def _acts(self) -> tuple[list[Callable[[], None]], list[float]]:
        """What may happen in this run, and how the odds add up."""
        rng = self.rng
        table: list[tuple[Callable[[], None], float]] = [
            (self.operators.label, rng.uniform(1, 4)),
            (self.operators.epoch, rng.uniform(1, 3)),
            (self.operators.create, 0.3),
            (self._replicate, rng.uniform(2, 8)),
            (self._control, rng.uniform(1, 3)),
        ]
        for fault, act in (
            ("cuts", self._cut),
            ("clocks", self._step_clock),
            ("crashes", self._crash),
            ("failovers", self._fail_over),
            ("flushes", self._flush),
            ("handovers", self._hand_over),
            ("trims", self._trim),
            ("takeovers", self.operators.take_over),
        ):
            if fault in self.faults:
                table.append((act, rng.uniform(0.2, 1)))
        return [act for act, _ in table], list(accumulate(weight for _, weight in table))

    def any_region(self) -> Region:
        return self.regions[int(self.rng.random() * len(self.regions))]

    def _any_two(self) -> tuple[Region, Region]:
        regions = self.regions
        one = int(self.rng.random() * len(regions))
        return regions[one], regions[one - 1 - int(self.rng.random() * (len(regions) - 1))]

    def _replicate(self) -> None:
        region, peer = self._any_two()
        region.replicators[self.rng.random() < 0.1].tick(peer, repairs=self.rng.random() < 0.3)

    def _control(self) -> None:
        region = self.any_region()
        self.rng.choice(region.gateways).tick()

    # --- what breaks

    def _cut(self) -> None:
        """Cut a pair, or heal one, or all."""
        a, b = self._any_two()
        pair = frozenset((a.name, b.name))
        if pair in self._cuts:
            self._cuts.clear() if self.rng.random() < 0.5 else self._cuts.discard(pair)
        else:
            self._cuts.add(pair)
        if self.verbose:
            self.say(f"cut: {sorted('-'.join(sorted(cut)) for cut in self._cuts)}")

    def _step_clock(self) -> None:
        region = self.any_region()
        ahead = self.rng.choice((0, 1000, -1000, HOUR_MS, -HOUR_MS, self.rng.randint(-HOUR_MS, HOUR_MS)))
        self.clock.ahead_ms[region.name] = ahead
        self.audit.excuse_twins = True
        if self.verbose:
            self.say(f"{region.name}'s clock is {ahead / 1000:g} s ahead")

    def _crash(self) -> None:
        """A server goes down; when it is back it lacks up to a second, or nothing."""
        region = self.any_region()
        if region.redis.is_up:
            region.redis.is_up = False
            since = self.clock.now - 1000
            if self.verbose:
                self.say(f"{region.name}'s Redis is down")
            self._post(self.rng.randint(1, 5000), self._start, (region, since))

    def _start(self, region: Region, since: int) -> None:
        if not region.redis.is_up:
            self._fall_back(region, since)

    def _fail_over(self) -> None:
        """A replica takes over that lacks up to four seconds, with a clock of its own, two seconds off at most."""
        region = self.any_region()
        self.clock.ahead_ms[region.name] += self.rng.randint(-2000, 2000)
        self._fall_back(region, self.clock.now - 4000)

    def _fall_back(self, region: Region, since: int) -> None:
        lost = region.redis.fall_back(since, int(self.rng.random() ** 2 * 10))
        self._note_loss(region)
        if self.verbose:
            self.say(f"{region.name}'s Redis is another process{', which lacks something' if lost else ''}")

    def _flush(self) -> None:
        region = self.any_region()
        region.redis.flush()
        self.audit.excuse_twins = True
        self._note_loss(region)
        if self.verbose:
            self.say(f"{region.name}'s Redis is emptied")

    def _hand_over(self) -> None:
        """The holder of a lease dies, or the other one believes that it is free: both act for a moment."""
        region = self.any_region()
        one, other = self.rng.sample(region.replicators, 2)
        if self.rng.random() < 0.5:
            one.start()
        if self.rng.random() < 0.7 and region.redis.is_up:
            region.redis.inside.lease = ""
        other.tick(self.rng.choice([peer for peer in self.regions if peer is not region]), repairs=False)

    def _trim(self) -> None:
        redis = self.any_region().redis
        redis.trim(
            len(redis.inside.log) + 1 - self.rng.randint(0, 4), len(redis.inside.feed) + 1 - self.rng.randint(0, 6)
        )
        if self.verbose:
            self.say(f"{redis.region}'s streams are trimmed to {redis.inside.log_first}, {redis.inside.feed_first}")

    # --- the end

    def _end(self) -> None:
        """No more faults: what is on its way arrives, everybody goes on, and all of it is looked at."""
        if self.verbose:
            self.say("the faults are over")
        while self._sent:
            at, _, act, arguments = heapq.heappop(self._sent)
            self.clock.now = max(self.clock.now, at)
            self._arrive(act, arguments)
        self._cuts.clear()
        self._quiet = True
        self.clock.now += 5000
        self._settle(repairs=False)
        self._check_offsets()
        for region in self.regions:
            for gateway in region.gateways:
                if gateway.alarm:
                    gateway.tick(restores=True)
        self._settle(repairs=True)
        self._check_converged()
        self._check_offsets()

    def _settle(self, repairs: bool) -> None:
        """Go on without faults until nothing changes."""
        self._quiet, was = True, self._quiet
        for _ in range(QUIET_ROUNDS_MAX):
            before = self._changes
            for region in self.regions:
                for peer in self.regions:
                    if peer is not region:
                        region.replicators[0].tick(peer, repairs)
                for gateway in region.gateways:
                    gateway.tick()
            self.clock.now += 500
            if self._changes == before:
                break
        else:
            raise Broken(f"still not quiet after {QUIET_ROUNDS_MAX} rounds")
        self._quiet = was

    def _note_loss(self, region: Region) -> None:
        held: set[Key] = set()
        stored: set[Key] = set()
        for other in self.regions:
            held |= keys_of(other.redis.inside.tenants, other.redis.inside.history)
            for gateway in other.gateways:
                stored.update(Key(tenant, record.stamp.sum) for tenant, record in gateway.store.items())
        self.audit.lost(region.name, self.clock.now, held, stored)

    def _check_offsets(self) -> None:
        """What an offset says is here, is: in a region's Redis and in a gateway's store."""
        for region in self.regions:
            state = region.redis.inside
            for peer in self.regions:
                if peer is not region:
                    offset = state.offsets.get(peer.name)
                    if peer.redis.inside.log_id and (offset is None or not can_follow(offset, peer.redis.log_head())):
                        raise Broken(f"{region.name} does not follow {peer.name}: {offset}")
                    self._check_offset(region.name, peer, offset, state.tenants)
                for gateway in region.gateways:
                    if not gateway.alarm:
                        self._check_offset(gateway.name, peer, gateway.origins.get(peer.name), gateway.store)

    def check_claim(self, region: Region, peer: str) -> None:
        """What was just compared whole is here."""
        state = region.redis.inside
        other = next(other for other in self.regions if other.name == peer)
        self._check_offset(region.name, other, state.offsets.get(peer), state.tenants)

    def _check_offset(self, who: str, peer: Region, offset: Offset | None, tenants: dict[str, Record]) -> None:
        log = peer.redis.inside
        if self.bad or offset is None or offset.log_id != log.log_id or log.run != peer.redis.run:
            return  # a log that fell back and was not renamed yet may be another than the one that was followed
        for seq, (tenant, value) in enumerate(log.log[: offset.seq], 1):
            version = self.values.read(tenant, value).stamp.version
            here = tenants.get(tenant)
            if here is None or here.stamp.version < version:
                raise Broken(f"{who} claims {peer.name} {offset} and lacks {seq}: {tenant} {version}")

    def _check_converged(self) -> None:
        first = self.regions[0].redis
        held: set[Key] = set()
        full: set[str] = set()
        for region in self.regions:
            state = region.redis.inside
            if state.tenants != first.inside.tenants and _sums(state.tenants) != _sums(first.inside.tenants):
                raise Broken(f"{region.name} and {first.region} differ: {state.tenants}, {first.inside.tenants}")
            if region.redis.digests() != first.digests():
                raise Broken(f"{region.name} and {first.region} have the same map and other digests")
            for gateway in region.gateways:
                if _sums(gateway.store) != _sums(state.tenants):
                    raise Broken(f"{gateway.name} and its region differ: {gateway.store}, {state.tenants}")
            held |= keys_of(state.tenants, state.history)
            full |= full_histories(state.history)
        current = first.inside.tenants
        self.audit.check_writes(held, current, full)
        self.audit.check_homes()
        self.audit.check_deleted(current)


def _sums(tenants: dict[str, Record]) -> dict[str, str]:
    return {tenant: record.stamp.sum for tenant, record in tenants.items()}
