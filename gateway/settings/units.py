"""Texts with a unit, and the small grammars of the configuration: pure functions from text to value."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from gateway.settings.schema import Address

DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)\Z")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
RATE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)/(s|m|h)\Z")
SIZE: Final = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)\Z")
BYTES: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%\Z")
_WHOLE: Final = re.compile(r"[0-9]{1,18}\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?\Z")
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")


class Wanted(ValueError):
    """A value that is not acceptable, with what was expected instead, written to follow "expected …"."""


ENDPOINT_LIKE: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"
LISTENER_LIKE: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[0-9.]+|[Ll][Oo][Cc][Aa][Ll][Hh][Oo][Ss][Tt]):[0-9]{1,5}"
"""What an address looks like, for editors: looser than `address`, which knows which numbers are one."""

HOST_CHARS_MAX: Final = 253
"""RFC 1035, 2.3.4, in text form without the final dot."""


def duration(text: str) -> float:
    """`250ms`, `1.5s`, `2m`, `1h` in seconds."""
    match = DURATION.match(text)
    if not match:
        raise ValueError("no duration")
    number, unit = match.groups()
    return float(number) / 1000 if unit == "ms" else float(number) * _SECONDS[unit]


RATE_MIN, RATE_MAX = 1 / 3600, 10_000_000.0
"""A second: a request an hour at least, and more than one machine will see."""


def rate(text: str) -> float:
    """`200/s`, `90/m`, `1000/h` in a second."""
    match = RATE.match(text)
    if not match:
        raise ValueError("no rate")
    found = float(match[1]) / _SECONDS[match[2]]
    if not RATE_MIN <= found <= RATE_MAX:
        raise Wanted(f"a rate from 1/h to {RATE_MAX:.0f}/s")
    return found


def size(text: str) -> int:
    """`512B`, `64KiB`, `8MiB`, `1GiB` in bytes."""
    match = SIZE.match(text)
    if not match:
        raise ValueError("no size")
    return int(match[1]) * BYTES[match[2]]


def percent(text: str) -> float:
    """`5%` as a fraction from 0 to 1."""
    match = PERCENT.match(text)
    if not match or float(match[1]) > 100:
        raise ValueError("no percentage")
    return float(match[1]) / 100


def whole(text: str) -> int:
    """A decimal number without sign, without a leading zero that other readers take for octal."""
    if not _WHOLE.match(text) or (len(text) > 1 and text[0] == "0"):
        raise ValueError("no whole number")
    return int(text)


def number(text: str) -> float:
    if not _NUMBER.match(text):
        raise ValueError("no number")
    return float(text)


def host_name(text: str) -> str:
    """A DNS name in lower case, without a final dot; `_` is allowed, as in Kubernetes and Docker names.

    A name whose last label is a number is refused: resolvers take it for an address (WHATWG URL, host parsing).
    """
    name = text.lower()
    labels = name.split(".")
    # ascii first: some letters outside of it have a lower case inside (the Kelvin sign is a `k`)
    if not text.isascii() or len(name) > HOST_CHARS_MAX or labels[-1].isdigit() or not all(map(_LABEL.match, labels)):
        raise ValueError("no host name")
    return name


def address(text: str) -> Address:
    """`10.1.0.4:9000`, `app.internal:9000`, `[2001:db8::1]:9000`. The port may be 0; callers decide about that."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":") or "%" in host:
            raise ValueError("no address")
        return Address(str(ipaddress.IPv6Address(host)), port(rest[1:]))
    host, colon, rest = text.rpartition(":")
    if not colon or ":" in host:
        raise ValueError("no address")
    try:
        return Address(str(ipaddress.IPv4Address(host)), port(rest))
    except ipaddress.AddressValueError:
        return Address(host_name(host), port(rest))


def endpoint(text: str) -> Address:
    """An address that can be dialled."""
    found = address(text)
    if found.port == 0:
        raise ValueError("no port")
    return found


def listener(text: str) -> Address:
    """An address that can be bound: numeric, or `localhost`. Port 0 lets the kernel choose."""
    found = address(text)
    if found.host != "localhost" and not is_ip(found.host):
        raise ValueError("no address of this machine")
    return found


def port(text: str) -> int:
    if not _PORT.match(text) or int(text) > 65535:
        raise ValueError("no port")
    return int(text)


def network(text: str) -> str:
    """`10.20.0.0/24`, `2001:db8::/48`, or one address. Host bits must be zero: a slip of the pen otherwise."""
    return str(ipaddress.ip_network(text, strict=True))


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    return host == "localhost" or (is_ip(host) and ipaddress.ip_address(host).is_loopback)
