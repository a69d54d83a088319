"""Who is the client, and what of its word is believed? Addresses, trust, and the `X-Forwarded-*` that we write.

Only a peer in `trusted_proxies` may speak for somebody else, and only as far to the left as the chain of trusted
addresses reaches. Everybody else is who connected, whatever their fields say. Pure: values in, values out; trust in a
peer is a function of its address and the configuration, so the caller asks once per connection.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.core.view import Network

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?\Z")
_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}\Z")

ADDRESS_TEXT_MAX: Final = 64
"""The longest address with brackets and port has 53 characters; a longer element is none."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Client(NamedTuple):
    """`address` as the log and the application see it; `forwarded_for` is the `X-Forwarded-For` to write."""

    address: str
    forwarded_for: bytes


@lru_cache(maxsize=8192)
def parse_address(text: str) -> Address | None:
    """The address in `text`, without port and brackets; None where it is none. Mapped IPv4 is IPv4.

    A zone (`fe80::1%eth0`) means something on one machine only: no address.
    """
    if len(text) > ADDRESS_TEXT_MAX or "%" in text:
        return None
    match = _BRACKETED.match(text) or _WITH_PORT.match(text)
    try:
        address = ipaddress.ip_address(match[1] if match else text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


def is_trusted(address: str, networks: Iterable[Network]) -> bool:
    """Whether `address` is in one of `networks`. What is no address (a Unix socket's peer) is not."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def client_address(
    peer: str, forwarded: Sequence[bytes], networks: Sequence[Network], trusted: bool | None = None
) -> Client:
    """The client behind `peer`, by the values of X-Forwarded-For in order, and what to write there.

    From a trusted peer the list is read from the right: the first address that is not trusted is the client, and what
    stands left of it is kept (an address without port and brackets). Where all are trusted the client is the leftmost.
    An element that is no address ends the search: then nothing is known but the peer. `trusted`: what `is_trusted`
    says of the peer, where the caller knows.
    """
    if trusted is None:
        trusted = is_trusted(peer, networks)
    if not (trusted and forwarded):
        return _just(peer)
    elements = [element.strip(" \t") for element in b",".join(forwarded).decode("latin-1").split(",")]
    elements = [element for element in elements if element]  # RFC 9110, 5.6.1: empty elements do not count
    client, at = "", 0
    for index in range(len(elements) - 1, -1, -1):
        address = parse_address(elements[index])
        if address is None:
            return _just(peer)
        client, at = str(address), index
        if not any(address in network for network in networks):
            break
    if not client:
        return _just(peer)
    return Client(client, ", ".join([*map(_bare, elements[:at]), client]).encode("latin-1"))


def hop_client(forwarded: Sequence[bytes]) -> str:
    """The client of a verified hop: the last element, which the entry gateway wrote. Empty when there is none."""
    return forwarded[-1].rpartition(b",")[2].strip(b" \t").decode("latin-1") if forwarded else ""


def forwarded_proto(values: Sequence[bytes], trusted: bool) -> str:
    """`https` where a trusted proxy says so, else `http`. The last word is the nearest proxy's."""
    return "https" if trusted and _last(values).lower() == b"https" else "http"


def forwarded_port(values: Sequence[bytes], trusted: bool, listener_port: int) -> int:
    """The port that the client came to: a trusted proxy's word, else the listener's own."""
    last = _last(values) if trusted else b""
    return int(last) if last.isdigit() and len(last) <= 5 and 0 < int(last) <= 65535 else listener_port


def kept_request_id(values: Sequence[bytes]) -> str:
    """The client's `X-Request-Id` where it may be kept: one, 1 to 128 of `A-Za-z0-9._-`. Otherwise empty."""
    return values[0].decode("ascii") if len(values) == 1 and _REQUEST_ID.match(values[0]) else ""


def _just(peer: str) -> Client:
    address = parse_address(peer)
    text = peer if address is None else str(address)
    return Client(text, text.encode("latin-1"))


def _bare(element: str) -> str:
    address = parse_address(element)
    return element if address is None else str(address)


def _last(values: Sequence[bytes]) -> bytes:
    return values[-1].rpartition(b",")[2].strip(b" \t") if values else b""
