"""An application as a process of its own, with a long queue: whatever a test measures, this is not what is slow.

`python -m tests.support.application_process REGION[:PORT[:SECONDS]]...` prints its ports, one for each region that it
plays, and answers, each request after so many seconds, until its standard input ends. Each answer says who it is, and
what the gateway told it of the tenant: fields `X-Region`, `X-Epoch` and `X-Home`, and as JSON also `tenant` and `hops`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import uvloop

from tests.support.processes import alive

QUEUE_MAX = 4096
"""Connections that the kernel keeps for us; it may grant fewer (net.core.somaxconn)."""
TOLD = (b"x-tenant", b"x-tenant-epoch", b"x-tenant-home", b"x-gateway-hops")


@asynccontextmanager
async def application_process(*regions: str) -> AsyncIterator[dict[str, int]]:
    """A running application for each region; their ports."""
    pipe = asyncio.subprocess.PIPE
    module = (sys.executable, "-m", "tests.support.application_process", *regions)
    process = await asyncio.create_subprocess_exec(*module, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield dict(zip(regions, map(int, (await process.stdout.readline()).split()), strict=True))
    finally:
        process.stdin.close()
        assert await process.wait() == 0
        assert not alive(process.pid)


class _Connection(asyncio.Protocol):
    """Requests one after the other, without a body or with a Content-Length."""

    def __init__(self, region: str, after_s: float) -> None:
        self.region = region
        self.after_s = after_s
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            lines = [line.partition(b":") for line in self.data[:end].split(b"\r\n")[1:]]
            fields = {name.lower(): value.strip() for name, _, value in lines}
            assert b"transfer-encoding" not in fields
            whole = end + 4 + int(fields.get(b"content-length", b"0"))
            if len(self.data) < whole:
                return
            is_head = self.data.startswith(b"HEAD ")
            self.data = self.data[whole:]
            if self.after_s:
                asyncio.get_running_loop().call_later(self.after_s, self.transport.write, self.answer(fields, is_head))
            else:
                self.transport.write(self.answer(fields, is_head))

    def answer(self, fields: dict[bytes, bytes], is_head: bool) -> bytes:
        tenant, epoch, home, hops = (fields.get(name, b"").decode() for name in TOLD)
        told = {"region": self.region, "tenant": tenant, "epoch": epoch, "home": home, "hops": hops}
        body = json.dumps(told)
        head = f"HTTP/1.1 200 OK\r\nX-Region: {self.region}\r\nX-Epoch: {epoch}\r\nX-Home: {home}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{'' if is_head else body}".encode()


async def _main(*places: str) -> None:
    loop, enough = asyncio.get_running_loop(), asyncio.Event()
    known = [(*place.split(":"), "", "")[:3] for place in places]
    socks = [socket.create_server(("127.0.0.1", int(port or 0)), backlog=QUEUE_MAX) for _, port, _ in known]
    servers = [
        await loop.create_server(partial(_Connection, region, float(after_s or 0)), sock=sock, backlog=QUEUE_MAX)
        for (region, _, after_s), sock in zip(known, socks, strict=True)
    ]
    print(*(sock.getsockname()[1] for sock in socks), flush=True)
    loop.add_reader(sys.stdin.fileno(), enough.set)
    await enough.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
