"""Tokens and addresses through running workers: who is believed, who is refused, and what the application sees."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.bus.messages import KeyWanted
from gateway.core.addresses import access_list
from gateway.core.jwks import TokenKeys
from gateway.core.placement import Placement, Version
from gateway.core.view import AlbResolver, HeaderResolver, JwtResolver, Route
from tests.support.client import Client, Reply, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.origin import Origin
from tests.support.tokens import ARN, AUDIENCE, ISSUER, alb_token, key_set, signer

HERE = (ipaddress.ip_network("127.0.0.0/8"),)
OURS = signer()
JWT = JwtResolver(b"authorization", "org", "/jwks", key_set(OURS), ("ES256",), (ISSUER,), (AUDIENCE,))
TOKEN = JwtResolver(b"x-token", "org", "/jwks", key_set(OURS), ("ES256",), (ISSUER,), (AUDIENCE,))
URL = "https://id.test/jwks"
REMOTE = JwtResolver(b"authorization", "org", URL, "", ("ES256",), (ISSUER,), (AUDIENCE,))
ALB = AlbResolver("org", ARN, "https://k.test/{kid}")
HEADER = HeaderResolver(b"x-tenant-id")
TENANTS = (Placement(tenant="acme", home="us-east-1"), Placement(tenant="globex", home="us-east-1"))


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


@pytest.fixture
async def plane(origin: Origin, tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with data_plane(
        tmp_path, view(cluster("app", origin.port), resolvers=(JWT, TOKEN, HEADER)), TENANTS
    ) as running:
        yield running


def get(*lines: str, path: str = "/x", host: str = "any.where") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "\r\n"]).encode()


def flag_of(reply: Reply) -> str:
    return str(json.loads(reply.body)["flag"]) if reply.status >= 400 else ""


def tokens_counted(plane: DataPlane, outcome: str) -> int:
    stats = plane.worker.stats
    return stats.values[stats.series("landbridge_tokens_total", (("outcome", outcome),))]


async def test_a_token_names_the_tenant_and_reaches_the_application(plane: DataPlane, origin: Origin) -> None:
    line = f"Authorization: Bearer {OURS.token()}"
    client = await Client.connect(plane.port)
    for _ in range(3):
        assert (await client.ask(get(line, "X-Tenant-ID: globex"))).status == 200
    await client.close()
    seen = origin.requests[-1]
    assert (seen.value("x-tenant"), seen.value("authorization")) == ("acme", line.partition(": ")[2])
    assert seen.values("x-tenant-id") == [], "the field of a resolver that did not answer"
    assert [tokens_counted(plane, outcome) for outcome in ("valid", "cached")] == [1, 2]
    assert {exchange.tenant for exchange in plane.log.exchanges} == {"acme"}


async def test_a_token_that_is_not_good_ends_the_request(plane: DataPlane, origin: Origin) -> None:
    expired = OURS.token(exp=1)
    for token, why in [
        (expired, "the token has expired"),
        ("garbage", "the token is no signed JWT"),
        ("x" * 20_000, "the token is longer than 16384 bytes"),
        (signer("two").token(), "the token is signed with a key that is not known"),
        (OURS.token(header={"alg": "HS256"}), "the token is not signed with ES256"),
    ]:
        reply = await once(plane.port, get(f"Authorization: Bearer {token}", "X-Tenant-ID: globex"))
        assert (reply.status, flag_of(reply)) == (401, "token_invalid")
        assert reply.value("www-authenticate") == f'Bearer error="invalid_token", error_description="{why}"'
        assert token.encode() not in reply.body
    assert origin.requests == []
    assert tokens_counted(plane, "refused") == 4, "one was too long to be looked at"


async def test_underscores_hide_no_second_token(plane: DataPlane, origin: Origin) -> None:
    """CGI and WSGI would read `X_Token` as `X-Token`."""
    good = OURS.token()
    assert (await once(plane.port, get(f"X-Token: {good}"))).status == 200
    reply = await once(plane.port, get(f"X-Token: {good}", f"X_Token: {OURS.token(org='globex')}"))
    assert (reply.status, flag_of(reply)) == (401, "token_invalid")
    assert len(origin.requests) == 1


async def test_no_line_with_a_token_is_remembered(plane: DataPlane) -> None:
    short = "Bearer a.b.c"
    await once(plane.port, get(f"Authorization: {short}"))
    await once(plane.port, get("X-Token: a.b.c"))
    await once(plane.port, get("X-Amzn-Oidc-Data: a.b.c"))
    assert not [line for line in plane.worker.table.cache if b"a.b.c" in line]


async def test_a_key_that_is_not_here_yet_is_503_and_asked_for(origin: Origin, tmp_path: Path) -> None:
    async with data_plane(tmp_path, view(cluster("app", origin.port), resolvers=(REMOTE, HEADER)), TENANTS) as plane:
        line = f"Authorization: Bearer {OURS.token()}"
        reply = await once(plane.port, get(line, "X-Tenant-ID: globex"))
        assert (reply.status, flag_of(reply), reply.value("retry-after")) == (503, "keys_unavailable", "1")
        assert [said for said in plane.said if isinstance(said, KeyWanted)] == [KeyWanted(URL, "one")]
        plane.worker.tokens.learn(TokenKeys(URL, {"": key_set(OURS)}))
        assert (await once(plane.port, get(line))).status == 200
        assert tokens_counted(plane, "unavailable") == 1
        plane.swap(resolvers=(HEADER,))
        assert (await once(plane.port, get(line, "X-Tenant-ID: globex"))).status == 200
        assert origin.requests[-1].value("x-tenant") == "globex"


OIDC = ("X-Amzn-Oidc-Identity: u", "X-Amzn-Oidc-Accesstoken: t", "x_amzn_oidc_data: twin", "X-Amzn-Oidc-New: n")


async def test_what_a_load_balancer_says_is_believed_of_trusted_proxies_alone(origin: Origin, tmp_path: Path) -> None:
    """FAULTS 32 for `x-amzn-oidc-*`: underscore twins, and fields that there are not yet, included."""
    data = alb_token(OURS)
    snapshot = view(cluster("app", origin.port), resolvers=(ALB, HEADER))
    async with data_plane(tmp_path, snapshot, TENANTS) as plane:
        plane.worker.tokens.learn(TokenKeys(ALB.source, {"one": OURS.pem().decode()}))
        for _ in range(2):  # a client that is met, and one that is known
            client = await Client.connect(plane.port)
            for _ in range(2):
                reply = await client.ask(get(f"X-Amzn-Oidc-Data: {data}", *OIDC))
                assert (reply.status, flag_of(reply)) == (400, "tenant_missing")
            reply = await client.ask(get(f"X-Amzn-Oidc-Data: {data}", *OIDC, "X-Tenant-ID: globex"))
            assert reply.status == 200
            await client.close()
        for seen in origin.requests:
            assert seen.value("x-tenant") == "globex"
            assert not [line for line in seen.lines if b"oidc" in line.lower()]
        plane.swap(trusted_proxies=HERE)
        origin.requests.clear()
        assert (await once(plane.port, get(f"X-Amzn-Oidc-Data: {data}", "X-Amzn-Oidc-Identity: u"))).status == 200
        (seen,) = origin.requests
        assert (seen.value("x-tenant"), seen.value("x-amzn-oidc-data"), seen.value("x-amzn-oidc-identity")) == (
            *("acme", data, "u"),
        )
        thief = alb_token(OURS, ARN.replace("my-alb", "thiefs"))
        reply = await once(plane.port, get(f"X-Amzn-Oidc-Data: {thief}", "X-Tenant-ID: globex"))
        assert (reply.status, flag_of(reply)) == (401, "token_invalid")
        twice = await once(plane.port, get(f"X-Amzn-Oidc-Data: {data}", "X_Amzn_Oidc_Data: x"))
        assert (twice.status, flag_of(twice)) == (401, "token_invalid")


def routes(*rows: tuple[bytes, tuple[str, ...], tuple[str, ...]]) -> tuple[Route, ...]:
    return tuple(Route(prefix, "app", access_list(allow, deny)) for prefix, allow, deny in rows)


async def test_routes_and_tenants_have_address_lists(origin: Origin, tmp_path: Path) -> None:
    tenants = (
        TENANTS[0],
        Placement(tenant="globex", home="us-east-1", allow=("192.0.2.0/24",), deny=("192.0.2.66",)),
    )
    snapshot = view(
        cluster("app", origin.port),
        resolvers=(HEADER,),
        trusted_proxies=HERE,
        routes=routes((b"/admin/open", (), ()), (b"/admin", ("10.0.0.0/8",), ()), (b"/", (), ("203.0.113.0/24",))),
    )
    async with data_plane(tmp_path, snapshot, tenants) as plane:

        async def ask(client: str, tenant: str = "acme", path: str = "/x") -> str:
            reply = await once(plane.port, get(f"X-Forwarded-For: {client}", f"X-Tenant-ID: {tenant}", path=path))
            return flag_of(reply) or str(reply.status)

        for client, tenant, path, said in [
            ("192.0.2.1", "acme", "/x", "200"),
            ("203.0.113.7", "acme", "/x", "address_denied"),
            ("203.0.113.7", "acme", "/admin/open", "200"),
            ("192.0.2.1", "acme", "/admin", "address_denied"),
            ("10.9.9.9", "acme", "/admin", "200"),
            ("10.9.9.9, 192.0.2.1", "acme", "/admin", "address_denied"),
            ("192.0.2.1", "globex", "/x", "200"),
            ("192.0.2.66", "globex", "/x", "address_denied"),
            ("10.9.9.9", "globex", "/x", "address_denied"),
            ("2001:db8::1", "globex", "/x", "address_denied"),
            ("203.0.113.7", "nobody", "/x", "address_denied"),
            ("192.0.2.1", "nobody", "/x", "tenant_unknown"),
        ]:
            for _ in range(2):
                assert await ask(client, tenant, path) == said, (client, tenant, path)
        stats = plane.worker.stats
        counted = [
            stats.values[stats.series("landbridge_address_denied_total", (("scope", s),))] for s in ("route", "tenant")
        ]
        assert counted == [8, 6]
        probe = await once(plane.port, get("X-Forwarded-For: 203.0.113.7", path="/healthz", host="127.0.0.1"))
        assert probe.status == 200, "a load balancer's probe is none of the application's clients"
        plane.swap(routes=routes((b"/", (), ())))
        assert await ask("203.0.113.7") == "200"


async def test_each_gateway_that_a_request_passes_asks_its_own_lists(tmp_path: Path) -> None:
    """About the client that the entry determined, which no header of the client's can change."""
    us_app = await Origin().start()
    record = Placement(tenant="acme", home="us-east-1", version=Version(7))
    listed = msgspec.structs.replace(record, deny=("203.0.113.0/24",))
    try:
        async with data_plane(tmp_path / "us", view(cluster("app", us_app.port), resolvers=(HEADER,)), [listed]) as us:
            peer = cluster("region:us-east-1", us.hop_port, region="us-east-1")
            snapshot = view(
                cluster("app", us_app.port), peer, region="eu-west-1", resolvers=(HEADER,), trusted_proxies=HERE
            )
            async with data_plane(tmp_path / "eu", snapshot, [record]) as eu:

                async def ask(client: str, path: str = "/x") -> tuple[int, str, str]:
                    reply = await once(eu.port, get(f"X-Forwarded-For: {client}", "X-Tenant-ID: acme", path=path))
                    region = str(json.loads(reply.body)["region"]) if reply.status >= 400 else ""
                    return reply.status, flag_of(reply), region

                assert await ask("192.0.2.1") == (200, "", "")
                assert await ask("203.0.113.7") == (403, "address_denied", "us-east-1"), "home's record knows better"
                assert await ask("198.51.100.1, 203.0.113.7") == (403, "address_denied", "us-east-1")
                assert await ask("203.0.113.7, 192.0.2.1") == (200, "", "")
                eu.swap(routes=routes((b"/admin", ("10.0.0.0/8",), ())))
                before = len(us.log.exchanges)
                assert await ask("192.0.2.1", "/admin") == (403, "address_denied", "eu-west-1")
                assert len(us.log.exchanges) == before, "refused before it was carried"
    finally:
        await us_app.stop()


async def test_what_a_load_balancer_said_goes_over_a_hop(tmp_path: Path) -> None:
    us_app = await Origin().start()
    record = Placement(tenant="acme", home="us-east-1", version=Version(7))
    try:
        async with data_plane(tmp_path / "us", view(cluster("app", us_app.port)), [record]) as us:
            peer = cluster("region:us-east-1", us.hop_port, region="us-east-1")
            snapshot = view(
                cluster("app", us_app.port), peer, region="eu-west-1", resolvers=(ALB,), trusted_proxies=HERE
            )
            async with data_plane(tmp_path / "eu", snapshot, [record]) as eu:
                eu.worker.tokens.learn(TokenKeys(ALB.source, {"one": OURS.pem().decode()}))
                data = alb_token(OURS)
                assert (await once(eu.port, get(f"X-Amzn-Oidc-Data: {data}"))).status == 200
                (seen,) = us_app.requests
                assert (seen.value("x-tenant"), seen.value("x-amzn-oidc-data")) == ("acme", data)
    finally:
        await us_app.stop()
