"""The function in Redis against a real Valkey: it answers as `core.shares.Table` does, whatever it is asked when."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.control.shares import region
from gateway.control.shares.region import RegionShares, SharesUnavailable
from gateway.core.shares import Report, Table
from gateway.settings.schema import RedisSettings
from tests.support.valkey import Valkey

CLOCK = "{landbridge}:clock"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey"), durable=False) as made:
        yield made


@pytest.fixture
async def shares(server: Valkey) -> AsyncIterator[RegionShares]:
    server.cli("FLUSHALL")
    made = RegionShares(RedisSettings(server.url), "here")
    yield made
    await made.close()


async def test_alone_a_gateway_may_spend_all_of_it(shares: RegionShares) -> None:
    answer = await shares.call("g1", 0, 1, {"t:acme": Report(1.0, 3.0)})
    assert (answer.gateways, answer.divisor) == (1, 1)
    assert answer.shares == {"t:acme": pytest.approx(1.0)}


async def test_who_leaves_holds_nothing(shares: RegionShares) -> None:
    for _ in range(3):
        for name in ("g1", "g2"):
            await shares.call(name, 2, 1, {"t:acme": Report(0.5, 3.0)})
    assert (await shares.call("g1", 2, 1, {})).shares["t:acme"] == pytest.approx(0.0075, abs=1e-6)
    await shares.leave("g2")
    answer = await shares.call("g1", 2, 1, {"t:acme": Report(0.5, 3.0)})
    assert (answer.gateways, answer.divisor) == (1, 1)
    assert answer.shares == {"t:acme": pytest.approx(1.0)}


async def test_keys_are_told_as_they_were_named(shares: RegionShares) -> None:
    keys = ["t:acme", "r:/api/%2F;x", "c:2001:db8::/64", "c:=ab#"]
    answer = await shares.call("g1", 0, 1, {key: Report(0.5, 1.0) for key in keys})
    assert sorted(answer.shares) == sorted(keys)


async def test_a_server_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with Valkey(tmp_path / "v", durable=False) as server:
        shares = RegionShares(RedisSettings(server.url), "here")
        await shares.call("g1", 0, 1, {})
        server.kill()
        with pytest.raises(SharesUnavailable):
            await shares.call("g1", 0, 1, {})
        server.start()
        assert (await shares.call("g1", 4, 4, {"t:acme": Report(0.25, 3.0)})).shares == {"t:acme": 0.25}
        await shares.close()


@pytest.mark.parametrize("seed", range(12))
async def test_it_answers_as_the_table_does(
    seed: int, server: Valkey, shares: RegionShares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random calls of five gateways over random times, some of them long; the server's clock is a key of ours."""
    script = region._SCRIPT.replace(b"redis.call('TIME')", b"redis.call('HMGET', '%b', 's', 'u')" % CLOCK.encode())
    assert script != region._SCRIPT
    monkeypatch.setattr(region, "_SCRIPT", script)
    monkeypatch.setattr(region, "_SHA", "0" * 40)
    rng = random.Random(seed)
    now_us = 1_000_000_000
    table: Table | None = None
    held: dict[tuple[str, str], float] = {}
    using: dict[str, int] = {}
    seen: dict[str, int] = {}
    for _ in range(150):
        now_us += rng.choice((1, 50, 100, 100, 900, 5_000, 31_000, 700_000)) * 1000
        server.cli("HSET", CLOCK, "s", str(now_us // 1_000_000), "u", str(now_us % 1_000_000))
        now, name = now_us / 1e6, f"g{rng.randrange(5)}"
        table = table or Table(now)
        if rng.random() < 0.05:
            table.leave(name)
            await shares.leave(name)
            using.pop(name, None)
            continue
        keys = [key for key in ("a", "b", "c") if rng.random() < 0.6]
        reports = {
            key: Report(round(held.get((name, key), 0.2), 12), rng.choice((0.0, 0.0, 0.1, 0.7, 3.0))) for key in keys
        }
        asked = (name, using.get(name, 0), seen.get(name, 1), reports)
        expected, found = table.call(*asked, now), await shares.call(*asked)
        assert (found.gateways, found.divisor) == (expected.gateways, expected.divisor)
        assert found.shares.keys() == expected.shares.keys()
        for key, share in expected.shares.items():
            assert found.shares[key] == (None if share is None else pytest.approx(share, abs=1e-9)), key
            held[name, key] = 0.2 if share is None else share
        using[name], seen[name] = found.divisor, found.gateways
