"""What the admin API shows, as values of `admin_answers`. It only reads `Facts`, and never lets a secret through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from gateway.control import admin_answers as answers
from gateway.control import shown_replication, shown_switches
from gateway.control.discovery.discovery import Shown
from gateway.control.facts import Facts
from gateway.control.peers import PeerGateway
from gateway.control.reload import Outcome
from gateway.control.sources.confirm import Pending
from gateway.core.explain import Explanation
from gateway.core.limits import written_limits
from gateway.core.placement import NO_VERSION, Placement
from gateway.core.view import Ability, Endpoint
from gateway.settings.loader import masked
from gateway.settings.problems import MASK
from gateway.settings.redis_url import read
from gateway.settings.schema import Settings

PASSWORD_CHARS_MIN: Final = 8
"""A shorter one may be a word of the configuration, and is nobody's secret for long."""

_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]+@")


def status(facts: Facts, now: float) -> answers.Status:
    """The gateway at a glance."""
    settings = facts.settings
    current = facts.configuration
    return answers.Status(
        region=settings.region,
        fleet=settings.fleet,
        version=facts.program,
        uptime_s=round(now - facts.started, 3),
        draining=facts.draining,
        ready=not facts.draining and facts.writer.complete(),
        isolated=facts.conditions.isolated,
        pids=answers.Pids(
            supervisor=facts.processes.supervisor,
            control=facts.processes.control,
            replicator=facts.processes.replicator,
            workers=facts.processes.workers,
        ),
        restarts=facts.processes.restarts,
        replacements=facts.processes.replacements,
        config=answers.ConfigState(
            file=str(current.path),
            digest=settings.digest,
            generation=facts.generation,
            applied={str(slot): generation for slot, generation in sorted(facts.applied.items())},
            running="last-good" if current.on_disk_differs else "file",
            last_reload=_attempt(current.last),
        ),
        map=map_status(facts, now),
        filters=answers.FilterState(
            files=tuple(file.path for file in settings.filter_files),
            removed=tuple(
                answers.RemovedFilter(filter=name, worker=slot, error=error)
                for (slot, name), error in sorted(facts.removed_filters.items())
            ),
        ),
        switches=[row for row in shown_switches.rows(facts) if row.value is not None],
        token_keys=[
            answers.KeySource(
                source=source.place,
                keys=source.keys,
                failing=source.failing or None,
                age_s=None if source.age_s is None else round(source.age_s, 3),
            )
            for source in facts.keys.shown()
        ],
    )


def map_status(facts: Facts, now: float) -> answers.MapState:
    """The tenant map, and how its source stands to it."""
    meta = facts.writer.meta()
    source = facts.tenants
    return answers.MapState(
        complete=meta.complete,
        records=meta.records,
        digest=meta.digest,
        transaction=meta.transaction,
        written=_time(meta.written_ms) if meta.written_ms else None,
        age_s=source.age_s,
        stale=source.stale,
        source=facts.settings.tenant_map.source,
        file=source.place,
        last_read=_attempt(source.last),
        last_error=_attempt(source.last_error),
        loss_guard_pending=source.pending is not None,
        waiting=_loss(source.pending),
        generation=facts.writer.generation,
        snapshot_problem=facts.map_file.snapshot_problem,
        replication=shown_replication.replication(facts, now),
    )


def _loss(pending: Pending | None) -> answers.Loss | None:
    if pending is None:
        return None
    return answers.Loss(
        change=pending.change,
        removes=pending.removed,
        of=pending.known,
        leaves=pending.records,
        tenants=pending.first,
        since=_time(pending.since_ms),
    )


def regions(facts: Facts, now: float) -> answers.Regions:
    """All regions of the fleet; of the others, what their gateways said."""
    here = facts.settings.region
    return answers.Regions(
        regions=[
            _here(facts, name, region.public) if name == here else _elsewhere(facts, name, region.public, now)
            for name, region in facts.settings.regions.items()
        ]
    )


def _here(facts: Facts, name: str, public: str | None) -> answers.Region:
    clusters = {
        c.name: Ability.ABLE if c.can_serve else Ability.UNABLE
        for c in facts.view.clusters.values()
        if c.region is None
    }
    return answers.Region(name=name, here=True, public=public, reachable=True, clusters=clusters)


def _elsewhere(facts: Facts, name: str, public: str | None, now: float) -> answers.Region:
    condition = facts.conditions.peers.get(name)
    return answers.Region(
        name=name,
        here=False,
        public=public,
        reachable=condition is None or condition.reachable,
        clusters={} if condition is None else condition.clusters,
        probed=condition is not None and condition.probed,
        skew_s=facts.judge.peers.skew_s(name),
        gateways=[_gateway(key, g, now) for key, g in facts.judge.peers.regions.get(name, {}).items()],
    )


def _gateway(key: str, gateway: PeerGateway, now: float) -> answers.PeerGateway:
    heard_at = gateway.heard_at
    return answers.PeerGateway(
        endpoint=key,
        up=gateway.up,
        draining=gateway.draining,
        reason=gateway.reason,
        heard_s=None if heard_at is None else round(now - heard_at, 3),
        skew_s=gateway.skew_s,
        answer=gateway.answer,
    )


def clusters(facts: Facts) -> answers.Clusters:
    """All clusters, other regions' gateways included, with their endpoints."""
    found = []
    names = {name.written: _discovered(name) for name in facts.names.shown()}
    for name, cluster in facts.view.clusters.items():
        settings = facts.settings.clusters.get(name)
        written = () if settings is None else map(str, settings.endpoints)
        found.append(
            answers.Cluster(
                name=name,
                region=cluster.region,
                able=cluster.can_serve,
                health=None if settings is None else settings.health,
                endpoints=[_endpoint(facts, name, cluster.region, endpoint) for endpoint in cluster.endpoints],
                discovered=[names[endpoint] for endpoint in written if endpoint in names],
            )
        )
    return answers.Clusters(clusters=found)


def _discovered(name: Shown) -> answers.Discovered:
    return answers.Discovered(
        name=name.written,
        endpoints=name.targets,
        age_s=None if name.age_s is None else round(name.age_s, 3),
        ttl_s=name.ttl_s,
        failing=None if name.result is None else name.result.value,
        reason=name.why,
    )


def _endpoint(facts: Facts, cluster: str, region: str | None, endpoint: Endpoint) -> answers.Endpoint:
    if region is None:
        known = facts.judge.health.find(cluster, endpoint.key)
        reason = "" if known is None else known.reason
    else:
        gateway = facts.judge.peers.find(region, endpoint.key)
        reason = "" if gateway is None else gateway.reason
    return answers.Endpoint(
        name=endpoint.name,
        address=endpoint.key,
        up=endpoint.up,
        draining=endpoint.draining,
        reason=reason,
        priority=endpoint.priority,
        weight=endpoint.weight,
    )


def stored(facts: Facts, placement: Placement) -> answers.Tenant:
    """A placement of the map, with what the store knows of it besides. Raises StoreError."""
    writer = facts.writer
    return tenant(placement, writer.arrived(placement.tenant), writer.newest(placement.tenant))


def tenant(placement: Placement, arrived_ms: int | None = None, newest: Placement | None = None) -> answers.Tenant:
    """A placement with all its keys, named as in the tenants file; `newest` is the newest version that is known."""
    version = placement.version
    return answers.Tenant(
        tenant=placement.tenant,
        home=placement.home,
        standby=list(placement.standby),
        failover=placement.failover.value,
        hosts=list(placement.hosts),
        public=dict(placement.public),
        misroute=None if placement.misroute is None else placement.misroute.value,
        state=placement.state.value,
        cluster=placement.cluster,
        labels=dict(placement.labels),
        limits=None if placement.limits is None else dict(written_limits(placement.limits)),
        allow=list(placement.allow),
        deny=list(placement.deny),
        partition=placement.partition.value,
        version=None if version == NO_VERSION else str(version),
        by=placement.by,
        why=placement.why,
        takeover=placement.takeover,
        written_in=version.region or None,
        written=_time(version.hlc) if version.hlc else None,
        arrived=None if arrived_ms is None else _time(arrived_ms),
        waiting=None if newest is None or newest.version == version else str(newest.version),
    )


def explanation(explained: Explanation) -> answers.Explained:
    """As `landbridge explain --json` prints it."""
    fields = msgspec.structs.asdict(explained)
    fields["steps"] = tuple(answers.RuleStep(rule=rule, outcome=outcome) for rule, outcome in explained.steps)
    return answers.Explained(**fields)


def config(settings: Settings) -> dict[str, Any]:
    """The configuration that runs, without what must not be read: keys, secret options, passwords in URLs."""
    plain = masked(settings)
    plain.pop("origins", None)
    secrets = (*settings.hop_keys, *(token.token for token in settings.admin.tokens), *_passwords(settings))
    return {key: _scrubbed(value, secrets) for key, value in plain.items()}


def _passwords(settings: Settings) -> list[str]:
    """Those of the Redis URLs, as they are and as a URL has them; none that may be a word of something else."""
    redis = settings.tenant_map.redis
    found = [] if redis is None else [read(url).password for url in (redis.url, *redis.peers.values())]
    return [form for word in found if len(word) >= PASSWORD_CHARS_MIN for form in (word, quote(word, safe=""))]


def _scrubbed(value: Any, secrets: tuple[str, ...]) -> Any:
    """A second net below `masked`: a key that somebody pasted elsewhere, and userinfo in any URL."""
    if isinstance(value, Mapping):
        return {key: _scrubbed(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return _USERINFO.sub(f"{MASK}@", value)
    return value


def _attempt(outcome: Outcome | None) -> answers.Attempt | None:
    if outcome is None:
        return None
    return answers.Attempt(
        time=_time(outcome.at_ms),
        cause=outcome.cause,
        result=outcome.result,
        problems=list(outcome.problems),
        warnings=list(outcome.warnings),
    )


def _time(ms: int) -> str:
    return shown_replication.time_of(ms)
