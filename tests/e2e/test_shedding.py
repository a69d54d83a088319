"""Overload of a whole gateway: three times what the application can do, and a herd that comes back after a failover.

Scaled in `make test`, in full in `make faults` (FAULTS 29).
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, until
from tests.support.measured import hold
from tests.support.overload import Few, Herd, Stream, quantile
from tests.support.pace import ALLOWANCE

US = "us-east-1"
SMALL = [f"small{number}" for number in range(10)]
TENANTS = "tenants:\n" + "".join(
    f"  {name}: {{home: {US}{', labels: {priority: ' + priority + '}' if priority else ''}}}\n"
    for name, priority in [*((name, "") for name in SMALL), ("hog", ""), ("vital", "critical"), ("batch", "bulk")]
)
SLOTS, SERVICE_S = 30, 0.2
"""150 requests a second: far less than gateway and clients could do on a machine with two cores."""
COST_S = 0.004
"""Processor time that a filter takes, so that the worker is what has too little: far less than its loop may be late, or
chance alone makes it late."""
FULL = ALLOWANCE == 1
LATENCY = 5.0
"""Times the unqueued latency that an admitted request takes at most, in 99 of 100 cases."""


def fleet(tmp_path: Path, application: Few, more: str) -> Fleet:
    fleet = Fleet(tmp_path, [US], TENANTS)
    fleet[US].application = application  # type: ignore[assignment]
    fleet[US].workers = 2
    fleet[US].more = more
    return fleet


async def test_three_times_too_much_leaves_goodput_and_is_over_when_it_is_over(tmp_path: Path) -> None:
    """Calm, then three times the capacity for a while, then calm. Critical and small tenants notice nothing."""
    application = Few(SLOTS, SERVICE_S)
    regions = fleet(tmp_path, application, "shedding: {}\n")
    overload_s, calm_s = (30.0, 12.0) if FULL else (4.0, 2.0)
    try:
        await regions.start()
        port, rng = regions[US].http, random.Random(7)
        small = [Stream(port, name) for name in SMALL]
        vital, hog, batch = Stream(port, "vital"), Stream(port, "hog"), Stream(port, "batch")
        streams = [*small, vital, hog, batch]
        total = calm_s + overload_s + calm_s
        steady = [*((one, 3.0) for one in small), (vital, 20.0), (hog, 3.0)]
        began = time.monotonic()
        begins, ends = began + calm_s, began + calm_s + overload_s

        async def much() -> None:
            await asyncio.sleep(begins - time.monotonic())
            await asyncio.gather(hog.run(20 * 3.0 * 2, overload_s, rng), batch.run(260.0, overload_s, rng))

        await asyncio.gather(much(), *(one.run(rate, total, rng) for one, rate in steady))
        await asyncio.gather(*(one.stop() for one in streams))
        shed = {name: await regions[US].metric("landbridge_shed_total", **{"class": name, "reason": "limit"})
                for name in ("bulk", "default", "critical")}  # fmt: skip
    finally:
        await regions.stop()
    assert [one.failed for one in streams if one.failed] == []
    settled = begins + min(2.0, overload_s / 3)
    lost = 1 - application.goodput(settled, ends) / application.capacity
    hold("29", "goodput lost to three times too much load", lost, 0.2, "%")
    took = [seconds for one in streams for seconds in one.seconds(settled, ends)]
    hold("29", "p99 of admitted requests under overload", quantile(took, 0.99), LATENCY * SERVICE_S)
    of_small = sum(one.refused(begins, ends) for one in small) / sum(len(one.between(begins, ends)) for one in small)
    of_vital = vital.refused(begins, ends) / len(vital.between(begins, ends))
    of_hog, of_batch = (one.refused(begins, ends) / len(one.between(begins, ends)) for one in (hog, batch))
    hold("29", "share of small tenants' requests that were refused", of_small, 0.005, "%")
    hold("29", "share of critical requests that were refused", of_vital, 0.001, "%")
    assert of_batch > 0.8, of_batch
    assert of_hog > 0.3, of_hog
    assert shed["bulk"] > shed["critical"]
    refused = [one for each in (hog, batch) for one in each.between(begins, ends) if one.status != 200]
    assert {one.status for one in refused} == {503}
    assert all(1 <= int(one.retry_after or 0) <= 10 for one in refused)
    assert len({one.retry_after for one in refused}) > 1
    after = [one for each in streams for one in each.between(ends, float("inf"))]
    last = max((one.sent for one in after if one.status != 200 or one.seconds > 2 * SERVICE_S), default=ends)
    hold("29", "from the overload's end to the last request that noticed", last - ends, 30.0 if FULL else calm_s)


async def test_a_herd_that_reconnects_is_turned_away_politely_and_served_in_the_end(tmp_path: Path) -> None:
    """FAULTS 29: all clients of another region within a second, on top of what is here already."""
    application = Few(SLOTS, SERVICE_S)
    count = 1000 if FULL else 200
    connections = 80
    regions = fleet(tmp_path, application, f"shedding: {{}}\nlimits: {{connections: {connections}}}\n")
    try:
        await regions.start()
        gateway, rng = regions[US], random.Random(3)
        vital, herd = Stream(gateway.http, "vital"), Herd(gateway.http, "hog")
        warm = Stream(gateway.http, "hog")
        await asyncio.gather(vital.run(20.0, 2.0, rng), warm.run(60.0, 2.0, rng))
        await warm.stop()
        began = time.monotonic()
        _, served = await asyncio.gather(vital.run(20.0, 3.0, rng), timed(herd.run(count)))
        probe = await gateway.ready()
        await vital.stop()
        turned = await gateway.metric("landbridge_shed_total", **{"class": "none", "reason": "connections"})
    finally:
        await regions.stop()
    assert probe
    assert herd.failed == []
    assert len(herd.served) == count
    assert None not in herd.refused
    assert all(1 <= int(one or 0) <= 10 for one in herd.refused)
    assert turned > 0
    most = sorted(herd.served)[int(count * 0.8)]
    goodput = sum(began <= at < most for at in application.served) / (most - began)
    hold("29", "goodput lost while a herd reconnects", 1 - goodput / application.capacity, 0.2, "%")
    hold("29", "until a whole herd was served", served, 30.0)
    assert vital.failed == []


async def timed(work: object) -> float:
    began = time.monotonic()
    await work  # type: ignore[misc]
    return time.monotonic() - began


@pytest.mark.faults
async def test_a_worker_without_time_sheds_by_itself_and_keeps_its_goodput(tmp_path: Path) -> None:
    """A filter takes 4 ms of each request: a worker has time for less than 250 a second, and is asked twice that."""
    application = Few(1000, 0.001)
    regions = fleet(tmp_path, application, "shedding: {}\nfilters: {paths: [slow.py]}\n")
    regions[US].workers = 1
    (regions[US].folder / "slow.py").write_text(
        "import time\n\n\n"
        "class Slow:\n"
        '    name, kind = "slow", "inbound"\n\n'
        "    def __init__(self, options):\n"
        "        pass\n\n"
        "    def __call__(self, exchange):\n"
        f"        end = time.thread_time() + {COST_S}\n"
        "        while time.thread_time() < end:\n"
        "            pass\n"
    )
    seconds = 20.0
    try:
        await regions.start()
        gateway, rng = regions[US], random.Random(1)
        [pid] = await gateway.serving()
        cost_s = await cost_of_one(gateway.http, pid)
        vital, batch = Stream(gateway.http, "vital"), Stream(gateway.http, "batch")

        async def window() -> tuple[float, float]:
            """Begin and length of the time in which the worker had a processor, or needed none, after it settled."""
            await asyncio.sleep(seconds / 3)
            began, starved_s = time.monotonic(), without_processor_s(pid)
            await asyncio.sleep(seconds / 2)
            return began, time.monotonic() - began - (without_processor_s(pid) - starved_s)

        (began, had_s), _, _ = await asyncio.gather(
            window(), vital.run(0.1 / cost_s, seconds, rng), batch.run(1.9 / cost_s, seconds, rng)
        )
        ends = began + seconds / 2
        await asyncio.gather(*(one.stop() for one in (vital, batch)))
        shed = await gateway.metric("landbridge_shed_total", **{"class": "bulk", "reason": "worker"})

        async def calm() -> bool:
            return (await once_more(gateway.http)) == 200

        await until(calm, "it lets all in again")
    finally:
        await regions.stop()
    assert [one.failed for one in (vital, batch) if one.failed] == []
    assert shed > 0
    lost = 1 - application.goodput(began, ends) * (ends - began) * cost_s / had_s
    hold("29", "goodput lost to a worker's own overload", lost, 0.3, "%")  # to refuse takes a tenth of the time
    took = batch.seconds(began, ends) + vital.seconds(began, ends)
    hold("29", "p50 of requests admitted by a worker without time", quantile(took, 0.5), 0.3)
    assert vital.refused() <= len(vital.answers) * 0.02


def without_processor_s(pid: int) -> float:
    """How long a process was kept waiting for a processor so far (proc(5), schedstat): others were running."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


async def cost_of_one(port: int, pid: int) -> float:
    """Processor time in seconds that a request takes of the worker, all in all."""

    def used_s() -> float:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9

    stream = Stream(port, "small1")
    await stream.run(50.0, 0.2, random.Random(0))
    await stream.stop()
    before, count = used_s(), 100
    for _ in range(count):
        await stream._one()
    used = used_s() - before
    await stream.stop()
    return used / count


async def once_more(port: int) -> int:
    stream = Stream(port, "batch")
    await stream._one()
    await stream.stop()
    return stream.answers[0].status if stream.answers else 0
