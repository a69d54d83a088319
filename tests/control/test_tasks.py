"""The task set: kept, told of, started again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.control import tasks
from gateway.control.tasks import TaskSet


async def fail() -> None:
    raise RuntimeError("boom")


async def test_a_task_that_fails_is_logged_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    kept = TaskSet()
    await asyncio.gather(kept.spawn(fail(), "probe x"), return_exceptions=True)
    assert len(kept) == 0
    assert kept.failures == 1
    assert "probe x" in caplog.text
    assert "boom" in caplog.text


async def test_what_is_kept_is_started_again_until_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)
        if len(runs) < 3:
            await fail()

    kept = TaskSet()
    with caplog.at_level(logging.ERROR):
        await kept.keep(work, "watch y")
    assert len(runs) == 3
    assert kept.failures == 2
    assert caplog.text.count("watch y failed") == 2


async def test_close_cancels_and_waits() -> None:
    kept = TaskSet()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    kept.keep(work, "endless")
    kept.spawn(work(), "endless too")
    await asyncio.sleep(0)
    await kept.close()
    assert ended.is_set()
    assert len(kept) == 0
    assert kept.failures == 0
