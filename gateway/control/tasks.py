"""The process's task set: every background task is kept here, so none is lost, leaked or dies in silence.

A task that fails is logged with its traceback and never takes another one with it. What has to run as long as control
lives (`keep`) is started again: a probe or a watcher that met an error of ours once must not be silent for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

LOG = logging.getLogger("landbridge.control")

AGAIN_S: Final = 1.0
"""The pause after a failure: an error that stays is a line per second in the log, not a busy loop."""


class TaskSet:
    """Tasks that live until they end or until `close`. `failures` counts those that ended with an exception."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failures = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(tuple(self._tasks))

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start `work` and keep it. `name` stands in the log when it fails."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> asyncio.Task[None]:
        """Run `work()` to its end, again after `AGAIN_S` whenever it fails."""
        return self.spawn(self._kept(work, name), name)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _kept(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        while True:
            try:
                await work()
                return
            except Exception:
                self.failures += 1
                LOG.exception("task %s failed and is started again", name)
            await asyncio.sleep(AGAIN_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures += 1
            LOG.error("task %s failed: %r", task.get_name(), error, exc_info=error)
