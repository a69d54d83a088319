"""Tokens apart from their signature: where they stand, what they are made of, what their claims must say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError
from gateway.core.tokens import (
    AUTHORIZATION,
    TOKEN_BYTES_MAX,
    check_algorithm,
    check_parties,
    check_times,
    find_token,
    kid_of,
    read_claims,
    take_apart,
    tenant_of,
)
from tests.support.tokens import alb_token, bare, padded, signer

NOW = 1_000_000.0


def why(call: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(GatewayError) as caught:
        call(*arguments, **more)
    assert caught.value.flag.name == "token_invalid"
    return caught.value.detail


@pytest.mark.parametrize(
    ("values", "field", "token"),
    [
        ([], AUTHORIZATION, None),
        ([b"Bearer a.b.c"], AUTHORIZATION, b"a.b.c"),
        ([b"bEARER  a.b.c "], AUTHORIZATION, b"a.b.c"),
        ([b"Bearer"], AUTHORIZATION, b""),
        ([b"Bearer "], AUTHORIZATION, b""),
        ([b"Basic eDp5"], AUTHORIZATION, None),
        ([b"Bearer\ta.b.c"], AUTHORIZATION, b"a.b.c"),
        ([b"Bearers a.b.c"], AUTHORIZATION, None),
        ([b"Basic eDp5", b"Bearer a.b.c"], AUTHORIZATION, b"a.b.c"),
        ([b"Bearer a.b.c", b"Bearer a.b.c"], AUTHORIZATION, b"a.b.c"),
        ([b"a.b.c"], AUTHORIZATION, None),
        ([b"a.b.c"], b"x-token", b"a.b.c"),
        ([b"Bearer a.b.c"], b"x-token", b"a.b.c"),
        ([b""], b"x-token", None),
    ],
)
def test_where_a_token_stands(values: list[bytes], field: bytes, token: bytes | None) -> None:
    assert find_token(values, field) == token


def test_two_tokens_and_a_huge_one() -> None:
    assert why(find_token, [b"Bearer a", b"Bearer b"], AUTHORIZATION) == "the request holds more than one token"
    assert why(find_token, [b"a", b"Bearer b"], b"x-token") == "the request holds more than one token"
    assert find_token([b"a" * TOKEN_BYTES_MAX], b"x-token")
    assert why(find_token, [b"a" * (TOKEN_BYTES_MAX + 1)], b"x-token") == "the token is longer than 16384 bytes"


def test_a_token_taken_apart() -> None:
    token = signer().token(sub="u").encode()
    parts = take_apart(token)
    assert (parts.header["alg"], kid_of(parts.header)) == ("ES256", "one")
    assert read_claims(parts.payload)["sub"] == "u"
    assert token == parts.signed + b"." + bare(parts.signature)


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"a.b",
        b"a.b.c.d",
        b"..",
        b"a..c",
        b"e30.e30.",
        b"e30 .e30.e30",
        b"e30=.e30.e30",
        b"e30.e30.e3+",
        b"e30.e30.e",
        b"\xff.\xff.\xff",
        b"e30.e30.e30\n",
    ],
)
def test_what_is_no_token(token: bytes) -> None:
    assert why(take_apart, token) == "the token is no signed JWT"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"not", "the token holds no JSON"),
        (b"[]", "the token holds no JSON object"),
        (b"7", "the token holds no JSON object"),
        (b"[" * 9000, "the token holds no JSON"),
        (b'{"crit": ["b64"], "b64": false}', "the token asks for an extension that is not known here"),
        (b"\xff\xff", "the token holds no JSON"),
    ],
)
def test_headers_that_are_none(header: bytes, said: str) -> None:
    assert why(take_apart, bare(header) + b".e30.e30") == said


def test_padding_is_the_load_balancers_alone() -> None:
    token = alb_token(signer(), org="a").encode()
    tokens = [alb_token(signer(), org="a" * size).encode() for size in range(1, 4)]
    assert any(b"=" in one for one in tokens)
    for one in tokens:
        assert take_apart(one, padded=True).header["kid"] == "one"
    assert why(take_apart, next(one for one in tokens if b"=" in one)) == "the token is no signed JWT"
    assert take_apart(token, padded=True).header["signer"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_token_or_refused(token: bytes) -> None:
    for is_padded in (False, True):
        try:
            parts = take_apart(token, is_padded)
        except GatewayError as error:
            assert error.flag.status == 401
        else:
            assert isinstance(parts.header, dict)


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=9), st.floats())))
def test_any_claims_are_judged_or_refused(claims: dict[str, object]) -> None:
    for call in (
        lambda: check_times(claims, NOW, 0),
        lambda: check_parties(claims, ("i",), ("a",)),
        lambda: tenant_of(claims, "a.b"),
        lambda: check_algorithm(claims, ("RS256",)),
        lambda: kid_of(claims),
    ):
        try:
            call()
        except GatewayError as error:
            assert error.flag.name == "token_invalid"


@pytest.mark.parametrize(
    ("claims", "leeway", "ends"),
    [
        ({"exp": NOW + 1}, 0, NOW + 1),
        ({"exp": NOW}, 0, "the token has expired"),
        ({"exp": NOW}, 1, NOW),
        ({"exp": NOW - 30}, 30, "the token has expired"),
        ({"exp": NOW + 9, "nbf": NOW}, 0, NOW + 9),
        ({"exp": NOW + 9, "nbf": NOW + 1}, 0, "the token is not valid yet"),
        ({"exp": NOW + 9, "nbf": NOW + 1}, 1, NOW + 9),
        ({}, 0, "the token does not say when it expires"),
        ({"exp": None}, 0, "the token does not say when it expires"),
        ({"exp": "9999999999"}, 0, "the token's exp is no time"),
        ({"exp": True}, 0, "the token's exp is no time"),
        ({"exp": float("inf")}, 0, "the token's exp is no time"),
        ({"exp": float("nan")}, 0, "the token's exp is no time"),
        ({"exp": 10**400}, 0, "the token's exp is no time"),
        ({"exp": NOW + 9, "nbf": "x"}, 0, "the token's nbf is no time"),
    ],
)
def test_times(claims: dict[str, object], leeway: float, ends: float | str) -> None:
    if isinstance(ends, str):
        assert why(check_times, claims, NOW, leeway) == ends
    else:
        assert check_times(claims, NOW, leeway) == ends


def test_issuers_and_audiences() -> None:
    ours = (("i", "j"), ("a", "b"))
    check_parties({"iss": "j", "aud": "a"}, *ours)
    check_parties({"iss": "i", "aud": ["x", 7, "b"]}, *ours)
    for issuer in ("I", "", None, ["i"], "i/"):
        assert why(check_parties, {"iss": issuer, "aud": "a"}, *ours) == "the token is of another issuer"
    for audience in ("A", "", None, [], ["ab"], [["a"]], {"a": 1}):
        assert why(check_parties, {"iss": "i", "aud": audience}, *ours) == "the token is for another audience"


@pytest.mark.parametrize("found", ["none", "HS256", "es256", "RS256", "", None, 7, ["ES256"]])
def test_the_configuration_decides_about_algorithms(found: object) -> None:
    assert why(check_algorithm, {"alg": found}, ("ES256", "PS256")) == "the token is not signed with ES256 or PS256"
    assert check_algorithm({"alg": "PS256"}, ("ES256", "PS256")) == "PS256"


@pytest.mark.parametrize(
    ("claims", "claim", "tenant"),
    [
        ({"org": "acme"}, "org", "acme"),
        ({"org": "AcMe"}, "org", "acme"),
        ({"org": {"id": "acme"}}, "org.id", "acme"),
        ({"org.id": "a", "org": {"id": "b"}}, "org.id", "a"),
        ({"https://x.test/org": "acme"}, "https://x.test/org", "acme"),
        ({"org": 42}, "org", "42"),
        ({"org": True}, "org", None),
        ({"org": 4.5}, "org", None),
        ({"org": -1}, "org", "-1"),
        ({"org": ["acme"]}, "org", None),
        ({"org": {}}, "org.id", None),
        ({"org": "acme"}, "org.id", None),
        ({"org": ""}, "org", None),
        ({"org": "a b"}, "org", None),
        ({"org": "acme\n"}, "org", None),
        ({"org": "\u212aorea"}, "org", None),
        ({"org": "x" * 64}, "org", None),
        ({}, "org", None),
    ],
)
def test_the_tenant_of_a_token(claims: dict[str, object], claim: str, tenant: str | None) -> None:
    if tenant is None:
        assert why(tenant_of, claims, claim) == f"the token names no tenant in {claim}"
    else:
        assert tenant_of(claims, claim) == tenant


def test_what_is_wrong_is_said_in_our_own_words() -> None:
    """No byte of a token stands in a refusal."""
    canary = "CANARY"
    header = {"alg": canary, "kid": canary * 99, "crit": [canary]}
    said = [
        why(take_apart, canary.encode()),
        why(take_apart, bare(json.dumps(header).encode()) + b".e30.e30"),
        why(check_algorithm, header, ("ES256",)),
        why(kid_of, header),
        why(check_times, {"exp": canary}, NOW, 0),
        why(check_parties, {"iss": canary}, ("i",), ("a",)),
        why(check_parties, {"iss": "i", "aud": canary}, ("i",), ("a",)),
        why(tenant_of, {"org": canary + " "}, "org"),
    ]
    assert not any(canary in one for one in said)
    assert padded(b"") == b""
