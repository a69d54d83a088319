"""Whose request is it? The tenant by Host, header, path, query or cookie; on a hop, the tenant that the hop names.

The probes are answered here, because what decides about them is whether the request names a tenant at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.client import parse_address
from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Respond
from gateway.core.http1.fields import Seen
from gateway.core.tenancy import Resolved, Source, resolve
from gateway.core.view import HeaderResolver

_PROBED = frozenset((b"GET", b"HEAD"))
_PLAIN = ((b"Content-Type", b"text/plain; charset=utf-8"), (b"Cache-Control", b"no-store"))


class TenantFilter:
    """Takes no options: the resolvers are `tenancy.resolvers`."""

    name = "tenant"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options; see tenancy.resolvers")

    def __call__(self, exchange: Exchange) -> Answer | None:
        hop = exchange.hop
        if hop is not None:
            exchange.tenant = hop.tenant
            exchange.resolved = Resolved(hop.tenant, Source.HOP, "hop")
            return None
        request, view, services = exchange.request, exchange.view, exchange.services
        target = request.target
        probe = target == view.probes.live or target == view.probes.ready
        if probe and request.method in _PROBED:
            if parse_address(request.host) is not None:
                return _probe(exchange)
            return self._probe_or_resolve(exchange)
        resolved = resolve(
            request, view, services.host_owner, None, services.map_complete(), services.memo, services.tokens
        )
        self._take(exchange, resolved)
        return None

    def _take(self, exchange: Exchange, resolved: Resolved) -> None:
        """The resolver that answered vouches for its field; the others' fields are a client's word, and go."""
        exchange.resolved = resolved
        exchange.tenant = resolved.tenant
        if not exchange.request.seen & Seen.RESOLVER:
            return
        for resolver in exchange.view.resolvers:
            if type(resolver) is HeaderResolver and resolver.name != resolved.field:
                exchange.request.drop(resolver.name)

    def _probe_or_resolve(self, exchange: Exchange) -> Answer | None:
        """With a host name in Host, a probe's path is the application's, unless nothing but `fixed:` answers."""
        request, view, services = exchange.request, exchange.view, exchange.services
        try:
            resolved = resolve(
                request, view, services.host_owner, None, services.map_complete(), services.memo, services.tokens
            )
        except GatewayError as error:
            if error.flag.name in ("tenant_missing", "map_unavailable"):
                return _probe(exchange)
            raise
        if resolved.source is Source.FIXED:
            return _probe(exchange)
        self._take(exchange, resolved)
        return None


def _probe(exchange: Exchange) -> Respond:
    exchange.reason = "probe"
    if exchange.request.target == exchange.view.probes.live or exchange.services.ready():
        return Respond(200, _PLAIN, b"ok\n")
    return Respond(503, (*_PLAIN, (b"Retry-After", b"1")), b"not ready\n")
