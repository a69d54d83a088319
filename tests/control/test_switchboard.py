"""Region-wide switches: two gateways of one region, their disks, and a real Valkey that comes and goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from gateway.control.conditions import Switched
from gateway.control.registry import Replication
from gateway.control.replication.region_map import GatewayRow
from gateway.control.switchboard import (
    ANSWER_FILE,
    WANTED_FILE,
    Answer,
    Ground,
    Known,
    Switchboard,
    Wanted,
)
from gateway.core.placement import Failover, Placement
from gateway.core.switches import Switch
from gateway.core.view import View
from gateway.settings.schema import Address, Listen, MapSource, RedisSettings, Settings, TenantMapSettings
from gateway.store.switches import FILE, decode
from gateway.store.writer import Writer
from tests.support.eventually import eventually
from tests.support.facts import HERE, THERE, knowing
from tests.support.valkey import Valkey

DRAIN = Wanted(name="drain", value="on", by="alice", why="patching")


class Tenants:
    """What the switchboard asks of the map's source: which gateways live."""

    def __init__(self) -> None:
        self.rows: tuple[GatewayRow, ...] = ()

    def replication(self) -> Replication:
        return Replication("", gateways=self.rows)


@dataclass
class Facts:
    view: View
    writer: Writer
    settings: Settings
    tenants: Tenants = field(default_factory=Tenants)


@dataclass
class Gateway:
    """One gateway's switchboard, and what its judge and its workers heard."""

    folder: Path
    facts: Facts
    told: int = 0
    wall_ms: int = 1_800_000_000_000

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        def changed() -> None:
            self.told += 1

        self.switched = Switched()
        ground = Ground(self.folder, lambda: cast(Known, self.facts), changed, lambda: self.wall_ms)
        self.board = Switchboard(ground, self.switched)
        self.board.load()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self.board.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.board.close()


def gateway(folder: Path, url: str | None = None, tenants: tuple[Placement, ...] = (), **known: Any) -> Gateway:
    folder.mkdir(parents=True)
    writer = Writer(folder / "map")
    writer.replace(tenants, 1)
    source, redis = (MapSource.YAML, None) if url is None else (MapSource.REDIS, RedisSettings(url, {}))
    tenant_map = TenantMapSettings("tenants.yaml", source, redis=redis)
    here = Listen(Address("127.0.0.1", 0))
    settings = Settings(region=HERE, listen=here, state_dir=str(folder), tenant_map=tenant_map)
    return Gateway(folder, Facts(knowing(**known), writer, settings))


async def test_a_switch_counts_at_once_and_after_a_start(tmp_path: Path) -> None:
    one = gateway(tmp_path / "one")
    answer = await one.board.set(DRAIN)
    assert (answer.refused, answer.everywhere) == ("", None)
    assert (one.switched.drained, one.told) == (True, 1)
    await one.board.set(Wanted(name="failover-mode", value="standby", by="bob", why="x"))
    await one.board.set(Wanted(name="max-traffic", value="50", by="bob", why="x"))
    one.start()
    assert (one.switched.drained, one.switched.failover_mode, one.switched.max_traffic) == (True, "standby", 50.0)
    assert (tmp_path / "one" / FILE).stat().st_mode & 0o777 == 0o600
    await one.board.set(Wanted(name="drain", value="", by="bob", why="done"))
    assert not one.switched.drained
    one.start()
    assert not one.switched.drained


async def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    one = gateway(tmp_path / "one")
    for name, value in (("drain", "maybe"), ("max-traffic", "-5"), ("turbo", "on")):
        answer = await one.board.set(Wanted(name=name, value=value, by="a", why="b", force=True))
        assert answer.refused == "input"
        assert repr(value) in answer.detail
    assert one.board.known == {}


async def test_a_drain_that_leaves_tenants_behind_needs_force(tmp_path: Path) -> None:
    tenants = tuple(Placement(tenant=f"t{n:03}", home=HERE) for n in range(30))
    covered = Placement(tenant="umbrella", home=HERE, standby=(THERE,), failover=Failover.ALL)
    one = gateway(tmp_path / "one", None, (*tenants, covered))
    answer = await one.board.set(DRAIN)
    assert answer.refused == "safety"
    assert answer.detail.startswith("30 tenants have no other region")
    assert "t000, t001" in answer.detail
    assert answer.detail.endswith("and 10 more")
    assert "umbrella" not in answer.detail
    assert not one.switched.drained
    assert (await one.board.set(msgspec.structs.replace(DRAIN, force=True))).refused == ""
    two = gateway(tmp_path / "two", None, (covered,))
    assert (await two.board.set(DRAIN)).refused == ""
    everybody = Wanted(name="failover-mode", value="all", by="a", why="b")
    assert (await two.board.set(everybody)).refused == "safety"


async def test_a_switch_ends_by_itself_and_no_step_of_the_clock_ends_it(tmp_path: Path) -> None:
    one = gateway(tmp_path / "one")
    async with one.running():
        await one.board.set(msgspec.structs.replace(DRAIN, lasts_s=3600.0))
        one.wall_ms += 2 * 3_600_000
        assert set(one.board.on()) == {"drain"}
        one.wall_ms -= 2 * 3_600_000
        began = time.monotonic()
        await one.board.set(msgspec.structs.replace(DRAIN, lasts_s=0.3))
        await eventually(lambda: not one.switched.drained)
        assert time.monotonic() - began >= 0.3
    one.wall_ms += 1000
    one.start()
    assert not one.switched.drained, "it has ended meanwhile"


async def test_the_command_line_asks_through_the_state_directory(tmp_path: Path) -> None:
    one = gateway(tmp_path / "one")
    async with one.running():
        (one.folder / WANTED_FILE).write_bytes(b"{")
        await eventually(lambda: not (one.folder / WANTED_FILE).exists())
        (one.folder / WANTED_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(DRAIN, id="7")))
        await eventually((one.folder / ANSWER_FILE).exists)
        answer = msgspec.json.decode((one.folder / ANSWER_FILE).read_bytes(), type=Answer)
        assert (answer.id, answer.refused) == ("7", "")
        assert one.switched.drained


async def test_a_file_that_is_none_switches_nothing_and_keeps_nobody_from_starting(tmp_path: Path) -> None:
    one = gateway(tmp_path / "one")
    (one.folder / FILE).write_bytes(b"nonsense")
    one.start()
    assert one.board.on() == {}


@pytest.fixture
def valkey(tmp_path: Path) -> Any:
    with Valkey(tmp_path / "valkey", durable=False) as server:
        yield server


async def test_all_gateways_of_a_region_follow(tmp_path: Path, valkey: Valkey) -> None:
    one, two = gateway(tmp_path / "one", valkey.url), gateway(tmp_path / "two", valkey.url)
    async with one.running(), two.running():
        began = time.monotonic()
        assert (await one.board.set(DRAIN)).everywhere is True
        await eventually(lambda: two.switched.drained)
        assert time.monotonic() - began < 8.0
        await two.board.set(msgspec.structs.replace(DRAIN, value="", by="bob"))
        await eventually(lambda: not one.switched.drained)
        assert one.board.known["drain"].by == "bob"
    assert decode((one.folder / FILE).read_bytes()) == decode((two.folder / FILE).read_bytes())


async def test_what_a_redis_lost_is_written_back_and_what_was_set_without_it_is_written(
    tmp_path: Path, valkey: Valkey
) -> None:
    one, two = gateway(tmp_path / "one", valkey.url), gateway(tmp_path / "two", valkey.url)
    async with one.running(), two.running():
        await one.board.set(DRAIN)
        await eventually(lambda: two.switched.drained)
        valkey.cli("FLUSHALL")
        await eventually(lambda: b"patching" in valkey.cli("HGET", "{landbridge}:switches", "drain"))
        valkey.kill()
        one.wall_ms += 3_600_000 * 24 * 365 * 10  # whatever its clock says: what is set later counts
        answer = await one.board.set(Wanted(name="max-traffic", value="10", by="carol", why="y"))
        assert (answer.refused, answer.everywhere) == ("", False)
        assert one.switched.max_traffic == 10.0
        await one.board.set(msgspec.structs.replace(DRAIN, value=""))
        assert two.switched.drained, "it cannot know yet"
        valkey.start()
        await eventually(lambda: two.switched.max_traffic == 10.0 and not two.switched.drained)
        assert one.board.problem == ""


async def test_a_limit_is_shared_by_the_gateways_that_live(tmp_path: Path) -> None:
    one = gateway(tmp_path / "one")
    rows = [(HERE, "a", 0), (HERE, "b", 500), (HERE, "gone", 60_000), (THERE, "c", 0)]
    one.facts.tenants.rows = tuple(
        GatewayRow(region=region, id=name, program="", config="", age_ms=age_ms) for region, name, age_ms in rows
    )
    await one.board.set(Wanted(name="max-traffic", value="50", by="a", why="b"))
    assert one.switched.max_traffic == 25.0


async def test_a_row_that_no_program_of_ours_wrote_is_nobodys(tmp_path: Path, valkey: Valkey) -> None:
    one = gateway(tmp_path / "one", valkey.url)
    valkey.cli("HSET", "{landbridge}:switches", "drain", "nonsense", "turbo", '9999999999999 {"value":"on"}')
    newer = b'1999999999999 {"value":"on","by":"x","why":"y","at_ms":0,"more":1}'
    valkey.cli("HSET", "{landbridge}:switches", "afterburner", newer)
    async with one.running():
        await eventually(lambda: "afterburner" in one.board.known)
        assert one.board.on().keys() == set()
        await one.board.set(DRAIN)
        assert one.switched.drained
    assert Switch(value="on", by="x", why="y", at_ms=1999999999999) == one.board.known["afterburner"]
