"""Every key of `gateway.yaml`: its kind, its default, what it does, and what it takes to change it.

The one list: the loader reads by it, `docs/configuration.md` and the JSON Schema are made from it, and a test holds
its defaults against those of `schema`. A key of a later version is in it too, and refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.core.balancing import Balancer, HashBy
from gateway.core.placement import REGION_NAME, Misroute
from gateway.core.view import REGION_CLUSTER
from gateway.settings import identity, shedding, templates, throttling
from gateway.settings.document import Leaf, Node, Path, Table, described
from gateway.settings.problems import nearest, shown
from gateway.settings.scalars import (
    ACTOR,
    ADMIN_HOST,
    CHECK_PATH,
    CHECK_STATUS,
    CHECK_TEXT,
    CLUSTER,
    CLUSTER_KEY,
    DAY_S,
    ENDPOINT,
    FILTER,
    GATEWAY,
    HASH_NAME,
    HOP_KEY,
    LISTENER,
    NAME_SERVER,
    NETWORK,
    PERCENTAGE,
    PREFIX,
    PROBE,
    PUBLIC,
    REDIS_URL,
    REGION,
    STICKY,
    TOKEN,
    WORKERS,
    duration,
    fraction,
    matching,
    number,
    size,
    whole,
)
from gateway.settings.schema import (
    AccessLogSettings,
    AdminSettings,
    BackoffSettings,
    BreakerSettings,
    ClusterLimitSettings,
    ClusterSettings,
    ClusterTimeoutSettings,
    DnsSettings,
    DrainSettings,
    HashSettings,
    HealthSettings,
    LimitSettings,
    Listen,
    MapSource,
    OutlierSettings,
    ProbeSettings,
    RedisSettings,
    RegionSettings,
    ResolverSettings,
    RetrySettings,
    Role,
    RouteSettings,
    TenancySettings,
    TimeoutSettings,
    TlsSettings,
    TokenSettings,
)
from gateway.settings.shape import (
    BAD,
    Choice,
    Effect,
    FilePath,
    Free,
    Items,
    Key,
    Kind,
    Named,
    OrNone,
    Record,
    Walk,
)
from gateway.settings.units import Wanted

UNKNOWN_REJECT: Final = "reject"
FILTER_PATHS: Final = Items(FilePath(), distinct=True)
MISROUTE: Final = Choice({m.value: m for m in Misroute})


RESOLVER_KINDS: Final = (*templates.RESOLVERS, *identity.TOKENS)
AGREEING: Final = Choice({kind: kind for kind in RESOLVER_KINDS if kind != "fixed"})


class ResolverKind:
    """One entry of `tenancy.resolvers`: a mapping with one key, the kind of resolver."""

    type_name = "one of " + ", ".join(f"`{kind}`" for kind in RESOLVER_KINDS)
    secret = False

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        kinds = ", ".join(RESOLVER_KINDS)
        if not isinstance(node, Table) or len(node.entries) != 1:
            found = f"{len(node.entries)} keys" if isinstance(node, Table) else described(node)
            return walk.note(node, path, f"one of {kinds}, with its value", found)
        [(kind, value)] = node.entries.items()
        inner = (*path, kind)
        if kind in identity.TOKENS:
            return identity.read_token(walk, kind, value, inner)
        if kind not in templates.RESOLVERS:
            expected = f"one of {kinds}{nearest(kind, RESOLVER_KINDS)}"
            return walk.note_at(value.source, node.lines[kind], inner, expected, shown(kind))
        if not isinstance(value, Leaf) or value.is_null:
            quotes = ", in quotes" if isinstance(value, Table) else ""
            return walk.note(value, inner, f"a text{quotes}", described(value))
        text = walk.text(value, inner)
        if text is None:
            return BAD
        try:
            templates.resolver(kind, text)
        except Wanted as error:
            return walk.note(value, inner, str(error), described(value))
        return ResolverSettings(kind, text)

    def stand_in(self) -> object:
        return BAD


CLUSTER_TIMEOUTS: Final = {
    "connect": Key(duration(), "TCP connect to one endpoint.", "1s"),
    "response": Key(
        duration(), "From the whole request sent to the response's head. `20s` for region clusters.", "15s"
    ),
    "body": Key(duration(), "Between two reads of a response's body, or two writes of a request's.", "30s"),
    "idle": Key(
        duration(),
        "How long a pooled connection may be reused: below the 5 s after which Node and uvicorn close theirs. "
        "`60s` for region clusters.",
        "4s",
    ),
}
HEALTH: Final = Record(
    HealthSettings,
    {
        "path": Key(CHECK_PATH, "Asked with GET.", required=True),
        "interval": Key(duration(0.01, 3600), "From one check of an endpoint to the next.", "5s"),
        "healthy": Key(whole(1, 100), "Successes in a row that bring an endpoint up.", "2"),
        "unhealthy": Key(whole(1, 100), "Failures in a row that take an endpoint down.", "3"),
        "timeout": Key(duration(0.01, 60), "How long an answer may take; never longer than `interval`.", "5s"),
        "jitter": Key(PERCENTAGE, "Share of `interval` that is added or left out at random.", "10%"),
        "status": Key(Items(CHECK_STATUS, distinct=True), "Statuses that are healthy: `200`, `2xx`.", "[2xx]"),
        "body": Key(CHECK_TEXT, "Text that the first 64 KiB of the body have to hold."),
    },
)
_ANY_RETRIES: Final = {
    "attempts": Key(
        whole(0, 10),
        "Further tries of one request, where it may be repeated ([when](protection.md#retries-and-deadlines)).",
        "1",
    ),
    "budget": Key(
        fraction(), "At most this share of the requests is sent again; what was never sent does not count.", "0.1"
    ),
}
_BACKOFF: Final = {
    "base": Key(duration(0, 60), "The first pause lasts up to this, each further one up to twice as long.", "25ms"),
    "max": Key(duration(0, 60), "No pause is longer.", "250ms"),
}
_RETRIES: Final = {
    **_ANY_RETRIES,
    "statuses": Key(
        Items(whole(400, 599), distinct=True),
        "Answers after which a request that only reads, or has an `Idempotency-Key`, is sent again.",
        "[]",
    ),
    "per_try_timeout": Key(
        OrNone(duration()),
        "How long one such try waits for a response's head before the next; below `timeouts.response`, which all tries "
        "share.",
        "none",
    ),
    "backoff": Key(Record(BackoffSettings, _BACKOFF), "Before a further try, but at a failed connect."),
}
_CLUSTER_LIMITS: Final = {
    "connections": Key(whole(1, 1_000_000), "Connections to the cluster, for the whole gateway.", "1024"),
    "pending": Key(whole(0, 1_000_000), "Requests that wait for a connection, for the whole gateway.", "1024"),
}
_BREAKER: Final = {
    "error_rate": Key(fraction(0.01), "It opens when this share of the window's requests failed.", "0.5"),
    "min_requests": Key(
        whole(1, 1_000_000),
        "Fewer in the window tell nothing. For the whole gateway: each worker judges its part, at least 5.",
        "20",
    ),
    "window": Key(duration(0.1, 3600), "What is counted: the last so many seconds.", "2s"),
    "open": Key(
        duration(0.1, DAY_S), "How long nothing passes; doubled each time it opens again soon, up to 20 % less.", "5s"
    ),
    "open_max": Key(duration(0.1, DAY_S), "What doubling ends at.", "60s"),
    "probes": Key(whole(1, 100), "Single requests that have to succeed, after that.", "2"),
    "probe_interval": Key(duration(0.05, 3600), "At most one of them in so long, in each worker.", "1s"),
    "ramp": Key(duration(0, 3600), "From the last of them until all requests pass again, in growing share.", "3s"),
}
_HASH: Final = {
    "by": Key(Choice({by.value: by for by in HashBy}), "The tenant, a field of the request, or a cookie.", "tenant"),
    "name": Key(HASH_NAME, "Of that field or cookie. A request without it goes to whoever has least in hand."),
    "sticky": Key(
        OrNone(STICKY),
        "With `by: cookie`: give clients that have none one for so long, or for the browser's `session`.",
        "none",
    ),
}
_OUTLIERS: Final = {
    "connect_failures": Key(
        whole(1, 1000), "Connects in a row that fail in a worker: then the endpoint is down for the gateway.", "3"
    ),
    "consecutive_errors": Key(
        whole(1, 1000), "Failed answers in a row, while others of the same tenants succeed elsewhere.", "5"
    ),
    "eject": Key(duration(0.1, DAY_S), "How long it is left out; as much longer each time, up to `eject_max`.", "30s"),
    "eject_max": Key(duration(0.1, DAY_S), "What that grows to.", "300s"),
    "eject_max_percent": Key(whole(0, 100), "Of a cluster's endpoints, at most so many are left out.", "50"),
    "panic_percent": Key(whole(0, 100), "With less than this share left, none is left out.", "30"),
    "interval": Key(duration(0.1, 3600), "Over which success rates are compared.", "10s"),
    "requests": Key(whole(1, 1_000_000), "In an interval, an endpoint's least for that; for the whole gateway.", "100"),
    "stdev": Key(
        number(0, 10), "Standard deviations below the mean that are too many; 0: rates are not compared.", "1.9"
    ),
}
_FALLBACK: Final = {
    "fallback": Key(
        CLUSTER, "The cluster that answers instead while this one's breaker refuses. Its own breaker holds for it."
    ),
}


def _shared_keys(
    make: Callable[[Callable[..., object]], Callable[..., object]], breaker: dict[str, Key], retries: dict[str, Key]
) -> dict[str, Key]:
    return {
        "timeouts": Key(Record(make(ClusterTimeoutSettings), CLUSTER_TIMEOUTS), "How long to wait for it."),
        "retries": Key(Record(make(RetrySettings), retries), "When to try again."),
        "limits": Key(Record(make(ClusterLimitSettings), _CLUSTER_LIMITS), "Shared evenly by the workers, rounded up."),
        "breaker": Key(
            OrNone(Record(make(BreakerSettings), breaker)),
            "Refuses requests while too many fail: a tenant's, or all ([how](protection.md#breakers)). `none`: off.",
            "{}",
        ),
        "outliers": Key(
            OrNone(Record(make(OutlierSettings), _OUTLIERS)),
            "Leaves out endpoints that answer worse than the others ([how](protection.md#outliers-and-balancing)). "
            "`none`: off.",
            "{}",
        ),
    }


APP_CLUSTER: Final = Record(
    ClusterSettings,
    {
        "endpoints": Key(
            Items(ENDPOINT, distinct=True),
            "Where the application listens. `dns://host:port`: every address of a name is an endpoint; `srv://_http._tcp"
            ".name`: every target of its SRV records. Both follow TTLs ([how](operations.md#names)). An empty list: "
            "this region cannot serve this cluster. `10.1.0.4:9000 weight=3` gets three times as much as others.",
            required=True,
        ),
        "balance": Key(
            Choice({balancer.value: balancer for balancer in Balancer}),
            "How an endpoint is chosen: of two the one with less in hand, each in turn, in turn by weight, by `hash`.",
            "least_request",
        ),
        "hash": Key(Record(HashSettings, _HASH), "What keeps requests at one endpoint, with `balance: hash`."),
        "slow_start": Key(
            OrNone(duration(0.1, 3600)),
            "How long an endpoint that is new, up again or no longer left out gets less than its share.",
            "none",
        ),
        "health": Key(OrNone(HEALTH), "Active checks by control.", "none"),
        **_shared_keys(lambda make: make, {**_BREAKER, **_FALLBACK}, _RETRIES),
    },
)
GATEWAYS_CLUSTER: Final = Record(dict, _shared_keys(lambda make: dict, _BREAKER, _ANY_RETRIES))
"""`region:*` and `region:NAME`: partial values, which the loader lays over one another."""


def _gateways_kind(name: str) -> Kind | None:
    return GATEWAYS_CLUSTER if name.startswith(REGION_CLUSTER) else None


_LISTEN: Final = {
    "http": Key(LISTENER, "Clients, through the load balancer.", required=True, effect=Effect.WORKERS),
    "hop": Key(
        LISTENER,
        "Other regions' gateways only; never behind the public load balancer. Required with more than one region "
        "unless `misroute: external`.",
        effect=Effect.WORKERS,
    ),
    "admin": Key(
        LISTENER,
        "API and `/metrics`. Loopback only, unless `admin.tokens` has some.",
        "127.0.0.1:8081",
        effect=Effect.WORKERS,
    ),
}
_REGION: Final = {
    "public": Key(
        PUBLIC,
        "URL template for external redirects and for naming a tenant by Host: at most one `{tenant}`, which is one "
        "whole label; no path. Without it no client is sent there.",
    ),
    "gateways": Key(
        Items(GATEWAY, distinct=True),
        "Hop listeners of that region's gateways: the endpoints of the cluster `region:NAME`. Required for every "
        "other region unless `misroute: external`.",
        "[]",
    ),
}
_ROUTE: Final = {
    "prefix": Key(PREFIX, "Compared bytewise with the raw path (`/a` matches `/ab`).", required=True),
    "cluster": Key(CLUSTER, "Where such requests go.", required=True),
    "allow": Key(Items(NETWORK, distinct=True), "Where there are some, only clients from these networks.", "[]"),
    "deny": Key(Items(NETWORK, distinct=True), "No client from these networks, whatever `allow` says.", "[]"),
    "throttle": Key(throttling.RULE, "All requests of this route together, over all gateways of a region."),
    "priority": Key(
        shedding.PRIORITY, "Its requests' class under overload ([how](protection.md#shedding)); else the tenant's."
    ),
}
_TENANCY: Final = {
    "resolvers": Key(
        Items(ResolverKind()),
        "How a request names its tenant; the first that answers wins. Before them come placements' `hosts` and "
        "regions' `public` templates.",
        "[]",
    ),
    "agree": Key(
        Items(AGREEING, distinct=True),
        "Kinds of resolvers, such as `[host, jwt]`: all of them that answer must name one tenant, or the answer is 400 "
        "`tenant_conflict`. `host` is whatever Host says.",
        "[]",
    ),
    "unknown": Key(
        matching("`reject` or a region's name", "reject or a region's name", REGION_NAME),
        "What happens to a tenant that is not in the map: 404, or served in that region.",
        UNKNOWN_REJECT,
    ),
}
_LIMITS: Final = {
    "connections": Key(whole(1, 10_000_000), "Clients' connections, shared evenly by the workers.", "20000"),
    "header_bytes": Key(size(1024, 1024**2), "A head, and each message's trailers.", "64KiB"),
    "headers": Key(whole(8, 10_000), "Fields in a head.", "128"),
    "target_bytes": Key(size(64, 1024**2), "The request target.", "16KiB"),
    "body_bytes": Key(OrNone(size(0, 1024**5, "none or a size such as 64KiB")), "A request's body.", "none"),
}
_TIMEOUTS: Final = {
    "header": Key(duration(), "From a request's first byte to the end of its head.", "10s"),
    "body": Key(duration(), "Between two reads of a request's body, or two writes of a response's.", "30s"),
    "keepalive": Key(
        duration(), "Idle between two requests: above the 60 s of AWS's load balancer, or it sends into a close.", "75s"
    ),
}
_DRAIN: Final = {
    "grace": Key(
        duration(0, 3600),
        "How long new requests are still taken after the signal: the load balancer's interval x threshold + 2 s.",
        "12s",
    ),
    "limit": Key(
        duration(0.001, DAY_S), "When what is left is cut: below the 30 s after which ECS and Kubernetes kill.", "25s"
    ),
}
_PROBES: Final = {
    "live": Key(PROBE, "The process lives.", "/healthz"),
    "ready": Key(PROBE, "The map is loaded, and the gateway is not draining.", "/readyz"),
}
_TLS: Final = {
    "ca": Key(FilePath(), "Whom to believe, PEM; otherwise what the system believes."),
    "cert": Key(FilePath(), "Who we are, PEM; together with `key`."),
    "key": Key(FilePath(), "Its key, PEM."),
}
_REDIS: Final = {
    "url": Key(REDIS_URL, "This region's Redis or Valkey.", required=True),
    "peers": Key(
        Named(REGION, REDIS_URL, label="<region>", secret=True),
        "The other regions' Redis; one that is not named is not followed.",
        "{}",
    ),
    "tls": Key(Record(TlsSettings, _TLS), "For the URLs with `rediss`."),
}
_MAP: Final = {
    "source": Key(
        Choice({source.value: source for source in MapSource}),
        "`yaml`: `file` is watched. `redis`: a map that the regions replicate to each other.",
        "yaml",
        effect=Effect.RESTART,
    ),
    "file": Key(FilePath(), "The tenants file. Used only with `source: yaml`.", "tenants.yaml"),
    "redis": Key(Record(RedisSettings, _REDIS, secret=True), "Used, and required, only with `source: redis`."),
    "loss_guard": Key(
        PERCENTAGE,
        "A change that removes more than this share and at least 10 tenants, or all of them, waits for `map confirm`.",
        "5%",
    ),
    "partition_after": Key(
        OrNone(duration(1)),
        "Having heard from no other region for so long, this one counts as cut off, and each tenant's `partition` says "
        "what its requests get.",
        "none",
    ),
}
_FILTERS: Final = {
    "paths": Key(
        FILTER_PATHS,
        "Filters of your own: files, folders or patterns such as `./my_filters/*.py` ([how to write one](filters.md)).",
        "[]",
        effect=Effect.WORKERS,
    ),
    "options": Key(
        Named(FILTER, Free(), label="<filter>"),
        "Options of a filter, by its name. One of your own also takes `on_error`: `remove` (the default: it is taken "
        "out after 10 errors in 10 s) or `refuse`.",
        "{}",
        effect=Effect.WORKERS,
    ),
}
_DNS: Final = {
    "servers": Key(
        Items(NAME_SERVER, distinct=True),
        "Name servers to ask, in order; `[]` is those of `/etc/resolv.conf`, with its search domains.",
        "[]",
    ),
    "ttl_min": Key(duration(0.1, DAY_S), "A name is asked again no sooner, however short its TTL.", "1s"),
    "ttl_max": Key(duration(0.1, DAY_S), "A name is asked again no later, however long its TTL.", "300s"),
    "timeout": Key(
        duration(0.05, 60), "How long an answer is waited for, over all servers and tries. A start waits as long.", "2s"
    ),
}
_ACCESS_LOG: Final = {
    "path": Key(
        FilePath({"-": "-", "none": None}, "path, `-` or `none`"), "`-` is standard output, `none` is off.", '"-"'
    ),
    "sample": Key(fraction(), "Share of the requests that are logged.", "1.0"),
}
_TOKEN: Final = {
    "name": Key(ACTOR, "Who that is, in the audit log. Each name once.", required=True),
    "role": Key(
        Choice({role.value: role for role in Role}), "A viewer reads, an operator changes things too.", required=True
    ),
    "token": Key(TOKEN, "What `Authorization: Bearer` carries; `${file:path}` keeps it out of here.", required=True),
}
_ADMIN: Final = {
    "hosts": Key(
        Items(ADMIN_HOST, distinct=True),
        "Names and addresses, without port, that the API answers to, besides those of loopback on loopback, and "
        "elsewhere the address that was connected to.",
        "[]",
    ),
    "tokens": Key(
        Items(Record(TokenSettings, _TOKEN, secret=True)),
        "Who may change things; away from loopback also who may read.",
        "[]",
    ),
}
_TELEMETRY: Final = {
    "tenants": Key(
        whole(0, 100_000),
        "Tenants with a metric series of their own, in each worker; the rest count as `other`.",
        "200",
    ),
}


def _tenancy(**values: Any) -> TenancySettings:
    if values.get("unknown") == UNKNOWN_REJECT:
        values["unknown"] = None
    return TenancySettings(**values)


def _as_dict(**values: object) -> Mapping[str, object]:
    return values


ROOT: Final = Record(
    _as_dict,
    {
        "region": Key(REGION, "Where this gateway runs; `LANDBRIDGE_REGION` goes before it.", required=True,
                      effect=Effect.RESTART),
        "fleet": Key(REGION, "Names this installation in `Via`; differs between staging and production.", "landbridge",
                     effect=Effect.RESTART),
        "listen": Key(Record(Listen, _LISTEN), "Where it listens.", required=True, effect=Effect.WORKERS),
        "workers": Key(WORKERS, "Worker processes; `auto` is one per usable core.", "auto", effect=Effect.WORKERS),
        "state_dir": Key(FilePath(), "Folder for the map, the counters and the last good configuration; mode 0700.",
                         required=True, effect=Effect.RESTART),
        "trusted_proxies": Key(Items(NETWORK, distinct=True), "Networks whose `X-Forwarded-*` are believed: the load "
                               "balancer's subnets.", "[]"),
        "regions": Key(Named(REGION, Record(RegionSettings, _REGION), label="<region>"),
                       "Every region of the fleet, this one included.", required=True),
        "hop_keys": Key(Items(HOP_KEY, distinct=True), "Sign what gateways say to each other; the first signs, all "
                        "verify. Required with more than one region unless `misroute: external`.", "[]"),
        "clusters": Key(
            Named(CLUSTER_KEY, APP_CLUSTER, _gateways_kind, "<cluster>"),
            "Where requests go: applications, and settings for other regions' gateways (`region:*`, `region:NAME`).",
            "{}",
        ),
        "routes": Key(Items(Record(RouteSettings, _ROUTE)), "Which cluster serves a path: the longest prefix wins; "
                      "what no route matches goes to `app`.", "[{prefix: /, cluster: app}]"),
        "tenancy": Key(Record(_tenancy, _TENANCY), "How a request's tenant is found."),
        "misroute": Key(MISROUTE, "What happens to a request whose tenant lives elsewhere.", "auto"),
        "limits": Key(Record(LimitSettings, _LIMITS), "Bounds on clients."),
        "timeouts": Key(Record(TimeoutSettings, _TIMEOUTS), "How long to wait for clients."),
        "drain": Key(Record(DrainSettings, _DRAIN), "How the gateway stops, counted from the signal."),
        "probes": Key(Record(ProbeSettings, _PROBES), "Exact paths, for the load balancer; GET and HEAD."),
        "throttle": Key(throttling.THROTTLE, "How much is let through ([how](protection.md#throttling))."),
        "shedding": Key(shedding.SHEDDING, "Refuse what is too much, the least important first; `{}` is enough "
                        "([how](protection.md#shedding))."),
        "tenant_map": Key(Record(_as_dict, _MAP), "Where placements come from."),
        "filters": Key(Record(_as_dict, _FILTERS), "Request policy.", effect=Effect.WORKERS),
        "dns": Key(Record(DnsSettings, _DNS), "How endpoints `dns://` and `srv://` are resolved."),
        "access_log": Key(Record(AccessLogSettings, _ACCESS_LOG), "One JSON object a line."),
        "telemetry": Key(Record(_as_dict, _TELEMETRY), "Metrics."),
        "admin": Key(Record(AdminSettings, _ADMIN), "Who may use `listen.admin`."),
    },
)  # fmt: skip
