"""Bare host names: resolved off the loop, the last good answer kept."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from gateway.control import resolve
from gateway.control.resolve import Resolver, bare_names, look_up
from gateway.settings.schema import Address, ClusterSettings, Listen, RegionSettings, Settings, TenantMapSettings


class Names:
    """A name server: a table that the test edits. A name in `stuck` hangs until released."""

    def __init__(self, **table: tuple[str, ...]) -> None:
        self.table = table
        self.asked: list[str] = []
        self.stuck = threading.Event()
        self.hang = ""

    def __call__(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        if name == self.hang:
            self.stuck.wait(10)
        if name not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.table[name]


async def test_new_names_are_known_when_use_returns() -> None:
    changes: list[int] = []
    resolver = Resolver(lambda: changes.append(1), Names(app=("10.0.0.1",), web=("10.0.0.2", "10.0.0.3")))
    await resolver.use({"app", "web"})
    assert resolver.addresses == {"app": ("10.0.0.1",), "web": ("10.0.0.2", "10.0.0.3")}
    assert len(changes) == 2


async def test_the_last_good_answer_stays() -> None:
    names = Names(app=("10.0.0.1",))
    resolver = Resolver(lambda: None, names)
    await resolver.use({"app"})
    del names.table["app"]
    await resolver._start("app")
    assert resolver.addresses == {"app": ("10.0.0.1",)}
    assert "not known" in resolver.failing["app"]
    names.table["app"] = ("10.0.0.9",)
    await resolver._start("app")
    assert resolver.addresses == {"app": ("10.0.0.9",)}
    assert not resolver.failing


async def test_an_equal_answer_is_no_change() -> None:
    changes: list[int] = []
    resolver = Resolver(lambda: changes.append(1), Names(app=("10.0.0.1",)))
    await resolver.use({"app"})
    await resolver._start("app")
    assert len(changes) == 1


async def test_a_name_server_that_hangs_costs_neither_the_loop_nor_other_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolve, "FIRST_S", 0.3)
    names = Names(app=("10.0.0.1",), slow=("10.0.0.2",))
    names.hang = "slow"
    changed = asyncio.Event()
    resolver = Resolver(changed.set, names)
    using = asyncio.get_running_loop().create_task(resolver.use({"app", "slow"}))
    worst = 0.0
    while not using.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        worst = max(worst, time.monotonic() - before)
    await using
    assert resolver.addresses == {"app": ("10.0.0.1",)}
    assert worst < 0.25
    await resolver.use({"app", "slow"})
    assert names.asked.count("slow") == 1, "one lookup of a name at a time"
    changed.clear()
    names.stuck.set()
    await asyncio.wait_for(changed.wait(), 5)
    assert resolver.addresses["slow"] == ("10.0.0.2",)


async def test_names_that_left_the_configuration_are_forgotten() -> None:
    names = Names(app=("10.0.0.1",))
    resolver = Resolver(lambda: None, names)
    await resolver.use({"app", "lost"})
    assert set(resolver.failing) == {"lost"}
    await resolver.use(())
    assert resolver.addresses == {}
    assert resolver.failing == {}


def test_bare_names_are_those_of_clusters_and_of_other_regions() -> None:
    settings = Settings(
        region="us",
        listen=Listen(Address("127.0.0.1", 0)),
        state_dir="/nowhere",
        tenant_map=TenantMapSettings("tenants.yaml"),
        clusters={"app": ClusterSettings((Address("10.0.0.1", 80), Address("app.internal", 80), Address("::1", 80)))},
        regions={
            "us": RegionSettings(gateways=(Address("gw.us.internal", 80),)),
            "eu": RegionSettings(gateways=(Address("gw.eu.internal", 80),)),
        },
    )
    assert bare_names(settings) == {"app.internal", "gw.eu.internal"}


def test_look_up_asks_the_machine() -> None:
    assert "127.0.0.1" in look_up("localhost")
