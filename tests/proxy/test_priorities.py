"""Priorities and weights of endpoints in a worker: the first priority serves while it can, weights share it out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.bus.messages import ConnectFailures
from gateway.core.view import Cluster, Endpoint
from tests.support.client import once
from tests.support.dataplane import DataPlane, data_plane, view
from tests.support.origin import Origin
from tests.support.processes import free_ports

REQUEST = b"GET / HTTP/1.1\r\nHost: acme.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 2\r\n\r\nhi"


def endpoint(port: int, priority: int = 0, weight: int = 1, up: bool = True) -> Endpoint:
    return Endpoint(f"app:{port}", "127.0.0.1", port, up=up, priority=priority, weight=weight)


@asynccontextmanager
async def origins(count: int) -> AsyncIterator[list[Origin]]:
    made = [await Origin().start() for _ in range(count)]
    try:
        yield made
    finally:
        for origin in made:
            await origin.stop()


async def ask(plane: DataPlane, count: int, data: bytes = REQUEST) -> list[int]:
    return [(await once(plane.port, data)).status for _ in range(count)]


async def test_the_first_priority_takes_all(tmp_path: Path) -> None:
    async with origins(3) as (first, same, later):
        ends = (endpoint(later.port, 10), endpoint(first.port, 1), endpoint(same.port, 1))
        async with data_plane(tmp_path, view(Cluster("app", ends))) as plane:
            assert await ask(plane, 20) == [200] * 20
            assert later.requests == []
            assert first.requests
            assert same.requests
            down = (endpoint(later.port, 10), endpoint(first.port, 1, up=False), endpoint(same.port, 1, up=False))
            plane.swap(clusters={"app": Cluster("app", down)})
            assert await ask(plane, 5) == [200] * 5
            assert len(later.requests) == 5


async def test_a_request_whose_endpoint_refuses_goes_to_the_next_priority(tmp_path: Path) -> None:
    """Before control has said anything; and once this worker has given the first up, to the next at once."""
    async with origins(2) as (second, third):
        [dead] = free_ports(1)
        ends = (endpoint(third.port, 9), endpoint(second.port, 5), endpoint(dead))
        async with data_plane(tmp_path, view(Cluster("app", ends))) as plane:
            assert await ask(plane, 3, POST) == [200] * 3
            assert ConnectFailures("app", f"127.0.0.1:{dead}", 3) in plane.said
            assert await ask(plane, 3) == [200] * 3
            assert (len(second.requests), len(third.requests)) == (6, 0)


async def test_weights_share_requests_out(tmp_path: Path) -> None:
    async with origins(2) as (light, heavy):
        ends = (endpoint(light.port, weight=1), endpoint(heavy.port, weight=9))
        async with data_plane(tmp_path, view(Cluster("app", ends))) as plane:
            assert await ask(plane, 200) == [200] * 200
            assert len(heavy.requests) > 150
            assert light.requests
