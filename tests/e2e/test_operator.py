"""The operator's tools on two running regions: once `--wait` returns, every gateway decides by what was written."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.fleet import EU, US, Gateway, landbridge, until
from tests.support.redis_fleet import RedisFleet, redis_fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOMES = {"acme": US, "globex": EU}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisFleet]:
    async with redis_fleet(tmp_path_factory.mktemp("operator"), (US, EU), HOMES, durable=False) as made:
        yield made


async def call(gateway: Gateway, *arguments: str, code: int = 0) -> dict[str, Any]:
    return await asyncio.to_thread(landbridge, gateway, *arguments, code=code)


def file(gateway: Gateway, homes: dict[str, str]) -> str:
    path = gateway.folder / "wanted.jsonl"
    path.write_text("".join(json.dumps({"tenant": tenant, "home": home}) + "\n" for tenant, home in homes.items()))
    return path.name


async def test_after_wait_everybody_uses_it(fleet: RedisFleet) -> None:
    await _all_alive(fleet)
    done = await call(
        *(fleet[US], "tenants", "apply", "-f", file(fleet[US], {"acme": EU, "globex": US}), "--yes", "--wait"),
        *("--reason", "swap them"),
    )
    assert (done["written"]["moved"], done["acknowledged"]) == (2, {"gateways": 2, "laggards": [], "silent": []})
    for entry in (US, EU):
        assert (await fleet.served_by(entry, "acme"), await fleet.served_by(entry, "globex")) == (EU, US)
    acme = await fleet.record("acme", EU)
    assert acme is not None
    assert (acme.version.epoch, acme.version.region, acme.why) == (2, US, "swap them")
    back = await call(fleet[EU], "tenants", "rollback", "acme", "--yes", "--reason", "no", "--wait")
    assert back["written"]["moved"] == 1
    assert [await fleet.served_by(entry, "acme") for entry in (US, EU)] == [US, US]
    versions = (await call(fleet[US], "tenants", "history", "acme"))["versions"]
    assert [version["record"]["why"] for version in versions] == ["no", "swap them", ""]
    assert not any(version["conflict"] for version in versions)


async def test_a_worker_that_hangs_is_waited_for_and_named(fleet: RedisFleet) -> None:
    await _all_alive(fleet)
    (worker,) = await fleet[EU].serving()
    os.kill(worker, signal.SIGSTOP)
    try:
        told = await call(
            *(fleet[US], "tenants", "apply", "-f", file(fleet[US], {"initech": US}), "--yes", "--wait"),
            *("--wait-limit", "1"),
            code=1,
        )
    finally:
        os.kill(worker, signal.SIGCONT)
    assert told["written"]["created"] == 1
    (laggard,) = told["acknowledged"]["laggards"]
    assert laggard.startswith(f"{EU}/")
    assert "lacks 1 of us-east-1's writes" in laggard
    assert told["acknowledged"]["gateways"] == 1

    assert await fleet.served_by(EU, "initech") == US


async def test_status_of_two_regions(fleet: RedisFleet) -> None:
    await _all_alive(fleet)
    told = (await call(fleet[US], "map", "status"))["redis"]
    assert told["problem"] is None
    assert told["peers"][EU]["state"] == "following"
    assert [(row["region"], row["alive"]) for row in told["gateways"]] == [(EU, True), (US, True)]
    assert told["drift"] == {"program": 0, "config": 0}
    digest = await call(fleet[EU], "map", "digest", "--peers", "--recount")
    assert digest["peers"][US]["outcome"] == "the same"


async def _all_alive(fleet: RedisFleet) -> None:
    """Both regions' registries know both gateways, and both replicators hear each other."""

    async def known() -> bool:
        for map_ in fleet.maps.values():
            if {row.region for row in await map_.gateways()} != {US, EU}:
                return False
            states = await map_.replication()
            if {state.state for state in states.values()} != {"following"} or len(states) != 1:
                return False
        return True

    await until(known, "both gateways are known everywhere")
