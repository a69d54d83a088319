"""Region-wide switches as values, and whom a drain would leave behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.conditions import Conditions
from gateway.core.draining import is_stranded
from gateway.core.placement import Failover, Placement, State
from gateway.core.switches import Name, Switch, failover_mode, merged, problem, rate_of, switched
from gateway.core.view import View
from tests.support.facts import HERE, THERE, THIRD, knowing, record


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("failover-mode", "standby", True),
        ("failover-mode", "all", True),
        ("failover-mode", "", True),
        ("failover-mode", "on", False),
        ("drain", "on", True),
        ("drain", "", True),
        ("drain", "yes", False),
        ("max-traffic", "500", True),
        ("max-traffic", "0.5", True),
        ("max-traffic", "", True),
        ("max-traffic", "0", False),
        ("max-traffic", "-1", False),
        ("max-traffic", "nan", False),
        ("max-traffic", "inf", False),
        ("max-traffic", "much", False),
        ("readonly", "on", False),
    ],
)
def test_values(name: str, value: str, good: bool) -> None:
    assert (problem(name, value) == "") is good


def test_a_rate_is_a_number() -> None:
    assert rate_of("2.5") == 2.5
    assert rate_of("1e9") is None


def test_a_switch_ends_by_itself() -> None:
    switch = Switch(value="on", by="a", why="b", at_ms=1000, until_ms=2000)
    assert [switch.is_on(at) for at in (1000, 1999, 2000)] == [True, True, False]
    assert Switch(value="on", by="a", why="b", at_ms=1000).is_on(1 << 50)
    assert not Switch(value="", by="a", why="b", at_ms=1000).is_on(1000)


SWITCHES = st.dictionaries(
    st.sampled_from([name.value for name in Name]),
    st.builds(
        Switch,
        value=st.sampled_from(["", "on", "5"]),
        by=st.sampled_from("ab"),
        why=st.just(""),
        at_ms=st.integers(0, 3),
    ),
)


@settings(deadline=None)
@given(SWITCHES, SWITCHES, SWITCHES)
def test_whatever_the_order_all_come_to_the_same(
    one: dict[str, Switch], two: dict[str, Switch], three: dict[str, Switch]
) -> None:
    assert merged(one, merged(two, three)) == merged(merged(three, one), two)
    assert merged(one, one) == one


def test_what_is_said_of_failover_mode() -> None:
    assert failover_mode(knowing()) == ""
    assert failover_mode(knowing(takes_over=frozenset((THERE,)))) == ""
    assert failover_mode(knowing(takes_over=frozenset((HERE,)))) == "standby"
    assert failover_mode(knowing(takes_over=frozenset((HERE,)), takes_all=True)) == "all"


ALL = Failover.ALL
TAKES = frozenset((THERE,))


@pytest.mark.parametrize(
    ("placement", "view", "stranded"),
    [
        (record(HERE), knowing(), True),
        (record(HERE, standby=(THERE,), failover=ALL), knowing(), False),
        (record(HERE, standby=(THERE,), failover=Failover.READS), knowing(), True),  # writes would stay
        (record(HERE, standby=(THERE,)), knowing(), True),
        (record(HERE, standby=(THERE,)), knowing(takes_over=TAKES), False),
        (record(HERE, standby=(THERE,), failover=ALL), knowing(unable=(THERE,)), True),
        (record(HERE, standby=(THERE,), failover=ALL), knowing(unreachable=(THERE,)), True),
        (record(HERE, standby=(THERE, THIRD), failover=ALL), knowing(unable=(THERE,)), False),
        (record(HERE, standby=(THERE,), failover=ALL), knowing(shares={(THERE, "app"): 0.0}), True),  # drained itself
        (record(HERE, standby=(THERE,), failover=ALL), knowing(hop_keys=()), True),
        (record(HERE, standby=("mars",), failover=ALL), knowing(), True),
        (record(HERE), knowing(app=False), False),  # nothing is served here that a drain could end
        (record(HERE, state=State.SUSPENDED), knowing(), False),
        (record(THERE), knowing(), False),
        (record(THERE, standby=(HERE,), failover=ALL), knowing(), False),
        (record(THERE, standby=(HERE,), failover=ALL), knowing(unable=(THERE,)), True),  # failed over here
        (record(THERE, standby=(HERE, THIRD), failover=ALL), knowing(unable=(THERE,)), False),
        (record(THERE, standby=(HERE,)), knowing(unable=(THERE,)), False),  # is not served here either
        (record(THERE, standby=(HERE,)), knowing(unable=(THERE,), takes_over=frozenset((HERE,))), True),
    ],
)  # fmt: skip
def test_whom_a_drain_would_leave_behind(placement: Placement, view: View, stranded: bool) -> None:
    assert is_stranded(placement, view) is stranded


def test_what_a_worker_goes_by_before_it_hears_of_control() -> None:
    def on(value: str, until_ms: int = 0) -> Switch:
        return Switch(value=value, by="a", why="b", at_ms=1, until_ms=until_ms)

    found = switched(Conditions(), {"drain": on("on"), "max-traffic": on("50"), "failover-mode": on("all")}, 5, ["app"])
    assert (found.shares, found.max_traffic, found.failover_mode) == ({"app": 0.0}, 50.0, "all")
    ended = {"drain": on("on", 5), "max-traffic": on("much"), "failover-mode": on("")}
    assert switched(Conditions(), ended, 5, ["app"]) == Conditions()
