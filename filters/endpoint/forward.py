"""Forward: to the application here, or over a signed hop to another region's gateway."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Forward
from gateway.core.hop import sign, signature_of
from gateway.core.placement import NO_VERSION
from gateway.core.routing import Kind, unknown_placement


class ForwardFilter:
    """Takes no options."""

    name = "forward"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")

    def __call__(self, exchange: Exchange) -> Answer:
        decision = exchange.decision
        assert decision is not None
        if not exchange.request.host_field:  # HTTP/1.0 needs no Host, what we speak to the other side does
            exchange.request.host_field = exchange.view.token.encode()
            exchange.forwarded.append(b"Host: " + exchange.request.host_field)
        if decision.kind is Kind.LOCAL:
            exchange.forwarded.append(self._tenant_fields(exchange))
        else:
            exchange.forwarded.append(b"Gateway-Hop: " + self._hop(exchange, decision.region, decision.reason))
        return Forward(decision.cluster, decision.reason)

    def _tenant_fields(self, exchange: Exchange) -> bytes:
        """What the application may rely on: no client can have sent these (DESIGN 5.5)."""
        region, hop = exchange.view.region, exchange.hop
        hops = region if hop is None else f"{hop.source}>{region}"
        epoch = f"X-Tenant-Epoch: {exchange.version.epoch}\r\n" if exchange.version != NO_VERSION else ""
        return (
            f"X-Tenant: {exchange.tenant}\r\n{epoch}X-Tenant-Home: {exchange.home}\r\n"
            f"X-Gateway-Region: {region}\r\nX-Gateway-Hops: {hops}"
        ).encode("ascii")

    def _hop(self, exchange: Exchange, to: str, reason: str) -> bytes:
        """The signature covers what the other side acts on: method, target, Host, client and request id."""
        view, request, placement = exchange.view, exchange.request, exchange.placement
        cluster = view.clusters[f"region:{to}"]
        field = sign(
            view,
            placement or unknown_placement(exchange.tenant, exchange.home),
            to=to,
            reason=reason,
            deadline_s=cluster.timeouts.response,
            ts=exchange.wall_ms() // 1000,
            method=request.method,
            target=request.target,
            host=request.host_field,
            forwarded_for=exchange.forwarded_for,
            request_id=exchange.request_id.encode("latin-1"),
            recorded=placement is not None,
        )
        exchange.hop_signature = signature_of(field)
        return field
