"""The keeper: what workers are told when the Redis answers, is silent, is new, or is not there at all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from gateway.bus.messages import Demands, Hello, KeyDemand, Shares
from gateway.bus.server import BusPeer
from gateway.control.shares.keeper import ShareKeeper
from gateway.core.shares import FLOOR, Answer
from gateway.settings.loader import load, read_sources
from gateway.settings.schema import MapSource, RedisSettings, Settings
from gateway.store import seen
from tests.support.valkey import Valkey

KEY = "t:acme"
HELLO = Hello(0, 1)


class Worker:
    """A worker's end of the bus: what it was told, and what it makes of it."""

    def __init__(self) -> None:
        self.told: list[Shares] = []
        self.shares: dict[str, float] = {}

    def send(self, message: Shares) -> bool:
        self.told.append(message)
        self.shares.update(message.keys)
        for key in message.cold:
            self.shares.pop(key, None)
        return True

    @property
    def equal(self) -> float:
        return self.told[-1].equal

    @property
    def seq(self) -> int:
        return self.told[-1].seq if self.told else 0


class World:
    """A keeper with a clock of ours, and its workers."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.now = 1000.0
        self.spawned: list[Coroutine[Any, Any, Any]] = []
        self.keeper = ShareKeeper(folder, self.spawn, lambda: settings)
        self.keeper._now = lambda: self.now
        self.keeper._started = self.now
        self.workers: list[Worker] = []

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> object:
        work.close()
        return None

    def come(self) -> Worker:
        worker = Worker()
        self.workers.append(worker)
        self.keeper.hello(cast(BusPeer, worker), HELLO)
        return worker

    def tenths(self, count: int, demands: tuple[float, ...] = ()) -> None:
        for _ in range(count):
            self.now += 0.1
            for worker, demand in zip(self.workers, demands, strict=False):
                rows = (KeyDemand(KEY, worker.shares.get(KEY, worker.equal), demand, 1),) if demand else ()
                self.keeper.demands(cast(BusPeer, worker), Demands(worker.seq, rows))
            self.keeper.tick()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "gateway.yaml").write_text(
        f"region: here\nlisten: {{http: '127.0.0.1:1'}}\nstate_dir: {tmp_path}\nregions: {{here: {{}}}}\n"
        "clusters: {app: {endpoints: []}}\n"
    )
    return load(read_sources(tmp_path / "gateway.yaml", {}), {})


def with_redis(settings: Settings, url: str = "redis://127.0.0.1:1/0") -> Settings:
    tenant_map = msgspec.structs.replace(settings.tenant_map, source=MapSource.REDIS, redis=RedisSettings(url))
    return msgspec.structs.replace(settings, tenant_map=tenant_map)


async def test_without_a_redis_a_gateway_has_all_and_divides_it(tmp_path: Path, settings: Settings):
    world = World(tmp_path, settings)
    one, other = world.come(), world.come()
    assert (one.equal, other.equal) == (0.5, 0.5)
    world.tenths(10, (3.0, 0.0))
    assert one.shares[KEY] == pytest.approx(1 - FLOOR / 2, abs=0.01)
    assert other.shares[KEY] == pytest.approx(FLOOR / 2, abs=0.001)
    world.tenths(80, (0.0, 0.0))
    assert one.shares == other.shares == {}
    assert (one.equal, other.equal) == (0.5, 0.5)


async def test_a_worker_that_leaves_leaves_its_part(tmp_path: Path, settings: Settings):
    world = World(tmp_path, settings)
    one, other = world.come(), world.come()
    world.keeper.left(cast(BusPeer, other))
    assert one.equal == 1.0


async def test_a_new_control_says_nothing_before_it_knows_how_many_gateways_there_are(
    tmp_path: Path, settings: Settings
):
    seen.keep(tmp_path, 4)
    world = World(tmp_path, with_redis(settings))
    worker = world.come()
    world.tenths(19)
    assert worker.told == [], "it keeps what an earlier control told it"
    world.tenths(2)
    assert worker.equal == 0.25, "as many as were seen last"


async def test_shares_of_the_region_stand_drift_and_come_back(tmp_path: Path, settings: Settings):
    world = World(tmp_path, with_redis(settings))
    worker = world.come()
    world.keeper.take(Answer(4, 4, {KEY: 0.9}), world.now)
    world.tenths(5, (3.0,))
    assert worker.shares[KEY] == pytest.approx(0.9)
    for silent_s, share in ((29.0, 0.9), (45.0, 0.575), (61.0, 0.25)):
        world.now = 1000.0 + silent_s
        world.tenths(3, (3.0,))
        assert worker.shares[KEY] == pytest.approx(share, abs=0.02), silent_s
    world.keeper.take(Answer(4, 4, {KEY: 0.4}), world.now)
    world.tenths(2, (3.0,))
    assert worker.shares[KEY] == pytest.approx(0.4)
    world.tenths(70, (0.0,))
    world.keeper.take(Answer(4, 4, {KEY: None}), world.now)
    world.tenths(1)
    assert worker.shares == {}
    assert worker.equal == 0.25


async def test_a_gateway_reports_what_its_workers_may_still_hold(tmp_path: Path, settings: Settings):
    world = World(tmp_path, with_redis(settings))
    world.come()
    world.keeper.take(Answer(2, 2, {KEY: 0.9}), world.now)
    world.tenths(3, (3.0,))
    world.keeper.take(Answer(2, 2, {KEY: 0.2}), world.now)
    assert world.keeper._reports()[KEY].held == pytest.approx(0.9), "it was told, and has not said that it heard"
    world.tenths(1, (3.0,))
    assert world.keeper._reports()[KEY].held == pytest.approx(0.2)


async def test_a_larger_divisor_counts_once_all_workers_go_by_it(tmp_path: Path, settings: Settings):
    world = World(tmp_path, with_redis(settings))
    world.come()
    world.keeper.take(Answer(2, 2, {}), world.now)
    world.tenths(2, (0.0,))
    assert world.keeper._using() == 2
    world.keeper.take(Answer(5, 5, {}), world.now)
    assert world.keeper._using() == 2
    world.tenths(1, (0.0,))
    assert world.keeper._using() == 5


async def test_two_gateways_on_one_redis(tmp_path: Path, settings: Settings):
    """With a real Valkey and real time: all of it where it is asked for, then the other way round."""
    with Valkey(tmp_path / "valkey", durable=False) as server:
        found = with_redis(settings, server.url)
        worlds = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            world = World(tmp_path / name, found)
            world.keeper._now = asyncio.get_running_loop().time
            world.keeper._started = world.keeper._now()
            worlds.append(world)
            world.come()
        tasks = [asyncio.ensure_future(world.keeper.ask()) for world in worlds]  # noqa: TID251  kept, and ended below
        try:
            for hot in (0, 1):
                async with asyncio.timeout(20):
                    while worlds[hot].keeper.share(KEY, worlds[hot].keeper._now()) < 0.97:
                        for index, world in enumerate(worlds):
                            world.now = world.keeper._now()
                            worker = world.workers[0]
                            share = worker.shares.get(KEY, 0.5)
                            rows = (KeyDemand(KEY, share, 3.0, 1),) if index == hot else ()
                            world.keeper.demands(cast(BusPeer, worker), Demands(worker.seq, rows))
                            world.keeper.tick()
                        held = sum(world.workers[0].shares.get(KEY, 0.0) for world in worlds)
                        assert held <= 1.0 + FLOOR
                        await asyncio.sleep(0.02)
            assert [world.keeper.gateways for world in worlds] == [2, 2]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for world in worlds:
                await world.keeper.close()
