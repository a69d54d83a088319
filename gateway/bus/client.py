"""A worker's end of the bus: connects, and connects again for ever, quietly, while control is away.

Nothing on the request path waits for it: `send` queues or says no, and a worker that hears nothing goes on with what
it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import msgspec

from gateway.bus.address import connect
from gateway.bus.frames import CONTROL_FRAME_MAX, WORKER_FRAME_MAX, FrameReader, FrameTooLong, frame
from gateway.bus.messages import FromControl, FromWorker

RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 1.0
"""A control that was restarted is heard within a second; until then each try is one failed system call."""

BUFFER_MAX: Final = 1 << 20
"""Bytes that control may leave unread: minutes of reports. A control that does not read is given up."""

_log = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromControl] = msgspec.msgpack.Decoder(FromControl)


class _Connection(asyncio.Protocol):
    """One connection of the client. `lost` is set once it is gone."""

    def __init__(self, client: BusClient) -> None:
        self._client = client
        self._reader = FrameReader(CONTROL_FRAME_MAX)
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own, which do what asyncio.Transport says without being one
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            payloads = self._reader.feed(data)
        except FrameTooLong as error:
            _log.warning("bus: %s: connecting again", error)
            self.abort()
            return
        for payload in payloads:
            try:
                message = _decoder.decode(payload)
            except msgspec.MsgspecError as error:
                _log.warning("bus: a message that cannot be read is skipped: %s", error)
                continue
            self._client.heard(message)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.lost.set()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class BusClient:
    """The bus, seen from a worker. Callbacks run in the event loop and must not block.

    `on_connect` is called at every new connection: a worker says Hello there.
    """

    def __init__(self, path: Path, on_message: Callable[[FromControl], None], on_connect: Callable[[], None]) -> None:
        self._path = path
        self._on_message = on_message
        self._on_connect = on_connect
        self._connection = _Connection(self)
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._connection.transport is not None

    def start(self) -> None:
        """Begin to connect; returns at once. Needs a running loop."""
        assert self._task is None, "a client is started once"
        self._task = asyncio.get_running_loop().create_task(self._stay_connected(), name="bus client")

    def send(self, message: FromWorker) -> bool:
        """Queue a message. False: there is no connection, or it was given up because control does not read."""
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            return False
        data = frame(_encoder.encode(message), WORKER_FRAME_MAX)
        if transport.get_write_buffer_size() + len(data) > BUFFER_MAX:
            _log.warning("bus: control does not read: connecting again")
            transport.abort()
            return False
        transport.write(data)
        return True

    async def close(self) -> None:
        """Stop for good. Nothing is cancelled: uvloop forgets a transport whose making was cancelled."""
        self._stop.set()
        self._connection.abort()
        if self._task is not None:
            await asyncio.wait([self._task])

    def heard(self, message: FromControl) -> None:
        """A message came (called by the connection)."""
        self._guarded(lambda: self._on_message(message))

    async def _stay_connected(self) -> None:
        retry_s = RETRY_MIN_S
        while not self._stop.is_set():
            if await self._connect():
                retry_s = RETRY_MIN_S
                await self._connection.lost.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(retry_s):
                    await self._stop.wait()
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _connect(self) -> bool:
        try:
            sock = connect(self._path)
        except OSError:
            return False  # control is away; its supervisor knows and says so
        self._connection = connection = _Connection(self)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=sock)
        except OSError:
            sock.close()
            return False
        if self._stop.is_set():
            connection.abort()
        else:
            self._guarded(self._on_connect)
        return True

    @staticmethod
    def _guarded(call: Callable[[], None]) -> None:
        """A message that we fail to handle must not cost the connection: what follows may put it right."""
        try:
            call()
        except Exception:
            _log.exception("a bus callback failed")
