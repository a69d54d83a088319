"""Two regions' Valkey servers and configurations as an operator's command line sees them; no gateway runs.

What gateways and replicators would say in Redis is said by the test: `alive`, `hears`, `replicate`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from typer.testing import CliRunner, Result

from gateway.cli.main import app
from gateway.control.replication.region_map import GatewayRow, PeerState, RegionMap
from gateway.core.placement import Placement
from gateway.core.replication import decode_value
from tests.support.valkey import Valkey

HERE, THERE = "here", "there"

CONFIG = """\
region: %(region)s
listen: {http: 127.0.0.1:18080, hop: 127.0.0.1:18082}
state_dir: %(folder)s/state-%(region)s
regions:
  here: {public: "https://{tenant}.here.example.com", gateways: ["gw.here:8082"]}
  there: {public: "https://{tenant}.there.example.com", gateways: ["gw.there:8082"]}
hop_keys: [0123456789abcdef0123456789abcdef]
clusters: {app: {endpoints: ["127.0.0.1:9000"]}}
tenancy: {resolvers: [{host: "{tenant}.example.com"}]}
tenant_map: {source: redis, redis: {url: "%(url)s", peers: {%(other)s: "%(other_url)s"}}}
"""

HOUR_MS = 3_600_000
"""What a test says of gateways and replicators is said in an hour, so it does not grow old on a busy machine."""

T = TypeVar("T")


class World:
    """`servers` by region; `folder` holds `here.yaml`, `there.yaml` and the state directories."""

    def __init__(self, folder: Path, servers: dict[str, Valkey]) -> None:
        self.folder = folder
        self.servers = servers
        for region, other in ((HERE, THERE), (THERE, HERE)):
            parts = {"region": region, "folder": folder, "url": self._url(region), "other": other}
            self.config(region).write_text(CONFIG % (parts | {"other_url": self._url(other)}))
            (folder / f"state-{region}").mkdir(exist_ok=True)

    def _url(self, region: str) -> str:
        return self.servers[region].url.replace("redis://", "redis://default:s3cret@")

    def config(self, region: str = HERE) -> Path:
        return self.folder / f"{region}.yaml"

    def state(self, region: str = HERE) -> Path:
        return self.folder / f"state-{region}"

    # --- the command line

    def call(self, *arguments: str, code: int = 0, region: str = HERE, given: str | None = None) -> Result:
        result = CliRunner().invoke(app, [*arguments, "-c", str(self.config(region))], input=given)
        assert result.exit_code == code, (result.exit_code, result.output, result.exception)
        assert "s3cret" not in result.output
        return result

    def answer(self, *arguments: str, code: int = 0, region: str = HERE, given: str | None = None) -> Any:
        return json.loads(self.call(*arguments, "--json", code=code, region=region, given=given).stdout)

    def file(self, text: str, name: str = "t.yaml") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    # --- the maps

    def on(self, region: str, work: Callable[[RegionMap], Coroutine[Any, Any, T]]) -> T:
        """Do something with a region's map."""

        async def doing() -> T:
            map_ = RegionMap(self.servers[region].url, region)
            try:
                return await work(map_)
            finally:
                await map_.close()

        return asyncio.run(doing())

    def record(self, tenant: str, region: str = HERE) -> Placement | None:
        (value,) = self.on(region, lambda map_: map_.get([tenant]))
        return None if value is None else decode_value(tenant, value)

    def records(self, region: str = HERE) -> dict[str, Placement]:
        async def read(map_: RegionMap) -> dict[str, Placement]:
            return {tenant: decode_value(tenant, value) async for rows in map_.scan() for tenant, value in rows}

        return self.on(region, read)

    def replicate(self) -> None:
        """Bring each map what the other one has, as the replicators would."""
        for source, target in ((HERE, THERE), (THERE, HERE)):

            async def read(map_: RegionMap) -> list[tuple[str, bytes]]:
                return [row async for rows in map_.scan() for row in rows]

            rows = self.on(source, read)
            if rows:
                self.on(target, lambda map_, rows=rows: map_.merge(rows))  # type: ignore[misc]
            self.on(target, lambda map_: map_.mark_complete())

    def alive(
        self, *regions: str, applied: dict[str, str] | None = None, age_ms: int = -HOUR_MS, name: str = "gw-1"
    ) -> None:
        """A gateway of each of these regions is alive, in both registries, and is this far."""
        for region in regions:
            row = GatewayRow(region=region, id=name, program="1", config="a.b", applied=applied or {}, age_ms=age_ms)
            for server in self.servers:
                self.on(server, lambda map_, row=row: map_.register(row))  # type: ignore[misc]

    def hears(self, lag_s: float = 0.0, **parts: Any) -> None:
        """Each region's replicator says so of the other."""
        for region, other in ((HERE, THERE), (THERE, HERE)):

            async def say(map_: RegionMap, other: str = other) -> None:
                clock_ms = (await map_.head()).clock_ms
                state = PeerState(**({"state": "following", "lag_s": lag_s, "at_ms": clock_ms + HOUR_MS} | parts))
                await map_.put_replication({other: state})

            self.on(region, say)

    def audited(self, region: str = HERE) -> list[dict[str, Any]]:
        path = self.state(region) / "audit.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
