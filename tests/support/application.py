"""A small HTTP/1.1 application on a real socket, scripted by the test: what it answers, and what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Application:
    """Answers each request with `reply(head)`: raw bytes, or None to answer nothing.

    It keeps the connection after an answer that holds `Connection: keep-alive`, and closes it after any other.

    `stop` closes the listening socket, so that connects are refused; `start` takes the same port again.
    """

    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self.reply = reply
        self.heads: asyncio.Queue[bytes] = asyncio.Queue()
        self.connections: asyncio.Queue[None] = asyncio.Queue()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Application:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections.put_nowait(None)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.put_nowait(head)
                answer = self.reply(head)
                if answer is None:
                    await reader.read()
                    break
                writer.write(answer)
                await writer.drain()
                if b"Connection: keep-alive\r\n" not in answer:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


def ok(_head: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def status(code: int) -> Callable[[bytes], bytes]:
    return lambda _head: b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % code
