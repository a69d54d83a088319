"""Towards the application, or another region's gateway: an exchange's head and body out, and a failed try's successor.

Over a hop the request stays in hand until the peer has taken it: up to 64 KiB of body are kept, and a longer or
chunked body waits here for the peer's `100` (DESIGN 5.4). So a request that a peer refuses can go elsewhere whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.core.errors import GatewayError
from gateway.core.filtering import Forward
from gateway.core.following import Unconnected
from gateway.core.http1.head import CHUNKED
from gateway.core.retry import REPLAY_BYTES_MAX, Failure
from gateway.proxy import deadlines, hops
from gateway.proxy.watch import refusal

if TYPE_CHECKING:
    from gateway.proxy.pool import ClusterPool, EndpointPool
    from gateway.proxy.relay import Relay
    from gateway.proxy.upstream import Upstream

UNREAD_BYTES_MAX: Final = 16 * 1024
"""So much fits into any receive window: it is acknowledged although nobody has read it yet."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def forward(relay: Relay, answer: Forward) -> None:
    """Build the head for `answer`'s cluster, and find a connection."""
    exchange = relay.exchange
    request = exchange.request
    cluster = relay.worker.cluster(answer.cluster)
    if relay.cluster is not cluster:
        if relay.cluster is not None:
            relay.connects_by = 0.0
            relay.response_s = max(relay.response_s, relay.cluster.config.timeouts.response)
        relay.cluster = cluster
        relay.tries_left = cluster.config.retries
        cluster.budget.requests += 1
    exchange.cluster = answer.cluster
    lines = [
        b"%b %b HTTP/1.1" % (request.method, request.target),
        *request.kept,
        *exchange.forwarded,
        exchange.destination,
    ]
    if request.length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    if request.upgrade:
        lines.append(b"Connection: upgrade\r\nUpgrade: websocket")
    if request.length and cluster.config.region is not None:
        if waits(relay) or (request.expect and not relay.request_sent):
            lines.append(b"Expect: 100-continue")
    lines.append(b"\r\n")
    relay.head = b"\r\n".join(lines)
    acquire(relay, cluster)


def waits(relay: Relay) -> bool:
    """Whether this body goes over a hop only after the peer's 100: it could not be sent a second time."""
    length = relay.exchange.request.length
    return length == CHUNKED or length > REPLAY_BYTES_MAX


def acquire(relay: Relay, cluster: ClusterPool, fresh: bool = False) -> None:
    """A connection at once, or later through `connected` or `connect_failed`; with `fresh` none that was used."""
    now = relay.worker.now()
    try:
        watch = cluster.watch
        if watch is not None and watch.blame.active:
            refusing = watch.admit(relay.exchange.tenant, now)
            if refusing is not None:
                relay.exchange.retry_after_s = refusing.retry_after_s(now)
                raise refusal(refusing, watch)
        up = None
        if fresh:
            cluster.acquire_new(relay, now)
        else:
            up = cluster.acquire(relay, now)
    except GatewayError as error:
        not_acquired(relay, cluster, error)
        return
    if up is not None:
        connected(relay, up, now)
    else:
        relay.deadline = deadlines.bounded(relay, relay.deadline)
        relay.hold_body()


def connected(relay: Relay, up: Upstream, now: float) -> None:
    """A connection for this exchange: send what there is."""
    relay.deadline = 0.0
    relay.up = up
    relay.sent_at = now
    config = up.pool.cluster.config
    if config.region is not None:
        relay.sends += 1
        if waits(relay):
            _ask_first(relay, up, now)
            return
    body = relay.body
    assert body is not None
    head, by = relay.head, 0.0
    exchange = relay.exchange
    if relay.asked_at or exchange.timeout_s or exchange.hop is not None or config.retry.per_try_s:
        if config.region is None:
            head = deadlines.with_time(relay, up.pool.cluster, now)
        by = deadlines.ends_at(relay)
        if relay.request_sent:
            by = deadlines.due(relay, up.pool.cluster, now)
    elif relay.request_sent:  # the plain path: the first try, and nobody but the configuration limits it
        relay.asked_at = now
        by = now + config.timeouts.response
    data = head if not body else b"".join((head, *body))
    patient = not relay.request_sent or len(data) > UNREAD_BYTES_MAX
    if patient is not up.patient:
        up.wait_for_acks(patient)
    if relay.request_sent:
        up.begin(relay, data, by)
        return
    deadlines.account(relay, now)
    relay.asked_at = 0.0
    relay.down.hold_reading(False)  # before the write, which may find the other side stalled and hold again
    up.begin(relay, data, by)
    if relay.exchange.request.expect and config.region is None:
        to_continue(relay)


def _ask_first(relay: Relay, up: Upstream, now: float) -> None:
    """Send the head alone; the body stays where it is until the peer says that it takes the request."""
    relay.hold_body()
    relay.awaits_100 = True
    relay.withheld, relay.request_sent = relay.request_sent, False
    up.begin(relay, relay.head, deadlines.due(relay, up.pool.cluster, now))


def to_continue(relay: Relay) -> None:
    """100 once admitted (RFC 9110, 10.1.1), unless the body is on its way already."""
    if not relay.continued and not relay.body and not relay.started:
        relay.continued = True
        relay.down.write(CONTINUE)


def continued(relay: Relay) -> None:
    """100 came. A peer's lets the body go, and the client's, if the client waits for one."""
    if relay.exchange.request.expect and not (relay.request_sent or relay.withheld):
        to_continue(relay)
    up = relay.up
    if not relay.awaits_100 or up is None or up.transport is None:
        return
    withhold_no_more(relay)
    up.wait_for_acks(True)
    body, relay.body = relay.body, None
    if relay.request_sent:
        relay.asked_at = 0.0  # the wait for a 100 is none for an answer
        up.deadline = deadlines.due(relay, up.pool.cluster, relay.worker.now())
    else:
        relay.asked_at = 0.0
        up.deadline = deadlines.ends_at(relay)
        relay.down.hold_reading(False)
    if body:
        up.transport.write(b"".join(body))


def withhold_no_more(relay: Relay) -> None:
    """The wait for a peer's 100 is over, or was for a try that is."""
    relay.request_sent |= relay.withheld
    relay.withheld = relay.awaits_100 = False


def request_data(relay: Relay, data: bytes) -> None:
    """More body, framed as it goes out."""
    body, up = relay.body, relay.up
    if up is None or relay.awaits_100:
        if body is not None:  # nothing is read meanwhile; this is what was already here
            body.append(data)
            relay.hold_body()
        return
    if body is not None:
        body.append(data)
        if sum(map(len, body)) > REPLAY_BYTES_MAX:
            relay.body = None
    if up.transport is not None:
        up.transport.write(data)


def request_end(relay: Relay, data: bytes) -> None:
    """The body's last bytes, framed."""
    if relay.awaits_100:
        relay.withheld = True
        request_data(relay, data)
        return
    relay.request_sent = True
    exchange = relay.exchange
    exchange.whole = True
    if exchange.counted_by is not None:
        exchange.counted_by.uploaded(exchange, relay.worker.now())
    if data:
        request_data(relay, data)
    if relay.exchange.hop is not None:
        relay.received_at = relay.worker.now()
    if relay.up is not None and not relay.started:
        relay.up.deadline = deadlines.due(relay, relay.up.pool.cluster, relay.worker.now())


# ---- when a try fails


def connect_failed(relay: Relay, pool: EndpointPool) -> None:
    """No connection could be made to this endpoint: nothing was written, another may be tried."""
    if relay.over:
        return
    cluster = pool.cluster
    relay.worker.meters.upstream(cluster.name, "connect_failed")
    relay.tried += (pool.endpoint.key,)
    is_silent, relay.timed_out = relay.timed_out and cluster.config.region is not None, False
    has_another = not is_silent or any(one.endpoint.key not in relay.tried for one in cluster.usable)
    if has_another and relay.retry(Failure.CONNECT, pool):  # a region that is cut off is not waited for twice
        return
    if deadlines.is_late(relay, relay.worker.now()):
        relay.refuse("upstream_timeout", "")
        return
    region = cluster.config.region
    if region is not None:
        _unconnected(relay, cluster, "region_unreachable", f"no gateway of {region} could be connected")
    elif relay.exchange.hop is not None and not hops.may_have_arrived(relay):
        _unconnected(relay, cluster, "cluster_unavailable", "no endpoint of the application could be connected")
    else:
        _unconnected(relay, cluster, "upstream_connect", "")


def not_acquired(relay: Relay, cluster: ClusterPool, error: GatewayError) -> None:
    """The pool has no endpoint that is worth a try, or no place to wait."""
    rule = cluster.config.breaker
    if error.flag.name == "breaker_open" and rule is not None and rule.fallback and not relay.fell_back:
        relay.fell_back = True  # once: the fallback's own fallback would be a search
        relay.exchange.reason = "fallback"
        forward(relay, Forward(rule.fallback, "fallback"))
    elif error.flag.name == "shed":
        relay.refuse(error.flag.name, error.detail)
    else:
        _unconnected(relay, cluster, error.flag.name, error.detail)


def _unconnected(relay: Relay, cluster: ClusterPool, flag: str, detail: str) -> None:
    """The cluster cannot be had. A hop ends here; a client's request may go where it is covered."""
    region = cluster.config.region
    if region is not None:
        relay.worker.meters.hop(region, "error")
    if relay.exchange.hop is not None:
        relay.refuse(flag, detail)
    else:
        hops.follow(relay, Unconnected(flag), region or relay.exchange.view.region, detail)
