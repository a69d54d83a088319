"""Following names: when they are asked, what stands meanwhile. A scripted wire; the loop's own clock."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping

import pytest

from gateway.control.discovery import discovery as module
from gateway.control.discovery.discovery import Discovery
from gateway.control.tasks import TaskSet
from gateway.core.conditions import Target
from gateway.core.discovery import Answer, Found, Kind, Lacking, Record, Result, Rules, Service
from gateway.settings.schema import Address, Scheme
from tests.support.eventually import eventually

APP = Address("app.internal", 80, Scheme.DNS)
SAME = Address("app.internal", 81, Scheme.DNS)
SRV = Address("_http._tcp.app.internal", 0, Scheme.SRV)
NXDOMAIN = Lacking(Result.NXDOMAIN, "there is no such name")
TIMEOUT = Lacking(Result.TIMEOUT, "no answer")
RULES = Rules(timeout=0.3)


class Script:
    """The wire: a table that the test edits. What is in `stuck` does not answer until it is taken out."""

    def __init__(self) -> None:
        self.table: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.rules: list[Rules] = []
        self.stuck: set[str] = set()

    def host(self, name: str, *addresses: str, ttl: float = 60.0) -> None:
        self.table[name] = Found(addresses, ttl)

    def service(self, *services: Service, ttl: float = 60.0) -> None:
        self.table[SRV.host] = Found(services, ttl)

    async def __call__(self, kind: Kind, name: str, rules: Rules) -> Mapping[Record, Answer]:
        self.asked.append(name)
        self.rules.append(rules)
        while name in self.stuck:
            await asyncio.sleep(0.005)
        answer = self.table.get(name, NXDOMAIN)
        return {Record.SRV if kind is Kind.SERVICE else Record.A: answer}


class World:
    def __init__(self) -> None:
        self.script = Script()
        self.tasks = TaskSet()
        self.changes: list[dict[str, tuple[Target, ...]]] = []
        self.counted: list[Result] = []
        self.discovery = self.make()

    def make(self, kept: dict[str, tuple[Target, ...]] | None = None) -> Discovery:
        def changed() -> None:
            self.changes.append(made.targets)

        made = Discovery(self.script, self.tasks, random.Random(1), changed, self.counted.append, kept)
        return made

    def addresses(self, written: Address = APP) -> list[str]:
        return [target.address for target in self.discovery.targets.get(str(written), ())]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    assert made.tasks.failures == 0
    await made.tasks.close()


def service(host: str, port: int = 80, priority: int = 0, weight: int = 1) -> Service:
    return Service(priority, weight, port, host)


async def test_names_are_known_when_use_returns(world: World) -> None:
    world.script.host("app.internal", "10.0.0.2", "10.0.0.1")
    world.script.service(service("one", 8001), service("two", 8002, priority=5, weight=3))
    world.script.host("one.", "10.0.1.1")
    world.script.host("two.", "10.0.1.2")
    await world.discovery.use([APP, SAME, SRV], RULES)
    assert world.discovery.targets == {
        str(APP): (Target("10.0.0.1", 80, name="app.internal"), Target("10.0.0.2", 80, name="app.internal")),
        str(SAME): (Target("10.0.0.1", 81, name="app.internal"), Target("10.0.0.2", 81, name="app.internal")),
        str(SRV): (Target("10.0.1.1", 8001, 0, 1, "one"), Target("10.0.1.2", 8002, 5, 3, "two")),
    }
    assert sorted(world.script.asked) == [SRV.host, "app.internal", "one.", "two."], "each name once"


async def test_a_name_server_that_hangs_holds_nothing_up_for_longer_than_the_timeout(world: World) -> None:
    world.script.host("app.internal", "10.0.0.1")
    world.script.stuck.add(SRV.host)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.discovery.use([APP, SRV], RULES)
    assert 0.25 < loop.time() - began < 1.0
    assert world.addresses() == ["10.0.0.1"]
    assert world.addresses(SRV) == []


async def test_an_answer_is_asked_for_again_after_its_ttl_and_changes_the_endpoints(world: World) -> None:
    world.script.host("app.internal", "10.0.0.1", ttl=0.2)
    await world.discovery.use([APP], Rules(ttl_min=0.1))
    running = world.tasks.spawn(world.discovery.run(), "run")
    world.script.host("app.internal", "10.0.0.2", "10.0.0.3", ttl=60)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await eventually(lambda: world.addresses() == ["10.0.0.2", "10.0.0.3"])
    assert loop.time() - began < 2.0
    assert world.script.asked.count("app.internal") == 2
    running.cancel()


WRONG = [NXDOMAIN, TIMEOUT, Lacking(Result.SERVFAIL, "broken"), Lacking(Result.EMPTY, "no A")]


@pytest.mark.parametrize("wrong", WRONG)
async def test_the_last_good_answer_stands_and_one_line_says_so(
    world: World, wrong: Lacking, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "again_in", lambda *_: 0.02)
    world.script.host("app.internal", "10.0.0.1")
    await world.discovery.use([APP], RULES)
    world.script.table["app.internal"] = wrong
    world.tasks.spawn(world.discovery.run(), "run")
    await eventually(lambda: world.counted.count(wrong.result) >= 3)
    assert world.addresses() == ["10.0.0.1"]
    [shown] = world.discovery.shown()
    assert (shown.written, shown.targets, shown.result, shown.why) == (str(APP), 1, wrong.result, wrong.why)
    assert shown.age_s is not None
    assert shown.ttl_s == 60.0
    complaints = [line for line in caplog.messages if "cannot resolve" in line]
    assert complaints == [f"cannot resolve app.internal: {wrong.why}; the last good answer stands"]
    world.script.host("app.internal", "10.0.0.1")
    await eventually(lambda: "app.internal is resolved again" in caplog.messages)
    [shown] = world.discovery.shown()
    assert shown.result is None
    assert len(world.changes) == 1, "nothing changed for the workers"


async def test_a_name_that_never_resolved_says_why(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.discovery.use([APP], RULES)
    assert world.discovery.targets == {}
    [shown] = world.discovery.shown()
    assert (shown.targets, shown.age_s, shown.result) == (0, None, Result.NXDOMAIN)
    assert "cannot resolve app.internal: there is no such name; there is none yet" in caplog.messages


async def test_an_unusable_endpoint_has_its_name_asked_at_once_and_at_most_once_a_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HURRY_EVERY_S", 0.2)
    world.script.host("app.internal", "10.0.0.1", ttl=300)
    world.script.host("other.internal", "10.0.0.7", ttl=300)
    await world.discovery.use([APP, Address("other.internal", 80, Scheme.DNS)], RULES)
    world.tasks.spawn(world.discovery.run(), "run")
    await asyncio.sleep(0.25)
    assert world.script.asked.count("app.internal") == 1, "its TTL is long"
    world.script.host("app.internal", "10.0.0.2", ttl=300)
    world.discovery.down({"10.0.0.1:80"})
    await eventually(lambda: world.addresses() == ["10.0.0.2"], 0.15)
    for n in range(50):  # endpoints that flap
        world.discovery.down({"10.0.0.2:80"} if n % 2 else ())
        await asyncio.sleep(0.005)
    assert 3 <= world.script.asked.count("app.internal") <= 5
    assert world.script.asked.count("other.internal") == 1


async def test_a_service_that_moves_to_new_hosts_moves_when_these_are_known(world: World) -> None:
    world.script.service(service("one"), ttl=0.1)
    world.script.host("one.", "10.0.1.1")
    await world.discovery.use([SRV], Rules(ttl_min=0.1))
    world.tasks.spawn(world.discovery.run(), "run")
    world.script.service(service("two"), service("three"), ttl=0.1)
    world.script.host("two.", "10.0.1.2")
    world.script.stuck.add("three.")
    await eventually(lambda: "three." in world.script.asked)
    await asyncio.sleep(0.05)
    assert world.addresses(SRV) == ["10.0.1.1"]
    world.script.stuck.clear()
    await eventually(lambda: world.addresses(SRV) == ["10.0.1.2"])
    assert [[t.address for t in change[str(SRV)]] for change in world.changes] == [["10.0.1.1"], ["10.0.1.2"]]
    world.script.service(service("nowhere"), ttl=0.1)
    await eventually(lambda: "nowhere." in world.script.asked)
    await asyncio.sleep(0.05)
    assert world.addresses(SRV) == ["10.0.1.2"], "none of its hosts is known: the last ones stand"


async def test_what_left_the_configuration_is_asked_no_more(world: World) -> None:
    world.script.service(service("one"))
    world.script.host("one.", "10.0.1.1")
    await world.discovery.use([SRV, APP], RULES)
    await world.discovery.use([APP], RULES)
    assert world.discovery.targets == {}
    assert [shown.written for shown in world.discovery.shown()] == [str(APP)]
    assert {key.name for key in world.discovery._questions} == {"app.internal"}


async def test_what_an_earlier_life_knew_stands_until_there_is_an_answer(world: World) -> None:
    kept = {str(APP): (Target("10.0.0.9", 80, name="app.internal"),), "dns://gone:1": (Target("10.0.0.8", 1),)}
    world.discovery = world.make(kept)
    world.script.table["app.internal"] = TIMEOUT
    world.script.stuck.add("app.internal")
    began = asyncio.get_running_loop().time()
    await world.discovery.use([APP], RULES)
    assert asyncio.get_running_loop().time() - began < 0.25, "a start waits for no name that is known"
    world.script.stuck.clear()
    await world.discovery._start(next(iter(world.discovery._questions)))
    assert world.discovery.targets == {str(APP): kept[str(APP)]}
    world.script.host("app.internal", "10.0.0.1")
    await world.discovery._start(next(iter(world.discovery._questions)))
    assert world.addresses() == ["10.0.0.1"]


async def test_other_name_servers_are_asked_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HURRY_EVERY_S", 0.0)
    world.script.host("app.internal", "10.0.0.1", ttl=300)
    await world.discovery.use([APP], RULES)
    world.tasks.spawn(world.discovery.run(), "run")
    world.script.host("app.internal", "10.0.0.2", ttl=300)
    moved = RULES._replace(servers=(("127.0.0.1", 5353),))
    await world.discovery.use([APP], moved)
    await eventually(lambda: world.addresses() == ["10.0.0.2"])
    assert world.script.rules[-1] == moved


async def test_a_service_of_hundreds_of_hosts_asks_a_few_at_a_time(world: World) -> None:
    most = 0
    under_way = 0
    ask = world.script.__call__

    async def slowly(kind: Kind, name: str, rules: Rules) -> Mapping[Record, Answer]:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return await ask(kind, name, rules)

    world.discovery._ask_wire = slowly
    world.script.service(*(service(f"h{n}") for n in range(200)))
    for n in range(200):
        world.script.host(f"h{n}.", f"10.0.2.{n}")
    await world.discovery.use([SRV], Rules(timeout=10))
    assert len(world.addresses(SRV)) == 200
    assert most == module.AT_ONCE_MAX
    assert len(world.changes) == 1
