"""A steady load of clients that each come once: connect, one GET, the answer, the end. Every failure is kept.

It is a process of its own (`python -m tests.support.newcomers PORT HOST RATE`): a thousand connections a second would
starve an application and a test that share its loop. It says what it has counted every 50 ms, one JSON object a line,
and ends with its standard input, after the last answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, cast

import uvloop

from tests.support.fleet import until
from tests.support.processes import alive

PATIENCE_S = 10.0
REPORT_S = 0.05
AT_ONCE_MAX = 400
"""Connections under way; beyond it nobody comes: a client that cannot keep up is no measure of the gateway."""
FAILURES_KEPT = 20


class Newcomers:
    """`async with Newcomers(port, host, rate) as load:` runs it. `ok` and `failed` are as of its last word."""

    def __init__(self, port: int, host: str, rate: float) -> None:
        self.arguments = (str(port), host, str(rate))
        self.counted: dict[str, Any] = {"ok": 0, "failures": 0, "failed": [], "missed": 0, "slowest_s": 0.0}
        self._began = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Newcomers:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.newcomers", *self.arguments), stdin=pipe, stdout=pipe
        )
        self._began = time.monotonic()
        self._reader = asyncio.get_running_loop().create_task(self._hear())
        await self.goes_on(5)
        return self

    async def __aexit__(self, *_: object) -> None:
        process, reader = self._process, self._reader
        assert process is not None
        assert process.stdin is not None
        assert reader is not None
        process.stdin.close()
        await reader
        assert await process.wait() == 0
        assert not alive(process.pid)

    @property
    def ok(self) -> int:
        return int(self.counted["ok"])

    @property
    def failed(self) -> list[str]:
        """The first of what failed."""
        return list(self.counted["failed"])

    async def goes_on(self, count: float) -> None:
        """Wait until `count` more have had their answer, or have failed."""
        wanted = self.ok + self.counted["failures"] + count

        async def more() -> bool:
            return bool(self.ok + self.counted["failures"] >= wanted)

        await until(more, f"{count} more connections have ended")

    def __str__(self) -> str:
        rate = self.ok / (time.monotonic() - self._began)
        rest = "{failures} failed {failed}, {missed} missed, slowest {slowest_s:.2f} s".format(**self.counted)
        return f"{self.ok} connections ok ({rate:.0f}/s), {rest}"

    async def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.counted = json.loads(line)


class _Visit(asyncio.Protocol):
    def __init__(self, crowd: _Crowd) -> None:
        self.crowd = crowd
        self.answer = b""
        self.ended: asyncio.Future[str] = crowd.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self.crowd.request)  # uvloop's do not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, error: Exception | None) -> None:
        head, _, body = self.answer.partition(b"\r\n\r\n")
        whole = b"content-length: %d" % len(body) in head.lower()
        why = "" if error is None and head.startswith(b"HTTP/1.1 200 ") and whole else f"{error} {self.answer[:200]!r}"
        if not self.ended.done():
            self.ended.set_result(why)


class _Crowd:
    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, host: str, rate: float) -> None:
        self.loop = loop
        self.port = port
        self.rate = rate
        self.request = f"GET /n HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        self.ok = self.failures = self.missed = 0
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self.visits: set[asyncio.Task[None]] = set()
        self.enough = asyncio.Event()

    async def run(self) -> None:
        self.loop.add_reader(sys.stdin.fileno(), self.enough.set)
        began = said = time.monotonic()
        count = 0
        while not self.enough.is_set():
            now = time.monotonic()
            due = int((now - began) * self.rate)
            for _ in range(count, due):
                self._come()
            count = max(count, due)
            if now - said >= REPORT_S:
                said = now
                self.report()
            await asyncio.sleep(min(0.005, 1 / self.rate))
        self.loop.remove_reader(sys.stdin.fileno())
        if self.visits:
            await asyncio.wait(self.visits)
        self.report()

    def _come(self) -> None:
        if len(self.visits) >= AT_ONCE_MAX:
            self.missed += 1
            return
        visit = self.loop.create_task(self._visit())
        self.visits.add(visit)
        visit.add_done_callback(self.visits.discard)

    async def _visit(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                _, visit = await self.loop.create_connection(lambda: _Visit(self), "127.0.0.1", self.port)
                why = await visit.ended
        except (OSError, TimeoutError) as error:
            why = f"{type(error).__name__} {error}"
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if not why:
            self.ok += 1
            return
        self.failures += 1
        if len(self.failed) < FAILURES_KEPT:
            self.failed.append(why)

    def report(self) -> None:
        names = ("ok", "failures", "failed", "missed", "slowest_s")
        print(json.dumps({name: getattr(self, name) for name in names}), flush=True)


async def _main(port: str, host: str, rate: str) -> None:
    await _Crowd(asyncio.get_running_loop(), int(port), host, float(rate)).run()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
