"""Who asks? The client's address, the request's id, the hop that carried it; and nothing that only claims to be.

It comes first because everything after it believes what it leaves. Loops are looked for before any signature: `Via`
is readable also when keys or clocks are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.client import (
    client_address,
    forwarded_port,
    forwarded_proto,
    hop_client,
    is_trusted,
    kept_request_id,
)
from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Respond
from gateway.core.hop import HopRejected, Reason, loops, sign_answer, verify
from gateway.core.http1.fields import Seen
from gateway.core.patience import client_timeout
from gateway.core.tokens import OIDC_FIELDS
from gateway.core.view import Network

PEERS_MAX: Final = 4096
"""Addresses remembered: the load balancer's nodes are a handful, clients without one in front are many."""

_VIA: Final = Seen.VIA
_REQUEST_ID: Final = Seen.REQUEST_ID
_TIMEOUT: Final = Seen.TIMEOUT
_OIDC: Final = Seen.OIDC
_FORWARDED: Final = (b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-host")
_AMAZON: Final = (b"x-amzn-trace-id", *OIDC_FIELDS)
_JSON: Final = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))


class IdentifyFilter:
    """Takes no options: trust is `trusted_proxies`, keys are `hop_keys`."""

    name = "identify"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options; see trusted_proxies and hop_keys")
        self._networks: tuple[Network, ...] = ()
        self._peers: dict[str, bool] = {}
        self._known: dict[tuple[str, int, bytes], tuple[str, bytes, bytes]] = {}

    def __call__(self, exchange: Exchange) -> Answer | None:
        request, view = exchange.request, exchange.view
        if request.seen & _VIA and loops(request.values(b"via"), view.token):
            exchange.request_id = exchange.services.random_id()
            raise GatewayError("loop", f"Via already names {view.token}")
        if exchange.listener == "hop":
            return self._hop(exchange)
        if request.seen & _TIMEOUT:
            exchange.timeout_s = client_timeout(request.values)
        request_id = ""
        if request.seen & _REQUEST_ID:
            request_id = kept_request_id(request.values(b"x-request-id"))
        exchange.request_id = request_id = request_id or exchange.services.random_id()
        if self._networks is not view.trusted_proxies:
            self._networks = view.trusted_proxies
            self._peers.clear()
            self._known.clear()
        key = (exchange.peer, exchange.local_port, request.host_field)
        known = self._known.get(key)
        if known is None:
            known = self._meet(exchange, key)
        elif request.seen & _OIDC:
            _forget_user(exchange)
        exchange.client, exchange.forwarded_for, fields = known
        exchange.forwarded.append(fields + request_id.encode("ascii"))
        return None

    def _meet(self, exchange: Exchange, key: tuple[str, int, bytes]) -> tuple[str, bytes, bytes]:
        """Client, `X-Forwarded-For` and fields. Of a client that is who connected they are remembered: they are the
        same for all its requests to this Host."""
        address = exchange.peer
        trusted = self._peers.get(address)
        if trusted is None:
            if len(self._peers) >= PEERS_MAX:
                self._peers.clear()
            trusted = self._peers[address] = bool(self._networks) and is_trusted(address, self._networks)
        if trusted and exchange.request.seen & Seen.OWN:
            return self._believe(exchange)
        client = client_address(address, (), self._networks, trusted)
        exchange.forwarded_for = client.forwarded_for
        if len(self._known) >= PEERS_MAX:
            self._known.clear()
        if exchange.request.seen & _OIDC:
            _forget_user(exchange)
        known = (client.address, client.forwarded_for, _fields(exchange, "http", exchange.local_port))
        if not trusted:
            self._known[key] = known
        return known

    def _believe(self, exchange: Exchange) -> tuple[str, bytes, bytes]:
        """What a trusted proxy says of its client."""
        request = exchange.request
        client = client_address(exchange.peer, request.values(b"x-forwarded-for"), self._networks, True)
        exchange.forwarded_for = client.forwarded_for
        protos = request.values(b"x-forwarded-proto")
        proto = forwarded_proto(protos, True)
        if protos:
            exchange.scheme = proto
        _carry(exchange, _AMAZON)
        port = forwarded_port(request.values(b"x-forwarded-port"), True, exchange.local_port)
        return client.address, client.forwarded_for, _fields(exchange, proto, port)

    def _hop(self, exchange: Exchange) -> Answer | None:
        """Another region's gateway, if its signature holds: then its word on the client stands."""
        request, view, services = exchange.request, exchange.view, exchange.services
        exchange.request_id = kept_request_id(request.values(b"x-request-id")) or services.random_id()
        try:
            hop = verify(request, view, exchange.wall_ms())
        except HopRejected as rejected:
            services.count_hop_rejected(rejected.reason.value)
            raise GatewayError("hop_rejected", f"no valid Gateway-Hop ({rejected.reason.value})") from None
        if hop.reason is Reason.PEER:
            exchange.reason = "peer"
            body = services.peer_answer()
            return Respond(200, (*_JSON, (b"Gateway-Verdict", sign_answer(view.hop_keys, hop.sig, body))), body)
        exchange.hop = hop
        values = request.values(b"x-forwarded-for")
        exchange.forwarded_for = b", ".join(values)
        exchange.client = hop_client(values) or exchange.peer
        exchange.forwarded.append(
            b"X-Forwarded-For: %b\r\nX-Request-Id: %b\r\nVia: 1.1 %b"
            % (exchange.forwarded_for, exchange.request_id.encode("ascii"), view.token.encode("ascii"))
        )
        _carry(exchange, (*_FORWARDED, *_AMAZON))
        return None


def _fields(exchange: Exchange, proto: str, port: int) -> bytes:
    """What we write about the client, up to the request's id, which comes last."""
    return (
        b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Port: %d\r\nX-Forwarded-Host: %b\r\n"
        b"Via: 1.1 %b\r\nX-Request-Id: "
    ) % (
        exchange.forwarded_for,
        proto.encode("ascii"),
        port,
        exchange.request.host_field,
        exchange.view.token.encode("ascii"),
    )


def _forget_user(exchange: Exchange) -> None:
    """Who is no trusted proxy has authenticated nobody: no resolver shall read what it says of a user.

    The lines never were among those to forward. `fields` may be the connection's memory too, so it is not changed.
    """
    exchange.request.fields = [field for field in exchange.request.fields if not field.seen & _OIDC]


def _carry(exchange: Exchange, names: tuple[bytes, ...]) -> None:
    """Pass on lines that were taken out of the client's request, as they came."""
    exchange.forwarded.extend(field.line for field in exchange.request.fields if field.name in names)
