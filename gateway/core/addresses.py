"""Address lists: who may send requests to a route or for a tenant, by network.

`deny` goes first; where there is an `allow`, only those in it may. Compiled once into sorted ranges of integers, so
that a list of thousands costs a bisection; what it came to for an address is remembered, within a bound.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

KNOWN_MAX: Final = 4096
"""Addresses whose answer is remembered per list: some 400 KB at most."""
ADDRESSES_MAX: Final = 1000
"""Networks in one list of a tenant: its record travels whole."""

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""RFC 4291, 2.5.5.2: what a socket of both families calls an IPv4 client; compared as that, as clients are."""

Ranges = tuple[list[int], list[int]]
"""First and last addresses of networks that do not overlap, sorted."""


class AddressList:
    """`allow` and `deny` as written: two lists with the same text are equal. ValueError for what is no network."""

    __slots__ = ("_allowed", "_denied", "_known", "allow", "deny")

    def __init__(self, allow: tuple[str, ...], deny: tuple[str, ...]) -> None:
        self.allow = allow
        self.deny = deny
        self._allowed = _ranges(allow)
        self._denied = _ranges(deny)
        self._known: dict[str, bool] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AddressList) and (self.allow, self.deny) == (other.allow, other.deny)

    def __hash__(self) -> int:
        return hash((self.allow, self.deny))

    def __repr__(self) -> str:
        return f"AddressList(allow={self.allow}, deny={self.deny})"

    def permits(self, client: str) -> bool:
        """Whether a client may. One whose address is none (which no listener of ours sees) is in no list."""
        known = self._known.get(client)
        if known is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            known = self._known[client] = self._judge(client)
        return known

    def _judge(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])  # a zone names an interface, not another host
        except ValueError:
            return not self.allow
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if _holds(self._denied[address.version], int(address)):
            return False
        return not self.allow or _holds(self._allowed[address.version], int(address))


def access_list(allow: tuple[str, ...], deny: tuple[str, ...]) -> AddressList | None:
    """The list, None where both are empty. Raises ValueError."""
    return _made(allow, deny) if allow or deny else None


@lru_cache(maxsize=1024)
def _made(allow: tuple[str, ...], deny: tuple[str, ...]) -> AddressList:
    """The same list for the same text: what it remembers survives a reload."""
    return AddressList(allow, deny)


def _ranges(networks: Iterable[str]) -> dict[int, Ranges]:
    """By IP version."""
    v4: list[ipaddress.IPv4Network] = []
    v6: list[ipaddress.IPv6Network] = []
    for text in networks:
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv4Network):
            v4.append(network)
        elif network.subnet_of(_MAPPED):
            first = int(network.network_address) & 0xFFFF_FFFF
            v4.append(ipaddress.IPv4Network((first, network.prefixlen - 96)))
        else:
            v6.append(network)
    # one call each: networks of two versions cannot be collapsed together
    return {4: _sorted(ipaddress.collapse_addresses(v4)), 6: _sorted(ipaddress.collapse_addresses(v6))}


def _sorted(networks: Iterable[ipaddress.IPv4Network] | Iterable[ipaddress.IPv6Network]) -> Ranges:
    pairs = sorted((int(network.network_address), int(network.broadcast_address)) for network in networks)
    return [first for first, _ in pairs], [last for _, last in pairs]


def _holds(ranges: Ranges, address: int) -> bool:
    firsts, lasts = ranges
    at = bisect_right(firsts, address) - 1
    return at >= 0 and address <= lasts[at]
