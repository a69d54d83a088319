"""What the admin API shows, as plain values. It only reads `Facts`, and never lets a secret through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.control.facts import Facts
from gateway.control.peers import PeerGateway
from gateway.control.reload import Outcome
from gateway.core.explain import Explanation
from gateway.core.placement import NO_VERSION, Placement
from gateway.core.view import Endpoint
from gateway.settings.loader import masked
from gateway.settings.schema import Settings

MASK: Final = "***"

_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]+@")


def status(facts: Facts, now: float) -> dict[str, Any]:
    """The gateway at a glance."""
    settings = facts.settings
    current = facts.configuration
    return {
        "region": settings.region,
        "fleet": settings.fleet,
        "version": facts.program,
        "uptime_s": round(now - facts.started, 3),
        "draining": facts.draining,
        "ready": not facts.draining and facts.writer.complete(),
        "pids": {
            "supervisor": facts.processes.supervisor,
            "control": facts.processes.control,
            "workers": [msgspec.to_builtins(worker) for worker in facts.processes.workers],
        },
        "restarts": msgspec.to_builtins(facts.processes.restarts),
        "config": {
            "file": str(current.path),
            "digest": settings.digest,
            "generation": facts.generation,
            "applied": {str(slot): generation for slot, generation in sorted(facts.applied.items())},
            "running": "last-good" if current.on_disk_differs else "file",
            "last_reload": _outcome(current.last),
        },
        "map": map_status(facts),
    }


def map_status(facts: Facts) -> dict[str, Any]:
    """The tenant map, and how its source stands to it."""
    meta = facts.writer.meta()
    source = facts.tenants
    return {
        "complete": meta.complete,
        "records": meta.records,
        "digest": meta.digest,
        "transaction": meta.transaction,
        "written": _time(meta.written_ms) if meta.written_ms else None,
        "age_s": source.age_s,
        "stale": source.stale,
        "source": facts.settings.tenant_map.source,
        "file": str(source.path),
        "last_read": _outcome(source.last),
        "last_error": _outcome(source.last_error),
        "loss_guard_pending": source.guard_pending,
    }


def regions(facts: Facts, now: float) -> list[dict[str, Any]]:
    """All regions of the fleet; of the others, what their gateways said."""
    here = facts.settings.region
    found = []
    for name, region in facts.settings.regions.items():
        row: dict[str, Any] = {"name": name, "here": name == here, "public": region.public}
        if name == here:
            row["reachable"] = True
            row["clusters"] = {
                c.name: "able" if c.can_serve else "unable" for c in facts.view.clusters.values() if c.region is None
            }
        else:
            condition = facts.conditions.peers.get(name)
            row["probed"] = condition is not None and condition.probed
            row["reachable"] = condition is None or condition.reachable
            row["clusters"] = {} if condition is None else msgspec.to_builtins(condition.clusters)
            row["skew_s"] = facts.judge.peers.skew_s(name)
            row["gateways"] = [_gateway(key, g, now) for key, g in facts.judge.peers.regions.get(name, {}).items()]
        found.append(row)
    return found


def _gateway(key: str, gateway: PeerGateway, now: float) -> dict[str, Any]:
    heard_at, answer = gateway.heard_at, gateway.answer
    return {
        "endpoint": key,
        "up": gateway.up,
        "draining": gateway.draining,
        "reason": gateway.reason,
        "heard_s": None if heard_at is None else round(now - heard_at, 3),
        "skew_s": gateway.skew_s,
        "answer": None if answer is None else msgspec.to_builtins(answer),
    }


def clusters(facts: Facts) -> list[dict[str, Any]]:
    """All clusters, other regions' gateways included, with their endpoints."""
    found = []
    for name, cluster in facts.view.clusters.items():
        settings = facts.settings.clusters.get(name)
        health = None if settings is None or settings.health is None else msgspec.to_builtins(settings.health)
        found.append(
            {
                "name": name,
                "region": cluster.region,
                "able": cluster.can_serve,
                "health": health,
                "endpoints": [_endpoint(facts, name, cluster.region, endpoint) for endpoint in cluster.endpoints],
            }
        )
    return found


def _endpoint(facts: Facts, cluster: str, region: str | None, endpoint: Endpoint) -> dict[str, Any]:
    if region is None:
        known = facts.judge.health.find(cluster, endpoint.key)
        reason = "" if known is None else known.reason
    else:
        gateway = facts.judge.peers.find(region, endpoint.key)
        reason = "" if gateway is None else gateway.reason
    return {
        "name": endpoint.name,
        "address": endpoint.key,
        "up": endpoint.up,
        "draining": endpoint.draining,
        "reason": reason,
    }


def tenant(placement: Placement) -> dict[str, Any]:
    """A placement with all its keys, named as in the tenants file."""
    version = placement.version
    return {
        "tenant": placement.tenant,
        "home": placement.home,
        "standby": list(placement.standby),
        "failover": placement.failover.value,
        "hosts": list(placement.hosts),
        "public": dict(placement.public),
        "misroute": None if placement.misroute is None else placement.misroute.value,
        "state": placement.state.value,
        "cluster": placement.cluster,
        "labels": dict(placement.labels),
        "version": None if version == NO_VERSION else str(version),
    }


def explanation(explained: Explanation) -> dict[str, Any]:
    """As `landbridge explain --json` prints it."""
    plain: dict[str, Any] = msgspec.to_builtins(explained)
    plain["steps"] = [{"rule": rule, "outcome": outcome} for rule, outcome in explained.steps]
    return plain


def config(settings: Settings) -> dict[str, Any]:
    """The configuration that runs, without what must not be read: keys, secret options, passwords in URLs."""
    plain = masked(settings)
    plain.pop("origins", None)
    return {key: _scrubbed(value, settings.hop_keys) for key, value in plain.items()}


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


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "time": _time(outcome.at_ms),
        "cause": outcome.cause,
        "result": outcome.result,
        "problems": list(outcome.problems),
        "warnings": list(outcome.warnings),
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
