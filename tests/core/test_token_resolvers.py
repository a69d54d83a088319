"""Tokens among the resolvers: who answers, what ends the request, and who has to agree with whom."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.core.explain import explain
from gateway.core.placement import Placement
from gateway.core.routing import Kind, decide
from gateway.core.tenancy import Memo, Resolved, Source, Step, Trace, resolve
from gateway.core.view import AlbResolver, HeaderResolver, HostResolver, JwtResolver, Resolver, TokenResolver
from tests.support.facts import HERE, Facts, template, world

HOST = HostResolver(template("{tenant}.example.com"))
HEADER = HeaderResolver(b"x-tenant-id")
JWT = JwtResolver(b"authorization", "org", "/k", "{}", ("ES256",), ("i",), ("a",))
OTHER = JwtResolver(b"x-token", "org", "/k", "{}", ("ES256",), ("i",), ("a",))
ALB = AlbResolver("org", "arn", "https://k/{kid}")
NOWHERE = "elsewhere.test"


class Verified:
    """Takes `TENANT.ok` for a good token."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def tenant(self, resolver: TokenResolver, token: bytes) -> str:
        self.asked.append(token)
        tenant, _, kind = token.decode().partition(".")
        if kind == "ok":
            return tenant
        raise GatewayError("keys_unavailable" if kind == "later" else "token_invalid", "of no use")


def request(host: str = NOWHERE, **fields: str) -> Facts:
    named = {name.replace("_", "-").encode(): [value.encode()] for name, value in fields.items()}
    return Facts(host=host, fields=named)


def ask(facts: Facts, *resolvers: Resolver, agree: tuple[str, ...] = (), **more: Any) -> str:
    """Tenant and source, or the flag."""
    try:
        view = world(resolvers=resolvers, agree=agree)
        found = resolve(facts, view, {"shop.acme.com": "acme"}.get, tokens=Verified(), **more)
    except GatewayError as error:
        return error.flag.name
    return f"{found.tenant} by {found.source}"


BEARER = {"authorization": "Bearer acme.ok"}


@pytest.mark.parametrize(
    ("facts", "resolvers", "said"),
    [
        (request(**BEARER), (JWT,), "acme by token"),
        (request(**BEARER, x_tenant_id="globex"), (JWT, HEADER), "acme by token"),
        (request(**BEARER, x_tenant_id="globex"), (HEADER, JWT), "globex by header"),
        (request(x_tenant_id="globex"), (JWT, HEADER), "globex by header"),
        (request(authorization="Basic eDp5", x_tenant_id="globex"), (JWT, HEADER), "globex by header"),
        (request(authorization="Bearer x.bad", x_tenant_id="globex"), (JWT, HEADER), "token_invalid"),
        (request(authorization="Bearer x.later", x_tenant_id="globex"), (JWT, HEADER), "keys_unavailable"),
        (request(authorization="Bearer ", x_tenant_id="globex"), (JWT, HEADER), "token_invalid"),
        (request(authorization="Bearer x.bad", x_token="acme.ok"), (JWT, OTHER), "token_invalid"),
        (request(x_token="acme.ok"), (JWT, OTHER), "acme by token"),
        (request(x_amzn_oidc_data="acme.ok"), (ALB,), "acme by token"),
        (request(x_amzn_oidc_identity="acme.ok"), (ALB,), "tenant_missing"),
        (request("globex.example.com", authorization="Bearer x.bad"), (HOST, JWT), "globex by host"),
        (request("globex.eu-west-1.example.com", authorization="Bearer x.bad"), (JWT,), "globex by public"),
        (request(), (JWT,), "tenant_missing"),
    ],
)
def test_who_answers(facts: Facts, resolvers: tuple[Resolver, ...], said: str) -> None:
    assert ask(facts, *resolvers) == said


@pytest.mark.parametrize(
    ("facts", "agree", "said"),
    [
        (request("acme.example.com", **BEARER), ("host", "jwt"), "acme by host"),
        (request("globex.example.com", **BEARER), ("host", "jwt"), "tenant_conflict"),
        (request("globex.example.com"), ("host", "jwt"), "globex by host"),
        (request("globex.example.com", authorization="Bearer x.bad"), ("host", "jwt"), "token_invalid"),
        (request("globex.example.com", authorization="Bearer x.later"), ("host", "jwt"), "keys_unavailable"),
        (request("shop.acme.com", **BEARER), ("host", "jwt"), "acme by hosts"),
        (request("shop.acme.com", authorization="Bearer globex.ok"), ("host", "jwt"), "tenant_conflict"),
        (request("globex.eu-west-1.example.com", **BEARER), ("host", "jwt"), "tenant_conflict"),
        (request(**BEARER), ("host", "jwt"), "acme by token"),
        (request(), ("host", "jwt"), "tenant_missing"),
        (request("globex.example.com", **BEARER, x_tenant_id="acme"), ("header", "jwt"), "globex by host"),
        (request("globex.example.com", **BEARER, x_tenant_id="globex"), ("header", "jwt"), "tenant_conflict"),
        (request("acme.example.com", **BEARER, x_tenant_id="globex"), ("host", "jwt"), "acme by host"),
        (request("acme.example.com", **BEARER, x_tenant_id="globex"), ("host", "jwt", "header"), "tenant_conflict"),
        (request(**BEARER, x_token="globex.ok"), ("host", "jwt"), "tenant_conflict"),
        (request(**BEARER, x_token="acme.ok"), ("host", "jwt"), "acme by token"),
    ],
)
def test_who_has_to_agree(facts: Facts, agree: tuple[str, ...], said: str) -> None:
    memo: Memo = {}
    for _ in range(2):
        assert ask(facts, HOST, JWT, OTHER, HEADER, agree=agree, memo=memo) == said


def test_a_later_host_resolver_speaks_for_host_too() -> None:
    facts = request("globex.example.com", **BEARER)
    assert ask(facts, JWT, HOST, agree=("host", "jwt")) == "tenant_conflict"
    assert ask(facts, JWT, HOST) == "acme by token"


def test_with_a_map_that_is_not_complete_a_token_answers_for_no_unknown_host() -> None:
    assert ask(request(**BEARER), JWT, complete=False) == "map_unavailable"


def test_a_tenant_of_a_token_is_never_sent_to_another_origin() -> None:
    """DESIGN 5.3, rule 5: a client need not bring its token along, wherever it stood."""
    elsewhere = next(name for name in world().regions if name != HERE)
    placement = Placement(tenant="acme", home=elsewhere)
    page = Facts(host=NOWHERE, method=b"GET", fields={b"accept": [b"text/html"]})
    for source, kind in ((Source.TOKEN, Kind.INTERNAL_REDIRECT), (Source.HOST, Kind.EXTERNAL_REDIRECT)):
        assert decide(page, Resolved("acme", source, ""), placement, world(), True).kind is kind


def test_what_was_tried_is_told_and_nothing_of_the_token() -> None:
    trace = Trace()
    facts = request(authorization="Bearer CANARY.bad", x_tenant_id="globex")
    with pytest.raises(GatewayError):
        resolve(facts, world(resolvers=(JWT, HEADER)), {}.get, trace, tokens=Verified())
    assert trace.steps[-1] == Step("jwt: org in authorization", "refused: of no use")
    assert "CANARY" not in str(trace.steps)


def test_explain_verifies_and_tells_why_not() -> None:
    def explained(token: str) -> tuple[str, str, str | None]:
        found = explain(
            world(resolvers=(JWT,)),
            {}.get,
            {"acme": Placement(tenant="acme", home=HERE)}.get,
            True,
            host=NOWHERE,
            headers=[f"Authorization: Bearer {token}"],
            tokens=Verified(),
        )
        assert token not in str(found)
        return found.flag, found.detail, found.tenant

    assert explained("acme.ok") == ("", "", "acme")
    assert explained("CANARY.bad") == ("token_invalid", "of no use", None)
    assert explained("CANARY.later") == ("keys_unavailable", "of no use", None)


def test_without_a_verifier_nobody_is_believed() -> None:
    with pytest.raises(GatewayError) as caught:
        resolve(request(**BEARER), world(resolvers=(JWT,)), {}.get)
    assert caught.value.flag.name == "keys_unavailable"
