"""The external redirect: a 307 to the tenant's home region, which keeps method and body (RFC 9110, 15.4.8)."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Respond


class RedirectFilter:
    """Takes no options."""

    name = "redirect"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")

    def __call__(self, exchange: Exchange) -> Answer:
        decision = exchange.decision
        assert decision is not None
        assert decision.location
        # no-store: the map may move the tenant back, and a cached 307 would then send clients the wrong way
        return Respond(307, ((b"Location", decision.location), (b"Cache-Control", b"no-store")))
