"""Sheds load: what one worker has in hand by cluster and tenant, its own overload, and who is refused for either.

`admit` is asked by the filter `shed` for each request; whom it lets in counts from when the application has the whole
request until the head of its answer is here: a client that sends or reads slowly, a stream of events and a tunnel take
nothing of the limit, since they keep no application waiting. What latencies mean is judged once a tick, by the sweep.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.core.concurrency import SAMPLES_MAX, Concurrency
from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.routing import Kind
from gateway.core.shedding import (
    RANKS,
    REFUSED_LATELY,
    Pressure,
    Priority,
    Shedding,
    ceilings,
    retry_after_s,
    share_in_hand,
)
from gateway.core.view import View

if TYPE_CHECKING:
    from gateway.proxy.meters import Meters

LIMIT: Final = "limit"
SHARE: Final = "share"
WORKER: Final = "worker"
CONNECTIONS: Final = "connections"
"""Reasons: the application's limit, the tenant's share of it, this worker's own time, clients' connections."""
DETAILS: Final = {
    LIMIT: "the application has as many requests in hand as it can have",
    SHARE: "this tenant has more than its share of the requests that the application can have in hand",
    WORKER: "the gateway has no time left for more requests",
}
HIGHEST: Final = RANKS - 1
RATE: Final = 100.0
"""What a worker is taken to answer in a second where nothing is known, to tell clients when to come back."""
NOT_YET: Final = -1.0
"""`in_hand_since` of a request whose body is still coming."""
STATE: Final = "shedding"
"""Series for the admin API alone, by cluster, worker and what: no metric has this name."""

_LOCAL: Final = Kind.LOCAL


class Refusal(NamedTuple):
    """Why a connection is refused. `at_once`: there is not even room to wait for its first request."""

    reason: str
    detail: str
    at_once: bool = False


FULL: Final = Refusal(CONNECTIONS, "too many connections")
CROWDED: Final = Refusal(CONNECTIONS, "too many connections", at_once=True)
BUSY: Final = Refusal(WORKER, DETAILS[WORKER])
WAITING_MAX: Final = 64
"""Connections beyond the limit, and an eighth of it, may wait to be refused by their first request."""


class ClusterLimiter:
    """One cluster's requests in hand. `ceilings` and `share` are the last tick's."""

    __slots__ = ("ceilings", "done", "in_hand", "limit", "name", "peak", "refused", "samples", "share",
                 "tenants", "waiting")  # fmt: skip

    def __init__(self, name: str, rules: Shedding, now: float) -> None:
        self.name = name
        self.limit = Concurrency(rules.low, rules.high, now)
        self.in_hand = 0
        self.peak = 0
        self.done = 0
        self.refused = 0
        self.waiting = 0.0
        self.samples: list[float] = []
        self.tenants: dict[str, int] = {}
        self.ceilings = ceilings(self.limit.limit)
        self.share = share_in_hand((), self.limit.limit)

    def uploaded(self, exchange: Exchange, now: float) -> None:
        """From here on the application has the whole of a request that was let in before its body had come."""
        if exchange.in_hand_since < 0.0:
            exchange.in_hand_since = now
            self.tenants[exchange.tenant] = self.tenants.get(exchange.tenant, 0) + 1
            self.in_hand += 1
            self.peak = max(self.peak, self.in_hand)

    def release(self, exchange: Exchange, now: float) -> None:
        """Its answer is here, or there will be none."""
        exchange.counted_by = None
        since = exchange.in_hand_since or exchange.started
        if since < 0.0:
            return
        self.in_hand -= 1
        tenants, tenant = self.tenants, exchange.tenant
        left = tenants[tenant] - 1
        if left:
            tenants[tenant] = left
        else:
            del tenants[tenant]
        if exchange.cluster != self.name:
            return
        if exchange.flag is None and exchange.response is not None:
            if exchange.status >= 500:  # a failure may be quicker than any answer
                return
        elif now - since < self.limit.latency_s:  # who gave up waiting tells that it took at least so long
            return
        self.done += 1
        if len(self.samples) < SAMPLES_MAX:
            self.samples.append(now - since)

    @property
    def rate(self) -> float:
        """What the application can answer in a second: by how long it takes, and by what it has in hand, or might
        have, since a limit that does not bind stands far above that."""
        limit = self.limit
        return max(self.peak, limit.limit / 2) / limit.latency_s if limit.latency_s else 0.0

    def tick(self, lag_s: float, now: float) -> None:
        """Judge what came since the last tick; of latencies `lag_s` are our own."""
        limit = self.limit
        if limit.due(self.samples, now):
            limit.end_window(self.samples, self.done, self.peak, lag_s, now)
            self.samples, self.done, self.peak = [], 0, self.in_hand
        self.ceilings = ceilings(limit.limit)
        self.share = share_in_hand(self.tenants.values(), limit.limit)
        self.waiting = self.waiting * REFUSED_LATELY + self.refused
        self.refused = 0


class Shedder:
    """All of one worker's shedding. `rules` None: it is off, and nobody asks it anything."""

    def __init__(self, meters: Meters, slot: int, tick_s: float) -> None:
        self.rules: Shedding | None = None
        self.limiters: dict[str, ClusterLimiter] = {}
        self.pressure = Pressure()
        self.pressing = False
        self._tick_s = tick_s
        self._ticked = 0.0
        self._meters = meters
        self._slot = slot
        self._offered = [0] * RANKS
        self._tenants: Counter[str] = Counter()
        self._turned_away = 0
        self._waiting = 0.0
        self._rate = RATE

    def configure(self, view: View, now: float) -> None:
        """Take a new View's rules; limits that its clusters still have go on from where they are."""
        rules = view.shedding
        if self.rules is None:
            self._ticked = now  # it did not come late while nobody called it
        self.rules = rules
        gone = [name for name in self.limiters if rules is None or name not in view.clusters]
        for name in gone:
            limiter = self.limiters.pop(name)
            limiter.in_hand = 0
            self._show(limiter, 0.0)
        if rules is None:
            self.pressure, self.pressing = Pressure(), False
            return
        for limiter in self.limiters.values():
            limiter.limit.bound(rules.low, rules.high)

    # ---- per request

    def admit(self, exchange: Exchange, priority: Priority) -> None:
        """Let a request in, or raise GatewayError(shed)."""
        if self.pressing:
            self._press(exchange, priority)
        decision = exchange.decision
        if decision is None or decision.kind is not _LOCAL:
            exchange.priority = priority  # carried elsewhere: that region's gateway knows how its application does
            return
        if exchange.counted_by is not None:
            return
        limiter = self.limiters.get(decision.cluster)
        if limiter is None:
            limiter = self._begin(decision.cluster, exchange.started)
        tenants, tenant, in_hand = limiter.tenants, exchange.tenant, limiter.in_hand
        mine = tenants.get(tenant, 0)
        over = mine >= limiter.share
        rank = priority.over if over else priority.over + 1
        if in_hand >= limiter.ceilings[rank]:
            limiter.refused += 1
            alone = over and in_hand < limiter.ceilings[rank + 1] and len(tenants) > 1
            self._refuse(exchange, priority, SHARE if alone else LIMIT, limiter.waiting + limiter.refused, limiter.rate)
        exchange.counted_by = limiter
        if exchange.request.length and not exchange.whole:
            exchange.in_hand_since = NOT_YET
            return
        tenants[tenant] = mine + 1
        limiter.in_hand = in_hand = in_hand + 1
        if in_hand > limiter.peak:
            limiter.peak = in_hand

    def _press(self, exchange: Exchange, priority: Priority) -> None:
        """This worker has no time left: refuse the ranks' shares of what comes."""
        pressure = self.pressure
        self._tenants[exchange.tenant] = count = self._tenants[exchange.tenant] + 1
        rank = priority.over + (count <= pressure.level)
        self._offered[rank] += 1
        chance = pressure.chances[rank]
        if chance and random.random() < chance:
            self._turned_away += 1
            self._refuse(exchange, priority, WORKER, self._waiting + self._turned_away, self._rate)

    def _refuse(self, exchange: Exchange, priority: Priority, reason: str, waiting: float, rate: float) -> None:
        assert self.rules is not None
        labels = (("class", priority.value), ("reason", reason))
        if self.rules.shadow:
            self._meters.count("landbridge_shed_shadow_total", labels)
            return
        self._meters.count("landbridge_shed_total", labels)
        exchange.retry_after_s = retry_after_s(waiting, rate, random.random())
        exchange.reason = f"{priority.value}:{reason}"
        raise GatewayError("shed", DETAILS[reason])

    def _begin(self, cluster: str, now: float) -> ClusterLimiter:
        assert self.rules is not None
        limiter = self.limiters[cluster] = ClusterLimiter(cluster, self.rules, now)
        return limiter

    # ---- connections

    def connected(self, count: int, limit: int, turning: int) -> Refusal | None:
        """Why a new connection, the `count`th of `limit`, is to be refused; None where it is welcome. `turning` are
        those that are being refused."""
        if count > limit:
            return CROWDED if turning >= limit // 8 + WAITING_MAX else FULL
        if not self.pressing or self.rules is None or random.random() >= self.pressure.chances[HIGHEST]:
            return None  # nobody knows the class of what it will ask: it is turned away as the last of all
        if self.rules.shadow:
            self._meters.count("landbridge_shed_shadow_total", (("class", "none"), ("reason", WORKER)))
            return None
        return BUSY

    def turned_away(self, refusal: Refusal) -> int:
        """Count a connection that was refused; the `Retry-After` for it in seconds."""
        self._meters.count("landbridge_shed_total", (("class", "none"), ("reason", refusal.reason)))
        self._turned_away += 1
        return retry_after_s(self._waiting + self._turned_away, self._rate, random.random())

    # ---- the sweep

    def tick(self, now: float) -> None:
        """Every 100 ms while shedding is on: judge what the last one brought."""
        late_s = max(0.0, now - self._ticked - self._tick_s)
        self._ticked = now
        pressure = self.pressure
        pressure.tick(late_s, self._offered, self._tenants.values())
        self.pressing = pressure.refused > 0.0
        if self._tenants:
            self._offered, self._tenants = [0] * RANKS, Counter()
        self._meters.lag(late_s)
        for limiter in self.limiters.values():
            limiter.tick(pressure.lag_s, now)
            self._show(limiter, limiter.limit.limit)
        self._waiting = self._waiting * REFUSED_LATELY + self._turned_away
        self._turned_away = 0
        self._rate = sum(limiter.rate for limiter in self.limiters.values()) or RATE

    def _show(self, limiter: ClusterLimiter, limit: float) -> None:
        cluster = ("cluster", limiter.name)
        self._meters.level("landbridge_concurrency", (cluster,), limiter.in_hand)
        self._meters.level("landbridge_concurrency_limit", (cluster,), round(limit))
        for what, value in (
            ("limit", round(limit)),
            ("in_hand", limiter.in_hand),
            ("latency_us", int(limiter.limit.latency_s * 1e6)),
            ("unqueued_us", int(limiter.limit.unqueued_s * 1e6)),
        ):
            self._meters.level(STATE, (cluster, ("worker", str(self._slot)), ("what", what)), value)
