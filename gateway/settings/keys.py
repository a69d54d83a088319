"""Every key of `gateway.yaml`: its kind, its default, what it does, and what it takes to change it.

The one list: the loader reads by it, `docs/configuration.md` and the JSON Schema are made from it, and a test holds
its defaults against those of `schema`. A key of a later version is in it too, and refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.core.placement import REGION_NAME, Misroute
from gateway.settings import cluster_keys, identity, shedding, templates, throttling
from gateway.settings.document import Leaf, Node, Path, Table, described
from gateway.settings.problems import nearest, shown
from gateway.settings.scalars import (
    ACTOR,
    ADMIN_HOST,
    CLUSTER,
    CLUSTER_KEY,
    DAY_S,
    FILTER,
    GATEWAY,
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
    TOKEN,
    WORKERS,
    duration,
    fraction,
    matching,
    size,
    whole,
)
from gateway.settings.schema import (
    AccessLogSettings,
    AdminSettings,
    DnsSettings,
    DrainSettings,
    LimitSettings,
    Listen,
    MapSource,
    ProbeSettings,
    RedisSettings,
    RegionSettings,
    ResolverSettings,
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
            Named(CLUSTER_KEY, cluster_keys.APP_CLUSTER, cluster_keys.kind_of, "<cluster>"),
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
