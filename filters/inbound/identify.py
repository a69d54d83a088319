"""Who asks? The client's address, the request's id, the hop that carried it; and nothing that only claims to be.

It comes first because everything after it believes what it leaves. Loops are looked for before any signature: `Via`
is readable also when keys or clocks are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

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
from gateway.core.view import Network

PEERS_MAX: Final = 4096
"""Addresses remembered: the load balancer's nodes are a handful, clients without one in front are many."""

_FORWARDED: Final = (b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-host")
_JSON: Final = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))


class _Peer(NamedTuple):
    """What is known of an address that connects: whether to believe it, and what to write where it is the client."""

    trusted: bool
    client: str
    forwarded_for: bytes


class IdentifyFilter:
    """Takes no options: trust is `trusted_proxies`, keys are `hop_keys`."""

    name = "identify"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options; see trusted_proxies and hop_keys")
        self._networks: tuple[Network, ...] = ()
        self._peers: dict[str, _Peer] = {}
        self._known: dict[tuple[str, int, bytes], bytes] = {}

    def __call__(self, exchange: Exchange) -> Answer | None:
        request, view = exchange.request, exchange.view
        if request.seen & Seen.VIA and loops(request.values(b"via"), view.token):
            exchange.request_id = exchange.services.random_id()
            raise GatewayError("loop", f"Via already names {view.token}")
        if exchange.listener == "hop":
            return self._hop(exchange)
        peer = self._peers.get(exchange.peer)
        if peer is None or self._networks is not view.trusted_proxies:
            peer = self._meet(exchange.peer, view.trusted_proxies)
        exchange.client, exchange.forwarded_for = peer.client, peer.forwarded_for
        request_id = ""
        if request.seen & Seen.REQUEST_ID:
            request_id = kept_request_id(request.values(b"x-request-id"))
        exchange.request_id = request_id = request_id or exchange.services.random_id()
        if peer.trusted and request.seen & Seen.OWN:
            fields = self._believe(exchange)
        else:
            key = (exchange.peer, exchange.local_port, request.host_field)
            known = self._known.get(key)
            fields = known if known is not None else self._remember(exchange, key)
        exchange.forwarded.append(fields + request_id.encode("ascii"))
        return None

    def _remember(self, exchange: Exchange, key: tuple[str, int, bytes]) -> bytes:
        """The fields of a client that is who connected: they are the same for all its requests to this Host."""
        if len(self._known) >= PEERS_MAX:
            self._known.clear()
        fields = self._known[key] = _fields(exchange, "http", exchange.local_port)
        return fields

    def _meet(self, address: str, networks: tuple[Network, ...]) -> _Peer:
        if self._networks is not networks or len(self._peers) >= PEERS_MAX:
            self._networks = networks
            self._peers.clear()
            self._known.clear()
        trusted = bool(networks) and is_trusted(address, networks)
        client = client_address(address, (), networks, trusted)
        peer = self._peers[address] = _Peer(trusted, client.address, client.forwarded_for)
        return peer

    def _believe(self, exchange: Exchange) -> bytes:
        """What a trusted proxy says of its client."""
        request = exchange.request
        client = client_address(exchange.peer, request.values(b"x-forwarded-for"), self._networks, True)
        exchange.client, exchange.forwarded_for = client.address, client.forwarded_for
        protos = request.values(b"x-forwarded-proto")
        proto = forwarded_proto(protos, True)
        if protos:
            exchange.scheme = proto
        _carry(exchange, (b"x-amzn-trace-id",))
        port = forwarded_port(request.values(b"x-forwarded-port"), True, exchange.local_port)
        return _fields(exchange, proto, port)

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
        _carry(exchange, (*_FORWARDED, b"x-amzn-trace-id"))
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


def _carry(exchange: Exchange, names: tuple[bytes, ...]) -> None:
    """Pass on lines that were taken out of the client's request, as they came."""
    exchange.forwarded.extend(field.line for field in exchange.request.fields if field.name in names)
