"""What the admin API shows of a replicated map, as values of `admin_answers`. It only reads, and waits for no Redis.

What nobody has said lately is not known: then the lag is null, and what was said last stands beside it with its age.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from gateway.control import admin_answers as answers
from gateway.control.facts import Facts
from gateway.control.registry import LIVE_MS, Replication, behind, drift
from gateway.control.replication.region_map import GatewayRow, PeerState
from gateway.core.placement import Placement
from gateway.core.replication import Offset, parse_offset

NAMED_MAX: Final = 100
"""Records that wait, and hosts that are contested, in one answer: who has more of them has one cause to look for."""

UNKNOWN: Final = "unknown"


def replication(facts: Facts, now: float) -> answers.ReplicationState | None:
    """None for a map that is not replicated. Raises StoreError."""
    known = facts.tenants.replication()
    if known is None:
        return None
    different = drift(known.gateways)
    head, offset = parse_offset(known.head), parse_offset(known.offset)
    waiting = facts.writer.waiting(limit=NAMED_MAX)
    contested = facts.writer.claimed_twice(NAMED_MAX)
    return answers.ReplicationState(
        redis=known.url,
        connected=known.connected,
        problem=known.problem or None,
        checked_s=None if known.at is None else round(now - known.at, 3),
        offset=known.offset or None,
        head=known.head or None,
        behind=_between(offset, head) if known.connected else None,
        complete=known.complete,
        records=known.records,
        peers=[_peer(known, peer, state, now) for peer, state in known.peers.items()],
        dead_letters=known.dead_letters,
        drift=answers.DriftCount(program=different.program, config=different.config),
        waiting=[_waiting(placement) for placement in waiting],
        contested=[answers.ContestedHost(host=c.host, tenant=c.winner, others=list(c.others)) for c in contested],
    )


def _between(offset: Offset | None, head: Offset | None) -> int | None:
    if offset is None or head is None or offset.log_id != head.log_id:
        return None
    return max(0, head.seq - offset.seq)


def _peer(known: Replication, peer: str, state: PeerState | None, now: float) -> answers.PeerLag:
    said = known.said(peer)
    if state is None:
        return answers.PeerLag(region=peer, state=UNKNOWN, reason="no replicator has said anything of it")
    since_read = 0.0 if known.at is None else max(0.0, now - known.at)
    age_s = max(0.0, (known.clock_ms - state.at_ms) / 1000) + (0.0 if known.connected else since_read)
    last = answers.LastLag(
        state=state.state,
        lag_records=state.lag_records,
        lag_s=state.lag_s,
        age_s=round(age_s, 3),
        at=time_of(state.at_ms),
    )
    reason = state.reason
    if said is None:
        reason = "the Redis here cannot be read" if not known.connected else "no replicator runs here"
    return answers.PeerLag(
        region=peer,
        state=UNKNOWN if said is None else said.state,
        reason=reason,
        offset=state.offset or None,
        head=state.head or None,
        lag_records=None if said is None else said.lag_records,
        lag_s=None if said is None else said.lag_s,
        retries=state.retries,
        conflicts=state.conflicts,
        holder=state.holder,
        last=last,
    )


def _waiting(placement: Placement) -> answers.WaitingRecord:
    return answers.WaitingRecord(
        tenant=placement.tenant,
        home=placement.home,
        standby=list(placement.standby),
        version=str(placement.version),
    )


def gateways(facts: Facts) -> answers.Gateways:
    """All gateways of all regions that this region's Redis knows; none for a map that is not replicated."""
    known = facts.tenants.replication()
    if known is None:
        return answers.Gateways(gateways=[])
    return answers.Gateways(gateways=[_gateway(facts.settings.region, known, row) for row in known.gateways])


def _gateway(region: str, known: Replication, row: GatewayRow) -> answers.Gateway:
    return answers.Gateway(
        region=row.region,
        id=row.id,
        here=row.region == region and row.id == known.id,
        program=row.program,
        config=row.config,
        live=known.connected and row.age_ms <= LIVE_MS,
        seen_s=row.age_ms / 1000,
        feed=row.feed or None,
        applied=dict(row.applied),
        behind=behind(row, known.heads),
    )


def time_of(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
