"""What no log tells is found and set right: maps that differ in silence, damage in our own, digests, old tombstones."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.control.replication import keys, recount, repair
from gateway.control.replication.counters import REPAIRED, Counters
from gateway.control.replication.follower import Follower
from gateway.control.replication.incoming import TOMBSTONE_MS
from gateway.control.replication.region_map import GatewayRow, RegionMap
from gateway.control.replication.registry import FORGOTTEN_MS, RegistryCopies, forget_gone
from gateway.control.replication.repair import OwnRepair, PeerRepair
from gateway.control.replication.tenure import Tenure
from gateway.core.placement import State, Version
from gateway.core.replication import decode_value, encode_value, stamp_of
from tests.support.eventually import eventually
from tests.support.replication import AP, EU, US, Region, World, body, until, value_of, world


class Workshop:
    """The parts that repair `region`, without the replicator around them."""

    def __init__(self, region: Region, counters: Counters) -> None:
        self.counters = counters
        self.region = region
        self.following: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        self.tenure = Tenure(region.map, "", counters, loop.time)  # without a token nothing is fenced
        others = [other for other in region.world.regions if other is not region]
        self.maps = [RegionMap(other.server.url, other.name) for other in others]
        self.followers = [Follower(self.tenure, map_, random.Random(1), lambda: None) for map_ in self.maps]
        self.own = OwnRepair(self.tenure, self.followers)
        self.peers = [PeerRepair(self.tenure, follower) for follower in self.followers]

    async def catch_up(self) -> None:
        """Follow the peers from now on; return once nothing is missing that is written by now."""
        self.tenure.heard(await self.tenure.own.head(), self.tenure.now())
        for region in self.region.world.regions:
            await region.map.begin()
        if not self.following:
            loop = asyncio.get_running_loop()
            self.following = [loop.create_task(follower.run()) for follower in self.followers]
        for peer in self.region.world.regions:
            if peer is not self.region:
                await until(lambda peer=peer: self.region.is_even_with(peer))  # type: ignore[misc]
        for follower in self.followers:
            await eventually(follower.caught_up)

    async def close(self) -> None:
        for task in self.following:
            task.cancel()
        await asyncio.gather(*self.following, return_exceptions=True)
        for map_ in self.maps:
            await map_.close()
        self.counters.close()


@asynccontextmanager
async def workshop(w: World, region: Region) -> AsyncIterator[Workshop]:
    counters = Counters(w.folder / region.name / "state-repair", tuple(r.name for r in w.regions if r is not region))
    made = Workshop(region, counters)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "LOOKS_APART_S", 0.01)


# --- against a peer


async def test_a_record_that_came_by_no_log_is_found_by_the_digests_and_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us, eu = w.regions
        await us.write(*(f"t{n}" for n in range(300)))
        await shop.catch_up()
        assert await shop.peers[0].look() == 0
        older = await us.current("t7")
        assert older is not None
        newer = encode_value("t7", Version(9, 9, US), (stamp_of(older).version,), body(by="nobody's log"))
        await us.map.merge([("t7", newer), ("quiet", value_of("quiet", Version(1, 5, US)))])
        with caplog.at_level(logging.WARNING):
            assert await shop.peers[0].look() == 2
        assert await w.converged()
        assert await eu.current("t7") == newer
        assert eu.count(REPAIRED) == 2
        assert any("2 records taken from there" in line for line in caplog.messages)
        assert await shop.peers[0].look() == 0


async def test_what_is_newer_here_is_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us, eu = w.regions
        await us.write("acme")
        await shop.catch_up()
        await eu.write("acme", by="later")
        current = await eu.current("acme")
        assert await shop.peers[0].look() == 0
        assert await eu.current("acme") == current
        assert (await eu.map.history("acme"))[0].value == await us.current("acme")


async def test_what_is_only_on_its_way_is_no_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us = w.regions[0]
        await us.write("acme")
        await shop.catch_up()
        theirs = shop.maps[0]
        asked, digests = 0, theirs.digests

        async def digests_of_a_busy_map() -> dict[str, str]:
            nonlocal asked
            asked += 1
            found = await digests()
            await us.write("acme", labels={"n": str(asked)})
            await shop.catch_up()
            return found

        monkeypatch.setattr(theirs, "digests", digests_of_a_busy_map)
        monkeypatch.setattr(theirs, "scan", None)  # whoever looked through the peer's map would fail
        assert await shop.peers[0].look() == 0
        assert asked == repair.LOOKS


async def test_who_is_behind_in_the_log_looks_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us = w.regions[0]
        await us.write("acme")
        monkeypatch.setattr(shop.maps[0], "scan", None)
        assert not shop.followers[0].caught_up()
        assert await shop.peers[0].look() == 0


# --- our own map


async def test_a_damaged_record_is_taken_from_a_peer_whatever_was_done_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, US, EU, AP) as w, workshop(w, w.regions[1]) as shop:
        us, eu, ap = w.regions
        await us.write("acme", "globex", "initech", "umbrella", "fine")
        await shop.catch_up()
        async with workshop(w, ap) as other:
            await other.catch_up()
        whole = await eu.content()
        head, _, rest = whole["globex"].partition(b"\n")
        for tenant, damaged in (
            ("acme", b"scribble"),
            ("globex", head + b"\n" + rest.replace(US.encode(), EU.encode())),
            ("initech", b""),
            ("umbrella", whole["umbrella"].replace(b"1 1.", b"1 9.", 1)),  # claims to be newer than any
        ):
            eu.server.cli("HSET", keys.TENANTS, tenant, damaged)
        with caplog.at_level(logging.WARNING):
            found = await shop.own.look()
        assert await eu.content() == whole
        assert found.damaged == []
        assert eu.count(REPAIRED) == 4
        assert any("4 records here were damaged" in line for line in caplog.messages)
        assert await eu.map.digests() == await us.map.digests()
        assert await eu.map.letters() == {}


async def test_damage_that_no_peer_can_mend_is_told_and_kept_as_a_letter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us, eu = w.regions
        await us.write("acme")
        await shop.catch_up()
        eu.server.cli("HSET", keys.TENANTS, "lonely", "scribble")
        await shop.own.look()
        assert [(letter.source, letter.value) for letter in (await eu.map.letters()).values()] == [(EU, b"scribble")]
        assert any("'lonely': its record here is damaged" in line for line in caplog.messages)
        us.server.kill()
        await shop.own.look()  # and a peer that is gone is no reason to stop
        assert (await eu.map.letters()).keys() == {"lonely"}


async def test_digests_that_do_not_hold_are_set_right_and_what_they_hid_is_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us, eu = w.regions
        await us.write(*(f"t{n}" for n in range(50)))
        await shop.catch_up()
        eu.server.cli("HDEL", keys.TENANTS, "t3", "t4")
        assert await eu.map.digests() == await us.map.digests()
        assert await shop.peers[0].look() == 0
        with caplog.at_level(logging.WARNING):
            assert (await shop.own.look()).settled
        assert any("digests of" in line for line in caplog.messages)
        assert shop.followers[0].resynced.is_set(), "the next look is at once"
        assert await shop.peers[0].look() == 2
        assert await w.converged()
        caplog.clear()
        await shop.own.look()
        assert caplog.messages == []


async def test_a_map_that_changes_meanwhile_keeps_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        _, eu = w.regions
        await eu.write("acme")
        scan = eu.map.scan

        async def scan_of_a_busy_map(count: int = 1000) -> AsyncIterator[list[tuple[str, bytes]]]:
            async for rows in scan(count):
                yield rows
            await eu.write("late")

        monkeypatch.setattr(eu.map, "scan", scan_of_a_busy_map)
        before = await shop.own.look()
        assert not before.settled
        monkeypatch.undo()
        after = await shop.own.look()
        assert after.settled
        assert after.hex() == await eu.map.digests()


def test_a_large_map_is_looked_through_seldom() -> None:
    assert recount.Count(took_s=0.1).pause_s() == recount.EVERY_S
    assert recount.Count(took_s=30.0).pause_s() == 30.0 / recount.DUTY


# --- tombstones


async def tombstone(w: World, tenant: str, age_ms: int) -> Version:
    """A deleted tenant's record of this age, in the first region and its log."""
    us = w.regions[0]
    version = Version(2, (await us.map.head()).clock_ms - age_ms, US)
    await us.map.merge([(tenant, value_of(tenant, version, state=State.DELETED))], relog=True)
    return version


async def test_an_old_tombstone_that_everybody_has_is_forgotten_and_a_young_one_kept(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop, workshop(w, w.regions[0]) as other:
        us, eu = w.regions
        await us.write("acme")
        await shop.catch_up()
        await tombstone(w, "old", TOMBSTONE_MS + 60_000)
        await tombstone(w, "young", TOMBSTONE_MS - 60_000)
        await shop.catch_up()
        await shop.own.look()
        assert await eu.current("old") is not None, "the peer has not followed our log yet"
        await other.catch_up()
        await shop.catch_up()
        await shop.own.look()
        assert (await eu.content()).keys() == {"acme", "young"}
        assert (await eu.map.read_feed((await eu.map.head()).feed.last - 1, 1, 0))[0].value == b""
        # The peer still has it, and our map differs by it: nobody brings it back.
        assert await shop.peers[0].look() == 0
        assert (await eu.content()).keys() == {"acme", "young"}
        await other.catch_up()
        await other.own.look()
        assert await w.converged()


async def test_a_tombstone_is_kept_while_a_peer_has_the_tenant_or_cannot_be_asked(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[0]) as shop, workshop(w, w.regions[1]) as other:
        us, eu = w.regions
        await shop.catch_up()
        await other.catch_up()
        await tombstone(w, "acme", TOMBSTONE_MS + 60_000)
        await other.catch_up()
        eu.server.cli("HSET", keys.TENANTS, "acme", value_of("acme", Version(1, 5, EU)))
        await shop.catch_up()
        await shop.own.look()
        assert await us.current("acme") is not None
        eu.server.kill()
        await shop.own.look()
        value = await us.current("acme")
        assert value is not None
        assert decode_value("acme", value).state is State.DELETED


# --- registry


async def test_rows_of_a_peers_own_gateways_are_carried_here_with_their_age(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w, workshop(w, w.regions[1]) as shop:
        us, eu = w.regions
        for region, name, age_ms in ((US, "a", 0), (US, "b", 30_000), (AP, "c", 0), (US, "gone", FORGOTTEN_MS + 1)):
            await us.map.register(
                GatewayRow(region=region, id=name, program="1", config="x", applied={US: "log 1"}, age_ms=age_ms)
            )
        await RegistryCopies(shop.tenure, shop.maps[0]).copy()
        rows = {(row.region, row.id): row for row in await eu.map.gateways()}
        assert rows.keys() == {(US, "a"), (US, "b")}, "a row of a third region comes from that region"
        assert 30_000 <= rows[US, "b"].age_ms < 35_000
        assert rows[US, "a"].applied == {US: "log 1"}


async def test_rows_that_were_not_heard_for_long_are_removed(tmp_path: Path) -> None:
    async with world(tmp_path, EU) as w:
        (eu,) = w.regions
        for name, age_ms in (("here", 1000), ("gone", FORGOTTEN_MS + 1)):
            await eu.map.register(GatewayRow(region=EU, id=name, program="1", config="x", age_ms=age_ms))
        await forget_gone(eu.map)
        assert [row.id for row in await eu.map.gateways()] == ["here"]
