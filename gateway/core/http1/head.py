"""Request and response heads: start line and fields (RFC 9112, 2 to 6), parsed once, forwarded as bytes.

A parsed head keeps the lines to forward as they came, in order; only lines that belong to one connection or to the
gateway itself are left out. Whatever could be framed in two ways raises `GatewayError`.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from gateway.core.errors import GatewayError
from gateway.core.http1.fields import DROPPED, TOKEN, Field, FieldTable, Seen, compared
from gateway.core.view import Limits

_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])\Z")
"""method SP request-target SP HTTP-version, RFC 9112, 3: single spaces, visible ASCII, no fragment."""
_LOOSE_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([^ ]*) (HTTP/[0-9]\.[0-9])\Z")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?@]+)(/[^?]*)?(\?.*)?\Z", re.IGNORECASE)
"""absolute-form, RFC 9112, 3.2.2, without userinfo (RFC 9110, 4.2.4)."""
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?\Z")
"""HTTP-version SP status-code SP [ reason-phrase ], RFC 9112, 4. Three digits, no more, no fewer."""

_FRAMING: Final = (
    Seen.HOST | Seen.LENGTH | Seen.CODING | Seen.CONNECTION | Seen.EXPECT | Seen.UPGRADE | Seen.LOOKALIKE | Seen.BAD
)
_HOST: Final = Seen.HOST
_LENGTH: Final = Seen.LENGTH
_KEEP_ALIVE: Final = Seen.KEEP_ALIVE
_CONNECTION_SAFE: Final = frozenset((b"close", b"keep-alive"))
_NEVER_NOMINATED: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))
STATUS_CACHE_MAX: Final = 256
_status_lines: dict[bytes, tuple[int, int, bytes]] = {}


class Request:
    """A request's head. `kept` are the lines to forward; `fields` those that the gateway knows, in order.

    `length` is the body's size in bytes, 0 for none, -1 for chunked. `keep_alive` is what the client's side allows
    (RFC 9112, 9.3). `expect` asks for a 100 (RFC 9110, 10.1.1). `upgrade` is a well-formed WebSocket handshake.
    """

    seen = 0
    host = ""
    host_field = b""
    length = 0
    expect = False
    upgrade = False

    def __init__(self, method: bytes, target: bytes, version: int) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.kept: list[bytes] = []
        self.fields: list[Field] = []
        self.keep_alive = version == 11

    def values(self, name: bytes) -> list[bytes]:
        """The values of a field that the gateway knows, in order; `name` lower case with `_` as `-`."""
        return [field.value for field in self.fields if field.name == name]

    def drop(self, name: bytes) -> None:
        """Leave a field (compared name) out of what is forwarded."""
        self.kept = [line for line in self.kept if compared(line.partition(b":")[0]) != name]

    @property
    def headers(self) -> dict[str, str]:
        """Everything that is forwarded, as a mapping, for a filter that asks: lower-case names, values joined."""
        found: dict[str, str] = {}
        for line in self.kept:
            name, _, value = line.partition(b":")
            key, text = name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found


class Response:
    """A response's head. `length` is the body's size, -1 for chunked, -2 until the connection closes.

    `added` are lines that outbound filters add. `own` are `Gateway-*` fields: a peer's, or an application's to strip.
    """

    length = -2
    chunked = False
    upgrade: frozenset[bytes] = frozenset()
    own: tuple[Field, ...] = ()

    def __init__(self, status: int, version: int, start: bytes) -> None:
        self.status = status
        self.version = version
        self.start = start
        self.kept: list[bytes] = []
        self.added: list[bytes] = []
        self.keep_alive = version == 11


CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2


MISSES_MAX: Final = 8
"""Blocks in a row that were not the one before: then this client's fields differ each time, and nothing is kept."""


class Memory:
    """The last field block of one connection, as bytes and as read.

    A client that keeps its connection sends the same fields again and again, word for word, unless something in
    front of it numbers its requests. Only blocks that frame nothing are remembered: what they mean does not depend on
    the request line.
    """

    __slots__ = ("block", "fields", "host", "host_field", "kept", "misses", "seen", "table")

    def __init__(self) -> None:
        self.block = b""
        self.misses = 0
        self.table: FieldTable | None = None

    def take(self, block: bytes, table: FieldTable, request: Request) -> None:
        """Remember what `block` was read as, before any filter changes the request."""
        self.block, self.table = block, table
        self.kept = request.kept.copy()
        self.fields, self.seen = request.fields, request.seen
        self.host, self.host_field = request.host, request.host_field


def parse_request(head: bytes, table: FieldTable, limits: Limits, memory: Memory | None = None) -> Request:
    """Read a head without its final CRLF CRLF. Raises GatewayError (400, 414, 431, 501, 505)."""
    if memory is None or memory.misses > MISSES_MAX:
        return _parse_whole(head, table, limits)
    at = head.find(b"\r\n")
    block = head[at:]
    if block == memory.block and table is memory.table:
        request = _again(head[:at], limits, memory)
        if request is not None:
            memory.misses = 0
            return request
    memory.misses += 1
    request = _parse_whole(head, table, limits)
    if request.seen & _FRAMING == _HOST and request.version == 11 and head.startswith(request.method + b" /"):
        memory.take(block, table, request)
    return request


def _again(start: bytes, limits: Limits, memory: Memory) -> Request | None:
    """A request with remembered fields; None where the request line needs a closer look."""
    match = _REQUEST_LINE.match(start)
    if match is None:
        return None
    method, target, minor = match.groups()
    if target[0] != 47 or minor != b"1" or method == b"CONNECT" or len(target) > limits.target_bytes:
        return None
    request = Request(method, target, 11)
    request.kept = memory.kept.copy()
    request.fields, request.seen = memory.fields, memory.seen
    request.host, request.host_field = memory.host, memory.host_field
    return request


def _parse_whole(head: bytes, table: FieldTable, limits: Limits) -> Request:
    lines = head.split(b"\r\n")
    start = lines[0]
    match = _REQUEST_LINE.match(start)
    if match is None:
        refuse_start(start)
    if len(lines) - 1 > limits.headers:
        raise GatewayError("fields_too_large", f"more than {limits.headers} fields")
    method, target, minor = match.groups()
    if len(target) > limits.target_bytes:
        raise GatewayError("target_too_long", f"longer than {limits.target_bytes} bytes")
    request = Request(method, target, 11 if minor == b"1" else 10)
    kept, fields, cache, seen = request.kept, request.fields, table.cache, 0
    del lines[0]
    for line in lines:
        what = (field := cache[line] if line in cache else table.classify(line)).seen
        if what:
            if what & seen & 7:  # a second Host, Content-Length or Transfer-Encoding
                raise GatewayError("framing_ambiguous", f"more than one {field.name.decode()} field")
            seen |= what
            fields.append(field)
            if what & DROPPED:
                continue
        kept.append(line)
    request.seen = seen
    if seen & _FRAMING != _HOST or request.version == 10:
        _frame_request(request)
    for field in fields:
        if field.seen & _HOST:
            request.host_field = field.value
            request.host = field.parsed  # type: ignore[assignment]  # str for Host
            break
    if target[0] != 47 or method == b"CONNECT":  # 47 is "/": origin-form, RFC 9112, 3.2.1
        _other_form(request)
    return request


def refuse_start(start: bytes) -> NoReturn:
    """Say what is wrong with a request line that did not match."""
    loose = _LOOSE_LINE.match(start)
    if loose is None:
        raise GatewayError("request_malformed", "the request line is not `method SP target SP version`")
    if loose[3] not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise GatewayError("version_unsupported", "only HTTP/1.0 and HTTP/1.1 are spoken here")
    raise GatewayError("target_malformed", "the request target holds a byte that no target may hold")


def _frame_request(request: Request) -> None:
    """Body length and connection options (RFC 9112, 6.3 and 9.3; RFC 9110, 7.6.1), the rarer cases."""
    seen = request.seen
    if seen & Seen.BAD:
        bad = next(field for field in request.fields if field.seen & Seen.BAD)
        framing = bad.seen & (Seen.LENGTH | Seen.CODING)
        raise GatewayError("framing_ambiguous" if framing else "request_malformed", str(bad.parsed))
    if seen & Seen.LOOKALIKE:
        raise GatewayError("framing_ambiguous", "a field's name looks like a framing field's")
    if not seen & Seen.HOST and request.version == 11:
        raise GatewayError("request_malformed", "Host is missing")  # RFC 9112, 3.2
    if seen & Seen.KEEP_ALIVE:
        request.keep_alive = True
    for field in request.fields:
        what = field.seen
        if what & Seen.CODING:
            _request_coding(request, field)
        elif what & Seen.LENGTH:
            assert isinstance(field.parsed, int)
            request.length = field.parsed
        elif what & Seen.CONNECTION:
            _connection(request, field, "framing_ambiguous")
        elif what & Seen.EXPECT:
            request.expect = field.value.lower() == b"100-continue" and request.version == 11
    if request.expect and not request.length:
        request.expect = False
    if seen & Seen.UPGRADE:
        _upgrade(request)


def _request_coding(request: Request, field: Field) -> None:
    """Transfer-Encoding, RFC 9112, 6.1: chunked alone is spoken; with Content-Length or in 1.0 it is refused."""
    codings = field.parsed
    assert isinstance(codings, tuple)
    if request.version == 10:
        raise GatewayError("framing_ambiguous", "Transfer-Encoding in HTTP/1.0")
    if request.seen & Seen.LENGTH:
        raise GatewayError("framing_ambiguous", "Content-Length beside Transfer-Encoding")
    if codings != (b"chunked",):
        if codings[-1] == b"chunked" and codings.count(b"chunked") == 1:
            raise GatewayError("coding_unknown", "only chunked is implemented")
        raise GatewayError("framing_ambiguous", "the last transfer coding is not chunked, once")
    request.length = CHUNKED


def _connection(head: Request | Response, field: Field, flag: str) -> None:
    """RFC 9112, 9.3, and RFC 9110, 7.6.1: what Connection names belongs to this connection. `flag` refuses."""
    tokens = field.parsed
    assert isinstance(tokens, frozenset)
    if b"close" in tokens:
        head.keep_alive = False
    elif b"keep-alive" in tokens and head.version == 10:
        head.keep_alive = True
    nominated = tokens - _CONNECTION_SAFE
    if nominated & _NEVER_NOMINATED:
        raise GatewayError(flag, "Connection names a field that frames the message")
    if nominated:
        head.kept = [line for line in head.kept if line.partition(b":")[0].lower() not in nominated]


def _upgrade(request: Request) -> None:
    """Only a WebSocket handshake is carried on (RFC 6455, 4.1); any other Upgrade was dropped with Connection."""
    offers = [field for field in request.fields if field.seen & Seen.UPGRADE]
    asked = any(b"upgrade" in field.parsed for field in request.fields  # type: ignore[operator]
                if field.seen & Seen.CONNECTION)  # fmt: skip
    request.upgrade = (
        asked
        and len(offers) == 1
        and offers[0].parsed == frozenset((b"websocket",))
        and request.method == b"GET"
        and request.length == 0
        and not request.seen & (Seen.CODING | Seen.LENGTH)
        and request.version == 11
    )


def _other_form(request: Request) -> None:
    """absolute-form becomes origin-form (RFC 9112, 3.2.2); CONNECT, `*` and anything else is refused."""
    if request.method == b"CONNECT":
        raise GatewayError("connect_refused")
    match = _ABSOLUTE.match(request.target)
    if match is None:
        raise GatewayError("target_malformed", "the target is neither a path nor an http(s) URL")
    authority = match[1]
    host = FieldTable().classify(b"Host: " + authority)
    if host.seen & Seen.BAD or (request.seen & Seen.HOST and request.host_field.lower() != authority.lower()):
        raise GatewayError("target_malformed", "the target's authority is not the one that Host names")
    if not request.seen & Seen.HOST:
        request.kept.insert(0, b"Host: " + authority)
        request.seen |= Seen.HOST
    request.host_field = host.value
    request.host = str(host.parsed)
    request.target = (match[2] or b"/") + (match[3] or b"")


def parse_response(head: bytes, table: FieldTable, limits: Limits, method: bytes) -> Response:
    """Read a response's head without its final CRLF CRLF. Raises GatewayError(upstream_malformed)."""
    lines = head.split(b"\r\n")
    start = lines[0]
    status, version, out = _status_lines.get(start) or _status(start)
    if len(lines) - 1 > limits.headers:
        raise GatewayError("upstream_malformed", f"more than {limits.headers} fields")
    response = Response(status, version, out)
    kept, cache, seen = response.kept, table.cache, 0
    special: list[Field] = []
    del lines[0]
    for line in lines:
        what = (field := cache[line] if line in cache else table.classify(line)).seen
        if what:
            if what & seen & 6:
                raise GatewayError("upstream_malformed", f"more than one {field.name.decode()} field")
            seen |= what
            special.append(field)
            if what & DROPPED:
                continue
        kept.append(line)
    if seen & ~_KEEP_ALIVE == _LENGTH and response.version == 11:
        length = special[0].parsed if special[0].seen == _LENGTH else special[1].parsed
        response.length = length  # type: ignore[assignment]  # int for Content-Length
    elif seen:
        _frame_response(response, special, seen)
    if status < 200 or status == 204 or status == 304 or method == b"HEAD":
        _no_body(response, status, seen)
    elif response.length == UNTIL_CLOSE:
        response.keep_alive = False
    return response


def _status(start: bytes) -> tuple[int, int, bytes]:
    match = _STATUS_LINE.match(start)
    if match is None:
        raise GatewayError("upstream_malformed", "the status line is not `HTTP/1.x SP 3DIGIT SP reason`")
    minor, code, reason = match.groups()
    row = (int(code), 11 if minor == b"1" else 10, b"HTTP/1.1 " + code + b" " + (reason or b""))
    if len(_status_lines) >= STATUS_CACHE_MAX:
        _status_lines.clear()
    _status_lines[start] = row
    return row


def _frame_response(response: Response, special: list[Field], seen: int) -> None:
    """RFC 9112, 6.3 for responses. What smuggles a response is refused, as for requests."""
    if seen & (Seen.BAD | Seen.LOOKALIKE):
        raise GatewayError("upstream_malformed", "a field line is not valid")
    if seen & Seen.CODING and (seen & Seen.LENGTH or response.version == 10):
        raise GatewayError("upstream_malformed", "the framing is ambiguous")
    if seen & _KEEP_ALIVE:
        response.keep_alive = True
    for field in special:
        what = field.seen
        if what & Seen.LENGTH:
            response.length = field.parsed  # type: ignore[assignment]
        elif what & Seen.CODING:
            if field.parsed != (b"chunked",):
                raise GatewayError("upstream_malformed", "a transfer coding that was not asked for")
            response.length = CHUNKED
            response.chunked = True
        elif what & Seen.CONNECTION:
            _connection(response, field, "upstream_malformed")
        elif what & Seen.UPGRADE:
            response.upgrade |= field.parsed  # type: ignore[operator]
        elif what & Seen.OWN:
            response.own += (field,)


def _no_body(response: Response, status: int, seen: int) -> None:
    """1xx, 204, 304 and answers to HEAD end with their head, whatever their fields say (RFC 9112, 6.3, rule 1)."""
    if seen & Seen.LENGTH and status != 304 and status < 205:
        response.kept = (
            [line for line in response.kept if not line.lower().startswith(b"content-length")]
            if status < 200 or status == 204  # RFC 9110, 8.6: no Content-Length there
            else response.kept
        )
    response.length = 0
