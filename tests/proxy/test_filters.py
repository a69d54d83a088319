"""Filters in a running worker: sync and async, answers as values, parking, and what a bug in one costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from filters import ENDPOINT, INBOUND, OUTBOUND
from gateway.core.errors import GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Chain, Park, Respond, build_filters, compile_chain
from tests.support.client import Client, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.origin import Origin

GET = b"GET /x HTTP/1.1\r\nHost: acme.test\r\n\r\n"


class Added:
    """An inbound or outbound filter whose behaviour a test writes."""

    name = "added"

    def __init__(self, act: Any) -> None:
        self.act = act

    def __call__(self, exchange: Exchange) -> Answer | None:
        return self.act(exchange)


class Waiting(Added):
    async def __call__(self, exchange: Exchange) -> Answer | None:  # type: ignore[override]
        await asyncio.sleep(0)
        return await self.act(exchange)


def chain(*inbound: Any, outbound: tuple[Any, ...] = ()) -> Chain:
    none: Mapping[str, Mapping[str, object]] = {}
    made: Any = (build_filters(INBOUND, none), build_filters(ENDPOINT, none), build_filters(OUTBOUND, none))
    return compile_chain([*made[0], *inbound], made[1], [*made[2], *outbound])


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


@pytest.fixture
async def plane(origin: Origin, tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with data_plane(tmp_path, view(cluster("app", origin.port))) as running:
        yield running


async def test_an_added_filter_may_answer(plane: DataPlane, origin: Origin):
    plane.worker.chain = chain(Added(lambda exchange: Respond(418, ((b"X-Tea", b"yes"),), b"short and stout")))
    reply = await once(plane.port, GET)
    assert (reply.status, reply.value("x-tea"), reply.body) == (418, "yes", b"short and stout")
    assert origin.requests == []


async def test_an_added_filter_may_refuse_by_flag(plane: DataPlane):
    def refuse(exchange: Exchange) -> None:
        raise GatewayError("address_denied", "not from here")

    plane.worker.chain = chain(Added(refuse))
    reply = await once(plane.port, GET)
    assert reply.status == 403
    assert b"not from here" in reply.body


@pytest.mark.parametrize("body", [b"", b"x" * 100_000])
async def test_an_async_filter_continues_in_a_task(plane: DataPlane, origin: Origin, body: bytes):
    async def allow(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        exchange.forwarded.append(b"X-Checked: yes")

    plane.worker.chain = chain(Waiting(allow))
    client = await Client.connect(plane.port)
    for _ in range(3):
        head = b"POST /x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert (await client.ask(head + body)).status == 200
    await client.close()
    assert [seen.value("x-checked") for seen in origin.requests] == ["yes"] * 3
    assert [seen.body for seen in origin.requests] == [body] * 3


async def test_an_async_filter_whose_client_leaves_is_cancelled(plane: DataPlane):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    plane.worker.chain = chain(Waiting(hang))
    client = await Client.connect(plane.port)
    await client.send(GET)
    async with asyncio.timeout(5):
        await entered.wait()
        await client.close()
        await cancelled.wait()


async def test_a_parked_request_runs_again(plane: DataPlane, origin: Origin):
    visits = []

    def park(exchange: Exchange) -> Answer | None:
        visits.append(exchange)
        return Park(plane.worker.now() + 0.05) if len(visits) == 1 else None

    plane.worker.chain = chain(Added(park))
    reply = await once(plane.port, GET)
    assert reply.status == 200
    assert len(visits) == 2
    assert origin.requests[0].value("via") == "1.1 us-east-1.landbridge"


@pytest.mark.parametrize("kind", ["inbound", "outbound"])
async def test_a_bug_in_a_filter_costs_its_request_and_is_counted(plane: DataPlane, kind: str):
    def bug(exchange: Exchange) -> None:
        if exchange.request.target == b"/bad":
            raise ZeroDivisionError

    plane.worker.chain = chain(Added(bug)) if kind == "inbound" else chain(outbound=(Added(bug),))
    client = await Client.connect(plane.port)
    bad = await client.ask(GET.replace(b"/x", b"/bad"))
    assert bad.status == 500
    assert b"internal_error" in bad.body
    assert b"ZeroDivision" not in bad.body
    assert (await client.ask(GET)).status == 200
    await client.close()
    index = plane.worker.stats.series("landbridge_filter_errors_total", (("filter", "added"),))
    assert plane.worker.stats.values[index] >= 1
