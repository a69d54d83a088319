"""Counters that are watched: whatever dies or is replaced, none may fall."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.fleet import Gateway

COUNTED = ("_total", "_bucket", "_count", "_sum")


class Counters:
    """Scrapes /metrics all the while: no counter may ever fall, and none may vanish."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.fallen: list[str] = []
        self.scrapes = 0
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Counters:
        self._task = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        assert self._task is not None
        await self._task
        assert self.fallen == []
        assert self.scrapes > 10

    async def _watch(self) -> None:
        while not self._enough.is_set():
            with contextlib.suppress(OSError, EOFError):  # control was killed while it answered
                await self._scrape()
            await asyncio.sleep(0.03)

    async def _scrape(self) -> None:
        now = await self.gateway.metrics()
        self.scrapes += 1
        for key, value in self._last.items():
            if value > (found := now.get(key, -1.0)):
                self.fallen.append(f"{key[0]}{dict(key[1])}: {value} then {found}")
        self._last = {key: value for key, value in now.items() if key[0].endswith(COUNTED)}
