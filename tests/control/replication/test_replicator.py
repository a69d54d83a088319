"""A replicator against real servers: it follows, compares whole, retries, and says how it stands."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from gateway.control.replication import keys, tenure
from gateway.control.replication.counters import APPLIED, BAD_VALUES, CONFLICTS, FAR_AHEAD, RESYNCS, RETRIES, TAKEOVERS
from gateway.control.replication.follower import LOOK_S
from gateway.control.replication.region_map import Write, Written
from gateway.core.placement import State, Version
from gateway.core.replication import FAR_AHEAD_MS, Offset, decode_value
from tests.support.replication import AP, EU, US, Region, body, until, value_of, world


async def add_to_log(region: Region, tenant: str, value: bytes) -> int:
    """Put an entry into a region's log that no program of ours would write; its seq."""
    seq = (await region.map.head()).log.last + 1
    region.server.cli("XADD", keys.LOG, f"{seq}-0", "i", tenant, "v", value)
    region.server.cli("HSET", keys.META, "log_seq", str(seq))
    return seq


async def test_what_is_written_there_comes_here_once_and_in_order(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("early", *(f"t{n}" for n in range(1200)))
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        resyncs = eu.count(RESYNCS, peer=US)
        for round_ in range(3):
            await us.write(*(f"t{n}" for n in range(round_, 1200, 7)))
        await us.write("acme", home=EU)
        await until(lambda: eu.is_even_with(us))
        assert await w.converged()
        feed = [entry for entry in await eu.map.read_feed(0, 5000, 0) if entry.origin and entry.tenant]
        assert [entry.origin[1].seq for entry in feed if entry.origin] == list(range(1202, 1202 + len(feed)))
        assert eu.count(RESYNCS, peer=US) == resyncs == 1
        assert eu.count(APPLIED, peer=US) == 1201 + len(feed)
        await until(lambda: eu.has_state(us, "following"))


async def test_it_says_how_far_behind_it_is(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        done = await us.write("acme")
        eu.replicate("holder")
        await until(lambda: eu.is_even_with(us))
        await until(lambda: eu.has_state(us, "following"))
        state = await eu.state(us)
        assert state is not None
        assert state.offset == state.head == str(Offset(done[0].log_id, 1))
        assert (state.lag_records, state.lag_s, state.holder, state.reason) == (0, 0.0, "holder", "")
        us.server.kill()

        async def has_grown() -> bool:
            said = await eu.state(us)
            return said is not None and said.lag_s > 3.0 and said.state == "unreachable"

        await until(has_grown)
        state = await eu.state(us)
        assert state is not None
        assert state.retries > 2
        assert "refused" in state.reason or "Connect" in state.reason, state.reason
        assert eu.count(RETRIES) >= state.retries
        assert await eu.current("acme") is not None


async def test_three_regions_that_all_write_end_equal(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU, AP) as w:
        for region in w.regions:
            region.replicate()
        for round_ in range(3):
            await asyncio.gather(
                *(r.write(*(f"{r.name}-{n}" for n in range(100)), labels={"n": str(round_)}) for r in w.regions)
            )
        for region in w.regions:
            for peer in w.regions:
                if peer is not region:
                    await until(lambda a=region, b=peer: a.is_even_with(b))  # type: ignore[misc]
        assert await w.converged()
        assert len(await w.regions[0].content()) == 300
        assert all(region.count(CONFLICTS) == 0 for region in w.regions)
        digests = [await region.map.digests() for region in w.regions]
        assert digests[0] == digests[1] == digests[2]


async def test_two_writes_that_do_not_know_of_each_other_are_a_conflict_told_with_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        first = [region.replicate("first") for region in w.regions]
        await until(lambda: us.is_even_with(eu))
        await until(lambda: eu.is_even_with(us))
        for replicator in first:
            replicator.stop()
        await asyncio.gather(*(region.running[0][1] for region in w.regions))
        ours = (await us.write("acme", home=US, by="alice"))[0]
        theirs = (await eu.write("acme", home=EU, by="bob"))[0]
        with caplog.at_level(logging.WARNING):
            us.replicate()
            eu.replicate()
            await until(lambda: us.is_even_with(eu))
            await until(lambda: eu.is_even_with(us))
        assert await w.converged()
        value = await us.current("acme")
        assert value is not None
        winner, loser = max(ours.version, theirs.version), min(ours.version, theirs.version)
        assert decode_value("acme", value).version == winner
        for region in w.regions:
            history = await region.map.history("acme")
            assert [(decode_value("acme", entry.value).version, entry.by) for entry in history] == [(loser, winner)]
            assert region.count(CONFLICTS) == 1
        line = next(line for line in caplog.messages if line.startswith("conflict over tenant acme"))
        assert f"{ours.version} (active in us-east-1 by alice)" in line
        assert f"{theirs.version} (active in eu-west-1 by bob)" in line

        async def is_said() -> bool:
            said = await us.state(eu)
            return said is not None and said.conflicts == 1

        await until(is_said)


async def test_what_is_no_record_is_buried_and_passed_and_a_newer_one_clears_it(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme", "other")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        before = await eu.current("acme")
        await add_to_log(us, "acme", b"garbage \xff")
        await add_to_log(us, "No Tenant", value_of("No Tenant", Version(1, 5, US)))
        await add_to_log(us, "huge", b"1 1.1.us-east-1 - 0123456789abcdef\n" + b"x" * 200_000)
        await add_to_log(us, "elsewhere", value_of("elsewhere", Version(1, 5, US), home="No Region"))
        await us.write("after")
        await until(lambda: eu.is_even_with(us))
        assert await eu.current("acme") == before
        assert await eu.current("after") is not None
        letters = await eu.map.letters()
        assert letters.keys() == {"acme", "No Tenant", "huge", "elsewhere"}
        assert letters["acme"].source == US
        assert letters["acme"].value == b"garbage \xff"
        assert "VERSION REPLACES SUM" in letters["acme"].reason
        assert "200035 bytes" in letters["huge"].reason
        assert len(letters["huge"].value) < 5000
        assert "no region" in letters["elsewhere"].reason
        assert eu.count(BAD_VALUES, peer=US) == 4
        assert eu.count(RESYNCS, peer=US) == 1

        await us.write("acme")
        await until(lambda: eu.is_even_with(us))
        assert (await eu.map.letters()).keys() == {"No Tenant", "huge", "elsewhere"}


async def test_a_record_from_the_future_is_merged_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        future = (await us.map.head()).clock_ms + FAR_AHEAD_MS + 3_600_000
        value = value_of("tomorrow", Version(1, future, US))
        with caplog.at_level(logging.WARNING):
            await us.map.merge([("tomorrow", value)], relog=True)
            await until(lambda: eu.is_even_with(us))
        assert await eu.current("tomorrow") == value
        assert eu.count(FAR_AHEAD) == 1
        assert any("of tenant tomorrow" in line and "ahead of the clock" in line for line in caplog.messages)


# --- servers that go, and come back as others


async def test_a_peer_that_hangs_is_found_and_followed_again_soon_after(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))  # the first comparison is over: it must not be the one that hangs
        await until(lambda: eu.has_state(us, "following"))
        us.server.stop()
        try:
            await until(lambda: eu.has_state(us, "retrying"), 5.0)
        finally:
            us.server.cont()
        await us.write("globex")
        await until(lambda: eu.is_even_with(us), 5.0)
        await until(lambda: eu.has_state(us, "following"), 5.0)
        assert eu.count(RESYNCS, peer=US) == 1


async def test_our_own_server_may_hang_or_die_and_nothing_is_skipped(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU, durable=True) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        eu.server.stop()
        await us.write(*(f"a{n}" for n in range(50)))
        await asyncio.sleep(0.2)
        eu.server.cont()
        await until(lambda: eu.is_even_with(us), 5.0)
        eu.server.kill()
        await us.write(*(f"b{n}" for n in range(50)))
        retries = eu.count(RETRIES)
        await until(lambda: _counted(eu, RETRIES, retries + 1))
        await eu.restart()
        await until(lambda: eu.is_even_with(us), 10.0)
        assert await w.converged()


async def _counted(region: Region, name: str, times: int) -> bool:
    return region.count(name, **({"peer": US} if name == RESYNCS else {})) >= times


async def test_a_peer_that_was_restarted_or_emptied_is_compared_whole_and_nothing_is_removed(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write(*(f"t{n}" for n in range(20)))
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        await us.restart()  # it kept nothing: not durable
        assert await us.content() == {}
        await us.write("t3", "new", labels={"after": "the loss"})
        await until(lambda: eu.is_even_with(us))
        assert len(await eu.content()) == 21
        assert eu.count(RESYNCS, peer=US) == 2
        assert await eu.current("new") == await us.current("new")
        us.replicate()
        await until(w.converged)
        assert len(await us.content()) == 21


@pytest.mark.parametrize("complete", [True, False])
async def test_our_own_server_emptied_is_filled_again_from_a_peer(tmp_path: Path, complete: bool) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write(*(f"t{n}" for n in range(20)))
        if complete:
            await us.map.mark_complete()
        eu.replicate()
        us.replicate()
        await until(lambda: eu.is_even_with(us))
        await eu.write("mine", home=EU)
        await until(lambda: us.is_even_with(eu))
        eu.server.cli("FLUSHALL")
        await until(w.converged)
        assert len(await eu.content()) == 21

        async def is_as_complete() -> bool:
            return (await eu.map.head()).complete is complete

        await until(is_as_complete)


async def test_a_log_that_was_trimmed_beyond_us_is_compared_whole(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        us.server.stop()
        await until(lambda: eu.has_state(us, "retrying"))
        us.server.cont()
        # In one go, so that nobody reads in between: written and trimmed.
        eu.server.stop()
        await us.write(*(f"t{n}" for n in range(30)))
        us.server.cli("XTRIM", keys.LOG, "MAXLEN", "10")
        eu.server.cont()
        await until(lambda: eu.is_even_with(us), 10.0)
        assert await w.converged()


async def test_a_hole_in_a_log_is_compared_whole(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        await us.map.merge([("quiet", value_of("quiet", Version(1, 5, US)))])
        us.server.cli("HINCRBY", keys.META, "log_seq", "1")  # as if an entry had been deleted
        await us.write("after")
        await until(lambda: eu.is_even_with(us))
        assert await w.converged()
        assert eu.count(RESYNCS, peer=US) == 2


async def test_a_map_becomes_complete_by_one_that_is(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        assert not (await eu.map.head()).complete
        await us.map.mark_complete()

        async def is_complete() -> bool:
            return (await eu.map.head()).complete

        await until(is_complete)


async def test_a_deleted_tenant_stays_deleted_after_a_comparison(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme", "other")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        await eu.write("acme", epoch=2, state=State.DELETED)
        await us.restart()  # it comes back with nothing, and somebody fills in the old record again
        old = (await eu.map.history("acme"))[0].value
        await us.map.merge([("acme", old)], relog=True)
        await until(lambda: eu.is_even_with(us))
        value = await eu.current("acme")
        assert value is not None
        assert decode_value("acme", value).state is State.DELETED
        us.replicate()
        await until(w.converged)


# --- several of one region


async def test_one_is_at_work_and_another_takes_over_when_it_leaves(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        first = eu.replicate("first")
        await us.write("acme")
        await until(lambda: eu.is_even_with(us))
        second = eu.replicate("second")
        await us.write("globex")
        await until(lambda: eu.is_even_with(us))
        assert (len(first.followers), len(second.followers)) == (1, 0)
        first.stop()
        await us.write("initech")
        await until(lambda: eu.is_even_with(us), 3.0)  # it gave the lease up, so nobody waited for its end
        assert len(second.followers) == 1
        assert eu.count(TAKEOVERS) == 2
        assert eu.count(RESYNCS, peer=US) == 1


async def test_a_lease_that_is_gone_is_taken_again(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        eu.replicate()
        await us.write("acme")
        await until(lambda: eu.is_even_with(us))
        eu.server.cli("SET", keys.LEASE, "another", "PX", "1500")
        done = await us.write("globex")
        assert isinstance(done[0], Written)
        await until(lambda: eu.is_even_with(us), 5.0)
        assert await w.converged()
        assert eu.count(TAKEOVERS) == 2


async def test_a_log_that_somebody_wrote_to_by_hand_costs_a_comparison_now_and_then(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write("acme")
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        us.server.cli("XADD", keys.LOG, "100-0", "i", "acme", "v", "x")  # the function does not know of it
        began = time.monotonic()
        await until(lambda: _counted(eu, RESYNCS, 4))
        assert time.monotonic() - began > LOOK_S * 2, "the fourth is two pauses after the second"
        us.server.cli("XDEL", keys.LOG, "100-0")
        assert await w.converged()


async def test_many_records_at_once_are_not_from_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure, "FAR_AHEAD_MS", 100)
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.map.write([Write(f"t{n}", None, 1, body()) for n in range(3000)])
        head = await us.map.head()
        assert head.hlc > head.clock_ms + 1000, "each moves the hybrid clock on by a millisecond"
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        assert eu.count(FAR_AHEAD) == 0
