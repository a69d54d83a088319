"""What the tests of a cut network stand on: a link that is cut is silent, and loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.links import Link


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def test_a_cut_link_is_silent_and_healed_brings_what_was_on_its_way() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link(server.sockets[0].getsockname()[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        for _ in range(2):
            link.cut()
            writer.write(b"during")
            for waiting in (reader.read(100), asyncio.open_connection("127.0.0.1", link.port)):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await waiting
            link.heal()
            assert await reader.readexactly(6) == b"during"
        link.delay_s = 0.05
        began = asyncio.get_running_loop().time()
        writer.write(b"slowly")
        assert await reader.readexactly(6) == b"slowly"
        assert asyncio.get_running_loop().time() - began > 0.098, "there and back; uvloop's clock has milliseconds"
        other, its_writer = await asyncio.open_connection("127.0.0.1", link.port)
        its_writer.write_eof()
        assert await other.read() == b"", "an end goes on as an end"
        its_writer.close()
    finally:
        writer.close()
        await link.stop()
        server.close()
