"""One worker's state beside the View: pools, caches, connections, counters, and the sweep that keeps all deadlines.

It is what filters see as `exchange.services`. The View is swapped by reference; nothing here waits for anything.
`draining`: the gateway is going away. `leaving`: this worker is, for that reason or because it was replaced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from gateway import __version__
from gateway.bus.messages import (
    BreakerTurned,
    ConnectFailures,
    EndpointEjected,
    FilterRemoved,
    ForceBreaker,
    FromWorker,
    KeyWanted,
    MapApplied,
    MapChanged,
    MapUnreadable,
)
from gateway.bus.stats import StatsFile
from gateway.core.bounded import Bounded
from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Chain, without
from gateway.core.following import Overrides
from gateway.core.http1.fields import FieldTable, response_table
from gateway.core.peering import PeerAnswer, PeerMap, encode_answer
from gateway.core.placement import Placement
from gateway.core.removal import ERRORS_MAX, WINDOW_S, Failures
from gateway.core.switches import failover_mode
from gateway.core.tenancy import Memo
from gateway.core.traffic import Traffic
from gateway.core.view import Ability, HeaderResolver, JwtResolver, View
from gateway.identity.verifier import Verifier
from gateway.proxy.downstream import Downstream
from gateway.proxy.limiter import Limiter
from gateway.proxy.meters import Meters
from gateway.proxy.pool import ClusterPool
from gateway.proxy.shedder import Refusal, Shedder
from gateway.proxy.upstream import Phase, Upstream
from gateway.store import seen
from gateway.store.reader import Reader
from gateway.store.record import MapMeta, StoreError
from gateway.store.token_keys import read_kept
from gateway.telemetry.access_log import AccessLog

_log = logging.getLogger("landbridge.worker")

SWEEP_S: Final = 0.1
"""One timer for all deadlines of a worker: a limit is kept to a tenth of a second, at no cost per request."""
MAP_CHECK_S: Final = 1.0
"""How long the map may move without a word from control before the whole cache is dropped (DESIGN 2)."""
TRACEBACK_EVERY_S: Final = 1.0
"""How often one filter's traceback is logged: at full load each request of a second says the same."""
PLACEMENTS_MAX: Final = 16_000
"""A decoded record takes a good kilobyte: so many are some 20 MB of a worker, whatever the map's size. What is not in
the cache costs a look-up of 4 us more."""
HOSTS_MAX: Final = 32_000
"""A fifth of that each."""
FAILED_OVER: Final = frozenset(("failover", "failover_mode"))
"""Reasons of decisions by which a region serves tenants that live in another one."""
DIGEST_TTL_S: Final = 0.5


class Worker:
    """See the module. `send` gives a message to control and may lose it; `chain_for` compiles a View's filters."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        view: View,
        chain_for: Callable[[View], Chain],
        state_dir: Path,
        slot: int,
        send: Callable[[FromWorker], object],
        access_log: AccessLog,
    ) -> None:
        self.loop = loop
        self.now = time.monotonic
        self.slot = slot
        self.view = view
        self.draining = False
        self.leaving = False
        self.downs: set[Downstream] = set()
        self.turning = 0  # of those, that are refused and not gone yet: they take no place
        self.ups: set[Upstream] = set()
        self.response_table = response_table()
        self.access_log = access_log
        access_log.on_drop = self._log_dropped
        self.clusters: dict[str, ClusterPool] = {}
        self.stats = StatsFile(state_dir / "stats" / f"worker-{slot}.stats")
        self.meters = Meters(self.stats, slot, view.tenant_series)
        self._send = send
        self._reader = Reader(state_dir / "map")
        self._placements: Bounded[str, Placement | None] = Bounded(PLACEMENTS_MAX)
        self._owners: Bounded[str, str | None] = Bounded(HOSTS_MAX)
        self.memo: Memo = {}
        self.tokens = Verifier(
            self.wall_ms,
            self.now,
            time.thread_time,
            lambda source, kid: self._send(KeyWanted(source, kid)),
            lambda outcome: self.meters.count("landbridge_tokens_total", (("outcome", outcome),)),
            read_kept(state_dir),
        )
        self.overrides = Overrides()
        self.shedder = Shedder(self.meters, slot, SWEEP_S)
        self._complete = False
        self._transaction = 0
        self._map_moved_at: float | None = None
        self._next_map_check = 0.0
        self._next_map_report = 0.0
        self._id_prefix = os.urandom(8).hex()
        self._id_count = 0
        self._traffic: Traffic | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self._resolvers: object = None
        self.table = FieldTable()
        self.chain = chain_for(view)  # for this process's life: other filters, or options of theirs, are new workers
        self.failures = Failures()
        self._tracebacks: dict[str, float] = {}
        self.removed: dict[str, str] = {}
        self._begin_removed()
        self.limiter = Limiter(self.meters, view, seen.read(state_dir), self.now())
        self.swap(view)

    # ---- the View

    def swap(self, view: View) -> None:
        """Let `view` decide from the next request on. Pools, caches and counters stay; what it no longer names goes."""
        names = tuple(r.name for r in view.resolvers if isinstance(r, HeaderResolver))
        if view.shedding is not None and view.shedding.header is not None:
            names += (view.shedding.header,)
        secrets = tuple(r.header for r in view.resolvers if isinstance(r, JwtResolver))
        if (names, secrets) != self._resolvers:
            self._resolvers = names, secrets
            self.table = FieldTable(names, secret_names=secrets)
        for name, cluster in view.clusters.items():
            pool = self.clusters.get(name)
            if pool is None:
                self.clusters[name] = ClusterPool(self, cluster)
            else:
                pool.configure(cluster)
        for name in [name for name in self.clusters if name not in view.clusters]:
            self.clusters.pop(name).retire()
        self.meters.tenant_series = view.tenant_series
        self.tokens.use(view.resolvers)
        self.limiter.configure(view)
        self.shedder.configure(view, self.now())
        self.view = view
        self.memo.clear()

    def cluster(self, name: str) -> ClusterPool:
        """The pool of a cluster. Raises GatewayError when a reload took the cluster away meanwhile."""
        pool = self.clusters.get(name)
        if pool is None:
            raise GatewayError("cluster_unavailable", f"cluster {name} is not configured")
        return pool

    # ---- what filters may ask (core.exchange.Services)

    def map_complete(self) -> bool:
        if not self._complete:
            self._complete = self._reader.complete()
            if self._complete:
                self._transaction = self._reader.transaction()
        return self._complete

    def placement(self, tenant: str) -> Placement | None:
        cache = self._placements
        if tenant in cache.items:
            return cache.items[tenant]
        try:
            found = self._reader.placement(tenant)
        except StoreError as error:
            raise self._unreadable(error) from error
        if self.map_complete():
            cache.put(tenant, found)
        return found

    def host_owner(self, host: str) -> str | None:
        cache = self._owners
        if host in cache.items:
            return cache.items[host]
        try:
            found = self._reader.host(host)
        except StoreError as error:
            raise self._unreadable(error) from error
        if self.map_complete():
            cache.put(host, found)
        return found

    def _unreadable(self, error: StoreError) -> GatewayError:
        _log.error("tenant map: %s", error)
        self.meters.count("landbridge_map_read_errors_total")
        self._report_map(str(error))
        return GatewayError("map_unavailable", "this tenant's record cannot be read")

    def _report_map(self, why: str) -> None:
        """Tell control, which has the map looked at; once a second at most, however many requests meet the damage."""
        if (now := self.now()) >= self._next_map_report:
            self._next_map_report = now + MAP_CHECK_S
            self._send(MapUnreadable(why))

    def count_map(self, metric: str) -> None:
        self.meters.count(f"landbridge_{metric}_total")

    def count_hop_rejected(self, reason: str) -> None:
        self.meters.count("landbridge_hop_rejected_total", (("reason", reason),))

    def takes_on(self, reason: str) -> bool:
        """An operator's `max-traffic`: what failed over here is refused before what lives here."""
        rate, now = self.view.max_traffic, self.now()
        if rate is None:
            return True
        if self._traffic is None:
            self._traffic = Traffic(rate, now)
        elif self._traffic.rate != rate:
            self._traffic.use(rate)
        failed_over = reason in FAILED_OVER
        taken = self._traffic.takes(failed_over, now)
        if not taken:
            self.meters.count("landbridge_max_traffic_refused_total", (("of", "standby" if failed_over else "home"),))
        return taken

    def count_denied(self, scope: str) -> None:
        self.meters.count("landbridge_address_denied_total", (("scope", scope),))

    def random_id(self) -> str:
        """Unique over workers and restarts, and cheap: 64 random bits of this process and a counter."""
        self._id_count += 1
        return f"{self._id_prefix}{self._id_count:08x}"

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def ready(self) -> bool:
        """Whether this gateway should get traffic: the map stands, and it is not going away."""
        return not self.draining and self.map_complete()

    def log_exchange(self, exchange: Exchange) -> None:
        self.access_log.write(exchange)

    def _log_dropped(self, lines: int) -> None:
        self.meters.count("landbridge_log_dropped_total", (), lines)

    # ---- filters that fail

    def filter_failed(self, name: str, request_id: str) -> None:
        """Called while a filter's exception is handled: count it, log it, and take out one that keeps failing."""
        now = self.now()
        self.meters.filter_error(name)
        if now - self._tracebacks.get(name, -TRACEBACK_EVERY_S) >= TRACEBACK_EVERY_S:
            self._tracebacks[name] = now
            _log.exception("request %s: error in filter %s", request_id, name)
        if name in self.chain.removable and self.failures.note(name, now):
            self._take_out(name)

    def _take_out(self, name: str) -> None:
        """For this worker's life: it comes back with a new worker, which other code or other options start."""
        self.chain = without(self.chain, name)
        _log.exception("filter %s is taken out: %d errors in %g s; the last one:", name, ERRORS_MAX, WINDOW_S)
        self.removed[name] = _last_line(sys.exception())
        self.stats.values[self._removed_series(name)] = 1
        self._send(FilterRemoved(name, self.removed[name]))

    def _begin_removed(self) -> None:
        """A series for each filter that may be taken out: 0, also where a predecessor had taken it out."""
        for _, index in self.stats.known("landbridge_filter_removed"):
            self.stats.values[index] = 0
        for name in self.chain.removable:
            self._removed_series(name)

    def _removed_series(self, name: str) -> int:
        return self.stats.series("landbridge_filter_removed", (("filter", name),), reset=True)

    # ---- what control says

    def map_changed(self, change: MapChanged) -> None:
        """Forget what changed; everything, when something was missed in between. Then say so."""
        self._map_moved_at = None
        if self._reader.follow():
            self._drop_map_caches()
            same = change.generation == self._reader.generation
            self._say_map_applied(change.to_txn if same else self._transaction)
            return
        if change.generation not in (0, self._reader.generation):
            return  # of a map that is still being made: what we have stands until that one is complete
        if change.from_txn and change.from_txn == self._transaction:
            for tenant in change.tenants:
                self._placements.items.pop(tenant, None)
            for host in change.hosts:
                self._owners.items.pop(host, None)
            if change.hosts:
                self.memo.clear()
            self._transaction = change.to_txn
        elif change.to_txn != self._transaction or not change.from_txn:
            self._drop_map_caches()
        self._say_map_applied(change.to_txn)

    def _say_map_applied(self, to_txn: int) -> None:
        self._send(MapApplied(self._reader.generation, to_txn))

    def _drop_map_caches(self) -> None:
        self._placements.clear()
        self._owners.clear()
        self.memo.clear()
        self._complete, self._transaction = False, 0
        if self.map_complete():
            self._transaction = self._reader.transaction()

    def report_failures(self, cluster: str, endpoint: str, count: int) -> None:
        self._send(ConnectFailures(cluster, endpoint, count))

    def tell(self, message: FromWorker) -> None:
        """Say something to control; where it does not hear, it asks for what counts when it does again."""
        self._send(message)

    def watched(self) -> list[BreakerTurned | EndpointEjected]:
        """All breakers that are not closed, and all endpoints that are ejected."""
        now, watches = self.now(), [pool.watch for pool in self.clusters.values() if pool.watch is not None]
        found: list[BreakerTurned | EndpointEjected] = []
        for watch in watches:
            found += watch.all_turned(now)
            found += watch.all_ejected(now)
        return found

    def force_breaker(self, wanted: ForceBreaker) -> None:
        """An operator's word about a breaker, by way of control."""
        pool = self.clusters.get(wanted.cluster)
        if pool is None or pool.watch is None:
            return
        if wanted.state:
            pool.watch.force(wanted.tenant, wanted.state == "open", wanted.left_s, wanted.reason, self.now())
        else:
            pool.watch.release(wanted.tenant, self.now())

    # ---- connections

    def admit(self, down: Downstream) -> Refusal | None:
        """Take a new connection in; or why it is to be refused: this worker has its share already, or no time."""
        self.downs.add(down)
        refusal = self.shedder.connected(len(self.downs) - self.turning, self.view.limits.connections, self.turning)
        if refusal is not None:
            self.turning += 1
        return refusal

    def accept(self, sock: socket.socket, listener: str) -> Callable[[], Downstream]:
        """The protocol factory of one listening socket."""
        return self.accept_on(sock.getsockname()[1], listener)

    def accept_on(self, port: int, listener: str) -> Callable[[], Downstream]:
        """The protocol factory of a listener (`http` or `hop`) at this local port."""
        return lambda: Downstream(self, listener, port)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it ends; its exception is logged, never lost."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task failed", exc_info=error)

    # ---- the sweep

    def sweep(self) -> None:
        """Every 100 ms: deadlines of all connections, the map's freshness, the access log's buffer."""
        now = self.now()
        for down in tuple(self.downs):
            if 0.0 < down.deadline <= now:
                down.expired()
            relay = down.relay
            if relay is not None and 0.0 < relay.deadline <= now:
                relay.expired()
        for up in tuple(self.ups):
            if 0.0 < up.deadline <= now:
                self._expired(up)
        for pool in self.clusters.values():
            if pool.watch is not None:
                pool.watch.sweep(now)
        if self.shedder.rules is not None:
            self.shedder.tick(now)
        self.meters.gauge(self.meters.connections, len(self.downs))
        self.access_log.flush()
        if (demands := self.limiter.report(now)) is not None:
            self._send(demands)
        if now >= self._next_map_check:
            self._next_map_check = now + MAP_CHECK_S
            self._check_map(now)
            for pool in self.clusters.values():
                pool.budget.turn()
            if self.overrides.items:
                self.overrides.expire(now)
            self.meters.gauge(self.meters.overrides, len(self.overrides.items))

    def _expired(self, up: Upstream) -> None:
        up.deadline = 0.0
        if up.phase is Phase.IDLE:
            up.close()
        elif up.relay is not None:
            up.relay.try_expired(up)

    def _check_map(self, now: float) -> None:
        """Follow a rebuilt map; drop the cache when the map moved and control has not said so for a second."""
        if self._reader.follow():
            self._drop_map_caches()
            self._say_map_applied(self._transaction)
        if not self._reader.in_place():
            self._report_map("the map's file is gone, or was cut short")
        if not self.map_complete():
            return
        try:
            moved = self._reader.transaction() != self._transaction
        except StoreError:
            moved = True
        if not moved:
            self._map_moved_at = None
        elif self._map_moved_at is None:
            self._map_moved_at = now
        else:
            self._map_moved_at = None
            self._drop_map_caches()
            self._say_map_applied(self._transaction)

    # ---- peers

    def peer_answer(self) -> bytes:
        """What this gateway says of itself to another region's control (DESIGN 5.4), from the View and the store."""
        view = self.view
        try:
            meta = self._reader.meta()
        except StoreError as error:
            self._report_map(str(error))
            meta = MapMeta()  # it is being rebuilt: until then we know nobody
        age_s = max(0.0, (self.wall_ms() - meta.written_ms) / 1000) if meta.written_ms else None
        clusters = {
            name: Ability.ABLE if cluster.can_serve else Ability.UNABLE
            for name, cluster in view.clusters.items()
            if cluster.region is None
        }
        return encode_answer(
            PeerAnswer(
                region=view.region,
                id=socket.gethostname(),
                program=__version__,
                config=view.config_digest,
                wall_ms=self.wall_ms(),
                draining=self.draining,
                map=PeerMap(meta.complete, meta.records, meta.digest, age_s),
                clusters=clusters,
                shares={name: view.clusters[name].share for name in clusters if view.clusters[name].share < 1.0},
                failover_mode=failover_mode(view),
            )
        )

    def stats_close(self) -> None:
        """Let go of files, once nothing counts any more."""
        self.meters.close()
        self._reader.close()

    def close(self) -> None:
        """Cut what is left, at the drain's limit."""
        for down in tuple(self.downs):
            down.abort()
        for up in tuple(self.ups):
            up.abort()
        for task in tuple(self.tasks):
            task.cancel()
        self.access_log.flush()


def _last_line(error: BaseException | None) -> str:
    """What was raised and where, on one line: `ZeroDivisionError: division by zero (stamp.py:11)`."""
    if error is None:
        return ""
    said = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said} ({os.path.basename(at.filename)}:{at.lineno})"
