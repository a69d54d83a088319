"""Every key of `gateway.yaml`: its kind, its default, what it does, and what it takes to change it.

The one list: the loader reads by it, `docs/configuration.md` and the JSON Schema are made from it, and a test holds
its defaults against those of `schema`. A key of a later version is in it too, and refused by name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.core.placement import REGION_NAME, Misroute
from gateway.core.view import REGION_CLUSTER
from gateway.settings import templates, units
from gateway.settings.document import Leaf, Node, Path, Table, described
from gateway.settings.problems import nearest, shown
from gateway.settings.schema import (
    AccessLogSettings,
    Address,
    AdminSettings,
    ClusterLimitSettings,
    ClusterSettings,
    ClusterTimeoutSettings,
    DrainSettings,
    HealthSettings,
    LimitSettings,
    Listen,
    ProbeSettings,
    RegionSettings,
    ResolverSettings,
    RetrySettings,
    Role,
    RouteSettings,
    TenancySettings,
    TimeoutSettings,
    TokenSettings,
)
from gateway.settings.shape import (
    BAD,
    NOT_YET,
    Choice,
    Effect,
    FilePath,
    Free,
    Items,
    Key,
    Kind,
    Later,
    Named,
    OrNone,
    Record,
    Scalar,
    Walk,
    like,
)
from gateway.settings.units import Wanted

DAY_S: Final = 86400.0
"""No timeout of a request is longer; a longer one is a mistaken unit."""
WORKERS_MAX: Final = 256
"""More processes than any machine of this kind has cores."""
KEY_BYTES_MIN: Final = 32
"""HMAC-SHA256 gains nothing from more and loses from less (RFC 2104, 3)."""
TOKEN_CHARS_MIN: Final = 24
"""144 bits when it comes from `openssl rand -base64 18`: nobody guesses it, at any rate."""
TOKEN_CHARS_MAX: Final = 512
UNKNOWN_REJECT: Final = "reject"
_FILTER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_CLUSTER: Final = re.compile(r"[a-z0-9_.-]{1,63}\Z")
_ACTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*\Z")
"""b64token, RFC 6750, 2.1: what `Authorization: Bearer` can carry."""
_CLUSTER_KEY: Final = r"[a-z0-9_.-]{1,63}|region:(?:\*|[a-z0-9-]{1,32})"
_PATH: Final = re.compile(r"/[\x21\x22\x24-\x3e\x40-\x7e]*\Z")
"""A raw path: visible ASCII but `?` and `#`."""
_TARGET: Final = re.compile(r"/[\x21\x22\x24-\x7e]*\Z")
FILTERS: Final = ("identify", "tenant", "region", "forward", "redirect", "reply", "headers", "log")
"""The filters of the chain, by name: settings cannot import them, so a test holds this against their registries."""


def duration(low: float = 0.001, high: float = DAY_S) -> Scalar:
    def parse(text: str) -> float:
        value = units.duration(text)
        if not low <= value <= high:
            raise Wanted(f"a duration from {_written(low)} to {_written(high)}")
        return value

    return Scalar("duration", "a duration such as 250ms", parse, substitute=low, schema=like(units.DURATION))


def _written(seconds: float) -> str:
    if seconds and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f}h"
    return f"{seconds:.0f}s" if seconds % 1 == 0 else f"{seconds * 1000:.0f}ms"


def size(low: int, high: int, expected: str = "a size such as 64KiB") -> Scalar:
    def parse(text: str) -> int:
        value = units.size(text)
        if not low <= value <= high:
            raise Wanted(f"a size from {_written_size(low)} to {_written_size(high)}")
        return value

    return Scalar("size", expected, parse, substitute=low, schema=like(units.SIZE))


def _written_size(count: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % units.BYTES[unit] == 0:
            return f"{count // units.BYTES[unit]}{unit}"
    return f"{count}B"


def whole(low: int, high: int) -> Scalar:
    def parse(text: str) -> int:
        value = units.whole(text)
        if not low <= value <= high:
            raise ValueError("out of range")
        return value

    return Scalar(
        f"whole number from {low} to {high}",
        f"a whole number from {low} to {high}",
        parse,
        substitute=low,
        is_number=True,
        schema={"type": "integer", "minimum": low, "maximum": high},
    )


def fraction() -> Scalar:
    def parse(text: str) -> float:
        value = units.number(text)
        if value > 1:
            raise ValueError("out of range")
        return value

    schema = {"type": "number", "minimum": 0, "maximum": 1}
    return Scalar("number", "a number from 0 to 1", parse, substitute=0.0, is_number=True, schema=schema)


def matching(type_name: str, expected: str, pattern: re.Pattern[str]) -> Scalar:
    def parse(text: str) -> str:
        if not pattern.match(text):
            raise ValueError("no match")
        return text

    return Scalar(type_name, expected, parse, schema=like(pattern))


def _workers(text: str) -> int:
    """0 is `auto`: the loader asks the machine."""
    value = 0 if text == "auto" else units.whole(text)
    if not (text == "auto" or 1 <= value <= WORKERS_MAX):
        raise ValueError("out of range")
    return value


def _endpoint(text: str) -> Address:
    scheme, found, _ = text.partition("://")
    if found and scheme in ("dns", "srv"):
        raise Wanted(f"host:port ({scheme}:// is {NOT_YET})")
    if found:
        raise Wanted("host:port without a scheme")
    return units.endpoint(text)


def _public(text: str) -> str:
    templates.public_url(text)
    return text


def hop_key(text: str) -> str:
    size_bytes = len(text.encode())
    if size_bytes < KEY_BYTES_MIN:
        raise Wanted(f"a key of at least {KEY_BYTES_MIN} bytes")
    return text


def bearer_token(text: str) -> str:
    if not TOKEN_CHARS_MIN <= len(text) <= TOKEN_CHARS_MAX or not _BEARER.match(text):
        raise ValueError("no token")
    return text


def _admin_host(text: str) -> str:
    if not units.is_ip(text):
        return units.host_name(text)
    return str(ipaddress.ip_address(text))


def _filter(text: str) -> str:
    """A name that some filter may have; which ones there are is known once operators' files were loaded."""
    if text not in FILTERS and not _FILTER_NAME.match(text):
        raise ValueError("no filter")
    return text


def cluster_name(text: str) -> str:
    """A cluster that requests can be routed to: not the gateways of a region."""
    if not _CLUSTER.match(text):
        raise ValueError("no cluster name")
    return text


def _cluster_key(text: str) -> str:
    prefix, colon, region = text.partition(":")
    if not colon:
        return cluster_name(text)
    if prefix + colon != REGION_CLUSTER or not (region == "*" or REGION_NAME.match(region)):
        raise Wanted("region:* or region:NAME")
    return text


REGION: Final = matching("name", "a name of 1 to 32 of a-z 0-9 -", REGION_NAME)
CLUSTER: Final = Scalar(
    "cluster name", "a cluster name of 1 to 63 of a-z 0-9 _ . -", cluster_name, schema=like(_CLUSTER)
)
_CLUSTER_NAME: Final = Scalar("cluster name", CLUSTER.expected, _cluster_key, schema=like(_CLUSTER_KEY))
LISTENER: Final = Scalar(
    *("address", "an address such as 0.0.0.0:8080", units.listener), Address("", 0), schema=like(units.LISTENER_LIKE)
)
ENDPOINT: Final = Scalar(
    *("host:port", "host:port such as 10.1.0.4:9000", _endpoint), Address("", 0), schema=like(units.ENDPOINT_LIKE)
)
GATEWAY: Final = Scalar(
    *("host:port", "host:port such as gw.eu.internal:8082", units.endpoint),
    Address("", 0),
    schema=like(units.ENDPOINT_LIKE),
)
PUBLIC: Final = Scalar(
    "URL template", "a URL such as https://{tenant}.eu.example.com", _public, schema=like(r"https?://[^/?#@\\\s]+")
)
NETWORK: Final = Scalar(
    "network", "a network such as 10.20.0.0/24", units.network, schema=like(r"[0-9A-Fa-f.:]+(?:/[0-9.]+)?")
)
HOP_KEY: Final = Scalar(
    f"text of at least {KEY_BYTES_MIN} bytes",
    f"a key of at least {KEY_BYTES_MIN} bytes",
    hop_key,
    secret=True,
    schema={
        "type": ["string", "number"],
        "pattern": f"^[\\s\\S]{{{KEY_BYTES_MIN // 4},}}$",
    },  # a character: 1 to 4 bytes
)
ACTOR: Final = matching("name", "a name of 1 to 64 of A-Z a-z 0-9 . _ @ -", _ACTOR)
TOKEN: Final = Scalar(
    f"text of at least {TOKEN_CHARS_MIN} characters",
    f"a token of at least {TOKEN_CHARS_MIN} of A-Z a-z 0-9 - . _ ~ + /",
    bearer_token,
    secret=True,
    schema={"type": ["string", "number"], "pattern": f"^[A-Za-z0-9._~+/=-]{{{TOKEN_CHARS_MIN},{TOKEN_CHARS_MAX}}}$"},
)
ADMIN_HOST: Final = Scalar(
    "host", "a host name or an address, without port", _admin_host, schema=like(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
)
PREFIX: Final = matching("path", "a path prefix such as /api/, without query", _PATH)
PROBE: Final = matching("path", "a path such as /healthz, without query", _PATH)
CHECK_PATH: Final = matching("path", "a path such as /healthz", _TARGET)
WORKERS: Final = Scalar(
    f"`auto` or a whole number from 1 to {WORKERS_MAX}",
    f"auto or a whole number from 1 to {WORKERS_MAX}",
    _workers,
    1,
    schema={
        "anyOf": [
            {"type": "string", "pattern": "^(?:auto|[1-9][0-9]{0,2})$"},
            {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
        ]
    },
)
FILTER_PATHS: Final = Items(FilePath(), distinct=True)
FILTER: Final = Scalar("filter name", f"a filter: one of {', '.join(FILTERS)}", _filter, schema=like(_FILTER_NAME))
MISROUTE: Final = Choice({m.value: m for m in Misroute})


class ResolverKind:
    """One entry of `tenancy.resolvers`: a mapping with one key, the kind of resolver."""

    type_name = "one of " + ", ".join(f"`{kind}`" for kind in templates.RESOLVERS)
    secret = False
    later = ("jwt",)

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        kinds = ", ".join(templates.RESOLVERS)
        if not isinstance(node, Table) or len(node.entries) != 1:
            found = f"{len(node.entries)} keys" if isinstance(node, Table) else described(node)
            return walk.note(node, path, f"one of {kinds}, with its value", found)
        [(kind, value)] = node.entries.items()
        inner = (*path, kind)
        if kind not in templates.RESOLVERS:
            late = f" ({kind} is {NOT_YET})" if kind in self.later else nearest(kind, templates.RESOLVERS)
            return walk.note_at(value.source, node.lines[kind], inner, f"one of {kinds}{late}", shown(kind))
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


def _cluster(**values: Any) -> ClusterSettings:
    values.pop("balance", None)
    return ClusterSettings(**values)


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
        "path": Key(CHECK_PATH, "Asked with GET; 2xx and 3xx are healthy.", required=True),
        "interval": Key(duration(0.01, 3600), "From one check of an endpoint to the next.", "5s"),
        "healthy": Key(whole(1, 100), "Successes in a row that bring an endpoint up.", "2"),
        "unhealthy": Key(whole(1, 100), "Failures in a row that take an endpoint down.", "3"),
    },
)
_RETRIES: Final = {
    "attempts": Key(whole(0, 10), "Further tries after a failed connect, or on a pooled connection found closed.", "1"),
    "budget": Key(Later(), "Share of requests that may be retried."),
    "statuses": Key(Later(), "Statuses to retry."),
}
_CLUSTER_LIMITS: Final = {
    "connections": Key(whole(1, 1_000_000), "Connections to the cluster, for the whole gateway.", "1024"),
    "pending": Key(whole(0, 1_000_000), "Requests that wait for a connection, for the whole gateway.", "1024"),
}


def _shared_keys(make: Callable[[Callable[..., object]], Callable[..., object]]) -> dict[str, Key]:
    return {
        "timeouts": Key(Record(make(ClusterTimeoutSettings), CLUSTER_TIMEOUTS), "How long to wait for it."),
        "retries": Key(Record(make(RetrySettings), _RETRIES), "When to try again."),
        "limits": Key(Record(make(ClusterLimitSettings), _CLUSTER_LIMITS), "Shared evenly by the workers, rounded up."),
        "breaker": Key(Later(), "Circuit breaker."),
        "outliers": Key(Later(), "Ejection of endpoints that fail."),
    }


APP_CLUSTER: Final = Record(
    _cluster,
    {
        "endpoints": Key(
            Items(ENDPOINT, distinct=True),
            "Where the application listens. An empty list: this region cannot serve this cluster.",
            required=True,
        ),
        "balance": Key(
            Choice({"least_request": "least_request"}, later=("round_robin", "weighted", "hash")),
            "How an endpoint is chosen.",
            "least_request",
        ),
        "health": Key(OrNone(HEALTH), "Active checks by control.", "none"),
        **_shared_keys(lambda make: make),
    },
)
GATEWAYS_CLUSTER: Final = Record(dict, _shared_keys(lambda make: dict))
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
}
_TENANCY: Final = {
    "resolvers": Key(
        Items(ResolverKind()),
        "How a request names its tenant; the first that answers wins. Before them come placements' `hosts` and "
        "regions' `public` templates.",
        "[]",
    ),
    "agree": Key(Later(empty_is_fine=True), "Resolvers that must not contradict each other.", "[]"),
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
_MAP: Final = {
    "source": Key(Choice({"yaml": "yaml"}, later=("redis",)), "`yaml`: `file` is watched.", "yaml"),
    "file": Key(FilePath(), "The tenants file.", "tenants.yaml"),
    "loss_guard": Key(
        Scalar("percentage", "a percentage such as 5%", units.percent, 0.0, schema=like(units.PERCENT)),
        "A change that removes more than this share and at least 10 tenants, or all of them, waits for `map confirm`.",
        "5%",
    ),
    "redis": Key(Later(), "The replicated map."),
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
    "tenants": Key(whole(0, 100_000), "Tenants with a metric series of their own; the rest count as `other`.", "200"),
}


def _tenancy(**values: Any) -> TenancySettings:
    values.pop("agree", None)
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
            Named(_CLUSTER_NAME, APP_CLUSTER, _gateways_kind, "<cluster>"),
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
        "throttle": Key(Later(), "Rates per tenant and client."),
        "tenant_map": Key(Record(_as_dict, _MAP), "Where placements come from."),
        "filters": Key(Record(_as_dict, _FILTERS), "Request policy.", effect=Effect.WORKERS),
        "access_log": Key(Record(AccessLogSettings, _ACCESS_LOG), "One JSON object a line."),
        "telemetry": Key(Record(_as_dict, _TELEMETRY), "Metrics."),
        "admin": Key(Record(AdminSettings, _ADMIN), "Who may use `listen.admin`."),
    },
)  # fmt: skip
