"""Operators, by the rules of who may write (DESIGN 6): home, standby and state change in the tenant's home region,
elsewhere only as a takeover; anything else in any region; always by compare-and-set on what was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway.core.placement import Placement, State
from gateway.core.replication import encode_body
from tests.simulator.redis import Down, Record

if TYPE_CHECKING:
    from tests.simulator.world import Region, World

ASKED_MAX: Final = 3
"""Regions that a tool asks on its way to a tenant's home: more than that are not of one mind yet."""


class Operators:
    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0

    def begin(self) -> None:
        """Every map is complete, most tenants exist."""
        for region in self._world.regions:
            region.redis.mark_complete()
        for tenant in self._world.tenants:
            if self._world.rng.random() < 0.9:
                self.create(tenant)

    def create(self, tenant: str = "") -> None:
        """A tenant that this operator's region does not know, in any home."""
        world = self._world
        tenant = tenant or world.rng.choice(world.tenants)
        region, home = world.any_region(), world.any_region()
        try:
            if region.redis.get(tenant) is None and world.reaches(region, home):
                self._submit(region, home, Placement(tenant=tenant, home=home.name), None, 1)
        except Down:
            pass

    def label(self) -> None:
        """Any other field, wherever the operator is."""
        world = self._world
        region = world.any_region()
        tenant = world.rng.choice(world.tenants)
        try:
            record = region.redis.get(tenant)
        except Down:
            return
        if record is not None:
            placement = world.placement(tenant, record)
            if placement.state is not State.DELETED:
                self._submit(region, region, placement, record, placement.version.epoch)

    def epoch(self) -> None:
        """Home, standby or state, in the home region: that is where its record says that it is at home there."""
        world = self._world
        here = world.any_region()
        tenant = world.rng.choice(world.tenants)
        at, record = here, None
        try:
            for _ in range(ASKED_MAX):
                if not world.reaches(here, at):
                    return
                record = at.redis.get(tenant)
                if record is None:
                    return
                home = world.placement(tenant, record).home
                if home == at.name:
                    break
                at = next(region for region in world.regions if region.name == home)
            else:
                return
        except Down:
            return
        placement = world.placement(tenant, record)
        self._submit(here, at, self._another(placement), record, placement.version.epoch + 1)

    def take_over(self) -> None:
        """The same, elsewhere: the region makes itself the tenant's home, or says that it is deleted."""
        world = self._world
        here = world.any_region()
        tenant = world.rng.choice(world.tenants)
        try:
            record = here.redis.get(tenant)
        except Down:
            return
        if record is not None:
            placement = world.placement(tenant, record)
            if placement.home != here.name:
                state = State.DELETED if world.rng.random() < 0.1 else State.ACTIVE
                changed = msgspec.structs.replace(placement, home=here.name, state=state)
                self._submit(here, here, changed, record, placement.version.epoch + 1, takeover=True)

    def _another(self, placement: Placement) -> Placement:
        """With another home, standby or state. On a tombstone: the tenant is there again."""
        rng = self._world.rng
        chance = rng.random()
        if placement.state is State.DELETED:
            return msgspec.structs.replace(placement, state=State.ACTIVE)
        if chance < 0.25:
            return msgspec.structs.replace(placement, state=State.DELETED)
        if chance < 0.65:
            return msgspec.structs.replace(placement, home=self._world.any_region().name)
        if chance < 0.8:
            return msgspec.structs.replace(placement, standby=(self._world.any_region().name,))
        state = State.SUSPENDED if placement.state is State.ACTIVE else State.ACTIVE
        return msgspec.structs.replace(placement, state=state)

    def _submit(
        self, here: Region, to: Region, placement: Placement, seen: Record | None, epoch: int, *, takeover: bool = False
    ) -> None:
        """Send it to a region's Redis, where it arrives now, later, twice or never."""
        self._number += 1
        changed = msgspec.structs.replace(placement, labels={"n": str(self._number)}, takeover=takeover)
        self._world.send(here, to, self._arrive, (to, changed, seen, epoch))

    def _arrive(self, to: Region, placement: Placement, seen: Record | None, epoch: int) -> None:
        world = self._world
        tenant = placement.tenant
        was = to.redis.get(tenant)
        expected = None if seen is None else seen.stamp.version
        record = to.redis.write(tenant, expected, epoch, encode_body(placement))
        if record is None:
            return
        written = msgspec.structs.replace(placement, version=record.stamp.version)
        write = world.audit.wrote(tenant, was, record, written, to.name)
        write.acked = not world.loses_answer()
        if world.verbose:
            world.say(f"written in {to.name}: {write}{'' if write.acked else ' (nobody hears of it)'}")
