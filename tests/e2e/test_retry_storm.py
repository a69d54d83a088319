"""FAULTS 15 and 30: an application that fails is asked a tenth more often than clients ask, and a POST never twice.

Counted at the application: a process of its own, behind whole gateways, with attempts to spare and no breaker that
would hide what the budget does. Over two regions as in one.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.client import Client, Reply
from tests.support.failing_application import FailingApplication, failing_application
from tests.support.fleet import EU, US, Fleet, Gateway, request, until
from tests.support.measured import hold
from tests.support.pace import ALLOWANCE

REQUESTS = 24_000 if ALLOWANCE == 1 else 800
"""Of each storm."""
CONNECTIONS = 16
KINDS = ("GET", "POST with a key", "POST")
MORE = 1.1


class Stormy(Fleet):
    """Every gateway would ask four times after a 502 or 503."""

    def configuration(self, gateway: Gateway) -> str:
        text = super().configuration(gateway)
        retries = (
            "    breaker: none\n"
            "    retries: {attempts: 3, budget: 0.1, statuses: [502, 503], per_try_timeout: 5s,"
            " backoff: {base: 1ms, max: 5ms}}\n"
        )
        known = "    timeouts: {response: 10s}\n"
        assert known in text
        return text.replace(known, known + retries).replace("  app:\n", '  "region:*": {breaker: none}\n  app:\n')


@pytest.fixture
async def application() -> AsyncIterator[FailingApplication]:
    async with failing_application() as running:
        yield running


async def storm(port: int, requests: int) -> Counter[str]:
    """So many requests on a few connections, GETs and both kinds of POST in turn; how they ended."""
    host = "acme.demo.test"
    wire = {
        "GET": request(host, "/storm"),
        "POST": request(host, "/storm", "POST", body=b"hello"),
        "POST with a key": request(host, "/storm", "POST", ["Idempotency-Key: one"], b"hello"),
    }
    ends: Counter[str] = Counter()

    async def client(number: int) -> None:
        connection: Client | None = None
        for turn in range(number, requests, CONNECTIONS):
            kind = KINDS[turn % 3]
            if connection is None:
                connection = await Client.connect(port)
            reply = await connection.ask(wire[kind])
            ends[f"{kind} {reply.status}"] += 1
            if reply.value("connection") == "close":
                await connection.close()
                connection = None
        if connection is not None:
            await connection.close()

    await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
    assert ends.total() == requests
    return ends


async def test_a_storm_of_failures_is_a_storm_of_requests(tmp_path: Path, application: FailingApplication) -> None:
    made = Stormy(tmp_path, (US, EU), "tenants:\n  acme: {home: eu-west-1}\n")
    home = made[EU]
    home.application.port = application.port
    for gateway in made.gateways.values():
        gateway.workers = 2
    try:
        await made.start()
        for entry, where in ((EU, "at home"), (US, "over a hop")):
            await application.now("status", 0.0)
            calm = await storm(made[entry].http, REQUESTS // 8)
            assert set(calm) == {f"{kind} 200" for kind in KINDS}
            for kind, share in (("status", 1.0), ("status", 0.3), ("reset", 0.3), ("reset", 1.0)):
                await one_storm(application, made[entry], kind, share, where)
        assert await home.metric("landbridge_not_retried_total", cluster="app", reason="budget") > 0
        assert await home.metric("landbridge_not_retried_total", cluster="app", reason="method") > 0
        assert await home.metric("landbridge_retries_total", cluster="app", outcome="recovered") > 0
    finally:
        await made.stop()


async def one_storm(application: FailingApplication, entry: Gateway, kind: str, share: float, where: str) -> None:
    await application.now(kind, share)
    ends = await storm(entry.http, REQUESTS)
    seen = await application.now("status", 0.0)
    what = f"{share:.0%} {'503' if kind == 'status' else 'resets'} {where}"
    hold("30", f"{what}: requests at the application for each of a client's", seen["requests"] / REQUESTS, MORE, "")
    hold("15", f"{what}: POSTs without a key seen twice", seen["twice"], 0, "")
    assert seen["ids"] == REQUESTS, ends
    assert seen["requests"] > 1.03 * REQUESTS, "and what there is a budget for is used"


class Patient(Fleet):
    """Pauses so long that a worker's replacement and a drain fall into them."""

    def configuration(self, gateway: Gateway) -> str:
        text = super().configuration(gateway)
        known = "    timeouts: {response: 10s}\n"
        assert known in text
        retries = "    retries: {attempts: 9, budget: 1, statuses: [503], backoff: {base: 4s, max: 4s}}\n"
        return text.replace(known, "    timeouts: {response: 60s}\n    breaker: none\n" + retries)


@pytest.mark.faults
async def test_a_replacement_and_a_drain_wait_for_a_request_in_its_pause(
    tmp_path: Path, application: FailingApplication
) -> None:
    made = Patient(tmp_path, (US,), "tenants:\n  acme: {home: us-east-1}\n")
    us = made[US]
    us.application.port = application.port
    us.drain = "{grace: 100ms, limit: 20s}"
    try:
        await made.start()
        paused = 0.0

        async def pausing(count: int) -> list[asyncio.Task[Reply]]:
            """So many requests whose first try failed; the next one will not."""
            nonlocal paused
            await application.now("status", 1.0)
            tasks = [asyncio.get_running_loop().create_task(made.ask(US, "acme")) for _ in range(count)]
            paused += count

            async def are_paused() -> bool:
                return await us.metric("landbridge_retries_total", cluster="app", outcome="retried") >= paused

            await until(are_paused, f"{count} requests are in their pause")
            await application.now("status", 0.0)
            return tasks

        for _ in range(5):  # a pause is anything from none to 4 s: until one has outlasted the replacement
            before = await us.serving()
            tasks = await pausing(3)
            us.signal(signal.SIGUSR2)

            async def replaced(before: list[int] = before) -> bool:
                return await us.serving() not in ([], before)

            await until(replaced, "another worker serves")
            outlasted = not all(task.done() for task in tasks)
            assert [(await task).status for task in tasks] == [200] * 3
            if outlasted:
                break
        assert outlasted
        [task] = await pausing(1)
        us.signal(signal.SIGTERM)
        assert (await task).status == 200
        assert await us.ended() == 0
    finally:
        await made.stop()
