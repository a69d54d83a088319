"""The whole control process with a map from Redis: files, bus, channel, admin, on real sockets and a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gateway.bus.messages import MapApplied
from gateway.control.replication.region_map import PeerState, RegionMap, Write
from gateway.core.conditions import Conditions
from gateway.core.replication import encode_body, stamp_of
from tests.support.control_process import ControlProcess, control_process
from tests.support.feed import EU, US, placement
from tests.support.valkey import Valkey

CONFIG = """\
region: us-east-1
listen: {http: "127.0.0.1:0", hop: "127.0.0.1:0"}
state_dir: STATE_DIR
workers: 2
hop_keys: ["0123456789abcdef0123456789abcdef"]
regions:
  us-east-1: {public: "http://{tenant}.us.test"}
  eu-west-1: {public: "http://{tenant}.eu.test", gateways: ["127.0.0.1:9"]}
clusters:
  app: {endpoints: ["127.0.0.1:9000"]}
tenancy: {resolvers: [{host: "{tenant}.test"}]}
drain: {grace: 1s, limit: 2s}
tenant_map:
  source: redis
  partition_after: 2s
  redis: {url: "redis://u:hunter2@127.0.0.1:PORT/0", peers: {eu-west-1: "redis://:hunter2@127.0.0.1:1/0"}}
"""
ACL = ("ACL", "SETUSER", "u", "on", ">hunter2", "~*", "&*", "+@all")


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(15):
        while not await holds():
            await asyncio.sleep(0.02)


async def write(map_: RegionMap, tenant: str, home: str = US, epoch: int = 1) -> str:
    """Its offset in our log."""
    [current] = await map_.get([tenant])
    expected = None if current is None else stamp_of(current).version
    [written] = await map_.write([Write(tenant, expected, epoch, encode_body(placement(tenant, home)))])
    return f"{written.log_id} {written.seq}"  # type: ignore[union-attr]


@asynccontextmanager
async def map_of(server: Valkey) -> AsyncIterator[RegionMap]:
    made = RegionMap(server.url, US)
    try:
        yield made
    finally:
        await made.close()


async def replication(control: ControlProcess) -> dict[str, object]:
    shown: dict[str, object] = (await control.get("/api/v1/map"))["replication"]
    return shown


async def test_a_map_from_redis_from_nothing_to_a_workers_word(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as server:
        server.cli(*ACL)
        async with map_of(server) as region_map:
            await write(region_map, "acme")
            await region_map.mark_complete()
        server.kill()
        config = CONFIG.replace("PORT", str(server.port))
        async with control_process(tmp_path, config) as control, map_of(server) as region_map:
            assert "not complete" in await control.get("/readyz", 503)
            shown = await replication(control)
            assert (shown["connected"], shown["peers"][0]["state"]) == (False, "unknown")  # type: ignore[index]
            assert shown["redis"] == f"redis://***@127.0.0.1:{server.port}/0"
            server.start()
            server.cli(*ACL)

            async def ready() -> bool:
                async with control.client.get("/readyz") as response:
                    return response.status == 200

            await until(ready)
            worker = await control.worker()
            offset = await write(region_map, "acme", EU, 2)
            change = await worker.map_changed(lambda m: m.tenants == ("acme",))
            at = int(time.time() * 1000)
            await region_map.put_replication({EU: PeerState(state="following", offset="l 3", head="l 5", at_ms=at,
                                                            lag_records=2, lag_s=1.5)})  # fmt: skip

            async def gateway() -> dict[str, object]:
                rows = (await control.get("/api/v1/gateways"))["gateways"]
                return rows[0] if rows else {}

            async def applied() -> bool:
                worker.bus.send(MapApplied(change.generation, change.to_txn))
                return bool((await gateway()).get("applied", {}).get(US) == offset)  # type: ignore[attr-defined]

            await until(applied)
            row = await gateway()
            assert (row["region"], row["here"], row["live"]) == (US, True, True)
            assert row["behind"] is None, "nothing of the other region's log was seen here"

            async def lag() -> bool:
                return (await replication(control))["peers"][0]["lag_records"] == 2  # type: ignore[index,no-any-return]

            await until(lag)
            assert await control.metric("landbridge_map_lag_seconds", peer=EU) == 1.5
            assert await control.metric("landbridge_map_offset", peer=EU) == 3
            assert await control.metric("landbridge_map_stale") == 0
            assert await control.metric("landbridge_map_dead_letters") == 0
            assert await control.metric("landbridge_drift", kind="program") == 0
            tenant = await control.get("/api/v1/tenants/acme")
            assert (tenant["home"], tenant["written_in"], tenant["waiting"]) == (EU, US, None)
            assert tenant["arrived"] is not None
            assert tenant["written"] is not None
            server.kill()
            await control.logged("cannot be followed")

            async def stale() -> bool:
                return await control.metric("landbridge_map_stale") == 1

            await until(stale)
            [peer] = (await replication(control))["peers"]  # type: ignore[misc]
            assert (peer["state"], peer["lag_s"], peer["last"]["lag_s"]) == ("unknown", None, 1.5)
            assert peer["last"]["age_s"] >= 0
            assert "landbridge_map_lag_seconds{" not in await control.get("/metrics")
            assert await control.get("/readyz") == "ready\n"
            for path in ("config", "status", "map", "gateways"):
                assert "hunter2" not in str(await control.get(f"/api/v1/{path}"))
            assert "hunter2" not in control.log()


async def test_other_servers_are_connected_to_and_an_isolated_region_says_so(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Valkey(tmp_path / "valkey"))
        server.cli(*ACL)
        region_map = await stack.enter_async_context(map_of(server))
        await write(region_map, "acme")
        await region_map.mark_complete()
        async with control_process(tmp_path, CONFIG.replace("PORT", "1")) as control:
            worker = await control.worker()
            await worker.conditions(lambda m: m.isolated)
            assert (await control.get("/api/v1/status"))["isolated"] is True
            assert await control.metric("landbridge_isolated") == 1
            config = control.file.read_text().replace("@127.0.0.1:1/0", f"@127.0.0.1:{server.port}/0", 1)
            control.file.write_text(config)
            await control.wait_for({"ask": "restart-replicator"})
            await control.logged("the tenant map is what")
            at = int(time.time() * 1000)

            async def heard() -> bool:
                nonlocal at
                at += 1
                await region_map.put_replication({EU: PeerState(state="following", at_ms=at)})
                conditions = [message for message in worker.told if isinstance(message, Conditions)]
                return not conditions[-1].isolated

            await until(heard)
