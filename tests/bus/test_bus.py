"""Server and client over a real Unix socket, on asyncio's loop and on uvloop: connect, lose, connect again, cut off."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.bus import client as client_module
from gateway.bus import server as server_module
from gateway.bus.address import connect
from gateway.bus.client import BusClient
from gateway.bus.frames import CONTROL_FRAME_MAX, frame
from gateway.bus.messages import Applied, ConnectFailures, FromControl, FromWorker, Hello, MapApplied, MapChanged
from gateway.bus.server import BusPeer, BusServer
from gateway.core.conditions import Conditions

HELLO = Hello(slot=1, pid=42)


class Control:
    """A server and what it heard."""

    def __init__(self, path: Path) -> None:
        self.heard: asyncio.Queue[tuple[BusPeer, FromWorker]] = asyncio.Queue()
        self.joined: asyncio.Queue[BusPeer] = asyncio.Queue()
        self.lost: asyncio.Queue[BusPeer] = asyncio.Queue()
        self.greeting: FromControl | None = None
        self.server = BusServer(path, self.on_message, self.joined.put_nowait, self.lost.put_nowait)

    def on_message(self, peer: BusPeer, message: FromWorker) -> None:
        self.heard.put_nowait((peer, message))
        if isinstance(message, Hello) and self.greeting is not None:
            peer.send(self.greeting)


class Worker:
    """A client and what it heard."""

    def __init__(self, path: Path, hello: Hello = HELLO) -> None:
        self.heard: asyncio.Queue[FromControl] = asyncio.Queue()
        self.connects = 0
        self.hello = hello
        self.client = BusClient(path, self.heard.put_nowait, self.on_connect)

    def on_connect(self) -> None:
        self.connects += 1
        assert self.client.send(self.hello)


async def within(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, 10)


async def until(condition: Callable[[], object]) -> None:
    """For states of the other side that have no event of their own here."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    deep = tmp_path / ("long" * 30)  # beyond the 108 bytes of a Unix socket's address
    deep.mkdir()
    return deep / "bus.sock"


@pytest.fixture
async def control(path: Path) -> AsyncIterator[Control]:
    control = Control(path)
    await control.server.start()
    yield control
    await control.server.close()


@pytest.fixture
async def worker(path: Path, control: Control) -> AsyncIterator[Worker]:
    worker = Worker(path)
    worker.client.start()
    yield worker
    await worker.client.close()


async def test_the_socket_is_private_and_removed_at_the_end(path: Path) -> None:
    control = Control(path)
    await control.server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # noqa: ASYNC240  a local file
    await control.server.close()
    assert not path.exists()  # noqa: ASYNC240
    await control.server.close()


async def test_both_hear_each_other(control: Control, worker: Worker) -> None:
    control.greeting = Conditions(generation=3, down={"app": ("10.0.0.1:80",)})
    peer, message = await within(control.heard.get())
    assert message == HELLO
    assert peer.hello == HELLO
    assert control.server.peers == {peer}
    assert worker.client.connected
    assert await within(worker.heard.get()) == control.greeting
    for report in (Applied(generation=3), MapApplied(2, 7), ConnectFailures("app", "10.0.0.1:80", 3)):
        assert worker.client.send(report)
        assert await within(control.heard.get()) == (peer, report)
    changed = MapChanged(1, 2, ("acme",), ("a.com",))
    assert peer.send(changed)
    assert await within(worker.heard.get()) == changed


async def test_a_broadcast_reaches_every_worker_that_said_hello(path: Path, control: Control) -> None:
    workers = [Worker(path, Hello(slot, 100 + slot)) for slot in range(3)]
    for worker in workers:
        worker.client.start()
    silent = connect(path)
    for _ in workers:
        await within(control.heard.get())
    await until(lambda: len(control.server.peers) == 4)
    change = MapChanged(1, 2)
    control.server.broadcast(change)
    for worker in workers:
        assert await within(worker.heard.get()) == change
        await worker.client.close()
    with pytest.raises(BlockingIOError):
        silent.recv(1)
    silent.close()


async def test_a_large_message_arrives_whole(control: Control, worker: Worker) -> None:
    peer, _ = await within(control.heard.get())
    change = MapChanged(
        1, 2, tuple(f"tenant-{n:050}" for n in range(10_000)), tuple(f"{n:0240}.com" for n in range(10_000))
    )
    assert peer.send(change)
    assert await within(worker.heard.get()) == change


async def test_a_client_waits_for_its_server_and_finds_the_next_one(path: Path) -> None:
    worker = Worker(path)
    worker.client.start()
    assert not worker.client.send(HELLO)
    for number in range(1, 4):
        control = Control(path)
        await control.server.start()
        _, message = await within(control.heard.get())
        assert message == HELLO
        assert worker.connects == number
        await control.server.close()
        await until(lambda: not worker.client.connected)
    assert not worker.client.send(HELLO)
    await worker.client.close()


async def test_a_server_takes_the_place_of_one_that_was_killed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        folder = path.parent
        short = folder.parent / "s"
        dead.bind(str(short))
        short.rename(path)
    control = Control(path)
    await control.server.start()
    worker = Worker(path)
    worker.client.start()
    await within(control.heard.get())
    await worker.client.close()
    await control.server.close()


async def test_an_old_server_leaves_its_successors_socket_alone(path: Path) -> None:
    old, new = Control(path), Control(path)
    await old.server.start()
    await new.server.start()
    await old.server.close()
    worker = Worker(path)
    worker.client.start()
    await within(new.heard.get())
    await worker.client.close()
    await new.server.close()


async def test_control_learns_that_a_worker_is_gone(path: Path, control: Control, worker: Worker) -> None:
    peer, _ = await within(control.heard.get())
    assert await within(control.joined.get()) is peer
    await worker.client.close()
    assert await within(control.lost.get()) is peer
    assert control.server.peers == set()
    assert not peer.send(MapChanged(1, 2))
    assert repr(peer) == "<BusPeer slot 1 pid 42>"


async def test_a_worker_that_does_not_read_is_cut_off(
    path: Path, control: Control, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "BUFFER_MAX", 300_000)
    deaf = connect(path)
    peer = await within(control.joined.get())
    change = MapChanged(1, 2, tuple(f"tenant-{n}" for n in range(1000)))
    sent = 0
    while peer.send(change):
        sent += 1
        assert sent < 10_000
    assert await within(control.lost.get()) is peer
    assert "does not read the bus" in caplog.text
    deaf.close()


async def test_a_control_that_does_not_read_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BUFFER_MAX", 100_000)
    with socket.socket(socket.AF_UNIX) as deaf:
        short = path.parent.parent / "s"
        deaf.bind(str(short))
        deaf.listen()
        short.rename(path)
        worker = Worker(path)
        worker.client.start()
        await until(lambda: worker.connects == 1)
        sent = 0
        while worker.client.send(ConnectFailures("app" * 100, "10.0.0.1:80", 3)):
            sent += 1
            assert sent < 100_000
        await until(lambda: worker.connects == 2)
        await worker.client.close()


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x81\xa4type\xa6Future", b"not msgpack at all"])
async def test_a_message_that_cannot_be_read_is_skipped(
    path: Path, control: Control, worker: Worker, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer, _ = await within(control.heard.get())
    peer.write(frame(garbage, CONTROL_FRAME_MAX))
    peer.send(MapChanged(1, 2))
    assert await within(worker.heard.get()) == MapChanged(1, 2)
    raw = connect(path)
    other = await within(control.joined.get())
    while other is peer:
        other = await within(control.joined.get())
    raw.send(frame(garbage, 1000) + frame(server_module._encoder.encode(HELLO), 1000))
    assert await within(control.heard.get()) == (other, HELLO)
    raw.close()
    assert caplog.text.count("skipped") == 2


async def test_a_frame_without_end_ends_the_connection(path: Path, control: Control, worker: Worker) -> None:
    peer, _ = await within(control.heard.get())
    raw = connect(path)
    raw.send(b"\xff\xff\xff\xff")
    lost = await within(control.lost.get())
    assert lost is not peer
    raw.close()
    peer.write(b"\xff\xff\xff\xff")
    assert await within(control.lost.get()) is peer
    again, message = await within(control.heard.get())
    assert (again is peer, message) == (False, HELLO)
    assert worker.connects == 2


async def test_a_callback_that_fails_costs_its_own_message_only(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard: asyncio.Queue[FromWorker] = asyncio.Queue()

    def fail_at_hello(peer: BusPeer, message: FromWorker) -> None:
        if isinstance(message, Hello):
            raise RuntimeError("cannot take it")
        heard.put_nowait(message)

    server = BusServer(path, fail_at_hello, lambda peer: None)
    await server.start()
    worker = Worker(path)
    worker.client.start()
    await until(lambda: worker.client.connected)
    worker.client.send(Applied(1))
    assert await within(heard.get()) == Applied(1)
    assert "cannot take it" in caplog.text
    await worker.client.close()
    await server.close()


async def test_a_client_can_be_closed_at_any_moment(path: Path, control: Control) -> None:
    for turns in range(8):
        worker = Worker(path)
        worker.client.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await worker.client.close()
        assert not worker.client.connected
    never_started = Worker(path)
    await never_started.client.close()


async def test_a_server_without_its_folder_says_so(tmp_path: Path) -> None:
    control = Control(tmp_path / "missing" / "bus.sock")
    with pytest.raises(FileNotFoundError):
        await control.server.start()
    await control.server.close()
