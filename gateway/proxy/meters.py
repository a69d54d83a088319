"""This worker's counters, by the names of `telemetry.metrics`, in its mapped file.

An index is looked up once per set of labels and then kept: counting on the hot path is a dict look-up and a store.
Labels are bounded: regions and clusters come from the configuration, tenants from the first `telemetry.tenants`.
"""

from __future__ import annotations

from gateway.bus.stats import SUM_CELL, Labels, StatsFile, bucket_of
from gateway.core.exchange import Exchange

OTHER = "other"


class Meters:
    """`tenant_series` tenants have a series of their own; one that has it keeps it, the rest are `other`."""

    def __init__(self, stats: StatsFile, slot: int, tenant_series: int) -> None:
        self._stats = stats
        self._values = stats.values
        self.tenant_series = tenant_series
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[str, int] = {}
        self._tenants: dict[str, int] = {
            labels[0][1]: index for labels, index in stats.known("landbridge_tenant_requests_total")
        }
        self._tenants.pop(OTHER, None)
        self._upstream_rows: dict[str, tuple[int, dict[int, int]]] = {}
        self._other: dict[tuple[str, Labels], int] = {}
        self._lag = -1
        self.connections = stats.series("landbridge_worker_connections", (("worker", str(slot)),), reset=True)
        self.overrides = stats.series("landbridge_overrides", (), reset=True)

    def exchange(self, exchange: Exchange, seconds: float) -> None:
        """One exchange is over."""
        decision = exchange.decision
        if decision is not None:
            kind = decision.kind._value_  # .value is a property, and slow
        else:
            kind = "none" if exchange.flag is None else "reject"  # none: a probe's answer, or a peer's
        values = self._values
        key = (exchange.listener, kind, exchange.status)
        index = self._requests.get(key)
        if index is None:
            index = self._requests[key] = self._request_series(*key)
        values[index] += 1
        base = self._seconds.get(kind)
        if base is None:
            base = self._seconds[kind] = self._stats.histogram("landbridge_request_seconds", (("decision", kind),))
        values[base + bucket_of(seconds)] += 1
        values[base + SUM_CELL] += int(seconds * 1e6)
        if exchange.tenant:
            index = self._tenants.get(exchange.tenant)
            if index is None:
                index = self._tenant(exchange)
            values[index] += 1

    def _request_series(self, listener: str, kind: str, status: int) -> int:
        labels = (
            ("from", "hop" if listener == "hop" else "client"),
            ("decision", kind),
            ("code_class", f"{status // 100}xx"),
        )
        return self._stats.series("landbridge_requests_total", labels)

    def _tenant(self, exchange: Exchange) -> int:
        """A series for a tenant that the map knows, while there are places; strangers never get one."""
        name = exchange.tenant
        if exchange.placement is None or len(self._tenants) >= self.tenant_series:
            name = OTHER
        index = self._stats.series("landbridge_tenant_requests_total", (("tenant", name),))
        if name != OTHER:
            self._tenants[name] = index
        return index

    def upstream_done(self, cluster: str, status: int, seconds: float) -> None:
        """A response head came, `seconds` after the request was sent."""
        row = self._upstream_rows.get(cluster)
        if row is None:
            row = (self._stats.histogram("landbridge_upstream_seconds", (("cluster", cluster),)), {})
            self._upstream_rows[cluster] = row
        base, outcomes = row
        values = self._values
        values[base + bucket_of(seconds)] += 1
        values[base + SUM_CELL] += int(seconds * 1e6)
        index = outcomes.get(status)
        if index is None:
            labels = (("cluster", cluster), ("outcome", f"{status // 100}xx"))
            index = outcomes[status] = self._stats.series("landbridge_upstream_requests_total", labels)
        values[index] += 1

    def upstream(self, cluster: str, outcome: str) -> None:
        """A try that brought no response head."""
        self.count("landbridge_upstream_requests_total", (("cluster", cluster), ("outcome", outcome)))

    def retry(self, cluster: str, outcome: str) -> None:
        self.count("landbridge_retries_total", (("cluster", cluster), ("outcome", outcome)))

    def not_retried(self, cluster: str, reason: str) -> None:
        self.count("landbridge_not_retried_total", (("cluster", cluster), ("reason", reason)))

    def hop(self, peer: str, outcome: str) -> None:
        self.count("landbridge_hops_total", (("peer", peer), ("outcome", outcome)))

    def filter_error(self, name: str) -> None:
        self.count("landbridge_filter_errors_total", (("filter", name),))

    def count(self, name: str, labels: Labels = (), by: int = 1) -> None:
        """Count something that is not on the plain path."""
        key = (name, labels)
        index = self._other.get(key)
        if index is None:
            index = self._other[key] = self._stats.series(name, labels)
        self._values[index] += by

    def level(self, name: str, labels: Labels, value: int) -> None:
        """Show what something stands at now: a series that ends with this process."""
        key = (name, labels)
        index = self._other.get(key)
        if index is None:
            index = self._other[key] = self._stats.series(name, labels, reset=True)
        self._values[index] = value

    def lag(self, seconds: float) -> None:
        """How late a tick of this worker's loop came."""
        if self._lag < 0:
            self._lag = self._stats.histogram("landbridge_worker_lag_seconds")
        self._stats.observe(self._lag, seconds)

    def gauge(self, index: int, value: int) -> None:
        self._values[index] = value

    def close(self) -> None:
        self._stats.close()
