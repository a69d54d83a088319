"""Fields that every response carries: `Via` (RFC 9110, 7.6.3) and the request's id."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.exchange import Exchange


class HeadersFilter:
    """Takes no options."""

    name = "headers"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")

    def __call__(self, exchange: Exchange) -> None:
        response = exchange.response
        assert response is not None
        response.added.append(
            f"Via: 1.1 {exchange.view.token}\r\nX-Request-Id: {exchange.request_id}".encode("latin-1")
        )
