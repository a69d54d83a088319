"""The bound on the admin API's connections, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from gateway.control import admin_listener
from gateway.control.admin_listener import PER_ADDRESS_MAX, Listener
from gateway.control.tasks import TaskSet
from tests.support.eventually import eventually

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Served:
    def __init__(self) -> None:
        self.silent: set[object] = set()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.stack = AsyncExitStack()

    async def answer(self, request: web.Request) -> web.Response:
        self.silent.discard(request.protocol)
        return web.Response(text="ok")

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/", self.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        assert runner.server is not None
        self.tasks = TaskSet()
        self.server = runner.server
        self.listener = Listener(self.sock, runner.server, self.tasks, self.silent)
        self.listener.start()
        self.stack.push_async_callback(self.tasks.close)
        self.stack.push_async_callback(runner.cleanup)
        self.stack.callback(self.listener.close)

    async def connect(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        self.stack.push_async_callback(writer.wait_closed)
        self.stack.callback(writer.transport.abort)
        return reader, writer

    async def is_answered(self, source: str = "127.0.0.1") -> bool:
        reader, writer = await self.connect(source)
        writer.write(ASK)
        try:
            return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        except ConnectionResetError:
            return False


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    await made.start()
    yield made
    await made.stack.aclose()


async def test_one_address_can_hold_some_connections_and_no_more(served: Served) -> None:
    held = [await served.connect() for _ in range(PER_ADDRESS_MAX)]
    await eventually(lambda: len(served.server.connections) == PER_ADDRESS_MAX)
    assert not await served.is_answered()
    assert await served.is_answered("127.0.0.2")
    held[0][1].write(ASK)
    assert (await held[0][0].readline()).startswith(b"HTTP/1.1 200 "), "those that are open go on"
    held[1][1].close()
    await eventually(lambda: len(served.server.connections) < PER_ADDRESS_MAX + 1)
    assert await served.is_answered()


async def test_all_addresses_together_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_listener, "CONNECTIONS_MAX", 3)
    for number in range(1, 4):
        await served.connect(f"127.0.0.{number}")
    await eventually(lambda: len(served.server.connections) == 3)
    assert not await served.is_answered("127.0.0.9")


async def test_who_says_nothing_is_cut_off_and_who_spoke_is_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_listener, "FIRST_REQUEST_S", 0.3)
    spoke, silent, slow = [await served.connect() for _ in range(3)]
    spoke[1].write(ASK)
    assert (await spoke[0].readline()).startswith(b"HTTP/1.1 200 ")
    slow[1].write(ASK[:-2])
    for reader, _ in (silent, slow):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    assert not served.silent
    assert (await spoke[0].readuntil(b"ok")).endswith(b"\r\n\r\nok")
    spoke[1].write(ASK)
    assert (await spoke[0].readline()).startswith(b"HTTP/1.1 200 ")


async def test_without_descriptors_it_waits_and_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    class Out:
        """The listening socket of a process that has no descriptor left."""

        def accept(self) -> None:
            raise OSError(24, "Too many open files")

        def fileno(self) -> int:
            return real.fileno()

    real = served.listener._sock
    served.listener._sock = Out()  # type: ignore[assignment]
    waiting = asyncio.get_running_loop().create_task(served.is_answered())
    await eventually(lambda: served.listener._again is not None)
    served.listener._sock = real
    assert await waiting
