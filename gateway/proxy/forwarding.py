"""Towards the application, or another region's gateway: an exchange's head and body out, and a failed try's successor.

Over a hop the request stays in hand until the peer has taken it: up to 64 KiB of body are kept, and a longer or
chunked body waits here for the peer's `100` (DESIGN 5.4). So a request that a peer refuses can go elsewhere whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.core.errors import GatewayError
from gateway.core.filtering import Forward
from gateway.core.following import SENDS_MAX, Unconnected
from gateway.core.http1.head import CHUNKED
from gateway.core.retry import REPLAY_BYTES_MAX, Failure, may_retry
from gateway.core.view import Cluster
from gateway.proxy import hops

if TYPE_CHECKING:
    from gateway.proxy.pool import ClusterPool, EndpointPool
    from gateway.proxy.relay import Relay
    from gateway.proxy.upstream import Upstream

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def forward(relay: Relay, answer: Forward) -> None:
    """Build the head for `answer`'s cluster, and find a connection."""
    exchange = relay.exchange
    request = exchange.request
    cluster = relay.worker.cluster(answer.cluster)
    relay.cluster = cluster
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
    relay.tries_left = cluster.config.retries
    acquire(relay, cluster)


def waits(relay: Relay) -> bool:
    """Whether this body goes over a hop only after the peer's 100: it could not be sent a second time."""
    length = relay.exchange.request.length
    return length == CHUNKED or length > REPLAY_BYTES_MAX


def acquire(relay: Relay, cluster: ClusterPool) -> None:
    """A connection at once, or later through `connected` or `connect_failed`."""
    now = relay.worker.now()
    try:
        if cluster.watch is not None:
            cluster.watch.admit(relay.exchange.tenant, now)
        up = cluster.acquire(relay, now)
    except GatewayError as error:
        not_acquired(relay, cluster, error)
        return
    if up is not None:
        connected(relay, up, now)
    else:
        relay.hold_body()


def connected(relay: Relay, up: Upstream, now: float) -> None:
    """A connection for this exchange: send what there is."""
    relay.deadline = 0.0
    relay.up = up
    relay.sent_at = now
    config = up.pool.cluster.config
    if config.region is not None:
        relay.sends += 1
        relay.asked_at = now if relay.request_sent else 0.0
        if waits(relay):
            _ask_first(relay, up, now)
            return
    body = relay.body
    assert body is not None
    data = relay.head if not body else b"".join((relay.head, *body))
    if relay.request_sent:
        up.begin(relay, data, now + response_s(relay, config))
        return
    relay.down.hold_reading(False)  # before the write, which may find the other side stalled and hold again
    up.begin(relay, data, 0.0)
    if relay.exchange.request.expect and config.region is None:
        to_continue(relay)


def _ask_first(relay: Relay, up: Upstream, now: float) -> None:
    """Send the head alone; the body stays where it is until the peer says that it takes the request."""
    relay.hold_body()
    relay.awaits_100 = True
    relay.withheld, relay.request_sent = relay.request_sent, False
    relay.asked_at = now
    up.begin(relay, relay.head, now + response_s(relay, up.pool.cluster.config))


def response_s(relay: Relay, config: Cluster) -> float:
    """Seconds until the head must be here: what peers have left of them, and over a hop what the sender has."""
    exchange = relay.exchange
    own, hop = config.timeouts.response, exchange.hop
    if hop is not None:
        return max(0.1, min(own, hop.deadline_s - hops.HOP_MARGIN_S))
    return own if config.region is None else own - exchange.waited_s


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
    body, relay.body = relay.body, None
    if relay.request_sent:
        relay.asked_at = now = relay.worker.now()
        up.deadline = now + response_s(relay, up.pool.cluster.config)
    else:
        relay.asked_at = 0.0
        up.deadline = 0.0
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
    if data:
        request_data(relay, data)
    if relay.up is not None and not relay.started:
        relay.asked_at = now = relay.worker.now()
        relay.up.deadline = now + response_s(relay, relay.up.pool.cluster.config)


# ---- when a try fails


def connect_failed(relay: Relay, pool: EndpointPool) -> None:
    """No connection could be made to this endpoint: nothing was written, another may be tried."""
    if relay.over:
        return
    cluster = pool.cluster
    relay.worker.meters.upstream(cluster.name, "connect_failed")
    relay.tried += (pool.endpoint.key,)
    relay.timed_out = False
    if retry(relay, Failure.CONNECT, cluster):
        return
    region = cluster.config.region
    if region is not None:
        _unconnected(relay, cluster, "region_unreachable", f"no gateway of {region} could be connected")
    elif relay.exchange.hop is not None and not relay.in_doubt:
        _unconnected(relay, cluster, "cluster_unavailable", "no endpoint of the application could be connected")
    else:
        _unconnected(relay, cluster, "upstream_connect", "")


def not_acquired(relay: Relay, cluster: ClusterPool, error: GatewayError) -> None:
    """The pool has no endpoint that is worth a try, or no place to wait."""
    if error.flag.name in ("shed", "breaker_open"):
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


def retry(relay: Relay, failure: Failure, cluster: ClusterPool) -> bool:
    """Once more to the same cluster, where that is safe and allowed. Whether it was (or ended in a refusal)."""
    wrote = failure is not Failure.CONNECT
    if wrote and cluster.config.region is not None and relay.sends >= SENDS_MAX:
        return False
    if not may_retry(failure, relay.exchange.request.method, wrote, relay.body is not None, relay.tries_left):
        return False
    relay.in_doubt |= wrote
    relay.tries_left -= 1
    relay.up = None
    withhold_no_more(relay)
    relay.worker.meters.retry(cluster.name)
    acquire(relay, cluster)
    return True
