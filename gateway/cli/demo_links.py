"""The links between the demo's regions: a relay for each region that follows another one, to be cut and healed.

Each region's gateway reaches the Valkey servers of the others through these. A cut link behaves as a network that drops
every packet: nothing is refused and nothing closed, connections just carry nothing more and new ones get no answer.
What was under way when it was cut arrives once it is healed, as TCP sends it again. Bytes only; nothing here knows what
they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, cast

CONNECTIONS_MAX: Final = 64
"""Of one link; beyond it the oldest goes. While a link is cut, those who gave up waiting are not seen to leave."""

CONNECT_LIMIT_S: Final = 2.0


class Link(contextlib.AbstractAsyncContextManager["Link"]):
    """Carries connections from `port` to `target`, both on 127.0.0.1, while it is whole."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.whole = True
        self._near: dict[_End, None] = {}
        self._far: set[_End] = set()
        self._empty = asyncio.Event()
        self._connecting: dict[_End, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Link:
        """Listen. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Near(self), "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything, whole or cut."""
        if self._server is not None:
            self._server.close()
        for end in [*self._near, *self._far]:
            end.abort()
        tasks = list(self._connecting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._near or self._far:
            self._empty.clear()
            await self._empty.wait()

    def cut(self) -> None:
        """Carry nothing from now on."""
        self.whole = False
        self._flow()

    def heal(self) -> None:
        """Go on where it was cut; connections that wait are made."""
        self.whole = True
        self._flow()

    def _flow(self) -> None:
        for end in list(self._near):
            if end.other is not None:
                end.flow()
                end.other.flow()
            elif self.whole and end not in self._connecting:
                self._connect(end)

    def accepted(self, end: _End) -> None:
        if len(self._near) >= CONNECTIONS_MAX:
            next(iter(self._near)).abort()
        self._near[end] = None
        if self.whole:
            self._connect(end)

    def dialled(self, end: _End) -> None:
        self._far.add(end)

    def gone(self, end: _End) -> None:
        self._near.pop(end, None)
        self._far.discard(end)
        if not self._near and not self._far:
            self._empty.set()

    def _connect(self, near: _End) -> None:
        task = asyncio.get_running_loop().create_task(self._reach(near))
        self._connecting[near] = task
        task.add_done_callback(lambda _: self._connecting.pop(near, None))

    async def _reach(self, near: _End) -> None:
        """Make the other half of a connection; without one it ends, as one that was refused."""
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                far = (
                    await asyncio.get_running_loop().create_connection(lambda: _Far(self), "127.0.0.1", self.target)
                )[1]
        except (OSError, TimeoutError):
            near.abort()
            return
        near.join(far)
        far.join(near)
        if near.transport.is_closing() or far.transport.is_closing():
            near.abort()


class _End(asyncio.Protocol):
    """One end of a carried connection: what it hears, the other one writes; it hears nothing until there is one."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.other: _End | None = None
        self.full = False
        """Its buffer is: the other end has to stop hearing."""
        self.early = b""
        """What came before there was another end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        asyncio.get_running_loop().call_soon(self.flow)  # uvloop begins to read only after this, whatever we say now

    def join(self, other: _End) -> None:
        """From now on there is another end."""
        self.other = other
        if self.early:
            other.transport.write(self.early)
            self.early = b""
        self.flow()

    def flow(self) -> None:
        """Hear, or stop hearing."""
        if self.transport.is_closing():
            return
        if self.other is not None and self.link.whole and not self.other.full:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
            self.transport.pause_reading()
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.full = True
        if self.other is not None:
            self.other.flow()

    def resume_writing(self) -> None:
        self.full = False
        if self.other is not None:
            self.other.flow()

    def connection_lost(self, error: Exception | None) -> None:
        self.link.gone(self)
        if self.other is not None:
            self.other.transport.close()

    def abort(self) -> None:
        """Drop both ends, whatever they still hold."""
        for end in (self, self.other):
            if end is not None:
                end.transport.abort()


class _Near(_End):
    """The end that was accepted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.link.accepted(self)


class _Far(_End):
    """The end that was made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.link.dialled(self)
