"""From settings and conditions to the View that decides requests. Pure; control and every worker build the same one.

The settings say what is wanted for the whole gateway; a worker's View holds its share of the limits, the addresses
that names resolved to, and what is known to be down. Nothing that is not in the conditions is assumed to be down.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.core.addresses import access_list
from gateway.core.balancing import Balance, Balancer, HashBy
from gateway.core.breaker import BreakerRule
from gateway.core.conditions import Conditions, Target
from gateway.core.outliers import OutlierRule
from gateway.core.retry import Retries
from gateway.core.switches import FAILOVER_ALL
from gateway.core.view import (
    REGION_CLUSTER,
    Ability,
    Cluster,
    ClusterTimeouts,
    Drain,
    Endpoint,
    Limits,
    Probes,
    Region,
    Route,
    Timeouts,
    View,
    region_cluster,
)
from gateway.settings import identity, shedding, templates, throttling, units
from gateway.settings.schema import (
    REGION_TIMEOUTS,
    Address,
    BreakerSettings,
    ClusterSettings,
    OutlierSettings,
    RetrySettings,
    Scheme,
    Settings,
)

BREAKER_REQUESTS_MIN: Final = 5
"""What a worker's breaker wants to see at least, however many workers share `min_requests`."""


def build_view(settings: Settings, conditions: Conditions, generation: int) -> View:
    """One frozen snapshot. `settings` come from the loader: what they hold is valid."""
    limits, timeouts, peers = settings.limits, settings.timeouts, conditions.peers
    return View(
        region=settings.region,
        fleet=settings.fleet,
        generation=generation,
        config_digest=settings.digest,
        regions={
            name: Region(name, None if region.public is None else templates.public_url(region.public))
            for name, region in settings.regions.items()
        },
        clusters=_clusters(settings, conditions),
        routes=_routes(settings),
        resolvers=tuple(
            identity.resolver(r) or templates.resolver(r.kind, r.value) for r in settings.tenancy.resolvers
        ),
        agree=settings.tenancy.agree,
        unknown=settings.tenancy.unknown,
        misroute=settings.misroute,
        limits=Limits(
            connections=_share(limits.connections, settings.workers),
            header_bytes=limits.header_bytes,
            headers=limits.headers,
            target_bytes=limits.target_bytes,
            body_bytes=limits.body_bytes,
        ),
        timeouts=Timeouts(timeouts.header, timeouts.body, timeouts.keepalive),
        drain=Drain(settings.drain.grace, settings.drain.limit),
        probes=Probes(settings.probes.live.encode("ascii"), settings.probes.ready.encode("ascii")),
        throttle=throttling.view_of(settings),
        shedding=shedding.view_of(settings),
        workers=settings.workers,
        trusted_proxies=tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies),
        hop_keys=tuple(key.encode() for key in settings.hop_keys),
        abilities={
            (region, cluster): Ability(ability)
            for region, peer in peers.items()
            for cluster, ability in peer.clusters.items()
        },
        probed=frozenset(region for region, peer in peers.items() if peer.probed),
        unreachable=frozenset(region for region, peer in peers.items() if peer.probed and not peer.reachable),
        isolated=conditions.isolated,
        shares={(region, cluster): share for region, peer in peers.items() for cluster, share in peer.shares.items()},
        ramps=bool(conditions.shares) or any(peer.shares for peer in peers.values()),
        takes_over=_takes_over(settings, conditions),
        takes_all=conditions.failover_mode == FAILOVER_ALL,
        max_traffic=None if conditions.max_traffic is None else conditions.max_traffic / settings.workers,
        filter_options=settings.filter_options,
        access_log_path=settings.access_log.path,
        access_log_sample=settings.access_log.sample,
        tenant_series=settings.tenant_series,
    )


def _takes_over(settings: Settings, conditions: Conditions) -> frozenset[str]:
    """The regions in failover mode."""
    found = {region for region, peer in conditions.peers.items() if peer.takes_over}
    if conditions.failover_mode:
        found.add(settings.region)
    return frozenset(found)


def _share(limit: int, workers: int) -> int:
    """One worker's part of a limit of the whole gateway, rounded up: the sum is never less than was asked for."""
    return -(-limit // workers)


def _routes(settings: Settings) -> tuple[Route, ...]:
    routes = (
        Route(route.prefix.encode("ascii"), route.cluster, access_list(route.allow, route.deny))
        for route in settings.routes
    )
    return tuple(sorted(routes, key=lambda route: (-len(route.prefix), route.prefix)))


def _clusters(settings: Settings, conditions: Conditions) -> dict[str, Cluster]:
    clusters = {
        name: _cluster(name, written, written.endpoints, settings, conditions)
        for name, written in settings.clusters.items()
        if not name.startswith(REGION_CLUSTER)
    }
    default = ClusterSettings(timeouts=REGION_TIMEOUTS)
    for region, there in settings.regions.items():
        if region == settings.region:
            continue
        name = region_cluster(region)
        written = settings.clusters.get(name, default)
        clusters[name] = _cluster(name, written, there.gateways, settings, conditions, region)
    return clusters


def _cluster(
    name: str,
    written: ClusterSettings,
    addresses: Iterable[Address],
    settings: Settings,
    conditions: Conditions,
    region: str | None = None,
) -> Cluster:
    endpoints = _endpoints(name, addresses, conditions)
    usable = any(endpoint.up and not endpoint.draining for endpoint in endpoints)
    timeouts = written.timeouts
    return Cluster(
        name=name,
        endpoints=endpoints,
        timeouts=ClusterTimeouts(timeouts.connect, timeouts.response, timeouts.body, timeouts.idle),
        retries=written.retries.attempts,
        retry=_retries(written.retries),
        connections_max=_share(written.limits.connections, settings.workers),
        pending_max=_share(written.limits.pending, settings.workers),
        # what another region can serve is said by its own gateways, through the abilities
        can_serve=name not in conditions.unable and (usable or region is not None),
        broken=name in conditions.broken,
        region=region,
        share=conditions.shares.get(name, 1.0),
        breaker=None if written.breaker is None else _breaker(written.breaker, settings.workers),
        outliers=None if written.outliers is None else _outliers(written.outliers, settings.workers),
        balance=_balance(written),
        slow_start=written.slow_start or 0.0,
    )


def _balance(written: ClusterSettings) -> Balance:
    key = written.hash
    if written.balance is not Balancer.HASH or key is None:
        return Balance(written.balance)
    name = key.name.lower() if key.by is HashBy.HEADER else key.name
    return Balance(written.balance, key.by, name.encode("ascii"), key.sticky)


def _outliers(written: OutlierSettings, workers: int) -> OutlierRule:
    return OutlierRule(
        connect_failures=written.connect_failures,
        consecutive_errors=written.consecutive_errors,
        eject=written.eject,
        eject_max=written.eject_max,
        max_fraction=written.eject_max_percent / 100,
        panic_fraction=written.panic_percent / 100,
        interval=written.interval,
        requests_min=_share(written.requests, workers),
        stdev=written.stdev,
    )


def _breaker(written: BreakerSettings, workers: int) -> BreakerRule:
    """A worker's: it sees its part of the requests, and must not take a handful for an outage."""
    rule = BreakerRule(**msgspec.structs.asdict(written))
    part = max(_share(written.min_requests, workers), BREAKER_REQUESTS_MIN)
    return dataclasses.replace(rule, min_requests=min(part, written.min_requests))


def _retries(written: RetrySettings) -> Retries:
    return Retries(
        budget=written.budget,
        statuses=frozenset(written.statuses),
        per_try_s=written.per_try_timeout or 0.0,
        backoff_s=written.backoff.base,
        backoff_max_s=written.backoff.max,
    )


def _endpoints(cluster: str, addresses: Iterable[Address], conditions: Conditions) -> tuple[Endpoint, ...]:
    """One endpoint per address: two names of one host are one endpoint, or it would get twice its share."""
    down = frozenset(conditions.down.get(cluster, ()))
    draining = frozenset(conditions.draining.get(cluster, ()))
    endpoints: dict[str, Endpoint] = {}
    for written in addresses:
        for target in _targets(written, conditions):
            key = str(Address(target.address, target.port))
            known = endpoints.get(key)
            if known is None or target.priority < known.priority:
                endpoints[key] = Endpoint(
                    name=str(Address(target.name, target.port)),
                    address=target.address,
                    port=target.port,
                    up=key not in down,
                    draining=key in draining,
                    priority=target.priority,
                    weight=target.weight * written.weight,
                )
    return tuple(endpoints.values())


def _targets(written: Address, conditions: Conditions) -> Iterable[Target]:
    """What an endpoint stands for. A bare name that is not resolved yet stands for itself, `dns://` for nothing."""
    if written.scheme is not Scheme.PLAIN:
        return conditions.discovered.get(str(written), ())
    known = () if units.is_ip(written.host) else conditions.addresses.get(written.host, ())
    return [Target(host, written.port, name=written.host) for host in known or (written.host,)]


def undiscovered(settings: Settings, conditions: Conditions) -> bool:
    """Whether there is a `dns://` or `srv://` endpoint that nothing is known of."""
    return any(
        written.scheme is not Scheme.PLAIN and str(written) not in conditions.discovered
        for cluster in settings.clusters.values()
        for written in cluster.endpoints
    )


def assumed(settings: Settings) -> Conditions:
    """Every `dns://` and `srv://` endpoint found, at addresses that are nobody's: to explain a configuration by."""
    found: dict[str, tuple[Target, ...]] = {
        str(written): (Target("192.0.2.1", written.port or 1, name=written.host),)
        for cluster in settings.clusters.values()
        for written in cluster.endpoints
        if written.scheme is not Scheme.PLAIN
    }
    return Conditions(discovered=found)
