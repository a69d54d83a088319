"""What next, after a peer's verdict or a connection that could not be made (DESIGN 5.4). Only the entry gateway asks.

`follow` decides again by the same rules as before (`routing.decide`), but from the newer record that a verdict told of,
or with the region struck out that cannot serve. It sends at most `SENDS_MAX` times across regions and never goes on
unless it is known that no application has the request; so at most one receives it. `Overrides` keeps what verdicts
told, for a tenant's later requests. Pure: a clock is an argument, and nothing here touches the map.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec

from gateway.core.hop import Unavailable, Verdict
from gateway.core.placement import Placement, newer
from gateway.core.routing import Decision, Kind, cluster_of, decide, unknown_placement
from gateway.core.tenancy import RequestFacts, Resolved
from gateway.core.view import View

SENDS_MAX: Final = 2
"""Cross-region sends of one request: one by our map, one by what a peer knew better. A third would be a search."""

OVERRIDE_S: Final = 60.0
"""How long a verdict stands without the map's confirming it: a map that is later than that has its own alarm."""

OVERRIDES_MAX: Final = 10_000
"""Tenants: about 5 MiB. More than that disagree only when a whole map is old; then the oldest ask once more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unconnected:
    """No connection could be made, so nothing was sent. `flag` is what the client hears if nothing else is left."""

    flag: str


Event = Verdict | Unavailable | Unconnected


@dataclasses.dataclass(frozen=True, slots=True)
class Trail:
    """What a request has been through. `record` was decided by; `recorded` is false where it stands for
    `tenancy.unknown`. `sends` are hops whose head was written; `struck` are the regions that cannot serve it."""

    record: Placement
    recorded: bool = True
    sends: int = 0
    struck: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What to do next, and the trail it was decided by. A `reject` ends the request with `decision.flag`."""

    decision: Decision
    trail: Trail


def flag_of(event: Event) -> str:
    """What a client hears when `event` leaves nothing to try."""
    match event:
        case Verdict():
            return "region_disagrees"
        case Unavailable():
            return "cluster_unavailable"
        case Unconnected(flag):
            return flag


def follow(
    event: Event,
    region: str,
    trail: Trail,
    request: RequestFacts,
    resolved: Resolved,
    view: View,
    scheme: str | None = None,
) -> Step:
    """Decide again after `event` from `region` (ours, when the application here could not be connected).

    A verdict's record must be newer than the one decided by: a peer that tells what we knew has nothing to tell.
    """
    flag = flag_of(event)
    if flag == "upstream_connect" and (trail.sends or trail.struck):
        flag = "cluster_unavailable"  # no longer one application's fault: other regions could not serve either
    match event:
        case Verdict():
            if trail.recorded and not newer(event.version, trail.record.version):
                return Step(_end(flag, region), trail)
            trail = dataclasses.replace(trail, record=told(trail.record, event), recorded=True)
        case Unavailable():
            record = msgspec.structs.replace(trail.record, standby=event.standby, failover=event.failover)
            trail = dataclasses.replace(trail, record=record, struck=trail.struck | {region})
        case Unconnected():
            trail = dataclasses.replace(trail, struck=trail.struck | {region})
    out = trail.struck
    while True:
        decision = decide(
            request, resolved, trail.record, _without(view, out, trail.record, request), True, None, scheme
        )
        if decision.kind is Kind.REJECT:
            return Step(_end(flag, decision.region), trail)
        if decision.kind is not Kind.INTERNAL_REDIRECT or trail.sends < SENDS_MAX:
            return Step(decision, trail)
        if decision.reason != "failover":
            return Step(_end(flag, decision.region), trail)
        out |= {decision.region}  # no send is left for this standby; a later one may be here


def told(record: Placement, verdict: Verdict) -> Placement:
    """`record` with what the verdict says of it; the rest (state, cluster, labels) is what we know ourselves."""
    return msgspec.structs.replace(
        record, version=verdict.version, home=verdict.home, standby=verdict.standby, failover=verdict.failover
    )


def _without(view: View, struck: frozenset[str], record: Placement, request: RequestFacts) -> View:
    """The View as this request has come to know it: struck regions are unreachable, and ours cannot serve."""
    others = struck - {view.region}
    if others:
        view = dataclasses.replace(view, unreachable=view.unreachable | others)
    if view.region in struck:
        name = cluster_of(record, request, view)
        known = view.clusters.get(name)
        if known is not None:
            clusters = {**view.clusters, name: dataclasses.replace(known, can_serve=False, broken=False)}
            view = dataclasses.replace(view, clusters=clusters)
    return view


def _end(flag: str, region: str) -> Decision:
    return Decision(Kind.REJECT, "disagreement" if flag == "region_disagrees" else "failover", region, flag=flag)


class _Override:
    """`base` and `merged` are the last answer: a tenant's requests see one record, not one each."""

    __slots__ = ("base", "merged", "until", "verdict")

    def __init__(self, verdict: Verdict, until: float) -> None:
        self.verdict = verdict
        self.until = until
        self.base: Placement | None = None
        self.merged: Placement | None = None


class Overrides:
    """Verdicts that stand above the map, for this worker's clients, never for hops: a hop is judged by the map.

    `items` is read directly (it is empty nearly always), written through `put`. The oldest comes first.
    """

    __slots__ = ("_size_max", "items")

    def __init__(self, size_max: int = OVERRIDES_MAX) -> None:
        self._size_max = size_max
        self.items: dict[str, _Override] = {}

    def put(self, tenant: str, verdict: Verdict, now: float) -> None:
        """Remember what a peer knew better. Of two verdicts the newer one stays, however late it comes."""
        known = self.items.get(tenant)
        if known is not None:
            if not newer(verdict.version, known.verdict.version):
                return
            del self.items[tenant]
        elif len(self.items) >= self._size_max:
            del self.items[next(iter(self.items))]
        self.items[tenant] = _Override(verdict, now + OVERRIDE_S)

    def over(self, tenant: str, placement: Placement | None, unknown: str | None, now: float) -> Placement | None:
        """The record to decide by: the map's, or what stands above it. `unknown` is the View's `tenancy.unknown`.

        A tenant that the map does not hold, and no longer routes, is not brought back.
        """
        known = self.items.get(tenant)
        if known is None:
            return placement
        if now >= known.until or (placement is not None and not newer(known.verdict.version, placement.version)):
            del self.items[tenant]
            return placement
        if known.merged is None or known.base is not placement:
            base = placement
            if base is None:
                if unknown is None:
                    return None
                base = unknown_placement(tenant, unknown)
            known.base, known.merged = placement, told(base, known.verdict)
        return known.merged

    def expire(self, now: float) -> None:
        """Let go of those whose time is over: they lie in the order of their time."""
        while self.items:
            tenant = next(iter(self.items))
            if now < self.items[tenant].until:
                return
            del self.items[tenant]
