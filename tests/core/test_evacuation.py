"""Regions that come back, are drained, or are in failover mode: where requests go then, and that they always end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from gateway.core.hop import Hop, Reason, Serve, judge
from gateway.core.placement import Failover, Placement
from gateway.core.routing import Decision, Kind, decide
from gateway.core.tenancy import Resolved, Source
from gateway.core.view import Ability, View, region_cluster
from tests.support import model
from tests.support.facts import HERE, REGIONS, THERE, THIRD, Facts, cluster, knowing, record
from tests.support.model import Site, travel

BY_HOST = Resolved("acme", Source.HOST, "host: {tenant}.example.com")
LOCAL = Decision(Kind.LOCAL, "home", HERE, "app")
HELD_HERE = Decision(Kind.LOCAL, "failover", HERE, "app")
TAKEN_OVER = Decision(Kind.LOCAL, "failover_mode", HERE, "app")
CARRIED = Decision(Kind.INTERNAL_REDIRECT, "misroute", THERE, region_cluster(THERE))
ALL = Failover.ALL
AT_HOME = record(HERE, standby=(THERE,), failover=ALL)
AWAY = record(THERE, standby=(HERE,), failover=ALL)
MANUAL = record(THERE, standby=(HERE,))


def failed_over(region: str) -> Decision:
    return Decision(Kind.INTERNAL_REDIRECT, "failover", region, region_cluster(region))


def returning(share: float, **more: Any) -> View:
    """Our own cluster is coming back."""
    view = knowing(**more, ramps=True)
    return view_with(view, share)


def view_with(view: View, share: float) -> View:
    clusters = {**view.clusters, "app": replace(view.clusters["app"], share=share)}
    return replace(view, clusters=clusters, ramps=True)


def away(share: float, **more: Any) -> View:
    return knowing(shares={(THERE, "app"): share}, ramps=True, **more)


def go(placement: Placement, view: View, at: float = 0.0, request: Facts | None = None) -> Decision:
    return decide(request or Facts(), BY_HOST, placement, view, True, place=at)


@pytest.mark.parametrize(
    ("placement", "view", "at", "expected"),
    [
        # home is here and coming back
        (AT_HOME, returning(0.4), 0.39, LOCAL),
        (AT_HOME, returning(0.4), 0.4, failed_over(THERE)),
        (AT_HOME, returning(0.4), 0.99, failed_over(THERE)),
        (AT_HOME, returning(0.4, unable=(THERE,)), 0.99, LOCAL),  # nobody else is there: home serves it
        (AT_HOME, returning(0.4, unreachable=(THERE,)), 0.99, LOCAL),
        (record(HERE, standby=(THERE,)), returning(0.4), 0.99, LOCAL),  # not covered: at home at once
        (record(HERE), returning(0.0), 0.99, LOCAL),
        # home is elsewhere and coming back
        (AWAY, away(0.4), 0.39, CARRIED),
        (AWAY, away(0.4), 0.4, HELD_HERE),
        (AWAY, away(0.4, app=False), 0.4, CARRIED),
        (MANUAL, away(0.4), 0.99, CARRIED),
        (record(THERE, standby=(THIRD,), failover=ALL), away(0.4), 0.99, failed_over(THIRD)),
        # drained: nobody comes who has somewhere else to go, and nothing fails over there
        (AT_HOME, returning(0.0), 0.0, failed_over(THERE)),
        (AWAY, away(0.0), 0.0, HELD_HERE),
        (record(THIRD, standby=(THERE, HERE), failover=ALL), away(0.0, unable=(THIRD,)), 0.0, HELD_HERE),
        (record(THIRD, standby=(THERE,), failover=ALL), away(0.0, unable=(THIRD,)), 0.0, failed_over(THERE)),
        # both drained: home serves
        (AT_HOME, view_with(away(0.0), 0.0), 0.0, LOCAL),
        (AWAY, view_with(away(0.0), 0.0), 0.0, CARRIED),
    ],
)  # fmt: skip
def test_who_comes_back(placement: Placement, view: View, at: float, expected: Decision) -> None:
    assert go(placement, view, at) == expected


HERE_TAKES = frozenset((HERE,))
THERE_TAKES = frozenset((THERE,))


@pytest.mark.parametrize(
    ("placement", "view", "expected"),
    [
        (MANUAL, knowing(takes_over=HERE_TAKES), TAKEN_OVER),
        (AWAY, knowing(takes_over=HERE_TAKES), TAKEN_OVER),
        (record(THERE), knowing(takes_over=HERE_TAKES), CARRIED),  # no data of theirs is here
        (record(THERE), knowing(takes_over=HERE_TAKES, takes_all=True), TAKEN_OVER),
        (MANUAL, knowing(app=False, takes_over=HERE_TAKES), CARRIED),
        (record(HERE), knowing(takes_over=HERE_TAKES), LOCAL),
        # another region's: its operators' word is taken where home does not serve, or is drained
        (record(HERE, standby=(THERE,)), knowing(takes_over=THERE_TAKES), LOCAL),
        (record(HERE, standby=(THERE,)), knowing(app=False, takes_over=THERE_TAKES), failed_over(THERE)),
        (record(HERE, standby=(THERE,)), returning(0.0, takes_over=THERE_TAKES), failed_over(THERE)),
        (record(THIRD, standby=(THERE,)), knowing(unreachable=(THIRD,), takes_over=THERE_TAKES), failed_over(THERE)),
    ],
)  # fmt: skip
def test_failover_mode(placement: Placement, view: View, expected: Decision) -> None:
    assert go(placement, view, request=Facts(method=b"POST")) == expected


@pytest.mark.parametrize("mode", [False, True])
def test_a_hop_that_a_region_in_failover_mode_is_meant_for_is_served(mode: bool) -> None:
    ours = record(THERE, standby=(HERE,))
    hop = Hop(THIRD, HERE, "acme", ours.version, THERE, (HERE,), Failover.MANUAL, Reason.FAILOVER, 5.0, 0, "", {})
    view = knowing(takes_over=HERE_TAKES if mode else frozenset())
    assert isinstance(judge(hop, ours, view, Facts(method=b"POST")), Serve) is mode


@lru_cache(maxsize=4096)
def switched(here: str, dead: frozenset[str], drained: frozenset[str], modes: frozenset[str], everybody: bool) -> View:
    view = knowing(
        here,
        here not in dead,
        unable=tuple(sorted(dead - {here})),
        shares={(name, "app"): 0.0 for name in drained - {here}},
        ramps=bool(drained),
        takes_over=modes,
        takes_all=everybody and here in modes,
    )
    return view_with(view, 0.0) if here in drained else view


SUBSETS = [frozenset(names) for count in range(4) for names in itertools.combinations(REGIONS, count)]


@pytest.mark.parametrize("failover", Failover)
def test_whatever_is_switched_a_request_ends_and_one_application_has_it(
    failover: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every region's switch in either position, everywhere known: no third send, and service wherever anybody may."""
    served = 0
    for drained, modes, everybody in itertools.product(SUBSETS, SUBSETS, (False, True)):
        monkeypatch.setattr(
            model,
            "view_of",
            lambda here, dead, unknown=None, d=drained, m=modes, e=everybody: switched(here, dead, d, m, e),
        )
        for home in REGIONS:
            others = [name for name in REGIONS if name != home]
            for standby in itertools.chain.from_iterable(itertools.permutations(others, count) for count in range(3)):
                placement = record(home, standby=standby, failover=failover)
                for states in itertools.product((Site.UP, Site.DYING), repeat=3):
                    sites = dict(zip(REGIONS, states, strict=True))
                    dead = frozenset[str]()
                    journey = travel(HERE, Facts(), lambda _, p=placement: p, sites.__getitem__, dead, None)
                    world = (drained, modes, everybody, placement, sites, journey)
                    assert len(journey.sends) <= 2, world
                    assert len(set(journey.sends)) == len(journey.sends), world
                    assert len(journey.received) == (journey.end == "served"), world
                    if sites[home] is Site.UP:
                        assert journey.end == "served", world
                    served += journey.end == "served"
    assert served > 10_000


def test_two_regions_in_failover_mode_send_each_other_nothing() -> None:
    modes = frozenset((HERE, THERE))
    for here, other in ((HERE, THERE), (THERE, HERE)):
        view = switched(here, frozenset(), frozenset(), modes, True)
        for home in (here, other):
            decision = go(record(home, standby=(other if home == here else here,)), view)
            assert (decision.kind, decision.region) == (Kind.LOCAL, here)


def test_a_share_is_known_by_region_and_cluster() -> None:
    view = knowing(shares={(THERE, "app"): 0.25}, clusters={"app": cluster("app")})
    assert [view.share(region, name) for region, name in ((THERE, "app"), (THERE, "web"), (HERE, "app"))] == [
        0.25,
        1,
        1,
    ]
    assert view.ability(THERE, "app") is Ability.ABLE
