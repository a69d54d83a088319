"""How soon a write of a tenant's record decides requests in every region, while requests go through all gateways.

    python bench/propagation.py [--writes 1000] [--rate 500] [--json]

Three regions, each with a Valkey and a gateway of one worker, on this machine. Single writes in changing regions, each
in its tenant's home, which turn the tenant from active to suspended or back; then every region's gateway is asked over
and over, on a kept connection, until its own worker answers by the new record: 403 by that very region, or 200. What
another region's gateway says over a hop does not count. Time runs from the acknowledgement of the write to the first
such answer of the last region. `--rate` is the load besides, GET and POST in turn, in sum over the gateways.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop

from gateway.core.placement import State
from tests.support.fleet import AP, EU, US, request, until
from tests.support.load_process import LoadProcess, Target, quantile
from tests.support.redis_fleet import RedisFleet, redis_fleet

MEDIAN_S: Final = 0.020
P99_S: Final = 0.100
REGIONS: Final = (US, EU, AP)
SUBJECTS: Final = {f"subject-{number}": region for number, region in enumerate(REGIONS)}
"""The tenant that is written in each region."""
LOADED: Final = {f"loaded-{number}": region for number, region in enumerate(REGIONS)}
"""The tenants that the load is for, each asked for at home and in the next region in turn."""

PAUSE_S: Final = 0.001
"""Between two questions to one gateway: more of them would themselves be what is measured."""
PATIENCE_S: Final = 10.0
SETTLE_S: Final = 0.02
"""Between a write that is used everywhere and the next one."""


class Sample(NamedTuple):
    """One write: seconds until each region's worker used it, the region that it was written in first."""

    region: str
    used_s: dict[str, float]

    @property
    def everywhere_s(self) -> float:
        return max(self.used_s.values())


class Asker(asyncio.Protocol):
    """One connection to one gateway, one request at a time."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.asked = 0
        self._data = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if found and self._answer is not None and len(body) >= int(length):
            answer, self._answer, self._data = self._answer, None, b""
            answer.set_result(head + found + body)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_exception(ConnectionError(f"{self.region} closed the connection: {error}"))

    async def ask(self, tenant: str) -> bytes:
        self.asked += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request(f"{tenant}.demo.test"))
        return await self._answer

    async def answers_by(self, tenant: str, state: State) -> float:
        """When this region's own worker first answered by a record of this state (monotonic seconds)."""
        ours = f'"region":"{self.region}"'.encode()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            reply = await self.ask(tenant)
            now = time.monotonic()
            status, body = reply[9:12], reply.partition(b"\r\n\r\n")[2].replace(b'": "', b'":"')
            if status == (b"200" if state is State.ACTIVE else b"403") and (status == b"200" or ours in body):
                return now
            if now > deadline:
                raise AssertionError(f"{self.region} does not answer by the record of {tenant}: {reply!r}")
            await asyncio.sleep(PAUSE_S)


async def measure(fleet: RedisFleet, writes: int, rate: float) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    askers: list[Asker] = []
    for region in REGIONS:
        asker = Asker(region)
        await loop.create_connection(lambda asker=asker: asker, "127.0.0.1", fleet[region].http)  # type: ignore[misc]
        askers.append(asker)
    targets = [
        Target(fleet[REGIONS[(number + step) % 3]].http, f"{tenant}.demo.test", home, rate / 6, 3)
        for number, (tenant, home) in enumerate(LOADED.items())
        for step in (0, 1)
    ]
    samples: list[Sample] = []
    async with LoadProcess(targets) as load:
        began, before = time.monotonic(), load.ok
        for number in range(writes):
            samples.append(await one_write(fleet, askers, number))
            await asyncio.sleep(SETTLE_S)
        took = time.monotonic() - began
        wrong = load.wrong()
    asked = sum(asker.asked for asker in askers)
    everywhere = [sample.everywhere_s for sample in samples]
    here = [sample.used_s[sample.region] for sample in samples]
    others = [used for sample in samples for region, used in sample.used_s.items() if region != sample.region]
    return {
        "writes": writes,
        "seconds": round(took, 1),
        "load_per_s": round((load.ok - before) / took, 1),
        "questions_per_s": round(asked / took, 1),
        "failed": len(wrong),
        "everywhere_ms": figures(everywhere),
        "where_written_ms": figures(here),
        "elsewhere_ms": figures(others),
        "limits_ms": {"median": MEDIAN_S * 1000, "p99": P99_S * 1000},
        "holds": statistics.median(everywhere) <= MEDIAN_S and quantile(everywhere, 0.99) <= P99_S and not wrong,
    }


async def one_write(fleet: RedisFleet, askers: Sequence[Asker], number: int) -> Sample:
    tenant, region = list(SUBJECTS.items())[number % 3]
    state = State.SUSPENDED if (number // 3) % 2 == 0 else State.ACTIVE
    await fleet.write(tenant, region, state=state)
    acknowledged = time.monotonic()
    used = await asyncio.gather(*(asker.answers_by(tenant, state) for asker in askers))
    return Sample(region, {asker.region: at - acknowledged for asker, at in zip(askers, used, strict=True)})


def figures(values: Sequence[float]) -> dict[str, float]:
    quantiles = {"median": statistics.median(values), "p90": quantile(values, 0.9), "p99": quantile(values, 0.99)}
    return {name: round(value * 1000, 2) for name, value in (quantiles | {"max": max(values)}).items()}


async def main(writes: int, rate: float, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with redis_fleet(Path(folder), REGIONS, SUBJECTS | LOADED, relayed=False) as fleet:
            await until(fleet.converged, "every region holds the map")
            report = await measure(fleet, writes, rate)
    if as_json:
        print(json.dumps(report))
        return
    print("{writes} writes in {seconds} s, beside {load_per_s} requests/s of load ({failed} failed)".format(**report))
    print(
        "and {questions_per_s} questions/s; from the acknowledgement until a region's worker answers by it, ms:".format(
            **report
        )
    )
    for name in ("everywhere_ms", "where_written_ms", "elsewhere_ms"):
        found = cast("dict[str, float]", report[name])
        print(
            f"  {name.removesuffix('_ms').replace('_', ' '):14}", *(f"{what} {ms:7.2f}" for what, ms in found.items())
        )
    everywhere = cast("dict[str, float]", report["everywhere_ms"])
    for what, limit in (("median", MEDIAN_S), ("p99", P99_S)):
        print(f"used in all three regions, {what}: {everywhere[what]:.1f} ms (limit {limit * 1000:g} ms)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    uvloop.run(main(options.writes, options.rate, options.json))
