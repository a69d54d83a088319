"""The admin API's connections, bounded: whoever reaches the port can hold some of them, never control's descriptors.

Control needs those to check applications and to ask other regions; without a bound, silent connections to an admin
port off loopback would make healthy clusters look unable. aiohttp bounds neither the number of connections nor the time
until the first request, so connections are accepted here and handed to it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

from aiohttp import web

from gateway.control.tasks import TaskSet

LOG = logging.getLogger("landbridge.control")

CONNECTIONS_MAX: Final = 256
"""A quarter of the descriptors that a process has where nobody set a limit."""
PER_ADDRESS_MAX: Final = 64
"""So four addresses are needed to keep others out; a dashboard's browser opens six."""
FIRST_REQUEST_S: Final = 10.0
"""Within which the first head has to be there whole: as `timeouts.header` for clients."""
PAUSE_S: Final = 0.1
"""After accept() failed: what is missing, descriptors, does not come back sooner."""


class Listener:
    """Accepts on `sock`, which it takes over, for `server`, which takes from `silent` what sends its first request."""

    def __init__(self, sock: socket.socket, server: web.Server, tasks: TaskSet, silent: set[object]) -> None:
        self._sock = sock
        self._server = server
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._silent = silent
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Accept no more. What is open is the server's to end."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        try:
            connection, address = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            LOG.error("admin: no connection can be accepted: %s", error.strerror)
            self._loop.remove_reader(self._sock)
            self._again = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._sock, self._readable)
            return
        if self._is_too_many(address[0]):
            connection.close()
            return
        connection.setblocking(False)
        self._tasks.spawn(self._serve(connection), "admin connection")

    def _is_too_many(self, address: str) -> bool:
        open_ = self._server.connections
        if len(open_) >= CONNECTIONS_MAX:
            return True
        transports = (protocol.transport for protocol in open_)
        peers = (transport.get_extra_info("peername") for transport in transports if transport is not None)
        return sum(1 for peer in peers if peer and peer[0] == address) >= PER_ADDRESS_MAX

    async def _serve(self, connection: socket.socket) -> None:
        protocol = self._server()
        self._silent.add(protocol)  # before it can have heard anything
        self._loop.call_later(FIRST_REQUEST_S, self._end_if_silent, protocol)
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it is gone already
            connection.close()

    def _end_if_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()
