"""When a region counts as cut off from all others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.control.conditions import Judge, describe
from gateway.control.isolation import Isolation, keep, was_isolated
from gateway.core.conditions import Conditions
from gateway.settings.schema import (
    Address,
    Listen,
    MapSource,
    RedisSettings,
    RegionSettings,
    Settings,
    TenantMapSettings,
)
from gateway.settings.view import build_view

HOP = RegionSettings(gateways=(Address("127.0.0.1", 9),))


def settings(after_s: float | None = 30.0, *, keys: bool = True, peers: bool = True, others: bool = True) -> Settings:
    redis = RedisSettings("redis://h", {"there": "redis://t"} if peers else {})
    return Settings(
        region="here",
        listen=Listen(Address("127.0.0.1", 0)),
        state_dir="/nowhere",
        hop_keys=("k" * 32,) if keys else (),
        regions={"here": HOP, "there": HOP if others else RegionSettings()},
        tenant_map=TenantMapSettings("t", MapSource.REDIS, redis=redis, partition_after=after_s),
    )


def covered(made: Settings, was: bool = False) -> Isolation:
    isolation = Isolation(was)
    isolation.cover(made)
    return isolation


def test_it_takes_as_long_as_the_limit_says() -> None:
    isolation = covered(settings())
    assert [isolation.judge(now) for now in (100.0, 130.0, 130.1)] == [False, False, True]
    isolation.heard(140.0)
    assert [isolation.judge(now) for now in (140.0, 170.0, 170.1)] == [False, False, True]
    isolation.heard(120.0)
    assert isolation.judge(171.0), "what was heard earlier tells nothing"


@pytest.mark.parametrize(
    ("made", "isolated"),
    [
        (settings(None), False),
        (settings(peers=False), True),
        (settings(peers=False, keys=False), False),  # nobody can be heard: no keys to ask with, no log to read
        (settings(peers=False, others=False), False),
        (settings(keys=False), True),
    ],
)
def test_only_who_could_hear_somebody_can_be_isolated(made: Settings, isolated: bool) -> None:
    isolation = covered(made)
    assert isolation.judge(0.0) is False
    assert isolation.judge(1000.0) is isolated


def test_a_restarted_control_goes_on_from_what_was_concluded(tmp_path: Path) -> None:
    assert not was_isolated(tmp_path)
    keep(tmp_path, True)
    isolation = covered(settings(), was_isolated(tmp_path))
    assert isolation.judge(100.0), "nobody has been heard since"
    isolation.heard(101.0)
    assert not isolation.judge(101.0)
    keep(tmp_path, False)
    keep(tmp_path, False)
    assert not was_isolated(tmp_path)
    assert not covered(settings(None), True).judge(0.0)


def test_an_answer_of_a_gateway_is_hearing(tmp_path: Path) -> None:
    judge = Judge()
    made = settings(5.0)
    judge.cover(made, build_view(made, Conditions(), 0), {})
    assert not judge.conclude(100.0).isolated
    cut_off = judge.conclude(106.0)
    assert cut_off.isolated
    judge.peers.regions["there"]["127.0.0.1:9"].heard_at = 107.0
    again = judge.conclude(107.5)
    assert not again.isolated
    [turn] = describe(Conditions(), Conditions(isolated=True))
    assert turn == ("no other region was heard of for longer than tenant_map.partition_after", False)
    [turn] = describe(Conditions(isolated=True), Conditions())
    assert turn.is_good
