"""FAULTS 37: whatever strangers invent (tenants, hosts, clients, paths, methods, ids), there is no series more for it
and no memory without a bound; and what is unknown is one label.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.client import Client
from tests.support.fleet import US, Fleet, Gateway, request, says, until
from tests.support.measured import hold
from tests.support.origin import Origin
from tests.support.pace import ALLOWANCE
from tests.support.processes import rss_anon_bytes

INVENTED = 100_000 if ALLOWANCE == 1 else 3_000
KNOWN, SHOWN = 120, 50
"""Tenants in the map, and those with a series of their own in each worker."""
AT_ONCE = 40
MARK = "zq"
"""What every invented name holds, and nothing else."""
GROWTH_MAX = 48 << 20
"""Of one worker: a million clients' buckets are 32 MiB, which are touched little by little, and every cache is full."""


class Crowded(Fleet):
    """One region with everything on that keeps accounts of tenants or clients."""

    def configuration(self, gateway: Gateway) -> str:
        return super().configuration(gateway) + (
            f"telemetry: {{tenants: {SHOWN}}}\n"
            "trusted_proxies: [127.0.0.1/32]\n"
            "throttle: {tenant: {rate: 1000000/s}, client: {rate: 100000/s}, gateway: {rate: 1000000/s}}\n"
            "shedding: {}\n"
        )


def invented(number: int, rng: random.Random) -> list[bytes]:
    """One request of every kind that a stranger may send, none of them ever seen before."""
    name = f"{MARK}{number}x{rng.randrange(1 << 30)}"
    client = ".".join(str(rng.randrange(1, 255)) for _ in range(4))
    known = f"k{number % KNOWN}.demo.test"
    return [
        request(f"{name}.demo.test", "/x"),
        request(f"{name}.example", "/x"),
        request("nothing.example", "/x", lines=[f"X-Org: {name}"]),
        request(f"{name}.{US}.demo.test", "/x"),
        request(
            known,
            f"/{name}?{name}={name}",
            rng.choice(("GET", "POST", f"M{MARK}{number % 1000}")),
            lines=[
                f"X-Forwarded-For: {client}",
                f"X-Request-Id: {name}",
                f"X-{name}: {name}",
                f"Idempotency-Key: {name}",
                f"Cookie: {name}={name}",
                f"Authorization: Bearer {name}",
                f"User-Agent: {name}",
            ],
        ),
    ]


async def send(port: int, numbers: range, make: Callable[[int], list[bytes]]) -> set[int]:
    """All of them, some at once on each of four connections; which statuses came back."""
    statuses: set[int] = set()

    async def client(mine: range) -> None:
        connection = await Client.connect(port)
        for start in range(0, len(mine), AT_ONCE):
            batch = [one for number in mine[start : start + AT_ONCE] for one in make(number)]
            await connection.send(b"".join(batch))
            for _ in batch:
                statuses.add((await connection.reply(within_s=60)).status)
        await connection.close()

    await asyncio.gather(*(client(numbers[part::4]) for part in range(4)))
    return statuses


@pytest.fixture
async def crowded(tmp_path: Path):
    tenants = "".join(f"  k{number}: {{home: {US}}}\n" for number in range(KNOWN))
    made = Crowded(tmp_path, (US,), "tenants:\n" + tenants)
    made[US].workers = 2
    made[US].application = Origin(says(US))
    try:
        yield await made.start()
    finally:
        await made.stop()


async def test_a_hundred_thousand_inventions_cost_no_series_and_bounded_memory(crowded: Crowded) -> None:
    us, rng = crowded[US], random.Random(37)
    wanted = {200, 400, 404, 503}  # the last where load is shed
    per_kind = len(invented(0, rng))
    first = range(400)
    assert await send(us.http, first, lambda number: invented(number, rng)) <= wanted
    workers = await us.serving()
    before, memory = await us.metrics(), [rss_anon_bytes([pid]) for pid in workers]
    rest = range(len(first), max(INVENTED // per_kind, len(first) + 200))
    assert await send(us.http, rest, lambda number: invented(number, rng)) <= wanted
    total = (len(first) + len(rest)) * per_kind

    async def counted() -> bool:
        found = await us.metrics()
        return sum(v for (name, _), v in found.items() if name == "landbridge_requests_total") >= total

    await until(counted, "everything is counted")
    after = await us.metrics()
    grown = [now - then for now, then in zip([rss_anon_bytes([pid]) for pid in workers], memory, strict=True)]
    more = {name for name, _ in set(after) - set(before)} - {"landbridge_tenant_requests_total"}
    hold("37", f"series more after {total} inventions, but for known tenants", len(more), 0, "")
    hold("37", "RssAnon of a worker grew", max(grown), GROWTH_MAX, "MiB")
    labels = [value for _, pairs in after for _, value in pairs]
    assert [value for value in labels if MARK in value.lower()] == []
    tenants = {
        dict(pairs)["tenant"]: v for (name, pairs), v in after.items() if name == "landbridge_tenant_requests_total"
    }
    hold("37", "series of tenants", len(tenants), len(workers) * SHOWN + 1, "")
    assert set(tenants) <= {f"k{number}" for number in range(KNOWN)} | {"other"}
    unknown = 3 * (len(first) + len(rest))  # of five kinds three name a tenant, and the map has none of them
    assert tenants["other"] >= unknown
    assert after[("landbridge_stats_overflow_total", ())] == 0
