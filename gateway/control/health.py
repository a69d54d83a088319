"""Judging clusters: which endpoints are usable, and whether a cluster can serve at all. Pure; time is an argument.

An endpoint is usable until a check failed `unhealthy` times or three connects in a row failed. With `health` it comes
back after `healthy` checks, without after one TCP connect. The first check after a start decides at once: nothing
better is known, and a restarted control must not take a dead application for a live one. A cluster cannot serve as
soon as no endpoint is usable, and can again when one has been usable for `REST_S`, so that it does not flap. Then its
requests come back by a ramp (`core.ramp`); at each relapse within `RELAPSE_S` the ramp begins later, twice as late
each time. That holds back only who is served elsewhere meanwhile: who has nowhere else to go is served at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.core.ramp import share
from gateway.settings.schema import HealthSettings

REST_S: Final = 2.0
"""How long an endpoint must have been usable before its cluster serves again (DESIGN 5.1)."""

RELAPSE_S: Final = 60.0
"""A cluster that fails again so soon after it came back has relapsed."""

HOLD_S: Final = 4.0
HOLD_MAX_S: Final = 64.0
"""After the first relapse the ramp begins this much later, after the next twice as much, and so on."""

CONNECT_FAILURES_MAX: Final = 3
"""Connects in a row that a worker may fail before the endpoint is down for the whole gateway."""


class Thresholds(NamedTuple):
    """Checks in a row that turn an endpoint: `healthy` up, `unhealthy` down."""

    healthy: int
    unhealthy: int


BY_CONNECT: Final = Thresholds(healthy=1, unhealthy=1)
"""Without `health`, only endpoints that are down are probed: one connect brings them back."""


@dataclass(slots=True)
class EndpointHealth:
    """One endpoint's state. `good` and `bad` count observations of one kind in a row."""

    up: bool = True
    checked: bool = False
    good: int = 0
    bad: int = 0
    reason: str = ""

    def check(self, ok: bool, rule: Thresholds, reason: str = "") -> bool:
        """Take in one check; whether the endpoint turned."""
        first, self.checked = not self.checked, True
        if ok:
            self.good, self.bad = self.good + 1, 0
            return self._turn(True, "") if not self.up and self.good >= rule.healthy else False
        self.good, self.bad = 0, self.bad + 1
        if self.up and (first or self.bad >= rule.unhealthy):
            return self._turn(False, reason)
        if not self.up:
            self.reason = reason
        return False

    def connects_failed(self, count: int, enough: int = CONNECT_FAILURES_MAX) -> bool:
        """Take in a worker's report of `count` failed connects in a row; whether the endpoint turned."""
        if count < enough:
            return False
        self.good = 0
        return self._turn(False, f"{count} connects in a row failed") if self.up else False

    def _turn(self, up: bool, reason: str) -> bool:
        self.up, self.good, self.bad, self.reason = up, 0, 0, reason
        return True


@dataclass(slots=True)
class ClusterHealth:
    """One cluster's endpoints by key, and whether it can serve. `back_at`: since when it can, after it could not."""

    rule: Thresholds
    endpoints: dict[str, EndpointHealth] = field(default_factory=dict)
    can_serve: bool = True
    usable_since: float | None = None
    back_at: float | None = None
    relapses: int = 0

    def settle(self, now: float, broken: bool = False) -> bool:
        """Conclude from the endpoints; whether `can_serve` turned. Call it after each change and as time passes.

        `broken`: every worker has found for itself that the cluster does not serve, whatever its endpoints look like
        (its breaker is open). After that it needs no rest: the breakers waited, and let probes through only.
        """
        before, usable = self.can_serve, any(e.up for e in self.endpoints.values())
        if broken or not usable:
            if before and self.back_at is not None:
                self.relapses = self.relapses + 1 if now - self.back_at < RELAPSE_S else 0
            self.can_serve, self.back_at = False, None
            self.usable_since = now - REST_S if usable else None
        elif not self.can_serve:
            self.usable_since = now if self.usable_since is None else self.usable_since
            if now - self.usable_since >= REST_S:
                self.can_serve, self.usable_since, self.back_at = True, None, now
        return before != self.can_serve

    def share(self, now: float) -> float:
        """Which share of those that may be served elsewhere is to come here."""
        if self.back_at is None:
            return 1.0
        hold_s = min(HOLD_MAX_S, HOLD_S * 2.0 ** (self.relapses - 1)) if self.relapses else 0.0
        return share(now - self.back_at - hold_s)

    def down(self) -> tuple[str, ...]:
        return tuple(key for key, e in self.endpoints.items() if not e.up)


class Health:
    """All clusters of this region. It survives reloads: what is known of an endpoint is kept by its key."""

    def __init__(self) -> None:
        self.clusters: dict[str, ClusterHealth] = {}

    def cover(self, endpoints: Mapping[str, Iterable[str]], checks: Mapping[str, HealthSettings | None]) -> None:
        """Judge exactly these clusters (name to endpoint keys) by these rules; keep what is known of the rest."""
        old, self.clusters = self.clusters, {}
        for name, keys in endpoints.items():
            check = checks.get(name)
            rule = BY_CONNECT if check is None else Thresholds(check.healthy, check.unhealthy)
            keys = tuple(keys)
            cluster = old.get(name)
            if cluster is None or cluster.endpoints.keys().isdisjoint(keys):
                cluster = ClusterHealth(rule)  # it moved as a whole: nothing that is known of it holds any more
            cluster.rule = rule
            cluster.endpoints = {key: cluster.endpoints.get(key) or EndpointHealth() for key in keys}
            self.clusters[name] = cluster

    def find(self, cluster: str, endpoint: str) -> EndpointHealth | None:
        known = self.clusters.get(cluster)
        return None if known is None else known.endpoints.get(endpoint)

    def check(self, cluster: str, endpoint: str, ok: bool, reason: str = "") -> bool:
        """One health check or connect probe; whether the endpoint turned. What is not covered is ignored."""
        found = self.find(cluster, endpoint)
        return False if found is None else found.check(ok, self.clusters[cluster].rule, reason)

    def connects_failed(self, cluster: str, endpoint: str, count: int, enough: int = CONNECT_FAILURES_MAX) -> bool:
        found = self.find(cluster, endpoint)
        return False if found is None else found.connects_failed(count, enough)

    def has_usable(self, cluster: str) -> bool:
        """Whether an endpoint of it is up; not of what is not judged here, as other regions' gateways."""
        known = self.clusters.get(cluster)
        return known is not None and any(endpoint.up for endpoint in known.endpoints.values())

    def settle(self, now: float, broken: Set[str] = frozenset()) -> list[str]:
        """Names of the clusters that turned. `broken`: see `ClusterHealth.settle`."""
        return [name for name, cluster in self.clusters.items() if cluster.settle(now, name in broken)]

    def shares(self, now: float) -> dict[str, float]:
        """Of the clusters that can serve, but not everybody yet."""
        found = {name: cluster.share(now) for name, cluster in self.clusters.items() if cluster.can_serve}
        return {name: part for name, part in found.items() if part < 1.0}
