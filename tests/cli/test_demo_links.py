"""The demo's relays over real sockets: what is carried, what a cut holds back, what a healed link brings."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from gateway.cli.demo_links import CONNECTIONS_MAX, Link

LIMIT_S = 5.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Far:
    """What a link leads to: it keeps what comes on each connection, in order."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Wire] = asyncio.Queue()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.put_nowait(Wire(reader, writer))


class Wire(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hears(self, data: bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            assert await self.reader.readexactly(len(data)) == data

    async def ends(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            try:
                assert await self.reader.read(1) == b""
            except ConnectionResetError:
                pass


class Place:
    """One link, what it leads to, and a second link that is never cut: whatever was to pass has passed after a trip
    over that one."""

    def __init__(self, link: Link, other: Link, far: Far) -> None:
        self.link, self.other, self.far = link, other, far
        self.wires: list[Wire] = []
        self.reads: set[asyncio.Task[bytes]] = set()

    def reading(self, wire: Wire) -> asyncio.Task[bytes]:
        """A read that goes on in the background."""
        task = asyncio.get_running_loop().create_task(wire.reader.read(100))
        self.reads.add(task)
        return task

    async def dial(self, link: Link | None = None) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", (link or self.link).port))
        self.wires.append(wire)
        return wire

    async def pair(self, link: Link | None = None) -> tuple[Wire, Wire]:
        near = await self.dial(link)
        async with asyncio.timeout(LIMIT_S):
            far = await self.far.accepted.get()
        self.wires.append(far)
        return near, far

    async def meanwhile(self) -> None:
        near, far = await self.pair(self.other)
        for _ in range(20):
            near.writer.write(b"there")
            await far.hears(b"there")
            far.writer.write(b"back")
            await near.hears(b"back")


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    far = Far()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(far, "127.0.0.1", 0))
        target = server.sockets[0].getsockname()[1]
        links = [await stack.enter_async_context(Link(free_port(), target)) for _ in range(2)]
        place = Place(links[0], links[1], far)
        yield place
        while not far.accepted.empty():
            place.wires.append(far.accepted.get_nowait())
        for wire in place.wires:
            wire.writer.close()
        await asyncio.gather(*(wire.writer.wait_closed() for wire in place.wires), return_exceptions=True)


async def test_bytes_pass_both_ways_and_an_end_ends_the_other(place: Place) -> None:
    near, far = await place.pair()
    near.writer.write(b"question")
    await far.hears(b"question")
    far.writer.write(b"answer")
    far.writer.close()
    await near.hears(b"answer")
    await near.ends()


async def test_a_reader_that_stops_stops_the_writer(place: Place) -> None:
    near, far = await place.pair()
    chunk, sent = b"x" * 65536, 0
    far.reader._transport.pause_reading()  # type: ignore[attr-defined]
    near.writer.transport.set_write_buffer_limits(high=0)
    try:
        while True:  # until kernel and relay hold all that they may
            near.writer.write(chunk)
            sent += len(chunk)
            async with asyncio.timeout(0.5):
                await near.writer.drain()
    except TimeoutError:
        pass
    assert sent < 64 << 20
    far.reader._transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(LIMIT_S):
        assert len(await far.reader.readexactly(sent)) == sent


async def test_a_cut_link_holds_what_is_sent_and_the_end_too(place: Place) -> None:
    near, far = await place.pair()
    near.writer.write(b"before")
    await far.hears(b"before")
    place.link.cut()
    near.writer.write(b"question")
    far.writer.write(b"news")
    far.writer.write_eof()
    reads = [place.reading(wire) for wire in (near, far)]
    await place.meanwhile()
    assert [read.done() for read in reads] == [False, False]
    place.link.heal()
    async with asyncio.timeout(LIMIT_S):
        assert await asyncio.gather(*reads) == [b"news", b"question"]
    await near.ends()


async def test_a_new_connection_over_a_cut_link_is_neither_refused_nor_answered(place: Place) -> None:
    place.link.cut()
    near = await place.dial()
    near.writer.write(b"hello")
    read = place.reading(near)
    await place.meanwhile()
    assert place.far.accepted.empty()
    assert not read.done()
    place.link.heal()
    place.link.heal()
    async with asyncio.timeout(LIMIT_S):
        far = await place.far.accepted.get()
    place.wires.append(far)
    await far.hears(b"hello")
    far.writer.write(b"welcome")
    async with asyncio.timeout(LIMIT_S):
        assert await read == b"welcome"
    assert place.far.accepted.empty(), "it is made once"


async def test_those_who_gave_up_do_not_pile_up(place: Place) -> None:
    place.link.cut()
    oldest = await place.dial()
    for _ in range(CONNECTIONS_MAX):
        (await place.dial()).writer.close()
    await oldest.ends()
    place.link.heal()
    for _ in range(CONNECTIONS_MAX):
        async with asyncio.timeout(LIMIT_S):
            place.wires.append(await place.far.accepted.get())
        await place.wires[-1].ends()
    await place.pair()


async def test_where_nobody_listens_a_connection_ends(place: Place) -> None:
    async with Link(free_port(), free_port()) as link:
        await (await place.dial(link)).ends()


async def test_it_closes_while_it_is_cut(place: Place) -> None:
    near, far = await place.pair()
    place.link.cut()
    far.writer.write(b"x" * 1_000_000)
    waiting = await place.dial()
    async with asyncio.timeout(LIMIT_S):
        await place.link.__aexit__()
    for wire in (near, waiting):
        async with asyncio.timeout(LIMIT_S):
            await wire.ends()
