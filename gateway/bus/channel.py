"""A child's end of the supervisor's channel: JSON lines over an inherited socket, one object a line.

The channel is also the child's lifeline: its end means that the supervisor is gone, however it went, and the child
has to drain and leave. A line that cannot be read is skipped and logged: a newer supervisor may say more.

It uses the socket itself, without a transport: what was sent is with the kernel even if the child exits at once, and
a supervisor that is stopped can hold nothing up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

LINE_MAX: Final = 256 << 10
"""Bytes. The longest command lists every worker; a supervisor that sends more without a newline is not ours."""

SEND_MAX: Final = 16 << 10
"""Bytes. The kernel takes a message this short whole or not at all, so a line can never be torn."""

RECEIVE_BYTES: Final = 64 << 10

_log = logging.getLogger(__name__)


class Channel:
    """Takes over `fd`, a connected Unix stream socket. Callbacks run in the event loop and must not block.

    `on_lost` is called exactly once, when the other end is closed or the stream cannot be followed; not after
    `close()`.
    """

    def __init__(self, fd: int, on_command: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self._fd = fd
        self._on_command = on_command
        self._on_lost = on_lost
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._buffer = bytearray()

    async def start(self) -> None:
        """Begin to listen. Raises OSError when the descriptor is no Unix socket."""
        sock = socket.socket(fileno=self._fd)
        if sock.family != socket.AF_UNIX:
            sock.detach()
            raise OSError(f"descriptor {self._fd} is no Unix socket")
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def send(self, message: dict[str, Any]) -> bool:
        """Say something to the supervisor. False: it is gone, or does not read. ValueError beyond SEND_MAX."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(line) > SEND_MAX:
            raise ValueError(f"a message of {len(line)} bytes is longer than {SEND_MAX}")
        if self._socket is None:
            return False
        try:
            return self._socket.send(line, socket.MSG_NOSIGNAL) == len(line)
        except OSError:  # its end is heard by the reader, in its turn
            return False

    def close(self) -> None:
        """Close our end; `on_lost` is not called."""
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._take(bytes(line))
        if len(self._buffer) > LINE_MAX:
            _log.error("the supervisor's channel sends a line without end: taken as lost")
            self._lose()

    def _lose(self) -> None:
        if self._socket is not None:  # a command may have closed the channel
            self.close()
            self._on_lost()

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            command = json.loads(line)
        except ValueError:
            command = None
        if not isinstance(command, dict):
            _log.warning("the supervisor's channel: a line that cannot be read is skipped: %.100r", line)
            return
        try:
            self._on_command(command)
        except Exception:
            _log.exception("a command of the supervisor failed: %r", command)
