"""What may stand in Redis and must do no harm: nothing at all, garbage, records that point elsewhere, clocks that lie.

FAULTS 6 to 8 and 20 to 22 with the replicated map, under load. Two regions; what is broken is broken in US, or comes
to it from EU.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count

import pytest
import pytest_asyncio

from gateway.control.replication import keys
from gateway.core.placement import Failover, Placement, Version
from gateway.core.replication import decode_value, encode_body, encode_value
from tests.support import damage as damages
from tests.support.damage import Damage, cut_in_half, deleted, scribbled_from_the_start
from tests.support.fleet import EU, US, Gateway, flag_of, landbridge, until
from tests.support.load_process import LoadProcess, Target
from tests.support.measured import hold
from tests.support.origin import Origin
from tests.support.redis_fleet import RedisFleet, redis_fleet
from tests.support.replicated import Versions
from tests.support.valkey import Valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY = 40
"""Enough for a loss of ten that is not all, and is more than `loss_guard`."""
HOMES = {"acme": US, "globex": EU, "victim": US} | {f"t{n}": (US, EU)[n % 2] for n in range(MANY)}
HOUR_MS = 3_600_000
CONVERGED_S = 5.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisFleet]:
    async with redis_fleet(tmp_path_factory.mktemp("records"), (US, EU), HOMES) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(fleet: RedisFleet) -> AsyncIterator[LoadProcess]:
    """200 requests a second into US: three of four for a tenant of its own, one for EU's."""
    port = fleet[US].http
    targets = [Target(port, "acme.demo.test", US, 150.0, 8), Target(port, "globex.demo.test", EU, 50.0, 4)]
    async with LoadProcess(targets) as load:
        yield load


@pytest_asyncio.fixture(loop_scope="module")
async def load(running: LoadProcess) -> AsyncIterator[LoadProcess]:
    """The load, of which nothing may fail or go to the wrong region while a test runs."""
    began = time.monotonic()
    yield running
    await running.goes_on(1)
    assert running.wrong(began) == [], str(running)


@pytest.fixture(scope="module")
def fresh() -> Iterator[str]:
    """Numbers that make a record another one than before."""
    return map(str, count())


def metric_is(gateway: Gateway, name: str, value: float, **labels: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        with contextlib.suppress(OSError, EOFError):
            return await gateway.metric(name, **labels) == value
        return False

    return holds


async def routed(fleet: RedisFleet, entry: str = US) -> dict[str, str | None]:
    """Who serves each tenant, by new connections."""
    return {tenant: await fleet.served_by(entry, tenant) for tenant in HOMES}


# --- FAULTS 6: a map that vanishes


PENDING = "landbridge_map_loss_guard_pending"


@pytest_asyncio.fixture(loop_scope="module")
async def alone(fleet: RedisFleet) -> AsyncIterator[None]:
    """US's Redis cannot be filled again from EU's."""
    fleet.links[US, EU].cut()
    yield
    fleet.heal()
    await until(fleet.alike, "both maps hold the same again")


async def test_flushall_changes_nothing_until_an_operator_restores(
    fleet: RedisFleet, load: LoadProcess, alone: None
) -> None:
    gateway, began = fleet[US], time.monotonic()
    before = {tenant: await fleet.holds(US, tenant) for tenant in HOMES}
    fleet.servers[US].cli("FLUSHALL")
    await until(metric_is(gateway, PENDING, 1), "the alarm is up")
    assert await routed(fleet) == HOMES
    assert {tenant: await fleet.holds(US, tenant) for tenant in HOMES} == before
    await load.goes_on(20)
    status = await gateway.api("map")
    assert status["loss_guard_pending"]
    assert (status["waiting"]["removes"], status["waiting"]["of"]) == (len(HOMES), len(HOMES))
    await asyncio.to_thread(landbridge, gateway, "map", "confirm", "--restore")
    await until(metric_is(gateway, PENDING, 0), "nothing waits any more")
    values = await fleet.maps[US].get(list(HOMES))
    assert [decode_value(t, v or b"").version for t, v in zip(HOMES, values, strict=True)] == list(before.values())
    assert await routed(fleet) == HOMES
    hold("6", "FLUSHALL: misrouted or failed requests", len(load.wrong(began)), 0, "")


async def test_flushall_is_undone_by_the_other_region(fleet: RedisFleet, load: LoadProcess) -> None:
    """No operator is needed where a peer has it all."""
    fleet.servers[US].cli("FLUSHALL")
    async with Versions(fleet):

        async def whole() -> bool:
            return (await fleet.maps[US].head()).records == len(HOMES) and await fleet.alike()

        await until(whole, "US's Redis holds everything again")
        await until(metric_is(fleet[US], PENDING, 0), "nothing waits")
        written = await fleet.write("acme", US, labels={"after": "flushall"})
        await fleet.used("acme", written.version)


async def test_a_redis_that_is_swapped_for_an_empty_one_is_filled_again(fleet: RedisFleet, load: LoadProcess) -> None:
    first = fleet.servers[US]
    empty = await asyncio.to_thread(Valkey, first.directory.with_name("valkey.empty"))
    async with Versions(fleet):
        await fleet.turn(US, empty)
        await until(fleet.alike, "the new one holds everything")
        await until(metric_is(fleet[US], PENDING, 0), "nothing waits")
        written = await fleet.write("acme", US, labels={"in": "another server"})
        await fleet.used("acme", written.version)
    first.kill()


async def test_many_entries_that_vanish_stay_until_an_operator_confirms(
    fleet: RedisFleet, load: LoadProcess, alone: None
) -> None:
    gateway, gone = fleet[US], [f"t{n}" for n in range(MANY)][:12]
    values = dict(zip(gone, await fleet.maps[US].get(gone), strict=True))
    fleet.servers[US].cli("HDEL", keys.TENANTS, *gone)
    await until(metric_is(gateway, PENDING, 1), "the alarm is up")
    assert await routed(fleet) == HOMES
    await load.goes_on(20)
    waiting = (await gateway.api("map"))["waiting"]
    assert (waiting["removes"], waiting["of"]) == (12, len(HOMES))
    await asyncio.to_thread(landbridge, gateway, "map", "confirm", "--change", waiting["change"])
    await until(metric_is(gateway, PENDING, 0), "nothing waits any more")
    assert {(await fleet.ask(US, tenant)).status for tenant in gone} == {404}
    assert await fleet.served_by(US, "victim") == US
    for tenant, value in values.items():  # as it was, for whoever comes next
        fleet.scribble(US, tenant, value or b"")
    for tenant, value in values.items():
        await fleet.used(tenant, decode_value(tenant, value or b"").version, [US])


async def test_a_few_entries_that_vanish_are_written_back(fleet: RedisFleet, load: LoadProcess, alone: None) -> None:
    fleet.servers[US].cli("HDEL", keys.TENANTS, "t0", "t1")

    async def back() -> bool:
        return None not in await fleet.maps[US].get(["t0", "t1"])

    await until(back, "they are back")
    assert await fleet.served_by(US, "t1") == EU


# --- FAULTS 7: records that are none


def newer(version: Version) -> Version:
    return Version(version.epoch + 1, version.hlc + 1, EU)


def valid(tenant: str, before: Version, **more: object) -> bytes:
    placement = Placement(tenant=tenant, **({"home": EU} | more))  # type: ignore[arg-type]
    return encode_value(tenant, newer(before), [before], encode_body(placement))


def corrupt(tenant: str, before: Version) -> bytes:
    return valid(tenant, before).replace(b'"home":"eu', b'"home":"us')


def truncated(tenant: str, before: Version) -> bytes:
    return valid(tenant, before)[:-5]


def nonsense(tenant: str, before: Version) -> bytes:
    return random.Random(7).randbytes(300)


def no_json(tenant: str, before: Version) -> bytes:
    return encode_value(tenant, newer(before), [before], b"home: eu-west-1")


def oversized(tenant: str, before: Version) -> bytes:
    return valid(tenant, before, labels={"long": "x" * 200_000})


def unknown_region(tenant: str, before: Version) -> bytes:
    return valid(tenant, before, home="mars-north-1", standby=(EU,))


def older(tenant: str, before: Version) -> bytes:
    """A good record, but for being an old one."""
    version = Version(before.epoch, before.hlc - HOUR_MS, EU)
    return encode_value(tenant, version, [], encode_body(Placement(tenant=tenant, home=EU)))


BAD = [corrupt, truncated, nonsense, no_json, oversized]
REASONS = {oversized: "oversized", unknown_region: "unknown_region", older: "older"}


@pytest.mark.parametrize("make", BAD)
async def test_a_bad_entry_of_a_peers_log_costs_its_tenant_nothing(
    fleet: RedisFleet, load: LoadProcess, make: Callable[[str, Version], bytes], fresh: Iterator[str]
) -> None:
    """It is counted and kept as a dead letter; what follows it in the log is used; a newer record clears it."""
    gateway, before = fleet[US], await fleet.holds(US, "victim")
    bad = await gateway.metric("landbridge_map_bad_values_total", peer=EU)
    fleet.forge(EU, "victim", make("victim", before))
    written = await fleet.write("globex", EU, labels={"n": next(fresh)})
    await fleet.used("globex", written.version, [US])
    assert await fleet.holds(US, "victim") == before
    assert await fleet.served_by(US, "victim") == US
    assert await gateway.metric("landbridge_map_bad_values_total", peer=EU) == bad + 1
    letters = await fleet.maps[US].letters()
    assert (list(letters), letters["victim"].source) == (["victim"], EU)
    await until(metric_is(gateway, "landbridge_map_dead_letters", 1), "the letter is shown")
    written = await fleet.write("victim", US, labels={"n": next(fresh)})
    await fleet.used("victim", written.version)
    assert await fleet.maps[US].letters() == {}
    print(f"FAULTS 7: {make.__name__} in a peer's log: only its tenant keeps its route, counted once")


@pytest.mark.parametrize("make", [*BAD, unknown_region, older])
async def test_a_bad_entry_of_the_own_map_costs_its_tenant_nothing(
    fleet: RedisFleet, load: LoadProcess, make: Callable[[str, Version], bytes], fresh: Iterator[str]
) -> None:
    gateway, before = fleet[US], await fleet.holds(US, "victim")
    kept = (await fleet.maps[US].get(["victim"]))[0]
    assert kept is not None
    reason = REASONS.get(make, "malformed")
    rejected = await gateway.metric("landbridge_map_rejected_total", reason=reason)
    fleet.scribble(US, "victim", make("victim", before))
    written = await fleet.write("acme", US, labels={"n": next(fresh)})
    await fleet.used("acme", written.version, [US])
    assert await fleet.served_by(US, "victim") == US
    assert await gateway.metric("landbridge_map_rejected_total", reason=reason) == rejected + 1
    assert await gateway.metric("landbridge_map_stale") == 0
    if make is not unknown_region:
        assert await fleet.holds(US, "victim") == before
        fleet.servers[US].cli("HSET", keys.TENANTS, "victim", kept)
    written = await fleet.write("victim", US, home=US, standby=(), labels={"n": next(fresh)})
    await fleet.used("victim", written.version, [US])
    assert await fleet.served_by(US, "victim") == US
    print(f"FAULTS 7: {make.__name__} in the own map: only its tenant keeps its route, counted once")


async def test_a_record_of_a_peer_that_names_an_unknown_region_waits(
    fleet: RedisFleet, load: LoadProcess, fresh: Iterator[str]
) -> None:
    """It is a record like any other to the replicator, and not routable to the gateway: the last routable one stays."""
    gateway, before = fleet[US], await fleet.holds(US, "victim")
    rejected = await gateway.metric("landbridge_map_rejected_total", reason="unknown_region")
    fleet.forge(EU, "victim", unknown_region("victim", before))
    written = await fleet.write("globex", EU, labels={"n": next(fresh)})
    await fleet.used("globex", written.version, [US])
    assert await fleet.served_by(US, "victim") == US
    assert await gateway.metric("landbridge_map_rejected_total", reason="unknown_region") == rejected + 1
    written = await fleet.write("victim", US, home=US, standby=(), labels={"n": next(fresh)})
    await fleet.used("victim", written.version)
    assert await fleet.served_by(US, "victim") == US


# --- FAULTS 8: a poisoned map


async def test_nobody_outside_the_configured_regions_is_ever_dialled(fleet: RedisFleet, load: LoadProcess) -> None:
    """Whatever a record says, gateways connect to configured addresses only: a recorder where it points hears none."""
    recorder = await Origin().start()
    there = f"http://127.0.0.1:{recorder.port}"
    poisoned = {
        "home": Placement(tenant="p", home="mars-north-1", public={"mars-north-1": there}),
        "name": Placement(tenant="p", home="localhost", public={"localhost": there}),
        "standby": Placement(tenant="p", home=EU, standby=("mars-north-1", US), failover=Failover.ALL),
        "public": Placement(tenant="p", home=EU, public={EU: there, US: there}),
        "cluster": Placement(tenant="p", home=US, cluster="mars"),
        "hosts": Placement(tenant="p", home="mars-north-1", hosts=(f"localhost:{recorder.port}", "127.0.0.1")),
    }
    html = ["Accept: text/html", "Sec-Fetch-Mode: navigate"]
    try:
        for name, record in poisoned.items():
            for tenant in (f"p{name}", "victim"):
                version = newer(await fleet.holds(US, tenant))
                fleet.scribble(US, tenant, encode_value(tenant, version, [], encode_body(record)))
        marker = await fleet.write("acme", US, labels={"n": "poisoned"})
        await fleet.used("acme", marker.version, [US])
        statuses: dict[str, set[int]] = {}
        for name in poisoned:
            for lines in ([], html):
                for method in ("GET", "POST"):
                    reply = await fleet.ask(US, f"p{name}", method=method, lines=lines)
                    statuses.setdefault(name, set()).add(reply.status)
                    assert (await fleet.ask(US, "victim", method=method, lines=lines)).status < 600
        hold("8", f"connects to where a poisoned map points ({statuses})", recorder.connections, 0, "")
    finally:
        await recorder.stop()
        written = await fleet.write("victim", US, home=US, standby=(), public={}, hosts=(), cluster=None)
        await fleet.used("victim", written.version, [US])
    assert await fleet.served_by(US, "victim") == US


# --- FAULTS 20: a bad reload


BAD_SETTINGS = {
    "url": ('url: "redis://', 'url: "redis:/', "tenant_map.redis.url"),
    "source": ("source: redis", "source: rediss", "tenant_map.source"),
    "peers": ("peers: {", 'peers: {"mars-north-1": "redis://127.0.0.1:1/0", ', "tenant_map.redis.peers.mars-north-1"),
    "unknown key": ("redis: {url", "redis: {urls: [], url", "tenant_map.redis.urls"),
    "duration": ("source: redis", "partition_after: soon, source: redis", "tenant_map.partition_after"),
}


async def test_bad_settings_of_the_map_change_nothing_and_are_named(fleet: RedisFleet, load: LoadProcess) -> None:
    gateway = fleet[US]
    good, pids = gateway.config.read_text(), await gateway.pids()
    labels = {"source": "config", "result": "refused"}
    try:
        for case, (old, new, path) in BAD_SETTINGS.items():
            bad = good.replace(old, new, 1)
            line = next(n for n, (a, b) in enumerate(zip(good.split("\n"), bad.split("\n"), strict=True), 1) if a != b)
            refused = await gateway.metric("landbridge_config_reloads_total", **labels)
            gateway.config.write_text(bad)
            gateway.signal(signal.SIGHUP)
            await until(
                metric_is(gateway, "landbridge_config_reloads_total", refused + 1, **labels), f"{case} is refused"
            )
            config = (await gateway.api("status"))["config"]
            assert (config["running"], config["last_reload"]["result"]) == ("last-good", "refused")
            problem = config["last_reload"]["problems"][0]
            assert f"gateway.yaml:{line}:" in problem
            assert path in problem
            assert problem in gateway.log()
            written = await fleet.write("acme", US, labels={"case": case})
            await fleet.used("acme", written.version)
            print(f"FAULTS 20: {problem}")
    finally:
        gateway.config.write_text(good)
        gateway.signal(signal.SIGHUP)

    async def is_back() -> bool:
        return bool((await gateway.api("status"))["config"]["running"] == "file")

    await until(is_back, "the good configuration runs")
    assert await gateway.pids() == pids, "nobody was restarted"


# --- FAULTS 21: damage on disk


@pytest.mark.parametrize("with_redis", [True, False], ids=["redis", "no redis"])
@pytest.mark.parametrize("damage", [cut_in_half, scribbled_from_the_start])
async def test_a_map_file_damaged_under_workers_is_rebuilt(fleet: RedisFleet, damage: Damage, with_redis: bool) -> None:
    """Without Redis from the snapshot. Nobody is misrouted, and nothing is started in a loop."""
    gateway, state = fleet[US], fleet[US].folder / "state"
    await until(metric_is(gateway, "landbridge_map_snapshot_behind", 0), "the snapshot is what the map is")
    generation = await gateway.metric("landbridge_map_generation")
    restarts = await gateway.metric("landbridge_worker_restarts_total")
    if not with_redis:
        fleet.own[US].cut()
    try:
        damage(damages.map_file(state))

        async def rebuilt() -> bool:
            try:
                for tenant in HOMES:
                    reply = await fleet.ask(US, tenant)
                    assert reply.value("x-region") == HOMES[tenant] or flag_of(reply) == "map_unavailable"
                return await gateway.metric("landbridge_map_generation") > generation
            except (OSError, EOFError):  # control, or the worker, died of it
                return False

        await until(rebuilt, "the map is rebuilt")
        await until(gateway.ready, "everything serves again")
        assert await routed(fleet) == HOMES
        assert await gateway.metric("landbridge_worker_restarts_total") - restarts <= 2
    finally:
        fleet.heal()
    await until(metric_is(gateway, "landbridge_map_stale", 0), "it follows its Redis again")
    written = await fleet.write("acme", US, labels={"after": damage.__name__, "redis": str(with_redis)})
    await fleet.used("acme", written.version)


async def test_with_map_and_snapshot_gone_redis_has_it_all(fleet: RedisFleet) -> None:
    gateway, state = fleet[US], fleet[US].folder / "state"
    await gateway.stop()
    deleted(damages.map_file(state))
    cut_in_half(damages.snapshot_file(state))
    gateway.start()
    await until(gateway.ready, "it is ready")
    assert await routed(fleet) == HOMES
    assert (await gateway.api("status"))["restarts"]["worker"] == 0


async def test_a_full_disk_stops_changes_and_no_request(fleet: RedisFleet, load: LoadProcess) -> None:
    """Control's files can grow no more: the map stays, which is said, and goes on once there is room."""
    gateway, state = fleet[US], fleet[US].folder / "state"
    pids = await gateway.pids()
    before = await fleet.holds(US, "acme")
    await until(metric_is(gateway, "landbridge_map_snapshot_behind", 0), "the snapshot is what the map is")
    limit = resource.prlimit(pids["control"], resource.RLIMIT_FSIZE)
    snapshot, seen = damages.snapshot_file(state).read_bytes(), len(gateway.log())
    room = max(damages.map_file(state).stat().st_size, (gateway.folder / "log").stat().st_size + 20_000)
    resource.prlimit(pids["control"], resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        written = [await fleet.write(f"t{n}", US, labels={"long": "x" * 100_000}) for n in range(0, 8, 2)]
        written.append(await fleet.write("acme", US, labels={"disk": "full"}))
        await until(metric_is(gateway, "landbridge_map_stale", 1), "the map counts as stale")
        assert "cannot be written and stays as it was" in gateway.log()[seen:]
        await load.goes_on(40)
        assert await fleet.holds(US, "acme") == before
        assert await routed(fleet) == HOMES
        assert damages.snapshot_file(state).read_bytes() == snapshot, "the one before is intact"
    finally:
        resource.prlimit(pids["control"], resource.RLIMIT_FSIZE, limit)
    await fleet.used("acme", written[-1].version)
    await until(metric_is(gateway, "landbridge_map_stale", 0), "it follows again")
    await until(metric_is(gateway, "landbridge_map_snapshot_behind", 0), "the snapshot is written")
    assert (await gateway.pids())["workers"] == pids["workers"], "no worker died"


# --- FAULTS 22: clocks


async def test_a_region_an_hour_ahead_is_alarmed_and_merged_and_its_clock_may_step_back(
    fleet: RedisFleet, load: LoadProcess
) -> None:
    """Versions grow everywhere, whoever's clock is where: the stored clock is what a server's own an hour ahead gave.

    EU's real clock is then an hour behind what it wrote by: as after a step back.
    """
    gateway = fleet[US]
    far = await gateway.metric("landbridge_map_far_ahead_total")
    async with Versions(fleet):
        now = (await fleet.maps[EU].head()).clock_ms
        fleet.servers[EU].cli("HSET", keys.META, "hlc", str(now + HOUR_MS))
        ahead = await fleet.write("globex", EU, labels={"clock": "ahead"})
        assert ahead.version.hlc > now + HOUR_MS
        began = time.monotonic()
        await fleet.used("globex", ahead.version)
        assert await gateway.metric("landbridge_map_far_ahead_total") >= far + 1
        assert "ahead of the clock here" in gateway.log()
        behind = await fleet.write("globex", US, labels={"clock": "real"})
        assert behind.version > ahead.version, "a write that replaces it wins, whatever the clock of who makes it"
        back = await fleet.write("globex", EU, labels={"clock": "back"}) if await even(fleet, behind.version) else None
        assert back is not None
        assert back.version > behind.version
        await fleet.used("globex", back.version)
        took = time.monotonic() - began
    hold("22", "clock of a region an hour ahead, then back: three writes are used everywhere", took, CONVERGED_S)
    ours, theirs = [await fleet.record("globex", region) for region in (US, EU)]
    assert ours == theirs
    assert await gateway.metric("landbridge_map_conflicts_total") == 0


async def even(fleet: RedisFleet, version: Version) -> bool:
    """Wait until EU has this version of globex."""

    async def there() -> bool:
        record = await fleet.record("globex", EU)
        return record is not None and record.version >= version

    return await until(there, "EU has it")
