"""What other regions' gateways say, brought to able, unable and unreachable."""

from __future__ import annotations

import pytest

from gateway.control.peers import FRESH_S, PeerGateway, Peers, judge_region
from gateway.core.peering import PeerAnswer, decode_answer, encode_answer
from gateway.core.view import Ability

ABLE, UNABLE = Ability.ABLE, Ability.UNABLE


def says(draining: bool = False, **clusters: Ability) -> PeerAnswer:
    return PeerAnswer(region="eu-west-1", wall_ms=0, draining=draining, clusters=clusters)


def gateway(answer: PeerAnswer | None = None, at: float = 0.0, failures: int = 0) -> PeerGateway:
    made = PeerGateway()
    if answer is not None:
        made.answered(answer, 0.0, at)
    for _ in range(failures):
        made.failed("refused")
    return made


@pytest.mark.parametrize(
    ("events", "ups"),
    [
        ("-", "+"),
        ("---", "++-"),
        ("--+---", "+++++-"),
        ("---+", "++--"),
        ("---++", "++--+"),
        ("---+-++", "++----+"),
    ],
)
def test_three_failures_down_two_answers_up(events: str, ups: str) -> None:
    peer = PeerGateway()
    seen = ""
    for at, event in enumerate(events):
        was = peer.up
        turned = peer.answered(says(), 0.0, at) if event == "+" else peer.failed("refused")
        assert turned == (was != peer.up)
        seen += "+" if peer.up else "-"
    assert seen == ups


def test_a_workers_three_failed_connects_take_a_gateway_down() -> None:
    peer = gateway(says(app=ABLE))
    assert peer.failed("3 connects in a row failed", 3)
    assert not peer.up


@pytest.mark.parametrize(
    ("gateways", "probed", "reachable", "clusters"),
    [
        # Nothing heard yet: able, until all are down.
        ([], False, True, {}),
        ([gateway()], False, True, {}),
        ([gateway(failures=2)], False, True, {}),
        ([gateway(failures=3), gateway()], False, True, {}),
        ([gateway(failures=3)], True, False, {}),
        # One says able: able.
        ([gateway(says(app=ABLE))], True, True, {"app": ABLE}),
        ([gateway(says(app=ABLE)), gateway(says(app=UNABLE))], True, True, {"app": ABLE}),
        ([gateway(says(app=ABLE)), gateway(failures=3)], True, True, {"app": ABLE}),
        # All say unable: unable; a cluster that one lacks is unable there.
        ([gateway(says(app=UNABLE)), gateway(says(app=UNABLE))], True, True, {"app": UNABLE}),
        ([gateway(says(app=UNABLE)), gateway(says())], True, True, {"app": UNABLE}),
        ([gateway(says(app=UNABLE)), gateway(says(web=ABLE))], True, True, {"app": UNABLE, "web": ABLE}),
        # Only words of those that are up, do not drain and were heard lately count.
        ([gateway(says(app=ABLE), failures=3), gateway(says(app=UNABLE))], True, True, {"app": UNABLE}),
        ([gateway(says(app=ABLE), failures=3)], True, False, {}),
        ([gateway(says(draining=True, app=ABLE))], True, False, {}),
        ([gateway(says(draining=True, app=ABLE)), gateway(says(app=UNABLE))], True, True, {"app": UNABLE}),
        ([gateway(says(app=ABLE), at=-FRESH_S)], True, True, {"app": ABLE}),
        ([gateway(says(app=ABLE), at=-FRESH_S - 0.1)], True, False, {}),
        ([gateway(says(app=ABLE), at=-9.0), gateway(says(app=UNABLE))], True, True, {"app": UNABLE}),
    ],
)
def test_a_region_is_judged(
    gateways: list[PeerGateway], probed: bool, reachable: bool, clusters: dict[str, Ability]
) -> None:
    judged = judge_region(gateways, 0.0)
    assert (judged.probed, judged.reachable, judged.clusters) == (probed, reachable, clusters)


def test_cover_keeps_gateways_that_stay() -> None:
    peers = Peers()
    peers.cover({"eu": ["a:1", "b:1"], "ap": ["c:1"]})
    first = peers.find("eu", "a:1")
    assert first is not None
    first.answered(says(app=ABLE), 0.0, 0.0)
    peers.cover({"eu": ["a:1", "d:1"]})
    assert peers.find("eu", "a:1") is first
    assert peers.find("eu", "b:1") is None
    assert peers.find("ap", "c:1") is None
    assert peers.judge(0.0)["eu"].clusters == {"app": ABLE}


def test_a_region_whose_gateways_all_moved_counts_as_never_probed() -> None:
    peers = Peers()
    peers.cover({"eu": ["a:1"]})
    found = peers.find("eu", "a:1")
    assert found is not None
    found.answered(says(app=UNABLE), 0.0, 0.0)
    peers.cover({"eu": ["b:1"]})
    assert not peers.judge(0.0)["eu"].probed


def test_skew_is_the_worst_gateways() -> None:
    peers = Peers()
    peers.cover({"eu": ["a:1", "b:1"]})
    assert peers.skew_s("eu") is None
    for key, skew in (("a:1", 1.5), ("b:1", -7.0)):
        found = peers.find("eu", key)
        assert found is not None
        found.answered(says(), skew, 0.0)
    assert peers.skew_s("eu") == -7.0


def test_an_answer_survives_its_encoding_and_unknown_keys() -> None:
    answer = says(app=ABLE, web=UNABLE)
    assert decode_answer(encode_answer(answer)) == answer
    later = b'{"region":"eu","wall_ms":5,"draining":false,"clusters":{"app":"able"},"novel":[1]}'
    assert decode_answer(later).clusters == {"app": ABLE}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"region":"eu","wall_ms":5,"draining":false,"clusters":{"app":"maybe"}}']
)
def test_what_is_no_answer_raises(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  msgspec's messages are not ours
        decode_answer(body)


def test_a_region_takes_the_least_share_that_a_gateway_of_it_says() -> None:
    def says(share: float | None, able: bool = True, mode: str = "") -> PeerGateway:
        shares = {} if share is None else {"app": share}
        clusters = {"app": Ability.ABLE if able else Ability.UNABLE}
        gateway = PeerGateway()
        answer = PeerAnswer("eu", 0, False, clusters, shares=shares, failover_mode=mode)
        gateway.answered(answer, 0.0, 100.0)
        return gateway

    assert judge_region([says(None), says(None)], 100.0).shares == {}
    assert judge_region([says(0.4), says(0.2)], 100.0).shares == {"app": 0.2}
    assert judge_region([says(0.4), says(None)], 100.0).shares == {"app": 0.4}
    assert judge_region([says(0.4), says(0.2, able=False)], 100.0).shares == {"app": 0.4}
    assert judge_region([says(0.4, able=False)], 100.0).shares == {}
    assert not judge_region([says(0.4)], 100.0).takes_over
    assert judge_region([says(None), says(None, mode="standby")], 100.0).takes_over
