"""What a cluster that fails costs, at a steady rate on a real gateway of two workers: how soon it shows, and whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.supervisor import child_environ, python_module
from tests.support.fleet import EU, US, Fleet, Gateway, fleet, until
from tests.support.measured import hold
from tests.support.origin import Answer, Seen
from tests.support.pour import One, Pour

TENANTS = """\
tenants:
  acme: {home: us-east-1}
  globex: {home: us-east-1}
"""
BEFORE_S = 2.5
RATE_OF_TEST, RATE_IN_FULL = 150.0, 1000.0


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[Fleet, Gateway]]:
    async with fleet(tmp_path, (US,), TENANTS, workers=2) as made:
        yield made, made[US]


def fails_for(good: Answer, *tenants: str) -> Answer:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        if seen.value("x-tenant") not in tenants:
            return await good(seen, reader, writer)
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True

    return answer


async def all_errors(gateway: Gateway, rate: float) -> None:
    good = gateway.application.answer
    async with (
        Pour(gateway.http, "acme.demo.test", rate / 2) as acme,
        Pour(gateway.http, "globex.demo.test", rate / 2) as globex,
    ):
        await asyncio.sleep(BEFORE_S)
        assert {one.status for one in acme.ended} == {200}
        turned = time.monotonic()
        gateway.application.answer = fails_for(good, "acme", "globex")

        async def refused() -> bool:
            """Nobody gets through: by the cluster's breaker, or by those of all tenants that a worker knows."""
            return all(one.status == 503 for pour in (acme, globex) for one in pour.ended[-20:])

        await until(refused, "the breaker opens")
        hold("breaker", "100 percent errors: the breaker opened", time.monotonic() - turned, 2.5)
        assert (await gateway.api("breakers"))["breakers"], "and it is shown"
        gateway.application.answer = good
        await until(lambda: served(acme), "acme is served again")
        await until(lambda: served(globex), "globex is served again")
    assert re.search(r"the breaker of app( for tenant acme)? is open", gateway.log())


async def served(pour: Pour) -> bool:
    return all(one.status == 200 for one in pour.between(time.monotonic() - 1.0, time.monotonic()))


async def refused(gateway: Gateway, rate: float) -> None:
    async with Pour(gateway.http, "acme.demo.test", rate) as acme:
        await asyncio.sleep(BEFORE_S)
        await gateway.application.stop()

        async def down() -> bool:
            [app] = [row for row in (await gateway.api("clusters"))["clusters"] if row["name"] == "app"]
            return not app["endpoints"][0]["up"]

        await until(down, "the endpoint is marked down")
        await asyncio.sleep(1.0)
    failed = [one for one in acme.ended if one.status not in (200, 503)]
    hold("breaker", "connection refused: requests tried before it was marked down", len(failed), 50, "")


async def one_tenant(gateway: Gateway, rate: float) -> None:
    async with (
        Pour(gateway.http, "acme.demo.test", rate * 0.9) as acme,
        Pour(gateway.http, "globex.demo.test", rate * 0.1) as globex,
    ):
        await asyncio.sleep(BEFORE_S)
        turned = time.monotonic()
        gateway.application.answer = fails_for(gateway.application.answer, "acme")
        await asyncio.sleep(5.0)
        rows = {(row["cluster"], row["tenant"]): row for row in (await gateway.api("breakers"))["breakers"]}
    assert [one for one in globex.ended if one.status != 200] == []
    assert rows["app", None]["state"] == "closed"
    assert rows["app", "acme"]["state"] in ("open", "half_open")
    asked = sum(seen.value("x-tenant") == "acme" for seen in gateway.asked())
    assert asked < len(acme.ended) - rate, "most of what would fail was not even tried"
    when: list[One] = [one for one in acme.ended if one.sent >= turned and one.status == 503]
    hold("breaker", "one tenant at 100 percent errors: its breaker opened", min(one.sent for one in when) - turned, 2.5)


@pytest.mark.faults
async def test_what_fails_over_loses_nothing_once_the_breaker_is_open(tmp_path: Path) -> None:
    """Until it opens clients see the application's errors; then its standby serves them, and on the way back too."""
    tenants = "tenants:\n  acme: {home: us-east-1, standby: [eu-west-1], failover: all}\n  globex: {home: us-east-1}\n"
    async with fleet(tmp_path, (US, EU), tenants, workers=2) as made:
        us = made[US]
        good = us.application.answer
        async with (
            Pour(us.http, "acme.demo.test", RATE_OF_TEST / 2) as acme,
            Pour(us.http, "globex.demo.test", RATE_OF_TEST / 2),
        ):
            await asyncio.sleep(BEFORE_S)
            us.application.answer = fails_for(good, "acme", "globex")
            await until(lambda: state_is(us, "open"), "the breaker opens")
            await until(lambda: served(acme), "its standby serves acme, whichever worker is asked")
            opened = time.monotonic()
            us.application.answer = good
            await until(lambda: state_is(us, "closed"), "the breaker is closed again")
            closed = time.monotonic()
            await until(lambda: is_back(us), "clients come back")
        assert [one for one in acme.between(opened, closed) if one.status != 200] == []
        assert {one.status for one in acme.between(closed, time.monotonic())} == {200}
        assert made[EU].asked() != []


async def state_is(gateway: Gateway, state: str) -> bool:
    return bool((await gateway.api("breakers"))["breakers"][0]["state"] == state)


async def is_back(gateway: Gateway) -> bool:
    """Whether the application gets everything again."""
    before = len(gateway.asked())
    await asyncio.sleep(0.5)
    return len(gateway.asked()) - before > RATE_OF_TEST * 0.5 * 0.7


async def test_an_operators_word_reaches_workers_that_start_later_and_a_later_control(tmp_path: Path) -> None:
    token = "operator-token-operator-token"
    more = f"admin: {{tokens: [{{name: alice, role: operator, token: {token}}}]}}\n"
    async with fleet(tmp_path, (US,), TENANTS, workers=1, more=more) as made:
        us = made[US]
        (us.folder / "token").write_text(token)
        options = ("--admin", f"http://127.0.0.1:{us.admin}", "--token-file", "token", "--reason", "bad release")
        command = [*python_module("gateway"), "breakers", "force", "app", "open", "--for", "10m", "--json", *options]
        done = await asyncio.create_subprocess_exec(
            *command, cwd=us.folder, env=child_environ(dict(os.environ)), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await done.communicate()
        assert done.returncode == 0
        assert json.loads(said)["breakers"][0]["cluster"] == "app"

        async def refused() -> bool:
            return (await made.ask(US, "acme")).status == 503

        async def forced() -> bool:
            [row] = (await us.api("breakers"))["breakers"]
            return bool(row["state"] == "forced_open" and row["reason"] == "bad release (alice)" and row["workers"])

        await until(refused, "the worker follows")
        await until(forced, "control knows")
        asked = len(us.asked())
        for victim in ("worker", "control"):
            pids = await us.pids()
            pid = pids["workers"][0]["pid"] if victim == "worker" else pids["control"]
            os.kill(pid, signal.SIGKILL)

            async def replaced(victim: str = victim, pid: int = pid) -> bool:
                with contextlib.suppress(OSError, EOFError, KeyError, AssertionError):
                    now = await us.pids()
                    found = now["workers"][0]["pid"] if victim == "worker" else now["control"]
                    return bool(found not in (0, pid)) and await forced()
                return False

            await until(replaced, f"{victim} is replaced, and holds it")
            await until(refused, "it is refused")
        assert len(us.asked()) - asked <= 3, "a new worker may serve until it hears of it"
        assert '"reason":"bad release"' in (us.folder / "state" / "audit.log").read_text()


async def test_all_errors(gateway: tuple[Fleet, Gateway]) -> None:
    await all_errors(gateway[1], RATE_OF_TEST)


async def test_refused(gateway: tuple[Fleet, Gateway]) -> None:
    await refused(gateway[1], RATE_OF_TEST)


async def test_one_tenant(gateway: tuple[Fleet, Gateway]) -> None:
    await one_tenant(gateway[1], RATE_OF_TEST)


@pytest.mark.faults
async def test_all_errors_at_a_thousand(gateway: tuple[Fleet, Gateway]) -> None:
    await all_errors(gateway[1], RATE_IN_FULL)


@pytest.mark.faults
async def test_refused_at_a_thousand(gateway: tuple[Fleet, Gateway]) -> None:
    await refused(gateway[1], RATE_IN_FULL)


@pytest.mark.faults
async def test_one_tenant_at_a_thousand(gateway: tuple[Fleet, Gateway]) -> None:
    await one_tenant(gateway[1], RATE_IN_FULL)
