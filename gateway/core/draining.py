"""Whom a drain of this region would leave behind: tenants that no other region is there for. Pure."""

from __future__ import annotations

from gateway.core.placement import Failover, Placement, State
from gateway.core.routing import can_carry, can_serve
from gateway.core.view import Ability, View


def is_stranded(placement: Placement, view: View) -> bool:
    """Whether this tenant is served here, and some of its requests would have no other region to go to.

    Another region is there for it when it is home or stands by, is known to be able, and is neither drained nor still
    coming back; a standby also has to be one without anybody moving the tenant: by `failover: all` or failover mode.
    """
    if placement.state is not State.ACTIVE:
        return False
    here, home = view.region, placement.home
    if home != here and _takes(placement, home, view):
        return False
    covered = placement.failover is Failover.ALL
    for region in placement.standby:
        if region not in (here, home) and (covered or region in view.takes_over) and _takes(placement, region, view):
            return False
    stands_by = here in placement.standby and (placement.failover is not Failover.MANUAL or here in view.takes_over)
    return (home == here or stands_by) and any(can_serve(view, name) for name in _clusters(placement, view))


def _takes(placement: Placement, region: str, view: View) -> bool:
    if region not in view.regions or not can_carry(view, region):
        return False
    return all(
        view.ability(region, name) is Ability.ABLE and view.share(region, name) >= 1.0
        for name in _clusters(placement, view)
    )


def _clusters(placement: Placement, view: View) -> frozenset[str]:
    """Every cluster that this tenant's requests may go to."""
    if placement.cluster is not None:
        return frozenset((placement.cluster,))
    return frozenset(route.cluster for route in view.routes)
