"""Control's table of breakers: what several workers say, brought together; and an operator's word, kept for all."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.bus.messages import BreakerTurned, EndpointEjected, ForceBreaker
from gateway.bus.server import BusPeer
from gateway.control.breakers import Breakers
from gateway.control.facts import Facts
from gateway.control.shown_breakers import breakers, wanted
from gateway.core.breaker import BreakerRule, State
from gateway.core.outliers import OutlierRule
from gateway.core.view import Cluster, Endpoint, View

VIEW = View(
    "us",
    clusters={
        "app": Cluster("app", (), breaker=BreakerRule()),
        "web": Cluster("web", (), breaker=BreakerRule(fallback="app")),
        "off": Cluster("off", (Endpoint("a:1", "10.0.0.1", 1),), outliers=OutlierRule()),
    },
)


class Told:
    """A worker's connection: what it was told."""

    def __init__(self, slot: int) -> None:
        self.hello = SimpleNamespace(slot=slot)
        self.sent: list[ForceBreaker] = []

    def send(self, message: ForceBreaker) -> None:
        self.sent.append(message)


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.broadcast: list[ForceBreaker] = []
        self.changes = 0
        self.table = Breakers(self.broadcast.append, self._changed, lambda: self.now)
        self.table.cover(VIEW)
        self.peers = [cast(BusPeer, Told(slot)) for slot in range(2)]

    def _changed(self) -> None:
        self.changes += 1

    def says(self, worker: int, state: str, cluster: str = "app", tenant: str = "", **more: Any) -> None:
        self.table.turned(self.peers[worker], BreakerTurned(cluster, tenant, state, **more))

    def shown(self) -> dict[tuple[str, str | None], Any]:
        facts = cast(Facts, SimpleNamespace(breakers=self.table))
        return {(row.cluster, row.tenant): row for row in breakers(facts, self.now).breakers}


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_open_in_every_worker_cannot_serve_and_that_is_said_at_once(world: World) -> None:
    world.says(0, "open", left_s=5.0)
    assert world.table.unable(world.peers) == frozenset()
    world.says(1, "forced_open", left_s=5.0, reason="x")
    assert world.table.unable(world.peers) == {"app"}
    assert world.changes == 2
    assert world.table.unable(world.peers[:1]) == {"app"}
    assert world.table.unable([]) == frozenset(), "nobody says anything"
    world.says(1, "half_open")
    assert world.table.unable(world.peers) == frozenset()
    assert world.table.state(("app", "")) is State.OPEN
    world.says(0, "closed")
    world.says(1, "closed")
    assert world.table.rows == {}


def test_a_tenants_own_one_with_a_fallback_and_one_that_a_single_tenant_asks_take_nothing_away(world: World) -> None:
    for worker in (0, 1):
        world.says(worker, "open", tenant="acme")
        world.says(worker, "open", cluster="web")
    assert world.table.unable(world.peers) == frozenset()
    assert world.table.tenants("app") == 1
    for worker in (0, 1):
        world.says(worker, "open", only="acme")
    assert world.table.unable(world.peers) == frozenset()
    assert world.shown()["app", None].only == "acme"


def test_a_worker_that_is_gone_says_nothing_more(world: World) -> None:
    world.says(0, "open")
    world.table.left(world.peers[0])
    assert world.table.rows == {}
    assert world.table.state(("app", "")) is State.CLOSED


def test_what_is_shown(world: World) -> None:
    world.says(0, "half_open", trips=2)
    world.says(1, "open", left_s=7.5, trips=3)
    world.says(1, "ramping", tenant="acme", left_s=1.0)
    world.now += 0.5
    rows = world.shown()
    app = rows["app", None]
    assert (app.state, app.workers, app.trips, app.ends_in_s) == ("open", {"0": "half_open", "1": "open"}, 3, 7.0)
    assert rows["app", "acme"].state == "ramping"
    assert rows["web", None].state == "closed"
    assert set(rows) == {("app", None), ("web", None), ("app", "acme")}


def test_endpoints_that_workers_leave_out(world: World) -> None:
    def says(worker: int, left_s: float, endpoint: str = "10.0.0.1:1") -> None:
        world.table.endpoint_ejected(world.peers[worker], EndpointEjected("off", endpoint, left_s, "5 errors in a row"))

    says(0, 30.0)
    says(1, 60.0)
    says(1, 60.0, "10.9.9.9:1")
    facts = cast(Facts, SimpleNamespace(breakers=world.table))
    [row] = breakers(facts, world.now).ejected
    assert (row.cluster, row.endpoint, row.workers, row.ends_in_s) == ("off", "10.0.0.1:1", [0, 1], 60.0)
    says(1, 0.0)
    assert [out.workers for out in breakers(facts, world.now).ejected] == [[0]]
    world.table.left(world.peers[0])
    assert breakers(facts, world.now).ejected == []


def test_an_operators_word_reaches_workers_that_start_later_until_it_ends(world: World) -> None:
    world.table.force("app", "", True, 60.0, "bad release (alice)")
    assert world.broadcast == [ForceBreaker("app", "", "open", 60.0, "bad release (alice)")]
    world.now += 20.0
    late = Told(3)
    world.table.greet(cast(BusPeer, late))
    assert late.sent == [ForceBreaker("app", "", "open", 40.0, "bad release (alice)")]
    world.now += 41.0
    world.table.greet(cast(BusPeer, late))
    assert len(late.sent) == 1
    world.table.force("app", "acme", False, 60.0, "y")
    world.table.release("app", "acme")
    assert world.broadcast[-1] == ForceBreaker("app", "acme", "")
    assert world.table.forced == {}


def test_a_control_that_starts_later_learns_of_it_from_the_workers(world: World) -> None:
    world.says(0, "forced_closed", left_s=30.0, reason="x (bob)")
    late = Told(1)
    world.table.greet(cast(BusPeer, late))
    assert late.sent == [ForceBreaker("app", "", "closed", 30.0, "x (bob)")]


def test_a_reload_forgets_what_has_no_breaker_any_more(world: World) -> None:
    world.says(0, "open")
    world.table.force("app", "", True, 60.0, "x")
    world.table.cover(View("us", clusters={"app": Cluster("app", ())}))
    assert (world.table.rows, world.table.forced, world.shown()) == ({}, {}, {})
    world.says(0, "open")
    assert world.table.rows == {}


@pytest.mark.parametrize(
    ("at", "body", "says"),
    [
        (("app", "", "shut"), b"{}", "state: expected open, closed or auto, got 'shut'"),
        (("nope", "", "open"), b'{"for": "1m"}', "cluster: expected one that has a breaker (app, web), got 'nope'"),
        (("app", "A B", "open"), b'{"for": "1m"}', "tenant: expected a tenant's id, got 'A B'"),
        (("app", "", "open"), b"{}", "for: expected a duration such as 10m, up to 168h, got ''"),
        (("app", "", "open"), b'{"for": "169h"}', "for: expected a duration such as 10m, up to 168h, got '169h'"),
        (("app", "", "open"), b"[", "the body: "),
        (("app", "", "open"), b'{"fore": "1m"}', "the body: "),
    ],
)
def test_what_cannot_be_asked_for(world: World, at: tuple[str, str, str], body: bytes, says: str) -> None:
    facts = cast(Facts, SimpleNamespace(breakers=world.table))
    with pytest.raises(ValueError, match=re.escape(says)):
        wanted(*at, body, facts)
    assert wanted("app", "acme", "auto", b"", facts).lasts_s == 0.0
    assert wanted("app", "", "open", b'{"for": "90s"}', facts).lasts_s == 90.0
