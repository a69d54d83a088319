"""A region's Redis is gone, hangs or is cut off, at the start or under load: requests go on by the map on disk.

FAULTS 1 to 4. The durations are scaled here; `make faults` takes them as they are written, but for the ten minutes
of an outage: a minute, or as many seconds as LANDBRIDGE_OUTAGE_S says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.support.client import Reply, once
from tests.support.fleet import EU, US, Gateway, flag_of, request, until
from tests.support.load_process import LoadProcess, Target, quantile
from tests.support.measured import hold
from tests.support.redis_fleet import RedisFleet, redis_fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOMES = {"acme": US, "globex": EU}
READY_S = 2.0
SLOWER = 0.10
RECONNECT_S = 5.0
OUTAGE_S = float(os.environ.get("LANDBRIDGE_OUTAGE_S", "60"))


class Outage(NamedTuple):
    """How a region's Redis stops answering, and how it comes back."""

    name: str
    begin: Callable[[RedisFleet], None]
    end: Callable[[RedisFleet], None]


def slow(fleet: RedisFleet, delay_s: float) -> None:
    fleet.own[US].delay_s = delay_s


OUTAGES = {
    outage.name: outage
    for outage in (
        Outage("killed", lambda fleet: fleet.servers[US].kill(), lambda fleet: fleet.servers[US].start()),
        Outage("hangs", lambda fleet: fleet.servers[US].stop(), lambda fleet: fleet.servers[US].cont()),
        Outage("packets dropped", lambda fleet: fleet.own[US].cut(), lambda fleet: fleet.own[US].heal()),
    )
}
HALVES = {
    outage.name: outage
    for outage in (
        Outage("slow", lambda fleet: slow(fleet, 0.4), lambda fleet: slow(fleet, 0.0)),
        Outage(
            "a replica",
            lambda fleet: _say(fleet, "REPLICAOF", "127.0.0.1", "1"),
            lambda fleet: _say(fleet, "REPLICAOF", "NO", "ONE"),
        ),
        Outage(
            "out of memory",
            lambda fleet: _say(fleet, "CONFIG", "SET", "maxmemory", "1"),
            lambda fleet: _say(fleet, "CONFIG", "SET", "maxmemory", "0"),
        ),
    )
}
"""Redis answers, but not as it should: what can be read is read, and the map does not grow stale."""
FAULT = {"killed": "3", "hangs": "4", "packets dropped": "4"}


def _say(fleet: RedisFleet, *words: str) -> None:
    assert fleet.servers[US].cli(*words).startswith(b"+OK")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisFleet]:
    async with redis_fleet(tmp_path_factory.mktemp("outage"), (US, EU), HOMES) as made:
        yield made


def load_of(fleet: RedisFleet) -> LoadProcess:
    """200 requests a second into US: three of four for a tenant of its own, one for EU's."""
    port = fleet[US].http
    return LoadProcess([Target(port, "acme.demo.test", US, 150.0, 8), Target(port, "globex.demo.test", EU, 50.0, 4)])


async def is_stale(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError, EOFError):
        return await gateway.metric("landbridge_map_stale") == 1
    return False


async def is_fresh(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError, EOFError):
        return await gateway.metric("landbridge_map_stale") == 0
    return False


# --- at run


async def outage_under_load(fleet: RedisFleet, outage: Outage, load: LoadProcess) -> float:
    """One outage, until it is noticed and for a moment more; how long the gateway took to use a write after its end."""
    gateway = fleet[US]
    outage.begin(fleet)
    await until(lambda: is_stale(gateway), "the map counts as stale")
    await load.goes_on(40)
    return await back(fleet, outage)


async def back(fleet: RedisFleet, outage: Outage) -> float:
    """End an outage; seconds until the gateway uses what is written then."""
    outage.end(fleet)
    ended = time.monotonic()
    written = await fleet.write("acme", US, labels={"after": outage.name})
    await fleet.used("acme", written.version, [US])
    return time.monotonic() - ended


async def test_an_outage_under_load_costs_no_request(fleet: RedisFleet) -> None:
    async with load_of(fleet) as load:
        began = time.monotonic()
        await load.goes_on(100)
        usual = load.p99_s(began, time.monotonic())
        for outage in OUTAGES.values():
            began = time.monotonic()
            took = await outage_under_load(fleet, outage, load)
            slower = load.p99_s(began, time.monotonic()) / usual - 1
            fault = FAULT[outage.name]
            hold(fault, f"Redis {outage.name}: requests that failed or went wrong", len(load.wrong(began)), 0, "")
            hold(fault, f"Redis {outage.name}: writes are used again", took, RECONNECT_S)
            print(f"Redis {outage.name}: p99 {slower:+.0%}")  # too few to judge by; in full below
            await until(lambda: is_fresh(fleet[US]), "the map counts as fresh")
    assert load.wrong() == [], str(load)


async def test_a_redis_that_is_half_there_costs_no_request(fleet: RedisFleet) -> None:
    """Slow, read-only in the middle of a failover, or full: every reader goes on, and every writer once it can."""
    gateway = fleet[US]
    async with load_of(fleet) as load:
        for outage in HALVES.values():
            outage.begin(fleet)
            await load.goes_on(60)
            assert await is_fresh(gateway)
            took = await back(fleet, outage)
            hold("4", f"Redis {outage.name}: writes are used again", took, RECONNECT_S)
    hold("4", "Redis slow, read-only, full: requests that failed or went wrong", len(load.wrong()), 0, "")


PAIRS = 16
WINDOW_S = 3.0
SETTLE_S = 0.3
"""After the end of an outage, before anything is measured: a Valkey that starts costs time, too."""


@pytest.mark.faults
@pytest.mark.parametrize("name", OUTAGES)
async def test_an_outage_costs_no_request_any_time(fleet: RedisFleet, name: str) -> None:
    """Windows with and without it in turn, so that what else this machine does falls on both; then a long one."""
    outage, fault = OUTAGES[name], FAULT[name]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    reconnects = []
    async with load_of(fleet) as load:
        for _ in range(PAIRS):
            for broken in (False, True):
                began = time.monotonic()
                if broken:
                    outage.begin(fleet)
                await asyncio.sleep(WINDOW_S)
                await load.goes_on(1)
                seconds[broken] += [one.seconds for one in load.between(began, began + WINDOW_S)]
                if broken:
                    reconnects.append(await back(fleet, outage))
                    await asyncio.sleep(SETTLE_S)
        outage.begin(fleet)
        began = time.monotonic()
        while time.monotonic() < began + OUTAGE_S:
            await load.goes_on(100)
        reconnects.append(await back(fleet, outage))
        await load.goes_on(100)
    hold(fault, f"Redis {name} for {OUTAGE_S:g} s, {load.ok} requests: failed or wrong", len(load.wrong()), 0, "")
    hold(fault, f"Redis {name}: writes are used again after its end, the slowest", max(reconnects), RECONNECT_S)
    usual, during = quantile(seconds[False], 0.99), quantile(seconds[True], 0.99)
    medians = statistics.median(seconds[True]) / statistics.median(seconds[False]) - 1
    print(
        f"Redis {name}: {len(seconds[True])} requests with it and {len(seconds[False])} without; median {medians:+.1%}"
    )
    hold(fault, f"Redis {name}: p99 of {usual * 1000:.1f} ms", during / usual - 1, SLOWER, "%")


# --- at the start


async def probe(gateway: Gateway, path: str) -> int:
    """What a load balancer hears; 0 when nobody listens yet."""
    with contextlib.suppress(OSError, EOFError):
        return (await once(gateway.http, request(f"127.0.0.1:{gateway.http}", path))).status
    return 0


async def answered(gateway: Gateway, path: str, status: int) -> None:
    async def is_so() -> bool:
        return await probe(gateway, path) == status

    await until(is_so, f"{path} is {status}")


async def right_region(fleet: RedisFleet) -> None:
    """Everybody who enters in US is served where he lives."""
    for tenant, home in HOMES.items():
        assert {await fleet.served_by(US, tenant) for _ in range(10)} == {home}


def without_store(state: Path) -> None:
    """Leave nothing but the snapshot."""
    shutil.rmtree(state / "map")


@pytest.mark.timed
@pytest.mark.parametrize("lose", [None, without_store], ids=["store", "snapshot"])
async def test_a_start_without_redis_goes_on_by_what_is_on_disk(
    fleet: RedisFleet, lose: Callable[[Path], None] | None
) -> None:
    """FAULTS 1."""
    gateway, server = fleet[US], fleet.servers[US]
    await gateway.stop()
    server.kill()
    if lose is not None:
        lose(gateway.folder / "state")
    try:
        began = time.monotonic()
        gateway.start()
        await answered(gateway, "/readyz", 200)
        assert await fleet.served_by(US, "acme") == US
        hold(
            "1",
            f"start by the {'store' if lose is None else 'snapshot'} alone: ready",
            time.monotonic() - began,
            READY_S,
        )
        await right_region(fleet)
        await until(lambda: is_stale(gateway), "control says that the map is stale")
        status = (await gateway.api("status"))["map"]
        assert (status["complete"], status["stale"], status["records"]) == (True, True, len(HOMES))
    finally:
        server.start()
    await until(lambda: is_fresh(gateway), "the map counts as fresh once Redis is there")
    await until(gateway.ready, "everything is as before")


@pytest.mark.timed
async def test_a_start_without_redis_and_map_refuses_until_redis_is_there(fleet: RedisFleet) -> None:
    """FAULTS 2."""
    gateway, server = fleet[US], fleet.servers[US]
    await gateway.stop()
    server.kill()
    shutil.rmtree(gateway.folder / "state")
    gateway.start()
    await answered(gateway, "/healthz", 200)
    for _ in range(3):
        assert await probe(gateway, "/readyz") == 503
        for tenant in HOMES:
            refused: Reply = await fleet.ask(US, tenant)
            assert (refused.status, flag_of(refused)) == (503, "map_unavailable")
            assert int(refused.value("retry-after") or 0) >= 1
        await asyncio.sleep(0.3)  # control looks for its Redis in vain meanwhile

    async def admin_answers() -> bool:
        with contextlib.suppress(OSError, EOFError):
            statuses = [
                (await once(gateway.admin, request("localhost", path))).status for path in ("/healthz", "/readyz")
            ]
            return statuses == [200, 503]
        return False

    await until(admin_answers, "the admin listener says the same")
    server.start()
    began = time.monotonic()
    await answered(gateway, "/readyz", 200)
    assert await fleet.served_by(US, "acme") == US
    hold("2", "no map, then Redis is there: ready", time.monotonic() - began, READY_S)
    await until(gateway.ready, "everything is as before")
    await right_region(fleet)
