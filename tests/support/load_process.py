"""`Load` in a process of its own, so that whatever else a test does costs no request any time.

`python -m tests.support.load_process TARGETS` takes a JSON list of (port, host, home, rate, connections), tells what
was answered and what failed as JSON lines, and ends with its standard input, after the last answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import uvloop

from tests.support.fleet import until
from tests.support.load import Answered, Failed, Load
from tests.support.processes import alive

REPORT_S = 0.05
LINE_MAX = 1 << 24


class Target(NamedTuple):
    """`host` asked at `port`, a gateway's, `rate` times a second in all. `home`: the region that has to answer."""

    port: int
    host: str
    home: str
    rate: float = 200.0
    connections: int = 10


class LoadProcess:
    """`async with LoadProcess(targets) as load:` runs it. `answered[n]` and `failed` are as of its last word.

    Times are monotonic seconds, which are the same in all processes of one machine.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = list(targets)
        self.answered: list[list[Answered]] = [[] for _ in targets]
        self.failed: list[tuple[int, Failed]] = []
        self.missed = 0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LoadProcess:
        pipe = asyncio.subprocess.PIPE
        module = (sys.executable, "-m", "tests.support.load_process", json.dumps(self.targets))
        self._process = await asyncio.create_subprocess_exec(*module, stdin=pipe, stdout=pipe, limit=LINE_MAX)
        self._reader = asyncio.get_running_loop().create_task(self._hear())
        await self.goes_on(20)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Finish what is in hand, and hear of it."""
        if self._process is None or self._reader is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        process.stdin.close()
        await self._reader
        assert await process.wait() == 0
        assert not alive(process.pid)

    @property
    def ok(self) -> int:
        return sum(map(len, self.answered))

    async def goes_on(self, count: int = 20) -> None:
        """Wait until each target has `count` more answers to what was asked from now on."""
        now = time.monotonic()

        async def more() -> bool:
            return all(len(self.between(now, float("inf"), [n])) >= count for n in range(len(self.targets)))

        await until(more, f"{count} more answers from each ({self.failed[:3]})")

    def between(self, since: float, before: float, targets: Iterable[int] | None = None) -> list[Answered]:
        """What was asked from `since` on and before `before`."""
        chosen = range(len(self.targets)) if targets is None else targets
        found = []
        for number in chosen:
            for one in reversed(self.answered[number]):
                if one.at < since:
                    break
                if since <= one.at - one.seconds < before:
                    found.append(one)
        return found

    def p99_s(self, since: float, before: float) -> float:
        return quantile([one.seconds for one in self.between(since, before)], 0.99)

    def wrong(self, since: float = 0.0) -> list[str]:
        """What was asked from `since` on and failed, or was answered by another region than home."""
        found = [f"{self.targets[number].host}: {what}" for number, what in self.failed if what.sent >= since]
        for number, target in enumerate(self.targets):
            misrouted = [one for one in self.between(since, float("inf"), [number]) if one.region != target.home]
            found += [f"{target.host}: answered by {one.region}" for one in misrouted]
        return found

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for _, failure in self.failed:
            kinds[failure.reason] = kinds.get(failure.reason, 0) + 1
        return f"{self.ok} ok, {len(self.failed)} failed {kinds or ''}, {self.missed} missed"

    async def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            for number, row in said["answered"]:
                self.answered[number].append(Answered(*row))
            self.failed += [(number, Failed(*row)) for number, row in said["failed"]]
            self.missed = said["missed"]


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that is not below the fraction `q` of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


class _Teller:
    """Says what is new since it was last asked."""

    def __init__(self, loads: Sequence[Load]) -> None:
        self.loads = loads
        self.told = [[0] * len(load.answered) for load in loads]
        self.told_failed = [0] * len(loads)

    def tell(self) -> None:
        answered: list[Any] = []
        failed: list[Any] = []
        for number, load in enumerate(self.loads):
            fresh: list[Answered] = []
            for at, each in enumerate(load.answered):
                fresh += each[self.told[number][at] :]
                self.told[number][at] = len(each)
            answered += [(number, one) for one in sorted(fresh)]
            failed += [(number, one) for one in load.failed[self.told_failed[number] :]]
            self.told_failed[number] = len(load.failed)
        missed = sum(load.missed for load in self.loads)
        print(json.dumps({"answered": answered, "failed": failed, "missed": missed}), flush=True)


async def _main(targets: str) -> None:
    loads = [
        Load(port, host, rate=rate, connections=connections) for port, host, _, rate, connections in json.loads(targets)
    ]
    enough = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), enough.set)
    teller = _Teller(loads)
    for load in loads:
        load.start()
    while not enough.is_set():
        await asyncio.sleep(REPORT_S)
        teller.tell()
    for load in loads:
        await load.stop()
    teller.tell()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
