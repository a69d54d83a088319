"""Control's end of the bus: accepts workers, tells all of them the same, hears what each reports.

Control never waits for a worker: what a worker does not read is buffered up to a limit, and then the worker is cut
off; it connects again and is told everything anew. A message that cannot be read is skipped and logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import msgspec

from gateway.bus.address import Address, listen
from gateway.bus.frames import CONTROL_FRAME_MAX, WORKER_FRAME_MAX, FrameReader, FrameTooLong, frame
from gateway.bus.messages import FromControl, FromWorker, Hello

BUFFER_MAX: Final = 2 * CONTROL_FRAME_MAX
"""Bytes a worker may leave unread: the largest message, and what follows it within a moment."""

_log = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


class BusPeer(asyncio.Protocol):
    """One connected worker. `hello` is what it said first, None until then."""

    def __init__(self, server: BusServer) -> None:
        self._server = server
        self._reader = FrameReader(WORKER_FRAME_MAX)
        self._transport: asyncio.Transport | None = None
        self.hello: Hello | None = None

    def __repr__(self) -> str:
        who = f"slot {self.hello.slot} pid {self.hello.pid}" if self.hello else "before hello"
        return f"<BusPeer {who}>"

    def send(self, message: FromControl) -> bool:
        """Queue a message for this worker. False: it is gone, or was cut off because it does not read."""
        return self.write(frame(_encoder.encode(message), CONTROL_FRAME_MAX))

    def write(self, data: bytes) -> bool:
        """Queue a whole frame. As `send`."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(data) > BUFFER_MAX:
            _log.warning("%r does not read the bus: cut off, it will connect again", self)
            transport.abort()
            return False
        transport.write(data)
        return True

    def close(self) -> None:
        """Close after what is queued is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own, which do what asyncio.Transport says without being one
        self._transport = cast(asyncio.Transport, transport)
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        try:
            payloads = self._reader.feed(data)
        except FrameTooLong as error:
            _log.warning("%r: %s: cut off", self, error)
            self.abort()
            return
        for payload in payloads:
            try:
                message = _decoder.decode(payload)
            except msgspec.MsgspecError as error:
                _log.warning("%r: a message that cannot be read is skipped: %s", self, error)
                continue
            if isinstance(message, Hello):
                self.hello = message
            self._server.heard(self, message)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.left(self)


class BusServer:
    """The bus at a Unix socket. Callbacks run in the event loop and must not block.

    `on_connect` is called for each new connection, before its first message; `on_lost` when one is gone.
    """

    def __init__(
        self,
        path: Path,
        on_message: Callable[[BusPeer, FromWorker], None],
        on_connect: Callable[[BusPeer], None],
        on_lost: Callable[[BusPeer], None] | None = None,
    ) -> None:
        self._path = path
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._server: asyncio.Server | None = None
        self._address: Address | None = None
        self._inode = 0
        self._is_closing = False
        self._all_gone = asyncio.Event()
        self.peers: set[BusPeer] = set()

    async def start(self) -> None:
        """Listen. A socket that an earlier control left behind is replaced. Raises OSError."""
        self._address = Address(self._path)
        try:
            listener = listen(self._address)
        except OSError:
            self._address.close()
            raise
        self._inode = os.stat(self._address.short).st_ino
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: BusPeer(self), sock=listener)

    def broadcast(self, message: FromControl) -> None:
        """Queue a message for every worker that has said Hello: the others will be told everything when they do."""
        data = frame(_encoder.encode(message), CONTROL_FRAME_MAX)
        for peer in list(self.peers):
            if peer.hello is not None:
                peer.write(data)

    async def close(self) -> None:
        """Stop listening and close every connection. The socket is removed unless a successor has put its own there."""
        if self._server is None or self._address is None or self._is_closing:
            return
        self._is_closing = True
        with suppress(OSError):
            if os.stat(self._address.short).st_ino == self._inode:
                os.unlink(self._address.short)
        self._server.close()
        for peer in list(self.peers):
            peer.abort()
        while self.peers:
            self._all_gone.clear()
            await self._all_gone.wait()
        self._address.close()

    def joined(self, peer: BusPeer) -> None:
        """A connection was made (called by the peer)."""
        self.peers.add(peer)
        if self._is_closing:
            peer.abort()
            return
        self._guarded(lambda: self._on_connect(peer))

    def heard(self, peer: BusPeer, message: FromWorker) -> None:
        """A message came (called by the peer)."""
        self._guarded(lambda: self._on_message(peer, message))

    def left(self, peer: BusPeer) -> None:
        """A connection is gone (called by the peer)."""
        self.peers.discard(peer)
        if not self.peers:
            self._all_gone.set()
        if (on_lost := self._on_lost) is not None:
            self._guarded(lambda: on_lost(peer))

    @staticmethod
    def _guarded(call: Callable[[], None]) -> None:
        """One message that we fail to handle must not cost the connection, and the messages after it."""
        try:
            call()
        except Exception:
            _log.exception("a bus callback failed")
