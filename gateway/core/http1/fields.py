"""One field line: its grammar (RFC 9112, 5), and what it is to this gateway.

A line is classified once and remembered: clients repeat most of their lines word for word, so that the usual line
costs one look-up in a dict. The memory is bounded, and lines that could hold a credential are never kept in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""token, RFC 9110, 5.6.2."""

_NOT_IN_VALUES: Final = bytes(set(range(256)) - set(b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))))
"""field-value, RFC 9110, 5.5: no control character but HTAB."""
_IN_VALUES: Final = bytes(set(range(256)) - set(_NOT_IN_VALUES))

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+;=%-]+)(?::([0-9]{0,5}))?\Z")
"""Host, RFC 9110, 7.2: uri-host [ ":" port ], without userinfo; a list of two (`,`) is refused."""

_TOKEN_LIST: Final = re.compile(rb"[ \t]*(?:" + TOKEN + rb")?[ \t]*(?:,[ \t]*(?:" + TOKEN + rb")?[ \t]*)*\Z")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}\Z")
_NAME: Final = re.compile(TOKEN + rb"\Z")

CACHE_LINES_MAX: Final = 4096
"""Distinct lines remembered per table: a few hundred kinds of client; then the memory starts afresh."""
CACHE_NAMES_MAX: Final = 1024
CACHE_LINE_BYTES_MAX: Final = 256
"""A longer line (a cookie, a token) seldom repeats and would make the memory large: 4096 x 256 B is 1 MiB."""


class Seen:
    """What a field is to the gateway, as bits; a head's `seen` is the union over its lines.

    Plain integers: an `enum.IntFlag` costs more per operation than the whole look-up of a line.
    """

    PLAIN: Final = 0
    HOST: Final = 1
    LENGTH: Final = 2
    CODING: Final = 4
    CONNECTION: Final = 8
    EXPECT: Final = 16
    UPGRADE: Final = 32
    HOP_BY_HOP: Final = 64
    OWN: Final = 128
    READ: Final = 256
    VIA: Final = 512
    RESOLVER: Final = 1024
    AUTHORIZATION: Final = 2048
    BAD: Final = 4096
    LOOKALIKE: Final = 8192
    REQUEST_ID: Final = 16384
    KEEP_ALIVE: Final = 32768
    TIMEOUT: Final = 65536
    OIDC: Final = 131072


REFUSED_IN_TRAILERS: Final = (
    Seen.HOST | Seen.LENGTH | Seen.CODING | Seen.CONNECTION | Seen.EXPECT | Seen.UPGRADE | Seen.HOP_BY_HOP | Seen.OWN
    | Seen.KEEP_ALIVE | Seen.RESOLVER | Seen.AUTHORIZATION | Seen.LOOKALIKE | Seen.VIA
)  # fmt: skip
"""Framing, routing and the gateway's own fields decide before a trailer arrives (RFC 9110, 6.5.1)."""

DROPPED: Final = (
    Seen.CODING | Seen.CONNECTION | Seen.EXPECT | Seen.UPGRADE | Seen.HOP_BY_HOP | Seen.OWN | Seen.KEEP_ALIVE
)
"""Lines that never reach the other side as they came (RFC 9110, 7.6.1; DESIGN 5.5)."""

_REQUEST_NAMES: Final[dict[bytes, int]] = {
    b"host": Seen.HOST,
    b"content-length": Seen.LENGTH,
    b"transfer-encoding": Seen.CODING,
    b"connection": Seen.CONNECTION,
    b"keep-alive": Seen.HOP_BY_HOP,
    b"proxy-connection": Seen.HOP_BY_HOP,
    b"te": Seen.HOP_BY_HOP,
    b"http2-settings": Seen.HOP_BY_HOP,
    b"upgrade": Seen.UPGRADE,
    b"expect": Seen.EXPECT,
    b"via": Seen.VIA,
    b"accept": Seen.READ,
    b"cookie": Seen.READ,
    b"sec-fetch-mode": Seen.READ,
    b"authorization": Seen.AUTHORIZATION,
    b"x-amzn-trace-id": Seen.OWN,
    b"x-request-id": Seen.OWN | Seen.REQUEST_ID,
    b"x-tenant": Seen.OWN,
    b"x-tenant-epoch": Seen.OWN,
    b"x-tenant-home": Seen.OWN,
    b"x-gateway-region": Seen.OWN,
    b"x-gateway-hops": Seen.OWN,
    b"x-forwarded-for": Seen.OWN,
    b"x-forwarded-proto": Seen.OWN,
    b"x-forwarded-port": Seen.OWN,
    b"x-forwarded-host": Seen.OWN,
    b"x-gateway-timeout-ms": Seen.OWN,
    b"prefer": Seen.TIMEOUT,
    b"grpc-timeout": Seen.TIMEOUT,
    b"connect-timeout-ms": Seen.TIMEOUT,
}
_RESPONSE_NAMES: Final[dict[bytes, int]] = {
    b"content-length": Seen.LENGTH,
    b"transfer-encoding": Seen.CODING,
    b"connection": Seen.CONNECTION,
    b"keep-alive": Seen.HOP_BY_HOP,
    b"proxy-connection": Seen.HOP_BY_HOP,
    b"te": Seen.HOP_BY_HOP,
    b"upgrade": Seen.UPGRADE,
    b"x-request-id": Seen.OWN,
}
OWN_PREFIX: Final = b"gateway-"
OIDC_PREFIX: Final = b"x-amzn-oidc-"
"""What AWS's load balancer says of a user: a client's own word on it never gets through."""
_FRAMING_NAMES: Final = (b"content-length", b"transfer-encoding")
_KEEP_ALIVE_ONLY: Final = frozenset((b"keep-alive",))
_NOT_REMEMBERED: Final = frozenset((
    b"cookie", b"authorization", b"set-cookie", b"proxy-authorization",
    b"x-amzn-oidc-data", b"x-amzn-oidc-identity", b"x-amzn-oidc-accesstoken",
    b"x-amzn-trace-id", b"x-request-id", b"traceparent", b"tracestate", b"gateway-hop", b"etag",
    b"idempotency-key",
))  # fmt: skip
"""Credentials, and what is new in every message: it would only push out what comes again."""


class Field:
    """One classified line. `name` is the form in which names are compared; `seen` is a plain int, for speed.

    `parsed` is what the value means: `str` for Host (lower case, no port, no trailing dot), `int` for
    Content-Length, the frozenset of lower-case tokens for Connection, the list of codings for Transfer-Encoding.
    """

    __slots__ = ("line", "name", "parsed", "seen", "value")

    def __init__(self, line: bytes, name: bytes, value: bytes, seen: int, parsed: object = None) -> None:
        self.line = line
        self.name = name
        self.value = value
        self.seen = seen
        self.parsed = parsed


def compared(name: bytes) -> bytes:
    """A field name as all comparisons see it: lower case, `_` as `-` (CGI and WSGI make no difference)."""
    return name.lower().replace(b"_", b"-")


PLAIN: Final = Field(b"", b"", b"", Seen.PLAIN)
"""Every line that the gateway passes on and never reads."""


class FieldTable:
    """Classifies request lines. `extra_names` are the names of `header:` resolvers, as compared; `secret_names` are
    those of fields that tokens stand in.

    `cache` is for the parser's loop alone: line to Field; what is not in it goes through `classify`.
    """

    __slots__ = ("_known", "_names", "_not_remembered", "_oidc", "cache")

    def __init__(
        self,
        extra_names: Iterable[bytes] = (),
        names: dict[bytes, int] | None = None,
        secret_names: Iterable[bytes] = (),
    ) -> None:
        self._names = dict(_REQUEST_NAMES if names is None else names)
        for name in extra_names:
            self._names[compared(name)] = self._names.get(compared(name), Seen.READ) | Seen.RESOLVER
        self._not_remembered = _NOT_REMEMBERED | set(secret_names)
        for name in secret_names:
            self._names.setdefault(name, Seen.READ | Seen.RESOLVER)
        self._oidc: bytes | tuple[()] = OIDC_PREFIX if names is None else ()
        self._known: dict[bytes, tuple[bytes, int]] = {}
        self.cache: dict[bytes, Field] = {}

    def classify(self, line: bytes) -> Field:
        """What `line` (without CRLF) is. A malformed one comes back with `BAD` set and the reason as `parsed`."""
        raw, colon, value = line.partition(b":")
        known = self._known.get(raw) or self._name(raw)
        if known is None or not colon or value.translate(None, _IN_VALUES):
            return Field(line, b"", b"", Seen.BAD, _why_not(line))
        name, seen = known
        if seen:
            field = self._read(line, name, value.strip(b" \t"), seen)
        else:
            field = PLAIN
        if len(line) <= CACHE_LINE_BYTES_MAX and name not in self._not_remembered and not field.seen & Seen.BAD:
            if len(self.cache) >= CACHE_LINES_MAX:
                self.cache.clear()
            self.cache[line] = field
        return field

    def _name(self, raw: bytes) -> tuple[bytes, int] | None:
        """The name as compared, and what it is to us; remembered, for there are few names. None: not a token."""
        if _NAME.match(raw) is None:
            return None
        lower = raw.lower()
        name = lower.replace(b"_", b"-")
        seen = self._names.get(name, Seen.PLAIN)
        if name.startswith(OWN_PREFIX):
            seen |= Seen.OWN
        elif name.startswith(self._oidc):
            seen = Seen.OWN | Seen.OIDC
        if lower != name:  # an underscore twin counts only where the gateway itself would be impersonated
            seen = Seen.LOOKALIKE if name in _FRAMING_NAMES else seen & (Seen.OWN | Seen.RESOLVER | Seen.OIDC)
        elif _is_lookalike(name):
            seen = Seen.LOOKALIKE
        if len(self._known) >= CACHE_NAMES_MAX:
            self._known.clear()
        self._known[raw] = name, seen
        return name, seen

    def _read(self, line: bytes, name: bytes, value: bytes, seen: int) -> Field:
        parsed: object = None
        if seen & (Seen.HOST | Seen.LENGTH | Seen.CODING | Seen.CONNECTION | Seen.UPGRADE | Seen.EXPECT):
            parsed = _parse(seen, value)
            if parsed is None:
                return Field(line, name, value, seen | Seen.BAD, f"the value of {name.decode()} is not valid")
            if parsed == _KEEP_ALIVE_ONLY and seen == Seen.CONNECTION:
                seen = Seen.KEEP_ALIVE  # most clients and servers say so, and in HTTP/1.1 it says nothing
        return Field(line, name, value, seen, parsed)


def response_table() -> FieldTable:
    """The table for heads that come from applications and peers."""
    return FieldTable((), _RESPONSE_NAMES)


def _is_lookalike(name: bytes) -> bool:
    """`content.length`, `transfer--encoding`: no standard field, but some servers fold such bytes into `-`."""
    if not name.startswith((b"content", b"transfer")) or name in _FRAMING_NAMES:
        return False
    return re.sub(rb"[^a-z]+", b"-", name).strip(b"-") in _FRAMING_NAMES


def _parse(seen: int, value: bytes) -> object:
    """The value's meaning, None when it has none."""
    if seen & Seen.HOST:
        match = _HOST.match(value)
        if match is None or (match[2] and int(match[2]) > 65535):
            return None
        return match[1].lower().rstrip(b".").decode("ascii") or None
    if seen & Seen.LENGTH:
        return int(value) if _DIGITS.match(value) else None
    if _TOKEN_LIST.match(value) is None:
        return frozenset() if seen & (Seen.UPGRADE | Seen.EXPECT) else None
    tokens = tuple(token.strip(b" \t").lower() for token in value.split(b","))
    if seen & Seen.CODING:  # an empty element would be ignored by some and not by others: refused
        return tokens if all(tokens) else None
    return frozenset(token for token in tokens if token)


def _why_not(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "a field line is folded"
    if b"\r" in line or b"\n" in line:
        return "a field line holds a bare CR or LF"
    name, colon, _ = line.partition(b":")
    if not colon:
        return "a field line has no colon"
    if _NAME.match(name) is None:
        return "a field name is not a token"
    return "a field value holds a control character"
