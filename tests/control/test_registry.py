"""What gateways say of themselves, and what that amounts to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.control.registry import (
    COMMITS_MAX,
    LIVE_MS,
    SAID_MS,
    Acknowledged,
    Progress,
    Replication,
    behind,
    config_digests,
    drift,
    gateway_id,
    is_news,
)
from gateway.control.replication.region_map import GatewayRow, PeerState
from gateway.settings.schema import Address, ClusterSettings, Listen, RegionSettings, Settings, TenantMapSettings


def progress(seq: int) -> Progress:
    return Progress(f"log {seq}", {"here": f"log {seq}"})


def test_without_a_worker_what_is_committed_is_in_use() -> None:
    known = Acknowledged()
    assert known.used == Progress()
    assert known.committed(7, progress(1))
    assert known.used == progress(1)
    assert not known.committed(8, progress(1))


def test_the_slowest_worker_holds_it_back() -> None:
    known = Acknowledged()
    known.committed(7, progress(1))
    assert not known.acknowledged(0)
    assert not known.committed(8, progress(2))
    assert not known.committed(9, progress(3))
    assert known.used == progress(1)
    assert known.acknowledged(8)
    assert known.used == progress(2)
    assert not known.acknowledged(8)
    assert known.acknowledged(None), "the last worker has gone: the next one starts from the store"
    assert known.used == progress(3)


def test_a_worker_that_never_answers_costs_no_memory_and_hides_nothing() -> None:
    known = Acknowledged()
    known.acknowledged(0)
    for seq in range(3 * COMMITS_MAX):
        known.committed(seq + 1, progress(seq))
    known.acknowledged(3 * COMMITS_MAX)
    assert known.used == progress(3 * COMMITS_MAX - 1)


def test_two_states_of_one_transaction_are_the_later_one() -> None:
    known = Acknowledged()
    known.acknowledged(5)
    known.committed(6, progress(1))
    known.committed(6, progress(2))
    known.acknowledged(6)
    assert known.used == progress(2)


def test_another_store_begins_anew() -> None:
    known = Acknowledged()
    known.acknowledged(0)
    known.committed(900, progress(9))
    known.restart()
    known.committed(3, progress(1))
    known.acknowledged(5)
    assert known.used == progress(1)


def row(region: str, program: str = "1", config: str = "a.b", **more: object) -> GatewayRow:
    return GatewayRow(region=region, id="g", program=program, config=config, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "program", "config"),
    [
        ([], 0, 0),
        ([row("us"), row("us"), row("eu", config="a.c")], 0, 0),
        ([row("us"), row("eu", program="2"), row("ap", program="3")], 2, 0),
        ([row("us"), row("us", config="a.c")], 0, 1),
        ([row("us"), row("eu", config="x.b")], 0, 1),
        ([row("us"), row("eu", program="2", config="x.y", age_ms=LIVE_MS + 1)], 0, 0),  # it is gone
    ],
)
def test_drift(rows: list[GatewayRow], program: int, config: int) -> None:
    assert drift(rows) == (program, config)


@pytest.mark.parametrize(
    ("applied", "heads", "lacks"),
    [
        ({"us": "a 5", "eu": "b 7"}, {"us": "a 5", "eu": "b 7"}, 0),
        ({"us": "a 5", "eu": "b 7"}, {"us": "a 9", "eu": "b 8"}, 5),
        ({"us": "a 9"}, {"us": "a 5"}, 0),  # the head was read earlier
        ({"us": "a 5"}, {"us": "b 5"}, None),
        ({}, {"us": "a 5"}, None),
        ({}, {"us": "a 0", "eu": ""}, 0),  # nothing was ever written there
    ],
)
def test_behind(applied: dict[str, str], heads: dict[str, str], lacks: int | None) -> None:
    assert behind(row("us", applied=applied), heads) == lacks


def settings(**more: object) -> Settings:
    made = Settings(
        region="us",
        listen=Listen(Address("127.0.0.1", 0)),
        state_dir="/a",
        regions={"us": RegionSettings("http://{tenant}.us"), "eu": RegionSettings()},
        clusters={"app": ClusterSettings((Address("10.0.0.1", 80),))},
        tenant_map=TenantMapSettings("t"),
    )
    return msgspec.structs.replace(made, **more)


@pytest.mark.parametrize(
    ("other", "shared", "regional"),
    [
        ({"state_dir": "/b", "listen": Listen(Address("127.0.0.2", 1)), "workers": 9, "digest": "x"}, True, True),
        ({"clusters": {"app": ClusterSettings((Address("10.0.0.2", 80),))}}, True, False),
        ({"hop_keys": ("k" * 32,)}, False, False),
        ({"regions": {"us": RegionSettings("http://{tenant}.us")}}, False, False),
    ],
)
def test_what_configurations_have_to_say_alike(other: dict[str, object], shared: bool, regional: bool) -> None:
    one, two = config_digests(settings()).split("."), config_digests(settings(**other)).split(".")
    assert (one[0] == two[0], one[1] == two[1]) == (shared, regional)


def test_no_key_can_be_read_from_a_digest() -> None:
    assert "k" * 32 not in config_digests(settings(hop_keys=("k" * 32,)))


def test_a_gateway_keeps_its_name(tmp_path: Path) -> None:
    name = gateway_id(tmp_path)
    assert name == gateway_id(tmp_path)
    assert (tmp_path / "gateway.id").stat().st_mode & 0o077 == 0
    (tmp_path / "gateway.id").write_bytes(b"\xff")
    assert gateway_id(tmp_path) != name
    assert gateway_id(tmp_path / "nowhere")


def state(at_ms: int, said: str = "following") -> PeerState:
    return PeerState(state=said, at_ms=at_ms, lag_s=2.0)


def test_what_was_said_long_ago_is_not_known() -> None:
    known = Replication("u", connected=True, clock_ms=100_000, peers={"eu": state(100_000 - SAID_MS), "ap": None})
    assert known.said("eu") is not None
    assert known.said("ap") is None
    assert msgspec.structs.replace(known, clock_ms=100_001).said("eu") is None
    assert msgspec.structs.replace(known, connected=False).said("eu") is None


@pytest.mark.parametrize(
    ("before", "now", "news"),
    [
        (None, state(5), False),  # it may be as old as the Redis
        (state(5), state(5), False),
        (state(5), state(6), True),
        (state(5), state(4), True),  # a clock that was set back
        (state(5), state(6, "resyncing"), True),
        (state(5), state(6, "retrying"), False),
        (state(5), state(6, "unreachable"), False),
        (state(5), None, False),
    ],
)
def test_hearing_a_region_by_its_log(before: PeerState | None, now: PeerState | None, news: bool) -> None:
    assert is_news(before, now) is news
