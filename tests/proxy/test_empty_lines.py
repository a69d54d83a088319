"""Empty lines before a request line (RFC 9112, 2.2): ignored however they arrive, and at no cost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.client import Client
from tests.support.dataplane import cluster, data_plane, view
from tests.support.eventually import eventually
from tests.support.origin import Origin

REQUEST = b"GET /x HTTP/1.1\r\nHost: acme.test\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\n\r\nhello"
COST_S = 0.25
"""A few milliseconds on an idle machine; cutting them off one by one took seconds."""


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\r\n" + REQUEST],
        [b"\r\n", REQUEST],
        [b"\r\n\r\n", REQUEST],
        [b"\r", b"\n", b"\r", b"\n" + REQUEST],
        [b"\r\n\r", b"\nGET /x HTTP/1.1\r\nHost: acme.test\r\n", b"\r\n"],
        [POST + b"\r\n", REQUEST],  # RFC 9112, 2.2: old clients end a body so
        [POST, b"\r\n", REQUEST],
    ],
)
async def test_they_are_ignored_however_they_arrive(tmp_path: Path, pieces: list[bytes]) -> None:
    origin = await Origin().start()
    try:
        async with data_plane(tmp_path, view(cluster("app", origin.port))) as plane:
            client = await Client.connect(plane.port)
            await eventually(lambda: plane.worker.downs)
            (down,) = plane.worker.downs
            for piece in pieces:
                down.data_received(piece)  # as the transport would: a socket may join what was sent apart
                if piece.startswith(b"POST"):
                    assert (await client.reply()).status == 200
            assert (await client.reply()).body == b"GET /x HTTP/1.1"
            await client.close()
            assert [exchange.status for exchange in plane.log.exchanges] == [200] * len(origin.requests)
    finally:
        await origin.stop()


async def test_a_million_of_them_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    async with data_plane(tmp_path, view(cluster("app", 9))) as plane:
        client = await Client.connect(plane.port)
        await eventually(lambda: plane.worker.downs)
        (down,) = plane.worker.downs
        began = time.perf_counter()
        down.data_received(b"\r\n" * 1_000_000)
        assert time.perf_counter() - began < COST_S
        await client.close()
