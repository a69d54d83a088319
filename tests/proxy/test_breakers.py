"""Breakers on real sockets: what a client, the application and control see of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.bus.messages import BreakerTurned, ConnectFailures, ForceBreaker
from gateway.core.breaker import BreakerRule, State
from gateway.core.placement import Failover, Placement
from tests.support.client import Client, Reply
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.facts import REGIONS
from tests.support.origin import Origin, Seen, ok, raw
from tests.support.three_regions import three_regions

RULE = BreakerRule(min_requests=10, window=0.4, open=0.5, probes=2, probe_interval=0.2, ramp=0.4)
TENANTS = tuple(Placement(tenant=name, home="us-east-1") for name in ("acme", "globex"))
BAD = raw(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", keep=True)
GET = b"GET / HTTP/1.1\r\nHost: %b.test\r\n\r\n"


async def good_for(seen: Seen, *tenants: str) -> bool:
    return seen.value("x-tenant") in tenants


def fails_for(*tenants: str) -> Callable[..., Awaitable[bool | None]]:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        return await (BAD if seen.value("x-tenant") in tenants else ok)(seen, reader, writer)

    return answer


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


@pytest.fixture
async def plane(origin: Origin, tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with data_plane(tmp_path, view(cluster("app", origin.port, breaker=RULE)), TENANTS) as running:
        yield running


class Asking:
    """A client for each tenant; `replies` of the last `ask_for`, by tenant."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.clients: dict[str, Client] = {}

    async def once(self, tenant: str) -> Reply:
        if tenant not in self.clients:
            self.clients[tenant] = await Client.connect(self.plane.port)
        return await self.clients[tenant].ask(GET % tenant.encode())

    async def until(self, holds: Callable[[], bool], *tenants: str, limit_s: float = 20.0) -> dict[str, list[Reply]]:
        """Ask for each in turn until it holds."""
        replies: dict[str, list[Reply]] = {tenant: [] for tenant in tenants}
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, self.plane.said
            for tenant in tenants:
                replies[tenant].append(await self.once(tenant))
            await asyncio.sleep(0.002)
        return replies

    async def close(self) -> None:
        for client in self.clients.values():
            await client.close()


@pytest.fixture
async def asking(plane: DataPlane) -> AsyncIterator[Asking]:
    made = Asking(plane)
    yield made
    await made.close()


def own(plane: DataPlane) -> State:
    watch = plane.worker.clusters["app"].watch
    assert watch is not None
    return watch.blame.own.state


def turns(plane: DataPlane, tenant: str = "") -> list[str]:
    return [said.state for said in plane.said if isinstance(said, BreakerTurned) and said.tenant == tenant]


async def test_open_half_open_ramp_closed_as_clients_and_the_application_see_it(
    plane: DataPlane, origin: Origin, asking: Asking
) -> None:
    origin.answer = BAD
    both = ("acme", "globex")
    replies = await asking.until(lambda: own(plane) is State.OPEN, *both)
    assert {reply.status for reply in replies["globex"]} <= {500, 503}
    asked = len(origin.requests)
    refused = [await asking.once(tenant) for tenant in both]
    assert [reply.status for reply in refused] == [503, 503]
    assert all(b'"flag":"breaker_open"' in reply.body and reply.value("retry-after") == "1" for reply in refused)
    assert len(origin.requests) == asked, "nothing reaches an application whose breaker is open"

    await asking.until(lambda: turns(plane).count("open") == 2, *both)
    assert len(origin.requests) == asked + 1, "one probe, and it failed"
    origin.answer = ok
    opened = time.monotonic()
    await asking.until(lambda: own(plane) is State.RAMPING, *both)
    assert len(origin.requests) - asked - 1 in (2, 3), "two probes, and perhaps the first of the ramp"
    assert time.monotonic() - opened >= 2 * RULE.open * 0.8 + RULE.probe_interval - 0.01
    ramp = await asking.until(lambda: own(plane) is State.CLOSED, *both)
    assert {reply.status for reply in ramp["acme"]} == {200, 503}
    assert {(await asking.once(tenant)).status for tenant in both for _ in range(20)} == {200}
    assert turns(plane) == ["open", "half_open", "open", "half_open", "ramping", "closed"]
    worker = plane.worker
    counted = worker.stats.values[
        worker.stats.series("landbridge_breaker_refused_total", (("cluster", "app"), ("scope", "cluster")))
    ]
    assert counted > 4


async def test_one_tenant_at_a_hundred_percent_errors_leaves_another_untouched(
    plane: DataPlane, origin: Origin, asking: Asking
) -> None:
    origin.answer = fails_for("acme")
    watch = plane.worker.clusters["app"].watch
    assert watch is not None
    replies = await asking.until(lambda: watch.blame.active > 0, "acme", "acme", "acme", "globex")
    for _ in range(100):
        replies["acme"].append(await asking.once("acme"))
        replies["globex"].append(await asking.once("globex"))
    assert {reply.status for reply in replies["globex"]} == {200}
    assert replies["acme"][-1].status == 503
    assert b"this tenant's requests failed" in replies["acme"][-1].body
    assert own(plane) is State.CLOSED
    assert turns(plane) == []
    assert turns(plane, "acme")[0] == "open"
    origin.answer = ok
    await asking.until(lambda: not watch.blame.active, "acme", "globex")
    assert turns(plane, "acme")[-1] == "closed"


async def test_what_nobody_else_asks_is_told_to_control_as_only_that_tenants(
    plane: DataPlane, origin: Origin, asking: Asking
) -> None:
    origin.answer = fails_for("acme")
    await asking.until(lambda: bool(turns(plane)), "acme")
    said = next(said for said in plane.said if isinstance(said, BreakerTurned) and not said.tenant)
    assert (said.state, said.only) == ("open", "acme")
    assert (await asking.once("globex")).status == 200


async def test_a_refused_connection_marks_the_endpoint_down_within_fifty_requests(tmp_path: Path) -> None:
    origin = await Origin().start()
    rule = BreakerRule(min_requests=10, window=0.4)
    async with data_plane(tmp_path, view(cluster("app", origin.port, breaker=rule)), TENANTS) as plane:
        clients = [await Client.connect(plane.port) for _ in range(10)]
        assert {(await client.ask(GET % b"acme")).status for client in clients} == {200}
        await origin.stop()
        statuses: list[int] = []
        while not any(isinstance(said, ConnectFailures) for said in plane.said):
            replies = await asyncio.gather(*(client.ask(GET % b"acme") for client in clients))
            statuses += [reply.status for reply in replies]
        assert len(statuses) <= 50
        reply = await clients[0].ask(GET % b"acme")
        assert (reply.status, b"cluster_unavailable" in reply.body) == (503, True)
        for client in clients:
            await client.close()


async def test_a_fallback_answers_while_the_breaker_refuses(tmp_path: Path) -> None:
    app, spare = await Origin(BAD).start(), await Origin().start()
    rule = BreakerRule(min_requests=10, window=0.4, fallback="spare")
    snapshot = view(cluster("app", app.port, breaker=rule), cluster("spare", spare.port, breaker=RULE))
    async with data_plane(tmp_path, snapshot, TENANTS) as plane:
        asking = Asking(plane)
        await asking.until(lambda: own(plane) is State.OPEN, "acme", "globex")
        asked = len(app.requests)
        replies = [await asking.once("globex") for _ in range(50)]
        assert {reply.status for reply in replies} == {200}
        assert len(app.requests) == asked
        assert plane.log.exchanges[-1].cluster == "spare"
        assert plane.log.exchanges[-1].reason == "fallback"
        spare.answer = BAD
        pool = plane.worker.clusters["spare"]
        assert pool.watch is not None
        await asking.until(lambda: pool.watch.blame.own.state is State.OPEN, "acme", "globex")  # type: ignore[union-attr]
        reply = await asking.once("globex")
        assert (reply.status, b"breaker_open" in reply.body) == (503, True)
        await asking.close()
    await app.stop()
    await spare.stop()


async def test_a_region_that_answers_is_well_whatever_its_application_says(tmp_path: Path) -> None:
    """Its gateway has a breaker for its application; ours is for the way there."""
    us, eu, _ = REGIONS
    lives = Placement(tenant="acme", home=eu)
    async with three_regions(tmp_path, {us: (lives,), eu: (lives,)}) as three:
        way = replace(three.planes[us].worker.view.clusters[f"region:{eu}"], breaker=RULE)
        three.planes[us].swap(clusters={**three.planes[us].worker.view.clusters, way.name: way})
        three.apps[eu].answer = BAD
        asking = Asking(three.planes[us])
        started = time.monotonic()
        replies = await asking.until(lambda: time.monotonic() - started > 3 * RULE.window, "acme")
        assert {reply.status for reply in replies["acme"]} == {500}
        assert len(three.apps[eu].requests) == len(replies["acme"]) > RULE.min_requests
        watch = three.planes[us].worker.clusters[way.name].watch
        assert watch is not None
        assert watch.blame is not None
        assert watch.blame.own.state is State.CLOSED
        await asking.close()


async def test_an_operators_word_holds_and_is_told(plane: DataPlane, origin: Origin, asking: Asking) -> None:
    worker = plane.worker
    worker.force_breaker(ForceBreaker("app", "", "open", 60.0, "bad release (alice)"))
    reply = await asking.once("acme")
    assert (reply.status, reply.value("retry-after")) == (503, "60")
    assert b"an operator has opened" in reply.body
    assert origin.requests == []
    [told] = worker.watched()
    assert (told.state, told.reason, 59 < told.left_s <= 60) == ("forced_open", "bad release (alice)", True)
    worker.force_breaker(ForceBreaker("app", "", "closed", 60.0, "look"))
    origin.answer = BAD
    for _ in range(100):
        assert (await asking.once("acme")).status == 500
        await asyncio.sleep(0.005)
        if turns(plane, "acme"):
            break
    worker.force_breaker(ForceBreaker("app", "", ""))
    worker.force_breaker(ForceBreaker("app", "acme", "closed", 60.0, "look"))
    assert {(await asking.once("acme")).status for _ in range(20)} == {500}
    worker.force_breaker(ForceBreaker("gone", "", "open", 60.0))
    assert turns(plane) == ["forced_open", "forced_closed", "open", "closed"], "nobody but acme asked, in the end"


async def test_what_control_knows_to_be_broken_is_refused_by_the_breaker(
    plane: DataPlane, origin: Origin, asking: Asking
) -> None:
    plane.worker.force_breaker(ForceBreaker("app", "", "open", 60.0, "x"))
    plane.swap(clusters={"app": cluster("app", origin.port, breaker=RULE, can_serve=False, broken=True)})
    reply = await asking.once("acme")
    assert (reply.status, reply.value("retry-after"), b"breaker_open" in reply.body) == (503, "60", True)
    plane.worker.force_breaker(ForceBreaker("app", "", ""))
    assert (await asking.once("acme")).status == 200, "the probe that finds out that it is well again"


async def test_a_reload_keeps_breakers_and_takes_another_rule(plane: DataPlane, asking: Asking, origin: Origin) -> None:
    plane.worker.force_breaker(ForceBreaker("app", "", "open", 60.0, "x"))
    other = BreakerRule(window=5.0)
    plane.swap(clusters={"app": cluster("app", origin.port, breaker=other)})
    watch = plane.worker.clusters["app"].watch
    assert watch is not None
    assert watch.blame.own.rule == other
    assert (await asking.once("acme")).status == 503
    plane.swap(clusters={"app": cluster("app", origin.port)})
    assert (await asking.once("acme")).status == 200


async def test_a_request_that_fails_over_goes_to_its_standby_while_the_breaker_is_open_here(tmp_path: Path) -> None:
    def place(failover: Failover) -> Placement:
        return Placement(tenant="acme", home="us-east-1", standby=("eu-west-1",), failover=failover)

    for number, failover in enumerate((Failover.ALL, Failover.MANUAL)):
        maps = {region: (place(failover),) for region in REGIONS}
        async with three_regions(tmp_path / str(number), maps) as three:
            for plane in three.planes.values():
                app = next(iter(plane.worker.view.clusters["app"].endpoints))
                plane.swap(clusters={**plane.worker.view.clusters, "app": cluster("app", app.port, breaker=RULE)})
            here = three.planes["us-east-1"]
            here.worker.force_breaker(ForceBreaker("app", "", "open", 60.0, "x"))
            for entry in ("us-east-1", "ap-southeast-2", "eu-west-1"):
                client = await Client.connect(three.planes[entry].port)
                if failover is Failover.ALL:
                    three.apps["eu-west-1"].requests.clear()
                    reply = await client.ask(GET.replace(b".test", b".us-east-1.test") % b"acme")
                    assert reply.status == 200, (entry, reply)
                    assert len(three.apps["eu-west-1"].requests) == 1
                else:
                    reply = await client.ask(GET.replace(b".test", b".us-east-1.test") % b"acme")
                    assert reply.status == 503
                await client.close()
            assert three.apps["us-east-1"].requests == []
