"""Health checks and connect probes against applications on real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from gateway.control import health_checks
from gateway.control.health import Health
from gateway.control.health_checks import HealthChecks, check, connect
from gateway.control.tasks import TaskSet
from gateway.core.view import Endpoint
from gateway.settings.schema import HealthSettings
from tests.support.application import Application, ok, status
from tests.support.eventually import eventually

FAST = HealthSettings("/healthz", interval=0.05, healthy=2, unhealthy=3)


@pytest.fixture
async def application() -> AsyncIterator[Application]:
    async with Application(ok) as made:
        yield made


def endpoint(application: Application) -> Endpoint:
    return Endpoint(f"app.internal:{application.port}", "127.0.0.1", application.port)


@pytest.mark.parametrize("code", [200, 204, 299])
async def test_any_2xx_is_healthy(application: Application, code: int) -> None:
    application.reply = status(code)
    assert await check(endpoint(application), HealthSettings("/healthz", timeout=5.0)) == (True, "")


@pytest.mark.parametrize("code", [100, 301, 404, 500, 503])
async def test_any_other_status_is_not(application: Application, code: int) -> None:
    application.reply = status(code)
    assert await check(endpoint(application), HealthSettings("/healthz", timeout=5.0)) == (False, f"status {code}")


@pytest.mark.parametrize(
    ("wanted", "healthy"),
    [(("301",), True), (("2xx", "3xx"), True), (("2xx",), False), (("200", "302"), False), (("30x",), False)],
)
async def test_statuses_that_are_healthy_are_the_operators_to_say(
    application: Application, wanted: tuple[str, ...], healthy: bool
) -> None:
    application.reply = status(301)
    assert (await check(endpoint(application), HealthSettings("/", status=wanted)))[0] is healthy


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nstate: all well", True),
        (b"HTTP/1.1 200 OK\r\n\r\nall well", True),
        (b"HTTP/1.1 200 OK\r\nX-State: all well\r\n\r\nno", False),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"." * 60_000 + b"all well", True),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"." * 200_000 + b"all well", False),
        (b"HTTP/1.1 500 Oh\r\n\r\nall well", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", False),
    ],
)
async def test_a_text_that_the_body_has_to_hold(application: Application, answer: bytes, healthy: bool) -> None:
    application.reply = lambda head: answer
    found, why = await check(endpoint(application), HealthSettings("/", body="all well"))
    assert found is healthy
    assert healthy or why


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "not HTTP/1"),
        (b"", "bytes read"),
        (b"HTTP/1.1 200", "bytes read"),
        (b"x" * 100_000, "limit"),
    ],
)
async def test_garbage_is_not_healthy(application: Application, answer: bytes, why: str) -> None:
    application.reply = lambda head: answer
    healthy, reason = await check(endpoint(application), HealthSettings("/healthz", timeout=5.0))
    assert not healthy
    assert why in reason


async def test_silence_ends_with_the_timeout(application: Application) -> None:
    application.reply = lambda head: None
    healthy, reason = await check(endpoint(application), HealthSettings("/healthz", timeout=0.1))
    assert not healthy
    assert reason == "no answer within 0.1 s"


async def test_nobody_there(application: Application) -> None:
    await application.stop()
    healthy, reason = await check(endpoint(application), HealthSettings("/healthz", timeout=5.0))
    assert not healthy
    assert "Errno 111" in reason


async def test_the_application_sees_its_name_and_who_asks(application: Application) -> None:
    await check(endpoint(application), HealthSettings("/up?x=1", timeout=5.0))
    head = await application.heads.get()
    assert head.startswith(b"GET /up?x=1 HTTP/1.1\r\n")
    assert b"\r\nHost: app.internal:%d\r\n" % application.port in head
    assert b"\r\nUser-Agent: landbridge-health\r\n" in head
    assert b"\r\nConnection: close\r\n" in head


async def test_a_name_without_an_address_is_not_looked_up() -> None:
    unknown = Endpoint("app.internal:80", "app.internal", 80)
    assert await check(unknown, HealthSettings("/", timeout=1.0)) == (False, health_checks.NOT_RESOLVED)
    assert await connect(unknown, 1.0) == (False, health_checks.NOT_RESOLVED)


class Watched:
    """A Health, its checks, and a way to wait for what they conclude."""

    def __init__(self) -> None:
        self.health = Health()
        self.tasks = TaskSet()
        self.turned = asyncio.Event()
        self.checks = HealthChecks(self.health, self.tasks, self.turned.set, random.Random(1))

    def cover(self, *endpoints: Endpoint, health: HealthSettings | None = FAST) -> None:
        self.health.cover({"app": [e.key for e in endpoints]}, {"app": health})
        self.checks.cover([("app", health, 1.0, endpoints)])

    async def until(self, key: str, up: bool) -> None:
        async with asyncio.timeout(10):
            while (found := self.health.find("app", key)) is None or found.up is not up:
                self.turned.clear()
                await self.turned.wait()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    await made.tasks.close()
    assert made.tasks.failures == 0


async def test_an_endpoint_falls_and_returns(application: Application, watched: Watched) -> None:
    one = endpoint(application)
    watched.cover(one)
    await application.heads.get()
    application.reply = status(500)
    await watched.until(one.key, up=False)
    assert watched.health.clusters["app"].endpoints[one.key].reason == "status 500"
    application.reply = ok
    await watched.until(one.key, up=True)


async def test_without_health_nothing_is_sent_until_a_report(
    application: Application, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_checks, "CONNECT_EVERY_S", 0.05)
    one = endpoint(application)
    watched.cover(one, health=None)
    assert len(watched.tasks) == 0
    assert watched.health.connects_failed("app", one.key, 3)
    watched.checks.settle()
    await watched.until(one.key, up=True)
    await application.connections.get()
    assert application.heads.empty(), "a connect probe sends nothing"
    await asyncio.gather(*watched.tasks)  # its task ends by itself: nothing is left to ask
    assert application.connections.empty()


async def test_a_connect_probe_goes_on_until_it_succeeds(
    application: Application, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_checks, "CONNECT_EVERY_S", 0.02)
    one = endpoint(application)
    await application.stop()
    watched.cover(one, health=None)
    watched.health.connects_failed("app", one.key, 3)
    watched.checks.settle()
    watched.checks.settle()
    assert len(watched.tasks) == 1, "one probe per endpoint"
    found = watched.health.find("app", one.key)
    assert found is not None
    await eventually(lambda: "Errno 111" in found.reason)
    await application.start()
    await watched.until(one.key, up=True)


async def test_cover_ends_what_left_and_restarts_what_changed(application: Application, watched: Watched) -> None:
    one = endpoint(application)
    watched.cover(one)
    await application.heads.get()
    watched.cover(one, health=HealthSettings("/other", interval=0.05))
    while b"GET /other" not in await application.heads.get():
        pass
    assert len(watched.tasks) == 1
    watched.cover()
    await asyncio.gather(*watched.tasks, return_exceptions=True)
    assert len(watched.tasks) == 0


async def test_the_rest_of_an_answer_is_read_and_a_slow_one_is_cut(application: Application) -> None:
    application.reply = lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 50_000
    assert await asyncio.wait_for(check(endpoint(application), HealthSettings("/", timeout=5.0)), 2.0) == (True, "")
