"""Forward: to the application here, or over a signed hop to another region's gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Forward
from gateway.core.hop import sign, signature_of
from gateway.core.placement import NO_VERSION, Version
from gateway.core.routing import Kind, unknown_placement

TENANTS_MAX: Final = 4096
"""Tenants whose fields are remembered: about 1 MiB; then the memory starts afresh."""

_LOCAL: Final = Kind.LOCAL
"""Bound once: looking an enum member up by its class costs more than the comparison it is for."""


class ForwardFilter:
    """Takes no options."""

    name = "forward"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")
        self._known: dict[tuple[str, Version, str, str], bytes] = {}

    def __call__(self, exchange: Exchange) -> Answer:
        decision = exchange.decision
        assert decision is not None
        if not exchange.request.host_field:  # HTTP/1.0 needs no Host, what we speak to the other side does
            exchange.request.host_field = exchange.view.token.encode()
            exchange.forwarded.append(b"Host: " + exchange.request.host_field)
        if decision.kind is _LOCAL:
            if exchange.view.max_traffic is not None and not exchange.services.takes_on(decision.reason):
                raise GatewayError("shed", f"region {exchange.view.region} takes no more traffic: max-traffic is set")
            # what the application may rely on: no client can have sent these (DESIGN 5.5)
            hop = exchange.hop
            key = (exchange.tenant, exchange.version, exchange.home, "" if hop is None else hop.source)
            exchange.destination = self._known.get(key) or self._remember(key, exchange.view.region)
        else:
            exchange.destination = b"Gateway-Hop: " + self._hop(exchange, decision.region, decision.reason)
        return Forward(decision.cluster, decision.reason)

    def _remember(self, key: tuple[str, Version, str, str], region: str) -> bytes:
        """The same for all of a tenant's requests, until its record changes."""
        if len(self._known) >= TENANTS_MAX:
            self._known.clear()
        tenant, version, home, source = key
        hops = f"{source}>{region}" if source else region
        epoch = f"X-Tenant-Epoch: {version.epoch}\r\n" if version != NO_VERSION else ""
        fields = self._known[key] = (
            f"X-Tenant: {tenant}\r\n{epoch}X-Tenant-Home: {home}\r\n"
            f"X-Gateway-Region: {region}\r\nX-Gateway-Hops: {hops}"
        ).encode("ascii")
        return fields

    def _hop(self, exchange: Exchange, to: str, reason: str) -> bytes:
        """The signature covers what the other side acts on: method, target, Host, client and request id."""
        view, request, placement = exchange.view, exchange.request, exchange.placement
        timeout_s = view.clusters[f"region:{to}"].timeouts.response
        if exchange.timeout_s:
            timeout_s = min(timeout_s, exchange.timeout_s)
        field = sign(
            view,
            placement or unknown_placement(exchange.tenant, exchange.home),
            to=to,
            reason=reason,
            deadline_s=timeout_s - exchange.waited_s,
            ts=exchange.wall_ms() // 1000,
            method=request.method,
            target=request.target,
            host=request.host_field,
            forwarded_for=exchange.forwarded_for,
            request_id=exchange.request_id.encode("latin-1"),
            recorded=placement is not None and exchange.recorded,
            priority="" if exchange.priority is None else exchange.priority.value,
        )
        exchange.hop_signature = signature_of(field)
        return field
