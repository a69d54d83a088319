"""One request's way through a fleet of three regions, by the core's own functions: no sockets, no signatures, no clock.

`travel` is the entry gateway's loop in twenty lines: decide, and while a peer or a connection says no, follow. The
model test runs it for every fleet, the test on real workers compares them with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from gateway.core.following import Event, Trail, Unconnected, flag_of, follow
from gateway.core.hop import Hop, Reason, Serve, Unavailable, Verdict, decide_hop, judge, unavailable
from gateway.core.placement import Placement
from gateway.core.routing import Kind, decide, unknown_placement
from gateway.core.tenancy import RequestFacts, Resolved, Source
from gateway.core.view import View
from tests.support.facts import knowing

TENANT = Resolved("acme", Source.HOST, "host: {tenant}.example.com")


class Site(Enum):
    """One region's application. `DEAD`: every gateway knows; `DYING`: dead, and nobody knows yet; `CUT`: its
    gateways cannot be connected from elsewhere, and nobody knows yet."""

    UP = "up"
    DEAD = "dead"
    DYING = "dying"
    CUT = "cut"


@dataclass
class Journey:
    """`end` is served, redirected, or the flag of a refusal; `region` is where it was served or sent to. `sends` are
    the regions that a hop was written to, `received` those whose application had the request."""

    end: str = ""
    region: str = ""
    sends: tuple[str, ...] = ()
    received: tuple[str, ...] = ()


Records = Callable[[str], Placement | None]
Sites = Callable[[str], Site]


@lru_cache(maxsize=1024)
def view_of(here: str, dead: frozenset[str], unknown: str | None = None) -> View:
    """What the gateways of `here` know: who is dead."""
    return knowing(here, here not in dead, unable=tuple(sorted(dead - {here})), unknown=unknown)


def travel(
    entry: str, request: RequestFacts, record_of: Records, site_of: Sites, dead: frozenset[str], unknown: str | None
) -> Journey:
    """What becomes of a client's request at `entry`. Facts are asked for when the request meets them."""
    journey = Journey()
    view, record = view_of(entry, dead, unknown), record_of(entry)
    decision = decide(request, TENANT, record, view, True)
    trail = Trail(record, True) if record is not None else Trail(unknown_placement("acme", unknown or entry), False)
    while True:
        event: Event
        at = decision.region
        match decision.kind:
            case Kind.EXTERNAL_REDIRECT:
                journey.end, journey.region = "redirected", at
                return journey
            case Kind.LOCAL:
                if site_of(entry) in (Site.UP, Site.CUT):
                    journey.received += (entry,)
                    journey.end, journey.region = "served", entry
                    return journey
                event = Unconnected("upstream_connect")
            case Kind.INTERNAL_REDIRECT if site_of(at) is Site.CUT:
                event = Unconnected("region_unreachable")
            case Kind.INTERNAL_REDIRECT:
                journey.sends += (at,)
                answer = _hop(entry, at, decision.reason, trail, request, record_of(at), site_of(at), dead)
                if answer is None:
                    journey.received += (at,)
                    journey.end, journey.region = "served", at
                    return journey
                if isinstance(answer, str):
                    journey.end = answer
                    return journey
                event = answer
            case _:
                journey.end = decision.flag
                return journey
        before = Trail(trail.record, trail.recorded, len(journey.sends), trail.struck)
        step = follow(event, at, before, request, TENANT, view)
        assert step.decision.flag or step.decision.kind is not Kind.REJECT, flag_of(event)
        decision, trail = step.decision, step.trail


def _hop(
    source: str,
    to: str,
    reason: str,
    trail: Trail,
    request: RequestFacts,
    theirs: Placement | None,
    site: Site,
    dead: frozenset[str],
) -> Verdict | Unavailable | str | None:
    """What the gateway of `to` answers: None when its application has the request, a flag when it is a loop."""
    ours = trail.record
    version = ours.version if trail.recorded else None
    hop = Hop(source, to, "acme", version, ours.home, ours.standby, ours.failover, Reason(reason), 5.0, 0, "", {})
    view = view_of(to, dead)
    decided = decide_hop(hop, theirs, view, request)
    if decided.decision.kind is Kind.LOCAL:
        if site is Site.UP:
            return None
        judged = judge(hop, theirs, view, request)
        assert isinstance(judged, Serve)
        return unavailable(judged)
    if decided.verdict is None:
        return "region_disagrees" if decided.decision.flag == "loop" else decided.decision.flag
    return decided.verdict
