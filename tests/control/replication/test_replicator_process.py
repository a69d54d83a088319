"""The replicator as the process that it is: killed, stopped and woken while a region writes; nothing twice, nothing
skipped."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.control.replication import keys
from gateway.control.replication.counters import APPLIED, RESYNCS, TAKEOVERS
from gateway.control.replication.lease import TTL_MS
from tests.support.replication import EU, US, Process, Region, until, world

TAKEOVER_LIMIT_S = 5.0
UNCOUNTED_MAX = 20
"""One batch: writes come one at a time here, and few come in while one batch is applied."""


@asynccontextmanager
async def writing(region: Region) -> AsyncIterator[list[str]]:
    """A tenant every 10 ms, each once; their names."""
    written: list[str] = []

    async def write() -> None:
        while True:
            name = f"t{len(written):05d}"
            await region.write(name)
            written.append(name)
            await asyncio.sleep(0.01)

    task = asyncio.get_running_loop().create_task(write())
    try:
        yield written
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def assert_each_once_and_in_order(us: Region, eu: Region) -> None:
    """Each entry of the log of `us` made one entry in the feed of `eu`, or came with the first comparison."""
    feed = [entry for entry in await eu.map.read_feed(0, 100_000, 0) if entry.tenant]
    tenants = [entry.tenant for entry in feed]
    assert len(tenants) == len(set(tenants)), "none was applied twice"
    followed = [entry.origin[1].seq for entry in feed if entry.origin]
    assert followed == list(range(followed[0], followed[0] + len(followed))), "none was skipped"
    assert await eu.content() == await us.content()


async def at_work(*processes: Process) -> Process:
    """The one that holds the lease."""
    found: list[Process] = []

    async def is_one() -> bool:
        found[:] = [process for process in processes if await process.holds_the_lease()]
        return bool(found)

    await until(is_one)
    return found[0]


async def test_a_holder_that_dies_or_sleeps_is_replaced_and_nothing_is_skipped_or_done_twice(tmp_path: Path) -> None:
    """Both at once, in worlds of their own: each takes as long as a lease lives."""
    await asyncio.gather(a_holder_is_killed(tmp_path / "killed"), a_holder_is_stopped_and_wakes(tmp_path / "stopped"))


async def a_holder_is_killed(folder: Path) -> None:
    async with world(folder, US, EU) as w:
        us, eu = w.regions
        first = await eu.start()
        assert await at_work(first) is first
        second = await eu.start()
        await us.write("first")
        await until(lambda: eu.is_even_with(us))
        async with writing(us) as written:
            await asyncio.sleep(0.3)
            first.signal(signal.SIGKILL)
            await first.ended()
            killed_at = time.monotonic()
            await until(second.holds_the_lease, TAKEOVER_LIMIT_S)
            known = len(written)
            await until(lambda: _has(eu, written[known - 1]), TAKEOVER_LIMIT_S)
            assert time.monotonic() - killed_at < TAKEOVER_LIMIT_S
        await until(lambda: eu.is_even_with(us))
        await assert_each_once_and_in_order(us, eu)
        assert eu.count(TAKEOVERS) == 2
        assert eu.count(RESYNCS, peer=US) == 1
        applied = eu.count(APPLIED, peer=US)  # what the killed one had written, and not yet counted, is missing
        assert len(written) + 1 - UNCOUNTED_MAX <= applied <= len(written) + 2


async def _has(region: Region, tenant: str) -> bool:
    return await region.current(tenant) is not None


async def a_holder_is_stopped_and_wakes(folder: Path) -> None:
    """It wakes after another took over, and writes nothing."""
    async with world(folder, US, EU) as w:
        us, eu = w.regions
        first = await eu.start()
        assert await at_work(first) is first
        second = await eu.start()
        await us.write("first")
        await until(lambda: eu.is_even_with(us))
        async with writing(us) as written:
            await asyncio.sleep(0.3)
            first.signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            await until(second.holds_the_lease, TAKEOVER_LIMIT_S)
            await until(lambda: _has(eu, written[-1]), TAKEOVER_LIMIT_S)
            assert time.monotonic() - stopped_at < TAKEOVER_LIMIT_S
            first.signal(signal.SIGCONT)
            await until(lambda: _logged(first, "standing by"))
            await asyncio.sleep(0.3)  # both are awake, and only one writes
            assert await second.holds_the_lease()
        await until(lambda: eu.is_even_with(us))
        await assert_each_once_and_in_order(us, eu)
        assert eu.count(TAKEOVERS) == 2
        assert "Traceback" not in first.log() + second.log()


async def _logged(process: Process, text: str) -> bool:
    return text in process.log()


async def test_it_goes_on_while_it_drains_and_leaves_the_lease_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU, dev=True) as w:
        us, eu = w.regions
        process = await eu.start()
        assert await at_work(process) is process
        process.signal(signal.SIGTERM)
        assert await process.said() == {"state": "draining"}
        await us.write("late")
        await until(lambda: eu.is_even_with(us))
        process.tell(cmd="stop")
        assert await process.ended() == 0, process.log()
        assert eu.server.cli("EXISTS", keys.LEASE) == b":0\r\n"
        assert "Warning" not in process.log(), "as Python's development mode tells of what is left open"


async def test_it_ends_when_the_supervisor_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        eu = w.regions[1]
        process = await eu.start()
        process.hang_up()
        assert await process.ended() == 0, process.log()


async def test_it_starts_without_its_server_and_works_once_that_is_there(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.server.kill()
        process = await eu.start()
        await until(lambda: _logged(process, "our own Redis:"))
        await eu.restart()
        await until(lambda: eu.is_even_with(us))
        assert await w.converged()


async def test_it_says_why_it_cannot_start(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        eu = w.regions[1]
        process = Process(eu, 0)
        for content, expected in ((b"", "config.last-good"), (None, "No such file")):
            last_good = process.state_dir / "config.last-good"
            last_good.unlink() if content is None else last_good.write_bytes(content)
            process.log_file.write_text("")
            await process.launch()
            assert await process.ended() == 1
            assert "the replicator cannot start" in process.log()
            assert expected in process.log()
        process.hang_up()


def test_a_takeover_may_take_the_lease_and_a_look() -> None:
    assert TTL_MS / 1000 + 1.0 < TAKEOVER_LIMIT_S
