"""A way that carries nothing any more is noticed within the connect timeout; a reader that is slow is waited for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.core.view import ClusterTimeouts
from tests.support.client import Client
from tests.support.dataplane import cluster, data_plane, view
from tests.support.origin import Origin, Seen, ok
from tests.support.pace import within
from tests.support.partitions import LossyLink

CONNECT_S = 0.3
TIMEOUTS = ClusterTimeouts(connect=CONNECT_S, response=30.0, body=30.0)
GET = b"GET / HTTP/1.1\r\nHost: acme.test\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: %d\r\n\r\n"
BYTES = 16 * 1024 * 1024


async def test_a_request_on_a_pooled_connection_whose_packets_are_lost(tmp_path: Path) -> None:
    origin = await Origin().start()
    link = LossyLink(origin.port)
    async with data_plane(tmp_path, view(cluster("app", link.port, timeouts=TIMEOUTS))) as plane:
        client = await Client.connect(plane.port)
        assert (await client.ask(GET)).status == 200
        link.cut()
        for status, flag in ((504, b"upstream_timeout"), (502, b"upstream_connect")):
            began = time.monotonic()
            reply = await client.ask(GET)
            assert (reply.status, flag in reply.body) == (status, True)
            assert time.monotonic() - began <= within(CONNECT_S + 0.5)
        link.heal()
        assert (await client.ask(GET)).status == 200
        await client.close()
    await link.stop()
    await origin.stop()


async def test_an_upload_waits_for_a_reader_that_takes_its_time(tmp_path: Path) -> None:
    got = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(4 * CONNECT_S)  # the window closes meanwhile
        while got < BYTES:
            got += len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with data_plane(tmp_path, view(cluster("app", port, timeouts=TIMEOUTS))) as plane:
        client = await Client.connect(plane.port)
        await client.send(UPLOAD % BYTES)
        piece = bytes(256 * 1024)
        for _ in range(BYTES // len(piece)):
            await client.send(piece)
        assert (await client.reply(within_s=30)).status == 200
        assert got == BYTES
        await client.close()
    server.close()


async def test_a_connection_is_patient_only_for_as_long_as_its_request_needs(tmp_path: Path) -> None:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        return await ok(seen, reader, writer)

    origin = await Origin(answer).start()
    async with data_plane(tmp_path, view(cluster("app", origin.port, timeouts=TIMEOUTS))) as plane:
        client = await Client.connect(plane.port)
        for head, body, patient in ((GET, b"", False), (UPLOAD % 40_000, bytes(40_000), True), (GET, b"", False)):
            await client.send(head)
            if body:
                await client.send(body)
            assert (await client.reply()).status == 200
            [up] = plane.worker.ups
            assert up.patient is patient
        await client.close()
    await origin.stop()
