"""A child's end of the supervisor's channel, against the other end of a real socket pair."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.bus import channel as channel_module
from gateway.bus.channel import Channel


class Child:
    def __init__(self, fd: int) -> None:
        self.commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.times_lost = 0
        self.channel = Channel(fd, self.commands.put_nowait, self.on_lost)

    def on_lost(self) -> None:
        self.times_lost += 1
        self.lost.set()


@pytest.fixture
def supervisor() -> Iterator[tuple[socket.socket, int]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours:
        yield ours, theirs.detach()


async def within(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, 10)


def read_line(sock: socket.socket) -> Any:
    with sock.makefile("rb") as lines:
        return json.loads(lines.readline())


async def test_commands_come_in_order_however_they_are_cut(supervisor: tuple[socket.socket, int]) -> None:
    ours, fd = supervisor
    child = Child(fd)
    await child.channel.start()
    sent = [{"cmd": "adopt", "slots": [1, 2]}, {"cmd": "release", "slots": []}, {"cmd": "drain"}]
    for byte in b"".join(json.dumps(c).encode() + b"\n" for c in sent):
        ours.send(bytes([byte]))
        await asyncio.sleep(0)  # the child reads as it comes: a socket holds few pieces, however small they are
    assert [await within(child.commands.get()) for _ in sent] == sent
    ours.sendall(b"\n\n" + b"".join(json.dumps(c).encode() + b"\n" for c in sent))
    assert [await within(child.commands.get()) for _ in sent] == sent
    child.channel.close()
    assert child.times_lost == 0


async def test_what_a_child_says_is_one_line(supervisor: tuple[socket.socket, int]) -> None:
    ours, fd = supervisor
    child = Child(fd)
    assert not child.channel.send({"state": "early"})
    await child.channel.start()
    assert child.channel.send({"state": "serving", "note": "line\nbreak"})
    assert await asyncio.to_thread(read_line, ours) == {"state": "serving", "note": "line\nbreak"}
    child.channel.close()


async def test_the_supervisors_end_is_heard_once(supervisor: tuple[socket.socket, int]) -> None:
    ours, fd = supervisor
    child = Child(fd)
    await child.channel.start()
    ours.sendall(b'{"cmd":"drain"}\n{"cmd":"torn')
    ours.close()
    await within(child.lost.wait())
    assert child.commands.qsize() == 1
    assert not child.channel.send({"state": "draining"})
    child.channel.close()
    assert child.times_lost == 1


async def test_a_line_that_cannot_be_read_is_skipped(
    supervisor: tuple[socket.socket, int], caplog: pytest.LogCaptureFixture
) -> None:
    ours, fd = supervisor
    child = Child(fd)
    await child.channel.start()
    ours.sendall(b'nonsense\n[1]\n"drain"\n\xff\xfe\n{"cmd":"drain"}\n')
    assert await within(child.commands.get()) == {"cmd": "drain"}
    assert caplog.text.count("skipped") == 4
    child.channel.close()


async def test_a_command_that_fails_does_not_end_the_channel(
    supervisor: tuple[socket.socket, int], caplog: pytest.LogCaptureFixture
) -> None:
    ours, fd = supervisor
    done = asyncio.Event()

    def on_command(command: dict[str, Any]) -> None:
        if command["cmd"] == "fail":
            raise RuntimeError("cannot do it")
        done.set()

    channel = Channel(fd, on_command, lambda: None)
    await channel.start()
    ours.sendall(b'{"cmd":"fail"}\n{}\n{"cmd":"drain"}\n')
    await within(done.wait())
    assert "cannot do it" in caplog.text
    channel.close()


async def test_a_line_without_end_is_a_lost_channel(
    supervisor: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, fd = supervisor
    monkeypatch.setattr(channel_module, "LINE_MAX", 1000)
    child = Child(fd)
    await child.channel.start()
    ours.sendall(b"x" * 5000)
    await within(child.lost.wait())
    assert child.times_lost == 1


async def test_a_supervisor_that_does_not_read_is_never_waited_for(supervisor: tuple[socket.socket, int]) -> None:
    ours, fd = supervisor
    child = Child(fd)
    await child.channel.start()
    said = 0
    while child.channel.send({"state": "x" * 1000}):
        said += 1
        assert said < 100_000
    child.channel.close()
    with ours.makefile("rb") as lines:
        assert [len(json.loads(line)["state"]) for line in lines] == [1000] * said  # all whole, none torn


async def test_what_was_said_last_arrives_though_the_child_leaves_at_once(
    supervisor: tuple[socket.socket, int],
) -> None:
    ours, fd = supervisor
    child = Child(fd)
    await child.channel.start()
    child.channel.send({"state": "draining"})
    child.channel.close()
    assert read_line(ours) == {"state": "draining"}


async def test_a_command_may_close_the_channel(supervisor: tuple[socket.socket, int]) -> None:
    ours, fd = supervisor
    done = asyncio.Event()

    def on_command(command: dict[str, Any]) -> None:
        channel.close()
        done.set()

    channel = Channel(fd, on_command, done.set)
    await channel.start()
    ours.sendall(b'{"cmd":"stop"}\n')
    await within(done.wait())
    assert not channel.send({"state": "late"})


async def test_a_message_that_could_be_torn_is_refused(supervisor: tuple[socket.socket, int]) -> None:
    child = Child(supervisor[1])
    await child.channel.start()
    with pytest.raises(ValueError, match="longer than"):
        child.channel.send({"state": "x" * 20_000})
    child.channel.close()


async def test_a_descriptor_of_another_kind_is_refused() -> None:
    with socket.socket() as tcp:
        with pytest.raises(OSError, match="no Unix socket"):
            await Child(tcp.fileno()).channel.start()
        assert tcp.fileno() > 0
        os.fstat(tcp.fileno())
