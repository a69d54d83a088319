"""Keep-alive connections to endpoints, kept beside the View by cluster and endpoint: a reload does not close them.

`ClusterPool.acquire` decides and returns at once: a warm connection, or None when one is being made (or waited for)
and the relay will be called. Connecting is the only place of the data plane that uses a task.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.core.balancing import Balancer, Ring, Turns, eased, least_request
from gateway.core.errors import GatewayError
from gateway.core.retry_budget import Budget
from gateway.core.view import Cluster, Endpoint
from gateway.proxy import deadlines, forwarding, keys
from gateway.proxy.upstream import Upstream
from gateway.proxy.watch import Watch

if TYPE_CHECKING:
    from gateway.proxy.relay import Relay
    from gateway.proxy.worker import Worker

FAILURES_DOWN: Final = 3
"""Connects in a row that fail before an endpoint counts as down (DESIGN 5.1)."""
RECONNECT_S: Final = 0.3
"""What all further connects of a request get after a first one that took all of `timeouts.connect`: two round trips
around the earth. Whoever waits for an answer must not wait for one endpoint after the other."""
LOCAL_DOWN_S: Final = 2.0
"""How long a worker trusts its own three failures; control's word takes their place long before, if it lives."""


class EndpointPool:
    """One endpoint's connections in this worker. `busy` counts requests in hand, connects included."""

    __slots__ = (
        "busy",
        "cluster",
        "down_until",
        "endpoint",
        "failures",
        "gone",
        "good",
        "idle",
        "key",
        "size",
        "warm_from",
    )

    def __init__(self, cluster: ClusterPool, endpoint: Endpoint) -> None:
        self.cluster = cluster
        self.endpoint = endpoint
        self.key = endpoint.key
        self.idle: list[Upstream] = []
        self.busy = 0
        self.size = 0
        self.failures = 0
        self.down_until = 0.0
        self.gone = False
        self.good = 0
        """Good answers that its cluster's watch has not been told yet: it takes them ten times a second."""
        self.warm_from = 0.0
        """Since when it is eased in (monotonic seconds); 0: it is not."""

    def __repr__(self) -> str:
        return f"<{self.cluster.name} {self.endpoint.key}: {self.busy} busy, {len(self.idle)} idle>"

    def release(self, up: Upstream, now: float) -> None:
        """A connection finished its exchange and can take another."""
        self.busy -= 1
        cluster = self.cluster
        if cluster.waiting:
            cluster.hand_over(up, now)
            return
        if self.gone:
            up.close()
            return
        up.deadline = now + cluster.config.timeouts.idle
        self.idle.append(up)

    def give_up(self) -> None:
        """Another region's gateway is not there any more, and nobody says so but its silence: what waits for its answer
        goes on without, and no kept connection is tried when it is back. One that drains still answers."""
        for up in tuple(self.cluster.worker.ups):
            if up.pool is self:
                up.give_up()

    def leave(self) -> None:
        """The configuration no longer names this endpoint: what is in hand ends, nothing is pooled any more."""
        self.gone = True
        for up in tuple(self.idle):
            up.close()

    def discard(self, up: Upstream, was_busy: bool) -> None:
        """A connection is gone."""
        self.size -= 1
        self.cluster.size -= 1
        if was_busy:
            self.busy -= 1
        elif up in self.idle:
            self.idle.remove(up)
        if self.cluster.waiting:
            self.cluster.grow()


class ClusterPool:
    """All of one cluster's connections in this worker, and the exchanges that wait for one."""

    watch: Watch | None = None

    def __init__(self, worker: Worker, config: Cluster) -> None:
        self.worker = worker
        self.name = config.name
        self.config = config
        self.endpoints: dict[str, EndpointPool] = {}
        self.usable: tuple[EndpointPool, ...] = ()
        self.spare: tuple[EndpointPool, ...] = ()
        self.weighted = False
        self.easing = False
        self.turns = Turns()
        self.ring: Ring | None = None
        self.size = 0
        self.waiting: deque[Relay] = deque()
        self.budget = Budget(config.retry.budget)
        self.configure(config)

    def configure(self, config: Cluster) -> None:
        """Take a new View's cluster: endpoints that stay keep their connections, those that left lose idle ones."""
        self.config = config
        self.budget.use(config.retry.budget)
        if config.breaker is None and config.outliers is None:
            self.watch = None
        else:
            self.watch = self.watch or Watch(self)
            self.watch.use(config)
        kept: dict[str, EndpointPool] = {}
        now, is_start, back = self.worker.now(), not self.endpoints, []
        for endpoint in config.endpoints:
            pool = self.endpoints.pop(endpoint.key, None)
            if pool is None:
                pool = EndpointPool(self, endpoint)
                if not is_start:
                    back.append(endpoint.key)
            if endpoint.up and not pool.endpoint.up:  # control says that it is back: forget our own count
                pool.failures, pool.down_until = 0, 0.0
                back.append(endpoint.key)
                if self.watch is not None:
                    self.watch.heal(now)
            if config.region is not None and pool.endpoint.up and not (endpoint.up or endpoint.draining):
                pool.give_up()
            pool.endpoint = endpoint
            kept[endpoint.key] = pool
        gone = self.endpoints
        self.endpoints = kept
        usable = config.usable
        if config.balance.balancer is not Balancer.HASH:
            self.ring = None
        elif self.ring is None or self.ring.weights != {e.key: e.weight for e in config.endpoints}:
            self.ring = Ring({e.key: e.weight for e in config.endpoints})
        self.refresh(back)
        first = usable[0].priority if usable else 0
        later = [e for e in config.endpoints if e.up and not e.draining and e.priority != first]
        self.spare = tuple(kept[e.key] for e in sorted(later, key=lambda e: e.priority))
        for pool in gone.values():
            pool.leave()

    def refresh(self, back: Sequence[str]) -> None:
        """Work out who may get requests: those that are up, but for whom an outlier's rule leaves out. `back`: these
        got none until now."""
        if self.config.slow_start:
            for key in back:
                if (pool := self.endpoints.get(key)) is not None:
                    pool.warm_from = self.worker.now()
            self.easing = any(pool.warm_from for pool in self.endpoints.values())
        usable = self.config.usable
        outliers = None if self.watch is None else self.watch.outliers
        if outliers is not None and outliers.out:
            chosen = outliers.usable([endpoint.key for endpoint in usable])
            usable = tuple(endpoint for endpoint in usable if endpoint.key in chosen)
        self.usable = tuple(self.endpoints[endpoint.key] for endpoint in usable)
        self.weighted = len({endpoint.weight for endpoint in usable}) > 1

    def retire(self) -> None:
        """The cluster left the configuration: exchanges in hand end, nothing is pooled any more."""
        for pool in self.endpoints.values():
            pool.leave()

    def acquire(self, relay: Relay, now: float) -> Upstream | None:
        """A warm connection, or None: then the relay is called with one, or with a failure.

        Raises GatewayError(cluster_unavailable, region_unreachable, shed).
        """
        usable = self.usable
        pool = usable[0] if len(usable) == 1 and not usable[0].failures else self._choose(relay, now)
        idle = pool.idle
        while idle:
            up = idle.pop()
            if up.deadline > now and up.alive():
                pool.busy += 1
                return up
            up.close_idle()
        self._make(pool, relay, now)
        return None

    def acquire_new(self, relay: Relay, now: float) -> None:
        """As `acquire`, never by a warm connection: those of an application that died are all dead, and the first to
        be found so is no better than the next. Raises GatewayError."""
        self._make(self._choose(relay, now), relay, now)

    def _make(self, pool: EndpointPool, relay: Relay, now: float) -> None:
        """Open a connection, or wait for one. Raises GatewayError(shed)."""
        if not relay.connects_by:
            relay.connects_by = now + self.config.timeouts.connect + RECONNECT_S
        if self.size >= self.config.connections_max and not self._evict():
            if len(self.waiting) >= self.config.pending_max:
                raise GatewayError("shed", "every connection to the application is in use, and the queue is full")
            relay.deadline = now + self.config.timeouts.connect
            self.waiting.append(relay)
            return
        self._open(pool, relay)

    def _choose(self, relay: Relay, now: float) -> EndpointPool:
        ready = [pool for pool in self.usable if pool.down_until <= now]
        fresh = [pool for pool in ready if pool.endpoint.key not in relay.tried]
        if not fresh and self.spare:
            fresh = self._choose_later(relay, now)
            ready = ready or fresh
        if not ready:
            if self.config.region is not None:
                raise GatewayError("region_unreachable", f"no gateway of {self.config.region} can be reached")
            raise GatewayError("cluster_unavailable", f"no endpoint of cluster {self.name} is usable")
        ready = fresh or ready
        return self._of(ready, relay, now)

    def _of(self, ready: list[EndpointPool], relay: Relay, now: float) -> EndpointPool:
        """The endpoint that the cluster's balancer says."""
        balancer = self.config.balance.balancer
        if balancer is Balancer.HASH:
            key = keys.of(relay, self.config.balance)
            if key is not None and (found := self._hashed(key, ready)) is not None:
                return found
        weights: Sequence[int] = ()
        if self.easing:
            weights = self._eased(ready, now, balancer is Balancer.ROUND_ROBIN)
        elif self.weighted and balancer is not Balancer.ROUND_ROBIN:
            weights = [pool.endpoint.weight for pool in ready]
        if balancer is Balancer.ROUND_ROBIN or balancer is Balancer.WEIGHTED:
            return ready[self.turns.next([pool.endpoint.key for pool in ready], weights)]
        return ready[least_request([pool.busy for pool in ready], random.random, weights)]

    def _hashed(self, key: bytes, ready: list[EndpointPool]) -> EndpointPool | None:
        """Where this key belongs, of those that are ready."""
        if self.ring is None:
            return None
        loads = {pool.endpoint.key: pool.busy for pool in ready}
        owner = self.ring.find(key, loads, loads)
        return None if owner is None else self.endpoints[owner]

    def _eased(self, ready: list[EndpointPool], now: float, equal: bool) -> list[int]:
        """Weights in hundredths, of endpoints some of which came back a moment ago."""
        whole_s = self.config.slow_start
        for pool in self.endpoints.values():
            if now - pool.warm_from >= whole_s:
                pool.warm_from = 0.0
        self.easing = any(pool.warm_from for pool in self.endpoints.values())
        if not self.easing:
            self.turns = Turns()  # what is owed was counted in hundredths
        return [
            eased(1 if equal else pool.endpoint.weight, now - pool.warm_from if pool.warm_from else whole_s, whole_s)
            for pool in ready
        ]

    def _choose_later(self, relay: Relay, now: float) -> list[EndpointPool]:
        """The first of the later priorities that has an endpoint which neither this request nor this worker gave up."""
        ready = [pool for pool in self.spare if pool.down_until <= now and pool.endpoint.key not in relay.tried]
        return [pool for pool in ready if pool.endpoint.priority == ready[0].endpoint.priority]

    def _evict(self) -> bool:
        """Close an idle connection of another endpoint, so that a busy one may grow."""
        for pool in self.endpoints.values():
            if pool.idle:
                pool.idle.pop(0).close_idle()
                return True
        return False

    def _open(self, pool: EndpointPool, relay: Relay) -> None:
        pool.busy += 1
        pool.size += 1
        self.size += 1
        relay.connecting = self.worker.spawn(self._connect(pool, relay))

    async def _connect(self, pool: EndpointPool, relay: Relay) -> None:
        """Make one connection for one relay. The sweep cancels it at `timeouts.connect`."""
        endpoint = pool.endpoint
        began = self.worker.now()
        by = min(began + self.config.timeouts.connect, relay.connects_by)
        relay.deadline = deadlines.bounded(relay, by)
        up = Upstream(self.worker, pool)
        try:
            await self.worker.loop.create_connection(lambda: up, endpoint.address, endpoint.port)
        except BaseException as error:
            if up.transport is None:
                pool.size -= 1
                pool.busy -= 1
                self.size -= 1
                if self.waiting:
                    self.grow()
            else:
                up.abort()
            relay.connecting = None
            if isinstance(error, OSError) or relay.timed_out:
                if isinstance(error, OSError) or not deadlines.is_late(relay, self.worker.now()):
                    self._failed(pool, began)  # and not because the client waits no longer
                forwarding.connect_failed(relay, pool)
                return
            raise
        relay.connecting = None
        pool.failures = 0
        if relay.over:  # the client left meanwhile: the connection is as good as any pooled one
            pool.release(up, self.worker.now())
        else:
            forwarding.connected(relay, up, self.worker.now())

    def _failed(self, pool: EndpointPool, began: float) -> None:
        now = self.worker.now()
        if self.watch is not None:
            self.watch.note(pool, "", False, now - began, now)
        pool.failures += 1
        outliers = self.config.outliers
        if pool.failures >= (FAILURES_DOWN if outliers is None else outliers.connect_failures):
            pool.down_until = now + LOCAL_DOWN_S
            self.worker.report_failures(self.name, pool.endpoint.key, pool.failures)

    def hand_over(self, up: Upstream, now: float) -> None:
        """Give a free connection to the exchange that has waited longest."""
        while self.waiting:
            relay = self.waiting.popleft()
            if not relay.over:
                up.pool.busy += 1
                forwarding.connected(relay, up, now)
                return
        up.deadline = now + self.config.timeouts.idle
        up.pool.idle.append(up)

    def grow(self) -> None:
        """A place became free while exchanges wait: open a connection for the first of them."""
        while self.waiting and self.size < self.config.connections_max:
            relay = self.waiting.popleft()
            if relay.over:
                continue
            try:
                self._open(self._choose(relay, self.worker.now()), relay)
            except GatewayError as error:
                forwarding.not_acquired(relay, self, error)

    def forget(self, relay: Relay) -> None:
        """The exchange ended while it waited."""
        if relay in self.waiting:
            self.waiting.remove(relay)
