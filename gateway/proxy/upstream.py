"""One connection to an endpoint: requests out, responses in (RFC 9112), one exchange at a time.

It reads what the application sends, and tells the relay what that means: a head, body bytes, the end, or that the
connection died. It never decides what a client sees.
"""

from __future__ import annotations

import asyncio
import re
import socket
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

from gateway.core.errors import GatewayError
from gateway.core.http1.body import BodyError, ChunkedReader
from gateway.core.http1.head import UNTIL_CLOSE, Response, parse_response
from gateway.proxy import deadlines

if TYPE_CHECKING:
    from gateway.proxy.pool import EndpointPool
    from gateway.proxy.relay import Relay
    from gateway.proxy.worker import Worker

INFORMATIONAL_MAX: Final = 16
"""1xx heads before a final one; an application that sends more is not answering."""
BARE_LF: Final = re.compile(rb"(?<!\r)\n")


class Phase(Enum):
    """What the next byte from the application is."""

    IDLE = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    TUNNEL = auto()
    CLOSED = auto()


# Bound once: looking an enum member up by its class costs more than the comparison it is for.
_CHUNKED: Final = Phase.CHUNKED
_CLOSED: Final = Phase.CLOSED
_HEAD: Final = Phase.HEAD
_IDLE: Final = Phase.IDLE
_LENGTH: Final = Phase.LENGTH
_TUNNEL: Final = Phase.TUNNEL
_UNTIL_CLOSE: Final = Phase.UNTIL_CLOSE


class Upstream(asyncio.Protocol):
    """`deadline` is kept by the worker's sweep: monotonic seconds, 0 for none."""

    __slots__ = (
        "_buffer",
        "_informational",
        "_left",
        "_paused",
        "_reader",
        "deadline",
        "eof",
        "patient",
        "phase",
        "pool",
        "relay",
        "reused",
        "transport",
        "worker",
    )

    def __init__(self, worker: Worker, pool: EndpointPool) -> None:
        self.worker = worker
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.relay: Relay | None = None
        self.phase = _IDLE
        self.deadline = 0.0
        self.reused = False
        self.eof = False
        self.patient = True
        self._buffer = b""
        self._left = 0
        self._reader: ChunkedReader | None = None
        self._informational = 0
        self._paused = False

    # ---- the pool's side

    def alive(self) -> bool:
        return self.phase is _IDLE and self.transport is not None and not self.transport.is_closing()

    def begin(self, relay: Relay, head: bytes, deadline: float) -> None:
        """Send a request's first bytes on this connection, which is idle."""
        self.relay = relay
        self.phase = _HEAD
        self.deadline = deadline
        self._informational = 0
        assert self.transport is not None
        self.transport.write(head)

    def close_idle(self) -> None:
        """Close a connection that the pool has already let go of."""
        if self.phase is _IDLE and self.transport is not None:
            self.pool.size -= 1
            self.pool.cluster.size -= 1
            self.phase = _CLOSED
            self.worker.ups.discard(self)
            self.transport.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def give_up(self) -> None:
        """Cut a connection whose other side is gone, unless a response has begun: its exchange sees it die."""
        if self.phase in (_IDLE, _HEAD) and self.transport is not None:
            self.transport.abort()

    def abort(self) -> None:
        """Drop the connection at once: its exchange is over, and what still comes belongs to nobody."""
        self.relay = None
        if self.transport is not None:
            self.transport.abort()

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's
        self.worker.ups.add(self)
        self.wait_for_acks(False)

    def wait_for_acks(self, patient: bool) -> None:
        """How long what was written may stay unacknowledged: `timeouts.connect`, or as long as the kernel likes.

        A request that is out whole is acknowledged by the other machine's kernel at once, however slow its program
        is: where it is not, there is no way there (RFC 5482, 3). A body that goes on may find the reader's window
        closed for as long as that likes, which the kernel would count too.
        """
        self.patient = patient
        assert self.transport is not None
        sock = self.transport.get_extra_info("socket")
        limit_ms = 0 if patient else max(1, int(self.pool.cluster.config.timeouts.connect * 1000))
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        phase, relay = self.phase, self.relay
        if phase is _CLOSED:
            return
        self.phase = _CLOSED
        self.relay = None
        self.worker.ups.discard(self)
        self.pool.discard(self, was_busy=phase is not _IDLE)
        if relay is not None and isinstance(exc, TimeoutError) and phase is _HEAD:
            relay.upstream_failed("upstream_timeout", "the connection carries nothing any more")
        elif relay is not None:
            relay.upstream_lost(self, complete=phase is _UNTIL_CLOSE and self.eof and exc is None)

    def eof_received(self) -> None:
        self.eof = True

    def pause_writing(self) -> None:
        """The application does not read: wait for it as long as for a body, and let the client wait."""
        if self.relay is not None:
            stalls = self.worker.now() + self.pool.cluster.config.timeouts.body
            self.deadline = deadlines.bounded(self.relay, stalls) if self.phase is _HEAD else stalls
            self.relay.down.hold_reading(True)

    def resume_writing(self) -> None:
        relay = self.relay
        if relay is not None:
            if self.phase is _HEAD:
                relay.asked_at = 0.0
                waits = relay.request_sent or relay.awaits_100
                now = self.worker.now()
                self.deadline = deadlines.due(relay, self.pool.cluster, now) if waits else deadlines.ends_at(relay)
            elif self.phase is _TUNNEL:
                self.deadline = 0.0
            relay.down.hold_reading(False)

    def hold_reading(self, hold: bool) -> None:
        """Backpressure from the client's side."""
        if self.transport is not None and hold != self._paused and not self.transport.is_closing():
            self._paused = hold
            if self.phase in (_LENGTH, _CHUNKED, _UNTIL_CLOSE):  # the client's slowness is not the application's
                self.deadline = 0.0 if hold else self.worker.now() + self.pool.cluster.config.timeouts.body
            if hold:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        phase, relay = self.phase, self.relay
        if relay is None:  # bytes that nobody asked for (RFC 9112, 9.3): the connection cannot be trusted
            if self.transport is not None:
                self.transport.abort()
        elif phase is _HEAD:
            self._head(relay, data)
        elif phase is _TUNNEL:
            relay.tunnel_down(data)
        else:
            self._body(relay, data)

    # ---- heads

    def _head(self, relay: Relay, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        limits = self.worker.view.limits
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0 or end > limits.header_bytes:
                if len(data) > limits.header_bytes or BARE_LF.search(data):
                    self._malformed(relay, "the head is too large, or a line of it ends in a bare LF")
                    return
                self._buffer = data
                return
            try:
                response = parse_response(data[:end], self.worker.response_table, limits, relay.exchange.request.method)
            except GatewayError as error:
                self._malformed(relay, error.detail)
                return
            data = data[end + 4 :]
            if response.status >= 200:
                self._final(relay, response, data)
                return
            if not self._interim(relay, response, data):
                return
            if not data:
                return

    def _interim(self, relay: Relay, response: Response, rest: bytes) -> bool:
        """1xx (RFC 9110, 15.2). Whether to go on reading heads."""
        if response.status == 101:
            if not relay.exchange.request.upgrade or response.upgrade != frozenset((b"websocket",)):
                self._malformed(relay, "101 without a matching Upgrade")
                return False
            self.phase = _TUNNEL
            self.deadline = 0.0
            self.wait_for_acks(True)
            relay.switched(self, response, rest)
            return False
        self._informational += 1
        if self._informational > INFORMATIONAL_MAX:
            self._malformed(relay, "too many interim responses")
            return False
        relay.interim(response)
        return True

    def _final(self, relay: Relay, response: Response, rest: bytes) -> None:
        length = response.length
        if length >= 0:
            if len(rest) >= length:  # the whole response is here: one write for the client, the connection is free
                stray = len(rest) > length
                self._free(response.keep_alive and not stray and relay.request_sent)
                relay.response(self, response, rest if not stray else rest[:length], True)
                return
            self.phase = _LENGTH
            self._left = length - len(rest)
        elif length == UNTIL_CLOSE:
            self.phase = _UNTIL_CLOSE
        else:
            limits = self.worker.view.limits
            self.phase = _CHUNKED
            self._reader = ChunkedReader(self.worker.response_table, limits.header_bytes, limits.headers)
        relay.keep_after = response.keep_alive
        self.deadline = self.worker.now() + self.pool.cluster.config.timeouts.body
        if self.phase is _CHUNKED and rest:
            relay.response(self, response, b"", False)
            if self.relay is relay:
                self._body(relay, rest)
            return
        relay.response(self, response, rest, False)

    # ---- bodies

    def _body(self, relay: Relay, data: bytes) -> None:
        self.deadline = self.worker.now() + self.pool.cluster.config.timeouts.body
        if self.phase is _LENGTH:
            left = self._left - len(data)
            self._left = left
            if left > 0:
                relay.response_data(data)
                return
            self._free(relay.keep_after and left == 0 and relay.request_sent)
            relay.response_end(data if left == 0 else data[:left], [])
        elif self.phase is _UNTIL_CLOSE:
            relay.response_data(data)
        elif self.phase is _CHUNKED:
            self._chunked(relay, data)

    def _chunked(self, relay: Relay, data: bytes) -> None:
        reader = self._reader
        assert reader is not None
        try:
            pieces = reader.feed(data)
        except BodyError as error:
            self._malformed(relay, str(error))
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if not reader.done:
            if body:
                relay.response_data(body)
            return
        self._reader = None
        self._free(relay.keep_after and not reader.rest and relay.request_sent)
        relay.response_end(body, reader.trailers)

    def _free(self, reusable: bool) -> None:
        """The response is complete: back to the pool, or closed when framing or `Connection` forbid reuse."""
        self.relay = None
        self.phase = _IDLE
        self.hold_reading(False)
        if reusable and not self.eof:
            self.reused = True
            self.pool.release(self, self.worker.now())
            return
        self.pool.busy -= 1
        self.pool.size -= 1
        self.pool.cluster.size -= 1
        self.phase = _CLOSED
        self.worker.ups.discard(self)
        assert self.transport is not None
        self.transport.abort()  # nothing more is written here, and nothing more is read
        if self.pool.cluster.waiting:
            self.pool.cluster.grow()

    def _malformed(self, relay: Relay, detail: str) -> None:
        self.relay = None
        relay.upstream_failed("upstream_malformed", detail)
        if self.transport is not None:
            self.transport.abort()
