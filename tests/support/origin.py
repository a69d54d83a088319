"""A real upstream for tests: a raw HTTP/1.1 server that records what arrives, byte for byte, and answers as told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as it arrived. `lines` are its field lines; `connection` numbers the TCP connection."""

    start: bytes
    lines: list[bytes]
    body: bytes
    connection: int

    def values(self, name: str) -> list[str]:
        found = []
        for line in self.lines:
            key, _, value = line.partition(b":")
            if key.decode("latin-1").lower() == name.lower():
                found.append(value.strip().decode("latin-1"))
        return found

    def value(self, name: str) -> str | None:
        values = self.values(name)
        assert len(values) <= 1, f"{name} arrived {len(values)} times: {values}"
        return values[0] if values else None


Answer = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool | None]]


async def ok(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """200 with the request line as body; keeps the connection."""
    body = b"" if seen.start.startswith(b"HEAD ") else seen.start
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-App: yes\r\n\r\n%b" % (len(seen.start), body))
    await writer.drain()
    return True


def raw(data: bytes, keep: bool = False) -> Answer:
    """Answer with these very bytes, then close (or keep the connection)."""

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(data)
        await writer.drain()
        return keep

    return answer


@dataclass
class Origin:
    """`answer` is called per request; a false result closes the connection. `requests` is what arrived, in order."""

    answer: Answer = ok
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _server: asyncio.AbstractServer | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> Origin:
        self._server = await asyncio.start_server(self._serve, host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        try:
            while (seen := await read_request(reader, writer, number)) is not None:
                self.requests.append(seen)
                if not await self.answer(seen, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            with contextlib.suppress(ConnectionError):
                writer.close()
                await writer.wait_closed()


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, body: bool = True
) -> Seen | None:
    """One request, None at the end of the connection. Reads length-framed and chunked bodies whole."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = head[:-4].split(b"\r\n")
    seen = Seen(start, lines, b"", number)
    if length := seen.value("content-length"):
        seen.body = await reader.readexactly(int(length))
    elif seen.value("transfer-encoding") == "chunked":
        seen.body = await read_chunked(reader)
    return seen


async def read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return body
