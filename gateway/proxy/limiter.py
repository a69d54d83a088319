"""A worker's limiter: it spends this worker's shares of the limits, and tells control what it is asked for.

Nothing here waits: a share is what control said last, or an equal part. A limit that is *hot* (it refuses, or is about
to) is reported ten times a second, and control answers with another share of it. What is cold is not spoken of.
`docs/protection.md` tells what that means for operators; the arithmetic is `core.limits` and `core.shares`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Iterator
from typing import Final

from gateway.bus.messages import Demands, KeyDemand, Shares
from gateway.core.bounded import Bounded
from gateway.core.client import is_trusted
from gateway.core.exchange import Exchange
from gateway.core.limits import (
    PREFIXES,
    SLOTS,
    Bucket,
    Limit,
    Refusal,
    Scope,
    TenantLimits,
    Throttle,
    client_key,
    limit_for,
    pace,
    rate_refusal,
    slots_refusal,
)
from gateway.core.routing import Kind
from gateway.core.shares import EQUAL_S, FLAT_S, drift
from gateway.core.view import View
from gateway.proxy.clients import Clients
from gateway.proxy.meters import Meters

TENANTS_MAX: Final = 100_000
"""Tenants whose buckets are kept, some 400 bytes each: half of them at least are the most recently used."""
REPORTED_MAX: Final = 400
"""Keys of one report: what is hottest. It fits into a frame of the bus; who is not in it keeps its share."""
HOT_CLIENTS_MAX: Final = 1000
HOT_PART: Final = 0.7
"""A key is hot from this part of its share on: there is time for more before it has to refuse."""
OWN_MAX: Final = 4096
ADDRESSES_MAX: Final = 16_384
DRIFT_EVERY_S: Final = 1.0
_NOTHING: Final = Throttle()
_LOCAL: Final = Kind.LOCAL
"""Bound once: looking an enum member up by its class costs more than the comparison it is for."""
_TENANT: Final = Scope.TENANT
_GATEWAY: Final = Scope.GATEWAY


class Limiter:
    """`equal` is this worker's share of what is cold in the whole region, `own` of what is this gateway's alone."""

    def __init__(self, meters: Meters, view: View, gateways: int, now: float) -> None:
        self._meters = meters
        self.own = 1.0 / view.workers
        self.equal = self.own / gateways
        self.seq = 0
        self._said = 0
        self._heard = self._reported = self._drifted = now
        self._shares: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._young: dict[str, Bucket] = {}
        self._old: dict[str, Bucket] = {}
        self._others: dict[str, Bucket] = {}
        self._hot_clients: dict[str, Bucket] = {}
        self._clients: Clients | None = None
        self._addresses: Bounded[str, str] = Bounded(ADDRESSES_MAX)
        self._names: Bounded[bytes, str] = Bounded(ADDRESSES_MAX)
        self._exempted: Bounded[str, bool] = Bounded(ADDRESSES_MAX)
        self._touched: list[Bucket] = []
        self._written: Throttle | None = None
        self._says_all = False
        self.configure(view)

    # ---- what holds

    def configure(self, view: View) -> None:
        """The limits of this View hold from now on; buckets stay, and are tuned when they are next used."""
        written = view.throttle or _NOTHING
        if written != self._written:
            self._written = written
            self._exempted.clear()
            self._tune()

    def _tune(self) -> None:
        """Limits of our own making: one that is another object than a bucket's tells that the bucket is to be tuned.

        So a new configuration, and another equal part, cost a request of each key a little, and no loop over all.
        """
        assert self._written is not None
        fresh = dataclasses.replace
        written = self._written
        self._throttle = fresh(
            written,
            tenant=written.tenant and fresh(written.tenant),
            client=written.client and fresh(written.client),
            gateway=written.gateway and fresh(written.gateway),
            routes=tuple((prefix, limit and fresh(limit)) for prefix, limit in written.routes),
        )
        self._owns: Bounded[TenantLimits, Limit | None] = Bounded(OWN_MAX)
        self._interval = self._window = 0.0
        if (client := self._throttle.client) is not None:
            self._interval, self._window = pace(client, self.equal, self.equal)
            self._clients = self._clients or Clients()
            self._take = self._clients.take
        self._by_field = written.client_header is not None
        self._field = b"" if written.client_header is None else written.client_header + b":"
        self._has_exempt = bool(written.exempt_networks or written.exempt_tenants)

    # ---- a request

    def admit(self, exchange: Exchange) -> Refusal | None:
        """Charge every limit that holds for this request; the first that refuses is the answer."""
        throttle, now = self._throttle, exchange.started
        if self._has_exempt and self._is_exempt(exchange):
            return None
        client = throttle.client
        if client is not None and exchange.hop is None:
            key = exchange.client
            if self._by_field or ":" in key or self._hot_clients or client.concurrency is not None:
                refusal = self._client(exchange, client, now)
            else:  # the usual path, without a call more than it takes
                wait_s = self._take(key, now, self._interval, self._window)
                refusal = self._client_refused(key, client, wait_s, now) if wait_s else None
            if refusal is not None:
                return refusal
        decision = exchange.decision
        if decision is not None and decision.kind is _LOCAL:
            placement = exchange.placement
            if placement is None or placement.limits is None:
                limit = throttle.tenant
            else:
                limit = self._own(placement.limits)
            if limit is not None:
                bucket = self._young.get(exchange.tenant) or self._tenant(exchange.tenant, limit, now)
                refusal = self._charge(exchange, bucket, limit, now)
                if refusal is not None:
                    return refusal
            if throttle.routes:
                refusal = self._route(exchange, throttle, now)
                if refusal is not None:
                    return refusal
        if throttle.gateway is not None:
            bucket = self._others.get("g:") or self._other(_GATEWAY, "", throttle.gateway, now)
            return self._charge(exchange, bucket, throttle.gateway, now)
        return None

    def _charge(self, exchange: Exchange, bucket: Bucket, limit: Limit, now: float) -> Refusal | None:
        if bucket.limit is limit and bucket.is_plain:
            zero, floor = bucket.zero, now - bucket.window  # as Bucket.take, without a call
            zero = (zero if zero > floor else floor) + bucket.interval
            if zero <= now:
                bucket.zero = zero
                if not bucket.offered:
                    self._touched.append(bucket)
                bucket.offered += 1
                if bucket.is_hot and not limit.shadow:
                    exchange.limited = bucket
                return None
        return self._charge_all(exchange, bucket, limit, now)

    def _charge_all(self, exchange: Exchange, bucket: Bucket, limit: Limit, now: float) -> Refusal | None:
        """The same for a limit that has slots, has no room, or is another one than before."""
        if bucket.limit is not limit:
            bucket.slots_share = self._share(bucket.key + SLOTS, bucket.scope)
            bucket.retune(limit, self._share(bucket.key, bucket.scope), now, self._equal(bucket.scope))
        if not bucket.offered:
            self._touched.append(bucket)
        bucket.offered += 1
        if bucket.interval:
            wait_s = bucket.take(now)
            if wait_s:
                bucket.refused += 1
                self._count(bucket.scope, "rate", limit)
                if not limit.shadow:
                    return rate_refusal(bucket.scope, bucket, wait_s, now)
            elif bucket.is_hot and not limit.shadow:
                exchange.limited = bucket
        if limit.concurrency is not None:
            if bucket.inflight >= bucket.slots:
                bucket.refused_slots += 1
                self._count(bucket.scope, "concurrency", limit)
                if not limit.shadow:
                    return slots_refusal(bucket.scope, limit)
            bucket.inflight += 1
            bucket.peak = max(bucket.peak, bucket.inflight)
            exchange.held = (bucket,) if exchange.held is None else (*exchange.held, bucket)
        return None

    def _count(self, scope: Scope, what: str, limit: Limit) -> None:
        outcome = "shadow" if limit.shadow else "refused"
        labels = (("scope", scope.value), ("limit", what), ("outcome", outcome))
        self._meters.count("landbridge_throttled_total", labels)

    def _is_exempt(self, exchange: Exchange) -> bool:
        throttle = self._throttle
        if exchange.tenant in throttle.exempt_tenants:
            return True
        found = self._exempted.items.get(exchange.client)
        if found is None:
            found = bool(throttle.exempt_networks) and is_trusted(exchange.client, throttle.exempt_networks)
            self._exempted.put(exchange.client, found)
        return found

    # ---- whose bucket

    def _share(self, key: str, scope: Scope) -> float:
        return self._shares.get(key) or self._equal(scope)

    def _equal(self, scope: Scope) -> float:
        return self.own if scope is Scope.GATEWAY else self.equal

    def _own(self, limits: TenantLimits) -> Limit | None:
        if limits in self._owns.items:
            return self._owns.items[limits]
        found = limit_for(limits, self._throttle.tenant)
        self._owns.put(limits, found)
        return found

    def _made(self, scope: Scope, name: str, limit: Limit, now: float) -> Bucket:
        key = PREFIXES[scope] + name
        shares = self._share(key, scope), self._share(key + SLOTS, scope)
        return Bucket(key, limit, *shares, now, scope, self._equal(scope))

    def _tenant(self, tenant: str, limit: Limit, now: float) -> Bucket:
        """A tenant's bucket that is not among the young: used lately, or new. The older half goes when there are
        too many, and whoever is used is young again."""
        bucket = self._old.pop(tenant, None) or self._made(_TENANT, tenant, limit, now)
        if len(self._young) >= TENANTS_MAX // 2:
            self._old, self._young = self._young, {}
        self._young[tenant] = bucket
        return bucket

    def _other(self, scope: Scope, name: str, limit: Limit, now: float) -> Bucket:
        key = PREFIXES[scope] + name
        bucket = self._others.get(key)
        if bucket is None:
            bucket = self._others[key] = self._made(scope, name, limit, now)
        return bucket

    def _route(self, exchange: Exchange, throttle: Throttle, now: float) -> Refusal | None:
        route = throttle.route(exchange.request.target)
        if route is None or route[1] is None:
            return None
        bucket = self._other(Scope.ROUTE, route[0].decode("ascii"), route[1], now)
        return self._charge(exchange, bucket, route[1], now)

    # ---- clients

    def _client(self, exchange: Exchange, limit: Limit, now: float) -> Refusal | None:
        key = exchange.client
        if self._by_field and (value := self._field_of(exchange)) is not None:
            key = value
        elif ":" in key:
            key = self._addresses.items.get(key) or self._address(key)
        if self._hot_clients and (bucket := self._hot_clients.get(key)) is not None:
            return self._charge(exchange, bucket, limit, now)
        if limit.concurrency is not None:  # slots are counted in a bucket of its own, for as long as some are taken
            return self._charge(exchange, self._heat(key, limit, now), limit, now)
        wait_s = self._take(key, now, self._interval, self._window)
        return self._client_refused(key, limit, wait_s, now) if wait_s else None

    def _client_refused(self, key: str, limit: Limit, wait_s: float, now: float) -> Refusal | None:
        self._count(Scope.CLIENT, "rate", limit)
        bucket = self._heat(key, limit, now)
        bucket.offered += 1
        bucket.refused += 1
        self._touched.append(bucket)
        return None if limit.shadow else rate_refusal(Scope.CLIENT, bucket, wait_s, now)

    def _address(self, address: str) -> str:
        key = client_key(address)
        self._addresses.put(address, key)
        return key

    def _field_of(self, exchange: Exchange) -> str | None:
        """The digest of the field that names clients: it may be a credential, and keys are shown and sent around."""
        field, size = self._field, len(self._field)
        for line in exchange.request.kept:
            if line[:size].lower() == field:
                value = line[size:].strip(b" \t")
                key = self._names.items.get(value)
                if key is None:
                    key = "=" + hashlib.blake2b(value, digest_size=12).hexdigest()
                    self._names.put(value, key)
                return key
        return None

    def _heat(self, key: str, limit: Limit, now: float) -> Bucket:
        """A bucket of its own for a client that is refused, so that control can give it another share."""
        bucket = self._made(Scope.CLIENT, key, limit, now)
        if self._clients is not None and bucket.interval:
            bucket.zero = self._clients.zero(key, now - bucket.window)
        if len(self._hot_clients) < HOT_CLIENTS_MAX or limit.concurrency is not None:
            self._hot_clients[key] = bucket
        return bucket

    def _cool_clients(self) -> None:
        """Clients that nobody gave another share, and that asked for nothing lately, go back into the arrays."""
        touched = set(map(id, self._touched))
        for key, bucket in tuple(self._hot_clients.items()):
            if bucket.inflight or id(bucket) in touched or bucket.key in self._shares:
                continue
            if bucket.is_hot:
                bucket.is_hot = False  # once more: control may be about to give it another share
            else:
                del self._hot_clients[key]
                if self._clients is not None and bucket.interval:
                    self._clients.put(key, bucket.zero)

    # ---- control

    def told(self, message: Shares, now: float) -> None:
        """Control's word: shares of keys that are hot somewhere, those that no longer are, and the equal parts."""
        self._heard = now
        self.seq = message.seq
        if (message.equal, message.own) != (self.equal, self.own):
            self.equal, self.own = message.equal, message.own
            self._tune()
        for key in message.cold:
            if self._shares.pop(key, None) is not None:
                self._told.pop(key, None)
                self._give(key, now)
        for key, share in message.keys.items():
            self._shares[key] = self._told[key] = share
            self._give(key, now)

    def forget_others(self) -> None:
        """The bus is new: what control said in an earlier life is reported once, so that it knows what is held."""
        self._says_all = True

    def _give(self, key: str, now: float) -> None:
        """Tune the bucket of this key, if there is one."""
        is_slots = key.endswith(SLOTS)
        name = key.removesuffix(SLOTS)
        bucket = self._found(name)
        if bucket is None:
            return
        share = self._share(key, bucket.scope)
        if is_slots:
            bucket.reslot(share)
        else:
            bucket.retune(bucket.limit, share, now, self._equal(bucket.scope))

    def report(self, now: float) -> Demands | None:
        """What this worker is asked for, of what is hot; None when there is nothing to say. Ten times a second."""
        if now - self._heard > FLAT_S and self._shares and now - self._drifted >= DRIFT_EVERY_S:
            self._drift(now)
        rows = list(self._rows(now - self._reported))
        self._reported = now
        if self._hot_clients:
            self._cool_clients()
        self._touched.clear()
        if self._says_all:
            self._says_all = False
            named = {row.key for row in rows}
            rows += [KeyDemand(key, share, 0.0, 0) for key, share in self._shares.items() if key not in named]
        if not rows and not self._shares and self.seq == self._said:
            return None  # while something is shared out, asking for nothing is news as well
        if len(rows) > REPORTED_MAX:
            rows = heapq.nlargest(REPORTED_MAX, rows, key=lambda row: (row.refused, row.demand))
        self._said = self.seq
        return Demands(self.seq, tuple(rows))

    def _rows(self, seconds: float) -> Iterator[KeyDemand]:
        for bucket in self._touched:
            limit, hot = bucket.limit, False
            if limit.rate is not None:
                demand = bucket.offered / seconds / limit.rate
                hot = bool(bucket.refused) or (bucket.offered > 1 and demand > HOT_PART * bucket.share)
                if hot or bucket.key in self._shares:
                    yield KeyDemand(bucket.key, bucket.share, demand, bucket.refused)
            if limit.concurrency is not None:
                wanted = bucket.peak + bucket.refused_slots
                if wanted > HOT_PART * bucket.slots or bucket.key + SLOTS in self._shares:
                    yield self._slots_row(bucket, wanted)
            bucket.is_hot = hot
            bucket.offered = bucket.refused = bucket.refused_slots = 0
            bucket.peak = bucket.inflight
        yield from self._held_rows()

    def _slots_row(self, bucket: Bucket, wanted: int) -> KeyDemand:
        assert bucket.limit.concurrency is not None
        demand = wanted / bucket.limit.concurrency
        return KeyDemand(bucket.key + SLOTS, bucket.slots_share, demand, bucket.refused_slots)

    def _held_rows(self) -> Iterator[KeyDemand]:
        """Slots that are taken and shared out, where no request came meanwhile."""
        touched = set(map(id, self._touched))
        for key in self._shares:
            if key.endswith(SLOTS) and (bucket := self._found(key[:-1])) is not None:
                if bucket.inflight and id(bucket) not in touched and bucket.limit.concurrency is not None:
                    yield self._slots_row(bucket, bucket.inflight)

    def _found(self, name: str) -> Bucket | None:
        if name.startswith("t:"):
            return self._young.get(name[2:]) or self._old.get(name[2:])
        return self._hot_clients.get(name[2:]) if name.startswith("c:") else self._others.get(name)

    def _drift(self, now: float) -> None:
        """Nobody tells us anything: towards equal parts, as everybody else in the same place."""
        self._drifted = now
        silent_s = now - self._heard
        for key, share in tuple(self._told.items()):
            equal = self.own if key.startswith("g:") else self.equal
            if silent_s >= EQUAL_S:
                self._shares.pop(key, None)
                del self._told[key]
            else:
                self._shares[key] = drift(share, equal, silent_s)
            self._give(key, now)
