"""Where does this tenant live, and what follows from it: serve, carry, redirect or refuse (DESIGN 5.3 and 5.4)."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer
from gateway.core.hop import Hop, decide_hop, sign_verdict
from gateway.core.routing import Kind, decide

_ENDPOINTS = {
    Kind.LOCAL: "forward",
    Kind.INTERNAL_REDIRECT: "forward",
    Kind.EXTERNAL_REDIRECT: "redirect",
    Kind.HOLD: "reply",
    Kind.REJECT: "reply",
}


class RegionFilter:
    """Takes no options: the rules are the design's."""

    name = "region"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")

    def __call__(self, exchange: Exchange) -> Answer | None:
        services = exchange.services
        placement = services.placement(exchange.tenant)
        exchange.placement = placement
        if exchange.hop is not None:
            self._judge(exchange, exchange.hop)
            return None
        resolved = exchange.resolved
        assert resolved is not None
        decision = decide(
            exchange.request, resolved, placement, exchange.view, services.map_complete(), None, exchange.scheme
        )
        exchange.decision = decision
        exchange.reason = decision.reason
        exchange.endpoint = "forward" if decision.kind is Kind.LOCAL else _ENDPOINTS[decision.kind]
        if placement is not None:
            exchange.version = placement.version
            exchange.home = placement.home
        else:
            exchange.home = decision.region
        return None

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
        exchange.endpoint = _ENDPOINTS[judged.decision.kind]
        if judged.verdict is not None:
            exchange.verdict = sign_verdict(view.hop_keys, hop.sig, judged.verdict)
        if judged.detail:
            raise GatewayError(judged.decision.flag, judged.detail)
