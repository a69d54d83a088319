"""Which of several applications a request reaches, by each balancer; who is left out, and eased in again."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.bus.messages import EndpointEjected
from gateway.core.balancing import Balance, Balancer, HashBy
from gateway.core.outliers import OutlierRule
from gateway.core.placement import Placement
from gateway.core.view import Cluster
from tests.support.client import Client, Reply
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.origin import Origin, raw

TENANTS = tuple(Placement(tenant=f"t{n}", home="us-east-1") for n in range(30))
BAD = raw(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", keep=True)


class World:
    def __init__(self, plane: DataPlane, origins: list[Origin], app: Cluster) -> None:
        self.plane, self.origins, self.app = plane, origins, app
        self.client: Client | None = None

    async def ask(self, *lines: str, tenant: str = "t0") -> Reply:
        if self.client is None:
            self.client = await Client.connect(self.plane.port)
        fields = "".join(f"{line}\r\n" for line in lines)
        return await self.client.ask(f"GET / HTTP/1.1\r\nHost: {tenant}.test\r\n{fields}\r\n".encode())

    def counts(self) -> list[int]:
        return [len(origin.requests) for origin in self.origins]

    def forget(self) -> None:
        for origin in self.origins:
            origin.requests.clear()

    def with_endpoints(self, **changes: dict[str, Any]) -> None:
        """`e0={"up": False}`: another View."""
        endpoints = tuple(
            dataclasses.replace(endpoint, **changes.get(f"e{number}", {}))
            for number, endpoint in enumerate(self.app.endpoints)
        )
        self.app = dataclasses.replace(self.app, endpoints=endpoints)
        self.plane.swap(clusters={"app": self.app})


@asynccontextmanager
async def world(folder: Path, count: int = 3, weights: tuple[int, ...] = (), **more: Any) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        origins = []
        for _ in range(count):
            origins.append(await Origin().start())
            stack.push_async_callback(origins[-1].stop)
        app = cluster("app", *(origin.port for origin in origins), **more)
        if weights:
            endpoints = (dataclasses.replace(e, weight=w) for e, w in zip(app.endpoints, weights, strict=True))
            app = dataclasses.replace(app, endpoints=tuple(endpoints))
        plane = await stack.enter_async_context(data_plane(folder, view(app), TENANTS))
        made = World(plane, origins, app)
        try:
            yield made
        finally:
            if made.client is not None:
                await made.client.close()


async def test_round_robin_gives_each_its_turn_whatever_the_weights(tmp_path: Path) -> None:
    async with world(tmp_path, weights=(5, 1, 1), balance=Balance(Balancer.ROUND_ROBIN)) as made:
        for _ in range(30):
            await made.ask()
        assert made.counts() == [10, 10, 10]
        made.with_endpoints(e1={"up": False})
        made.forget()
        for _ in range(30):
            await made.ask()
        assert made.counts() == [15, 0, 15]


async def test_weighted_gives_each_its_share(tmp_path: Path) -> None:
    async with world(tmp_path, weights=(5, 3, 2), balance=Balance(Balancer.WEIGHTED)) as made:
        for _ in range(40):
            await made.ask()
        assert made.counts() == [20, 12, 8]


async def test_a_tenant_stays_where_it_is_and_moves_only_when_that_is_down(tmp_path: Path) -> None:
    async with world(tmp_path, balance=Balance(Balancer.HASH, HashBy.TENANT)) as made:
        for _ in range(3):
            for n in range(30):
                await made.ask(tenant=f"t{n}")
        homes = [{seen.value("x-tenant") for seen in origin.requests} for origin in made.origins]
        assert sum(map(len, homes)) == 30, "each tenant in one place"
        assert all(homes)
        made.with_endpoints(e1={"up": False})
        made.forget()
        for n in range(30):
            await made.ask(tenant=f"t{n}")
        after = [{seen.value("x-tenant") for seen in origin.requests} for origin in made.origins]
        assert (after[0] >= homes[0], after[1], after[2] >= homes[2]) == (True, set(), True)
        made.with_endpoints(e1={"up": True})
        made.forget()
        for n in range(30):
            await made.ask(tenant=f"t{n}")
        assert [{seen.value("x-tenant") for seen in origin.requests} for origin in made.origins] == homes


async def test_by_a_field_and_without_it_to_anybody(tmp_path: Path) -> None:
    async with world(tmp_path, balance=Balance(Balancer.HASH, HashBy.HEADER, b"x-user")) as made:
        for _ in range(20):
            await made.ask("X-User: bob")
        assert sorted(made.counts()) == [0, 0, 20]
        for _ in range(60):
            await made.ask()
        assert all(made.counts())


async def test_a_client_without_the_cookie_gets_one_and_stays(tmp_path: Path) -> None:
    balance = Balance(Balancer.HASH, HashBy.COOKIE, b"stay", 3600.0)
    async with world(tmp_path, balance=balance) as made:
        places: Counter[int] = Counter()
        for _ in range(12):
            made.forget()
            reply = await made.ask("Cookie: other=1")
            found = re.fullmatch(r"stay=([0-9a-f]+); Path=/; Max-Age=3600; HttpOnly; SameSite=Lax",
                                 reply.value("set-cookie") or "")  # fmt: skip
            assert found is not None, reply
            for _ in range(5):
                again = await made.ask(f"Cookie: other=1; stay={found[1]}")
                assert again.value("set-cookie") is None
            assert sorted(made.counts()) == [0, 0, 6]
            places[made.counts().index(6)] += 1
        assert len(places) > 1
    session = dataclasses.replace(balance, sticky_s=0.0)
    async with world(tmp_path / "2", balance=session) as made:
        assert "Max-Age" not in ((await made.ask()).value("set-cookie") or "Max-Age")


async def test_an_endpoint_that_errs_is_left_out_and_comes_back(tmp_path: Path) -> None:
    rule = OutlierRule(consecutive_errors=5, eject=0.5)
    async with world(tmp_path, outliers=rule, balance=Balance(Balancer.ROUND_ROBIN)) as made:
        made.origins[1].answer = BAD
        statuses = [(await made.ask()).status for _ in range(60)]
        assert statuses.count(500) == 5
        [said] = [said for said in made.plane.said if isinstance(said, EndpointEjected)]
        assert said.endpoint.endswith(str(made.origins[1].port))
        assert (0 < said.left_s <= 0.5, said.why) == (True, "5 errors in a row")
        assert made.plane.worker.watched() != []
        made.origins[1].answer = made.origins[0].answer
        deadline = time.monotonic() + 20
        asked = made.counts()[1]
        while made.counts()[1] == asked:
            assert time.monotonic() < deadline
            await made.ask()
            await asyncio.sleep(0.01)
        assert [said.left_s > 0 for said in made.plane.said if isinstance(said, EndpointEjected)] == [True, False]
        assert made.plane.worker.watched() == []


async def test_what_fails_everywhere_leaves_nobody_out(tmp_path: Path) -> None:
    async with world(tmp_path, outliers=OutlierRule(), balance=Balance(Balancer.ROUND_ROBIN)) as made:
        for origin in made.origins:
            origin.answer = BAD
        for _ in range(60):
            await made.ask()
        assert made.counts() == [20, 20, 20]


@pytest.mark.parametrize("balancer", [Balancer.LEAST_REQUEST, Balancer.ROUND_ROBIN, Balancer.WEIGHTED])
async def test_an_endpoint_that_is_up_again_is_eased_in(tmp_path: Path, balancer: Balancer) -> None:
    async with world(tmp_path, 2, balance=Balance(balancer), slow_start=60.0) as made:
        made.with_endpoints(e1={"up": False})
        made.with_endpoints(e1={"up": True})
        for _ in range(200):
            await made.ask()
        assert 0 < made.counts()[1] < 60, "a tenth of its share, at first"
        pool = made.plane.worker.clusters["app"]
        pool.endpoints[made.app.endpoints[1].key].warm_from -= 60.0
        made.forget()
        for _ in range(200):
            await made.ask()
        assert made.counts()[1] > 60
        assert not pool.easing
