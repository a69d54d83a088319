"""Regions on the replicated tenant map: each with a real Valkey, all links between them and to it through relays.

`links[US, EU]` carries what US asks EU's Valkey, `hops[US, EU]` what US's gateways send EU's, and `own[US]` what the
gateways of US ask their own Valkey: all can be cut and healed, and the program under test knows no other way.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from gateway.control.replication import keys
from gateway.control.replication.region_map import Refused, RegionMap, Write, Written
from gateway.core.placement import NO_VERSION, Placement, State, Version, parse_version
from gateway.core.replication import decode_value, encode_body, stamp_of
from tests.support.application_process import application_process
from tests.support.client import once
from tests.support.fleet import AP, EU, REGIONS, US, Fleet, Gateway, request, until
from tests.support.links import Link
from tests.support.valkey import Valkey

HOMES = {"acme": US, "globex": EU, "initech": AP}
"""One tenant for each region, to begin with."""
MOVES = ("home", "standby", "state")
"""What takes a new epoch."""


def of_homes(homes: Mapping[str, str]) -> dict[str, Placement]:
    return {tenant: Placement(tenant=tenant, home=home) for tenant, home in homes.items()}


class RedisFleet(Fleet):
    """A `Fleet` whose map is in `servers`. `maps` reads and writes them directly, whatever is cut.

    Without `relayed` nobody uses the links: to measure what a relay in this process would slow down.
    """

    def __init__(
        self, folder: Path, names: Iterable[str] = REGIONS, *, durable: bool = True, relayed: bool = True
    ) -> None:
        super().__init__(folder, names, "")
        self.servers = {region: Valkey(folder / f"valkey.{region}", durable=durable) for region in self.regions}
        self.maps = {region: RegionMap(server.url, region) for region, server in self.servers.items()}
        self.own = {region: Link(server.port) for region, server in self.servers.items()}
        pairs = [(one, other) for one in self.regions for other in self.regions if one != other]
        self.links = {(one, other): Link(self.servers[other].port) for one, other in pairs}
        self.hops = {
            (region, name): Link(gateway.hop)
            for name, gateway in self.gateways.items()
            for region in self.regions
            if region != gateway.region
        }
        self.relayed = relayed
        self.acknowledged: dict[str, list[Version]] = {}
        """Every version that a write was told it has, by tenant."""
        self.more_map = ""
        """Further keys of every gateway's `tenant_map`."""

    # --- configuration

    def tenant_map(self, gateway: Gateway) -> str:
        here = gateway.region
        url = self._url(self.own[here])
        peers = {other: self._url(link) for (one, other), link in self.links.items() if one == here}
        return f'{{source: redis, redis: {{url: "{url}", peers: {json.dumps(peers)}}}{self.more_map}}}'

    def _url(self, link: Link) -> str:
        return f"redis://127.0.0.1:{link.port if self.relayed else link.target}/0"

    def hop_port(self, gateway: Gateway, other: Gateway) -> int:
        if gateway.region == other.region or not self.relayed:
            return other.hop
        name = next(name for name, found in self.gateways.items() if found is other)
        return self.hops[gateway.region, name].port

    # --- the network

    def partition(self, region: str) -> None:
        """Cut a region from all others: maps and hops. It keeps its own Valkey."""
        for link in self._around(region):
            link.cut()

    def heal(self) -> None:
        for link in (*self.own.values(), *self.links.values(), *self.hops.values()):
            link.heal()

    def _around(self, region: str) -> list[Link]:
        links = [link for pair, link in self.links.items() if region in pair]
        return links + [link for (one, name), link in self.hops.items() if region in (one, self.gateways[name].region)]

    async def turn(self, region: str, server: Valkey) -> None:
        """A failover: everybody reaches another server of this region from now on."""
        await self.maps[region].close()
        self.servers[region] = server
        self.maps[region] = RegionMap(server.url, region)
        for link in (self.own[region], *(link for (_, to), link in self.links.items() if to == region)):
            link.turn(server.port)

    # --- the map

    async def seed(self, records: Mapping[str, Placement]) -> None:
        """Write these records in their home regions, and say that every map is complete."""
        for region, region_map in self.maps.items():
            mine = [record for record in records.values() if record.home == region]
            for done in await region_map.write([Write(one.tenant, None, 1, encode_body(one)) for one in mine]):
                assert isinstance(done, Written)
            await region_map.mark_complete()

    async def record(self, tenant: str, at: str) -> Placement | None:
        """What the Valkey of region `at` holds of a tenant."""
        value = (await self.maps[at].get([tenant]))[0]
        return None if value is None else decode_value(tenant, value)

    async def write(self, tenant: str, at: str, **changes: Any) -> Written:
        """Change a record, or make one, in the Valkey of region `at`, as the tools do; the epoch goes as it must."""
        before = await self.record(tenant, at)
        changes = {"by": "test"} | changes
        if before is None:
            after, epoch, expected = Placement(tenant=tenant, **({"home": at} | changes)), 1, None
        else:
            after, expected = msgspec.structs.replace(before, **changes), before.version
            epoch = expected.epoch + any(getattr(before, key) != getattr(after, key) for key in MOVES)
        done = (await self.maps[at].write([Write(tenant, expected, epoch, encode_body(after))]))[0]
        assert not isinstance(done, Refused), (tenant, done)
        self.acknowledged.setdefault(tenant, []).append(done.version)
        return done

    async def delete(self, tenant: str, at: str) -> Written:
        return await self.write(tenant, at, state=State.DELETED)

    def forge(self, at: str, tenant: str, value: bytes) -> None:
        """Append to region `at`'s log what no program of ours would: its peers read it there."""
        cli = self.servers[at].cli
        seq = _integer(cli("HINCRBY", keys.META, "log_seq", "1"))
        assert cli("XADD", keys.LOG, f"{seq}-0", "i", tenant, "v", value).startswith(b"$")

    def scribble(self, at: str, tenant: str, value: bytes) -> None:
        """Put into region `at`'s map, and into its feed, what no program of ours would."""
        cli = self.servers[at].cli
        cli("HSET", keys.TENANTS, tenant, value)
        seq = _integer(cli("HINCRBY", keys.META, "feed_seq", "1"))
        assert cli("XADD", keys.FEED, f"{seq}-0", "i", tenant, "v", value, "o", "-").startswith(b"$")

    async def used(self, tenant: str, version: Version, names: Iterable[str] | None = None) -> None:
        """Wait until the stores of all gateways (or of these) hold this version, or a newer one."""

        async def there() -> bool:
            return all([await self.holds(name, tenant) >= version for name in names or self.gateways])

        await until(there, f"{tenant} {version} is in every store")

    async def holds(self, name: str, tenant: str) -> Version:
        """The version of a tenant in the store of a gateway, by its admin API."""
        return await version_of(self[name], tenant)

    async def digests(self, region: str) -> dict[str, str]:
        return await self.maps[region].digests()

    async def converged(self, regions: Iterable[str] | None = None) -> bool:
        """Whether these regions' Valkeys hold the same, by their digests."""
        one, *others = [await self.digests(region) for region in regions or self.regions]
        return all(other == one for other in others)

    async def alike(self) -> bool:
        """Whether all regions' Valkeys hold the same records: what a hand did, their digests need not know."""
        one, *others = [{k: v async for rows in each.scan() for k, v in rows} for each in self.maps.values()]
        return all(other == one for other in others)

    async def lost(self) -> list[str]:
        """Acknowledged writes that are neither current nor in history, in any region's Valkey."""
        kept: dict[str, set[Version]] = {tenant: set() for tenant in self.acknowledged}
        for region_map in self.maps.values():
            for tenant, versions in kept.items():
                value = (await region_map.get([tenant]))[0]
                history = [entry.value for entry in await region_map.history(tenant)]
                versions |= {stamp_of(each).version for each in (*history, value) if each}
        return [
            f"{tenant} {version}"
            for tenant, versions in self.acknowledged.items()
            for version in versions
            if version not in kept[tenant]
        ]

    # --- its end

    async def stop(self) -> None:
        self.heal()
        try:
            await super().stop()
        finally:
            for region_map in self.maps.values():
                await region_map.close()
            for link in (*self.own.values(), *self.links.values(), *self.hops.values()):
                await link.stop()
            for server in self.servers.values():
                server.kill()


async def version_of(gateway: Gateway, tenant: str) -> Version:
    """The version of a tenant in this gateway's store; the lowest while it has none."""
    reply = await once(gateway.admin, request("localhost", f"/api/v1/tenants/{tenant}"))
    if reply.status == 404:
        return NO_VERSION
    assert reply.status == 200, reply.body
    text = json.loads(reply.body)["version"]
    return NO_VERSION if text is None else parse_version(text)


def _integer(answer: bytes) -> int:
    assert answer.startswith(b":"), answer
    return int(answer[1:])


@asynccontextmanager
async def redis_fleet(
    folder: Path,
    names: Iterable[str] = REGIONS,
    homes: Mapping[str, str] = HOMES,
    *,
    durable: bool = True,
    relayed: bool = True,
    more_map: str = "",
    **settings: Any,
) -> AsyncIterator[RedisFleet]:
    """A started fleet whose tenants are at `homes`; `settings` are fields of every `Gateway`."""
    async with AsyncExitStack() as stack:
        made = RedisFleet(folder, names, durable=durable, relayed=relayed)
        ports = await stack.enter_async_context(application_process(*made.regions))
        stack.push_async_callback(made.stop)
        made.more_map = more_map
        for gateway in made.gateways.values():
            gateway.application.port = ports[gateway.region]
            for name, value in settings.items():
                setattr(gateway, name, value)
        await made.seed(of_homes(homes))
        yield await made.start()
