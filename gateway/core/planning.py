"""What an operator's wish means for the replicated map, pure: which record changes how, in which region it has to be
written, with which epoch, and which rules of safety the whole of it breaks.

A change is complete: whoever executes it writes `placement` over the version `expected`, in the Redis of `region`, or
not at all. It was planned on one version of the record and is void for any other, so what an operator was shown is
what happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.core.limits import TenantLimits, written_limits
from gateway.core.placement import Placement, State, Version

KEYS: Final = (
    *("home", "standby", "failover", "hosts", "public"),
    *("misroute", "state", "cluster", "limits", "allow", "deny", "partition", "labels"),
)
"""What an operator says of a tenant, in the order of the documentation. All else in a record is the tools' own."""

_DEFAULTS: Final = Placement(tenant="", home="")

MOVES_MIN: Final = 10
"""So many tenants may always move in one change: a small map moves by large fractions."""

LOSS_MIN: Final = 10
"""As for the loss guard of a tenants file: fewer may always go, unless they are all there are."""

NAMED_MAX: Final = 5
"""How many tenants a broken rule names: enough to find out what kind of mistake it is."""


class Kind(StrEnum):
    """What becomes of a tenant."""

    CREATED = "created"
    CHANGED = "changed"
    MOVED = "moved"
    DELETED = "deleted"


class Difference(NamedTuple):
    """One key: what it was, and what it is to be. `old` None of a record that is new."""

    key: str
    old: object
    new: object


class Author(NamedTuple):
    """Who changes it, and why (may be empty)."""

    by: str
    why: str


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One record to write. `region`: whose Redis it has to be written in; `expected` None: there is no record yet.

    `placement` is without a version: that is given where it is written, with `epoch` as its first part.
    """

    tenant: str
    kind: Kind
    differences: tuple[Difference, ...]
    region: str
    expected: Version | None
    epoch: int
    placement: Placement
    standing: tuple[str, ...] = ()
    """The regions that it has now, home first: none of a tenant that is created."""
    stale_epoch: int = 0
    """The epoch that the wish was written for, where the record has moved on since."""
    held: bool = False
    """It is held now: something else is moving it."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(difference.key for difference in self.differences)


def plan(wanted: Placement, current: Placement | None, own: str, author: Author) -> Change | None:
    """The change that makes `current` what `wanted` says, seen from the region `own`; None when it is that already.

    Home, standby, state and epoch change in the region where the tenant lives now, everything else here; a tenant that
    is new begins where it will live (DESIGN 6). `held` is a tool's word: a wish for `active` leaves it alone.
    """
    exists = current is not None and current.state is not State.DELETED
    if wanted.state is State.DELETED:
        return tombstone(current, author) if current is not None and exists else None
    if current is None or not exists:
        return _creation(wanted, current, author)
    state = current.state if current.state is State.HELD and wanted.state is State.ACTIVE else wanted.state
    differences = [
        Difference(key, _said(old), _said(new))
        for key in KEYS
        if (new := state if key == "state" else getattr(wanted, key)) != (old := getattr(current, key))
        and not (key == "hosts" and sorted(new) == sorted(old))
    ]
    epoch, asked = current.version.epoch, wanted.version.epoch
    grows = any(difference.key in ("home", "standby", "state") for difference in differences)
    stale = asked if grows and 0 < asked < epoch else 0
    epoch = max(epoch + grows, asked)
    if epoch > current.version.epoch and not grows:
        differences.append(Difference("epoch", current.version.epoch, epoch))
        grows = True
    if not differences:
        return None
    return Change(
        tenant=current.tenant,
        kind=Kind.MOVED if wanted.home != current.home else Kind.CHANGED,
        differences=tuple(differences),
        region=current.home if grows else own,
        expected=current.version,
        epoch=epoch,
        placement=_content(wanted, state, _kept_claims(wanted.hosts, current), author),
        standing=(current.home, *current.standby),
        stale_epoch=stale,
        held=current.state is State.HELD,
    )


def _said(value: object) -> object:
    """A value as a tenants file has it."""
    return written_limits(value) if isinstance(value, TenantLimits) else value


def tombstone(current: Placement, author: Author) -> Change:
    """The deletion of a tenant that there is: a record that says so. It keeps no host, so that another may claim it."""
    return Change(
        tenant=current.tenant,
        kind=Kind.DELETED,
        differences=(Difference("state", current.state, State.DELETED),),
        region=current.home,
        expected=current.version,
        epoch=current.version.epoch + 1,
        placement=Placement(
            tenant=current.tenant, home=current.home, state=State.DELETED, by=author.by, why=author.why
        ),
        standing=(current.home, *current.standby),
        held=current.state is State.HELD,
    )


def _creation(wanted: Placement, gone: Placement | None, author: Author) -> Change:
    """A tenant that is new, or was deleted: then its next epoch, in the region that had it."""
    differences = [
        Difference(key, None, _said(value))
        for key in KEYS
        if (value := getattr(wanted, key)) != getattr(_DEFAULTS, key)
    ]
    if wanted.version.epoch > 1:
        differences.append(Difference("epoch", None, wanted.version.epoch))
    return Change(
        tenant=wanted.tenant,
        kind=Kind.CREATED,
        differences=tuple(differences),
        region=wanted.home if gone is None else gone.home,
        expected=None if gone is None else gone.version,
        epoch=max(1 if gone is None else gone.version.epoch + 1, wanted.version.epoch),
        placement=_content(wanted, wanted.state, {}, author),
    )


def _content(wanted: Placement, state: State, claims: dict[str, int], author: Author) -> Placement:
    return Placement(
        tenant=wanted.tenant,
        home=wanted.home,
        standby=wanted.standby,
        failover=wanted.failover,
        hosts=wanted.hosts,
        public=wanted.public,
        misroute=wanted.misroute,
        state=state,
        cluster=wanted.cluster,
        labels=wanted.labels,
        partition=wanted.partition,
        limits=wanted.limits,
        allow=wanted.allow,
        deny=wanted.deny,
        claims=claims,
        by=author.by,
        why=author.why,
    )


def _kept_claims(hosts: Collection[str], current: Placement) -> dict[str, int]:
    """A host that stays keeps the time of its first claim; a new one is claimed by the version that brings it."""
    return {host: current.claimed(host) for host in hosts if host in current.hosts}


def moved_to(change: Change, own: str) -> Change:
    """This change as a takeover: written in the region `own`, where it does not belong."""
    placement = msgspec.structs.replace(change.placement, takeover=True)
    return msgspec.structs.replace(change, region=own, placement=placement)


# --- safety


class Limits(NamedTuple):
    """`moves` is a fraction of all tenants, or a number of them; `loss` a fraction; `lag_s` in seconds."""

    moves: float | int = 0.1
    loss: float = 0.05
    lag_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known of the regions. `lag_s` of every region but our own; None: nobody knows.

    `lost` are the regions whose Redis does not answer and that the operator takes over from. `complete`: whether the
    map that was planned on is whole; `waiting`: what the loss guard holds up there, empty when nothing is.
    """

    own: str
    tenants: int
    regions: Collection[str]
    live: Mapping[str, int]
    lag_s: Mapping[str, float | None]
    lost: Collection[str] = ()
    complete: bool = True
    waiting: str = ""


@dataclass(slots=True)
class _Some:
    """A count, and the first few that were counted."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, tenant: str) -> None:
        self.count += 1
        if len(self.first) < NAMED_MAX:
            self.first.append(tenant)

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {more} more" if more else "")


@dataclass(slots=True)
class Tally:
    """What is kept of a plan however long it is: counts, and a few names for every rule."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    unchanged: int = 0
    regions: Counter[str] = field(default_factory=Counter)
    """How many changes have to be written where."""
    epochs: Counter[str] = field(default_factory=Counter)
    """As `regions`, of those that belong there: changes of home, standby, state, and creations."""
    moved_to: dict[str, _Some] = field(default_factory=dict)
    standings: dict[tuple[tuple[str, ...], tuple[str, ...]], _Some] = field(default_factory=dict)
    """(regions before, regions after) of the tenants whose regions change."""
    unknown: dict[str, _Some] = field(default_factory=dict)
    stale: _Some = field(default_factory=_Some)
    held: _Some = field(default_factory=_Some)

    @property
    def changes(self) -> int:
        return sum(self.kinds.values())

    def add(self, change: Change, regions: Collection[str]) -> None:
        """Count one change. `regions`: those of the configuration."""
        placement, keys = change.placement, change.keys
        self.kinds[change.kind] += 1
        self.regions[change.region] += 1
        if change.kind is not Kind.CHANGED or not {"standby", "state", "epoch"}.isdisjoint(keys):
            self.epochs[change.region] += 1
        if change.kind is Kind.MOVED:
            self.moved_to.setdefault(placement.home, _Some()).add(change.tenant)
        if change.kind is not Kind.DELETED:
            after = (placement.home, *placement.standby)
            if change.standing and after != change.standing:
                self.standings.setdefault((change.standing, after), _Some()).add(change.tenant)
            for region in after:
                if region not in regions:
                    self.unknown.setdefault(region, _Some()).add(change.tenant)
        if change.stale_epoch:
            self.stale.add(change.tenant)
        if change.held and not {"home", "standby", "state"}.isdisjoint(keys):
            self.held.add(change.tenant)


def broken_rules(tally: Tally, fleet: Fleet, limits: Limits) -> list[str]:
    """A line for every rule that this plan breaks. Empty: it may be applied."""
    return [
        *_not_whole(tally, fleet),
        *_unknown_regions(tally),
        *_too_many_moves(tally, fleet, limits),
        *_too_many_deletions(tally, fleet, limits),
        *_dead_targets(tally, fleet),
        *_nowhere_to_live(tally, fleet),
        *_lagging(tally, fleet, limits),
        *_overtaken(tally),
    ]


def _not_whole(tally: Tally, fleet: Fleet) -> list[str]:
    """A tenant that is not there only because the map lost it must not begin anew."""
    lines = []
    if tally.changes and not fleet.complete:
        lines.append(f"whole map: that of {fleet.own} is not complete (`tenants import` begins one)")
    if tally.changes and fleet.waiting:
        lines.append(f"whole map: that of {fleet.own} has lost records ({fleet.waiting}): `map confirm` first")
    return lines


def _unknown_regions(tally: Tally) -> list[str]:
    return [
        f"known regions: {some} would have {region}, which is not in the configuration"
        for region, some in tally.unknown.items()
    ]


def _too_many_moves(tally: Tally, fleet: Fleet, limits: Limits) -> list[str]:
    moved = tally.kinds[Kind.MOVED]
    share = limits.moves * fleet.tenants if isinstance(limits.moves, float) else limits.moves
    allowed = max(MOVES_MIN, int(share)) if isinstance(limits.moves, float) else limits.moves
    if moved <= allowed:
        return []
    targets = ", ".join(f"{some.count} to {region}" for region, some in tally.moved_to.items())
    return [f"moves at once: {moved} of {fleet.tenants} tenants would move ({targets}), at most {allowed} may"]


def _too_many_deletions(tally: Tally, fleet: Fleet, limits: Limits) -> list[str]:
    deleted = tally.kinds[Kind.DELETED]
    if not deleted or (deleted < fleet.tenants and (deleted < LOSS_MIN or deleted <= limits.loss * fleet.tenants)):
        return []
    if deleted >= fleet.tenants:
        return [f"loss guard: all {deleted} tenants would be deleted"]
    allowed = max(LOSS_MIN - 1, int(limits.loss * fleet.tenants))
    return [f"loss guard: {deleted} of {fleet.tenants} tenants would be deleted, at most {allowed} may"]


def _dead_targets(tally: Tally, fleet: Fleet) -> list[str]:
    return [
        f"target alive: no gateway of {region} is alive, and {some.count} tenants would move there ({some})"
        for region, some in tally.moved_to.items()
        if region in fleet.regions and not fleet.live.get(region)
    ]


def _nowhere_to_live(tally: Tally, fleet: Fleet) -> list[str]:
    """A tenant that stands in a region with a live gateway must not lose its last one."""
    return [
        f"last region: {some} would have {', '.join(after)} only, where no gateway is alive"
        for (before, after), some in tally.standings.items()
        if any(map(fleet.live.get, before)) and not any(map(fleet.live.get, after))
    ]


def _lagging(tally: Tally, fleet: Fleet, limits: Limits) -> list[str]:
    if not tally.changes:
        return []
    lines = []
    for region, lag_s in sorted(fleet.lag_s.items()):
        if region in fleet.lost:
            continue
        if lag_s is None:
            lines.append(f"map lag: nothing is known of how far {fleet.own} is behind {region}")
        elif lag_s >= limits.lag_s:
            lines.append(f"map lag: {fleet.own} is {lag_s:.1f} s behind {region}, at most {limits.lag_s:g} s may it be")
    return lines


def _overtaken(tally: Tally) -> list[str]:
    lines = []
    if tally.stale.count:
        lines.append(
            f"epoch: {tally.stale} changed home, standby or state since the file was written (its `epoch` is older "
            "than the map's): export again, or leave `epoch` out"
        )
    if tally.held.count:
        lines.append(f"held: {tally.held} is being moved by something else")
    return lines
