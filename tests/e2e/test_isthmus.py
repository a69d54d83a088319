"""Failover and back, whole regions on real sockets: an application that is killed under load, switches, a partition."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.core.placement import Failover
from gateway.core.switches import Name, Switch
from tests.support.client import once
from tests.support.fleet import AP, EU, REGIONS, US, Fleet, Gateway, flag_of, landbridge, request, until
from tests.support.load_process import LoadProcess, Target
from tests.support.measured import hold
from tests.support.mortal import Mortal
from tests.support.processes import children
from tests.support.redis_fleet import RedisFleet, redis_fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILED_MAX = 50
DECIDED_S = 0.5
"""Within which no request fails any more, and control has decided for the whole gateway."""
COUNT = 40
"""Requests to each gateway: what is looked at before and after."""
FOLLOW_S = 1.0
"""Within which every gateway of a region follows a switch."""
WHY = ("--reason", "a test")


# --- an application is killed


@contextlib.asynccontextmanager
async def mortals(folder: Path, workers: int, after_s: float = 0.0) -> AsyncIterator[tuple[Fleet, Mortal]]:
    """Three regions; umbrella lives in us-east-1, whose application can be killed, and eu-west-1 stands by."""
    async with Mortal(US, after_s) as us, Mortal(EU) as eu, Mortal(AP) as ap:
        made = Fleet(folder, REGIONS)
        for gateway in made.gateways.values():
            gateway.workers = workers
            gateway.application.port = {US: us, EU: eu, AP: ap}[gateway.region].port
        try:
            yield await made.start(), us
        finally:
            await made.stop()


async def decided(gateway: Gateway, able: bool) -> bool:
    """Whether control has decided, and every worker decides by it."""
    status = await gateway.api("status")
    applied = status["config"]["applied"].values()
    (app,) = [row for row in (await gateway.api("clusters"))["clusters"] if row["name"] == "app"]
    return app["able"] is able and min(applied, default=-1) >= status["config"]["generation"]


@pytest.mark.timed
@pytest.mark.parametrize(
    ("rate", "after_s"),
    [
        (200, 0.0),
        pytest.param(1000, 0.0, marks=pytest.mark.faults),
        pytest.param(500, 0.05, marks=pytest.mark.faults),  # with some thirty requests in hand
    ],
)
async def test_a_killed_application_costs_no_get_and_few_others(tmp_path: Path, rate: int, after_s: float) -> None:
    async with mortals(tmp_path, 2, after_s) as (regions, application):
        targets = [
            Target(regions[US].http, "umbrella.demo.test", US, rate, 50),
            Target(regions[AP].http, "umbrella.demo.test", US, rate / 5, 10),
        ]
        async with LoadProcess(targets) as load:
            before = time.monotonic()
            assert load.wrong() == []
            await application.kill()
            await until(partial(decided, regions[US], False), "control has decided, and all workers know")
            hold("isthmus", "a dead application is decided for its gateway", time.monotonic() - before, DECIDED_S)
            await load.goes_on(COUNT)
            failed = [what for _, what in load.failed]
            hold("isthmus", f"requests that fail at {rate}/s and {rate // 5}/s by a hop", len(failed), FAILED_MAX, "")
            assert [what for what in failed if what.method == "GET"] == [], "what reads goes on elsewhere"
            last = max((what.sent - before for what in failed), default=0.0)
            hold("isthmus", "the last request that fails, after the kill", last, DECIDED_S)
            settled = time.monotonic()
            await load.goes_on(COUNT)
            for number in range(len(targets)):
                assert {one.region for one in load.between(settled, float("inf"), [number])} == {EU}
            await application.start()

            async def at_home() -> bool:
                now = time.monotonic()
                await load.goes_on(20)
                return {one.region for one in load.between(now, float("inf"))} == {US}

            await until(at_home, "all are served at home again")
            assert len(load.failed) == len(failed), f"none fails on the way back: {load.failed[len(failed) :]}"
        print(load)


@pytest.mark.faults
async def test_workers_go_on_by_themselves_where_control_is_gone(tmp_path: Path) -> None:
    """Killed together, and control with it: each worker finds out for itself, and no GET fails."""
    async with mortals(tmp_path, 2) as (regions, application):
        target = Target(regions[US].http, "umbrella.demo.test", US, 100, 10)
        async with LoadProcess([target]) as load:
            stopped = await stop_control(regions[US])
            await application.kill()
            await load.goes_on(300)
            assert [what for _, what in load.failed if what.method == "GET"] == []
            assert len(load.failed) <= FAILED_MAX
            now = time.monotonic()
            await load.goes_on(100)
            assert {one.region for one in load.between(now, float("inf"))} == {EU}
            stopped()


async def stop_control(gateway: Gateway) -> partial[None]:
    """Stop control's process where it stands: it neither hears nor says anything. What is returned ends that."""
    pid = (await gateway.pids())["control"]
    os.kill(pid, signal.SIGSTOP)
    return partial(os.kill, pid, signal.SIGCONT)


# --- switches and a partition, on the replicated map

SECOND = f"{US}/2"
RATES = {"globex": 10.0, "stark": 60.0}
TENANTS = {"acme": US, "globex": EU, "umbrella": US, "stark": US}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisFleet]:
    """us-east-1 has two gateways. umbrella fails over to eu-west-1 by itself, stark only by its operators' word."""
    folder = tmp_path_factory.mktemp("isthmus")
    more = "trusted_proxies: [127.0.0.1/32]\n"
    async with redis_fleet(folder, (US, SECOND, EU), TENANTS, more=more) as made:
        await made.write("umbrella", US, standby=(EU,), failover=Failover.ALL)
        await made.used("stark", (await made.write("stark", US, standby=(EU,))).version)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def regions(shared: RedisFleet) -> AsyncIterator[RedisFleet]:
    """Nothing is switched, before and after."""
    yield shared
    shared.heal()
    for region in (US, EU):
        for name in Name:
            await shared.maps[region].put_switch(name, Switch(value="", by="test", why="over", at_ms=0))
    for name in (US, SECOND, EU):
        await until(partial(serves, shared, name, "umbrella", US), f"umbrella is at home again, as {name} sees it")


async def switch(gateway: Gateway, *words: str, code: int = 0) -> dict[str, object]:
    return await asyncio.to_thread(partial(landbridge, gateway, "region", *words, *WHY, code=code))


async def serves(regions: RedisFleet, entry: str, tenant: str, region: str) -> bool:
    with contextlib.suppress(OSError, EOFError):
        return await regions.served_by(entry, tenant) == region
    return False


async def everywhere(
    regions: RedisFleet, tenant: str, region: str, entries: tuple[str, ...] = (US, SECOND, EU)
) -> None:
    for entry in entries:
        await until(partial(serves, regions, entry, tenant, region), f"{tenant} is served by {region} from {entry}")


@pytest.mark.faults
async def test_a_drain_needs_force_where_tenants_have_no_other_region(regions: RedisFleet) -> None:
    await switch(regions[US], "drain", code=3)
    assert "2 tenants have no other region" in await refused(regions[US], "drain")
    await everywhere(regions, "umbrella", US)


async def refused(gateway: Gateway, *words: str) -> str:
    """The audit log has what was refused, and why."""
    lines = (gateway.folder / "state" / "audit.log").read_text().splitlines()
    return lines[-1]


@pytest.mark.faults
@pytest.mark.timed
async def test_a_drained_region_sends_away_whom_another_takes_and_serves_the_rest(regions: RedisFleet) -> None:
    await switch(regions[US], "drain", "--force")
    began = time.monotonic()
    await everywhere(regions, "umbrella", EU, (US,))
    await everywhere(regions, "umbrella", EU, (SECOND, EU))
    hold("isthmus", "every gateway follows a drain", time.monotonic() - began, FOLLOW_S + 1.5)
    for entry in (US, SECOND, EU):
        assert await regions.served_by(entry, "acme") == US, "nobody else may serve it"
        assert await regions.served_by(entry, "stark") == US
    reply = await once(regions[US].admin, request("localhost", "/readyz"))
    assert reply.status == 200, "a load balancer must not replace what only shall have less to do"
    assert await regions[SECOND].metric("landbridge_region_switch", switch="drain") == 1
    assert await regions[US].metric("landbridge_cluster_share", cluster="app") == 0
    assert await regions[EU].metric("landbridge_peer_share", cluster="app", peer=US) == 0
    assert [row["switch"] for row in (await regions[SECOND].api("status"))["switches"]] == ["drain"]
    await switch(regions[US], "undrain")
    await comes_back_client_by_client(regions)


async def comes_back_client_by_client(regions: RedisFleet) -> None:
    """Each client goes home once; some while others are still away."""
    went: dict[str, list[str]] = {f"192.0.2.{number}": [] for number in range(30)}
    both = 0
    limit = time.monotonic() + 30.0
    while not all(regions_of and regions_of[-1] == US for regions_of in went.values()):
        assert time.monotonic() < limit, went
        served = set()
        for client, seen in went.items():
            reply = await regions.ask(US, "umbrella", lines=[f"X-Forwarded-For: {client}"])
            assert reply.status == 200
            seen.append(reply.value("x-region") or "")
            served.add(seen[-1])
        both += len(served) == 2
    assert both > 0, "they came back all at once"
    for client, seen in went.items():
        assert seen == sorted(seen), f"{client} was sent to and fro: {seen}"  # eu-west-1 before us-east-1


@pytest.mark.faults
async def test_a_region_in_failover_mode_serves_whom_it_stands_by_for(regions: RedisFleet) -> None:
    """An evacuation: eu-west-1 takes over, us-east-1 is drained. Whoever asks, wherever, is served."""
    await switch(regions[EU], "failover-mode", "on")
    await everywhere(regions, "stark", EU, (EU,))
    assert await regions.served_by(EU, "acme") == US, "it is no standby of acme's"
    assert await regions.served_by(US, "stark") == US, "home serves whom it gets"
    await switch(regions[US], "drain", "--force")
    await everywhere(regions, "stark", EU)
    await everywhere(regions, "umbrella", EU)
    for entry in (US, SECOND, EU):
        for method in ("GET", "POST"):
            reply = await regions.ask(entry, "stark", method=method)
            assert (reply.status, reply.value("x-region")) == (200, EU)
    await switch(regions[EU], "failover-mode", "on", "--all", code=3)
    await switch(regions[EU], "failover-mode", "on", "--all", "--force", "--for", "1h")
    await everywhere(regions, "acme", EU, (EU,))
    assert await regions.served_by(US, "acme") == US
    await switch(regions[US], "failover-mode", "on")  # both: nobody is sent to and fro
    for entry in (US, EU):
        for tenant in ("stark", "umbrella", "globex", "acme"):
            reply = await regions.ask(entry, tenant)
            assert reply.status == 200, (entry, tenant, reply.body)


@pytest.mark.faults
async def test_a_limit_refuses_first_what_failed_over(regions: RedisFleet) -> None:
    await switch(regions[EU], "failover-mode", "on")
    await switch(regions[EU], "max-traffic", "20/s")
    await everywhere(regions, "stark", EU, (EU,))
    async with LoadProcess(
        [
            Target(regions[EU].http, "globex.demo.test", EU, 10, 5),
            Target(regions[EU].http, "stark.demo.test", EU, 60, 5),
        ]
    ) as load:
        await load.goes_on(40)
    at_home = [what for number, what in load.failed if number == 0]
    over = [what for number, what in load.failed if number == 1]
    assert at_home == []
    assert len(over) > 40
    assert all("503" in what.reason and '"flag":"shed"' in what.reason for what in over[:1] or over)
    assert await regions[EU].metric("landbridge_max_traffic_refused_total", of="standby") >= len(over)


@pytest.mark.faults
async def test_switches_outlive_redis_and_control(regions: RedisFleet) -> None:
    """Set while the region's Redis is gone: it counts here, after a restart too, and everywhere once Redis is back."""
    server = regions.servers[US]
    server.kill()
    said = await switch(regions[US], "drain", "--force")
    assert said["region"] == US
    await everywhere(regions, "umbrella", EU, (US,))
    os.kill((await regions[US].pids())["control"], signal.SIGKILL)
    await until(partial(serves, regions, US, "umbrella", EU), "the next control knows it from disk")
    await until(partial(is_drained, regions[US]), "and says so")
    resume = await stop_control(regions[US])
    (worker,) = await asyncio.to_thread(workers_of, regions[US])
    os.kill(worker, signal.SIGKILL)
    await until(partial(serves, regions, US, "umbrella", EU), "a worker that hears no control knows it from disk")
    assert worker not in workers_of(regions[US])
    resume()
    server.start()
    await until(partial(is_drained, regions[SECOND]), "the other gateway of the region follows")
    server.cli("DEL", "{landbridge}:switches")  # as a Redis that lost its memory
    await until(partial(has_switches, regions), "what a Redis lost is written back")


def workers_of(gateway: Gateway) -> list[int]:
    """Their pids, whoever answers."""
    return [pid for pid in children(gateway.pid) if "gateway.proxy.main" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


async def is_drained(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError, EOFError, AssertionError):
        return await gateway.metric("landbridge_region_switch", switch="drain") == 1
    return False


async def has_switches(regions: RedisFleet) -> bool:
    return "drain" in await regions.maps[US].switches()


@pytest.mark.faults
async def test_a_region_that_cannot_be_reached_is_not_taken_for_dead(regions: RedisFleet) -> None:
    """us-east-1 lives and serves its clients; elsewhere only tenants with a rule for it are served by others."""
    regions.partition(US)

    async def cut(tenant: str, flag: str) -> bool:
        reply = await regions.ask(EU, tenant)
        return reply.status == 503 and flag_of(reply) == flag

    for tenant in ("acme", "stark"):
        await until(partial(cut, tenant, "region_unreachable"), f"{tenant} waits for its region, or for its operators")
    await everywhere(regions, "umbrella", EU, (EU,))
    for tenant in ("acme", "stark", "umbrella"):
        assert await regions.served_by(US, tenant) == US, "its own clients notice nothing"
    assert await regions.served_by(EU, "globex") == EU
    await switch(regions[EU], "failover-mode", "on")  # their word that it is gone
    await everywhere(regions, "stark", EU, (EU,))
    assert await cut("acme", "region_unreachable")
    await switch(regions[EU], "failover-mode", "off")
    regions.heal()
    for tenant in ("acme", "stark", "umbrella"):
        await everywhere(regions, tenant, US, (EU,))
