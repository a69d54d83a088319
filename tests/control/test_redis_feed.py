"""The tenant map's source `redis`, against a real server that is killed, stopped, emptied, rolled back and spoiled."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.control.sources import confirm
from gateway.core.placement import State, Version
from gateway.core.replication import VALUE_BYTES_MAX, encode_value
from gateway.settings.schema import RegionSettings
from gateway.store import generations, making
from gateway.store.making import Content
from gateway.store.record import Summary
from gateway.store.wanted import Wanted
from tests.support.eventually import eventually
from tests.support.feed import EU, US, Region, followed_region, placement, value_of
from tests.support.pace import within

MANY = [f"t{n:03d}" for n in range(40)]


async def soon(limit_s: float, holds: Callable[[], object]) -> None:
    """It holds within the limit, or what a busy machine makes of it."""
    await eventually(holds, within(limit_s))


async def test_what_is_written_is_followed_at_once(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=["acme"]) as region:
        assert region.home("acme") == US
        assert region.writer.complete()
        [written] = await region.write("acme", epoch=2, home=EU)
        await eventually(lambda: region.changes[-1].tenants == ("acme",))
        assert region.home("acme") == EU
        assert region.version("acme") == written.version
        assert (region.feed.stale, region.feed.age_s) == (False, 0.0)
        assert region.writer.arrived("acme") is not None


# --- starts and ends


async def test_a_start_goes_on_from_the_stored_offset(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        await region.stop()
        await region.write("acme")
        await region.write(MANY[0], epoch=2, home=EU)
        region.outcomes.clear()
        region.start()
        await region.followed()
        assert (region.home("acme"), region.home(MANY[0])) == (US, EU)
        assert [outcome.cause for outcome in region.outcomes] == ["followed"], "nothing was compared"


async def test_a_start_without_redis_serves_what_is_stored_and_says_that_it_is_stale(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        await region.stop()
        region.kill_server()
        region.start()
        await eventually(lambda: region.feed.last_error)
        assert region.writer.complete()
        assert region.records() == 40
        assert region.feed.stale
        assert region.feed.age_s is not None
        assert 0 < region.feed.age_s < 60
        assert not region.known.connected
        assert "127.0.0.1" in region.known.problem
        await region.start_server()
        await soon(2.0, lambda: not region.feed.stale)
        await eventually(lambda: region.feed.last_error is None)


async def test_without_both_it_is_complete_once_redis_is_there(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY, follow=False) as region:
        region.kill_server()
        region.start()
        await eventually(lambda: region.feed.last_error)
        assert not region.writer.complete()
        assert region.feed.age_s is None
        await region.start_server()
        await soon(2.0, region.writer.complete)
        assert region.records() == 40


async def test_a_redis_that_is_not_complete_makes_no_complete_map(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY, follow=False) as region:
        region.server.cli("HDEL", "{landbridge}:meta", "complete")
        region.start()
        await region.followed()
        assert not region.writer.complete()
        assert region.records() == 40
        await region.map.mark_complete()
        await soon(0.5, region.writer.complete)


async def test_a_redis_that_is_killed_and_started_is_found_again(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        region.kill_server()
        await eventually(lambda: region.feed.stale)
        assert region.home("t000") == US
        await region.start_server()
        await soon(2.0, lambda: not region.feed.stale)
        await region.write("t000", epoch=2, home=EU)
        await soon(1.0, lambda: region.home("t000") == EU)


async def test_a_redis_that_hangs_is_noticed_and_found_again(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        region.server.stop()
        await soon(3.5, lambda: region.feed.stale)
        await eventually(lambda: "no answer within" in region.known.problem)
        assert region.home("t000") == US
        region.server.cont()
        await soon(5.0, lambda: not region.feed.stale)
        await region.write("t000", epoch=2, home=EU)
        await soon(1.0, lambda: region.home("t000") == EU)


async def test_another_url_is_connected_to(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        redis = region.settings.tenant_map.redis
        assert redis is not None
        tenant_map = region.settings.tenant_map
        region.reconfigure(tenant_map=replace(tenant_map, redis=replace(redis, url="redis://u:secret@127.0.0.1:1/0")))
        await region.feed.reload("configuration changed")
        await eventually(lambda: region.feed.stale)
        assert region.feed.place == "redis://***@127.0.0.1:1/0"
        assert "secret" not in region.known.problem
        region.reconfigure(tenant_map=tenant_map)
        await region.feed.reload("configuration changed")
        await soon(3.0, lambda: not region.feed.stale)


async def test_a_store_that_was_rebuilt_from_an_older_copy_is_compared(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        older = [region.writer.placement(tenant) for tenant in MANY[:20]]
        await region.write("t000", epoch=2, home=EU)
        await region.followed()
        directory, copy = tmp_path / "map", Wanted.of(filter(None, older))
        with generations.locked(directory):
            making.make(directory, content=Content(copy.tenants.items(), Summary(20, copy.digest, 1)))
        assert region.writer.follow()
        assert (region.records(), region.home("t000")) == (20, US)
        await region.feed.reload("map rebuilt")
        await eventually(lambda: region.home("t000") == EU)
        await region.followed()
        assert region.records() == 40


# --- losses


async def lost(region: Region) -> str:
    """Everything is gone from Redis, and waits; the change's name."""
    region.server.cli("FLUSHALL")
    await eventually(lambda: region.feed.pending)
    pending = region.feed.pending
    assert pending is not None
    assert (pending.removed, pending.known, pending.records) == (40, 40, 0)
    assert pending.first[:2] == ("t000", "t001")
    assert confirm.waiting(region.folder) == pending
    assert region.records() == 40
    assert region.feed.stale
    return pending.change


async def test_an_emptied_redis_keeps_the_map_until_an_operator_says_that_it_is_meant(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        change = await lost(region)
        await region.write("new")
        await eventually(lambda: region.home("new") == US)
        await eventually(lambda: region.feed.pending and region.feed.pending.records == 1)
        assert region.feed.pending is not None
        assert region.feed.pending.change == change, "the loss is the same"
        confirm.confirm(region.folder, "another")
        await eventually(lambda: confirm.confirmed(region.folder) is None)
        assert region.records() == 41
        confirm.confirm(region.folder, change)
        await eventually(lambda: not region.feed.stale)
        assert region.records() == 1
        assert (region.feed.pending, confirm.waiting(region.folder)) == (None, None)
        assert confirm.confirmed(region.folder) is None


async def test_an_emptied_redis_is_filled_again_if_an_operator_says_so(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        was = region.version("t000")
        change = await lost(region)
        confirm.confirm(region.folder, change, restore=True)
        await eventually(lambda: not region.feed.stale)
        head = await region.map.head()
        assert (head.records, head.log.last, head.complete) == (40, 40, True), "and told the peers"
        at = f"{head.log_id} 40"
        await eventually(lambda: any(row.applied.get(US) == at for row in region.known.gateways))
        assert (region.records(), region.version("t000")) == (40, was)


async def test_an_emptied_redis_that_the_others_fill_again_needs_nobody(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        values = [(tenant, value) for tenant, value in zip(MANY, await region.map.get(MANY), strict=True) if value]
        await lost(region)
        await region.map.merge(values[:38])
        await eventually(lambda: region.feed.pending is None)
        await eventually(lambda: not region.feed.stale)
        assert (await region.map.head()).records == 40, "what the others did not have was written back"
        assert region.records() == 40


async def test_the_guard_holds_over_a_restart(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        await lost(region)
        await region.stop()
        region.start()
        await eventually(lambda: region.feed.pending)
        assert region.records() == 40


async def test_a_few_records_that_vanish_are_written_back(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        region.server.cli("HDEL", "{landbridge}:tenants", "t000", "t001")
        await eventually(lambda: len(region.outcomes) > 1)
        assert (await region.map.head()).records == 40
        assert region.feed.pending is None
        assert region.records() == 40


async def test_a_map_that_was_rolled_back_gets_what_it_lost_and_no_version_goes_back(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY, durable=False) as region:
        assert region.server.cli("SAVE").startswith(b"+OK")
        [moved] = await region.write("t000", epoch=2, home=EU)
        [new] = await region.write("new")
        await region.followed()
        region.server.kill()
        await region.start_server()
        assert (await region.map.head()).records == 40
        await soon(5.0, lambda: not region.feed.stale and region.known.records == 41)
        assert (region.home("t000"), region.version("t000")) == (EU, moved.version)
        found = await region.map.get(["t000", "new"])
        assert [value is not None and value.split()[1].decode() for value in found] == [
            str(moved.version),
            str(new.version),
        ]
        log = await region.map.read_log(40, 10, 1)
        assert {tenant for _, tenant, _ in log} == {"t000", "new"}, "the peers hear it too"
        [later] = await region.write("t000", epoch=2, home=EU)
        assert later.version > moved.version
        await soon(1.0, lambda: region.version("t000") == later.version)


async def test_entries_that_were_trimmed_lead_to_a_comparison(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        await region.stop()
        await region.write("t000", epoch=2, home=EU)
        await region.write("new")
        region.server.cli("XTRIM", "{landbridge}:feed", "MAXLEN", "1")
        region.start()
        await region.followed()
        assert (region.home("t000"), region.home("new")) == (EU, US)


# --- what is no record


NINE = Version(9, 9, US)
BAD = {
    "no-head": (lambda _: b"{}", "malformed"),
    "no-sum": (lambda _: b"1 9.9.us-east-1 - 0123456789abcdef\n{}", "malformed"),
    "no-body": (lambda tenant: encode_value(tenant, NINE, (), b"[]"), "malformed"),
    "of-another": (lambda _: value_of("t000", NINE), "malformed"),
    "too-long": (lambda tenant: encode_value(tenant, NINE, (), b" " * VALUE_BYTES_MAX), "oversized"),
    "no-host": (lambda tenant: value_of(tenant, NINE, hosts=("a b",)), "invalid"),
    "capitals": (lambda tenant: value_of(tenant, NINE, hosts=("A.test",)), "invalid"),
    "anothers-host": (lambda tenant: value_of(tenant, NINE, hosts=("t001.us.test",)), "invalid"),
    "a-path": (lambda tenant: value_of(tenant, NINE, public={EU: "https://a.test/x"}), "invalid"),
    "a-script": (lambda tenant: value_of(tenant, NINE, public={EU: "javascript:alert(1)"}), "invalid"),
    "no-region": (lambda tenant: value_of(tenant, NINE, home="mars"), "unknown_region"),
    "no-standby": (lambda tenant: value_of(tenant, NINE, standby=("mars",)), "unknown_region"),
}


async def test_what_is_no_record_of_ours_changes_nothing_but_a_counter(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=[*MANY, *BAD]) as region:
        was = {tenant: region.writer.placement(tenant) for tenant in BAD}
        for tenant, (value, _) in BAD.items():
            region.hset(tenant, value(tenant))
        counted = Counter(reason for _, reason in BAD.values())
        await region.feed.read_all("SIGHUP")
        await eventually(lambda: region.rejected == counted)
        looks = len(region.outcomes)
        await region.feed.read_all("SIGHUP")
        await eventually(lambda: len(region.outcomes) > looks)
        assert region.rejected == counted, "the second look counts nothing again"
        assert {tenant: region.writer.placement(tenant) for tenant in BAD} == was
        assert {p.tenant for p in region.writer.waiting()} == {"no-region", "no-standby"}
        letters = await region.map.letters()
        assert {tenant for tenant, (_, reason) in BAD.items() if reason == "invalid"} <= letters.keys()
        assert not {"no-region", "no-standby"} & letters.keys()
        assert letters["capitals"].source == "feed"
        assert letters["capitals"].reason == "invalid: hosts: 'A.test' is no host name in lower case"


async def test_bad_entries_in_the_feed_cost_their_neighbours_nothing(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        later = int(time.time() * 1000) + 1000
        bad = value_of("t000", Version(5, later, EU), hosts=("a b",))
        good = value_of("t001", Version(5, later, EU), home=EU)
        await region.map.merge([("t000", bad), ("t001", good)])
        await eventually(lambda: region.home("t001") == EU)
        assert region.home("t000") == US
        await eventually(lambda: region.rejected == {"invalid": 1})
        await region.followed()
        assert list(await region.map.letters()) == ["t000"]
        await region.write("t000", epoch=6, home=EU)
        await eventually(lambda: region.home("t000") == EU)
        assert await region.map.letters() == {}


async def test_a_damaged_value_is_mended_from_the_store(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        [before] = await region.map.get(["t000"])
        assert before is not None
        region.hset("t000", before.replace(b'"home":"us-east-1"', b'"home":"eu-west-1"'))
        await region.feed.read_all("SIGHUP")
        await eventually(lambda: len(region.outcomes) > 1)
        assert region.rejected == {"malformed": 1}
        assert await region.map.get(["t000"]) == [before]
        assert region.home("t000") == US


async def test_a_record_changed_by_hand_under_its_version_counts(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        version = region.version("t000")
        assert version is not None
        region.hset("t000", value_of("t000", version, home=EU))
        await region.feed.read_all("SIGHUP")
        await eventually(lambda: region.home("t000") == EU)


async def test_an_older_record_in_the_feed_is_left_out_and_counted(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        [value] = await region.map.get(["t000"])
        assert value is not None
        await region.write("t000", epoch=2, home=EU)
        await region.followed()
        head = await region.map.head()
        seq = str(head.feed.last + 1)
        region.server.cli("XADD", "{landbridge}:feed", f"{seq}-0", "i", "t000", "v", value, "o", "-")
        region.server.cli("HSET", "{landbridge}:meta", "feed_seq", seq)
        await eventually(lambda: region.rejected == {"older": 1})
        assert region.home("t000") == EU


async def test_only_a_tombstone_can_be_purged(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        [tombstone] = await region.write("t000", epoch=2, state=State.DELETED)
        await eventually(lambda: (region.writer.placement("t000") or placement("x")).state is State.DELETED)
        assert await region.map.purge("t000", tombstone.version)
        await eventually(lambda: region.home("t000") is None)
        seq = str((await region.map.head()).feed.last + 1)
        region.server.cli("XADD", "{landbridge}:feed", f"{seq}-0", "i", "t001", "v", "", "o", "-")
        region.server.cli("HSET", "{landbridge}:meta", "feed_seq", seq)
        await region.write("t002", epoch=2, home=EU)
        await eventually(lambda: region.home("t002") == EU)
        assert region.home("t001") == US


# --- regions that come and go


async def test_a_record_waits_until_its_region_is_known(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        await region.write("t000", epoch=2, home="mars")
        await eventually(lambda: region.rejected == {"unknown_region": 1})
        assert region.home("t000") == US
        region.reconfigure(regions=region.settings.regions | {"mars": RegionSettings()})
        await region.feed.reload("configuration changed")
        assert region.home("t000") == "mars"
        assert list(region.writer.waiting()) == []


async def test_a_region_that_is_removed_keeps_its_tenants_and_is_named(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        await region.write("t000", "t001", epoch=2, home=EU)
        await region.followed()
        region.reconfigure(regions={US: RegionSettings()})
        await region.feed.reload("configuration changed")
        refused = region.outcomes[-1]
        assert (refused.result, len(refused.problems)) == ("refused", 2)
        assert refused.problems[0] == "t000 names eu-west-1, no region of ours"
        assert region.home("t000") == EU


# --- the registry


async def test_the_row_says_what_workers_use(tmp_path: Path) -> None:
    async with followed_region(tmp_path, filled=MANY) as region:
        [one] = await region.write("t000", epoch=2, home=EU)

        async def applied() -> str | None:
            rows = await region.map.gateways()
            return rows[0].applied.get(US) if rows else None

        async def says(written: object) -> None:
            async with asyncio.timeout(15):
                while await applied() != written:
                    await asyncio.sleep(0.005)

        await says(f"{one.log_id} {one.seq}")
        [row] = await region.map.gateways()
        assert (row.region, row.program) == (US, "1.2.3")
        assert row.id == (tmp_path / "gateway.id").read_text().strip()
        region.feed.acknowledged(0)  # a worker is connected, and silent
        [two] = await region.write("t000", epoch=3, home=US)
        await eventually(lambda: region.home("t000") == US)
        await region.followed()
        assert await applied() == f"{one.log_id} {one.seq}"
        region.feed.acknowledged(region.writer.transaction())
        await says(f"{two.log_id} {two.seq}")
        assert [row.id for row in region.known.gateways] == [row.id], "it keeps its name"


# --- how fast


@pytest.mark.timed
async def test_many_changes_at_once_cost_little_each_and_the_loop_goes_on(tmp_path: Path) -> None:
    count, tenants = 10_000, [f"t{n:04d}" for n in range(2000)]
    async with followed_region(tmp_path, filled=tenants) as region:
        await region.stop()
        for lap in range(count // len(tenants)):
            await region.write(*tenants, epoch=2 + lap, home=(US, EU)[lap % 2], standby=((EU, US)[lap % 2],))
        head = await region.map.head()
        at = f"{head.log_id} {head.feed.last}"
        stalls: list[float] = []
        gc.collect()
        gc.freeze()  # as control does: the heap of a test run is no part of what is measured
        began = last = asyncio.get_running_loop().time()
        used = time.process_time()
        region.start()
        while region.known.offset != at:
            await asyncio.sleep(0.002)
            now = asyncio.get_running_loop().time()
            stalls.append(now - last)
            last = now
        gc.unfreeze()
        cpu_us = (time.process_time() - used) / count * 1e6
        rate = count / (last - began)
        print(f"\n{rate:.0f} changes a second, {cpu_us:.1f} us each (30), worst stall {max(stalls):.3f} s (0.05)")
        assert cpu_us < within(30)
        assert max(stalls) < within(0.05)
        assert region.home(tenants[0]) == US
