"""The gateway's own answer to what routing rejected: the flag's problem document."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer


class ReplyFilter:
    """Takes no options."""

    name = "reply"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")

    def __call__(self, exchange: Exchange) -> Answer:
        decision = exchange.decision
        if decision is None or not decision.flag:
            raise GatewayError("internal_error")
        raise GatewayError(decision.flag, decision.detail)
