"""Every scalar of `gateway.yaml`: what a text has to look like, and what it means.

`keys` says which key takes which of them. What one key says of another is in `rules`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from gateway.core.placement import REGION_NAME
from gateway.core.view import REGION_CLUSTER
from gateway.settings import redis_url, templates, units
from gateway.settings.schema import Address, Scheme
from gateway.settings.shape import Scalar, like
from gateway.settings.units import Wanted

DAY_S: Final = 86400.0
"""No timeout of a request is longer; a longer one is a mistaken unit."""
WORKERS_MAX: Final = 256
"""More processes than any machine of this kind has cores."""
KEY_BYTES_MIN: Final = 32
"""HMAC-SHA256 gains nothing from more and loses from less (RFC 2104, 3)."""
TOKEN_CHARS_MIN: Final = 24
"""144 bits when it comes from `openssl rand -base64 18`: nobody guesses it, at any rate."""
TOKEN_CHARS_MAX: Final = 512
STICKY_MAX_S: Final = 366 * DAY_S
"""Browsers keep no cookie much longer (RFC 6265bis has 400 days)."""
DNS_PORT: Final = 53
WEIGHT_MAX: Final = 1000
"""Finer shares than a thousandth are nobody's; SRV records have 65535."""
_SERVICE: Final = re.compile(r"_[^.]+\._[^.]+\..")
_FILTER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_CLUSTER: Final = re.compile(r"[a-z0-9_.-]{1,63}\Z")
_ACTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*\Z")
"""b64token, RFC 6750, 2.1: what `Authorization: Bearer` can carry."""
_CLUSTER_KEY: Final = r"[a-z0-9_.-]{1,63}|region:(?:\*|[a-z0-9-]{1,32})"
_PATH: Final = re.compile(r"/[\x21\x22\x24-\x3e\x40-\x7e]*\Z")
"""A raw path: visible ASCII but `?` and `#`."""
_STATUS: Final = re.compile(r"[1-5](?:[0-9]{2}|xx)\Z")
_TARGET: Final = re.compile(r"/[\x21\x22\x24-\x7e]*\Z")
FILTERS: Final = ("identify", "tenant", "region", "access", "throttle", "shed",
                  "forward", "redirect", "reply", "headers", "log")  # fmt: skip
"""The filters of the chain, by name: settings cannot import them, so a test holds this against their registries."""


def duration(low: float = 0.001, high: float = DAY_S) -> Scalar:
    def parse(text: str) -> float:
        value = units.duration(text)
        if not low <= value <= high:
            raise Wanted(f"a duration from {_written(low)} to {_written(high)}")
        return value

    return Scalar("duration", "a duration such as 250ms", parse, substitute=low, schema=like(units.DURATION))


def _written(seconds: float) -> str:
    if seconds and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f}h"
    return f"{seconds:.0f}s" if seconds % 1 == 0 else f"{seconds * 1000:.0f}ms"


def _check_status(text: str) -> str:
    if not _STATUS.match(text):
        raise ValueError("no status")
    return text


def _sticky(text: str) -> float:
    """0 is the browser's session."""
    value = 0.0 if text == "session" else units.duration(text)
    if text != "session" and not 1 <= value <= STICKY_MAX_S:
        raise Wanted("session or a duration from 1s to 366d")
    return value


def size(low: int, high: int, expected: str = "a size such as 64KiB") -> Scalar:
    def parse(text: str) -> int:
        value = units.size(text)
        if not low <= value <= high:
            raise Wanted(f"a size from {_written_size(low)} to {_written_size(high)}")
        return value

    return Scalar("size", expected, parse, substitute=low, schema=like(units.SIZE))


def _written_size(count: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % units.BYTES[unit] == 0:
            return f"{count // units.BYTES[unit]}{unit}"
    return f"{count}B"


def whole(low: int, high: int) -> Scalar:
    def parse(text: str) -> int:
        value = units.whole(text)
        if not low <= value <= high:
            raise ValueError("out of range")
        return value

    return Scalar(
        f"whole number from {low} to {high}",
        f"a whole number from {low} to {high}",
        parse,
        substitute=low,
        is_number=True,
        schema={"type": "integer", "minimum": low, "maximum": high},
    )


def number(low: float, high: float) -> Scalar:
    def parse(text: str) -> float:
        value = units.number(text)
        if not low <= value <= high:
            raise ValueError("out of range")
        return value

    schema = {"type": "number", "minimum": low, "maximum": high}
    expected = f"a number from {low:g} to {high:g}"
    return Scalar("number", expected, parse, substitute=low, is_number=True, schema=schema)


def fraction(low: float = 0) -> Scalar:
    return number(low, 1)


def matching(type_name: str, expected: str, pattern: re.Pattern[str]) -> Scalar:
    def parse(text: str) -> str:
        if not pattern.match(text):
            raise ValueError("no match")
        return text

    return Scalar(type_name, expected, parse, schema=like(pattern))


def _workers(text: str) -> int:
    """0 is `auto`: the loader asks the machine."""
    value = 0 if text == "auto" else units.whole(text)
    if not (text == "auto" or 1 <= value <= WORKERS_MAX):
        raise ValueError("out of range")
    return value


def _endpoint(text: str) -> Address:
    """`host:port`, `dns://…` or `srv://…`, and of the first two how much of the requests it gets: ` weight=3`."""
    text, found, weight = text.partition(" weight=")
    address = _unweighted(text)
    if not found:
        return address
    if address.scheme is Scheme.SRV:
        raise Wanted("srv:// without a weight (its records have weights)")
    try:
        value = units.whole(weight)
    except ValueError:
        value = 0
    if not 1 <= value <= WEIGHT_MAX:
        raise Wanted(f"weight=1 to weight={WEIGHT_MAX}, such as 10.1.0.4:9000 weight=3")
    return Address(address.host, address.port, address.scheme, value)


def _unweighted(text: str) -> Address:
    scheme, found, rest = text.partition("://")
    if not found:
        return units.endpoint(text)
    if scheme == Scheme.DNS:
        return _by_addresses(rest)
    if scheme == Scheme.SRV:
        return _by_services(rest)
    raise Wanted("host:port, dns://host:port or srv://_service._proto.name")


def _by_addresses(text: str) -> Address:
    """What stands behind `dns://`: a name and a port."""
    try:
        found = units.endpoint(text)
    except ValueError:
        raise Wanted("dns://host:port such as dns://app.internal:9000") from None
    if units.is_ip(found.host):
        raise Wanted("a name behind dns:// (an address needs no dns://)")
    return Address(found.host, found.port, Scheme.DNS)


def _by_services(text: str) -> Address:
    """What stands behind `srv://`: the name of SRV records, as RFC 2782 has them."""
    expected = "srv://_service._proto.name such as srv://_http._tcp.app.internal"
    if ":" in text:
        raise Wanted(f"{expected}, without a port (its records name one)")
    try:
        name = units.host_name(text)
    except ValueError:
        raise Wanted(expected) from None
    if not _SERVICE.match(name):
        raise Wanted(expected)
    return Address(name, 0, Scheme.SRV)


def name_server(text: str) -> Address:
    """`10.0.0.2`, `10.0.0.2:53`, `::1` or `[::1]:53`."""
    if units.is_ip(text):
        return Address(str(ipaddress.ip_address(text)), DNS_PORT)
    found = units.endpoint(text)
    if not units.is_ip(found.host):
        raise ValueError("no address")
    return found


def _public(text: str) -> str:
    templates.public_url(text)
    return text


def hop_key(text: str) -> str:
    size_bytes = len(text.encode())
    if size_bytes < KEY_BYTES_MIN:
        raise Wanted(f"a key of at least {KEY_BYTES_MIN} bytes")
    return text


def bearer_token(text: str) -> str:
    if not TOKEN_CHARS_MIN <= len(text) <= TOKEN_CHARS_MAX or not _BEARER.match(text):
        raise ValueError("no token")
    return text


def _admin_host(text: str) -> str:
    if not units.is_ip(text):
        return units.host_name(text)
    return str(ipaddress.ip_address(text))


def _filter(text: str) -> str:
    """A name that some filter may have; which ones there are is known once operators' files were loaded."""
    if text not in FILTERS and not _FILTER_NAME.match(text):
        raise ValueError("no filter")
    return text


def cluster_name(text: str) -> str:
    """A cluster that requests can be routed to: not the gateways of a region."""
    if not _CLUSTER.match(text):
        raise ValueError("no cluster name")
    return text


def _cluster_key(text: str) -> str:
    prefix, colon, region = text.partition(":")
    if not colon:
        return cluster_name(text)
    if prefix + colon != REGION_CLUSTER or not (region == "*" or REGION_NAME.match(region)):
        raise Wanted("region:* or region:NAME")
    return text


REGION: Final = matching("name", "a name of 1 to 32 of a-z 0-9 -", REGION_NAME)
CLUSTER: Final = Scalar(
    "cluster name", "a cluster name of 1 to 63 of a-z 0-9 _ . -", cluster_name, schema=like(_CLUSTER)
)
CLUSTER_KEY: Final = Scalar("cluster name", CLUSTER.expected, _cluster_key, schema=like(_CLUSTER_KEY))
LISTENER: Final = Scalar(
    *("address", "an address such as 0.0.0.0:8080", units.listener), Address("", 0), schema=like(units.LISTENER_LIKE)
)
ENDPOINT: Final = Scalar(
    *("endpoint", "host:port such as 10.1.0.4:9000", _endpoint),
    Address("", 0),
    schema=like(rf"(?:dns://)?{units.ENDPOINT_LIKE}(?: weight=[0-9]+)?|srv://[A-Za-z0-9._-]+"),
)
NAME_SERVER: Final = Scalar(
    *("address", "an address such as 10.0.0.2 or 10.0.0.2:53", name_server),
    Address("", 0),
    schema=like(rf"[0-9A-Fa-f.:]+|{units.ENDPOINT_LIKE}"),
)
GATEWAY: Final = Scalar(
    *("host:port", "host:port such as gw.eu.internal:8082", units.endpoint),
    Address("", 0),
    schema=like(units.ENDPOINT_LIKE),
)
PUBLIC: Final = Scalar(
    "URL template", "a URL such as https://{tenant}.eu.example.com", _public, schema=like(r"https?://[^/?#@\\\s]+")
)
NETWORK: Final = Scalar(
    "network", "a network such as 10.20.0.0/24", units.network, schema=like(r"[0-9A-Fa-f.:]+(?:/[0-9.]+)?")
)
HOP_KEY: Final = Scalar(
    f"text of at least {KEY_BYTES_MIN} bytes",
    f"a key of at least {KEY_BYTES_MIN} bytes",
    hop_key,
    secret=True,
    schema={
        "type": ["string", "number"],
        "pattern": f"^[\\s\\S]{{{KEY_BYTES_MIN // 4},}}$",
    },  # a character: 1 to 4 bytes
)
ACTOR: Final = matching("name", "a name of 1 to 64 of A-Z a-z 0-9 . _ @ -", _ACTOR)
TOKEN: Final = Scalar(
    f"text of at least {TOKEN_CHARS_MIN} characters",
    f"a token of at least {TOKEN_CHARS_MIN} of A-Z a-z 0-9 - . _ ~ + /",
    bearer_token,
    secret=True,
    schema={"type": ["string", "number"], "pattern": f"^[A-Za-z0-9._~+/=-]{{{TOKEN_CHARS_MIN},{TOKEN_CHARS_MAX}}}$"},
)
ADMIN_HOST: Final = Scalar(
    "host", "a host name or an address, without port", _admin_host, schema=like(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
)
PREFIX: Final = matching("path", "a path prefix such as /api/, without query", _PATH)
PROBE: Final = matching("path", "a path such as /healthz, without query", _PATH)
CHECK_PATH: Final = matching("path", "a path such as /healthz", _TARGET)
CHECK_STATUS: Final = Scalar(
    *("status", "a status such as 200, or a class such as 2xx", _check_status),
    schema={"type": ["string", "integer"], "pattern": "^[1-5](?:[0-9]{2}|xx)$"},
)
STICKY: Final = Scalar(
    "`session` or duration",
    "session or a duration such as 1h",
    _sticky,
    schema=like(rf"session|{units.DURATION.pattern}"),
)
HASH_NAME: Final = matching(
    "name", "the name of a field or a cookie, such as X-User", re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z")
)
CHECK_TEXT: Final = matching("text", "a text of 1 to 200 printable characters", re.compile(r"[ -~]{1,200}\Z"))
WORKERS: Final = Scalar(
    f"`auto` or a whole number from 1 to {WORKERS_MAX}",
    f"auto or a whole number from 1 to {WORKERS_MAX}",
    _workers,
    1,
    schema={
        "anyOf": [
            {"type": "string", "pattern": "^(?:auto|[1-9][0-9]{0,2})$"},
            {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
        ]
    },
)
FILTER: Final = Scalar("filter name", f"a filter: one of {', '.join(FILTERS)}", _filter, schema=like(_FILTER_NAME))
PERCENTAGE: Final = Scalar("percentage", "a percentage such as 5%", units.percent, 0.0, schema=like(units.PERCENT))
REDIS_URL: Final = Scalar("Redis URL", redis_url.EXPECTED, redis_url.kept, secret=True, schema=like(redis_url.LIKE))
