"""Large bodies both ways, twenty at once, half of them over a hop: equal by hash, and never in the gateway's memory.

Three streams in four have slow ends: the application leaves the request unread for a while, the client the response.
A gateway that collects what it cannot pass on would hold most of those bodies.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.big_bodies import Result, Stream
from tests.support.fleet import EU, US, fleet
from tests.support.measured import hold
from tests.support.processes import rss_anon_bytes

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "tests.support.big_bodies"]
MIB = 1 << 20
AT_ONCE = 20
TENANTS = "tenants: {acme: {home: us-east-1}}\n"


class Memory(threading.Thread):
    """The highest RssAnon of some processes together, looked at all the while."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__()
        self.pids = pids
        self.first = self.highest = rss_anon_bytes(pids)
        self.looks = 0
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(0.01):
            self.highest = max(self.highest, rss_anon_bytes(self.pids))
            self.looks += 1

    def stop(self) -> int:
        """By how much it grew at most."""
        self._enough.set()
        self.join()
        return self.highest - self.first


@contextmanager
def streaming_origin() -> Iterator[int]:
    """The application as a process of its own; its port."""
    process = subprocess.Popen([*PROGRAM, "origin"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.stdout.close()


async def run(streams: list[Stream], limit_s: float) -> list[Result]:
    """All streams at once, from a process of their own."""
    given = json.dumps([asdict(stream) for stream in streams])
    done = await asyncio.to_thread(
        subprocess.run, [*PROGRAM, "client"], input=given, capture_output=True, text=True, timeout=limit_s, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return [Result(**result) for result in json.loads(done.stdout)]


async def carry(folder: Path, size: int, pause_s: float, growth_max: int, limit_s: float) -> None:
    """Twenty bodies of `size` bytes up and down: a mix of both framings, both entries, and slow ends.

    `growth_max` is of RssAnon, over all workers of both gateways.
    """
    with streaming_origin() as port:
        async with fleet(folder, (US, EU), TENANTS, {US: port}) as made:
            entries = [made[US].http, made[EU].http]

            def streams(size: int, pause_s: float) -> list[Stream]:
                return [
                    Stream(entries[n % 2], "acme.demo.test", n, size + n, n % 8 >= 4, pause_s if n % 4 else 0.0)
                    for n in range(AT_ONCE)
                ]

            await run(streams(MIB // 4, 0.0), limit_s)  # connections, pools and buffers exist before anything counts
            workers = [pid for gateway in made.gateways.values() for pid in await gateway.serving()]
            memory = Memory(workers)
            memory.start()
            began = time.monotonic()
            try:
                results = await run(asked := streams(size, pause_s), limit_s)
            finally:
                growth = memory.stop()
            took = time.monotonic() - began
            assert [pid for gateway in made.gateways.values() for pid in await gateway.serving()] == workers
    assert [(result.status, result.size) for result in results] == [(200, stream.size) for stream in asked]
    assert [result.received for result in results] == [result.sent for result in results], "what went up"
    assert [result.back for result in results] == [result.sent for result in results], "what came down"
    assert len({result.sent for result in results}) == AT_ONCE
    print(
        f"{AT_ONCE} x {size // MIB} MiB up and down in {took:.1f} s: RssAnon of {len(workers)} workers "
        f"{memory.first / MIB:.1f} MiB at first"
    )
    assert memory.looks > 10
    hold("27", f"{AT_ONCE} x {size // MIB} MiB up and down: RssAnon grew", growth, growth_max, "MiB")


async def test_twenty_bodies_at_once_are_never_in_memory(tmp_path: Path) -> None:
    await carry(tmp_path, 8 * MIB, 1.0, 24 * MIB, 60.0)


@pytest.mark.faults
async def test_twenty_bodies_of_64_mib_at_once_are_never_in_memory(tmp_path: Path) -> None:
    await carry(tmp_path, 64 * MIB, 3.0, 64 * MIB, 300.0)
