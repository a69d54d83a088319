"""Where does this request go? `decide` is region routing whole: rules 1 to 5 of DESIGN 5.3, in that order; between 2
and 3, in a region that is cut off from all others, what the tenant's `partition` says.

A pure function of the request, its tenant's record and the View. It never looks at a clock, never picks an endpoint,
and never takes a byte of a Location from the request but the target: a client that chooses its Host chooses no
redirect. What a *hop* may ask for is judged in `core.hop`; `covers` and `candidate` are shared with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from gateway.core.placement import Failover, Misroute, Partition, Placement, State
from gateway.core.tenancy import UNTRACED, RequestFacts, Resolved, Source, Trace
from gateway.core.view import Ability, View, region_cluster

_DNS_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
"""RFC 1123, 2.1: an id such as `a_b` or `-a` is an id, but no host name that every client resolves."""

_PUBLIC: Final = re.compile(
    r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?\Z", re.IGNORECASE
)
"""A placement's public URL: an origin. A record that holds anything else redirects nobody."""

_WEIGHT: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")
"""qvalue, RFC 9110, 12.4.2."""

_DEFAULT_PORT: Final = {"http": "80", "https": "443"}
_READS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_REDIRECTED: Final = frozenset((b"GET", b"HEAD"))
_NOT_ACROSS: Final = frozenset((Source.HEADER, Source.COOKIE, Source.QUERY, Source.TOKEN))
"""What a client need not bring along to another origin, or what would then name the tenant twice."""


class Kind(StrEnum):
    """What region routing concluded; these are the values in the access log and in metrics."""

    LOCAL = "local"
    INTERNAL_REDIRECT = "internal_redirect"
    EXTERNAL_REDIRECT = "external_redirect"
    HOLD = "hold"
    REJECT = "reject"


ENDPOINTS: Final = {
    Kind.LOCAL: "forward",
    Kind.INTERNAL_REDIRECT: "forward",
    Kind.EXTERNAL_REDIRECT: "redirect",
    Kind.HOLD: "reply",
    Kind.REJECT: "reply",
}
"""The endpoint filter that carries each of them out."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`region` serves, or would; `cluster` is where to forward (`region:NAME` for another region's gateways).

    `reason` is a word for the log. `flag` is set for `reject`, `detail` where its title says too little; `location` for
    `external_redirect`.
    """

    kind: Kind
    reason: str
    region: str = ""
    cluster: str = ""
    flag: str = ""
    location: bytes = b""
    detail: str = ""


def decide(
    request: RequestFacts,
    resolved: Resolved,
    placement: Placement | None,
    view: View,
    complete: bool,
    trace: Trace | None = None,
    scheme: str | None = None,
    place: float = 0.0,
) -> Decision:
    """What happens to a client's request. `complete`: the tenant map's completeness mark stands. `place` is the
    client's among those that come back to a cluster (`core.ramp`).

    `scheme` is the client's (`http`, `https`) where a trusted proxy said so. None: not known, and then a Location
    that is our own URL but for the scheme is no redirect either, since it would come back here for ever.
    """
    if (
        placement is not None
        and placement.home == view.region
        and placement.state is State.ACTIVE
        and not view.isolated
        and trace is None
    ):
        name = placement.cluster or view.route(request.target)
        cluster = view.clusters.get(name)
        if cluster is not None and cluster.can_serve and place < cluster.share:
            return _local(view.region, name, "home")
    steps = UNTRACED if trace is None else trace
    if placement is None:
        if not complete:
            steps.add("rule 1: known", "the map is not complete")
            return _reject("map_unavailable", "map")
        if view.unknown is None:
            steps.add("rule 1: known", "not in the map")
            return _reject("tenant_unknown", "unknown")
        steps.add("rule 1: known", f"not in the map; tenancy.unknown is {view.unknown}")
        placement = unknown_placement(resolved.tenant, view.unknown)
    else:
        steps.add("rule 1: known, version", placement.version)
    refused = refuse_state(placement)
    steps.add("rule 2: state", placement.state)
    if refused is None and view.isolated:
        refused = refuse_cut_off(placement, request, view)
        outcome = "serves this request" if refused is None else "refuses this request"
        steps.add("cut off from every other region: partition {}", outcome, placement.partition)
    if refused is not None:
        return refused
    if placement.home == view.region:
        return _home_here(request, placement, view, steps, place)
    return _home_elsewhere(request, resolved, placement, view, steps, scheme, place)


def unknown_placement(tenant: str, region: str) -> Placement:
    """The record that a tenant without one is taken to have, where `tenancy.unknown` names a region."""
    return Placement(tenant=tenant, home=region)


def refuse_state(placement: Placement) -> Decision | None:
    """Rule 2. A held tenant is refused until holding exists: answering it elsewhere could apply a write twice."""
    match placement.state:
        case State.ACTIVE:
            return None
        case State.DELETED:
            return _reject("tenant_unknown", "deleted", placement.home)
        case State.SUSPENDED:
            return _reject("tenant_suspended", "suspended", placement.home)
        case State.HELD:
            return _reject("held_too_long", "held", placement.home)


def refuse_cut_off(placement: Placement, request: RequestFacts, view: View) -> Decision | None:
    """What the tenant's `partition` refuses while this region hears from no other: another may have taken it over."""
    policy = placement.partition
    if not view.isolated or policy is Partition.SERVE or (policy is Partition.READ_ONLY and reads(request)):
        return None
    only = "only reads are served" if policy is Partition.READ_ONLY else "no request is served"
    detail = (
        f"region {view.region} has heard from no other region for longer than tenant_map.partition_after, and "
        f"meanwhile, by this tenant's policy (partition: {policy.value}), {only}"
    )
    return Decision(Kind.REJECT, "partition", placement.home, flag="partitioned", detail=detail)


def reads(request: RequestFacts) -> bool:
    """Whether the request only reads (RFC 9110, 9.2.1): a standby may serve it, and two applications may receive it."""
    return request.method in _READS and not _upgrades(request)


def covers(failover: Failover, request: RequestFacts) -> bool:
    """Whether a standby may serve this request while home cannot."""
    match failover:
        case Failover.ALL:
            return True
        case Failover.READS:
            return reads(request)
        case Failover.MANUAL:
            return False


def cluster_of(placement: Placement | None, request: RequestFacts, view: View) -> str:
    """The application's cluster: the record's, otherwise by route."""
    if placement is not None and placement.cluster is not None:
        return placement.cluster
    return view.route(request.target)


def can_serve(view: View, cluster: str) -> bool:
    """Whether this gateway has the cluster and control holds it for serving."""
    known = view.clusters.get(cluster)
    return known is not None and known.can_serve


def _home_here(request: RequestFacts, placement: Placement, view: View, steps: Trace, place: float) -> Decision:
    """Rule 3. Who is not to come back yet goes to a standby that takes it; without one our cluster serves it."""
    cluster = cluster_of(placement, request, view)
    if can_serve(view, cluster):
        share = view.share(view.region, cluster)
        if place < share:
            steps.add("rule 3: home is here, cluster {}", "serves", cluster)
            return _local(view.region, cluster, "home")
        steps.add("rule 3: home is here, cluster {}", f"takes {share:.0%} of who can go elsewhere", cluster)
        return _standby(request, placement, view, cluster, steps, place) or _local(view.region, cluster, "home")
    steps.add("rule 3: home is here, cluster {}", "cannot serve", cluster)
    decision = _failover(request, placement, view, cluster, steps, place)
    known = view.clusters.get(cluster)
    if decision is None and known is not None and known.broken:
        steps.add("no standby", "its breaker answers")  # it knows when it is worth to ask again, and lets probes pass
        return _local(view.region, cluster, "home")
    return decision or _reject("cluster_unavailable", "home", view.region)


def _home_elsewhere(
    request: RequestFacts,
    resolved: Resolved,
    placement: Placement,
    view: View,
    steps: Trace,
    scheme: str | None,
    place: float,
) -> Decision:
    """Rules 4 and 5; before them, what operators switched: in failover mode who stands by here is served here."""
    home = placement.home
    cluster = cluster_of(placement, request, view)
    if view.region in view.takes_over and (view.takes_all or view.region in placement.standby):
        if can_serve(view, cluster):
            steps.add("failover mode: {}", "serves, here", view.region)
            return _local(view.region, cluster, "failover_mode")
        steps.add("failover mode: {}", "cannot serve", view.region)
    ability = view.ability(home, cluster) if home in view.regions else Ability.UNREACHABLE
    steps.add("rule 4: home is {}, its cluster {}", ability, home, cluster)
    if ability is not Ability.ABLE:
        flag = "cluster_unavailable" if ability is Ability.UNABLE else "region_unreachable"
        return _failover(request, placement, view, cluster, steps, place) or _reject(flag, "home", home)
    share = view.share(home, cluster)
    if place >= share:
        steps.add("rule 4: {} takes {:.0%} of who can go elsewhere", "not this one", home, share)
        if (decision := _standby(request, placement, view, cluster, steps, place)) is not None:
            return decision
    misroute = view.misroute if placement.misroute is None else placement.misroute
    if misroute is Misroute.INTERNAL:
        steps.add("rule 5: misroute internal", "carried there")
        return _carry(view, home)
    if misroute is Misroute.AUTO and not _is_browser(request):
        steps.add("rule 5: misroute auto", "not a browser's page load: carried there")
        return _carry(view, home)
    banned, location = external_location(request, resolved, placement, view, scheme)
    steps.add("rule 5: misroute {}", f"carried there: {banned}" if banned else "sent there by a 307", misroute)
    if banned:
        return _carry(view, home)
    return Decision(Kind.EXTERNAL_REDIRECT, "misroute", home, location=location)


def _failover(
    request: RequestFacts, placement: Placement, view: View, cluster: str, steps: Trace, place: float
) -> Decision | None:
    """The first candidate, if there is one: one that takes this client if any does, else one that is able all the same:
    a region that is coming back, or drained, serves whom nobody else can."""
    found = _standby(request, placement, view, cluster, steps, place)
    if found is None and view.ramps:
        found = _standby(request, placement, view, cluster, steps, 0.0, is_last=True)
    return found


def _standby(
    request: RequestFacts,
    placement: Placement,
    view: View,
    cluster: str,
    steps: Trace,
    place: float,
    is_last: bool = False,
) -> Decision | None:
    """The first standby that takes this client (`is_last`: whatever its share): us, or a region known to be able. Only
    where the request is covered, or that region's operators put it into failover mode."""
    covered = covers(placement.failover, request)
    if not covered:
        steps.add("failover {}", "does not cover this request", placement.failover)
    for region in placement.standby:
        if not covered and region not in view.takes_over:
            continue
        if not is_last and place >= view.share(region, cluster):
            steps.add("standby {}", "does not take this one", region)
            continue
        if region == view.region:
            if can_serve(view, cluster):
                steps.add("standby {}", "serves, here", region)
                return _local(region, cluster, "failover")
        elif can_carry(view, region) and view.ability(region, cluster) is Ability.ABLE:
            steps.add("standby {}", "able", region)
            return _internal(region, "failover")
        steps.add("standby {}", "cannot serve", region)
    return None


def can_carry(view: View, region: str) -> bool:
    """Whether a hop to `region` could be made at all: we know its gateways and have a key to sign with."""
    gateways = view.clusters.get(region_cluster(region))
    return gateways is not None and bool(gateways.endpoints) and bool(view.hop_keys)


def _carry(view: View, home: str) -> Decision:
    """The internal redirect of rule 5. With `misroute: external` there may be no key: then nobody can carry it."""
    if can_carry(view, home):
        return _internal(home, "misroute")
    return _reject("region_unreachable" if view.hop_keys else "misdirected", "misroute", home)


def external_location(
    request: RequestFacts, resolved: Resolved, placement: Placement, view: View, scheme: str | None = None
) -> tuple[str, bytes]:
    """Why the client must not be sent to its home region's public URL ("" if it may), and the Location if it may."""
    home = placement.home
    own = placement.public.get(home)
    region = view.regions.get(home)
    template = None if region is None else region.public
    if request.values(b"authorization"):
        return "Authorization is dropped across origins", b""
    if _upgrades(request):
        return "an upgrade does not follow redirects", b""
    for other in view.regions.values():
        if other.public is not None and other.public.host.covers(request.host):
            return f"Host is a public name of {other.name}", b""
    if resolved.source in _NOT_ACROSS:
        return f"the tenant came from a {resolved.source}", b""
    if not _DNS_LABEL.match(resolved.tenant):
        return "the tenant's id is no DNS label", b""
    if own is not None:
        match = _PUBLIC.match(own.replace("{tenant}", resolved.tenant))
        if match is None:
            return "the tenant's public URL is no origin", b""
        origin = match[0].removesuffix("/")
    else:
        if resolved.source is Source.HOSTS:
            return "the tenant came from its own host", b""
        if template is None or not template.host.has_tenant:
            return f"{home} has no public name for each tenant", b""
        origin = template.render(resolved.tenant)
    if _is_own(origin, request, scheme):
        return "Location would be the request's own URL", b""
    return "", origin.encode("ascii") + request.target


def _is_own(origin: str, request: RequestFacts, scheme: str | None) -> bool:
    """Whether `origin` is where this request was sent. Targets are equal: Location takes the request's."""
    to_scheme, _, authority = origin.lower().partition("://")
    name, port = _authority(authority)
    _, own_port = _authority(request.host_field.decode("latin-1").strip())
    if name.rstrip(".") != request.host:
        return False
    port = port or _DEFAULT_PORT[to_scheme]
    if scheme is None:
        return port == own_port or (not own_port and port in _DEFAULT_PORT.values())
    return scheme == to_scheme and port == (own_port or _DEFAULT_PORT[scheme])


def _authority(text: str) -> tuple[str, str]:
    """(host, port) of `host[:port]`, brackets kept; port "" where it names none."""
    host, colon, port = text.rpartition(":")
    return (host, port) if colon and not port.endswith("]") else (text, "")


def _upgrades(request: RequestFacts) -> bool:
    return request.upgrade or bool(request.values(b"upgrade"))


def _is_browser(request: RequestFacts) -> bool:
    """A browser's page load, which follows a redirect and shows the new address."""
    navigates = all(mode == b"navigate" for mode in request.values(b"sec-fetch-mode"))
    return request.method in _REDIRECTED and navigates and accepts_html(request)


def accepts_html(request: RequestFacts) -> bool:
    """Whether `Accept` names the media type text/html itself (no wildcard), with q > 0 (RFC 9110, 12.5.1)."""
    accept = b",".join(request.values(b"accept")).lower()
    if b"text/html" not in accept:
        return False
    for item in accept.decode("latin-1").split(","):
        media, *parameters = item.split(";")
        if media.strip(" \t") == "text/html":
            weight = next((p.strip(" \t")[2:] for p in parameters if p.strip(" \t").startswith("q=")), "1")
            if _WEIGHT.match(weight) and float(weight) > 0:
                return True
    return False


def _reject(flag: str, reason: str, region: str = "") -> Decision:
    return Decision(Kind.REJECT, reason, region, flag=flag)


@lru_cache(maxsize=4096)
def _local(region: str, cluster: str, reason: str) -> Decision:
    """Interned: names of regions and clusters come from the configuration, so there are few."""
    return Decision(Kind.LOCAL, reason, region, cluster)


@lru_cache(maxsize=1024)
def _internal(region: str, reason: str) -> Decision:
    return Decision(Kind.INTERNAL_REDIRECT, reason, region, region_cluster(region))
