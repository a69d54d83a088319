"""The judge: what workers reported, health checks saw and peers said, brought to one value for all workers.

Pure; time is an argument. Whoever changes what is known calls `conclude` and sends the result if it differs from the
last one: at once upon a report, and on a tick for what changes by time alone (a cluster's rest, a peer's silence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from gateway.control.health import CONNECT_FAILURES_MAX, Health
from gateway.control.isolation import Isolation
from gateway.control.peers import FAILURES_MAX, Peers
from gateway.core.conditions import Conditions, Target
from gateway.core.ramp import share
from gateway.core.view import REGION_CLUSTER, Ability, View
from gateway.settings.schema import Settings

TICK_S: Final = 0.25
"""How late a change by time alone may be noticed: small against the 2 s and 5 s it is about."""

Addresses = Mapping[str, tuple[str, ...]]
Discovered = Mapping[str, tuple[Target, ...]]


class Judge:
    """Everything that control knows of endpoints, by cluster and endpoint key."""

    def __init__(self, isolation: Isolation | None = None) -> None:
        self.health = Health()
        self.peers = Peers()
        self.isolation = isolation or Isolation()
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.discovered: dict[str, tuple[Target, ...]] = {}
        self.switched = Switched()
        self.connects: dict[str, int] = {}
        """Connects in a row that take an endpoint down, by cluster."""
        self.broken: frozenset[str] = frozenset()
        """Clusters whose breaker is open in every worker."""

    def cover(
        self, settings: Settings, view: View, addresses: Addresses, discovered: Discovered = MappingProxyType({})
    ) -> None:
        """Judge the endpoints that `view` names: it was built from `settings`, `addresses` and `discovered`."""
        self.addresses = dict(addresses)
        self.discovered = dict(discovered)
        here: dict[str, list[str]] = {}
        elsewhere: dict[str, list[str]] = {}
        for name, cluster in view.clusters.items():
            keys = [endpoint.key for endpoint in cluster.endpoints]
            if cluster.region is None:
                here[name] = keys
            elif cluster.region != view.region:
                elsewhere[cluster.region] = keys
        self.connects = {name: c.outliers.connect_failures for name, c in view.clusters.items() if c.outliers}
        checks = {name: settings.clusters[name].health for name in here if name in settings.clusters}
        self.health.cover(here, checks)
        self.peers.cover(elsewhere)
        self.isolation.cover(settings)

    def connects_failed(self, cluster: str, endpoint: str, count: int) -> bool:
        """A worker's report of as many as the cluster's `outliers` take; whether an endpoint turned."""
        enough = self.connects.get(cluster, CONNECT_FAILURES_MAX)
        if not cluster.startswith(REGION_CLUSTER):
            return self.health.connects_failed(cluster, endpoint, count, enough)
        gateway = self.peers.find(cluster.removeprefix(REGION_CLUSTER), endpoint)
        if gateway is None or count < enough:
            return False
        return gateway.failed(f"{count} connects in a row failed", max(count, FAILURES_MAX))

    def conclude(self, now: float) -> Conditions:
        """What is known at `now`, with generation 0: the sender numbers it."""
        self.health.settle(now, self.broken)
        down = {name: keys for name, cluster in self.health.clusters.items() if (keys := cluster.down())}
        draining: dict[str, tuple[str, ...]] = {}
        unable = [name for name, cluster in self.health.clusters.items() if not cluster.can_serve]
        for region, gateways in self.peers.regions.items():
            name = REGION_CLUSTER + region
            self.isolation.heard(max((g.heard_at for g in gateways.values() if g.heard_at is not None), default=None))
            if keys := tuple(key for key, g in gateways.items() if not g.up):
                down[name] = keys
            if keys := tuple(key for key, g in gateways.items() if g.draining):
                draining[name] = keys
            if gateways and not any(g.up and not g.draining for g in gateways.values()):
                unable.append(name)
        return Conditions(
            addresses=self.addresses,
            discovered=self.discovered,
            down=down,
            draining=draining,
            unable=tuple(sorted(unable)),
            broken=tuple(sorted(name for name in self.broken.intersection(unable) if self.health.has_usable(name))),
            peers=self.peers.judge(now),
            isolated=self.isolation.judge(now),
            shares=self._shares(now),
            failover_mode=self.switched.failover_mode,
            max_traffic=self.switched.max_traffic,
        )

    def _shares(self, now: float) -> dict[str, float]:
        """Own clusters that do not take everybody: coming back, or drained with the whole region."""
        found = self.health.shares(now)
        of_region = self.switched.share(now)
        if of_region < 1.0:
            names = (name for name, cluster in self.health.clusters.items() if cluster.can_serve)
            found = {name: min(of_region, found.get(name, 1.0)) for name in names}
        return found


@dataclass(slots=True)
class Switched:
    """What operators switched for this region. `undrained_at`: when the last drain ended (monotonic seconds)."""

    failover_mode: str = ""
    max_traffic: float | None = None
    drained: bool = False
    undrained_at: float | None = None

    def drain(self, drained: bool, now: float) -> None:
        """Drain, or end a drain: then requests come back as to a cluster that was down."""
        if self.drained and not drained:
            self.undrained_at = now
        self.drained = drained

    def share(self, now: float) -> float:
        if self.drained:
            return 0.0
        return 1.0 if self.undrained_at is None else share(now - self.undrained_at)


class Turn(NamedTuple):
    """One thing that turned, for the log."""

    text: str
    is_good: bool


def describe(old: Conditions, new: Conditions) -> list[Turn]:
    """What turned between two conclusions; nothing about addresses."""
    turns = [Turn(f"cluster {name} cannot serve", False) for name in sorted(set(new.unable) - set(old.unable))]
    turns += [Turn(f"cluster {name} can serve again", True) for name in sorted(set(old.unable) - set(new.unable))]
    for name in sorted({**old.shares, **new.shares}):
        share_before, share_after = old.shares.get(name, 1.0), new.shares.get(name, 1.0)
        if share_after == 1.0 and name not in new.unable:
            turns.append(Turn(f"cluster {name} serves everybody again", True))
        elif share_before == 1.0:
            turns.append(Turn(f"cluster {name} takes {share_after:.0%} of who can go elsewhere", True))
    if new.isolated and not old.isolated:
        turns.append(Turn("no other region was heard of for longer than tenant_map.partition_after", False))
    elif old.isolated and not new.isolated:
        turns.append(Turn("this region hears another one again", True))
    for word, before, after in (("down", old.down, new.down), ("draining", old.draining, new.draining)):
        was = {(name, key) for name, keys in before.items() for key in keys}
        now = {(name, key) for name, keys in after.items() for key in keys}
        turns += [Turn(f"endpoint {key} of {name} is {word}", word == "draining") for name, key in sorted(now - was)]
        turns += [Turn(f"endpoint {key} of {name} is no longer {word}", True) for name, key in sorted(was - now)]
    for region, peer in sorted(new.peers.items()):
        known = old.peers.get(region)
        if known is not None and (known.reachable, known.clusters) == (peer.reachable, peer.clusters):
            continue
        if not peer.reachable:
            turns.append(Turn(f"region {region} is unreachable", False))
        elif peer.probed:
            words = ", ".join(f"{name} {ability}" for name, ability in sorted(peer.clusters.items()))
            is_good = all(ability is Ability.ABLE for ability in peer.clusters.values())
            turns.append(Turn(f"region {region} answers: {words}", is_good))
    return turns
