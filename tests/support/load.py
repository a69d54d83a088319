"""A steady load: GET and POST in turn, at a fixed rate, on keep-alive connections, with every failure explained.

What HTTP leaves to the client is done here as a client would: after `Connection: close` the next request goes on a new
connection, and a request that crosses the close of a connection which was idle for `idle_s` is sent again (RFC 9112,
9.3.1). Everything else that is not a 200 is a failure, also a reset of a connection in use and a refused connect.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from tests.support.client import Client, Reply
from tests.support.fleet import request, until

PATIENCE_S = 10.0
BODY = bytes(range(256)) * 4


class Answered(NamedTuple):
    """A request that was answered by 200: when it was, by which region, and whether its connection closed after it."""

    at: float
    region: str
    closes: bool
    seconds: float


class Failed(NamedTuple):
    """A request that was not: `port` is our end of its connection (0 where none was made), `sent` when it went out."""

    method: str
    reason: str
    sent: float
    port: int


class Load:
    """`async with Load(port, host) as load:` runs it; at the end every request in hand is finished."""

    def __init__(
        self, port: int, host: str, *, rate: float = 200.0, connections: int = 10, idle_s: float = 5.0, path: str = "/l"
    ) -> None:
        self.port = port
        self.idle_s = idle_s
        self.interval_s = connections / rate
        self.requests = {
            "GET": request(host, path),
            "POST": request(host, path, "POST", body=BODY),
        }
        self.answered: list[list[Answered]] = [[] for _ in range(connections)]
        self.failed: list[Failed] = []
        self.connects = 0
        self.missed = 0
        """Turns that were left out, because the answer before took longer than a turn."""
        self._enough = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._connection(n)) for n in range(len(self.answered))]

    async def __aenter__(self) -> Load:
        self.start()
        await self.goes_on()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Finish what is in hand."""
        self._enough.set()
        await asyncio.gather(*self._tasks)

    @property
    def ok(self) -> int:
        return sum(map(len, self.answered))

    def regions(self, since: float = 0.0) -> set[str]:
        """Who answered what was sent after `since` (monotonic seconds)."""
        return {one.region for each in self.answered for one in each if one.at - one.seconds >= since}

    @property
    def slowest_s(self) -> float:
        return max(one.seconds for each in self.answered for one in each)

    async def goes_on(self, times: int = 4) -> None:
        """Wait until every connection has had `times` more answers: GETs and POSTs."""
        before = [len(each) for each in self.answered]

        async def more() -> bool:
            return all(len(each) >= count + times for each, count in zip(self.answered, before, strict=True))

        await until(more, f"every connection is answered {times} times more ({self.failed[:3]})")

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for failure in self.failed:
            kinds[failure.reason] = kinds.get(failure.reason, 0) + 1
        return f"{self.ok} ok, {len(self.failed)} failed {kinds or ''}, {self.connects} connects, {self.missed} missed"

    async def _connection(self, number: int) -> None:
        turn = time.monotonic() + self.interval_s * number / len(self.answered)
        client: Client | None = None
        used = 0.0
        for count in range(number, 1 << 30):  # neighbours begin with different methods
            await asyncio.sleep(turn - time.monotonic())
            if self._enough.is_set():
                break
            method = "POST" if count % 2 else "GET"
            if client is not None and client.reader.at_eof():  # closed while it was idle: nothing was sent
                await client.close()
                client = None
            was_idle = client is not None and time.monotonic() - used >= self.idle_s
            client = await self._exchange(number, method, client, was_idle)
            used = time.monotonic()
            turn += self.interval_s
            late = int((used - turn) / self.interval_s)
            if late > 0:
                self.missed += late
                turn += late * self.interval_s
        if client is not None:
            await client.close()

    async def _exchange(self, number: int, method: str, client: Client | None, was_idle: bool) -> Client | None:
        """One request; the connection to go on with, if it stays open."""
        sent, port = time.monotonic(), 0
        try:
            if client is None:
                self.connects += 1
                async with asyncio.timeout(PATIENCE_S):
                    client = await Client.connect(self.port)
            port = client.writer.get_extra_info("sockname")[1]
            await client.send(self.requests[method])
            reply = await client.reply(within_s=PATIENCE_S)
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
            if client is not None:
                await client.close()
            unanswered = isinstance(error, ConnectionError) or (isinstance(error, EOFError) and not error.args[0])
            if was_idle and unanswered:
                return await self._exchange(number, method, None, False)
            self.failed.append(Failed(method, f"{type(error).__name__} {error}", sent, port))
            return None
        return await self._take(number, Failed(method, f"{reply.status}", sent, port), client, reply)

    async def _take(self, number: int, what: Failed, client: Client, reply: Reply) -> Client | None:
        now = time.monotonic()
        closes = "close" in (reply.value("connection") or "")
        if reply.status == 200:
            self.answered[number].append(Answered(now, reply.value("x-region") or "", closes, now - what.sent))
        else:
            self.failed.append(what._replace(reason=f"{what.reason} {reply.body[:200]!r}"))
        if closes:
            await client.close()
            return None
        return client
