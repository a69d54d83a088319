"""One client's connection: requests in (RFC 9112), responses out, in order.

It reads heads and bodies, keeps pipelined bytes until their turn, and enforces the client's time limits. What a
request means, and what becomes of it, is the relay's.
"""

from __future__ import annotations

import asyncio
import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.http1.body import BodyError, ChunkedReader, chunk, last_chunk
from gateway.core.http1.fields import TOKEN
from gateway.core.http1.head import CHUNKED, Memory, Request, parse_request
from gateway.core.peering import PEER_PATH
from gateway.proxy.relay import Relay
from gateway.proxy.shedder import Refusal
from gateway.proxy.upstream import BARE_LF

if TYPE_CHECKING:
    from gateway.proxy.worker import Worker

PIPELINE_BYTES_MAX: Final = 64 * 1024
"""Bytes of later requests kept while one is in hand; beyond it the client waits in the kernel."""
REFUSED_S: Final = 1.0
"""What a connection gets that is to be refused: its first request is waited for, because it may be a probe."""
PROBED: Final = (b"GET", b"HEAD")
LINGER_S: Final = 2.0
"""How long a closed-for-writing connection is read and thrown away, so that no reset eats our last answer."""
LINGER_BYTES_MAX: Final = 1 << 20
REQUEST_LINE_REST_BYTES: Final = 64
"""Method, spaces and version beside the target."""
TCHAR: Final = re.compile(TOKEN)
EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)++")
"""Taken in one step, however many there are: cutting them off one by one copies the rest each time."""

HOLD_UPSTREAM: Final = 1
HOLD_PIPELINE: Final = 2


class Phase(Enum):
    """What the next byte from the client is."""

    HEAD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    WAIT = auto()
    TUNNEL = auto()
    LINGER = auto()
    CLOSED = auto()


# Bound once: looking an enum member up by its class costs more than the comparison it is for.
_CHUNKED: Final = Phase.CHUNKED
_CLOSED: Final = Phase.CLOSED
_HEAD: Final = Phase.HEAD
_LENGTH: Final = Phase.LENGTH
_LINGER: Final = Phase.LINGER
_TUNNEL: Final = Phase.TUNNEL
_WAIT: Final = Phase.WAIT


class Downstream(asyncio.Protocol):
    """`deadline` is kept by the worker's sweep: monotonic seconds, 0 for none. `keep_alive` turns false once."""

    __slots__ = (
        "_buffer",
        "_held",
        "_left",
        "_memory",
        "_reader",
        "_refusal",
        "_running",
        "_scanned",
        "_skipped",
        "_stalled",
        "_unsent",
        "deadline",
        "keep_alive",
        "listener",
        "local_port",
        "peer",
        "phase",
        "relay",
        "transport",
        "worker",
    )

    def __init__(self, worker: Worker, listener: str, local_port: int) -> None:
        self.worker = worker
        self.listener = listener
        self.local_port = local_port
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.phase = _HEAD
        self.relay: Relay | None = None
        self.keep_alive = True
        self.deadline = 0.0
        self._buffer = b""
        self._memory = Memory()
        self._scanned = 0
        self._held = 0
        self._left = 0
        self._skipped = 0
        self._reader: ChunkedReader | None = None
        self._refusal: Refusal | None = None
        self._running = False
        self._stalled = False
        self._unsent = 0

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's
        peername = transport.get_extra_info("peername")
        self.peer = peername[0] if peername else ""
        self.deadline = self.worker.now() + self.worker.view.timeouts.keepalive
        refusal = self.worker.admit(self)
        if refusal is not None:
            self._refusal = refusal
            self.keep_alive = False
            self.deadline = self.worker.now() + REFUSED_S
            if refusal.at_once:
                self._turn_away(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = _CLOSED
        self.worker.downs.discard(self)
        if self._refusal is not None:
            self.worker.turning -= 1
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.client_gone()

    def eof_received(self) -> bool:
        """A client that closes its side is taken to have left, as nginx and Envoy do: nobody waits for an answer."""
        return False

    def pause_writing(self) -> None:
        self._stalled = True
        self._watch_writes()
        if self.relay is not None and self.relay.up is not None:
            self.relay.up.hold_reading(True)

    def _watch_writes(self) -> None:
        """Give the client the body's time to take something of what is written."""
        assert self.transport is not None
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = self.worker.now() + self.worker.view.timeouts.body

    def resume_writing(self) -> None:
        self._stalled = False
        if self.phase is _WAIT or self.phase is _TUNNEL:
            self.deadline = 0.0
        if self.relay is not None and self.relay.up is not None:
            self.relay.up.hold_reading(False)

    def hold_reading(self, hold: bool, why: int = HOLD_UPSTREAM) -> None:
        """Backpressure: stop reading from the client while any reason stands."""
        before = self._held
        self._held = before | why if hold else before & ~why
        if bool(before) == bool(self._held) or self.transport is None or self.transport.is_closing():
            return
        if self._held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase is _HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            self._requests()
        elif phase is _LENGTH or phase is _CHUNKED:
            self.deadline = self.worker.now() + self.worker.view.timeouts.body
            self._body(data)
        elif phase is _TUNNEL:
            assert self.relay is not None
            self.relay.tunnel_up(data)
        elif phase is _WAIT:
            self._buffer += data
            if len(self._buffer) > PIPELINE_BYTES_MAX:
                self.hold_reading(True, HOLD_PIPELINE)
        elif phase is _LINGER:
            self._skipped += len(data)
            if self._skipped > LINGER_BYTES_MAX:
                self.abort()

    @property
    def busy(self) -> bool:
        """Whether a request is in hand, or has begun to arrive."""
        return self.relay is not None or bool(self._buffer)

    # ---- heads

    def _requests(self) -> None:
        """Start as many requests as the buffer holds; a loop, not a recursion, however many are pipelined."""
        if self._running:
            return
        self._running = True
        try:
            while self._buffer and self.phase is _HEAD and self._request():
                pass
        finally:
            self._running = False

    def _request(self) -> bool:
        """Read one head from the buffer and start its exchange. False when more bytes are needed."""
        worker = self.worker
        limits = worker.view.limits
        data = self._buffer
        if data.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request line are ignored
            self._buffer = data = EMPTY_LINES.sub(b"", data, count=1)
            self._scanned = 0
            if not data:
                return False
        end = data.find(b"\r\n\r\n", self._scanned)
        if end < 0 or end > limits.header_bytes:
            return self._incomplete(data, end)
        self._scanned = 0
        if self._refusal is not None and not self._is_probe(data):
            self._turn_away(self._refusal)
            return False
        self._buffer = data[end + 4 :]
        try:
            request = parse_request(data[:end], worker.table, limits, self._memory)
        except GatewayError as error:
            self._answer_without_request(error.flag.name, error.detail)
            return False
        relay = self._start(request)
        if request.length == 0:
            self.phase = _WAIT
            self.deadline = 0.0
            relay.request_sent = True
        elif not self._begin_body(request, relay):
            return True
        relay.run()
        return True

    def _start(self, request: Request) -> Relay:
        worker = self.worker
        exchange = Exchange(
            request, worker.view, worker, self.listener, self.peer, self.local_port, worker.now(), worker.wall_ms
        )
        self.relay = relay = Relay(worker, self, exchange)
        return relay

    def _begin_body(self, request: Request, relay: Relay) -> bool:
        """Take what came of the body with the head, before anything is sent. False when it was refused already."""
        limits = self.worker.view.limits
        self.deadline = self.worker.now() + self.worker.view.timeouts.body
        if request.length == CHUNKED:
            self.phase = _CHUNKED
            self._reader = ChunkedReader(self.worker.table, limits.header_bytes, limits.headers)
        else:
            self.phase = _LENGTH
            self._left = request.length
            if limits.body_bytes is not None and request.length > limits.body_bytes:
                relay.refuse("body_too_large", f"the limit is {limits.body_bytes} bytes")
                return False
        data, self._buffer = self._buffer, b""
        if data:
            self._body(data)
        return not relay.over

    def _incomplete(self, data: bytes, end: int) -> bool:
        """A head that has not ended: refuse it as soon as it can no longer become a good one."""
        limits = self.worker.view.limits
        if self._scanned == 0:
            self.deadline = self.worker.now() + self.worker.view.timeouts.header
        line_end = data.find(b"\r\n")
        line_max = limits.target_bytes + REQUEST_LINE_REST_BYTES
        try:
            if BARE_LF.search(data, max(0, self._scanned - 1)):
                raise GatewayError("request_malformed", "a line ends in a bare LF")
            if line_end > line_max or (line_end < 0 and len(data) > line_max):
                raise GatewayError("target_too_long", f"longer than {limits.target_bytes} bytes")
            if end > 0 or len(data) > limits.header_bytes:
                raise GatewayError("fields_too_large", f"the limit is {limits.header_bytes} bytes")
            if TCHAR.match(data) is None and data != b"\r":
                raise GatewayError("request_malformed", "this is not HTTP")
        except GatewayError as error:
            self._answer_without_request(error.flag.name, error.detail)
            return False
        self._scanned = max(1, len(data) - 3)
        return False

    def _is_probe(self, data: bytes) -> bool:
        """Whether these bytes begin with what a load balancer or a peer asks to see whether we live: never refused for
        load, or the load balancer would send it to the gateways that are left, until none is."""
        probes = self.worker.view.probes
        paths = (PEER_PATH.encode(),) if self.listener == "hop" else (probes.live, probes.ready)
        return data.startswith(tuple(b"%b %b HTTP/1." % (method, path) for path in paths for method in PROBED))

    def _turn_away(self, refusal: Refusal) -> None:
        """503 for a connection that this worker has no room or no time for, without a look at its request."""
        self._answer_without_request("shed", refusal.detail, self.worker.shedder.turned_away(refusal), refusal.reason)

    def _answer_without_request(self, flag: str, detail: str, retry_after_s: int = 0, reason: str = "") -> None:
        """Refuse something that never became a request: answer, log, and close (the framing is lost)."""
        self.keep_alive = False
        self.phase = _WAIT
        self._buffer = b""
        request = Request(b"-", b"-", 11)
        relay = self._start(request)
        relay.exchange.request_id = self.worker.random_id()
        relay.exchange.retry_after_s, relay.exchange.reason = retry_after_s, reason
        relay.refuse(flag, detail)

    # ---- bodies

    def _body(self, data: bytes) -> None:
        relay = self.relay
        assert relay is not None
        if self.phase is _LENGTH:
            left = self._left - len(data)
            relay.exchange.bytes_in += len(data) if left >= 0 else self._left
            self._left = left
            if left > 0:
                relay.request_data(data)
                return
            self._body_done()
            if left < 0:
                self._buffer = data[left:]
                data = data[:left]
            relay.request_end(data)
            return
        self._chunked(relay, data)

    def _chunked(self, relay: Relay, data: bytes) -> None:
        reader = self._reader
        assert reader is not None
        try:
            pieces = reader.feed(data)
        except BodyError as error:
            relay.refuse("framing_ambiguous", str(error))
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        relay.exchange.bytes_in += len(body)
        limit = self.worker.view.limits.body_bytes
        if limit is not None and relay.exchange.bytes_in > limit:
            relay.refuse("body_too_large", f"the limit is {limit} bytes")
            return
        out = chunk(body) if body else b""
        if not reader.done:
            if out:
                relay.request_data(out)
            return
        self._reader = None
        self._body_done()
        self._buffer = reader.rest
        relay.request_end(out + last_chunk(reader.trailers))

    def _body_done(self) -> None:
        self.phase = _WAIT
        self.deadline = 0.0

    # ---- the relay's side

    def write(self, data: bytes) -> None:
        if self.transport is not None and self.phase is not _CLOSED:
            self.transport.write(data)

    def tunnel(self) -> None:
        """From here on bytes go through unread; what came early belongs to the other side."""
        self.phase = _TUNNEL
        self.deadline = 0.0
        self.keep_alive = False
        data, self._buffer = self._buffer, b""
        self.hold_reading(False, HOLD_PIPELINE)
        if data and self.relay is not None:
            self.relay.tunnel_up(data)

    def exchange_done(self) -> None:
        """The response is written: the next request, or the end."""
        self.relay = None
        if self.phase is _CLOSED:
            return
        if not self.keep_alive or self.phase is not _WAIT:
            self.close()
            return
        self.phase = _HEAD
        self.deadline = self.worker.now() + self.worker.view.timeouts.keepalive
        if self._held:
            self.hold_reading(False, HOLD_UPSTREAM | HOLD_PIPELINE)
        if self._buffer:
            self._requests()

    def close(self) -> None:
        """Close after what was written; what still comes is read for a while, or a reset would take the answer."""
        if self.transport is None or self.transport.is_closing() or self.phase is _LINGER:
            return
        self._buffer = b""
        if self.phase is _TUNNEL or self.phase is _HEAD:
            self.transport.close()
            return
        self.phase = _LINGER
        self._watch_writes()
        if not self._unsent:
            self.deadline = self.worker.now() + LINGER_S
        self.hold_reading(False, HOLD_UPSTREAM | HOLD_PIPELINE)
        self.transport.write_eof()

    def abort(self) -> None:
        """Cut the connection: the client must not take what it has for a whole message."""
        if self.transport is not None:
            self.transport.abort()

    def expired(self) -> None:
        """The sweep found `deadline` past."""
        self.deadline = 0.0
        relay = self.relay
        if self._stalled or self.phase is _LINGER:
            if self.transport is not None and 0 < self.transport.get_write_buffer_size() < self._unsent:
                self._watch_writes()  # slow, but reading
            else:
                self.abort()
        elif self.phase is _HEAD:
            if self._refusal is not None:
                self._turn_away(self._refusal)
            elif self._buffer:
                self._answer_without_request("head_timeout", "")
            elif self.transport is not None:
                self.transport.close()
        elif relay is not None and self.phase in (_LENGTH, _CHUNKED):
            if self._held:  # the application does not read: the connection to it has a deadline for that
                self.deadline = self.worker.now() + self.worker.view.timeouts.body
            else:
                relay.refuse("body_timeout", "")
