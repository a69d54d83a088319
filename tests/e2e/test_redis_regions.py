"""Three regions, two gateways in one of them: failovers of a Redis, deaths of replicators, a partition that heals.

FAULTS 5, and what else the replicated map promises. Scaled here, in full in `make faults`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import pytest_asyncio

from gateway.control.replication import keys
from gateway.control.replication.region_map import FeedEntry
from gateway.core.placement import Partition, State
from tests.support.fleet import AP, EU, US, flag_of, until
from tests.support.links import Link
from tests.support.load_process import LoadProcess, Target
from tests.support.measured import hold
from tests.support.pace import ALLOWANCE
from tests.support.redis_fleet import RedisFleet, redis_fleet
from tests.support.replicated import Versions, Writing
from tests.support.valkey import Valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND = f"{US}/2"
WRITTEN = [f"t{n}" for n in range(400 if ALLOWANCE == 1 else 60)]
"""Enough of them that nobody's history, 20 records long, forgets what a test has written."""
HOMES = {"acme": US, "globex": EU, "initech": AP, "lively": US, "doomed": US, "readable": EU, "refused": EU} | {
    tenant: (US, EU, AP)[n % 3] for n, tenant in enumerate(WRITTEN)
}
CONVERGED_S = 5.0
TAKEOVER_S = 5.0
PARTITION_AFTER_S = 1.5
SKEW_MS = 2000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisFleet]:
    folder, more = tmp_path_factory.mktemp("regions"), f", partition_after: {PARTITION_AFTER_S}s"
    async with redis_fleet(folder, (US, SECOND, EU, AP), HOMES, more_map=more) as made:
        await until(made.converged, "every region holds the first map")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(fleet: RedisFleet) -> AsyncIterator[LoadProcess]:
    """200 requests a second in all, into every gateway, for tenants that nobody moves."""
    names = (US, SECOND, EU, AP)
    tenants = ("acme", "globex", "initech", "acme")
    targets = [
        Target(fleet[name].http, f"{tenant}.demo.test", HOMES[tenant], 50.0, 4)
        for name, tenant in zip(names, tenants, strict=True)
    ]
    async with LoadProcess(targets) as load:
        yield load


@pytest_asyncio.fixture(loop_scope="module")
async def load(running: LoadProcess) -> AsyncIterator[LoadProcess]:
    """The load, of which nothing may fail or go to the wrong region while a test runs."""
    began = time.monotonic()
    yield running
    await running.goes_on(1)
    assert running.wrong(began) == [], str(running)


@pytest.fixture(autouse=True)
def afresh(fleet: RedisFleet) -> None:
    fleet.acknowledged.clear()


async def equal(fleet: RedisFleet) -> bool:
    """Whether all regions hold the same, and every gateway's store what its region holds."""
    if not await fleet.converged():
        return False
    digests = {(await fleet[name].api("map"))["digest"] for name in fleet.gateways}
    return len(digests) == 1


async def settled(fleet: RedisFleet, since: float) -> float:
    """Wait until all is equal; seconds since `since`."""
    await until(partial(equal, fleet), "all maps hold the same")
    return time.monotonic() - since


# --- FAULTS 5: failover


async def failover_to_a_lagging_replica(fleet: RedisFleet, writes: int) -> float:
    """EU's Valkey dies, and a replica takes its place that never heard of the last `writes`; seconds to converge."""
    first = fleet.servers[EU]
    link = Link(first.port)
    replica = await asyncio.to_thread(Valkey, first.directory.with_name(f"valkey.{EU}.{first.port}"))
    first.cli("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    replica.cli("REPLICAOF", "127.0.0.1", str(link.port))

    async def follows() -> bool:
        return b"master_link_status:up" in replica.cli("INFO", "replication")

    await until(follows, "the replica follows")
    async with Writing(fleet, WRITTEN, (US, EU, AP)) as writing:
        await writing.goes_on(60)
        link.cut()
        known = (await fleet.maps[EU].head()).log.last
        await writing.goes_on(writes)
        lag = (await fleet.maps[EU].head()).log.last - known
    first.kill()
    replica.cli("REPLICAOF", "NO", "ONE")
    await fleet.turn(EU, replica)
    turned = time.monotonic()
    await link.stop()
    took = await settled(fleet, turned)
    print(f"failover to a replica that lacked {lag} writes of its own region; {writing}")
    assert lag > 0
    async with Writing(fleet, WRITTEN, (US, EU, AP)) as writing:
        await writing.goes_on(60)
    await settled(fleet, turned)
    return took


async def rollback(fleet: RedisFleet, writes: int) -> float:
    """EU's Valkey comes back with an older copy of its directory, as from a backup, and nobody stops writing for it.

    Seconds to converge, from the last write on.
    """
    server = fleet.servers[EU]
    copy = server.directory.with_name("backup")
    await asyncio.to_thread(shutil.copytree, server.directory, copy)
    async with Writing(fleet, WRITTEN, (US, EU, AP)) as writing:
        await writing.goes_on(writes)
        server.kill()
        await asyncio.to_thread(shutil.rmtree, server.directory)
        await asyncio.to_thread(shutil.move, copy, server.directory)
        await asyncio.to_thread(server.start)
        await writing.goes_on(60)
    print(f"rollback under writes: {writing}")
    return await settled(fleet, time.monotonic())


@pytest.mark.timed
@pytest.mark.parametrize("fail", [failover_to_a_lagging_replica, rollback])
async def test_a_failover_loses_nothing_and_no_version_goes_back(
    fleet: RedisFleet, load: LoadProcess, fail: Callable[[RedisFleet, int], Awaitable[float]]
) -> None:
    async with Versions(fleet) as versions:
        took = await fail(fleet, 90)
    hold("5", f"{fail.__name__}: converged", took, CONVERGED_S)
    hold("5", f"{fail.__name__}: versions that went back in {versions.samples} samples", len(versions.gone_back), 0, "")
    lost = await fleet.lost()
    hold("5", f"{fail.__name__}: acknowledged writes neither current nor in history", len(lost), 0, "")
    assert lost == []


@pytest.mark.faults
@pytest.mark.parametrize("fail", [failover_to_a_lagging_replica, rollback])
async def test_a_failover_loses_nothing_of_thousands(
    fleet: RedisFleet, load: LoadProcess, fail: Callable[[RedisFleet, int], Awaitable[float]]
) -> None:
    async with Versions(fleet) as versions:
        took = await fail(fleet, 2000)
    hold("5", f"{fail.__name__}, 2000 writes: converged", took, CONVERGED_S)
    hold("5", f"{fail.__name__}: versions that went back in {versions.samples} samples", len(versions.gone_back), 0, "")
    hold("5", f"{fail.__name__}: acknowledged writes neither current nor in history", len(await fleet.lost()), 0, "")


# --- the lease of a region's replicator


async def holder(fleet: RedisFleet) -> int:
    """The pid of the replicator that holds the lease of US; its token says it."""

    async def held() -> int:
        token = fleet.servers[US].cli("GET", keys.LEASE).split(b"\r\n")[1]
        return int(token.split(b".")[-2]) if token else 0

    pid = await until(held, "a replicator of US holds the lease")
    assert pid in [(await fleet[name].pids())["replicator"] for name in (US, SECOND)]
    return pid


@pytest.mark.timed
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_another_replicator_takes_over_and_skips_and_repeats_nothing(
    fleet: RedisFleet, load: LoadProcess, how: signal.Signals
) -> None:
    began_at = (await fleet.maps[US].head()).feed.last
    async with Versions(fleet), Writing(fleet, WRITTEN, (EU,)) as writing:
        await writing.goes_on(20)
        victim = await holder(fleet)
        os.kill(victim, how)
        began = time.monotonic()
        try:
            marker = await fleet.write("globex", EU, labels={"during": how.name})
            await fleet.used("globex", marker.version, [US, SECOND])
            took = time.monotonic() - began
        finally:
            if how is signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)
        await writing.goes_on(50)
    hold("lease", f"holder of the lease {how.name}: a write of a peer is used in its region again", took, TAKEOVER_S)
    await settled(fleet, time.monotonic())
    origins = [e.origin[1] for e in await feed_of(fleet, began_at) if e.origin is not None and e.origin[0] == EU]
    seqs = [offset.seq for offset in origins]
    assert len({offset.log_id for offset in origins}) == 1
    assert seqs == sorted(set(seqs)), "nothing was applied twice, or out of order"
    assert set(range(seqs[0], seqs[-1] + 1)) == set(seqs), "nothing was skipped"
    assert await fleet.lost() == []
    print(f"{how.name}: {len(seqs)} entries of {EU} once each, in order")


async def feed_of(fleet: RedisFleet, after: int) -> list[FeedEntry]:
    """What US's feed holds beyond `after`."""
    entries: list[FeedEntry] = []
    while page := await fleet.maps[US].read_feed(after, 1000, 0):
        entries += page
        after = page[-1].seq
        if after >= (await fleet.maps[US].head()).feed.last:
            break
    return entries


# --- a partition


async def status_of(fleet: RedisFleet, entry: str, tenant: str, method: str = "GET") -> tuple[int, str]:
    reply = await fleet.ask(entry, tenant, method=method)
    return reply.status, "" if reply.status == 200 else flag_of(reply)


async def partition(fleet: RedisFleet, seconds: float) -> None:
    """EU is cut off from the others while both sides write, also to the same tenants; then it is not."""
    for tenant, policy in (("readable", Partition.READ_ONLY), ("refused", Partition.REFUSE)):
        written = await fleet.write(tenant, EU, partition=policy)
        await fleet.used(tenant, written.version)
    conflicts = {name: await fleet[name].metric("landbridge_map_conflicts_total") for name in fleet.gateways}
    seen = {name: len(fleet[name].log()) for name in fleet.gateways}
    fleet.partition(EU)
    began = time.monotonic()
    async with Writing(fleet, WRITTEN, (US, EU, AP), rate=30.0):
        for region in (US, EU):
            await fleet.write("lively", region, labels={"written in": region})
        await fleet.write("doomed", EU, labels={"written in": EU})
        deleted = await fleet.delete("doomed", US)
        await fleet.used("doomed", deleted.version, [US, SECOND, AP])
        await fleet.write("doomed", EU, labels={"written in": EU, "again": "yes"})

        async def isolated() -> bool:
            return await status_of(fleet, EU, "refused") == (503, "partitioned")

        await until(isolated, "EU counts as cut off")
        hold("partition", "partition_after 1.5 s: EU refuses after", time.monotonic() - began, PARTITION_AFTER_S + 2.0)
        assert await status_of(fleet, EU, "refused", "POST") == (503, "partitioned")
        assert await status_of(fleet, EU, "readable") == (200, "")
        assert await status_of(fleet, EU, "readable", "POST") == (503, "partitioned")
        assert await status_of(fleet, EU, "globex", "POST") == (200, "")
        assert await status_of(fleet, US, "acme", "POST") == (200, "")
        assert await fleet[US].metric("landbridge_map_lag_seconds", peer=EU) > 0.5
        assert await fleet[EU].metric("landbridge_isolated") == 1
        assert not await fleet.converged()
        while time.monotonic() < began + seconds:
            await asyncio.sleep(0.1)
    fleet.heal()
    took = await settled(fleet, time.monotonic())
    hold("partition", f"of {time.monotonic() - began - took:.1f} s heals: identical everywhere", took, CONVERGED_S)

    for region in fleet.regions:
        record = await fleet.record("doomed", region)
        assert record is not None
        assert record.state is State.DELETED, "the deletion has the greater epoch"
    assert {name: (await fleet.ask(name, "doomed")).status for name in fleet.gateways} == dict.fromkeys(
        fleet.gateways, 404
    )
    counted = sum([await fleet[name].metric("landbridge_map_conflicts_total") for name in fleet.gateways])
    counted -= sum(conflicts.values())
    named = [
        line
        for name in fleet.gateways
        for line in fleet[name].log()[seen[name] :].splitlines()
        if "conflict over tenant" in line
    ]
    assert counted >= 2
    for tenant in ("lively", "doomed"):
        assert any(f"tenant {tenant} with" in line for line in named), named
    lost = await fleet.lost()
    hold("partition", f"{counted:g} conflicts, {len(named)} named: acknowledged writes lost", len(lost), 0, "")
    assert lost == []

    async def together() -> bool:
        answers = [await status_of(fleet, EU, tenant, "POST") for tenant in ("readable", "refused")]
        return answers == [(200, ""), (200, "")]

    await until(together, "nothing is refused any more")
    for tenant, home in (("doomed", US), ("lively", US)):
        await fleet.write(tenant, home, state=State.ACTIVE, labels={})


@pytest.mark.timed
async def test_a_partition_heals_to_identical_maps(fleet: RedisFleet) -> None:
    async with Versions(fleet):
        await partition(fleet, 3.0)


@pytest.mark.faults
async def test_a_partition_of_a_minute_heals_to_identical_maps(fleet: RedisFleet) -> None:
    async with Versions(fleet):
        await partition(fleet, 60.0)
