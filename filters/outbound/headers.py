"""Fields that every response carries: `Via` (RFC 9110, 7.6.3) and the request's id."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.exchange import Exchange
from gateway.core.limits import shown_fields
from gateway.core.view import View


class HeadersFilter:
    """Takes no options."""

    name = "headers"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")
        self._view: View | None = None
        self._fields = b""

    def __call__(self, exchange: Exchange) -> None:
        response = exchange.response
        assert response is not None
        if exchange.view is not self._view:
            self._view = exchange.view
            self._fields = f"Via: 1.1 {exchange.view.token}\r\nX-Request-Id: ".encode("ascii")
        response.added.append(self._fields + exchange.request_id.encode("ascii"))
        if exchange.limited is not None:
            response.added.append(shown_fields(exchange.limited, exchange.started))
