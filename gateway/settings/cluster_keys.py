"""The keys of `clusters`: what an application and the way to another region's gateways have in common, and what not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.core.balancing import Balancer, HashBy
from gateway.core.view import REGION_CLUSTER
from gateway.settings.scalars import (
    CHECK_PATH,
    CHECK_STATUS,
    CHECK_TEXT,
    CLUSTER,
    DAY_S,
    ENDPOINT,
    HASH_NAME,
    PERCENTAGE,
    STICKY,
    duration,
    fraction,
    number,
    whole,
)
from gateway.settings.schema import (
    BackoffSettings,
    BreakerSettings,
    ClusterLimitSettings,
    ClusterSettings,
    ClusterTimeoutSettings,
    HashSettings,
    HealthSettings,
    OutlierSettings,
    RetrySettings,
)
from gateway.settings.shape import (
    Choice,
    Items,
    Key,
    Kind,
    OrNone,
    Record,
)

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


def kind_of(name: str) -> Kind | None:
    """Of which kind a cluster's settings are, where its name says that it is no application's."""
    return GATEWAYS_CLUSTER if name.startswith(REGION_CLUSTER) else None
