"""Is there room for one more? Limits of the client, the tenant, the route and the gateway; 429 where there is none."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer


class ThrottleFilter:
    """Takes no options: the limits are `throttle`, `routes[].throttle`, and those in the tenants' records."""

    name = "throttle"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options; see throttle")

    def __call__(self, exchange: Exchange) -> Answer | None:
        placement = exchange.placement
        if exchange.view.throttle is None and (placement is None or placement.limits is None):
            return None
        if exchange.charged:
            return None
        refusal = exchange.services.limiter.admit(exchange)
        if refusal is None:
            return None
        exchange.refusal = refusal
        exchange.limited = None  # the refusal's fields say it
        exchange.reason = refusal.rule
        exchange.retry_after_s = refusal.retry_after_s
        raise GatewayError("throttled", refusal.detail)
