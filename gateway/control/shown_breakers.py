"""The breakers as the admin API shows them, and an operator's word about one as it is asked for."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.control import admin_answers as answers
from gateway.control.breakers import Forced, Row
from gateway.control.facts import Facts
from gateway.core.placement import TENANT_ID
from gateway.settings.units import duration

LASTS_MAX_S: Final = 7 * 86400.0
"""Longer is no measure against an outage but a configuration."""
_STATES: Final = ("open", "closed", "auto")


class _Body(msgspec.Struct, forbid_unknown_fields=True, rename={"lasts": "for"}):
    lasts: str = ""
    reason: str = ""


class Wanted(msgspec.Struct, frozen=True):
    """`state`: open, closed or auto (its own judgement again); for `lasts_s` seconds."""

    cluster: str
    tenant: str
    state: str
    lasts_s: float


def breakers(facts: Facts, now: float) -> answers.Breakers:
    """Every cluster's own breaker, and those of tenants that are not closed in some worker."""
    table = facts.breakers
    keys = [(name, "") for name in table.clusters]
    keys += sorted(key for key in {*table.rows, *table.forced} if key[1])
    found = []
    for key in keys:
        rows = table.rows.get(key, {})
        state = table.state(key)
        worst = next((row for row in rows.values() if row.state is state), None)
        workers = {str(peer.hello.slot): row.state.value for peer, row in rows.items() if peer.hello is not None}
        found.append(_shown(key, state.value, worst, table.forced.get(key), workers, now))
    return answers.Breakers(breakers=found, ejected=_ejected(facts, now))


def _ejected(facts: Facts, now: float) -> list[answers.Ejected]:
    return [
        answers.Ejected(
            cluster=cluster,
            endpoint=endpoint,
            workers=sorted(peer.hello.slot for peer in outs if peer.hello is not None),
            ends_in_s=round(max(0.0, max(out.ends for out in outs.values()) - now), 1),
            reason=next(iter(outs.values())).why,
        )
        for (cluster, endpoint), outs in sorted(facts.breakers.ejected.items())
    ]


def _shown(
    key: tuple[str, str], state: str, row: Row | None, forced: Forced | None, workers: dict[str, str], now: float
) -> answers.Breaker:
    ends = forced.ends if forced is not None else row.ends if row is not None else 0.0
    return answers.Breaker(
        cluster=key[0],
        tenant=key[1] or None,
        state=state,
        workers=workers,
        trips=0 if row is None else row.trips,
        since_s=None if row is None else round(now - row.since, 1),
        ends_in_s=round(max(0.0, ends - now), 1) if ends else None,
        reason=(row.reason if row is not None else "") or None,
        only=(row.only if row is not None else "") or None,
    )


def wanted(cluster: str, tenant: str, state: str, body: bytes, facts: Facts) -> Wanted:
    """What a request's path and body ask for. Raises ValueError for what cannot be done."""
    try:
        asked = msgspec.json.decode(body or b"{}", type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f'the body: {error}; expected {{"for": "10m", "reason": "..."}}') from None
    if cluster not in facts.breakers.clusters:
        known = ", ".join(facts.breakers.clusters) or "there is none"
        raise ValueError(f"cluster: expected one that has a breaker ({known}), got {cluster!r}")
    if tenant and not TENANT_ID.match(tenant):
        raise ValueError(f"tenant: expected a tenant's id, got {tenant!r}")
    if state not in _STATES:
        raise ValueError(f"state: expected {', '.join(_STATES[:-1])} or {_STATES[-1]}, got {state!r}")
    if state == "auto":
        return Wanted(cluster, tenant, state, 0.0)
    try:
        lasts_s = duration(asked.lasts)
    except ValueError:
        lasts_s = 0.0
    if not 0 < lasts_s <= LASTS_MAX_S:
        raise ValueError(f"for: expected a duration such as 10m, up to 168h, got {asked.lasts!r}")
    return Wanted(cluster, tenant, state, lasts_s)
