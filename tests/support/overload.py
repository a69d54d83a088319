"""More load than there is room for: requests that come at a rate whether or not earlier ones were answered, a herd of
clients that all come at once, and an application that has room for few."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field

from tests.support.client import Client
from tests.support.fleet import HEALTH, request
from tests.support.origin import Origin, Seen

PATIENCE_S = 30.0


class Few:
    """An application of `slots` requests at a time, each of `service_s`; the others wait for one of them.

    It is a process of its own: clients by the hundred in one event loop with it would be what takes its time.
    """

    def __init__(self, slots: int, service_s: float) -> None:
        self.capacity = slots / service_s
        self.served: list[float] = []
        self.port = 0
        self._arguments = [str(slots), str(service_s)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Few:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.overload", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        assert self._process.stdout is not None
        self.port = int(await self._process.stdout.readline())
        return self

    async def stop(self) -> None:
        """End it, and hear when it served what: monotonic seconds, which all processes share."""
        if self._process is not None:
            said, _ = await self._process.communicate(b"end\n")
            self.served = json.loads(said)
            self._process = None

    def goodput(self, since: float, until: float) -> float:
        return sum(since <= at < until for at in self.served) / (until - since)


class Slots:
    """What `Few` answers with."""

    def __init__(self, slots: int, service_s: float) -> None:
        self.service_s = service_s
        self.served: list[float] = []
        self._free = asyncio.Semaphore(slots)

    async def __call__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if not seen.start.startswith(HEALTH):
            async with self._free:
                await asyncio.sleep(self.service_s)
            self.served.append(time.monotonic())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True


async def serve(slots: int, service_s: float) -> None:
    """Say the port, answer until a line comes, say when what was served."""
    answer = Slots(slots, service_s)
    origin = await Origin(answer).start()
    print(origin.port, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await origin.stop()
    print(json.dumps(answer.served), flush=True)


@dataclass
class Answered:
    sent: float
    seconds: float
    status: int
    retry_after: str | None


@dataclass
class Stream:
    """One tenant's requests at a rate, on as many keep-alive connections as it takes."""

    port: int
    tenant: str
    answers: list[Answered] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _idle: list[Client] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, rate: float, seconds: float, rng: random.Random) -> None:
        """Send at random moments, `rate` a second on average."""
        at = time.monotonic()
        end = at + seconds
        while (at := at + rng.expovariate(rate)) < end:
            await asyncio.sleep(at - time.monotonic())
            task = asyncio.get_running_loop().create_task(self._one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self) -> None:
        sent = time.monotonic()
        try:
            while self._idle and self._idle[-1].reader.at_eof():
                await self._idle.pop().close()
            client = self._idle.pop() if self._idle else await Client.connect(self.port)
            await client.send(request(f"{self.tenant}.demo.test"))
            reply = await client.reply(within_s=PATIENCE_S)
        except (OSError, EOFError, TimeoutError) as error:
            self.failed.append(f"{type(error).__name__} {error}")
            return
        self.answers.append(Answered(sent, time.monotonic() - sent, reply.status, reply.value("retry-after")))
        if reply.value("connection") == "close":
            await client.close()
        else:
            self._idle.append(client)

    async def stop(self) -> None:
        if self._tasks:
            await asyncio.gather(*self._tasks)
        for client in self._idle:
            await client.close()
        self._idle.clear()

    def refused(self, since: float = 0.0, until: float = float("inf")) -> int:
        return sum(one.status != 200 for one in self.between(since, until)) + len(self.failed)

    def between(self, since: float, until: float) -> list[Answered]:
        return [one for one in self.answers if since <= one.sent < until]

    def seconds(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """How long the 200s took."""
        return [one.seconds for one in self.between(since, until) if one.status == 200]


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


@dataclass
class Herd:
    """Clients that connect within a second, each for one answer: who is refused comes back when it was told to."""

    port: int
    tenant: str
    served: list[float] = field(default_factory=list)
    refused: list[str | None] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    async def run(self, count: int) -> None:
        await asyncio.gather(*(self._one() for _ in range(count)))

    async def _one(self) -> None:
        await asyncio.sleep(random.random())
        while True:
            try:
                client = await Client.connect(self.port)
                reply = await client.ask(request(f"{self.tenant}.demo.test"))
                await client.close()
            except (OSError, EOFError, TimeoutError) as error:
                self.failed.append(f"{type(error).__name__} {error}")
                return
            if reply.status == 200:
                self.served.append(time.monotonic())
                return
            self.refused.append(reply.value("retry-after") if reply.status == 503 else None)
            await asyncio.sleep(float(reply.value("retry-after") or 1))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
