"""All names of a configuration together, with what an earlier life knew of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.control.discovery.names import Names, discovered_names, rules_of
from gateway.control.tasks import TaskSet
from gateway.core.conditions import Target
from gateway.core.discovery import Result
from gateway.settings.schema import (
    Address,
    ClusterSettings,
    DnsSettings,
    Listen,
    Scheme,
    Settings,
    TenantMapSettings,
)
from gateway.store.names import KnownNames, read, write
from tests.support.eventually import eventually
from tests.support.name_server import NameServer, name_server

APP = Address("app.internal", 80, Scheme.DNS)
BARE = Address("localhost", 81)


def settings_of(server: NameServer, *endpoints: Address) -> Settings:
    return Settings(
        region="us",
        listen=Listen(Address("127.0.0.1", 0)),
        state_dir="/nowhere",
        tenant_map=TenantMapSettings("tenants.yaml"),
        clusters={"app": ClusterSettings(endpoints)},
        dns=DnsSettings((Address("127.0.0.1", server.port),), 0.1, 9.0, 0.5),
    )


class World:
    def __init__(self, folder: Path) -> None:
        self.tasks = TaskSet()
        self.news = 0
        self.counted: list[Result] = []
        self.names = Names(folder, self.tasks, random.Random(1), self.changed, self.counted.append)

    def changed(self) -> None:
        self.news += 1

    async def close(self) -> None:
        await self.tasks.close()
        self.names.close()


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with name_server() as made:
        yield made


async def test_what_is_known_is_kept_for_the_next_life(server: NameServer, tmp_path: Path) -> None:
    server.put("app.internal", "A", "10.0.0.1")
    world = World(tmp_path)
    settings = settings_of(server, APP, BARE)
    assert discovered_names(settings) == {APP}
    assert rules_of(settings).servers == (("127.0.0.1", server.port),)
    await world.names.use(settings)
    known = world.names.known()
    assert known.discovered == {str(APP): (Target("10.0.0.1", 80, name="app.internal"),)}
    assert "127.0.0.1" in known.addresses["localhost"]
    assert world.news
    await eventually(lambda: read(tmp_path) == known)
    await world.close()

    server.say["*"] = "SERVFAIL"
    after = World(tmp_path)
    await after.names.use(settings)
    assert after.names.known() == known
    await eventually(lambda: Result.SERVFAIL in after.counted)
    assert after.names.known() == known
    await after.close()


async def test_a_bare_name_that_cannot_be_resolved_is_what_it_was(
    server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, KnownNames({"gone.internal": ("10.0.0.7",), "other.internal": ("10.0.0.8",)}))

    def fails(name: str) -> tuple[str, ...]:
        raise OSError("no name server")

    world = World(tmp_path)
    monkeypatch.setattr(world.names.resolver, "_lookup", fails)
    await world.names.use(settings_of(server, Address("gone.internal", 80)))
    assert world.names.addresses == {"gone.internal": ("10.0.0.7",)}, "and of no name that is not configured"
    await world.close()


async def test_another_configuration_takes_no_name_from_the_one_in_use(server: NameServer, tmp_path: Path) -> None:
    """Workers run the old one until they heard of the new one; what is asked meanwhile is told at once at the end."""
    server.put("app.internal", "A", "10.0.0.1")
    server.put("new.internal", "A", "10.0.0.2")
    server.say["slow.internal"] = "drop"
    old = settings_of(server, APP)
    new = settings_of(server, Address("new.internal", 80, Scheme.DNS), Address("slow.internal", 80, Scheme.DNS))
    world = World(tmp_path)
    await world.names.use(old)
    before = world.news
    using = world.tasks.spawn(world.names.use(new), "use")
    await eventually(lambda: "dns://new.internal:80" in world.names.discovered)
    assert not using.done()
    assert world.news == before, "half of it is not asked yet"
    await using
    assert world.news == before + 1
    assert set(world.names.discovered) == {str(APP), "dns://new.internal:80"}
    world.names.only(new)
    assert set(world.names.discovered) == {"dns://new.internal:80"}
    await world.names.use(old)
    world.names.only(new)  # it was refused
    assert set(world.names.discovered) == {"dns://new.internal:80"}
    await world.close()


async def test_a_folder_that_takes_nothing_stops_nothing(server: NameServer, tmp_path: Path) -> None:
    server.put("app.internal", "A", "10.0.0.1")
    world = World(tmp_path / "missing")
    await world.names.use(settings_of(server, APP))
    assert world.names.discovered
    await eventually(lambda: world.names._writing is None)
    assert world.tasks.failures == 0
    await world.close()
