"""What becomes another while two maps are compared is not overlooked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.control.replication import compare as comparing
from gateway.control.replication.compare import Compared, catch_up
from gateway.control.replication.counters import Counters
from gateway.control.replication.incoming import bucket_of
from gateway.control.replication.region_map import RegionMap
from gateway.control.replication.tenure import Tenure
from gateway.core.placement import Version
from gateway.core.replication import Offset
from tests.support.replication import EU, US, Region, until, value_of, world


def tenure_of(region: Region, counters: Counters) -> Tenure:
    return Tenure(region.map, "", counters, asyncio.get_running_loop().time)  # without a token nothing is fenced


async def feed_of(region: Region) -> Offset:
    head = await region.map.head()
    return Offset(head.log_id, head.feed.last)


def elsewhere(bucket: str | None) -> bytes:
    """A value that region ap wrote, of another bucket."""
    versions = (Version(5, hlc, "ap-southeast-2") for hlc in range(1, 1000))
    return next(value for version in versions if bucket_of(value := value_of("acme", version)) != bucket)


async def test_what_a_peer_took_in_meanwhile_comes_last(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        counters = Counters(us.folder / "state", (EU,))
        await eu.write("acme", "other")
        began = await feed_of(eu)
        newer = elsewhere(None)
        await eu.map.merge([("acme", newer)])
        assert await catch_up(tenure_of(us, counters), eu.map, began) == Compared(1, 1, 1, 0)
        assert await us.content() == {"acme": newer}
        assert await catch_up(tenure_of(us, counters), eu.map, await feed_of(eu)) == Compared()
        eu.server.cli("FLUSHALL")
        assert await catch_up(tenure_of(us, counters), eu.map, began) is None
        await eu.write("acme")
        assert await catch_up(tenure_of(us, counters), eu.map, began) is None
        counters.close()


async def test_an_offset_is_true_when_the_peer_took_something_in_while_its_map_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the digests and the map: the record leaves the bucket that differed, and stands in no log of the peer."""
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await eu.write("acme")
        newer = elsewhere(bucket_of(await eu.current("acme") or b""))
        monkeypatch.setattr(comparing, "take_buckets", after(lambda: eu.map, newer, comparing.take_buckets))
        monkeypatch.setattr("gateway.control.replication.repair.PeerRepair.look", never)
        us.replicate()
        await until(lambda: us.is_even_with(eu))
        assert await us.current("acme") == newer


def after(map_: Callable[[], RegionMap], value: bytes, real: Callable[..., object]) -> Callable[..., object]:
    """`real`, once this value was taken in there."""

    async def take_buckets(*arguments: object) -> object:
        await map_().merge([("acme", value)])
        return await real(*arguments)  # type: ignore[misc]

    return take_buckets


async def never(_: object) -> int:
    await asyncio.Event().wait()
    return 0
