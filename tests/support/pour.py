"""Requests at a fixed rate whatever becomes of them: answers that do not come must not slow the questions down."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import NamedTuple

from tests.support.client import Client
from tests.support.fleet import request


class One(NamedTuple):
    """One request: when it was sent (monotonic), how long it took, its status (0: none came)."""

    sent: float
    seconds: float
    status: int

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


class Pour:
    """Requests at a fixed rate, however long answers take: each connection is used by one at a time."""

    def __init__(self, port: int, host: str, rate: float) -> None:
        self.port, self.request, self.interval_s = port, request(host), 1 / rate
        self.ended: list[One] = []
        self._idle: list[Client] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._enough = False

    async def __aenter__(self) -> Pour:
        self._runs = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough = True
        await self._runs
        await asyncio.gather(*self._tasks)
        for client in self._idle:
            await client.close()

    async def _run(self) -> None:
        due = time.monotonic()
        while not self._enough:
            task = asyncio.get_running_loop().create_task(self._one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due += self.interval_s
            await asyncio.sleep(due - time.monotonic())

    async def _one(self) -> None:
        client = self._idle.pop() if self._idle else await Client.connect(self.port)
        sent, status = time.monotonic(), 0
        try:
            await client.send(self.request)
            reply = await client.reply(within_s=60.0)
            status = reply.status
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
            await client.close()
        else:
            self._idle.append(client)
        self.ended.append(One(sent, time.monotonic() - sent, status))

    def between(self, start: float, end: float) -> list[One]:
        """Those that were sent then."""
        return [one for one in self.ended if start <= one.sent < end]

    def p99(self, start: float, end: float, window_s: float = 2.0) -> float:
        """The median of the windows' 99th percentiles: one stop of a shared machine spoils one window only."""
        found = []
        for number in range(max(1, round((end - start) / window_s))):
            seconds = sorted(
                one.seconds for one in self.between(start + number * window_s, start + (number + 1) * window_s)
            )
            found.append(seconds[int(len(seconds) * 0.99)])
        return statistics.median(found)
