"""A steady load of clients that each come once: connect, one GET, close. Every failure is kept, resets by name."""

from __future__ import annotations

import asyncio
import time

from tests.support.client import Client
from tests.support.fleet import request, until

PATIENCE_S = 10.0


class Newcomers:
    """`async with Newcomers(port, host, rate) as load:` opens `rate` connections a second, whatever becomes of them."""

    def __init__(self, port: int, host: str, rate: float) -> None:
        self.port = port
        self.rate = rate
        self.request = request(host, "/n", lines=["Connection: close"])
        self.ok = 0
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self._began = 0.0
        self._enough = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._pace: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Newcomers:
        self._began = time.monotonic()
        self._pace = asyncio.get_running_loop().create_task(self._come())
        await self.goes_on(5)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        assert self._pace is not None
        await self._pace
        await asyncio.gather(*self._clients)

    async def goes_on(self, count: float) -> None:
        """Wait for `count` more answers."""
        wanted = self.ok + len(self.failed) + count

        async def more() -> bool:
            return self.ok + len(self.failed) >= wanted

        await until(more, f"{count} more connections have ended")

    def __str__(self) -> str:
        took = time.monotonic() - self._began
        pace = f"{self.ok / took:.0f}/s, slowest {self.slowest_s:.2f} s"
        return f"{self.ok} connections ok ({pace}), failed: {self.failed[:5]}"

    async def _come(self) -> None:
        loop = asyncio.get_running_loop()
        count = 0
        while not self._enough.is_set():
            due = int((time.monotonic() - self._began) * self.rate)
            for _ in range(count, due):
                task = loop.create_task(self._once())
                self._clients.add(task)
                task.add_done_callback(self._clients.discard)
            count = max(count, due)
            await asyncio.sleep(min(0.01, 1 / self.rate))

    async def _once(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                client = await Client.connect(self.port)
            try:
                reply = await client.ask(self.request)
            finally:
                await client.close()
            if reply.status == 200:
                self.ok += 1
            else:
                self.failed.append(f"{reply.status} {reply.body[:100]!r}")
        except (OSError, EOFError, TimeoutError) as error:
            self.failed.append(f"{type(error).__name__} {error}")
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
