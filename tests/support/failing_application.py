"""An application as a process of its own that fails as it is told, and counts what it was asked.

`python -m tests.support.failing_application` prints its port. Each line of its standard input is `KIND SHARE`: from
now on this share of the requests is answered 503 (`status`), or not at all (`reset`). It answers such a line by one of
JSON: `requests` since the line before, how many `ids` they had, and `twice`: POSTs without an Idempotency-Key that were
seen again.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import uvloop

from tests.support.application_process import QUEUE_MAX

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


class FailingApplication:
    """The test's side of it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def now(self, kind: str, share: float) -> dict[str, Any]:
        """Fail so from now on; what was asked until now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{kind} {share}\n".encode())
        counts: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return counts


@asynccontextmanager
async def failing_application() -> AsyncIterator[FailingApplication]:
    pipe = asyncio.subprocess.PIPE
    module = (sys.executable, "-m", "tests.support.failing_application")
    process = await asyncio.create_subprocess_exec(*module, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield FailingApplication(process, int(await process.stdout.readline()))
    finally:
        process.stdin.close()
        assert await process.wait() == 0


class _State:
    def __init__(self) -> None:
        self.kind, self.share = "status", 0.0
        self.rng = random.Random(15)
        self.forget()

    def forget(self) -> None:
        self.requests = 0
        self.ids: Counter[bytes] = Counter()
        self.posts: Counter[bytes] = Counter()

    def told(self, line: str) -> dict[str, int]:
        counts = {
            "requests": self.requests,
            "ids": len(self.ids),
            "twice": sum(seen > 1 for seen in self.posts.values()),
        }
        self.kind, share = line.split()
        self.share = float(share)
        self.forget()
        return counts


class _Connection(asyncio.Protocol):
    def __init__(self, state: _State) -> None:
        self.state = state
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            start, *lines = self.data[:end].split(b"\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            whole = end + 4 + int(fields.get(b"content-length", b"0"))
            if len(self.data) < whole:
                return
            self.data = self.data[whole:]
            if not self.answer(start, fields):
                return

    def answer(self, start: bytes, fields: dict[bytes, bytes]) -> bool:
        state = self.state
        if b" /healthz " in start:
            self.transport.write(OK)
            return True
        state.requests += 1
        number = fields[b"x-request-id"]
        state.ids[number] += 1
        if start.startswith(b"POST ") and b"idempotency-key" not in fields:
            state.posts[number] += 1
        if state.rng.random() >= state.share:
            self.transport.write(OK)
        elif state.kind == "status":
            self.transport.write(BUSY)
        else:
            self.transport.abort()
            return False
        return True


async def _main() -> None:
    loop, state = asyncio.get_running_loop(), _State()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=QUEUE_MAX)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        print(json.dumps(state.told(line.decode())), flush=True)
    server.close()


if __name__ == "__main__":
    uvloop.run(_main())
