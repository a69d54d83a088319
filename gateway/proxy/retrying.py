"""Once more: what a failed try leaves of a request's chances, and the pause before the next one.

What may be sent again is in `core.retry`, what it costs in `core.retry_budget`; here they meet the clock. Nothing of
this runs for a request whose first try is answered. A request that pauses holds no connection: a timer of its own
brings it back, and it counts as in hand, so that a drain waits for it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from gateway.core.following import SENDS_MAX, Unconnected
from gateway.core.retry import AT_ONCE, FREE, Failure, NotRetried, pause_s, why_not
from gateway.core.routing import covers, reads
from gateway.proxy import deadlines, forwarding, hops

if TYPE_CHECKING:
    from gateway.core.http1.head import Response
    from gateway.proxy.pool import ClusterPool
    from gateway.proxy.relay import Relay
    from gateway.proxy.upstream import Upstream

_SPARED: Final = frozenset((NotRetried.ATTEMPTS, NotRetried.BUDGET, NotRetried.BREAKER))
"""An application that is not asked again, for its own sake: another region may be."""
_DIED: Final = frozenset((Failure.STALE, Failure.RESET))
LEFT_S: Final = 0.01
"""A try with less time than this before its deadline is a burden and no chance."""
RESIGN_S: Final = 0.1
"""What a hop's signed deadline may be off by: it is written in tenths of a second."""


def retry(relay: Relay, failure: Failure, cluster: ClusterPool, endpoint: str) -> bool:
    """Send the request once more, at once or after a pause, where that is safe, allowed, in time and paid for.

    False: the failure stands. `endpoint` is avoided by the next try, where there is another one.
    """
    now = relay.worker.now()
    pause, reason = _judge(relay, failure, cluster, now)
    if reason is not None:
        relay.worker.meters.not_retried(cluster.name, reason)
        return reason in _SPARED and failure in _DIED and _elsewhere(relay, cluster)
    _again(relay, failure, cluster, endpoint, pause)
    return True


def _elsewhere(relay: Relay, cluster: ClusterPool) -> bool:
    """An application that dies under load takes more requests with it than a budget pays for, or a breaker lets pass,
    and some of them twice. Those that only read go on to a standby, where they are covered: that is no try more for
    this application. Whether this request is done with."""
    exchange = relay.exchange
    if cluster.config.region is not None or relay.body is None or not reads(exchange.request):
        return False
    record = exchange.placement if exchange.hop is None else exchange.hop
    if record is None or not record.standby or not covers(record.failover, exchange.request):
        return False
    relay.let_go()
    if exchange.hop is not None:
        relay.refuse("cluster_unavailable", "the application closed the connection")
    else:
        hops.follow(relay, Unconnected("upstream_reset"), exchange.view.region, "")
    return True


def _again(relay: Relay, failure: Failure, cluster: ClusterPool, endpoint: str, pause: float) -> None:
    relay.let_go()
    relay.in_doubt |= failure not in FREE
    relay.tries_left -= 1
    relay.retried += 1
    if len(cluster.usable) > 1 and endpoint not in relay.tried:
        relay.tried += (endpoint,)
    forwarding.withhold_no_more(relay)
    relay.worker.meters.retry(cluster.name, "retried")
    fresh = failure in (Failure.STALE, Failure.RESET)
    if pause:
        relay.hold_body()
        relay.pause = relay.worker.loop.call_later(pause, _go_on, relay, cluster, fresh)
    else:
        _send(relay, cluster, fresh)


def _judge(relay: Relay, failure: Failure, cluster: ClusterPool, now: float) -> tuple[float, NotRetried | None]:
    """Seconds to pause before the next try, or why there is none."""
    request, config, watch = relay.exchange.request, cluster.config, cluster.watch
    is_peer = config.region is not None
    reason = why_not(failure, request.method, keyed(relay), relay.body is not None, relay.tries_left, is_peer)
    if reason is not None:
        return 0.0, reason
    if is_peer and failure not in FREE and relay.sends >= SENDS_MAX:
        return 0.0, NotRetried.ATTEMPTS
    if relay.informed:
        return 0.0, NotRetried.STARTED
    if watch is not None and not watch.may_retry(relay.exchange.tenant):
        return 0.0, NotRetried.BREAKER
    pause = 0.0 if failure in AT_ONCE or is_peer else pause_s(config.retry, relay.retried, random.random)
    if deadlines.left_s(relay, cluster, now) < pause + LEFT_S:
        return 0.0, NotRetried.DEADLINE
    if failure not in FREE and not cluster.budget.withdraw():
        return 0.0, NotRetried.BUDGET
    return pause, None


def keyed(relay: Relay) -> bool:
    """Whether the application tells a repetition of this request by its key: one that does go out, and that neither
    `Connection` nor a filter has taken away."""
    fields = (line.partition(b":") for line in relay.exchange.request.kept)
    keys = [value.strip(b" \t") for name, _, value in fields if name.lower() == b"idempotency-key"]
    return len(keys) == 1 and bool(keys[0])


def _go_on(relay: Relay, cluster: ClusterPool, fresh: bool) -> None:
    relay.pause = None
    if not relay.over:
        _send(relay, cluster, fresh)


def _send(relay: Relay, cluster: ClusterPool, fresh: bool) -> None:
    if cluster.config.region is not None and relay.exchange.waited_s >= RESIGN_S:
        relay.answer()  # what is signed says how long the other side may take, and that is less by now
    else:
        forwarding.acquire(relay, cluster, fresh)


# ---- failures that only retries know of


def by_status(relay: Relay, up: Upstream, response: Response) -> bool:
    """An application answered 500 or more, or a status that `statuses` names. Whether it is asked again instead."""
    cluster = up.pool.cluster
    if cluster.config.region is not None:
        return False  # whoever answered there has retried, or was not to
    if response.status not in cluster.config.retry.statuses:
        if response.status >= 500:
            relay.worker.meters.not_retried(cluster.name, NotRetried.STATUS)
        return False
    return retry(relay, Failure.STATUS, cluster, up.pool.endpoint.key)


def by_time(relay: Relay, up: Upstream) -> bool:
    """The try's time is over. Whether that was `per_try_timeout`: then it is made again, or goes on where it cannot."""
    cluster, now = up.pool.cluster, relay.worker.now()
    assert up.transport is not None
    if relay.started or not (relay.asked_at and cluster.config.retry.per_try_s):
        return False
    left = deadlines.left_s(relay, cluster, now)
    if left < LEFT_S or up.transport.get_write_buffer_size():
        return False
    pause, reason = _judge(relay, Failure.TIMEOUT, cluster, now)
    if reason is not None:
        up.deadline = now + left
        return True
    relay.worker.meters.upstream(cluster.name, "timeout")
    relay.note(up, False)
    _again(relay, Failure.TIMEOUT, cluster, up.pool.endpoint.key, pause)
    return True


def give_up(relay: Relay, up: Upstream, flag: str) -> None:
    """Count why a try that brought nothing usable is the last."""
    reason = NotRetried.DEADLINE if flag == "upstream_timeout" else NotRetried.MALFORMED
    relay.worker.meters.not_retried(up.pool.cluster.name, NotRetried.STARTED if relay.started else reason)
