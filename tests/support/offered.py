"""Requests offered at a fixed rate, whatever becomes of them, and an application that answers them all: two processes.

`python -m tests.support.offered app PORT` answers everything with 200. `python -m tests.support.offered load JSON`
offers each target its requests for so many seconds, evenly spread, and prints what came back as JSON: answers by
status in tenths of a second, counted from the begin, and the seconds that the 200s took. A request that finds no idle
connection opens another one, up to a bound; beyond it the request is counted as missed and never sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

import uvloop

STEP_S = 0.005
CONNECTIONS_MAX = 400
BODY = b"x" * 100
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Target(NamedTuple):
    """`rate` requests a second for `host` to `port`, over at least `connections` connections."""

    port: int
    host: str
    rate: float
    connections: int = 8


class Result(NamedTuple):
    """What one target was answered. `statuses`: by status, counts in tenths of a second from the begin."""

    statuses: dict[int, list[int]]
    seconds: list[float]
    missed: int

    def admitted(self, start_s: float, end_s: float) -> int:
        return sum(self.statuses.get(200, [])[round(start_s * 10) : round(end_s * 10)])

    def total(self, status: int) -> int:
        return sum(self.statuses.get(status, []))


class _App(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        count = self.buffer.count(b"\r\n\r\n")
        if count:
            self.buffer = self.buffer[self.buffer.rindex(b"\r\n\r\n") + 4 :]
            self.transport.write(ANSWER * count)


class _Client(asyncio.Protocol):
    def __init__(self, offer: _Offer) -> None:
        self.offer = offer
        self.sent_at = 0.0
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.offer.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.offer.idle:
            self.offer.idle.remove(self)
        elif self.sent_at:
            self.offer.answered(0, self.sent_at)
        self.offer.size -= 1

    def send(self, request: bytes) -> None:
        self.sent_at = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().index(b"content-length:") + 15
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.buffer = b""
        self.offer.answered(int(head[9:12]), self.sent_at)
        self.sent_at = 0.0
        if not self.transport.is_closing():
            self.offer.idle.append(self)


class _Offer:
    def __init__(self, target: Target, begin: float, tenths: int) -> None:
        self.target = target
        self.begin = begin
        self.request = f"GET /x HTTP/1.1\r\nHost: {target.host}\r\nAccept: */*\r\n\r\n".encode()
        self.idle: list[_Client] = []
        self.size = 0
        self.due = 0.0
        self.missed = 0
        self.seconds: list[float] = []
        self.statuses: dict[int, list[int]] = {}
        self.tenths = tenths

    async def connect(self) -> None:
        self.size += 1
        await asyncio.get_running_loop().create_connection(lambda: _Client(self), "127.0.0.1", self.target.port)

    def answered(self, status: int, sent_at: float) -> None:
        now = time.monotonic()
        counts = self.statuses.setdefault(status, [0] * self.tenths)
        counts[min(self.tenths - 1, max(0, int((now - self.begin) * 10)))] += 1
        if status == 200:
            self.seconds.append(now - sent_at)

    def offer(self, seconds: float, tasks: set[asyncio.Task[None]]) -> None:
        self.due += seconds * self.target.rate
        while self.due >= 1.0:
            self.due -= 1.0
            if self.idle:
                self.idle.pop(0).send(self.request)  # the one that waited longest: all connections are used
            elif self.size < CONNECTIONS_MAX:
                self.missed += 1
                task = asyncio.get_running_loop().create_task(self.connect())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self.missed += 1


async def _load(targets: list[Target], seconds: float) -> list[Result]:
    begin = time.monotonic() + 0.5
    offers = [_Offer(target, begin, round(seconds * 10) + 20) for target in targets]
    for offer in offers:
        for _ in range(offer.target.connections):
            await offer.connect()
    tasks: set[asyncio.Task[None]] = set()
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    begin = before = time.monotonic()
    for offer in offers:
        offer.begin = begin
    print(json.dumps({"begin": begin}), flush=True)
    while before < begin + seconds:
        await asyncio.sleep(STEP_S)
        now = min(time.monotonic(), begin + seconds)
        for offer in offers:
            offer.offer(now - before, tasks)
        before = now
    await asyncio.sleep(1.0)
    return [Result(offer.statuses, offer.seconds, offer.missed) for offer in offers]


class Load:
    """`async with Load(targets, seconds) as load:` begins it in a process; `await load.results()` waits for its end."""

    def __init__(self, targets: list[Target], seconds: float) -> None:
        self.targets, self.seconds = targets, seconds
        self.begin = 0.0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Load:
        arguments = json.dumps([self.targets, self.seconds])
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.offered", "load", arguments),
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        assert self._process.stdout is not None
        self.begin = json.loads(await self._process.stdout.readline())["begin"]
        return self

    async def results(self) -> list[Result]:
        assert self._process is not None
        assert self._process.stdout is not None
        rows = json.loads(await self._process.stdout.readline())
        return [Result({int(k): v for k, v in statuses.items()}, *rest) for statuses, *rest in rows]

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Application:
    """`async with Application() as application:` answers at `application.port`, in a process of its own."""

    def __init__(self) -> None:
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Application:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.offered", "app"), stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.port = int(await self._process.stdout.readline())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


async def _app() -> None:
    server = await asyncio.get_running_loop().create_server(_App, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def sums(counters: list[Result]) -> Counter[int]:
    """Answers by status, of all targets."""
    total: Counter[int] = Counter()
    for result in counters:
        total.update({status: sum(counts) for status, counts in result.statuses.items()})
    return total


if __name__ == "__main__":
    if sys.argv[1] == "app":
        uvloop.run(_app())
    else:
        wanted, duration = json.loads(sys.argv[2])
        print(json.dumps(uvloop.run(_load([Target(*one) for one in wanted], duration))), flush=True)
