"""The function in Redis against a real Valkey: what it writes, what it refuses, and that it judges as the core does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.control.replication import keys
from gateway.control.replication.region_map import (
    FeedEntry,
    GatewayRow,
    LeaseLost,
    Letter,
    MapUnavailable,
    Merged,
    PeerState,
    Refused,
    RegionMap,
    Write,
    Written,
    WrongRegion,
)
from gateway.core.placement import Placement, State, Version
from gateway.core.replication import (
    FAILOVER_MARGIN_MS,
    TAKES,
    Offset,
    Outcome,
    Stamp,
    Step,
    check_value,
    decode_value,
    encode_body,
    encode_value,
    judge,
    stamp_of,
)
from tests.support.valkey import Valkey

US, EU = "us-east-1", "eu-west-1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey"), durable=False) as valkey:
        yield valkey


@pytest.fixture
async def us(server: Valkey) -> AsyncIterator[RegionMap]:
    server.cli("FLUSHALL")
    made = RegionMap(server.url, US)
    yield made
    await made.close()


def body(home: str = US, **more: object) -> bytes:
    return encode_body(Placement(tenant="any", home=home, **more))  # type: ignore[arg-type]


async def written(region_map: RegionMap, tenant: str, expected: Version | None = None, **more: object) -> Version:
    epoch = 1 if expected is None else expected.epoch
    done = (await region_map.write([Write(tenant, expected, epoch, body(**more))]))[0]  # type: ignore[arg-type]
    assert isinstance(done, Written)
    return done.version


async def current(region_map: RegionMap, tenant: str) -> bytes:
    value = (await region_map.get([tenant]))[0]
    assert value is not None
    return value


# --- write


async def test_a_write_is_in_the_map_the_log_and_the_feed(us: RegionMap) -> None:
    version = await written(us, "acme", labels={"plan": "gold"})
    value = await current(us, "acme")
    assert check_value("acme", value) == Stamp(version, (), check_value("acme", value).sum)
    assert decode_value("acme", value).labels == {"plan": "gold"}
    head = await us.head()
    assert (head.log.first, head.log.last, head.feed.last, head.records) == (1, 1, 1, 1)
    assert await us.read_log(0, 10, 0) == [(1, "acme", value)]
    assert await us.read_feed(0, 10, 0) == [FeedEntry(1, "acme", value, (US, Offset(head.log_id, 1)))]
    assert version.region == US
    assert 0 <= version.hlc - head.clock_ms + 5000 <= 10_000


async def test_a_write_names_what_it_replaces_and_history_keeps_it(us: RegionMap) -> None:
    versions = [await written(us, "acme")]
    for number in range(12):
        versions.append(await written(us, "acme", versions[-1], labels={"n": str(number)}))
    stamp = stamp_of(await current(us, "acme"))
    assert stamp.version == versions[-1]
    assert stamp.replaces == tuple(reversed(versions[:-1]))[:8]
    history = await us.history("acme")
    assert [stamp_of(entry.value).version for entry in history] == list(reversed(versions[:-1]))
    assert [entry.by for entry in history] == list(reversed(versions[1:]))


async def test_history_is_bounded(us: RegionMap) -> None:
    version = await written(us, "acme")
    for _ in range(60):
        version = await written(us, "acme", version)
    assert 20 <= len(await us.history("acme")) <= 24


@pytest.mark.parametrize("expected", [None, Version(1, 5, US), Version(9, 1, EU)])
async def test_compare_and_set(us: RegionMap, expected: Version | None) -> None:
    await written(us, "acme")
    value = await current(us, "acme")
    assert await us.write([Write("acme", expected, 2, body(EU))]) == [Refused(value)]
    assert await current(us, "acme") == value
    assert (await us.head()).log.last == 1


async def test_a_version_that_is_not_there_is_refused(us: RegionMap) -> None:
    assert await us.write([Write("acme", Version(1, 1, US), 2, body())]) == [Refused(None)]


async def test_an_epoch_never_goes_back(us: RegionMap) -> None:
    version = (await us.write([Write("acme", None, 5, body())]))[0].version  # type: ignore[union-attr]
    assert isinstance((await us.write([Write("acme", version, 4, body())]))[0], Refused)


async def test_one_refusal_keeps_no_other_from_being_written(us: RegionMap) -> None:
    await written(us, "b")
    done = await us.write([Write(tenant, None, 1, body()) for tenant in "abc"])
    assert [type(one) for one in done] == [Written, Refused, Written]
    assert [one.seq for one in done if isinstance(one, Written)] == [2, 3]


async def test_no_version_is_given_twice_within_a_millisecond(us: RegionMap) -> None:
    done = await us.write([Write(f"t{number}", None, 1, body()) for number in range(500)])
    assert len({one.version for one in done if isinstance(one, Written)}) == 500


async def test_another_regions_map_is_not_touched(us: RegionMap, server: Valkey) -> None:
    await written(us, "acme")
    other = RegionMap(server.url, EU)
    with pytest.raises(WrongRegion, match="holds the map of us-east-1"):
        await other.write([Write("b", None, 1, body())])
    with pytest.raises(WrongRegion):
        await other.head()
    await other.close()


# --- a server that is another process


async def test_a_restart_gives_the_log_a_new_name_and_moves_the_clock_on(tmp_path: Path) -> None:
    with Valkey(tmp_path / "v") as server:
        region_map = RegionMap(server.url, US)
        version = await written(region_map, "acme")
        before = await region_map.head()
        server.kill()
        with pytest.raises(MapUnavailable):
            await region_map.head()
        server.start()
        assert (await region_map.head()).log_id == before.log_id  # nobody wrote yet
        later = await written(region_map, "acme", version)
        after = await region_map.head()
        assert after.log_id != before.log_id
        assert after.log.last == before.log.last + 1
        assert later.hlc >= version.hlc + FAILOVER_MARGIN_MS
        assert await region_map.begin() == after.log_id
        await region_map.close()


async def test_a_flushed_map_begins_again_under_another_name(us: RegionMap, server: Valkey) -> None:
    await written(us, "acme")
    before = await us.head()
    server.cli("FLUSHALL")
    assert (await us.head()).log_id == ""
    assert await us.begin() != before.log_id
    await written(us, "acme")
    assert (await us.head()).log.last == 1


async def test_meta_that_was_deleted_does_not_stop_writes_half_way(us: RegionMap, server: Valkey) -> None:
    await written(us, "a")
    server.cli("DEL", keys.META)
    await written(us, "b")
    head = await us.head()
    assert (head.log.first, head.log.last, head.feed.last) == (1, 1, 1)


async def test_a_server_that_hangs_is_found(tmp_path: Path) -> None:
    with Valkey(tmp_path / "v", durable=False) as server:
        region_map = RegionMap(server.url, US, timeout_s=0.3)
        await written(region_map, "acme")
        server.stop()
        with pytest.raises(MapUnavailable, match=r"no answer within 0\.3 s"):
            await region_map.get(["acme"])
        server.cont()
        assert await current(region_map, "acme")
        await region_map.close()


async def test_a_script_that_was_flushed_is_loaded_again(us: RegionMap, server: Valkey) -> None:
    await written(us, "a")
    server.cli("SCRIPT", "FLUSH")
    await written(us, "b")


async def test_an_error_never_names_the_password(tmp_path: Path) -> None:
    region_map = RegionMap("redis://alice:hunter2@127.0.0.1:1/0", US)
    with pytest.raises(MapUnavailable) as error:
        await region_map.head()
    assert "hunter2" not in str(error.value)
    assert "alice" not in str(error.value)
    await region_map.close()


# --- follow


LEASE = "holder"


async def following(us: RegionMap) -> None:
    assert await us.acquire(LEASE, 60_000)
    await us.resynced(EU, Offset("log1", 0), LEASE, complete=False)


def value_of(tenant: str, version: Version, replaces: tuple[Version, ...] = (), **more: object) -> bytes:
    return encode_value(tenant, version, replaces, body(**more))  # type: ignore[arg-type]


def log_of(count: int) -> list[tuple[str, bytes]]:
    return [(f"t{n}", value_of(f"t{n}", Version(1, 100 + n, EU))) for n in range(1, count + 1)]


async def test_entries_are_applied_once_and_the_offset_moves_with_them(us: RegionMap) -> None:
    await following(us)
    entries = log_of(5)
    assert await us.follow(EU, "log1", 1, entries[:3], LEASE) == Merged([Outcome.APPLIED] * 3, [], 0)
    assert (await us.offsets())[EU] == Offset("log1", 3)
    assert await us.follow(EU, "log1", 2, entries[1:], LEASE) == Merged([Outcome.APPLIED] * 2, [], 2)
    assert (await us.offsets())[EU] == Offset("log1", 5)
    assert await us.follow(EU, "log1", 1, entries, LEASE) == Merged([], [], 5)
    feed = await us.read_feed(0, 100, 0)
    assert [entry.origin for entry in feed if entry.tenant] == [(EU, Offset("log1", n)) for n in range(1, 6)]
    assert (await us.head()).log.last == 0, "what came from a peer is no write of this region"


async def test_a_gap_and_another_log_write_nothing(us: RegionMap) -> None:
    await following(us)
    entries = log_of(3)
    assert await us.follow(EU, "log1", 2, entries[1:], LEASE) is Step.GAP
    assert await us.follow(EU, "log2", 1, entries, LEASE) is Step.RESYNC
    assert await us.follow("ap-southeast-2", "log1", 1, entries, LEASE) is Step.RESYNC
    assert (await us.head()).records == 0


async def test_an_entry_without_a_value_counts_only_and_is_told_the_gateways(us: RegionMap) -> None:
    await following(us)
    assert await us.follow(EU, "log1", 1, [("bad", b"")], LEASE) == Merged([], [], 0)
    assert (await us.offsets())[EU] == Offset("log1", 1)
    assert (await us.read_feed(0, 100, 0))[-1].origin == (EU, Offset("log1", 1))


async def test_what_comes_last_and_does_not_win_is_told_the_gateways(us: RegionMap) -> None:
    await following(us)
    entries = log_of(1)
    assert await us.follow(EU, "log1", 1, [*entries, ("bad", b"")], LEASE) == Merged([Outcome.APPLIED], [], 0)
    assert (await us.read_feed(0, 100, 0))[-1].origin == (EU, Offset("log1", 2))
    await us.follow(EU, "log1", 3, [("t9", log_of(9)[-1][1]), entries[0]], LEASE)
    assert (await us.read_feed(0, 100, 0))[-1].origin == (EU, Offset("log1", 4))
    before = len(await us.read_feed(0, 100, 0))
    await us.follow(EU, "log1", 3, [("t9", log_of(9)[-1][1]), entries[0]], LEASE)
    assert len(await us.read_feed(0, 100, 0)) == before, "what was there before is no news"


async def test_a_lease_of_a_clock_that_went_back_is_nobodys(us: RegionMap) -> None:
    assert await us.acquire("another", 3_600_000)
    assert not await us.acquire(LEASE, 3_600_000)
    assert await us.acquire(LEASE, 3_000), "no lease of three seconds has an hour to live"
    assert not await us.acquire("another", 3_000)


async def test_a_comparison_counts_for_the_process_that_it_was_made_with_only(us: RegionMap, server: Valkey) -> None:
    """Otherwise the offset would say of records that fell with the process before that they are here."""
    await following(us)
    own_log = await us.begin()
    assert await us.resynced(EU, Offset("log1", 3), LEASE, complete=False, own_log=own_log)
    server.cli("FLUSHALL")
    assert await us.acquire(LEASE, 60_000)
    assert not await us.resynced(EU, Offset("log1", 7), LEASE, complete=True, own_log=own_log)
    assert (await us.offsets(), (await us.head()).complete) == ({}, False)
    assert await us.resynced(EU, Offset("log1", 7), LEASE, complete=True, own_log=await us.begin())


async def test_a_holder_that_lost_the_lease_does_no_harm(us: RegionMap, server: Valkey) -> None:
    await following(us)
    await us.release(LEASE)
    assert await us.acquire("another", 60_000)
    assert not await us.acquire(LEASE, 60_000)
    for attempt in (
        us.follow(EU, "log1", 1, log_of(1), LEASE),
        us.merge(log_of(1), lease=LEASE),
        us.resynced(EU, Offset("log1", 9), LEASE, complete=True),
    ):
        with pytest.raises(LeaseLost):
            await attempt
    head = await us.head()
    assert (head.records, head.complete) == (0, False)
    assert (await us.offsets())[EU] == Offset("log1", 0)


async def test_a_conflict_names_what_stood_here(us: RegionMap) -> None:
    await following(us)
    ours = await written(us, "acme")
    our_value = await current(us, "acme")
    newer = value_of("acme", Version(1, ours.hlc + 50, EU))
    older = value_of("acme", Version(1, ours.hlc + 10, EU))
    done = await us.follow(EU, "log1", 1, [("acme", newer), ("acme", older)], LEASE)
    assert done == Merged([Outcome.CONFLICT_WON, Outcome.CONFLICT_LOST], [our_value, newer], 0)
    assert await current(us, "acme") == newer
    assert {entry.value for entry in await us.history("acme")} == {our_value, older}


async def test_the_clock_follows_what_comes_from_elsewhere(us: RegionMap) -> None:
    await following(us)
    ahead = (await us.head()).clock_ms + 3_600_000
    await us.follow(EU, "log1", 1, [("acme", value_of("acme", Version(1, ahead, EU)))], LEASE)
    assert (await written(us, "b")).hlc > ahead


async def test_offsets_go_forward_only(us: RegionMap) -> None:
    await following(us)
    assert await us.resynced(EU, Offset("log1", 7), LEASE, complete=False)
    assert not await us.resynced(EU, Offset("log1", 5), LEASE, complete=False)
    assert (await us.offsets())[EU] == Offset("log1", 7)
    assert await us.resynced(EU, Offset("log2", 1), LEASE, complete=True)
    assert (await us.head()).complete


# --- damage


async def test_garbage_gives_way_to_a_record(us: RegionMap, server: Valkey) -> None:
    server.cli("HSET", keys.TENANTS, "acme", "garbage")
    value = value_of("acme", Version(1, 100, EU))
    assert (await us.merge([("acme", value)])).outcomes == [Outcome.APPLIED]
    server.cli("HSET", keys.TENANTS, "acme", value.replace(b"us-east-1", b"xx-east-1"))  # under a head that looks right
    assert (await us.merge([("acme", value)])).outcomes == [Outcome.APPLIED]
    assert await current(us, "acme") == value
    assert (await us.merge([("acme", value)])).outcomes == [Outcome.DUPLICATE]
    server.cli("HSET", keys.TENANTS, "b", "garbage")
    await written(us, "b")


async def test_a_letter_is_cleared_by_a_newer_record(us: RegionMap) -> None:
    assert await us.bury(Letter("acme", EU, "no record", 5, b"x" * 10_000))
    assert await us.bury(Letter("b", EU, "no record", 5))
    assert not await us.bury(Letter("b", EU, "still none", 6))
    letters = await us.letters()
    assert len(letters["acme"].value) == 4096
    assert letters["b"].reason == "still none"
    await us.merge([("acme", value_of("acme", Version(1, 100, EU)))])
    assert list(await us.letters()) == ["b"]
    assert await us.drop_letter("b")
    assert await us.dead_count() == 0


# --- digests, purge, registry


def digest_of(rows: dict[str, bytes]) -> dict[str, str]:
    found: dict[str, int] = {}
    for value in rows.values():
        total = stamp_of(value).sum
        found[total[:2]] = found.get(total[:2], 0) ^ int(total, 16)
    return {bucket: f"{digest:016x}" for bucket, digest in found.items() if digest}


async def whole(region_map: RegionMap) -> dict[str, bytes]:
    return {tenant: value async for rows in region_map.scan() for tenant, value in rows}


async def test_the_digest_is_kept_through_every_kind_of_change(us: RegionMap) -> None:
    version = await written(us, "a")
    await written(us, "b")
    version = await written(us, "a", version)
    await us.merge([("c", value_of("c", Version(1, 100, EU))), ("b", value_of("b", Version(9, 100, EU)))])
    gone = await written(us, "a", version, state=State.DELETED)
    assert await us.digests() == digest_of(await whole(us))
    assert not await us.purge("a", version)
    assert not await us.purge("c", Version(1, 100, EU)), "it is no tombstone"
    assert await us.purge("a", gone)
    assert await us.digests() == digest_of(await whole(us))
    assert (await us.read_feed(0, 100, 0))[-1] == FeedEntry((await us.head()).feed.last, "a", b"", None)
    assert await us.history("a") == []


async def test_digests_counted_anew_are_refused_when_the_map_moved_on(us: RegionMap) -> None:
    await written(us, "a")
    feed_seq = (await us.head()).feed.last
    await written(us, "b")
    assert not await us.set_digests(feed_seq, {"00": "f" * 16})
    assert await us.set_digests(feed_seq + 1, {"00": "f" * 16})
    assert await us.digests() == {"00": "f" * 16}


async def test_write_back_is_told_the_peers(us: RegionMap) -> None:
    value = value_of("acme", Version(1, 100, US))
    await us.merge([("acme", value)], relog=True)
    assert [row[1:] for row in await us.read_log(0, 10, 0)] == [("acme", value)]
    await us.merge([("acme", value)], relog=True)
    assert (await us.head()).log.last == 1


async def test_gateways_have_an_age(us: RegionMap) -> None:
    await us.register(GatewayRow(region=EU, id="b", program="1", config="x", age_ms=5000))
    await us.register(GatewayRow(region=US, id="a", program="1", config="x", applied={US: "log1 5"}))
    old, new = await us.gateways()
    assert (old.id, new.id) == ("b", "a")
    assert 5000 <= old.age_ms < 8000
    assert new.age_ms < 3000
    assert new.applied == {US: "log1 5"}
    await us.forget_gateway(EU, "b")
    assert [row.id for row in await us.gateways()] == ["a"]


async def test_states_of_the_replication(us: RegionMap) -> None:
    state = PeerState(state="following", offset="log1 5", lag_s=0.5)
    await us.put_replication({EU: state})
    assert await us.replication() == {EU: state}


async def test_a_read_that_waits_is_woken_by_a_write(us: RegionMap) -> None:
    await us.begin()
    async with asyncio.timeout(5):
        waiting = asyncio.get_running_loop().create_task(us.read_feed(0, 10, 5000))
        await asyncio.sleep(0)
        await written(us, "acme")
        assert [entry.tenant for entry in await waiting] == ["acme"]
    assert await us.read_log(1, 10, 10) == []


# --- the same rules as the core

versions = st.builds(
    Version, st.integers(0, 3) | st.just(10**17), st.integers(1, 12), st.sampled_from([US, EU, "us-east-10"])
)
values = st.builds(
    lambda version, replaces, plan: encode_value(
        "acme", version, sorted(replaces, reverse=True), body(labels={"plan": plan})
    ),
    versions,
    st.lists(versions, max_size=9, unique=True),
    st.sampled_from(["gold", "iron"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(values, min_size=1, max_size=12))
async def test_redis_judges_as_the_core_does(server: Valkey, history: list[bytes]) -> None:
    server.cli("FLUSHALL")
    region_map = RegionMap(server.url, US)
    try:
        stamp: Stamp | None = None
        seen: set[Version] = set()
        expected = []
        for value in history:
            incoming = stamp_of(value)
            outcome = judge(stamp, incoming, seen)
            expected.append(outcome)
            if outcome in TAKES:
                if stamp is not None:
                    seen.add(stamp.version)
                stamp = incoming
            elif outcome is Outcome.CONFLICT_LOST:
                seen.add(incoming.version)
        assert (await region_map.merge([("acme", value) for value in history])).outcomes == expected
        assert stamp is not None
        assert stamp_of(await current(region_map, "acme")) == stamp
        assert await region_map.digests() == digest_of(await whole(region_map))
    finally:
        await region_map.close()
