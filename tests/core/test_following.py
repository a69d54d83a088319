"""What follows a verdict or a failed connection, as a table; and overrides, which stand above the map for a while."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.following import (
    OVERRIDE_S,
    OVERRIDES_MAX,
    SENDS_MAX,
    Event,
    Overrides,
    Step,
    Trail,
    Unconnected,
    follow,
    told,
)
from gateway.core.hop import Unavailable, Verdict
from gateway.core.placement import Failover, Misroute, State, Version
from gateway.core.routing import Kind, decide, unknown_placement
from gateway.core.tenancy import Resolved, Source
from tests.support.facts import HERE, THERE, THIRD, Facts, browser, knowing, record

TENANT = Resolved("acme", Source.HOST, "host: {tenant}.example.com")
COVERED = record(THERE, standby=(THIRD, HERE), failover=Failover.ALL)
NO_PEER = Unconnected("region_unreachable")
NO_APP = Unconnected("upstream_connect")


def verdict(home: str, epoch: int = 8, *standby: str, failover: Failover = Failover.MANUAL) -> Verdict:
    return Verdict(Version(epoch), home, standby, failover)


def gone(*standby: str, failover: Failover = Failover.ALL) -> Unavailable:
    return Unavailable(standby, failover)


def after(event: Event, region: str, trail: Trail, request: Any = None, **more: Any) -> Step:
    return follow(event, region, trail, request or Facts(), TENANT, knowing(**more))


def went(step: Step) -> str:
    """`local failover`, `internal_redirect misroute ap-southeast-2`, or the flag of a refusal."""
    decision = step.decision
    if decision.kind is Kind.REJECT:
        return decision.flag
    return f"{decision.kind} {decision.reason} {decision.region}"


ONE = Trail(COVERED, sends=1)
TWO = Trail(COVERED, sends=2)
STRUCK = frozenset((THERE,))


@pytest.mark.parametrize(
    ("event", "region", "trail", "expected"),
    [
        # a verdict is decided by the rules, from its record
        (verdict(THIRD), THERE, ONE, f"internal_redirect misroute {THIRD}"),
        (verdict(HERE), THERE, ONE, f"local home {HERE}"),
        (verdict(THIRD), THERE, TWO, "region_disagrees"),
        (verdict(HERE), THERE, TWO, f"local home {HERE}"),
        (verdict("mars"), THERE, ONE, "region_disagrees"),
        (verdict("mars", 8, HERE, failover=Failover.ALL), THERE, ONE, f"local failover {HERE}"),
        # a struck home is no home: its standby, where the verdict's record covers
        (verdict(THERE), THIRD, Trail(COVERED, True, 1, STRUCK), "region_disagrees"),
        (verdict(THERE, 8, HERE, failover=Failover.ALL), THIRD, Trail(COVERED, True, 1, STRUCK),
         f"local failover {HERE}"),
        # what peers tell must be news
        (verdict(THIRD, 7), THERE, ONE, "region_disagrees"),
        (verdict(HERE, 6), THERE, ONE, "region_disagrees"),
        # unavailable: the next candidate by the verdict's standbys, not by ours
        (gone(THIRD, HERE), THERE, ONE, f"internal_redirect failover {THIRD}"),
        (gone(HERE), THERE, ONE, f"local failover {HERE}"),
        (gone(), THERE, ONE, "cluster_unavailable"),
        (gone(THIRD, failover=Failover.MANUAL), THERE, ONE, "cluster_unavailable"),
        (gone(THIRD, HERE), THIRD, Trail(COVERED, True, 1, STRUCK), f"local failover {HERE}"),
        # no send is left for the first standby, but the second is here
        (gone(THIRD, HERE), THERE, TWO, f"local failover {HERE}"),
        (gone(THIRD), THERE, TWO, "cluster_unavailable"),
        # no connection
        (NO_PEER, THERE, Trail(COVERED), f"internal_redirect failover {THIRD}"),
        (NO_PEER, THIRD, Trail(COVERED, True, 0, STRUCK), f"local failover {HERE}"),
        (NO_PEER, THERE, Trail(record(THERE)), "region_unreachable"),
        (NO_APP, HERE, Trail(record(HERE, standby=(THIRD,), failover=Failover.ALL)),
         f"internal_redirect failover {THIRD}"),
        (NO_APP, HERE, Trail(record(HERE)), "upstream_connect"),
        (NO_APP, HERE, Trail(COVERED, True, 2, frozenset((THERE, THIRD))), "cluster_unavailable"),
        (Unconnected("cluster_unavailable"), HERE, Trail(record(HERE)), "cluster_unavailable"),
    ],
)  # fmt: skip
def test_what_follows(event: Event, region: str, trail: Trail, expected: str):
    assert went(after(event, region, trail)) == expected


def test_a_verdict_is_decided_by_all_rules():
    trail = Trail(record(THERE, misroute=Misroute.EXTERNAL), sends=2)
    step = after(verdict(THIRD), THERE, trail, browser())
    assert step.decision.kind is Kind.EXTERNAL_REDIRECT, "sending a client is no send of ours"
    assert step.decision.location == b"https://acme.ap-southeast-2.example.com/x?a=1"
    assert step.trail.record.misroute is Misroute.EXTERNAL
    step = after(verdict(THIRD, 8, HERE, failover=Failover.READS), THERE, ONE, Facts(method=b"POST"), unable=(THIRD,))
    assert went(step) == "region_disagrees"
    step = after(verdict(THIRD, 8, HERE, failover=Failover.READS), THERE, ONE, Facts(), unable=(THIRD,))
    assert went(step) == f"local failover {HERE}"
    assert went(after(verdict(HERE), THERE, ONE, app=False)) == "region_disagrees"


def test_a_verdict_changes_what_it_speaks_of_and_keeps_the_rest():
    ours = record(THERE, labels={"plan": "gold"}, cluster="app", state=State.SUSPENDED)
    step = after(verdict(THIRD, 9, HERE), THERE, Trail(ours, sends=1))
    assert step.trail.record == record(
        THIRD, epoch=9, standby=(HERE,), labels={"plan": "gold"}, cluster="app", state=State.SUSPENDED
    )
    assert went(step) == "region_disagrees", "a suspended tenant is not served by a verdict"


def test_a_tenant_of_no_map_is_recorded_once_a_verdict_told_of_it():
    trail = Trail(unknown_placement("acme", THERE), recorded=False, sends=1)
    step = after(verdict(THIRD, 0), THERE, trail)
    assert went(step) == f"internal_redirect misroute {THIRD}", "no record is lower than one without a version"
    assert step.trail.recorded
    step = after(gone(THIRD), THERE, trail)
    assert went(step) == f"internal_redirect failover {THIRD}"
    assert not step.trail.recorded


REGION = st.sampled_from((HERE, THERE, THIRD))
STANDBY = st.lists(REGION, unique=True, max_size=3).map(tuple)
FAILOVER = st.sampled_from(Failover)
VERDICT = st.builds(Verdict, st.builds(Version, st.integers(0, 9)), REGION, STANDBY, FAILOVER)
EVENT = VERDICT | st.builds(Unavailable, STANDBY, FAILOVER) | st.sampled_from((NO_PEER, NO_APP))


@given(st.lists(st.tuples(EVENT, REGION), max_size=6), REGION, STANDBY, FAILOVER)
def test_whatever_peers_say_it_ends(
    said: list[tuple[Event, str]], home: str, standby: tuple[str, ...], failover: Failover
):
    """Never a third send, never a region that was struck out, never an older record."""
    trail = Trail(record(home, epoch=3, standby=standby, failover=failover))
    for event, region in said:
        step = after(event, region, trail)
        assert step.trail.struck >= trail.struck
        assert step.trail.record.version >= trail.record.version
        trail, decision = step.trail, step.decision
        assert decision.kind in (Kind.LOCAL, Kind.INTERNAL_REDIRECT, Kind.REJECT)
        if decision.kind is Kind.REJECT:
            assert decision.flag
            return
        assert decision.region not in trail.struck
        if decision.kind is Kind.INTERNAL_REDIRECT:
            assert decision.region != HERE
            trail = dataclasses.replace(trail, sends=trail.sends + 1)
            assert trail.sends <= SENDS_MAX


# ---- overrides


def test_an_override_stands_until_the_map_reaches_it():
    overrides, old = Overrides(), record(THERE, epoch=7, labels={"plan": "gold"})
    assert overrides.over("acme", old, None, 0.0) is old
    overrides.put("acme", verdict(THIRD, 9, HERE), 0.0)
    above = overrides.over("acme", old, None, 1.0)
    assert above == record(THIRD, epoch=9, standby=(HERE,), labels={"plan": "gold"})
    assert overrides.over("acme", old, None, 2.0) is above, "one record for all, so that what is remembered by it holds"
    closer = record(THERE, epoch=8)
    assert overrides.over("acme", closer, None, 3.0) == told(closer, verdict(THIRD, 9, HERE))
    for reached in (record(THERE, epoch=9), record(HERE, epoch=10)):
        overrides.put("acme", verdict(THIRD, 9, HERE), 4.0)
        assert overrides.over("acme", reached, None, 5.0) is reached
        assert overrides.items == {}


def test_an_override_stands_for_a_minute():
    overrides, old = Overrides(), record(THERE)
    overrides.put("acme", verdict(THIRD), 100.0)
    assert overrides.over("acme", old, None, 100.0 + OVERRIDE_S - 0.1) != old
    assert overrides.over("acme", old, None, 100.0 + OVERRIDE_S) is old
    for number in range(5):
        overrides.put(f"t{number}", verdict(THIRD), float(number))
    overrides.expire(OVERRIDE_S + 2.0)
    assert list(overrides.items) == ["t3", "t4"]


def test_of_two_verdicts_the_newer_stays():
    overrides, old = Overrides(), record(THERE)
    overrides.put("acme", verdict(THIRD, 9), 0.0)
    overrides.put("acme", verdict(HERE, 8), 50.0)
    overrides.put("acme", verdict(HERE, 9), 50.0)
    assert overrides.over("acme", old, None, 51.0) == record(THIRD, epoch=9)
    overrides.put("acme", verdict(HERE, 10), 55.0)
    assert overrides.over("acme", old, None, 114.0) == record(HERE, epoch=10)


def test_the_oldest_goes_when_there_are_too_many():
    overrides = Overrides()
    for number in range(OVERRIDES_MAX + 3):
        overrides.put(f"t{number}", verdict(THIRD), float(number) / 1e6)
    overrides.put("t5", verdict(THIRD, 9), 1.0)
    overrides.put("new", verdict(THIRD), 1.0)
    assert len(overrides.items) == OVERRIDES_MAX
    assert "t3" not in overrides.items
    assert "t4" in overrides.items
    assert list(overrides.items)[-2:] == ["t5", "new"]


def test_a_tenant_that_is_in_no_map_is_not_brought_back():
    overrides = Overrides()
    overrides.put("acme", verdict(THIRD), 0.0)
    assert overrides.over("acme", None, None, 1.0) is None
    routed = overrides.over("acme", None, THERE, 1.0)
    assert routed == record(THIRD, epoch=8)
    assert overrides.over("acme", record(THERE, state=State.DELETED), None, 1.0).state is State.DELETED  # type: ignore[union-attr]


def test_an_override_is_decided_like_a_record():
    overrides = Overrides()
    overrides.put("acme", verdict(HERE), 0.0)
    decision = decide(Facts(), TENANT, overrides.over("acme", record(THERE), None, 1.0), knowing(), True)
    assert (decision.kind, decision.region) == (Kind.LOCAL, HERE)


def test_a_breaker_that_refused_is_not_asked_again():
    view = knowing()
    app = dataclasses.replace(view.clusters["app"], can_serve=False, broken=True)
    view = dataclasses.replace(view, clusters={**view.clusters, "app": app})
    assert decide(Facts(), TENANT, record(HERE), view, True).kind is Kind.LOCAL
    step = follow(Unconnected("breaker_open"), HERE, Trail(record(HERE)), Facts(), TENANT, view)
    assert (step.decision.kind, step.decision.flag) == (Kind.REJECT, "breaker_open")
