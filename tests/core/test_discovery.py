"""What answers of name servers mean: tables, with time and chance as arguments."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.conditions import Target
from gateway.core.discovery import (
    AGAIN_MAX_S,
    JITTER_MAX_S,
    TARGETS_MAX,
    TROUBLED_S,
    Answer,
    Found,
    Known,
    Lacking,
    Record,
    Result,
    Rules,
    Service,
    again_in,
    can_be_dialled,
    host_targets,
    result_of,
    service_targets,
    take,
)

A, AAAA, SRV = Record.A, Record.AAAA, Record.SRV
NXDOMAIN, EMPTY = Lacking(Result.NXDOMAIN, "none"), Lacking(Result.EMPTY, "empty")
TIMEOUT, SERVFAIL = Lacking(Result.TIMEOUT, "late"), Lacking(Result.SERVFAIL, "broken")
V4, V6 = Found(("10.0.0.1",), 60.0), Found(("fd00::1",), 30.0)
OLD = Known({A: ("10.0.0.9",), AAAA: ("fd00::9",)}, 5.0, 1.0)

ANSWERS = [
    # A, AAAA: addresses afterwards, what is wrong, whether records came
    (V4, V6, ("10.0.0.1", "fd00::1"), None, True),
    (V4, EMPTY, ("10.0.0.1",), None, True),
    (EMPTY, V6, ("fd00::1",), None, True),
    (V4, NXDOMAIN, ("10.0.0.1",), None, True),  # some load balancers say so for AAAA
    (V4, TIMEOUT, ("10.0.0.1", "fd00::9"), TIMEOUT, True),
    (SERVFAIL, V6, ("10.0.0.9", "fd00::1"), SERVFAIL, True),
    (EMPTY, EMPTY, ("10.0.0.9", "fd00::9"), EMPTY, False),
    (NXDOMAIN, NXDOMAIN, ("10.0.0.9", "fd00::9"), NXDOMAIN, False),
    (EMPTY, TIMEOUT, ("10.0.0.9", "fd00::9"), TIMEOUT, False),
    (SERVFAIL, TIMEOUT, ("10.0.0.9", "fd00::9"), SERVFAIL, False),
    (Found((), 9.0), EMPTY, ("10.0.0.9", "fd00::9"), EMPTY, False),
]


@pytest.mark.parametrize(("a", "aaaa", "addresses", "wrong", "came"), ANSWERS)
def test_an_answer_replaces_what_it_knows_and_nothing_else(
    a: Answer, aaaa: Answer, addresses: tuple[str, ...], wrong: Lacking | None, came: bool
) -> None:
    after = take(OLD, {A: a, AAAA: aaaa}, 100.0)
    assert after.addresses == addresses
    assert (after.lacking.result if after.lacking else None) == (wrong.result if wrong else None)
    assert after.failures == (1 if wrong else 0)
    assert after.found_at == (100.0 if came else 1.0)
    assert take(after, {A: a, AAAA: aaaa}, 101.0).failures == (2 if wrong else 0)
    assert take(after, {A: V4, AAAA: EMPTY}, 102.0) == Known({A: V4.records}, 60.0, 102.0)
    assert result_of({A: a, AAAA: aaaa}) == (wrong.result if wrong else Result.FOUND)


def test_the_smallest_ttl_counts() -> None:
    assert take(OLD, {A: V4, AAAA: V6}, 0.0).ttl_s == 30.0
    assert take(OLD, {A: V4, AAAA: TIMEOUT}, 0.0).ttl_s == 60.0


def test_without_ipv6_its_addresses_are_forgotten() -> None:
    assert take(OLD, {A: V4}, 0.0).addresses == ("10.0.0.1",)


RULES = Rules(ttl_min=2.0, ttl_max=100.0)
WAITS = [
    # TTL, failures, troubled: with chance 0, with chance almost 1
    (0.0, 0, False, 2.0, 2.2),
    (10.0, 0, False, 10.0, 11.0),
    (50.0, 0, False, 50.0, 52.0),
    (1e6, 0, False, 100.0, 102.0),
    (50.0, 0, True, TROUBLED_S, TROUBLED_S),
    (3.0, 0, True, 3.0, 3.3),
    (50.0, 1, False, 0.5, 1.0),
    (50.0, 2, True, 1.0, 2.0),
    (50.0, 3, False, 2.0, 4.0),
    (50.0, 4, False, 2.5, 5.0),
    (0.0, 100_000, False, 2.5, 5.0),
]


@pytest.mark.parametrize(("ttl_s", "failures", "troubled", "least", "most"), WAITS)
def test_when_to_ask_again(ttl_s: float, failures: int, troubled: bool, least: float, most: float) -> None:
    known = Known(ttl_s=ttl_s, failures=failures)
    assert again_in(known, RULES, troubled, 0.0) == pytest.approx(least)
    assert again_in(known, RULES, troubled, 1.0) == pytest.approx(most)


@given(st.floats(0, 1e9), st.integers(0, 10**6), st.booleans(), st.floats(0, 1))
def test_no_answer_is_used_long_beyond_its_ttl(ttl: float, failures: int, troubled: bool, chance: float) -> None:
    wait_s = again_in(Known(ttl_s=ttl, failures=failures), RULES, troubled, chance)
    bounded = min(max(ttl, RULES.ttl_min), RULES.ttl_max)
    assert 0.5 <= wait_s <= max(bounded + JITTER_MAX_S, AGAIN_MAX_S)


def known(*addresses: str) -> Known:
    return Known({A: tuple(a for a in addresses if ":" not in a), AAAA: tuple(a for a in addresses if ":" in a)})


def test_a_shuffled_answer_is_no_change() -> None:
    addresses = [f"10.0.{n}.{n}" for n in range(20)] + ["fd00::2", "fd00::1"]
    first = host_targets("app", 80, known(*addresses))
    random.Random(7).shuffle(addresses)
    assert host_targets("app", 80, known(*addresses)) == first
    assert first[0] == Target("10.0.0.0", 80, name="app")
    assert first[-1] == Target("fd00::2", 80, name="app")


def test_no_answer_makes_endpoints_without_end() -> None:
    many = known(*(f"10.{n >> 8}.{n & 255}.1" for n in range(4000)))
    assert len(host_targets("app", 80, many)) == TARGETS_MAX


HOSTS = {"one": known("10.0.0.1", "10.0.0.2"), "two": known("10.0.0.2"), "none": Known()}
SERVICES = [
    # SRV records, endpoints as (address, port, priority, weight, host)
    ([], []),
    ([Service(0, 5, 80, "none")], []),
    ([Service(0, 5, 80, "unknown")], []),
    ([Service(10, 5, 80, "two")], [("10.0.0.2", 80, 10, 5, "two")]),
    ([Service(0, 0, 80, "two")], [("10.0.0.2", 80, 0, 1, "two")]),
    (
        [Service(0, 5, 80, "one"), Service(0, 7, 80, "two")],  # 10.0.0.2 twice: once
        [("10.0.0.1", 80, 0, 5, "one"), ("10.0.0.2", 80, 0, 5, "one")],
    ),
    (
        [Service(9, 5, 80, "one"), Service(1, 7, 80, "two")],  # and of the lower priority value
        [("10.0.0.2", 80, 1, 7, "two"), ("10.0.0.1", 80, 9, 5, "one")],
    ),
    (
        [Service(0, 5, 81, "two"), Service(0, 5, 80, "two")],
        [("10.0.0.2", 80, 0, 5, "two"), ("10.0.0.2", 81, 0, 5, "two")],
    ),
]


@pytest.mark.parametrize(("services", "endpoints"), SERVICES)
def test_what_a_service_stands_for(services: list[Service], endpoints: list[tuple[str, int, int, int, str]]) -> None:
    assert service_targets(services, HOSTS) == tuple(Target(*endpoint) for endpoint in endpoints)
    assert service_targets(services[::-1], HOSTS) == tuple(Target(*endpoint) for endpoint in endpoints)


def test_services_are_kept_through_failures() -> None:
    first = take(Known(), {SRV: Found((Service(0, 1, 80, "one"),), 9.0)}, 1.0)
    for wrong in (NXDOMAIN, EMPTY, TIMEOUT, SERVFAIL):
        assert take(first, {SRV: wrong}, 2.0).services == first.services


@pytest.mark.parametrize(
    ("address", "good"),
    [("10.0.0.1", True), ("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("224.0.0.1", False),
     ("ff02::1", False)],
)  # fmt: skip
def test_some_answers_are_nobody(address: str, good: bool) -> None:
    assert can_be_dialled(address) is good
