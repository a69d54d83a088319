"""What fails, fails alone and says so: retries, timeouts, limits, malformed messages, clients that go away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.bus.messages import ConnectFailures
from gateway.core.view import ClusterTimeouts, Limits, Timeouts
from tests.support.client import Client, Reply, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.origin import Origin, Seen, ok, raw

GET = b"GET / HTTP/1.1\r\nHost: acme.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


@pytest.fixture
async def plane(origin: Origin, tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with data_plane(tmp_path, view(cluster("app", origin.port))) as running:
        yield running


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def is_problem(reply: Reply, status: int, flag: str) -> None:
    assert reply.status == status, reply
    assert reply.value("content-type") == "application/problem+json"
    assert f'"flag":"{flag}"'.encode() in reply.body
    assert reply.value("x-request-id")
    assert reply.value("via") == "1.1 us-east-1.landbridge"
    assert "us-east-1.landbridge; error=" in (reply.value("proxy-status") or "")


# ---- retries (FAULTS 15)


async def stale(plane: DataPlane, origin: Origin) -> Client:
    """A client whose next request meets a pooled connection that the application closes instead of answering."""
    client = await Client.connect(plane.port)
    assert (await client.ask(GET)).status == 200

    async def hang_up(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        origin.answer = ok
        return False

    origin.answer = hang_up
    return client


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE"])
async def test_an_idempotent_request_on_a_stale_connection_is_sent_once_more(
    plane: DataPlane, origin: Origin, method: bytes
):
    client = await stale(plane, origin)
    reply = await client.ask(POST.replace(b"POST", method))
    await client.close()
    assert reply.status == 200
    assert [seen.body for seen in origin.requests] == [b"", b"ok", b"ok"]
    assert origin.connections == 2


async def test_a_post_is_never_sent_twice(plane: DataPlane, origin: Origin):
    client = await stale(plane, origin)
    reply = await client.ask(POST)
    await client.close()
    is_problem(reply, 502, "upstream_reset")
    assert len(origin.requests) == 2


async def test_a_connection_that_was_closed_while_idle_is_not_used(plane: DataPlane, origin: Origin):
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")  # and then it closes
    client = await Client.connect(plane.port)
    for _ in range(3):
        assert (await client.ask(POST)).status == 200
        async with asyncio.timeout(5):
            while plane.worker.ups:
                await asyncio.sleep(0.001)
    await client.close()
    assert origin.connections == 3


@pytest.mark.parametrize(("method", "sent"), [(b"GET", 2), (b"PUT", 1), (b"POST", 1)])
async def test_on_a_fresh_connection_only_what_reads_is_sent_once_more(
    plane: DataPlane, origin: Origin, method: bytes, sent: int
):
    origin.answer = raw(b"")
    is_problem(await once(plane.port, GET.replace(b"GET", method)), 502, "upstream_reset")
    assert len(origin.requests) == sent


async def test_the_second_try_is_on_a_new_connection(plane: DataPlane, origin: Origin):
    """Of an application that died, all pooled connections are dead: the next one of them is no second chance."""
    clients = [await Client.connect(plane.port) for _ in range(3)]
    together = asyncio.Barrier(3)

    async def answers(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if origin.connections < 4:
            await together.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    async def hangs_up(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        origin.answer = answers
        return False

    origin.answer = answers
    await asyncio.gather(*(client.ask(GET) for client in clients))
    assert (origin.connections, len(plane.worker.ups)) == (3, 3), "three warm connections"
    origin.answer = hangs_up
    assert (await clients[0].ask(GET)).status == 200
    assert origin.connections == 4
    for client in clients:
        await client.close()


async def test_a_refused_connect_goes_to_another_endpoint_with_any_method(tmp_path: Path, origin: Origin):
    dead = closed_port()
    async with data_plane(tmp_path, view(cluster("app", dead, origin.port))) as plane:
        for _ in range(20):
            assert (await once(plane.port, POST)).status == 200
        assert len(origin.requests) == 20
        assert next(m for m in plane.said if isinstance(m, ConnectFailures)) == ConnectFailures(
            "app", f"127.0.0.1:{dead}", 3
        )


async def test_three_refused_connects_mark_the_endpoint_down(tmp_path: Path):
    dead = closed_port()
    async with data_plane(tmp_path, view(cluster("app", dead, retries=0))) as plane:
        for _ in range(3):
            is_problem(await once(plane.port, GET), 502, "upstream_connect")
        is_problem(await once(plane.port, GET), 503, "cluster_unavailable")
        said = [message for message in plane.said if isinstance(message, ConnectFailures)]
        assert said == [ConnectFailures("app", f"127.0.0.1:{dead}", 3)]


# ---- time


async def test_a_slow_answer_is_504(tmp_path: Path, origin: Origin):
    async def never(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.read()
        return False

    origin.answer = never
    times = ClusterTimeouts(response=0.2)
    async with data_plane(tmp_path, view(cluster("app", origin.port, timeouts=times))) as plane:
        is_problem(await once(plane.port, GET), 504, "upstream_timeout")
        assert not plane.worker.ups


async def test_a_body_that_stops_is_cut(tmp_path: Path, origin: Origin):
    async def half(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()
        return False

    origin.answer = half
    times = ClusterTimeouts(body=0.2)
    async with data_plane(tmp_path, view(cluster("app", origin.port, timeouts=times))) as plane:
        client = await Client.connect(plane.port)
        await client.send(GET)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.reply()
        await client.close()
        assert plane.log.exchanges[0].flag is not None
        assert plane.log.exchanges[0].flag.name == "upstream_timeout"


async def test_slow_clients_are_told_and_closed(tmp_path: Path, origin: Origin):
    times = Timeouts(header=0.2, body=0.2, keepalive=0.3)
    async with data_plane(tmp_path, view(cluster("app", origin.port), timeouts=times)) as plane:
        slow_head, slow_body, idle = [await Client.connect(plane.port) for _ in range(3)]
        await slow_head.send(b"GET / HTTP/1.1\r\nHost:")
        await slow_body.send(POST[:-1])
        is_problem(await slow_head.reply(), 408, "head_timeout")
        is_problem(await slow_body.reply(), 408, "body_timeout")
        for client in (slow_head, slow_body, idle):
            assert await client.at_end() == b""
            await client.close()


async def test_a_connect_that_hangs_ends_at_its_limit(tmp_path: Path):
    """A listener whose queue is full answers no SYN: the connect neither succeeds nor fails."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        held = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            held.append(sock)
        times = ClusterTimeouts(connect=0.2)
        async with data_plane(tmp_path, view(cluster("app", port, timeouts=times, retries=0))) as plane:
            is_problem(await once(plane.port, GET), 502, "upstream_connect")
        for sock in held:
            sock.close()


# ---- limits


async def test_connections_beyond_the_limit_are_shed(tmp_path: Path, origin: Origin):
    limits = Limits(connections=1)
    async with data_plane(tmp_path, view(cluster("app", origin.port), limits=limits)) as plane:
        first = await Client.connect(plane.port)
        assert (await first.ask(GET)).status == 200
        second = await Client.connect(plane.port)
        reply = await second.reply()
        is_problem(reply, 503, "shed")
        assert reply.value("retry-after") == "1"
        assert (await first.ask(GET)).status == 200
        await first.close()
        await second.close()


async def test_upstream_connections_are_bounded_and_waited_for(tmp_path: Path, origin: Origin):
    gate = asyncio.Event()

    async def wait(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await gate.wait()
        return await ok(seen, reader, writer) or False

    origin.answer = wait
    config = cluster("app", origin.port, connections_max=2, pending_max=3)
    async with data_plane(tmp_path, view(config)) as plane:
        asked = [asyncio.get_running_loop().create_task(once(plane.port, GET)) for _ in range(6)]
        refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        is_problem(refused.pop().result(), 503, "shed")
        gate.set()
        statuses = sorted([(await task).status for task in asked])
        assert statuses == [200] * 5 + [503]
        assert origin.connections == 2


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 11\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello hello\r\n",
    ],
)
async def test_a_body_beyond_the_limit_is_413(tmp_path: Path, origin: Origin, data: bytes):
    async with data_plane(tmp_path, view(cluster("app", origin.port), limits=Limits(body_bytes=10))) as plane:
        is_problem(await once(plane.port, data), 413, "body_too_large")


@pytest.mark.parametrize(
    ("data", "status", "flag"),
    [
        (b"GET /" + b"x" * 70_000, 414, "target_too_long"),
        (b"GET / HTTP/1.1\r\nHost: acme.test\r\nX: " + b"y" * 130_000, 431, "fields_too_large"),
        (b"GET / HTTP/1.1\r\nHost: acme.test\r\n" + b"X: y\r\n" * 2000 + b"\r\n", 431, "fields_too_large"),
        (b"GET / HTTP/1.1\nHost: acme.test\n\n", 400, "request_malformed"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "request_malformed"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "version_unsupported"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, "connect_refused"),
        (b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 400, "tenant_missing"),
    ],
)
async def test_what_is_refused_is_answered_and_the_connection_closed(
    plane: DataPlane, origin: Origin, data: bytes, status: int, flag: str
):
    client = await Client.connect(plane.port)
    await client.send(data)
    is_problem(await client.reply(), status, flag)
    if flag != "tenant_missing":
        assert await client.at_end() == b""
    await client.close()
    assert origin.requests == []


async def test_a_browser_gets_a_page(plane: DataPlane):
    reply = await once(plane.port, b"GET / HTTP/1.1\r\nHost: <b>.test\r\nAccept: text/html\r\n\r\n")
    assert reply.status == 400
    reply = await once(plane.port, b"GET / HTTP/1.1\r\nHost: nobody.test\r\nAccept: text/html\r\n\r\n")
    assert reply.status == 404
    assert reply.value("content-type") == "text/html; charset=utf-8"
    assert b"tenant_unknown" in reply.body


# ---- messages that are not HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
async def test_an_answer_that_is_not_http_is_502(plane: DataPlane, origin: Origin, data: bytes):
    origin.answer = raw(data, keep=True)
    is_problem(await once(plane.port, GET), 502, "upstream_malformed")


async def test_bytes_after_a_response_belong_to_nobody(plane: DataPlane, origin: Origin):
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil", keep=True)
    client = await Client.connect(plane.port)
    for _ in range(3):
        assert (await client.ask(GET)).body == b"ok"
    await client.close()
    assert origin.connections == 3


async def test_a_bad_chunk_in_the_request_reaches_no_application(plane: DataPlane, origin: Origin):
    head = b"POST / HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    is_problem(await once(plane.port, head + b"2\r\nokX"), 400, "framing_ambiguous")
    client = await Client.connect(plane.port)
    await client.send(head + b"2\r\nok\r\n")
    async with asyncio.timeout(5):
        while not plane.worker.ups:
            await asyncio.sleep(0.001)
    await client.send(b"zz\r\n")
    is_problem(await client.reply(), 400, "framing_ambiguous")
    await client.close()
    assert origin.requests == []


# ---- clients that go away


async def test_a_client_that_leaves_takes_its_upstream_connection_along(plane: DataPlane, origin: Origin):
    async def never(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.read()
        return False

    origin.answer = never
    client = await Client.connect(plane.port)
    await client.send(GET)
    async with asyncio.timeout(5):
        while not origin.requests:
            await asyncio.sleep(0.001)
        client.writer.transport.abort()
        while plane.worker.ups or plane.worker.downs:
            await asyncio.sleep(0.001)
    assert plane.log.exchanges[0].status == 499


async def test_a_client_that_does_not_read_is_cut_and_costs_bounded_memory(tmp_path: Path, origin: Origin):
    sent = 0

    async def flood(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(2000):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536
        return False

    origin.answer = flood
    async with data_plane(tmp_path, view(cluster("app", origin.port), timeouts=Timeouts(body=0.3))) as plane:
        client = await Client.connect(plane.port)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        async with asyncio.timeout(10):
            while not plane.log.exchanges:
                await asyncio.sleep(0.01)
        assert sent < 500 * 65536, "the application was read on although the client did not"
        client.writer.transport.abort()


# ---- slow is not dead


async def test_a_slow_reader_gets_the_whole_body_although_it_outlasts_every_limit(tmp_path: Path, origin: Origin):
    size = 24 << 20  # beyond what the kernel buffers for two loopback connections

    async def big(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            writer.write(b"x" * 65536)
            await writer.drain()
        return True

    origin.answer = big
    app = cluster("app", origin.port, timeouts=ClusterTimeouts(body=0.3))
    async with data_plane(tmp_path, view(app, timeouts=Timeouts(body=0.3))) as plane:
        client = await Client.connect(plane.port)
        await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await client.reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < size:
            got += len(await client.reader.read(1 << 20))
            await asyncio.sleep(0.02)  # this sleep is the test: 24 MiB take longer than `body` allows for one read
        assert got == size
        await client.close()


async def test_an_application_that_does_not_read_ends_at_its_limit(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # its connections are made by the kernel and never read
        app = cluster("app", deaf.getsockname()[1], timeouts=ClusterTimeouts(body=0.3), retries=0)
        async with data_plane(tmp_path, view(app)) as plane:
            client = await Client.connect(plane.port)
            await client.send(b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
            client.writer.write(b"x" * (32 << 20))
            is_problem(await client.reply(), 504, "upstream_timeout")
            client.writer.transport.abort()
            while plane.worker.downs:
                await asyncio.sleep(0.001)


async def test_a_step_of_the_wall_clock_changes_no_limit(tmp_path: Path, origin: Origin):
    """FAULTS 22: deadlines are kept by the monotonic clock; only dates and hops know the wall clock."""
    async with data_plane(tmp_path, view(cluster("app", origin.port), timeouts=Timeouts(keepalive=5))) as plane:
        client = await Client.connect(plane.port)
        hour_ms, now_ms = 3_600_000, plane.worker.wall_ms()
        for step_ms in (0, hour_ms, -hour_ms):
            plane.worker.wall_ms = lambda step_ms=step_ms: now_ms + step_ms  # type: ignore[method-assign]
            plane.worker.sweep()
            assert (await client.ask(GET)).status == 200
        await client.close()
        assert origin.connections == 1
        assert len(plane.log.exchanges) == 3
