"""A region that every packet to is lost, and heals again (FAULTS 10 and 11), under load on real gateways."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import EU, US, Gateway, until
from tests.support.measured import hold
from tests.support.partitions import ParteableFleet, parteable_fleet
from tests.support.pour import Pour

TENANTS = """\
tenants:
  acme: {home: us-east-1}
  globex: {home: eu-west-1}
"""
CONNECT_S = 1.0
PROBE_INTERVAL_S = 1.0
WORKERS = 2
LINK = f"region:{EU}"


class Watching:
    """The link's breaker as the admin API shows it, asked all the time."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.seen: list[tuple[float, dict[str, Any]]] = []

    async def __aenter__(self) -> Watching:
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            rows = (await self.gateway.api("breakers"))["breakers"]
            self.seen.append((time.monotonic(), next(row for row in rows if row["cluster"] == LINK)))
            await asyncio.sleep(0.03)

    def first(self, state: str, since: float) -> float | None:
        """When some worker was first seen so."""
        states = ((at, {row["state"], *row["workers"].values()}) for at, row in self.seen)
        return next((at for at, found in states if at >= since and state in found), None)


async def cut_and_heal(fleet: ParteableFleet, before_s: float, cut_s: float, rate: float) -> None:
    us = fleet[US]
    async with (
        Pour(us.http, "globex.demo.test", rate) as far,
        Pour(us.http, "acme.demo.test", 2 * rate) as near,
        Watching(us) as watching,
    ):
        began = time.monotonic()
        await asyncio.sleep(before_s)
        assert {one.status for one in far.ended} == {200}
        cut = time.monotonic()
        fleet.part(EU)

        async def opened() -> float | None:
            return watching.first("open", cut)

        at = await until(opened, "the breaker opens")
        assert at is not None
        hold("10", "region partition: the breaker opened", at - cut, 5.0)
        await asyncio.sleep(max(0.0, cut + cut_s - time.monotonic()))
        healed = time.monotonic()
        fleet.heal()
        await asyncio.sleep(11.0)
    failed = [one for one in far.ended if one.status != 200 and cut <= one.ended < healed]
    assert len(failed) > cut_s * rate / 2
    assert {one.status for one in failed} <= {502, 503, 504}
    slowest = max(one.seconds for one in far.ended if one.sent < healed)
    hold("10", "region partition: the slowest failed request", slowest, CONNECT_S + 0.5)
    assert {one.status for one in near.ended} == {200}
    p99, during = near.p99(began, cut), near.p99(cut, healed)
    print(f"other tenants' p99: {p99 * 1e3:.1f} ms before, {during * 1e3:.1f} ms during the partition")
    hold("10", "region partition: other tenants' p99 rose by", max(0.0, during - p99 - 0.001) / p99, 0.10, "%")
    came_back(far, watching, healed)


def came_back(far: Pour, watching: Watching, healed: float) -> None:
    """How requests passed again after the link had healed."""
    ramping = watching.first("ramping", healed)
    assert ramping is not None, watching.seen[-1]
    asked = sorted(one.sent for one in far.ended if one.status == 200 and healed <= one.sent < ramping - 0.1)
    most = max((sum(at <= other < at + PROBE_INTERVAL_S * 0.95 for other in asked) for at in asked), default=0)
    hold("11", "partition heals: probes within an interval", most, WORKERS, "")
    after = sorted(one for one in far.ended if one.sent >= healed)
    good_from = next(
        one.sent
        for one in after
        if (window := far.between(one.sent, one.sent + 1.0))
        and sum(o.status == 200 for o in window) >= 0.95 * len(window)
    )
    hold("11", "partition heals: 95 percent succeed again", good_from - healed, 10.0)
    assert {one.status for one in far.between(healed + 10.0, healed + 11.0)} == {200}


async def parted(folder: Path, before_s: float, cut_s: float, rate: float) -> None:
    async with parteable_fleet(folder, (US, EU), TENANTS, workers=WORKERS) as fleet:
        await cut_and_heal(fleet, before_s, cut_s, rate)


async def test_a_region_that_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    await parted(tmp_path, 2.0, 4.0, 60.0)


@pytest.mark.faults
async def test_a_region_that_is_cut_off_for_long_and_comes_back(tmp_path: Path) -> None:
    await parted(tmp_path, 12.0, 60.0, 200.0)
