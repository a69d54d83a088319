"""All that control knows, brought to one value; and what of it is said in the log."""

from __future__ import annotations

import msgspec
import pytest

from gateway.control.conditions import Judge, describe
from gateway.core.conditions import Conditions, PeerCondition, Target
from gateway.core.peering import PeerAnswer
from gateway.core.ramp import SHARE_FIRST
from gateway.core.view import Ability
from gateway.settings.schema import (
    Address,
    ClusterSettings,
    HealthSettings,
    Listen,
    OutlierSettings,
    RegionSettings,
    Scheme,
    Settings,
    TenantMapSettings,
)
from gateway.settings.view import build_view

SETTINGS = Settings(
    region="us",
    listen=Listen(Address("127.0.0.1", 0)),
    state_dir="/nowhere",
    tenant_map=TenantMapSettings("tenants.yaml"),
    hop_keys=("k" * 32,),
    clusters={
        "app": ClusterSettings((Address("app.internal", 80),), health=HealthSettings("/healthz")),
        "web": ClusterSettings((Address("10.0.0.9", 80),)),
    },
    regions={
        "us": RegionSettings(gateways=(Address("10.1.0.1", 82),)),
        "eu": RegionSettings(gateways=(Address("10.2.0.1", 82), Address("10.2.0.2", 82))),
        "ap": RegionSettings(),
    },
)
ADDRESSES: dict[str, tuple[str, ...]] = {"app.internal": ("10.0.0.1", "10.0.0.2")}


@pytest.fixture
def judge() -> Judge:
    made = Judge()
    view = build_view(SETTINGS, Conditions(addresses=ADDRESSES), 0)
    made.cover(SETTINGS, view, ADDRESSES)
    return made


def answer(draining: bool = False) -> PeerAnswer:
    return PeerAnswer(region="eu", wall_ms=0, draining=draining, clusters={"app": Ability.ABLE})


def test_nothing_known_is_nothing_down(judge: Judge) -> None:
    found = judge.conclude(0.0)
    unprobed = PeerCondition(probed=False, reachable=True, clusters={})
    assert found == Conditions(addresses=ADDRESSES, peers={"eu": unprobed, "ap": unprobed})
    view = build_view(SETTINGS, found, 1)
    assert all(cluster.can_serve for cluster in view.clusters.values())
    assert view.ability("eu", "app") is Ability.ABLE


def test_what_names_stand_for_is_judged_and_told() -> None:
    written = "srv://_http._tcp.app.internal"
    settings = msgspec.structs.replace(
        SETTINGS, clusters={"app": ClusterSettings((Address("_http._tcp.app.internal", 0, Scheme.SRV),))}
    )
    discovered = {written: (Target("10.0.0.1", 80, 0, 5), Target("10.0.0.2", 80, 9, 5))}
    judge = Judge()
    judge.cover(settings, build_view(settings, Conditions(discovered=discovered), 0), {}, discovered)
    assert judge.connects_failed("app", "10.0.0.1:80", 3)
    found = judge.conclude(0.0)
    assert (found.discovered, found.down, found.unable) == (discovered, {"app": ("10.0.0.1:80",)}, ())
    assert [e.key for e in build_view(settings, found, 1).clusters["app"].usable] == ["10.0.0.2:80"]
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Conditions)
    assert again == found


def test_a_report_turns_an_endpoint_and_the_last_one_the_cluster(judge: Judge) -> None:
    assert not judge.connects_failed("app", "10.0.0.1:80", 2)
    assert judge.connects_failed("app", "10.0.0.1:80", 3)
    found = judge.conclude(0.0)
    assert found.down == {"app": ("10.0.0.1:80",)}
    assert found.unable == ()
    assert judge.connects_failed("app", "10.0.0.2:80", 3)
    found = judge.conclude(0.0)
    assert found.unable == ("app",)
    assert not build_view(SETTINGS, found, 1).clusters["app"].can_serve


def test_a_cluster_that_rests_has_its_endpoint_up(judge: Judge) -> None:
    judge.connects_failed("web", "10.0.0.9:80", 3)
    judge.conclude(0.0)
    judge.health.check("web", "10.0.0.9:80", True)
    resting = judge.conclude(1.0)
    assert (resting.down, resting.unable) == ({}, ("web",))
    assert judge.conclude(3.0).unable == ()


def test_peers_are_down_draining_or_able(judge: Judge) -> None:
    one, two = judge.peers.find("eu", "10.2.0.1:82"), judge.peers.find("eu", "10.2.0.2:82")
    assert one is not None
    assert two is not None
    one.answered(answer(), 0.0, 0.0)
    two.answered(answer(draining=True), 0.0, 0.0)
    found = judge.conclude(1.0)
    assert found.draining == {"region:eu": ("10.2.0.2:82",)}
    assert found.peers["eu"] == PeerCondition(probed=True, reachable=True, clusters={"app": Ability.ABLE})
    assert judge.connects_failed("region:eu", "10.2.0.1:82", 3)
    found = judge.conclude(1.0)
    assert found.down == {"region:eu": ("10.2.0.1:82",)}
    assert found.unable == ("region:eu",)
    assert not found.peers["eu"].reachable
    assert build_view(SETTINGS, found, 1).ability("eu", "app") is Ability.UNREACHABLE


def test_a_region_without_gateways_is_never_probed_nor_unable(judge: Judge) -> None:
    found = judge.conclude(100.0)
    assert not found.peers["ap"].probed
    assert "region:ap" not in found.unable


@pytest.mark.parametrize(
    ("cluster", "endpoint"), [("none", "10.0.0.1:80"), ("app", "10.9.9.9:80"), ("region:xx", "1.1.1.1:1"), ("", "")]
)
def test_reports_of_what_is_not_covered_are_ignored(judge: Judge, cluster: str, endpoint: str) -> None:
    assert not judge.connects_failed(cluster, endpoint, 3)
    assert judge.conclude(0.0).down == {}


def test_what_turned_is_said() -> None:
    old = Conditions(down={"app": ("a:1",)}, peers={"eu": PeerCondition(True, False, {})})
    new = Conditions(
        down={"web": ("b:1",)},
        draining={"region:eu": ("c:1",)},
        unable=("web",),
        peers={
            "eu": PeerCondition(True, True, {"app": Ability.ABLE, "web": Ability.UNABLE}),
            "ap": PeerCondition(False, True, {}),
        },
    )
    assert describe(old, new) == [
        ("cluster web cannot serve", False),
        ("endpoint b:1 of web is down", False),
        ("endpoint a:1 of app is no longer down", True),
        ("endpoint c:1 of region:eu is draining", True),
        ("region eu answers: app able, web unable", False),
    ]
    assert describe(new, new) == []
    assert ("region eu is unreachable", False) in describe(new, old)
    assert ("cluster web can serve again", True) in describe(new, old)


def test_a_drain_is_a_share_of_nothing_and_ends_by_a_ramp(judge: Judge) -> None:
    judge.switched.drain(True, 100.0)
    assert judge.conclude(100.0).shares == {"app": 0.0, "web": 0.0}
    judge.switched.drain(False, 200.0)
    shares = [judge.conclude(200.0 + step).shares.get("app", 1.0) for step in range(7)]
    assert shares[0] == SHARE_FIRST
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    texts = [turn.text for turn in describe(Conditions(shares={"app": 0.5}), Conditions())]
    assert texts == ["cluster app serves everybody again"]
    texts = [turn.text for turn in describe(Conditions(), Conditions(shares={"app": 0.1}))]
    assert texts == ["cluster app takes 10% of who can go elsewhere"]
    assert describe(Conditions(shares={"app": 0.1}), Conditions(shares={"app": 0.2})) == [], "not each step"


def test_a_cluster_whose_breakers_are_all_open_cannot_serve(judge: Judge) -> None:
    judge.broken = frozenset(("app",))
    assert judge.conclude(100.0).unable == ("app",)
    judge.broken = frozenset()
    found = judge.conclude(101.0)
    assert (found.unable, found.shares) == ((), {"app": SHARE_FIRST})


def test_how_many_failed_connects_take_an_endpoint_down_is_the_clusters_to_say() -> None:
    web = msgspec.structs.replace(SETTINGS.clusters["web"], outliers=OutlierSettings(connect_failures=5))
    app = msgspec.structs.replace(SETTINGS.clusters["app"], outliers=OutlierSettings(connect_failures=1))
    settings = msgspec.structs.replace(SETTINGS, clusters={"app": app, "web": web})
    judge = Judge()
    judge.cover(settings, build_view(settings, Conditions(addresses=ADDRESSES), 0), ADDRESSES)
    assert not judge.connects_failed("web", "10.0.0.9:80", 4)
    assert judge.connects_failed("web", "10.0.0.9:80", 5)
    assert judge.connects_failed("app", "10.0.0.1:80", 1)


def test_a_cluster_whose_breaker_is_open_everywhere_cannot_serve(judge: Judge) -> None:
    judge.broken = frozenset({"web", "gone", "region:eu"})
    for address in ("10.2.0.1:82", "10.2.0.2:82"):
        judge.connects_failed("region:eu", address, 3)
    found = judge.conclude(0.0)
    assert (found.unable, found.broken) == (("region:eu", "web"), ("web",))
    assert not build_view(SETTINGS, found, 1).clusters["web"].can_serve
    judge.broken = frozenset()
    assert judge.conclude(0.0).unable == ("region:eu",)
