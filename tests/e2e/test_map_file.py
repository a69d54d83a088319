"""The map file and its snapshot are cut short, scribbled over and deleted, before a start and under running workers.

What is asked for meanwhile is served right or refused clearly (503 `map_unavailable`), soon everything is served again,
and nothing is ever started in a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import damage as damages
from tests.support.client import Client, once
from tests.support.damage import Damage, cut_in_half, deleted, emptied, scribbled, scribbled_from_the_start
from tests.support.fleet import US, Fleet, Gateway, flag_of, fleet, landbridge, request, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TENANTS = 2_000
MAP = "tenants:\n" + "".join(f"  t{n}: {{home: us-east-1, hosts: [t{n}.shop.test]}}\n" for n in range(TENANTS))
COMMON = [cut_in_half, scribbled, deleted]
DAMAGES = [*COMMON, emptied, scribbled_from_the_start]


def state_of(gateway: Gateway) -> Path:
    return gateway.folder / "state"


def map_file(gateway: Gateway) -> Path:
    return damages.map_file(state_of(gateway))


def snapshot_file(gateway: Gateway) -> Path:
    return damages.snapshot_file(state_of(gateway))


async def whole(gateway: Gateway) -> None:
    """Wait until the map is what the tenants file says, and the snapshot what the map is."""

    async def there() -> bool:
        if (await gateway.api("map"))["records"] != TENANTS:
            return False
        behind = await gateway.metric("landbridge_map_snapshot_behind")
        return snapshot_file(gateway).exists() and not behind

    await until(there, "the snapshot is written")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("map"), (US,), MAP, workers=2) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Fleet) -> Gateway:
    """A gateway with two workers whose map is whole and copied."""
    gateway = shared[US]
    if not await gateway.ready():
        await until(gateway.ready, "it is ready")
    shared.tenants.write_text(MAP)
    await whole(gateway)
    return gateway


@pytest.fixture(scope="module")
def fresh() -> Iterator[str]:
    """Tenants that no worker has asked its map for yet, one after the other; never t1999."""
    return (f"t{n % (TENANTS - 1)}" for n in count())


async def all_served(gateway: Gateway, fresh: Iterator[str]) -> None:
    """Wait until ten fresh tenants in a row are served, each on a connection of its own; refusals must be clear."""
    served = 0
    async with asyncio.timeout(20):
        while served < 10:
            try:
                reply = await once(gateway.http, request(f"{next(fresh)}.demo.test"))
            except (OSError, EOFError):  # a worker died of SIGBUS with this in hand
                served = 0
                continue
            if reply.status == 200:
                served += 1
                continue
            served = 0
            assert (reply.status, flag_of(reply)) == (503, "map_unavailable")
            await asyncio.sleep(0.02)


# --- under running workers


@pytest.mark.parametrize(
    ("damage", "with_snapshot"), [*((damage, False) for damage in DAMAGES), *((damage, True) for damage in COMMON)]
)
async def test_damage_under_running_workers(
    gateway: Gateway, fresh: Iterator[str], damage: Damage, with_snapshot: bool
) -> None:
    held = next(fresh)
    assert (await once(gateway.http, request(f"{held}.demo.test"))).status == 200
    generation = await gateway.metric("landbridge_map_generation")
    restarts = await gateway.metric("landbridge_worker_restarts_total")
    if with_snapshot:
        damage(snapshot_file(gateway))
    damage(map_file(gateway))

    async def rebuilt() -> bool:
        try:
            reply = await once(gateway.http, request(f"{next(fresh)}.demo.test"))
            assert reply.status == 200 or flag_of(reply) == "map_unavailable"
            return await gateway.metric("landbridge_map_generation") > generation
        except (OSError, EOFError):  # control, or the worker that we met, died of it
            return False

    await until(rebuilt, "the map is rebuilt")
    await all_served(gateway, fresh)
    await whole(gateway)
    assert await gateway.metric("landbridge_worker_restarts_total") - restarts <= 2 * gateway.workers


@pytest.mark.parametrize("damage", COMMON)
async def test_a_damaged_snapshot_costs_nothing_and_is_written_anew(
    gateway: Gateway, fresh: Iterator[str], damage: Damage
) -> None:
    before = snapshot_file(gateway).read_bytes()
    generation = await gateway.metric("landbridge_map_generation")
    damage(snapshot_file(gateway))
    assert (await once(gateway.http, request(f"{next(fresh)}.demo.test"))).status == 200

    async def anew() -> bool:
        return snapshot_file(gateway).exists() and snapshot_file(gateway).read_bytes() == before

    await until(anew, "the snapshot is written anew")
    assert await gateway.metric("landbridge_map_generation") == generation


async def test_one_bad_record_is_its_own_tenants_503_and_is_found(gateway: Gateway, fresh: Iterator[str]) -> None:
    victim, generation = "t1999", await gateway.metric("landbridge_map_generation")
    data = map_file(gateway).read_bytes()
    errors = await gateway.metric("landbridge_map_read_errors_total")
    home = b"\xa5" + victim.encode() + b"\xa4home\xa9us-east-1"
    assert home in data
    with map_file(gateway).open("rb+") as file:
        at = -1
        while (at := data.find(home, at + 1)) >= 0:  # in older copies of its page too
            file.seek(at + len(home) - 9)
            file.write(b"US")
    statuses = []

    async def again() -> bool:
        reply = await once(gateway.http, request(f"{victim}.demo.test"))
        statuses.append(reply.status)
        return reply.status == 200 and await gateway.metric("landbridge_map_generation") > generation

    await until(again, "the map is rebuilt")
    assert set(statuses) <= {200, 503}
    if 503 in statuses:
        assert await gateway.metric("landbridge_map_read_errors_total") > errors


# --- before a start


async def restarted(gateway: Gateway) -> None:
    gateway.start()
    await until(gateway.ready, "it is ready")


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_map_damaged_before_a_start_is_rebuilt_from_the_snapshot(
    gateway: Gateway, shared: Fleet, fresh: Iterator[str], damage: Damage
) -> None:
    await gateway.stop()
    damage(map_file(gateway))
    shared.tenants.unlink()  # so that nothing but the snapshot knows
    await restarted(gateway)
    assert (await once(gateway.http, request(f"{next(fresh)}.demo.test"))).status == 200
    status = await gateway.api("status")
    assert status["map"]["records"] == TENANTS
    assert status["map"]["stale"]
    assert status["restarts"] == {"worker": 0, "control": 0, "replicator": 0}


@pytest.mark.parametrize("damage", COMMON)
async def test_with_the_snapshot_bad_too_it_refuses_until_the_tenants_file_is_there(
    gateway: Gateway, shared: Fleet, fresh: Iterator[str], damage: Damage
) -> None:
    await gateway.stop()
    damage(map_file(gateway))
    damage(snapshot_file(gateway))
    shared.tenants.unlink()
    gateway.start()

    async def answers() -> bool:
        try:
            return len(await gateway.serving()) == gateway.workers
        except (OSError, EOFError):
            return False

    await until(answers, "workers serve")
    reply = await once(gateway.http, request(f"{next(fresh)}.demo.test"))
    assert (reply.status, flag_of(reply)) == (503, "map_unavailable")
    assert (await once(gateway.admin, request("localhost", "/readyz"))).status == 503
    assert (await gateway.api("status"))["restarts"] == {"worker": 0, "control": 0, "replicator": 0}
    shared.tenants.write_text(MAP)
    await all_served(gateway, fresh)
    await whole(gateway)


# --- the loss guard


async def test_an_emptied_file_removes_nothing_until_an_operator_confirms(gateway: Gateway, shared: Fleet) -> None:
    client = await Client.connect(gateway.http)
    shared.tenants.write_text("tenants: {}\n")

    async def pending() -> bool:
        return bool(await gateway.metric("landbridge_map_loss_guard_pending"))

    await until(pending, "the change waits")
    await client.send(request("t5.demo.test"))
    assert (await client.reply()).status == 200
    await asyncio.to_thread(landbridge, gateway, "map", "confirm", "--change", "another", code=3)
    status = await asyncio.to_thread(landbridge, gateway, "map", "status")
    waiting = status["waiting"]
    assert isinstance(waiting, dict)
    assert (waiting["removes"], waiting["of"], waiting["leaves"]) == (TENANTS, TENANTS, 0)
    assert status["records"] == TENANTS
    done = await asyncio.to_thread(landbridge, gateway, "map", "confirm")
    assert (done["change"], done["applied"]) == (waiting["change"], True)
    await client.send(request("t5.demo.test"))
    assert (await client.reply()).status == 404
    await client.close()
    assert not await pending()
    await asyncio.to_thread(landbridge, gateway, "map", "confirm", code=1)
