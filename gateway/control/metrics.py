"""One scrape: the counters of all processes, from their mapped files, and the gauges that control knows.

Counters belong to files, not to processes, so they do not fall when a worker or this process is restarted.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.bus.stats import Labels, read_series
from gateway.control.facts import Facts
from gateway.control.registry import drift
from gateway.core.breaker import SHOWN
from gateway.core.replication import parse_offset
from gateway.core.switches import Name, rate_of
from gateway.core.view import Ability
from gateway.store.record import StoreError
from gateway.telemetry.scrape import render

STATS_FILES: Final = "*.stats"

Gauges = dict[tuple[str, Labels], float]


def scrape(state_dir: Path, known: Gauges) -> bytes:
    """The body of /metrics. Blocks for some milliseconds: a thread is its place."""
    return render(read_series(sorted((state_dir / "stats").glob(STATS_FILES))), known)


def gauges(facts: Facts) -> Gauges:
    """What control knows of the whole gateway now."""
    found: Gauges = {
        ("landbridge_draining", ()): facts.draining,
        ("landbridge_worker_restarts_total", ()): facts.processes.restarts.worker,
        ("landbridge_replicator_restarts_total", ()): facts.processes.restarts.replicator,
        ("landbridge_worker_replacements_total", (("result", "done"),)): facts.processes.replacements.done,
        ("landbridge_worker_replacements_total", (("result", "failed"),)): facts.processes.replacements.failed,
    }
    _switches(facts, found)
    _clusters(facts, found)
    _breakers(facts, found)
    _names(facts, found)
    _keys(facts, found)
    _shares(facts, found)
    _peers(facts, found)
    _map(facts, found)
    return found


def _switches(facts: Facts, found: Gauges) -> None:
    on = facts.board.on()
    for name in Name:
        value = on[name].value if name in on else ""
        rate = rate_of(value) if name is Name.MAX_TRAFFIC else None
        found["landbridge_region_switch", (("switch", name.value),)] = bool(value) if rate is None else rate


def _clusters(facts: Facts, found: Gauges) -> None:
    for name, cluster in facts.view.clusters.items():
        found["landbridge_cluster_able", (("cluster", name),)] = cluster.can_serve
        if cluster.region is None:
            found["landbridge_cluster_share", (("cluster", name),)] = cluster.share if cluster.can_serve else 0.0
        for endpoint in cluster.endpoints:
            labels = (("cluster", name), ("endpoint", endpoint.key))
            found["landbridge_endpoint_up", labels] = endpoint.up


def _breakers(facts: Facts, found: Gauges) -> None:
    for name in facts.breakers.clusters:
        found["landbridge_breaker_state", (("cluster", name), ("endpoint", ""))] = SHOWN[
            facts.breakers.state((name, ""))
        ]
        found["landbridge_breaker_tenants", (("cluster", name),)] = facts.breakers.tenants(name)
    for name, endpoint in facts.breakers.watched:
        labels = (("cluster", name), ("endpoint", endpoint))
        found["landbridge_breaker_state", labels] = (name, endpoint) in facts.breakers.ejected


def _names(facts: Facts, found: Gauges) -> None:
    for name in facts.names.shown():
        labels = (("endpoint", name.written),)
        found["landbridge_dns_failing", labels] = name.result is not None
        if name.age_s is not None:
            found["landbridge_dns_age_seconds", labels] = name.age_s


def _keys(facts: Facts, found: Gauges) -> None:
    for source in facts.keys.shown():
        labels = (("source", source.place),)
        found["landbridge_token_keys_failing", labels] = bool(source.failing)
        if source.age_s is not None:
            found["landbridge_token_keys_age_seconds", labels] = source.age_s


def _shares(facts: Facts, found: Gauges) -> None:
    found["landbridge_gateways_seen", ()] = facts.shares.gateways
    age_s = facts.shares.age_s()
    if facts.settings.tenant_map.redis is not None and age_s is not None:
        found["landbridge_shares_age_seconds", ()] = age_s


def _peers(facts: Facts, found: Gauges) -> None:
    """`peer_able` for each cluster that a region named; an unreachable region is able for none that it ever named."""
    view = facts.view
    here = [name for name, cluster in view.clusters.items() if cluster.region is None]
    for region, condition in facts.conditions.peers.items():
        for cluster in sorted({*here, *condition.clusters}):
            labels = (("peer", region), ("cluster", cluster))
            able = view.ability(region, cluster) is Ability.ABLE
            found["landbridge_peer_able", labels] = able
            found["landbridge_peer_share", labels] = view.share(region, cluster) if able else 0.0
        skew_s = facts.judge.peers.skew_s(region)
        if skew_s is not None:
            found["landbridge_peer_skew_seconds", (("peer", region),)] = skew_s


def _map(facts: Facts, found: Gauges) -> None:
    found["landbridge_map_stale", ()] = facts.tenants.stale
    found["landbridge_map_loss_guard_pending", ()] = facts.tenants.pending is not None
    found["landbridge_map_generation", ()] = facts.writer.generation
    found["landbridge_map_snapshot_behind", ()] = facts.map_file.behind
    if facts.tenants.age_s is not None:
        found["landbridge_map_age_seconds", ()] = facts.tenants.age_s
    found["landbridge_isolated", ()] = facts.conditions.isolated
    _replication(facts, found)
    with suppress(StoreError):  # a map that cannot be read: /readyz and the log say so
        found["landbridge_map_records", ()] = facts.writer.meta().records


def _replication(facts: Facts, found: Gauges) -> None:
    """What is not known has no series: a lag that nobody has measured lately is neither 0 nor what it was."""
    known = facts.tenants.replication()
    if known is None:
        return
    for peer in known.peers:
        labels = (("peer", peer),)
        said = known.said(peer)
        if said is not None:
            found["landbridge_map_lag_seconds", labels] = said.lag_s
            found["landbridge_map_lag_records", labels] = said.lag_records
            if (offset := parse_offset(said.offset)) is not None:
                found["landbridge_map_offset", labels] = offset.seq
    if known.connected:
        found["landbridge_map_dead_letters", ()] = known.dead_letters
        for kind, count in drift(known.gateways)._asdict().items():
            found["landbridge_drift", (("kind", kind),)] = count
