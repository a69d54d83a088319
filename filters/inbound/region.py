"""Where does this tenant live, and what follows from it: serve, carry, redirect or refuse (DESIGN 5.3 and 5.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer
from gateway.core.hop import Hop, decide_hop, sign_verdict
from gateway.core.placement import Placement
from gateway.core.ramp import place
from gateway.core.routing import ENDPOINTS, Decision, Kind, decide
from gateway.core.view import View

TENANTS_MAX: Final = 4096
"""Tenants whose decision is remembered, for as long as neither their record nor the View changes."""

_LOCAL: Final = Kind.LOCAL
"""Bound once: looking an enum member up by its class costs more than the comparison it is for."""


class RegionFilter:
    """Takes no options: the rules are the design's."""

    name = "region"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")
        self._known: dict[str, tuple[Placement, View, Decision]] = {}

    def __call__(self, exchange: Exchange) -> Answer | None:
        services = exchange.services
        view = exchange.view
        placement = services.placement(exchange.tenant)
        if exchange.hop is not None:
            exchange.placement = placement
            self._judge(exchange, exchange.hop)
            return None
        if services.overrides.items:  # another region's gateway knew better, and the map has not caught up
            placement = services.overrides.over(exchange.tenant, placement, view.unknown, exchange.started)
        exchange.placement = placement
        known = self._known.get(exchange.tenant)
        if known is not None and known[0] is placement and known[1] is view:
            decision = known[2]
        else:
            decision = self._decide(exchange, placement)
        exchange.decision = decision
        exchange.reason = decision.reason
        exchange.endpoint = "forward" if decision.kind is _LOCAL else ENDPOINTS[decision.kind]
        if placement is not None:
            exchange.version = placement.version
            exchange.home = placement.home
        else:
            exchange.home = decision.region
        return None

    def _decide(self, exchange: Exchange, placement: Placement | None) -> Decision:
        """By the rules; remembered where they look at nothing of the request: served here, by a cluster of its own.

        A region that is cut off remembers nothing: `partition: read_only` looks at the method. Nor is it while the
        cluster is coming back or drained, which looks at the client.
        """
        view, resolved = exchange.view, exchange.resolved
        assert resolved is not None
        complete = exchange.services.map_complete()
        at = place(exchange.tenant, exchange.client) if view.ramps else 0.0
        decision = decide(exchange.request, resolved, placement, view, complete, None, exchange.scheme, at)
        if (
            placement is not None
            and decision.kind is Kind.LOCAL
            and placement.home == view.region
            and not view.isolated
            and view.clusters[decision.cluster].share >= 1.0
            and (placement.cluster is not None or len(view.routes) == 1)
        ):
            if len(self._known) >= TENANTS_MAX:
                self._known.clear()
            self._known[exchange.tenant] = placement, view, decision
        return decision

    def _judge(self, exchange: Exchange, hop: Hop) -> None:
        """A hop is served here or refused with what we know better; it is never sent on."""
        view = exchange.view
        judged = decide_hop(hop, exchange.placement, view, exchange.request)
        if judged.count:
            exchange.services.count_map(judged.count)
        exchange.decision = judged.decision
        exchange.reason = judged.decision.reason
        exchange.version = judged.version
        exchange.home = judged.home
        exchange.endpoint = ENDPOINTS[judged.decision.kind]
        if judged.verdict is not None:
            exchange.verdict = sign_verdict(view.hop_keys, hop.sig, judged.verdict)
        if judged.detail:
            raise GatewayError(judged.decision.flag, judged.detail)
