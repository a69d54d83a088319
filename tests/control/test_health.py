"""Which endpoints are usable and which clusters can serve, as tables over time."""

from __future__ import annotations

import pytest

from gateway.control.health import (
    BY_CONNECT,
    HOLD_MAX_S,
    HOLD_S,
    RELAPSE_S,
    REST_S,
    ClusterHealth,
    EndpointHealth,
    Health,
    Thresholds,
)
from gateway.core.ramp import RETURN_S, SHARE_FIRST
from gateway.settings.schema import HealthSettings

RULE = Thresholds(healthy=2, unhealthy=3)


@pytest.mark.parametrize(
    ("checks", "ups"),
    [
        ("+", "+"),
        ("-", "-"),  # the first check decides
        ("+-", "++"),
        ("+---", "+++-"),
        ("+--+--", "++++++"),  # failures count in a row only
        ("+--+---", "++++++-"),
        ("-+", "--"),
        ("-++", "--+"),
        ("-+-++", "----+"),  # successes too
        ("-++---", "--+++-"),  # once it was up again, one failure no longer decides
    ],
)
def test_checks_turn_an_endpoint(checks: str, ups: str) -> None:
    endpoint = EndpointHealth()
    seen = ""
    for sign in checks:
        was = endpoint.up
        turned = endpoint.check(sign == "+", RULE, "refused")
        assert turned == (was != endpoint.up)
        seen += "+" if endpoint.up else "-"
    assert seen == ups


@pytest.mark.parametrize(("count", "up"), [(1, True), (2, True), (3, False), (7, False)])
def test_three_failed_connects_turn_an_endpoint_down(count: int, up: bool) -> None:
    endpoint = EndpointHealth()
    endpoint.connects_failed(count)
    assert endpoint.up is up


def test_without_health_one_connect_brings_it_back() -> None:
    endpoint = EndpointHealth()
    assert endpoint.connects_failed(3)
    assert not endpoint.connects_failed(4), "it is down already"
    assert not endpoint.check(False, BY_CONNECT, "refused")
    assert endpoint.reason == "refused"
    assert endpoint.check(True, BY_CONNECT)
    assert endpoint.up
    assert endpoint.reason == ""


def test_with_health_a_reported_endpoint_needs_its_checks() -> None:
    endpoint = EndpointHealth()
    endpoint.check(True, RULE)
    endpoint.check(True, RULE)
    assert endpoint.connects_failed(3)
    assert not endpoint.check(True, RULE), "checks before the report do not count"
    assert endpoint.check(True, RULE)


def cluster(*keys: str) -> ClusterHealth:
    return ClusterHealth(RULE, {key: EndpointHealth() for key in keys})


def test_a_cluster_stops_at_once_and_returns_after_a_rest() -> None:
    app = cluster("a:1", "b:1")
    assert not app.settle(0.0)
    app.endpoints["a:1"].up = False
    assert not app.settle(1.0), "one is left"
    app.endpoints["b:1"].up = False
    assert app.settle(1.0)
    assert not app.can_serve
    app.endpoints["a:1"].up = True
    assert not app.settle(5.0)
    assert not app.settle(5.0 + REST_S - 0.01)
    assert app.settle(5.0 + REST_S)
    assert app.can_serve


def test_a_cluster_that_falls_while_it_rests_begins_again() -> None:
    app = cluster("a:1")
    only = app.endpoints["a:1"]
    for now, up in [(0.0, False), (1.0, True), (2.0, False), (3.0, True), (4.9, True)]:
        only.up = up
        app.settle(now)
    assert not app.can_serve
    app.settle(5.0)
    assert app.can_serve


def test_a_cluster_without_endpoints_cannot_serve() -> None:
    app = cluster()
    assert app.settle(0.0)
    assert not app.can_serve


def test_cover_keeps_what_is_known_and_drops_the_rest() -> None:
    health = Health()
    checks = {"app": HealthSettings("/healthz"), "web": None}
    health.cover({"app": ["a:1", "b:1"], "web": ["c:1"]}, checks)
    assert health.connects_failed("app", "a:1", 3)
    assert health.connects_failed("web", "c:1", 3)
    health.settle(0.0)
    health.cover({"app": ["a:1", "d:1"]}, checks)
    assert health.clusters["app"].down() == ("a:1",)
    assert set(health.clusters["app"].endpoints) == {"a:1", "d:1"}
    assert not health.connects_failed("web", "c:1", 3)
    assert not health.check("app", "b:1", False)
    health.cover({"web": ["c:1"]}, checks)
    assert health.clusters["web"].can_serve, "a cluster that comes anew is not what it was"


def test_a_changed_rule_applies_to_known_endpoints() -> None:
    health = Health()
    health.cover({"app": ["a:1"]}, {"app": HealthSettings("/healthz", unhealthy=3)})
    health.check("app", "a:1", True)
    health.check("app", "a:1", False)
    health.cover({"app": ["a:1"]}, {"app": HealthSettings("/healthz", unhealthy=2)})
    assert health.check("app", "a:1", False)


def test_settle_names_the_clusters_that_turned() -> None:
    health = Health()
    health.cover({"app": ["a:1"], "web": ["b:1"]}, {})
    health.connects_failed("app", "a:1", 3)
    assert health.settle(0.0) == ["app"]
    assert health.settle(0.1) == []


def test_a_cluster_that_moved_as_a_whole_starts_anew() -> None:
    """Its name has other addresses: what is known of the old ones, and the rest after it, says nothing of these."""
    health = Health()
    health.cover({"app": ["a", "b"]}, {})
    for endpoint in ("a", "b"):
        health.connects_failed("app", endpoint, 3)
    assert health.settle(0.0) == ["app"]
    health.cover({"app": ["b", "c"]}, {})
    health.settle(1.0)
    assert not health.clusters["app"].can_serve, "one of the old ones is left: it rests"
    health.cover({"app": ["d"]}, {})
    health.settle(1.0)
    assert health.clusters["app"].can_serve
    health.cover({"app": []}, {})
    health.settle(2.0)
    assert not health.clusters["app"].can_serve
    health.cover({"app": ["d"]}, {})
    health.settle(2.0)
    assert health.clusters["app"].can_serve, "its name is resolved for the first time: there is nothing to rest from"


def test_clients_come_back_by_a_ramp() -> None:
    cluster = ClusterHealth(BY_CONNECT, {"a": EndpointHealth()})
    assert cluster.share(0.0) == 1.0, "what never failed has nothing to come back from"
    cluster.endpoints["a"].up = False
    cluster.settle(10.0)
    cluster.endpoints["a"].up = True
    cluster.settle(11.0)
    assert cluster.settle(11.0 + REST_S)
    back = 11.0 + REST_S
    assert cluster.share(back) == SHARE_FIRST
    assert SHARE_FIRST < cluster.share(back + RETURN_S / 2) < 1.0
    assert cluster.share(back + RETURN_S) == 1.0


def test_each_relapse_holds_clients_back_longer_and_nobody_who_has_nowhere_to_go() -> None:
    cluster, now = ClusterHealth(BY_CONNECT, {"a": EndpointHealth()}), 0.0
    held: list[float] = []
    for _ in range(7):
        cluster.endpoints["a"].up = False
        cluster.settle(now)
        cluster.endpoints["a"].up = True
        cluster.settle(now)
        now += REST_S
        assert cluster.settle(now)
        assert cluster.can_serve, "at once: who is not served elsewhere is served here"
        since = next(step / 10 for step in range(10_000) if cluster.share(now + step / 10) > 0.0)
        held.append(since)
        now += 1.0
    assert held == [0.0, HOLD_S, 2 * HOLD_S, 4 * HOLD_S, 8 * HOLD_S, HOLD_MAX_S, HOLD_MAX_S]
    now += RELAPSE_S
    cluster.endpoints["a"].up = False
    cluster.settle(now)
    cluster.endpoints["a"].up = True
    cluster.settle(now)
    cluster.settle(now + REST_S)
    assert cluster.share(now + REST_S) == SHARE_FIRST, "it stood for a minute: that was no relapse"


def test_what_every_worker_found_broken_cannot_serve_and_needs_no_rest() -> None:
    cluster = ClusterHealth(BY_CONNECT, {"a": EndpointHealth()})
    assert cluster.settle(5.0, broken=True)
    assert not cluster.can_serve
    assert not cluster.settle(6.0, broken=True)
    assert cluster.settle(7.0), "the breakers waited already"
    assert cluster.share(7.0) == SHARE_FIRST
    cluster.endpoints["a"].up = False
    cluster.settle(8.0, broken=True)
    assert not cluster.settle(9.0), "it is also down"
    cluster.endpoints["a"].up = True
    cluster.settle(9.5)
    assert not cluster.can_serve
    assert cluster.settle(9.5 + REST_S)
