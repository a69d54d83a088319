"""Who may do what on the admin API: every row of role, endpoint and bind; names; and the bound on guessing."""

from __future__ import annotations

import pytest

from gateway.control.admin import ROUTES
from gateway.control.admin_access import (
    ADDRESSES_MAX,
    FAILURE_EVERY_S,
    FAILURES_BURST,
    NOBODY,
    Caller,
    Claim,
    Failures,
    Refusal,
    answers_to,
    bearer_of,
    host_of,
    judge,
    presented,
)
from gateway.control.admin_openapi import Route
from gateway.settings.schema import AdminSettings, Role, TokenSettings

VIEWER, OPERATOR = "viewer-token-0123456789abc", "operator-token-0123456789a"
TOKENS = (TokenSettings("prometheus", Role.VIEWER, VIEWER), TokenSettings("alice", Role.OPERATOR, OPERATOR))
SETTINGS = AdminSettings(tokens=TOKENS)
BAD = OPERATOR[:-1] + "b"
WHO = {"nobody": (), "bad": (BAD,), "viewer": (VIEWER,), "operator": (OPERATOR,), "basic": None}
HERE = {True: "127.0.0.1", False: "10.0.0.5"}


def claim(who: str = "nobody", is_loopback: bool = True, host: str | None = None, address: str = "10.0.0.9") -> Claim:
    fields = ["Basic YWxpY2U6YQ=="] if who == "basic" else [f"Bearer {token}" for token in WHO[who] or ()]
    return Claim(HERE[is_loopback] if host is None else host, fields, address, HERE[is_loopback])


def admitted(verdict: Caller | Refusal) -> int:
    return verdict.status if isinstance(verdict, Refusal) else 200


READ = {True: {"nobody": 200, "bad": 401, "viewer": 200, "operator": 200, "basic": 200},
        False: {"nobody": 401, "bad": 401, "viewer": 200, "operator": 200, "basic": 401}}  # fmt: skip
CHANGE = {"nobody": 401, "bad": 401, "viewer": 403, "operator": 200, "basic": 401}


@pytest.mark.parametrize("is_loopback", [True, False], ids=["loopback", "elsewhere"])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_role_by_endpoint_by_bind(route: Route, who: str, is_loopback: bool) -> None:
    wanted = 200 if route.open else CHANGE[who] if route.change else READ[is_loopback][who]
    verdict = judge(claim(who, is_loopback), route.needs, SETTINGS, is_loopback, Failures(), 0.0)
    assert admitted(verdict) == wanted
    if isinstance(verdict, Refusal):
        assert (wanted == 401) is verdict.challenge.startswith("Bearer ")
        assert ("invalid_token" in verdict.challenge) is (who == "bad")
        assert not any(token in str(verdict) for token in (BAD, VIEWER, OPERATOR))
    elif who in ("viewer", "operator") and not route.open:
        assert verdict == Caller("prometheus" if who == "viewer" else "alice", Role(who))
    else:
        assert verdict is NOBODY


def test_only_the_probes_are_open_and_only_replacement_changes_anything() -> None:
    assert {route.path for route in ROUTES if route.open} == {"/healthz", "/readyz"}
    assert {route.path for route in ROUTES if route.needs is Role.OPERATOR} == {
        route.path for route in ROUTES if route.method == "POST"
    }


@pytest.mark.parametrize("is_loopback", [True, False])
@pytest.mark.parametrize("who", ["bad", "viewer", "operator"])
def test_without_tokens_no_token_is_right(who: str, is_loopback: bool) -> None:
    for needs in (Role.VIEWER, Role.OPERATOR):
        assert admitted(judge(claim(who, is_loopback), needs, AdminSettings(), is_loopback, Failures(), 0.0)) == 401


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ([], (False, b"")),
        (["Basic abc"], (False, b"")),
        ([""], (False, b"")),
        (["Bearer abc"], (True, b"abc")),
        (["bearer  abc "], (True, b"abc")),
        (["BEARER abc"], (True, b"abc")),
        (["Bearer"], (True, b"")),
        (["Bearer a b"], (True, b"a b")),
        (["Bearer \udcff"], (True, b"\xff")),
        (["Bearer " + "a" * 513], (True, b"")),
        (["Bearer abc", "Bearer abc"], (True, b"")),
        (["Basic abc", "Bearer abc"], (True, b"")),
    ],
)
def test_what_is_presented(fields: list[str], wanted: tuple[bool, bytes]) -> None:
    assert presented(fields) == wanted


def test_a_token_is_right_as_a_whole_only() -> None:
    for wrong in (b"", OPERATOR[:-1].encode(), OPERATOR.encode() + b"a", OPERATOR.upper().encode(), b"\xff" * 26):
        assert bearer_of(wrong, TOKENS) is None
    assert bearer_of(OPERATOR.encode(), TOKENS) == Caller("alice", Role.OPERATOR)
    assert bearer_of(VIEWER.encode(), TOKENS[::-1]) == Caller("prometheus", Role.VIEWER)


# --- names

HOSTS = ("gw.internal", "10.1.1.1", "::2")


@pytest.mark.parametrize(
    ("field", "loopback", "elsewhere"),
    [
        ("", True, True),
        ("localhost", True, False),
        ("LOCALHOST:81", True, False),
        ("a.demo.localhost.", True, False),
        ("127.9.9.9:1", True, False),
        ("[::1]:8", True, False),
        ("10.0.0.5:8081", False, True),
        ("[::ffff:10.0.0.5]", False, True),
        ("10.0.0.6", False, False),
        ("gw.internal", True, True),
        ("GW.internal.:8081", True, True),
        ("10.1.1.1:80", True, True),
        ("[::2]", True, True),
        ("[0:0::2]:80", True, True),
        ("x.gw.internal", False, False),
        ("gw.internal.evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("evil.example", False, False),
        ("evil.example:80:80", False, False),
        ("gw.internal@evil.example", False, False),
        ("10.0.0.5.evil.example", False, False),
    ],
)
def test_names_that_the_api_answers_to(field: str, loopback: bool, elsewhere: bool) -> None:
    assert answers_to(field, HOSTS, True, "127.0.0.1") is loopback
    assert answers_to(field, HOSTS, False, "10.0.0.5") is elsewhere
    assert answers_to(field, HOSTS, False, "::ffff:10.0.0.5") is elsewhere


def test_a_wrong_name_is_told_before_any_token_is_looked_at() -> None:
    failures = Failures()
    for who in WHO:
        for _ in range(FAILURES_BURST):
            assert admitted(judge(claim(who, host="evil.example"), Role.VIEWER, SETTINGS, True, failures, 0.0)) == 421
    assert failures.wait_s("10.0.0.9", 0.0) == 0
    assert judge(claim("bad", host="evil.example"), None, SETTINGS, True, failures, 0.0) is NOBODY, "a probe"


def test_what_is_no_host() -> None:
    assert host_of("a:b:c") is None
    assert host_of("[::1") is None
    assert host_of("[::1]:80") == "::1"


# --- guessing


def guess(failures: Failures, now: float, address: str = "10.0.0.9", who: str = "bad") -> int:
    return admitted(judge(claim(who, address=address), Role.OPERATOR, SETTINGS, True, failures, now))


def test_an_address_that_guesses_has_to_wait_also_with_the_right_token() -> None:
    failures = Failures()
    assert [guess(failures, 100.0) for _ in range(FAILURES_BURST + 2)] == [401] * FAILURES_BURST + [429, 429]
    assert guess(failures, 100.0, who="operator") == 429
    assert guess(failures, 100.0, address="10.0.0.8", who="operator") == 200
    refused = judge(claim("bad"), Role.VIEWER, SETTINGS, True, failures, 103.5)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.retry_after_s) == (429, 3)
    assert judge(claim("nobody"), Role.VIEWER, SETTINGS, True, failures, 100.0) is NOBODY, "reads stay open on loopback"
    later = 100.0 + FAILURE_EVERY_S
    assert guess(failures, later, who="operator") == 200, "what is right costs nothing"
    assert [guess(failures, later) for _ in range(2)] == [401, 429], "one try came back"
    rested = later + FAILURES_BURST * FAILURE_EVERY_S + 1
    assert [guess(failures, rested) for _ in range(FAILURES_BURST + 1)] == [401] * FAILURES_BURST + [429]


def test_a_change_without_a_token_counts_and_a_read_without_one_does_not() -> None:
    failures = Failures()
    for _ in range(3 * FAILURES_BURST):
        assert admitted(judge(claim("nobody", False), Role.VIEWER, SETTINGS, False, failures, 0.0)) == 401
    assert [guess(failures, 0.0, who="nobody") for _ in range(FAILURES_BURST + 1)] == [401] * FAILURES_BURST + [429]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "10.0.0.1", False),
    ],
)
def test_addresses_of_one_machine_count_as_one(one: str, other: str, same: bool) -> None:
    failures = Failures()
    for _ in range(FAILURES_BURST):
        failures.count(one, 0.0)
    assert (failures.wait_s(other, 0.0) > 0) is same


def test_memory_of_failures_is_bounded_and_forgets_the_oldest() -> None:
    failures = Failures()
    for _ in range(FAILURES_BURST):
        failures.count("10.9.9.9", 0.0)
    for number in range(ADDRESSES_MAX - 1):
        failures.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert failures.wait_s("10.9.9.9", 0.0)
    failures.count("10.8.8.8", 0.0)
    assert len(failures._full_at) == ADDRESSES_MAX
    assert not failures.wait_s("10.9.9.9", 0.0)
