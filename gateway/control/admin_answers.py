"""What the admin API answers, as types: `shown` makes them, `openapi.json` describes them, clients may decode by them.

Plain data that is fit to be shown: nothing here has a place for a secret. Keys are added, never renamed: scripts and
dashboards read them.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from gateway.control.facts import Replacements, Restarts, WorkerProcess
from gateway.core.explain import Explanation
from gateway.core.peering import PeerAnswer
from gateway.core.view import Ability
from gateway.settings.schema import HealthSettings


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error (RFC 9457). `flag` is one of docs/errors.md, where the gateway would answer a client with it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    flag: str | None = None
    region: str


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt to take in a file ended: `result` is applied or refused."""

    time: str
    cause: str
    result: str
    problems: list[str]
    warnings: list[str]


class Pids(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's processes; a replaced worker stays listed while it drains. `replicator`: with a map from Redis."""

    supervisor: int
    control: int
    replicator: int | None
    workers: tuple[WorkerProcess, ...]


class ConfigState(msgspec.Struct, frozen=True, kw_only=True):
    """`applied`: worker slot to the generation that it runs. `running`: file, last-good where that is refused."""

    file: str
    digest: str
    generation: int
    applied: dict[str, int]
    running: str
    last_reload: Attempt | None


class RemovedFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter of the operator's that a worker took out, because it kept failing; `error` is what it last raised."""

    filter: str
    worker: int
    error: str


class FilterState(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of the operator's: their files, and which of them are not asked any more."""

    files: tuple[str, ...]
    removed: tuple[RemovedFilter, ...]


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A change that the loss guard holds up until `landbridge map confirm`: it removes `removes` of `of` tenants."""

    change: str
    removes: int
    of: int
    leaves: int
    tenants: tuple[str, ...]
    since: str


class MapState(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant map, and how its source stands to it."""

    complete: bool
    records: int
    digest: str
    transaction: int
    written: str | None
    age_s: float | None
    stale: bool
    source: str
    file: str
    last_read: Attempt | None
    last_error: Attempt | None
    loss_guard_pending: bool
    waiting: Loss | None
    generation: int
    snapshot_problem: str | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway at a glance. `ready` is what `/readyz` says."""

    region: str
    fleet: str
    version: str
    uptime_s: float
    draining: bool
    ready: bool
    pids: Pids
    restarts: Restarts
    replacements: Replacements
    config: ConfigState
    map: MapState
    filters: FilterState


class PeerGateway(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway of another region: what it last said of itself, `heard_s` ago."""

    endpoint: str
    up: bool
    draining: bool
    reason: str
    heard_s: float | None
    skew_s: float | None
    answer: PeerAnswer | None


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """One region of the fleet. `probed`, `skew_s` and `gateways` are there for the others only."""

    name: str
    here: bool
    public: str | None
    reachable: bool
    clusters: dict[str, Ability]
    probed: bool | UnsetType = UNSET
    skew_s: float | UnsetType | None = UNSET
    gateways: list[PeerGateway] | UnsetType = UNSET


class Regions(msgspec.Struct, frozen=True, kw_only=True):
    regions: list[Region]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`name` as written, `address` as dialled; `reason` says why it is down."""

    name: str
    address: str
    up: bool
    draining: bool
    reason: str


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """`region` is set for the gateways of another one."""

    name: str
    region: str | None
    able: bool
    health: HealthSettings | None
    endpoints: list[Endpoint]


class Clusters(msgspec.Struct, frozen=True, kw_only=True):
    clusters: list[Cluster]


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A placement, its keys named as in the tenants file. `version` is epoch.hlc.region.

    Of a replicated one also who made this version (`by`) and `why`; `takeover`: outside the home region.
    """

    tenant: str
    home: str
    standby: list[str]
    failover: str
    hosts: list[str]
    public: dict[str, str]
    misroute: str | None
    state: str
    cluster: str | None
    labels: dict[str, str]
    partition: str
    version: str | None
    by: str
    why: str
    takeover: bool


class Tenants(msgspec.Struct, frozen=True, kw_only=True):
    """A page in order of id; `next` is the `after` of the following page, null on the last."""

    tenants: list[Tenant]
    next: str | None


class RuleStep(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that was tried, and what came of it."""

    rule: str
    outcome: str


class Explained(Explanation, frozen=True, kw_only=True):
    """What would happen to a request, and which rule decides; `landbridge explain --json` prints the same."""

    steps: tuple[RuleStep, ...]  # type: ignore[assignment]  # a pair is an array in JSON; people read names


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration that runs, in units of seconds and bytes; secrets are `***`."""

    generation: int
    config: dict[str, Any]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A change that the supervisor was asked for: `status` shows how it goes. `workers` are those of that moment."""

    asked: str
    actor: str
    reason: str
    workers: tuple[WorkerProcess, ...]
