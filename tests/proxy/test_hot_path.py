"""The plain path makes no Task, no Future and no timer: they are counted, not assumed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.client import Client
from tests.support.dataplane import cluster, data_plane, view
from tests.support.origin import Origin

GET = b"GET / HTTP/1.1\r\nHost: acme.test\r\nX-Trace: %d\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 2\r\n\r\nok"


class Counted:
    """A loop as the worker sees it, whose factories of tasks, futures and timers are counted."""

    COUNTED = ("create_task", "create_future", "call_soon", "call_soon_threadsafe", "call_later", "call_at",
               "run_in_executor")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        found = getattr(self._loop, name)
        if name in self.COUNTED:
            self.calls.append(name)
        return found


async def test_no_task_no_future_no_timer_per_request(tmp_path: Path, monkeypatch):
    origin = await Origin().start()
    async with data_plane(tmp_path, view(cluster("app", origin.port))) as plane:
        worker, test_task = plane.worker, asyncio.current_task()
        client = await Client.connect(plane.port)
        assert (await client.ask(GET % 0)).status == 200  # this one connects, with a task
        counted = Counted(worker.loop)
        worker.loop = counted  # type: ignore[assignment]

        def no_task(*args: object, **more: object) -> None:
            raise AssertionError("a task was made on the plain path")

        monkeypatch.setattr(worker, "spawn", no_task)
        tasks = asyncio.all_tasks()
        for number in range(200):
            assert (await client.ask(GET % number)).status == 200
            assert (await client.ask(POST)).status == 200
        await client.send(GET % 1 * 50)
        for _ in range(50):
            assert (await client.reply()).status == 200
        assert counted.calls == []
        assert asyncio.all_tasks() - tasks == set()
        assert test_task in tasks
        assert origin.connections == 1
        worker.loop = counted._loop
        await client.close()
    await origin.stop()
