"""Broken bytes from both sides, cut anywhere: no exception leaves a connection, and no connection is lost count of.

Messages are good ones with pieces deleted, doubled, replaced, and with the tokens that proxies disagree on thrown in.
Both transports are without a kernel, so that a seed is enough to see a failure again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest

from gateway.proxy.downstream import Downstream
from gateway.proxy.upstream import Upstream
from gateway.proxy.worker import Worker
from tests.support.dataplane import cluster, data_plane, view
from tests.support.transports import Dropped

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: acme.test\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: acme.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"PUT http://acme.test/x HTTP/1.1\r\nHost: acme.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /healthz HTTP/1.0\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nbody",
)
TOKENS = (
    b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b"%", b"\xff", b"a" * 300, b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Via: 1.1 us-east-1.landbridge\r\n",
    b"Gateway-Hop: v=1; x\r\n", b"X-Request-Id: a\r\n", b"Upgrade: ,\r\n",
)  # fmt: skip


def broken(message: bytes, rng: random.Random) -> bytes:
    data = bytearray(message)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(4)
        if how == 0:
            del data[at : at + rng.randrange(1, 6)]
        elif how == 1:
            data[at:at] = rng.choice(TOKENS)
        elif how == 2 and at < len(data):
            data[at] = rng.randrange(256)
        else:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.randrange(20)]
    return bytes(data)


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    return [part for part in map(data.__getitem__, map(slice, [0, *cuts], [*cuts, None])) if part]


def connection(worker: Worker) -> tuple[Upstream, Dropped]:
    """A warm connection in the pool."""
    pool = worker.clusters["app"].endpoints["127.0.0.1:9"]
    up, transport = Upstream(worker, pool), Dropped()
    up.connection_made(transport)  # type: ignore[arg-type]
    pool.busy += 1
    pool.size += 1
    pool.cluster.size += 1
    pool.release(up, worker.now() + 1e6)
    return up, transport


async def converse(worker: Worker, rng: random.Random) -> int:
    """One client's connection, from its first byte to its end. The number of messages sent."""
    down: Downstream = worker.accept_on(8080, rng.choice(("http", "http", "hop")))()
    client, messages = Dropped(), rng.randrange(1, 4)
    down.connection_made(client)  # type: ignore[arg-type]
    ups = [connection(worker) for _ in range(2)]
    for _ in range(messages):
        for part in pieces(broken(rng.choice(REQUESTS), rng), rng):
            if not client.closed:
                down.data_received(part)
        for up, transport in ups:
            for part in pieces(broken(rng.choice(RESPONSES), rng), rng) if rng.random() < 0.8 else ():
                if not transport.closed:
                    up.data_received(part)
        if rng.random() < 0.1:
            down.pause_writing()
            down.resume_writing()
        if rng.random() < 0.05:
            down.expired()
    for up, _ in ups:
        if rng.random() < 0.3:
            up.eof_received()
        up.connection_lost(None)
    down.connection_lost(None)
    while worker.tasks:  # a third request meets no warm connection, and its connect is refused
        await asyncio.sleep(0)
    return messages


async def fuzz(tmp_path: Path, seed: int, conversations: int, caplog: pytest.LogCaptureFixture) -> int:
    rng, messages = random.Random(seed), 0
    async with data_plane(tmp_path, view(cluster("app", 9))) as plane:
        pool = plane.worker.clusters["app"].endpoints["127.0.0.1:9"]
        with caplog.at_level(logging.ERROR):
            for number in range(conversations):
                messages += await converse(plane.worker, rng)
                assert not caplog.records, f"seed {seed}, conversation {number}: {caplog.text}"
                assert (pool.busy, pool.size, pool.idle) == (0, 0, []), f"seed {seed}, conversation {number}: {pool}"
                pool.failures, pool.down_until = 0, 0.0
        assert not plane.worker.downs
        assert not plane.worker.ups
    return messages


@pytest.mark.parametrize("seed", range(4))
async def test_broken_bytes_cost_nobody_else_anything(tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int):
    assert await fuzz(tmp_path, seed, 3000, caplog) > 3000


@pytest.mark.faults
async def test_a_million_broken_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """FAULTS 38."""
    seed, messages = 100, 0
    while messages < 1_000_000:
        messages += await fuzz(tmp_path / str(seed), seed, 20_000, caplog)
        seed += 1
    print(f"{messages} broken messages: 0 exceptions, 0 connections lost count of")
