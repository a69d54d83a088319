"""Settings: the configuration after overlays, overrides and expansion, validated, with units resolved.

Plain data that travels: control sends it to workers over the bus as MessagePack, so no worker parses YAML while
control lives. Durations are seconds, sizes bytes, rates per second. Only the loader makes one from text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from gateway.core.balancing import Balancer, HashBy
from gateway.core.placement import Misroute
from gateway.core.shedding import Priority
from gateway.settings.problems import masked_url

DEFAULT_RETRIES: Final = 1
"""One more try is what separates a closed pooled connection from a failure; more belong to a retry budget."""


class Scheme(StrEnum):
    """How an endpoint is found: as it stands, by A and AAAA records, or by SRV records."""

    PLAIN = ""
    DNS = "dns"
    SRV = "srv"


class Address(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where to listen or whom to dial. `srv://` endpoints have port 0: their records name ports, and weights."""

    host: str
    port: int
    scheme: Scheme = Scheme.PLAIN
    weight: int = 1

    def __str__(self) -> str:
        if self.scheme is Scheme.SRV:
            return f"srv://{self.host}"
        if self.scheme is Scheme.DNS:
            return f"dns://{self.host}:{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listen(msgspec.Struct, frozen=True):
    http: Address
    hop: Address | None = None
    admin: Address = Address("127.0.0.1", 8081)


class RegionSettings(msgspec.Struct, frozen=True):
    """`public` is a URL template; `gateways` are hop listeners, the endpoints of the cluster `region:NAME`."""

    public: str | None = None
    gateways: tuple[Address, ...] = ()


class ClusterTimeoutSettings(msgspec.Struct, frozen=True):
    connect: float = 1.0
    response: float = 15.0
    body: float = 30.0
    idle: float = 4.0


REGION_TIMEOUTS: Final = ClusterTimeoutSettings(response=20.0, idle=60.0)
"""Between gateways: no origin closes early there, and the response timeout includes the far side's own."""


class HealthSettings(msgspec.Struct, frozen=True):
    """`status` are statuses and classes (`2xx`) as written; `body` None: nothing of it is read."""

    path: str
    interval: float = 5.0
    healthy: int = 2
    unhealthy: int = 3
    timeout: float = 5.0
    jitter: float = 0.1
    status: tuple[str, ...] = ("2xx",)
    body: str | None = None


class BackoffSettings(msgspec.Struct, frozen=True):
    base: float = 0.025
    max: float = 0.25


class RetrySettings(msgspec.Struct, frozen=True):
    """`per_try_timeout` None: a try may take all the time that `timeouts.response` leaves."""

    attempts: int = DEFAULT_RETRIES
    budget: float = 0.1
    statuses: tuple[int, ...] = ()
    per_try_timeout: float | None = None
    backoff: BackoffSettings = BackoffSettings()


class BreakerSettings(msgspec.Struct, frozen=True):
    """`min_requests` is the whole gateway's. `fallback` is another application's cluster."""

    error_rate: float = 0.5
    min_requests: int = 20
    window: float = 2.0
    open: float = 5.0
    open_max: float = 60.0
    probes: int = 2
    probe_interval: float = 1.0
    ramp: float = 3.0
    fallback: str | None = None


class HashSettings(msgspec.Struct, frozen=True):
    """`sticky`: seconds that a cookie lives which the gateway sets (0: the browser's session); None: it sets none."""

    by: HashBy = HashBy.TENANT
    name: str = ""
    sticky: float | None = None


class OutlierSettings(msgspec.Struct, frozen=True):
    """`requests` is the whole gateway's. Percentages are whole numbers."""

    connect_failures: int = 3
    consecutive_errors: int = 5
    eject: float = 30.0
    eject_max: float = 300.0
    eject_max_percent: int = 50
    panic_percent: int = 30
    interval: float = 10.0
    requests: int = 100
    stdev: float = 1.9


class ClusterLimitSettings(msgspec.Struct, frozen=True):
    connections: int = 1024
    pending: int = 1024


class ClusterSettings(msgspec.Struct, frozen=True):
    endpoints: tuple[Address, ...] = ()
    timeouts: ClusterTimeoutSettings = ClusterTimeoutSettings()
    health: HealthSettings | None = None
    retries: RetrySettings = RetrySettings()
    limits: ClusterLimitSettings = ClusterLimitSettings()
    breaker: BreakerSettings | None = BreakerSettings()
    outliers: OutlierSettings | None = OutlierSettings()
    balance: Balancer = Balancer.LEAST_REQUEST
    hash: HashSettings | None = None
    slow_start: float | None = None


class RuleSettings(msgspec.Struct, frozen=True):
    """A limit as it is written: `rate` in a second; what is None is not limited."""

    rate: float | None = None
    burst: int | None = None
    concurrency: int | None = None
    shadow: bool = False


class ClientRule(msgspec.Struct, frozen=True):
    """A limit of clients. `by` is `address` or `header:NAME`."""

    rate: float | None = None
    burst: int | None = None
    concurrency: int | None = None
    by: str = "address"
    shadow: bool = False


class ExemptSettings(msgspec.Struct, frozen=True):
    addresses: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()


class ThrottleSettings(msgspec.Struct, frozen=True):
    """What is None is off."""

    tenant: RuleSettings | None = None
    client: ClientRule | None = None
    gateway: RuleSettings | None = None
    exempt: ExemptSettings = ExemptSettings()


class SheddingSettings(msgspec.Struct, frozen=True):
    """`min` and `max` are for the whole gateway, of each cluster."""

    min: int = 16
    max: int = 10_000
    label: str = "priority"
    header: str | None = None
    shadow: bool = False


class RouteSettings(msgspec.Struct, frozen=True):
    prefix: str
    cluster: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    throttle: RuleSettings | None = None
    priority: Priority | None = None


class JwtSettings(msgspec.Struct, frozen=True):
    """`jwks` is an absolute path, whose text is in `keys`, or a URL."""

    claim: str
    jwks: str
    algorithms: tuple[str, ...]
    issuer: tuple[str, ...]
    audience: tuple[str, ...]
    header: str = "Authorization"
    leeway: float = 30.0
    refresh: float = 300.0
    keys: str = ""


class AlbSettings(msgspec.Struct, frozen=True):
    """`keys` is a URL template with `{kid}`; empty: AWS's own."""

    claim: str
    alb_arn: str
    keys: str = ""
    leeway: float = 30.0


class ResolverSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """`kind` is host, header, path, query, cookie or fixed, and `value` as written; or jwt or alb, with theirs."""

    kind: str
    value: str = ""
    jwt: JwtSettings | None = None
    alb: AlbSettings | None = None


class TenancySettings(msgspec.Struct, frozen=True):
    resolvers: tuple[ResolverSettings, ...] = ()
    agree: tuple[str, ...] = ()
    unknown: str | None = None


class LimitSettings(msgspec.Struct, frozen=True):
    connections: int = 20000
    header_bytes: int = 64 * 1024
    headers: int = 128
    target_bytes: int = 16 * 1024
    body_bytes: int | None = None


class TimeoutSettings(msgspec.Struct, frozen=True):
    header: float = 10.0
    body: float = 30.0
    keepalive: float = 75.0


class DrainSettings(msgspec.Struct, frozen=True):
    grace: float = 12.0
    limit: float = 25.0


class ProbeSettings(msgspec.Struct, frozen=True):
    live: str = "/healthz"
    ready: str = "/readyz"


class TlsSettings(msgspec.Struct, frozen=True):
    """Absolute paths of PEM files: whom to believe (None: the system's), and who we are (both or neither)."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class RedisSettings(msgspec.Struct, frozen=True):
    """This region's Redis, and by region those of the others. URLs as `redis_url` writes them, passwords included."""

    url: str
    peers: dict[str, str] = {}
    tls: TlsSettings | None = None

    def __repr__(self) -> str:  # as TokenSettings
        return f"RedisSettings(url={masked_url(self.url)!r}, peers={self.masked_peers()!r}, tls={self.tls!r})"

    def masked_peers(self) -> dict[str, str]:
        return {region: masked_url(url) for region, url in self.peers.items()}


class MapSource(StrEnum):
    """Where placements come from."""

    YAML = "yaml"
    REDIS = "redis"


class TenantMapSettings(msgspec.Struct, frozen=True):
    """`file` is absolute: the loader joins it to the folder of the file that names it; used by the source yaml only.

    `redis` is there whenever the source is redis. `loss_guard` is a fraction; `partition_after` None is off.
    """

    file: str
    source: MapSource = MapSource.YAML
    loss_guard: float = 0.05
    redis: RedisSettings | None = None
    partition_after: float | None = None


class DnsSettings(msgspec.Struct, frozen=True):
    """How `dns://` and `srv://` endpoints are resolved. `servers` empty: those of resolv.conf."""

    servers: tuple[Address, ...] = ()
    ttl_min: float = 1.0
    ttl_max: float = 300.0
    timeout: float = 2.0


class AccessLogSettings(msgspec.Struct, frozen=True):
    """`path` `-` is standard output, None is off (`path: none` in the file)."""

    path: str | None = "-"
    sample: float = 1.0


class FilterFile(msgspec.Struct, frozen=True):
    """A file with filters of the operator's: where it is, and 16 hex digits of its text, so that a change shows."""

    path: str
    digest: str


class Role(StrEnum):
    """Who may do what on the admin API: a viewer reads, an operator changes things too."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class TokenSettings(msgspec.Struct, frozen=True):
    """One bearer of a token. `name` is the actor in the audit log."""

    name: str
    role: Role
    token: str

    def __repr__(self) -> str:  # what is printed while hunting a bug must not hold a credential
        return f"TokenSettings(name={self.name!r}, role={self.role.value!r}, token='***')"


class AdminSettings(msgspec.Struct, frozen=True):
    """`hosts` are names and addresses, in lower case and without a port, that the API answers to."""

    hosts: tuple[str, ...] = ()
    tokens: tuple[TokenSettings, ...] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration of one gateway. `workers` is resolved (`auto` is one per usable core).

    `clusters` holds a `region:NAME` for every other region, without endpoints: those are `regions.NAME.gateways`.
    `origins` says where templates and filters' options stand (`regions.eu-west-1.public`: `config/gateway.yaml:14`), so
    that a problem that is found later, as in a tenants file, can name that line; neither it nor `digest` is part of
    the configuration's meaning.
    """

    region: str
    listen: Listen
    state_dir: str
    fleet: str = "landbridge"
    workers: int = 1
    trusted_proxies: tuple[str, ...] = ()
    regions: dict[str, RegionSettings] = {}
    hop_keys: tuple[str, ...] = ()
    clusters: dict[str, ClusterSettings] = {}
    routes: tuple[RouteSettings, ...] = (RouteSettings("/", "app"),)
    tenancy: TenancySettings = TenancySettings()
    misroute: Misroute = Misroute.AUTO
    limits: LimitSettings = LimitSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    drain: DrainSettings = DrainSettings()
    probes: ProbeSettings = ProbeSettings()
    tenant_map: TenantMapSettings
    throttle: ThrottleSettings | None = None
    shedding: SheddingSettings | None = None
    filter_files: tuple[FilterFile, ...] = ()
    filter_options: dict[str, dict[str, object]] = {}
    dns: DnsSettings = DnsSettings()
    access_log: AccessLogSettings = AccessLogSettings()
    tenant_series: int = 200
    admin: AdminSettings = AdminSettings()
    digest: str = ""
    origins: dict[str, str] = {}
