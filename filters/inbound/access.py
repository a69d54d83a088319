"""May this client's address send such a request? The lists of its route and of its tenant (`allow`, `deny`).

It stands after `region`, because the tenant's list is in its record; a probe was answered before. Every gateway that a
request passes asks its own configuration and its own record, about the client that the entry gateway determined: a
hop brings that address signed. So the entry refuses at once what it knows to be refused, and the region that serves
never relies on another one's lists being as new as its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.addresses import AddressList, access_list
from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer
from gateway.core.placement import Placement
from gateway.core.view import View

TENANTS_MAX: Final = 4096
"""Tenants whose list is kept, for as long as their record does not change."""


class AccessFilter:
    """Takes no options: the lists are `routes[].allow`, `routes[].deny` and those of tenants."""

    name = "access"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options; see routes[].allow and routes[].deny")
        self._view: View | None = None
        self._has_routes = False
        self._tenants: dict[str, tuple[Placement, AddressList | None]] = {}

    def __call__(self, exchange: Exchange) -> Answer | None:
        view = exchange.view
        if view is not self._view:
            self._view = view
            self._has_routes = any(route.access is not None for route in view.routes)
        if self._has_routes:
            self._ask_route(exchange)
        placement = exchange.placement
        if placement is not None and (placement.allow or placement.deny):
            self._ask_tenant(exchange, placement)
        return None

    def _ask_route(self, exchange: Exchange) -> None:
        """The longest prefix alone, as for clusters: a narrower route says for itself who may."""
        target = exchange.request.target
        for route in exchange.view.routes:
            if target.startswith(route.prefix):
                if route.access is not None and not route.access.permits(exchange.client):
                    _refuse(exchange, "route")
                return

    def _ask_tenant(self, exchange: Exchange, placement: Placement) -> None:
        known = self._tenants.get(exchange.tenant)
        if known is None or known[0] is not placement:
            if len(self._tenants) >= TENANTS_MAX:
                self._tenants.clear()
            known = self._tenants[exchange.tenant] = placement, access_list(placement.allow, placement.deny)
        if known[1] is not None and not known[1].permits(exchange.client):
            _refuse(exchange, "tenant")


def _refuse(exchange: Exchange, scope: str) -> None:
    exchange.services.count_denied(scope)
    raise GatewayError("address_denied", f"by the address list of this {scope}")
