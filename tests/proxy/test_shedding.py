"""Shedding in a real worker: what counts as in hand, who is refused and how it is told, and what is never refused."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from gateway.bus.stats import StatsFile
from gateway.core.placement import Placement
from gateway.core.shedding import RANKS, Priority, Shedding
from gateway.core.view import ClusterTimeouts, Limits, Route
from gateway.proxy.meters import Meters
from gateway.proxy.shedder import ClusterLimiter, Shedder
from tests.proxy.test_hops import two_regions
from tests.proxy.test_hot_path import Counted
from tests.support.client import Client, Reply, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.fleet import request, until
from tests.support.origin import Answer, Origin, Seen

RULES = Shedding(4, 1000, "priority")
GET = request("acme.test")
BULK = request("bulk.test")
WEBSOCKET = request(
    "acme.test",
    lines=(
        *("Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"),
    ),
)
TENANTS = (
    Placement(tenant="acme", home="us-east-1"),
    Placement(tenant="bulk", home="us-east-1", labels={"priority": "bulk"}),
    Placement(tenant="vital", home="us-east-1", labels={"priority": "critical"}),
)


class Gate:
    """An application that answers once it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await self.open.wait()
        if seen.start.startswith(b"GET /events"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await reader.read()
            return False
        if seen.value("upgrade"):
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            await reader.read()
            return False
        status = b"500 Oops" if seen.start.startswith(b"GET /fails") else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status)
        return True


@asynccontextmanager
async def plane_before(
    answer: Answer, tmp_path: Path, rules: Shedding | None = RULES, **more: object
) -> AsyncIterator[DataPlane]:
    origin = await Origin(answer).start()
    try:
        app = cluster("app", origin.port, timeouts=ClusterTimeouts(response=5))
        async with data_plane(tmp_path, view(app, shedding=rules, **more), TENANTS) as plane:
            yield plane
    finally:
        await origin.stop()


def limiter(plane: DataPlane) -> ClusterLimiter:
    return plane.worker.shedder.limiters["app"]


def shut(plane: DataPlane, *ceilings: int) -> None:
    """Hold the ceilings still: what latency makes of them is tested in core."""
    limiter(plane).ceilings = ceilings or (0,) * RANKS
    plane.worker.shedder.tick = lambda now: None  # type: ignore[method-assign]


def counted(plane: DataPlane, name: str, priority: str, reason: str) -> int:
    labels = (("class", priority), ("reason", reason))
    return sum(plane.worker.stats.values[index] for found, index in plane.worker.stats.known(name) if found == labels)


def is_shed(reply: Reply) -> None:
    assert reply.status == 503
    assert json.loads(reply.body)["flag"] == "shed"
    assert 1 <= int(reply.value("retry-after") or "") <= 10
    assert 'details="shed"' in (reply.value("proxy-status") or "")


async def test_off_means_that_nothing_is_counted(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path, None) as plane:
        assert (await once(plane.port, GET)).status == 200
        assert plane.worker.shedder.limiters == {}
        assert plane.worker.stats.known("landbridge_concurrency") == []


async def test_in_hand_is_what_waits_for_the_head_of_an_answer(tmp_path: Path) -> None:
    gate = Gate()
    async with plane_before(gate, tmp_path) as plane:
        gate.open.clear()
        clients = [await Client.connect(plane.port) for _ in range(4)]
        plain, events, socket_, upload = clients
        await plain.send(GET)
        await events.send(request("acme.test", "/events"))
        await socket_.send(WEBSOCKET)
        await upload.send(b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 4\r\n\r\nab")
        await until(lambda: is_so(plane.worker.shedder.limiters and limiter(plane).in_hand == 3), "three are in hand")
        assert limiter(plane).tenants == {"acme": 3}
        await upload.send(b"cd")
        await until(lambda: is_so(limiter(plane).in_hand == 4), "the upload is, once it has ended")
        gate.open.set()
        assert (await plain.reply()).status == 200
        assert (await upload.reply()).status == 200
        assert (await socket_.reply()).status == 101
        await events.reader.readuntil(b"first")
        assert limiter(plane).in_hand == 0
        assert limiter(plane).tenants == {}
        for client in clients:
            await client.close()


async def is_so(value: object) -> object:
    return value


async def test_clients_that_leave_and_failures_end_what_was_in_hand_and_are_no_quick_answers(tmp_path: Path) -> None:
    gate = Gate()
    async with plane_before(gate, tmp_path) as plane:
        assert (await once(plane.port, GET)).status == 200
        shut(plane, *(100,) * RANKS)
        limiter(plane).samples.clear()
        assert (await once(plane.port, request("acme.test", "/fails"))).status == 500
        gate.open.clear()
        client = await Client.connect(plane.port)
        await client.send(GET)
        await until(lambda: is_so(limiter(plane).in_hand == 1), "it is in hand")
        await client.close()
        await until(lambda: is_so(limiter(plane).in_hand == 0), "it has left")
        left_early = [seconds for seconds in limiter(plane).samples if seconds < limiter(plane).limit.latency_s]
        assert left_early == []
        gate.open.set()


async def test_classes_are_refused_in_order_and_told_how_and_why(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path) as plane:
        assert (await once(plane.port, GET)).status == 200
        shut(plane, 0, 0, 5, 5, 5, 5)
        refused = await once(plane.port, BULK)
        is_shed(refused)
        assert refused.value("x-request-id")
        assert (await once(plane.port, GET)).status == 200
        shut(plane, 0, 0, 0, 0, 5, 5)
        is_shed(await once(plane.port, GET))
        assert (await once(plane.port, request("vital.test"))).status == 200
        shut(plane)
        is_shed(await once(plane.port, request("vital.test")))
        assert [counted(plane, "landbridge_shed_total", name, "limit") for name in ("bulk", "default", "critical")] == [
            1, 1, 1,
        ]  # fmt: skip
        logged = [exchange for exchange in plane.log.exchanges if exchange.status == 503]
        assert [exchange.reason for exchange in logged] == ["bulk:limit", "default:limit", "critical:limit"]
        assert {exchange.flag.name for exchange in logged if exchange.flag} == {"shed"}


async def test_a_tenant_above_its_share_is_refused_while_others_come_in(tmp_path: Path) -> None:
    gate = Gate()
    async with plane_before(gate, tmp_path) as plane:
        assert (await once(plane.port, GET)).status == 200
        shut(plane, 1, 1, 3, 6, 9, 9)
        limiter(plane).share = 3
        gate.open.clear()
        clients = [await Client.connect(plane.port) for _ in range(3)]
        for client in clients:
            await client.send(GET)
        await until(lambda: is_so(limiter(plane).in_hand == 3), "three are in hand")
        is_shed(await once(plane.port, GET))
        assert counted(plane, "landbridge_shed_total", "default", "limit") == 1  # there is nobody to share with
        other = await Client.connect(plane.port)
        await other.send(request("vital.test"))
        await until(lambda: is_so(limiter(plane).in_hand == 4), "another tenant's is, too")
        is_shed(await once(plane.port, GET))
        assert counted(plane, "landbridge_shed_total", "default", "share") == 1
        gate.open.set()
        for client in (*clients, other):
            assert (await client.reply()).status == 200
            await client.close()


async def test_shadow_counts_and_refuses_nothing(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path, replace(RULES, shadow=True)) as plane:
        assert (await once(plane.port, GET)).status == 200
        shut(plane)
        assert (await once(plane.port, GET)).status == 200
        assert counted(plane, "landbridge_shed_shadow_total", "default", "limit") == 1
        assert counted(plane, "landbridge_shed_total", "default", "limit") == 0


async def test_a_route_and_a_trusted_header_name_a_class_and_a_client_does_not(tmp_path: Path) -> None:
    rules = replace(RULES, header=b"x-priority", routes=((b"/batch", Priority.BULK), (b"/", None)))
    routes = (Route(b"/batch", "app"), Route(b"/", "app"))
    trusted = (ipaddress.ip_network("127.0.0.0/8"),)
    critical = request("acme.test", "/batch", lines=["X-Priority: critical"])
    async with plane_before(Gate(), tmp_path, rules, routes=routes) as plane:
        assert (await once(plane.port, GET)).status == 200
        shut(plane, 0, 0, 5, 5, 5, 5)
        is_shed(await once(plane.port, request("acme.test", "/batch/1")))
        is_shed(await once(plane.port, critical))
        assert (await once(plane.port, GET)).status == 200
        plane.swap(trusted_proxies=trusted)
        assert (await once(plane.port, critical)).status == 200
        is_shed(await once(plane.port, request("acme.test", lines=["X-Priority: bulk"])))


async def test_a_carried_request_is_judged_where_it_is_served_by_the_class_it_entered_with(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (us, eu, us_app, _):
        bulk = replace(RULES, routes=((b"/batch", Priority.BULK), (b"/", None)))
        us.swap(shedding=RULES)
        eu.swap(shedding=bulk)
        assert (await once(eu.port, GET)).status == 200
        shut(us, 0, 0, 5, 5, 5, 5)
        assert (await once(eu.port, GET)).status == 200
        refused = await once(eu.port, request("acme.test", "/batch"))
        is_shed(refused)
        assert "us-east-1" in (refused.value("proxy-status") or "")
        assert "app" not in eu.worker.shedder.limiters
        assert len(us_app.requests) == 2


async def test_probes_are_answered_whatever_is_shed(tmp_path: Path) -> None:
    probe = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with plane_before(Gate(), tmp_path, limits=Limits(connections=2)) as plane:
        assert (await once(plane.port, GET)).status == 200
        shut(plane)
        assert (await once(plane.port, probe)).status == 200
        kept = [await Client.connect(plane.port) for _ in range(2)]
        for client in kept:
            is_shed(await client.ask(GET))
        assert (await once(plane.port, probe)).status == 200
        turned = await once(plane.port, GET)
        is_shed(turned)
        assert turned.value("connection") == "close"
        assert counted(plane, "landbridge_shed_total", "none", "connections") == 1
        for client in kept:
            await client.close()


async def test_a_connection_too_many_that_says_nothing_is_told_and_closed(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path, limits=Limits(connections=1)) as plane:
        first, second = await Client.connect(plane.port), await Client.connect(plane.port)
        is_shed(await second.reply())
        assert await second.at_end() == b""
        for client in (first, second):
            await client.close()


async def test_a_worker_without_time_refuses_shares_of_what_comes_and_new_connections(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path) as plane:
        shedder = plane.worker.shedder
        kept = await Client.connect(plane.port)
        assert (await kept.ask(GET)).status == 200
        shedder.tick = lambda now: None  # type: ignore[method-assign]
        shedder.pressing, shedder.pressure.refused, shedder.pressure.chances = True, 1.0, (1.0,) * 4 + (0.0,) * 2
        is_shed(await kept.ask(GET))
        assert (await kept.ask(request("vital.test"))).status == 200
        assert counted(plane, "landbridge_shed_total", "default", "worker") == 1
        assert (await once(plane.port, request("vital.test"))).status == 200
        shedder.pressure.chances = (1.0,) * RANKS
        is_shed(await once(plane.port, request("vital.test")))
        assert counted(plane, "landbridge_shed_total", "none", "worker") == 1
        assert (await once(plane.port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")).status == 200
        shedder.pressing = False
        assert (await kept.ask(GET)).status == 200
        await kept.close()


async def test_a_reload_keeps_the_limit_and_turning_it_off_forgets_it(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path) as plane:
        assert (await once(plane.port, GET)).status == 200
        before = limiter(plane)
        plane.swap(shedding=replace(RULES, low=50))
        assert limiter(plane) is before
        assert before.limit.limit == 50
        plane.swap(shedding=None)
        assert plane.worker.shedder.limiters == {}
        assert (await once(plane.port, GET)).status == 200


async def test_who_is_turned_away_takes_nobodys_place_while_it_lingers(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path, limits=Limits(connections=1)) as plane:
        first, second = await Client.connect(plane.port), await Client.connect(plane.port)
        is_shed(await second.ask(GET))  # its side stays open
        await first.close()
        await until(lambda: is_so(len(plane.worker.downs) == plane.worker.turning == 1), "only the second is left")
        third = await Client.connect(plane.port)
        assert (await third.ask(GET)).status == 200
        for client in (second, third):
            await client.close()
        await until(lambda: is_so(not plane.worker.downs), "all are gone")
        assert plane.worker.turning == 0


async def test_it_makes_no_task_no_future_and_no_timer_per_request(tmp_path: Path) -> None:
    async with plane_before(Gate(), tmp_path) as plane:
        client = await Client.connect(plane.port)
        assert (await client.ask(GET)).status == 200
        worker = plane.worker
        counted_loop = Counted(worker.loop)
        worker.loop = counted_loop  # type: ignore[assignment]
        for _ in range(100):
            assert (await client.ask(GET)).status == 200
        shut(plane)
        for _ in range(100):
            is_shed(await client.ask(GET))
        assert counted_loop.calls == []
        assert limiter(plane).in_hand == 0
        worker.loop = counted_loop._loop
        await client.close()


def test_a_tick_after_a_pause_in_which_it_was_off_is_not_late(tmp_path: Path) -> None:
    stats = StatsFile(tmp_path / "worker-0.stats")
    meters = Meters(stats, 0, 10)
    shedder, on = Shedder(meters, 0, 0.1), view(cluster("app", 9), shedding=RULES)
    shedder.configure(on, 100.0)
    shedder.tick(100.1)
    shedder.configure(view(cluster("app", 9)), 100.2)
    shedder.configure(on, 900.0)
    shedder.tick(900.1)
    assert shedder.pressure.lag_s < 1e-9
    shedder.tick(900.7)
    assert shedder.pressure.lag_s > 0.1
    meters.close()
