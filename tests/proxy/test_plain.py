"""The plain path on real sockets: what the application sees, what the client gets, connections kept and reused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.placement import Partition, Placement
from tests.support.client import Client, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.origin import Origin, raw

GET = b"GET /a%20b?c=d HTTP/1.1\r\nHost: acme.test\r\nX-Case: Kept\r\n\r\n"


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


@pytest.fixture
async def plane(origin: Origin, tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with data_plane(tmp_path, view(cluster("app", origin.port))) as running:
        yield running


async def test_a_request_is_served(plane: DataPlane, origin: Origin):
    reply = await once(plane.port, GET)
    assert reply.status == 200
    assert reply.body == b"GET /a%20b?c=d HTTP/1.1"
    assert reply.value("via") == "1.1 us-east-1.landbridge"
    assert reply.value("x-app") == "yes"
    (seen,) = origin.requests
    assert seen.lines[:2] == [b"Host: acme.test", b"X-Case: Kept"]
    assert seen.value("x-tenant") == "acme"
    assert seen.value("x-tenant-home") == "us-east-1"
    assert seen.value("x-tenant-epoch") is None
    assert seen.value("x-gateway-region") == "us-east-1"
    assert seen.value("x-gateway-hops") == "us-east-1"
    assert seen.value("x-forwarded-for") == "127.0.0.1"
    assert seen.value("x-forwarded-proto") == "http"
    assert seen.value("x-forwarded-port") == str(plane.port)
    assert seen.value("x-forwarded-host") == "acme.test"
    assert seen.value("x-request-id") == reply.value("x-request-id")
    assert seen.value("via") == "1.1 us-east-1.landbridge"
    assert seen.value("connection") is None
    (exchange,) = plane.log.exchanges
    assert (exchange.tenant, exchange.status, exchange.reason) == ("acme", 200, "home")


async def test_connections_are_kept_on_both_sides(plane: DataPlane, origin: Origin):
    client = await Client.connect(plane.port)
    for _ in range(5):
        assert (await client.ask(GET)).status == 200
    await client.close()
    assert origin.connections == 1
    assert len(origin.requests) == 5


async def test_pipelined_requests_are_answered_in_order(plane: DataPlane, origin: Origin):
    client = await Client.connect(plane.port)
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: acme.test\r\n\r\n" % n for n in range(50)))
    bodies = [(await client.reply()).body for _ in range(50)]
    await client.close()
    assert bodies == [b"GET /%d HTTP/1.1" % n for n in range(50)]


async def test_bodies_both_framings(plane: DataPlane, origin: Origin):
    client = await Client.connect(plane.port)
    head = b"POST / HTTP/1.1\r\nHost: acme.test\r\n"
    assert (await client.ask(head + b"Content-Length: 5\r\n\r\nhello")).status == 200
    await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n")
    await client.send(b"2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert (await client.reply()).status == 200
    await client.close()
    assert [seen.body for seen in origin.requests] == [b"hello", b"hello"]


async def test_a_body_that_ends_with_the_connection_becomes_chunked(plane: DataPlane, origin: Origin):
    origin.answer = raw(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
    reply = await once(plane.port, GET)
    assert (reply.value("transfer-encoding"), reply.body) == ("chunked", b"until the end")
    old = await once(plane.port, GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (old.value("transfer-encoding"), old.body) == (None, b"until the end")


async def test_head_204_304(plane: DataPlane, origin: Origin):
    client = await Client.connect(plane.port)
    reply = await client.ask(GET.replace(b"GET", b"HEAD", 1))
    assert (reply.status, reply.value("content-length")) == (200, "24")
    for status in (204, 304):
        origin.answer = raw(b"HTTP/1.1 %d Fine\r\n\r\n" % status, keep=True)
        assert (await client.ask(GET)).status == status
    await client.close()
    assert origin.connections == 1


async def test_expect_is_answered_once_admitted_and_never_reaches_the_application(plane: DataPlane, origin: Origin):
    client = await Client.connect(plane.port)
    await client.send(b"POST / HTTP/1.1\r\nHost: acme.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert (await client.reply()).status == 100
    await client.send(b"ok")
    assert (await client.reply()).status == 200
    await client.close()
    (seen,) = origin.requests
    assert seen.value("expect") is None
    assert seen.body == b"ok"


async def test_expect_is_not_answered_for_a_refused_request(plane: DataPlane, origin: Origin):
    client = await Client.connect(plane.port)
    await client.send(b"POST / HTTP/1.1\r\nHost: nobody.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    reply = await client.reply()
    assert reply.status == 404
    assert b"tenant_unknown" in reply.body
    assert await client.at_end() == b""
    await client.close()
    assert origin.requests == []


async def test_interim_responses_pass_to_11_only(plane: DataPlane, origin: Origin):
    origin.answer = raw(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True
    )
    client = await Client.connect(plane.port)
    assert (await client.ask(GET)).status == 103
    assert (await client.reply()).status == 200
    await client.close()
    assert (await once(plane.port, GET.replace(b"HTTP/1.1", b"HTTP/1.0"))).status == 200


async def test_trailers_pass_from_chunked_to_chunked(plane: DataPlane, origin: Origin):
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n", True)
    client = await Client.connect(plane.port)
    await client.send(GET.replace(b"X-Case: Kept", b"Connection: close"))
    assert (await client.at_end()).endswith(b"0\r\nX-Sum: 7\r\n\r\n")
    await client.close()


async def test_a_truncated_body_never_looks_complete(plane: DataPlane, origin: Origin):
    for head in (b"Content-Length: 10", b"Transfer-Encoding: chunked"):
        origin.answer = raw(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n5\r\nhel")
        client = await Client.connect(plane.port)
        await client.send(GET)
        with pytest.raises((ConnectionError, EOFError)):
            await client.reply()
            raise EOFError
        await client.close()
    (first, second) = plane.log.exchanges
    assert first.flag is not None
    assert second.flag is not None
    assert first.flag.name == "upstream_reset"


async def test_a_websocket_is_carried_both_ways(plane: DataPlane, origin: Origin):
    async def upgrade(seen, reader, writer):
        assert seen.value("upgrade") == "websocket"
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        while data := await reader.read(1000):
            writer.write(data.upper())
        return False

    origin.answer = upgrade
    client = await Client.connect(plane.port)
    await client.send(GET.replace(b"X-Case: Kept", b"Connection: Upgrade\r\nUpgrade: websocket"))
    assert (await client.reply()).status == 101
    assert await client.reader.readexactly(5) == b"hello"
    for word in (b"one", b"two"):
        await client.send(word)
        assert await client.reader.readexactly(3) == word.upper()
    await client.close()


async def test_other_upgrades_are_dropped(plane: DataPlane, origin: Origin):
    reply = await once(plane.port, GET.replace(b"X-Case: Kept", b"Connection: upgrade\r\nUpgrade: h2c"))
    assert reply.status == 200
    assert origin.requests[0].value("upgrade") is None


POST = b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 1\r\n\r\nx"


async def test_a_region_that_is_cut_off_tells_the_client_so_and_looks_at_every_request(origin: Origin, tmp_path: Path):
    """`read_only` lets a GET pass and then, on the same connection and for the same tenant, no POST."""
    careful = Placement(tenant="acme", home="us-east-1", partition=Partition.READ_ONLY)
    async with data_plane(tmp_path, view(cluster("app", origin.port), isolated=True), [careful]) as plane:
        client = await Client.connect(plane.port)
        assert (await client.ask(GET)).status == 200
        refused = await client.ask(POST)
        assert (refused.status, refused.value("retry-after")) == (503, "1")
        assert refused.value("proxy-status") == (
            'us-east-1.landbridge; error=destination_unavailable; details="partitioned"'
        )
        problem = json.loads(refused.body)
        assert problem["flag"] == "partitioned"
        assert problem["detail"].startswith("region us-east-1 has heard from no other region for longer than")
        assert problem["detail"].endswith("(partition: read_only), only reads are served")
        plane.swap(isolated=False)
        assert (await client.ask(POST)).status == 200
        assert (await client.ask(POST)).status == 200
        plane.swap(isolated=True)
        assert (await client.ask(POST)).status == 503
        await client.close()
    assert [exchange.reason for exchange in plane.log.exchanges] == ["home", "partition", "home", "home", "partition"]
