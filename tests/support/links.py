"""TCP relays that a test can cut, delay and heal: a network between regions, on one machine.

A link that is cut tells nobody: what was sent stays on its way, a new connection gets no answer to its SYN, and a close
is not heard of. Once healed, what was on its way arrives, as TCP would send it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

PIECE = 64 * 1024
QUEUE_MAX = 512


class Link:
    """A relay from `port` to `target` on this machine. Starts when it is made, on the running loop."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_s = 0.0
        """Each way, for every piece that passes."""
        self.passed = 0
        """Bytes, both ways."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=QUEUE_MAX)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._open = asyncio.Event()
        self._filler: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()
        self._open.set()
        self._loop.add_reader(self._listener.fileno(), self._accept)

    @property
    def is_cut(self) -> bool:
        return not self._open.is_set()

    def cut(self) -> None:
        """Nothing passes from now on. Linux drops a SYN when the queue is full; one for none is full with one."""
        if self.is_cut:
            return
        self._accept()
        self._open.clear()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.listen(0)
        self._filler = socket.create_connection(("127.0.0.1", self.port), 1.0)

    def heal(self) -> None:
        if not self.is_cut:
            return
        self._listener.listen(QUEUE_MAX)
        self._open.set()
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def turn(self, target: int) -> None:
        """Lead to another server from now on; what was connected to the old one is reset."""
        self.target = target
        for transport in list(self._transports):
            transport.abort()

    async def stop(self) -> None:
        """Close everything, whatever was on its way."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        if self._filler is not None:
            self._filler.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        while True:
            try:
                accepted, peer = self._listener.accept()
            except BlockingIOError:
                return
            if self._filler is not None and peer == self._filler.getsockname():
                self._filler.close()
                self._filler = None
                accepted.close()
                continue
            task = self._loop.create_task(self._relay(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, accepted: socket.socket) -> None:
        near_reader, near = await asyncio.open_connection(sock=accepted)
        ends = {near.transport}
        self._transports.add(near.transport)
        try:
            await self._open.wait()
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
            ends.add(far.transport)
            self._transports.add(far.transport)
            await asyncio.gather(self._pump(near_reader, far), self._pump(far_reader, near))
        except OSError:
            pass
        finally:
            for transport in ends:
                transport.abort()
            self._transports -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way. Its end goes on as an end, whatever it was: the other way may still have something."""
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._open.wait()
                if writer.is_closing():
                    return
                self.passed += len(data)
                writer.write(data)
                await writer.drain()
        await self._open.wait()
        if not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()
