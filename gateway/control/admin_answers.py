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


class RegionSwitch(msgspec.Struct, frozen=True, kw_only=True):
    """A region-wide switch: `value` is standby or all (failover-mode), requests a second (max-traffic) or on (drain),
    null while it is off. `ends_in_s`: what is left of it, null without an end.
    """

    switch: str
    value: str | None
    by: str
    why: str
    since: str | None
    until: str | None
    ends_in_s: float | None


class RegionSwitches(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. `shares`: this region's clusters that do not take everybody who could go elsewhere. `problem`: why
    the region's Redis cannot be asked; `everywhere`, of a change: whether it is in that Redis (null: there is none).
    """

    region: str
    switches: list[RegionSwitch]
    shares: dict[str, float]
    problem: str | None
    everywhere: bool | None = None


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


class LastLag(msgspec.Struct, frozen=True, kw_only=True):
    """What a replicator last said of a peer, `age_s` ago."""

    state: str
    lag_records: int
    lag_s: float
    age_s: float
    at: str


class PeerLag(msgspec.Struct, frozen=True, kw_only=True):
    """How far this region is behind the log of another one.

    `state` is following, retrying, resyncing, unreachable, or unknown where nobody has said anything lately; then the
    lag is null, and `last` has what was known.
    """

    region: str
    state: str
    reason: str
    offset: str | None = None
    head: str | None = None
    lag_records: int | None = None
    lag_s: float | None = None
    retries: int = 0
    conflicts: int = 0
    holder: str = ""
    last: LastLag | None = None


class DriftCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many programs and configurations run besides the one that should, over all live gateways of all regions."""

    program: int
    config: int


class WaitingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record that names a region that is not configured here: the tenant's last one goes on deciding."""

    tenant: str
    home: str
    standby: list[str]
    version: str


class ContestedHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that several tenants claim. `tenant` claimed it first, and has it."""

    host: str
    tenant: str
    others: list[str]


class ReplicationState(msgspec.Struct, frozen=True, kw_only=True):
    """This region's Redis and the others'. `offset` is how far its feed is followed here, `head` where it ends.

    `checked_s` is since it was last read; `waiting` and `contested` have a hundred at most.
    """

    redis: str
    connected: bool
    problem: str | None
    checked_s: float | None
    offset: str | None
    head: str | None
    behind: int | None
    complete: bool
    records: int
    peers: list[PeerLag]
    dead_letters: int
    drift: DriftCount
    waiting: list[WaitingRecord]
    contested: list[ContestedHost]


class MapState(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant map, and how its source stands to it. `file` is where that is: a file, or a Redis without password."""

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
    replication: ReplicationState | None


class KeySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where keys of tokens come from: how many are known, why it cannot be asked now, and since when they are so old.

    `age_s` is null until it answered once in this control's life.
    """

    source: str
    keys: int
    failing: str | None
    age_s: float | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway at a glance. `ready` is what `/readyz` says; `isolated`: no other region is heard of. `switches` are
    the region-wide ones that are on.
    """

    region: str
    fleet: str
    version: str
    uptime_s: float
    draining: bool
    ready: bool
    isolated: bool
    pids: Pids
    restarts: Restarts
    replacements: Replacements
    config: ConfigState
    map: MapState
    filters: FilterState
    switches: list[RegionSwitch]
    token_keys: list[KeySource]


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


class Discovered(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint `dns://` or `srv://` as written, and how many it stands for. `age_s`: since name servers last knew
    it, `ttl_s`: what they said then (null: not since control started). `failing`: what is wrong with the last answer
    (nxdomain, servfail, timeout, empty, failed), null: nothing; the last good answer stands.
    """

    name: str
    endpoints: int
    age_s: float | None
    ttl_s: float | None
    failing: str | None
    reason: str


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`name` as written, `address` as dialled; `reason` says why it is down. The lowest `priority` value with an
    endpoint that can be used takes all requests; weights are compared within it.
    """

    name: str
    address: str
    up: bool
    draining: bool
    reason: str
    priority: int
    weight: int


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """`region` is set for the gateways of another one."""

    name: str
    region: str | None
    able: bool
    health: HealthSettings | None
    endpoints: list[Endpoint]
    discovered: list[Discovered]


class Clusters(msgspec.Struct, frozen=True, kw_only=True):
    clusters: list[Cluster]


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway, as it says itself. `live`: it was seen within ten seconds. `config` is SHARED.REGIONAL: what all
    regions, and what all gateways of one region should have alike. `applied`: region to the offset of its log up to
    which all workers use it; `behind`: writes of all regions that they do not use yet, null where it cannot be told.
    """

    region: str
    id: str
    here: bool
    program: str
    config: str
    live: bool
    seen_s: float
    feed: str | None
    applied: dict[str, str]
    behind: int | None


class Gateways(msgspec.Struct, frozen=True, kw_only=True):
    """All gateways of all regions; none for a map that is not replicated."""

    gateways: list[Gateway]


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A placement, its keys named as in the tenants file. `version` is epoch.hlc.region.

    Of a replicated one also who made this version (`by`) and `why`; `takeover`: outside the home region. It was written
    in the region `written_in` at `written`, and came here at `arrived`. `waiting` is a newer version that does not
    count, because it names a region that is not configured here.
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
    limits: dict[str, Any] | None
    allow: list[str]
    deny: list[str]
    partition: str
    version: str | None
    by: str
    why: str
    takeover: bool
    written_in: str | None
    written: str | None
    arrived: str | None
    waiting: str | None


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


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster's breaker, or one tenant's at it: `state` is the worst of all workers, `workers` those that are not
    closed by slot. `trips` in a row; `ends_in_s` until the state ends by time; `reason` is an operator's. `only`: the
    cluster is asked by nobody but this tenant, so that others are not refused.
    """

    cluster: str
    tenant: str | None
    state: str
    workers: dict[str, str]
    trips: int
    since_s: float | None
    ends_in_s: float | None
    reason: str | None
    only: str | None


class Ejected(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that some workers (by slot) leave out: why, and when the last of them takes it in again."""

    cluster: str
    endpoint: str
    workers: list[int]
    ends_in_s: float
    reason: str


class Breakers(msgspec.Struct, frozen=True, kw_only=True):
    """Every cluster's own breaker, those of tenants that are not closed, and endpoints that are left out."""

    breakers: list[Breaker]
    ejected: list[Ejected]


class HotLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that refuses, or is about to, somewhere in the region. `scope`: client, tenant, route, gateway; `limit`:
    rate or concurrency. `demand` on this gateway and its `share`, both as parts of the whole limit; `refused` requests
    by this gateway since it is hot.
    """

    scope: str
    name: str | None
    limit: str
    demand: float
    share: float
    refused: int


class Throttles(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that are shared out by demand, most refused first; all others are shared out equally.

    `shared_by`: region (its Redis, `gateways` of it seen, whose word is `age_s` old) or workers (of this gateway).
    """

    gateways: int
    workers: int
    shared_by: str
    age_s: float | None
    problem: str | None
    hot: list[HotLimit]


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's limit of requests in hand for one cluster, by its latency of now and what that is unqueued."""

    cluster: str
    worker: int
    limit: int
    in_hand: int
    latency_ms: float
    unqueued_ms: float


class Shed(msgspec.Struct, frozen=True, kw_only=True, rename={"priority": "class"}):
    """Requests refused since the counters began; with `shadow` those that would have been."""

    priority: str
    reason: str
    requests: int
    shadow: bool


class Shedding(msgspec.Struct, frozen=True, kw_only=True):
    """Whether load is shed, by which limits, and what was."""

    on: bool
    shadow: bool
    clusters: list[Concurrency]
    shed: list[Shed]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A change that the supervisor was asked for: `status` shows how it goes. `workers` are those of that moment."""

    asked: str
    actor: str
    reason: str
    workers: tuple[WorkerProcess, ...]
