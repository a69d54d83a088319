"""A raw client for tests: sends bytes, reads whole responses, hides nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.support.origin import read_chunked


@dataclass
class Reply:
    status: int
    start: bytes
    lines: list[bytes]
    body: bytes

    def values(self, name: str) -> list[str]:
        pairs = [line.partition(b":") for line in self.lines]
        return [v.strip().decode("latin-1") for k, _, v in pairs if k.decode("latin-1").lower() == name.lower()]

    def value(self, name: str) -> str | None:
        values = self.values(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


class Client:
    """One connection. `send` writes raw bytes; `reply` reads the next response whole."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes) -> Reply:
        await self.send(data)
        return await self.reply(head=data.startswith(b"HEAD "))

    async def reply(self, head: bool = False, within_s: float = 10) -> Reply:
        """The next final or interim response. EOFError when the connection ends first."""
        async with asyncio.timeout(within_s):
            try:
                text = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                raise EOFError(error.partial) from None
            start, *lines = text[:-4].split(b"\r\n")
            reply = Reply(int(start.split()[1]), start, lines, b"")
            if reply.status < 200 or reply.status in (204, 304) or head:
                return reply
            if length := reply.value("content-length"):
                reply.body = await self.reader.readexactly(int(length))
            elif reply.value("transfer-encoding"):
                reply.body = await read_chunked(self.reader)
            else:
                reply.body = await self.reader.read()
            return reply

    async def at_end(self, within_s: float = 10) -> bytes:
        """What still comes until the other side closes."""
        async with asyncio.timeout(within_s):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


async def once(port: int, data: bytes) -> Reply:
    """One request on a connection of its own."""
    client = await Client.connect(port)
    try:
        return await client.ask(data)
    finally:
        await client.close()
