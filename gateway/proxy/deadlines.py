"""How long a request may still take: what the cluster is given for an answer, over all tries, pauses and clusters, and
what others said of it: the client (`core.patience`), and over a hop the gateway that sent it (DESIGN 5.4).

Monotonic seconds throughout. On the plain path nobody said anything and nothing was tried before: then none of this
runs, and the deadline is now and `timeouts.response`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.patience import within

if TYPE_CHECKING:
    from gateway.core.view import Cluster
    from gateway.proxy.pool import ClusterPool
    from gateway.proxy.relay import Relay
    from gateway.proxy.upstream import Upstream


def ends_at(relay: Relay) -> float:
    """When this exchange has to have its response's head, by what others said: the client, or the gateway that sent
    the hop. Monotonic seconds; 0.0 where nobody did."""
    exchange = relay.exchange
    at = exchange.started + exchange.timeout_s if exchange.timeout_s else 0.0
    if exchange.hop is not None:
        by_hop = (relay.received_at or exchange.started) + within(exchange.hop.deadline_s)
        at = min(at, by_hop) if at else by_hop
    return at


def bounded(relay: Relay, when: float) -> float:
    """`when`, or when the exchange has to be over, if that is sooner."""
    at = ends_at(relay)
    return min(when, at) if at else when


def is_late(relay: Relay, now: float) -> bool:
    """Whether the time that others gave is over: then it is nobody's fault on the other side."""
    at = ends_at(relay)
    return 0.0 < at <= now


def cut_short(relay: Relay, up: Upstream, now: float) -> bool:
    """Whether a try ended because the client was less patient than half of what the cluster is given: an application
    must not count as failing, because a client said that it waits for a millisecond."""
    return is_late(relay, now) and now - relay.sent_at < up.pool.cluster.config.timeouts.response / 2


def account(relay: Relay, now: float) -> None:
    """Book what was waited for an answer so far; the waiting goes on."""
    if relay.asked_at:
        relay.exchange.waited_s += now - relay.asked_at
        relay.asked_at = now


def due(relay: Relay, cluster: ClusterPool, now: float) -> float:
    """The whole request is out: when the head has to be here. All tries of a request share one time, its cluster's
    `timeouts.response` (the longest, where it goes from cluster to cluster), and each takes what is left."""
    account(relay, now)
    relay.asked_at = now
    config = cluster.config
    own = config.timeouts.response
    by = bounded(relay, now + min(own, _all(relay, own) - relay.exchange.waited_s))
    per_try = config.retry.per_try_s
    return min(by, now + per_try) if per_try else by


def _all(relay: Relay, own: float) -> float:
    """What a request has for all its tries: the most that any cluster is given which it was sent to."""
    return max(relay.response_s, own)


def left_s(relay: Relay, cluster: ClusterPool, now: float) -> float:
    """Seconds that this request has left; without a first answer owed, only what others said limits them."""
    account(relay, now)
    if relay.asked_at:
        return bounded(relay, now + _all(relay, cluster.config.timeouts.response) - relay.exchange.waited_s) - now
    at = ends_at(relay)
    return at - now if at else float("inf")


def with_time(relay: Relay, cluster: ClusterPool, now: float) -> bytes:
    """The head, and in it what the application has left: only where that is less than the cluster's whole time."""
    own = cluster.config.timeouts.response
    left = min(own, left_s(relay, cluster, now))
    if left >= own:
        return relay.head
    return b"%bX-Gateway-Timeout-Ms: %d\r\n\r\n" % (relay.head[:-2], max(1, int(left * 1000)))


def for_a_hop(relay: Relay, cluster: Cluster, now: float) -> float:
    """What a hop to `cluster` would have left, in seconds: what `filters/endpoint/forward.py` will sign."""
    account(relay, now)
    exchange = relay.exchange
    own = cluster.timeouts.response
    return (min(own, exchange.timeout_s) if exchange.timeout_s else own) - exchange.waited_s
