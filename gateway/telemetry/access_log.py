"""The access log: one JSON object a line, whatever the request held, in 4,096 bytes at most.

A line is printable ASCII: everything else is a JSON escape, so no request can forge a line, end one, or speak to the
terminal that shows it. Bytes are read as Latin-1, one character a byte: nothing is lost and nothing can fail. The query
is never written, and neither is any field's value but Host and X-Request-Id: secrets travel there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Final

import msgspec

from gateway.core.exchange import Exchange
from gateway.telemetry.log_writer import CAPACITY, LogWriter, open_log

LINE_MAX: Final = 4096
"""Bytes, newline included: PIPE_BUF, so that lines of several workers on one pipe are never mixed (pipe(7))."""

MARK: Final = "\u2026"
"""Ends a field that was cut."""

STANDARD_OUTPUT: Final = "-"

_TEXT_FIELDS: Final = (
    "request_id",
    "client",
    "source",
    "method",
    "path",
    "host",
    "tenant",
    "decision",
    "reason",
    "region",
    "flag",
)
_NOT_PRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_MARK_BYTES: Final = 6  # as the escape \u2026


class Line(msgspec.Struct, rename={"source": "from"}):
    """One line, its fields in the order in which they are written. Texts that do not apply are empty."""

    time: str
    request_id: str
    client: str
    source: str
    method: str
    path: str
    host: str
    tenant: str
    decision: str
    reason: str
    region: str
    status: int
    bytes_in: int
    bytes_out: int
    seconds: float
    flag: str


_encode: Final = msgspec.json.Encoder().encode


def encode(
    *,
    wall_ms: int,
    request_id: str,
    client: str,
    source: str,
    method: str | bytes,
    path: str | bytes,
    host: str | bytes,
    tenant: str,
    decision: str,
    reason: str,
    region: str,
    status: int,
    bytes_in: int,
    bytes_out: int,
    seconds: float,
    flag: str,
) -> bytes:
    """One line with its newline. `wall_ms` is Unix milliseconds; `source` is client or hop; a query is cut off."""
    line = Line(
        f"{_second(wall_ms // 1000)}{wall_ms % 1000:03}Z",
        request_id,
        client,
        source,
        method if isinstance(method, str) else method.decode("latin-1"),
        _without_query(path),
        host if isinstance(host, str) else host.decode("latin-1"),
        tenant,
        decision,
        reason,
        region,
        status,
        bytes_in,
        bytes_out,
        round(seconds, 6),
        flag,
    )
    try:
        text = _encode(line)
    except UnicodeEncodeError:  # a lone surrogate: no character, so UTF-8 has no bytes for it
        for name in _TEXT_FIELDS:
            setattr(line, name, getattr(line, name).encode("utf-8", "replace").decode())
        text = _encode(line)
    if not text.isascii() or b"\x7f" in text:
        text = _ascii(text)
    if len(text) >= LINE_MAX:
        text = _shortened(line)
    return text + b"\n"


@lru_cache(maxsize=4)
def _second(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(unix_s))


def _without_query(path: str | bytes) -> str:
    text = path if isinstance(path, str) else path.decode("latin-1")
    return text.partition("?")[0] if "?" in text else text


def _ascii(text: bytes) -> bytes:
    """Escape what is not printable ASCII: it stands inside JSON strings only, and never after half an escape."""
    return _NOT_PRINTABLE.sub(_escaped, text.decode()).encode()


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000  # a surrogate pair, RFC 8259, 7
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _shortened(line: Line) -> bytes:
    """Cut the longest fields until the line fits: short ones are kept whole, long ones share what is left."""
    fields = {name: getattr(line, name)[:LINE_MAX] for name in _TEXT_FIELDS}
    sizes = {name: _size(text) for name, text in fields.items()}
    for name in _TEXT_FIELDS:
        setattr(line, name, "")
    left = LINE_MAX - 1 - len(_encode(line))
    names = sorted(sizes, key=sizes.__getitem__)
    for number, name in enumerate(names):
        share = left // (len(names) - number)
        whole = len(fields[name]) < LINE_MAX and sizes[name] <= share
        text = fields[name] if whole else _cut(fields[name], share)
        setattr(line, name, text)
        left -= _size(text)
    return _ascii(_encode(line))


def _size(text: str) -> int:
    """Bytes that `text` takes in a line."""
    return len(_ascii(_encode(text))) - 2


def _cut(text: str, size_max: int) -> str:
    """The longest start of `text` that fits with a mark into `size_max` bytes."""
    low, high = 0, min(len(text), size_max)
    while low < high:
        middle = (low + high + 1) // 2
        if _size(text[:middle]) + _MARK_BYTES <= size_max:
            low = middle
        else:
            high = middle - 1
    return text[:low] + MARK


class AccessLog:
    """One worker's access log at `path`: `-` is standard output, None is off. Nothing here raises, nothing waits.

    A file that cannot be opened drops and counts every line, and is tried again at `reopen`; `problem` says why, for
    whoever made the log to tell. `on_drop` is told how many lines were just dropped.
    """

    def __init__(self, path: str | None, on_drop: Callable[[int], None] | None = None) -> None:
        self.on_drop = on_drop
        self.problem = ""
        self._path: str | None = None
        self._fd: int | None = None
        self._writer: LogWriter | None = None
        self.reopen(path)

    def write(self, exchange: Exchange) -> None:
        """Log an exchange that is over now."""
        if self._writer is not None:
            self._writer.write(line_of(exchange, time.monotonic() - exchange.started))
        elif self._path is not None:
            self._dropped(1)

    def flush(self) -> None:
        """Push out what is buffered; for a sweep."""
        if self._writer is not None:
            self._writer.flush()

    def reopen(self, path: str | None) -> None:
        """Go on at `path`, with a new descriptor though it may be the old path: that is how a log is rotated."""
        self.close()
        self._path = path
        self.problem = ""
        if path is None:
            return
        try:
            if path != STANDARD_OUTPUT:
                self._fd = open_log(path)
            self._writer = LogWriter(1 if self._fd is None else self._fd, CAPACITY, self._dropped)
        except OSError as error:
            self.problem = f"access log {path}: {error.strerror}"
            self._close_file()

    def close(self) -> None:
        """Write what can be written now; the rest is dropped and counted."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._close_file()

    def _close_file(self) -> None:
        if self._fd is not None:
            with suppress(OSError):  # a late ENOSPC of a network file system: there is nobody to tell
                os.close(self._fd)
            self._fd = None

    def _dropped(self, lines: int) -> None:
        if self.on_drop is not None:
            self.on_drop(lines)


def line_of(exchange: Exchange, seconds: float) -> bytes:
    """The line of an exchange that took `seconds`."""
    request = exchange.request
    decision = exchange.decision
    flag = exchange.flag
    return encode(
        wall_ms=exchange.wall_ms(),
        request_id=exchange.request_id,
        client=exchange.client or exchange.peer,  # refused before it was identified: the peer is what is known
        source="hop" if exchange.listener == "hop" else "client",
        method=request.method,
        path=request.target,
        host=request.host_field,
        tenant=exchange.tenant,
        decision="" if decision is None else decision.kind,
        reason=exchange.reason,
        region="" if decision is None else decision.region,
        status=exchange.status,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        seconds=seconds,
        flag="" if flag is None else flag.name,
    )
