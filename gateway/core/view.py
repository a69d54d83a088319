"""The View: one frozen snapshot of everything that decides requests, but for the tenant map.

Control or a worker builds it (`settings.view.build_view`) from the settings and from the conditions that control has
found out: resolved addresses, endpoints that are down, what peers said. Workers swap it by reference and read it once
per exchange. It holds no socket, no counter and no mutable state: pools, limiters and caches live beside it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway.core.addresses import AddressList
from gateway.core.balancing import PLAIN, Balance
from gateway.core.breaker import BreakerRule
from gateway.core.limits import Throttle
from gateway.core.outliers import OutlierRule
from gateway.core.placement import Misroute
from gateway.core.retry import RETRIES, Retries
from gateway.core.shedding import Shedding

REGION_CLUSTER: Final = "region:"
"""`region:eu-west-1` is the cluster of that region's gateways (their hop listeners)."""


class Ability(StrEnum):
    """What this gateway knows of a cluster of another region, from that region's own gateways."""

    ABLE = "able"
    UNABLE = "unable"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class HostTemplate:
    """`{tenant}.example.com`: at most one `{tenant}`, which stands for exactly one DNS label.

    `prefix` and `suffix` are lower case; without `{tenant}` (`has_tenant` false) `prefix` is the whole name.
    """

    prefix: str
    suffix: str
    has_tenant: bool

    def match(self, host: str) -> str | None:
        """The label that stands for the tenant in `host` (lower case, no port, no trailing dot), or None."""
        if not self.has_tenant:
            return None
        size = len(host) - len(self.suffix)
        if size <= len(self.prefix) or not host.endswith(self.suffix) or not host.startswith(self.prefix):
            return None
        label = host[len(self.prefix) : size]
        return None if "." in label else label

    def covers(self, host: str) -> bool:
        """Whether `host` is one of the names that this template stands for."""
        return self.match(host) is not None if self.has_tenant else host == self.prefix

    def render(self, tenant: str) -> str:
        return f"{self.prefix}{tenant}{self.suffix}" if self.has_tenant else self.prefix


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """A region's `public` template, or a placement's public URL: scheme, host template, port. It has no path."""

    scheme: str
    host: HostTemplate
    port: int | None

    def render(self, tenant: str) -> str:
        """`https://acme.eu-west-1.example.com`, without a trailing slash: a raw request target is appended."""
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{self.host.render(tenant)}{port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One host:port of a cluster. `name` is as configured; `address` is what is dialled (an IP where known).

    `priority` and `weight` are those of SRV records (RFC 2782): the lowest priority value with a usable endpoint takes
    all requests, and weights are compared within it.
    """

    name: str
    address: str
    port: int
    up: bool = True
    draining: bool = False
    priority: int = 0
    weight: int = 1

    @property
    def key(self) -> str:
        """Names this endpoint in pools, bus messages and metrics: survives a reload."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class ClusterTimeouts:
    """Seconds. `connect`: TCP; `response`: request sent to response head; `body`: between reads; `idle`: pooled."""

    connect: float = 1.0
    response: float = 15.0
    body: float = 30.0
    idle: float = 4.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A named set of endpoints. `can_serve` is control's word for the whole gateway; `broken`: it cannot, because its
    breaker is open in all workers. `share` below 1: it is coming back, or drained, and takes that share of the
    clients that have another region to go to (`core.ramp`).

    `usable` are the endpoints that may get new requests: up and not draining, of the first priority that has some.
    `connections_max` and `pending_max` are one worker's share of the gateway's limits.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    timeouts: ClusterTimeouts = ClusterTimeouts()
    retries: int = 1
    retry: Retries = RETRIES
    connections_max: int = 1024
    pending_max: int = 1024
    can_serve: bool = True
    broken: bool = False
    region: str | None = None
    share: float = 1.0
    breaker: BreakerRule | None = None
    outliers: OutlierRule | None = None
    balance: Balance = PLAIN
    slow_start: float = 0.0

    @property
    def usable(self) -> tuple[Endpoint, ...]:
        able = [e for e in self.endpoints if e.up and not e.draining]
        first = min((e.priority for e in able), default=0)
        return tuple(e for e in able if e.priority == first)


@dataclass(frozen=True, slots=True)
class Route:
    """Longest prefix wins, compared bytewise with the raw path; `View.routes` is sorted for that."""

    prefix: bytes
    cluster: str
    access: AddressList | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A region of this fleet, our own included. `public` None: no client can be sent there."""

    name: str
    public: PublicUrl | None


@dataclass(frozen=True, slots=True)
class HostResolver:
    template: HostTemplate


@dataclass(frozen=True, slots=True)
class HeaderResolver:
    """`name` in lower case with `_` as `-`: the form in which field names are compared."""

    name: bytes


@dataclass(frozen=True, slots=True)
class PathResolver:
    """`/t/{tenant}/`: `prefix` `/t/`, `suffix` `/` (may be empty: then the segment's end ends the id)."""

    prefix: bytes
    suffix: bytes


@dataclass(frozen=True, slots=True)
class QueryResolver:
    name: bytes


@dataclass(frozen=True, slots=True)
class CookieResolver:
    name: bytes


@dataclass(frozen=True, slots=True)
class FixedResolver:
    tenant: str


@dataclass(frozen=True, slots=True)
class JwtResolver:
    """A signed token in `header` (as compared). `source` names its keys: a URL that control asks, or a file's path.

    `keys` is the file's text, empty where `source` is a URL. `algorithms`, `issuers` and `audiences` are never empty.
    """

    header: bytes
    claim: str
    source: str
    keys: str
    algorithms: tuple[str, ...]
    issuers: tuple[str, ...]
    audiences: tuple[str, ...]
    leeway_s: float = 30.0


@dataclass(frozen=True, slots=True)
class AlbResolver:
    """`x-amzn-oidc-data` of the load balancer `arn`; `source` is the URL of its keys, with `{kid}` in it."""

    claim: str
    arn: str
    source: str
    leeway_s: float = 30.0


TokenResolver = JwtResolver | AlbResolver

Resolver = HostResolver | HeaderResolver | PathResolver | QueryResolver | CookieResolver | FixedResolver | TokenResolver


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and counts. `connections` is one worker's share; `body_bytes` None is no limit."""

    connections: int = 20000
    header_bytes: int = 64 * 1024
    headers: int = 128
    target_bytes: int = 16 * 1024
    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, on the client's side. `keepalive`: idle between two requests."""

    header: float = 10.0
    body: float = 30.0
    keepalive: float = 75.0


@dataclass(frozen=True, slots=True)
class Drain:
    """Seconds, counted from the signal."""

    grace: float = 12.0
    limit: float = 25.0


@dataclass(frozen=True, slots=True)
class Probes:
    live: bytes = b"/healthz"
    ready: bytes = b"/readyz"


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class View:
    """One snapshot. Build it with `settings.view.build_view`; tests may build one by keyword.

    `abilities` maps (region, cluster name) to what is known; `unreachable` are the regions that nobody answers in.
    `agree` are kinds of resolvers that must not contradict each other.
    A region that is in neither has never been probed and counts as able (DESIGN 5.4). `isolated`: no other region was
    heard of for so long that placements' `partition` holds.

    `shares` has the clusters of other regions whose share is below 1; `ramps`: some cluster's is, anywhere.
    `takes_over` are the regions in failover mode, ours among them; `takes_all`: ours is for every tenant.
    `max_traffic`: requests a second that this worker's application may get, by an operator's word.
    """

    region: str
    fleet: str = "landbridge"
    generation: int = 0
    config_digest: str = ""
    regions: Mapping[str, Region] = field(default_factory=dict)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    routes: tuple[Route, ...] = (Route(b"/", "app"),)
    resolvers: tuple[Resolver, ...] = ()
    agree: tuple[str, ...] = ()
    unknown: str | None = None
    misroute: Misroute = Misroute.AUTO
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    probes: Probes = Probes()
    throttle: Throttle | None = None
    shedding: Shedding | None = None
    workers: int = 1
    trusted_proxies: tuple[Network, ...] = ()
    hop_keys: tuple[bytes, ...] = ()
    abilities: Mapping[tuple[str, str], Ability] = field(default_factory=dict)
    probed: frozenset[str] = frozenset()
    unreachable: frozenset[str] = frozenset()
    isolated: bool = False
    shares: Mapping[tuple[str, str], float] = field(default_factory=dict)
    ramps: bool = False
    takes_over: frozenset[str] = frozenset()
    takes_all: bool = False
    max_traffic: float | None = None
    filter_options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    access_log_path: str | None = None
    access_log_sample: float = 1.0
    tenant_series: int = 200

    @property
    def token(self) -> str:
        """Our pseudonym in `Via` (RFC 9110, 7.6.3)."""
        return f"{self.region}.{self.fleet}"

    def ability(self, region: str, cluster: str) -> Ability:
        """What is known of `cluster` in another region. A cluster that a probed region does not name is unable."""
        if region in self.unreachable:
            return Ability.UNREACHABLE
        if region not in self.probed:
            return Ability.ABLE
        return self.abilities.get((region, cluster), Ability.UNABLE)

    def share(self, region: str, cluster: str) -> float:
        """Which share of the clients that may go elsewhere `cluster` takes, in whatever region."""
        if region != self.region:
            return self.shares.get((region, cluster), 1.0)
        known = self.clusters.get(cluster)
        return 1.0 if known is None else known.share

    def route(self, path: bytes) -> str:
        """The cluster of the longest prefix that `path` (raw, with or without its query) starts with."""
        for route in self.routes:
            if path.startswith(route.prefix):
                return route.cluster
        return "app"


def region_cluster(region: str) -> str:
    """The name of the cluster of `region`'s gateways."""
    return REGION_CLUSTER + region
