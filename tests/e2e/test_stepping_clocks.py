"""FAULTS 22 with the replicated map: a gateway's wall clock steps by an hour, either way, and no decision notices.

What is seen of a wall clock is what hops are signed with: between skewed gateways they are refused, and the skew is
shown. Versions are of the Redis' own clock, and what follows it is told apart by versions, never by a clock of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.core.placement import Partition
from tests.support.fleet import EU, US, Gateway, flag_of, until
from tests.support.measured import hold
from tests.support.redis_fleet import RedisFleet, redis_fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOCK = Path(__file__).resolve().parents[1] / "support" / "clock"
HOUR_S = 3600
PARTITION_AFTER_S = 3.0
USED_S = 2.0
"""Within which a write of the other region is used, when nothing is in its way."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisFleet]:
    async with redis_fleet(
        tmp_path_factory.mktemp("clocks"),
        (US, EU),
        {"acme": US, "globex": EU},
        more_map=f", partition_after: {PARTITION_AFTER_S:g}s",
        environ={"PYTHONPATH": str(CLOCK)},
    ) as made:
        careful = await made.write("acme", US, partition=Partition.REFUSE)
        await made.used("acme", careful.version)
        yield made


def step(gateway: Gateway, by_s: float) -> None:
    """Set the clock of all its processes: off by so much from now on."""
    (gateway.folder / "clock").write_bytes(struct.pack("<q", int(by_s * 1e9)))


@contextlib.asynccontextmanager
async def asking(fleet: RedisFleet) -> AsyncIterator[list[tuple[int, str | None]]]:
    """Twenty requests a second for US's own tenant into US; what was not served there, as status and region."""
    wrong: list[tuple[int, str | None]] = []

    async def ask() -> None:
        while True:
            reply = await fleet.ask(US, "acme")
            if (reply.status, reply.value("x-region")) != (200, US):
                wrong.append((reply.status, reply.value("x-region")))
            await asyncio.sleep(0.05)

    task = asyncio.get_running_loop().create_task(ask())
    try:
        yield wrong
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_clock_that_steps_by_an_hour_changes_nothing_but_who_believes_whom(fleet: RedisFleet) -> None:
    us, eu = fleet[US], fleet[EU]
    pids, taken = await us.pids(), await us.metric("landbridge_map_lease_taken_total")
    holder = (await fleet.maps[US].replication())[EU].holder
    async with asking(fleet) as wrong:
        for by_s in (HOUR_S, -HOUR_S, 0):
            step(us, by_s)
            began = time.monotonic()
            written = [await fleet.write(tenant, at, labels={"clock": str(by_s)}) for tenant, at in
                       (("acme", US), ("globex", EU))]  # fmt: skip
            for tenant, done in zip(("acme", "globex"), written, strict=True):
                await fleet.used(tenant, done.version)
            hold("22", f"clock of a gateway off by {by_s:+d} s: writes used", time.monotonic() - began, USED_S)
            said = (await fleet.maps[US].replication())[EU]
            assert said.state == "following", said
            assert said.lag_s < USED_S
            assert await us.metric("landbridge_map_stale") == 0

            async def skew_is_shown(by_s: float = by_s) -> bool:
                return abs(await eu.metric("landbridge_peer_skew_seconds", peer=US) - by_s) < 30

            await until(skew_is_shown, f"EU shows that US is off by {by_s} s")
    assert wrong == []
    assert await us.pids() == pids, "nobody was started again"
    assert (await fleet.maps[US].replication())[EU].holder == holder
    assert await us.metric("landbridge_map_lease_taken_total") == taken


async def test_how_long_nobody_was_heard_of_is_not_what_a_clock_says(fleet: RedisFleet) -> None:
    us = fleet[US]
    async with asking(fleet) as wrong:
        fleet.partition(US)
        cut = time.monotonic()
        step(us, HOUR_S)
        while time.monotonic() < cut + PARTITION_AFTER_S / 2:
            await asyncio.sleep(0.05)
        assert wrong == [], "an hour by the wall clock is not a second longer"
    step(us, -HOUR_S)

    async def refuses() -> bool:
        reply = await fleet.ask(US, "acme")
        return reply.status == 503 and flag_of(reply) == "partitioned"

    await until(refuses, "US counts as cut off")
    hold("22", "clock of a region that is cut off an hour back: it knows after", time.monotonic() - cut,
         PARTITION_AFTER_S + 2.0)  # fmt: skip
    fleet.heal()
    step(us, HOUR_S)
    healed = time.monotonic()

    async def serves() -> bool:
        return await fleet.served_by(US, "acme") == US

    await until(serves, "US serves again")
    hold("22", "the region is no longer cut off, its clock an hour ahead: it serves after", time.monotonic() - healed,
         USED_S)  # fmt: skip
    step(us, 0)
