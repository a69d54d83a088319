"""Tokens in the configuration: what is taken, what is refused at which line, and where the keys come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.core.conditions import Conditions
from gateway.core.view import AlbResolver, JwtResolver
from gateway.settings.difference import compare
from gateway.settings.loader import decode_sources, encode_sources, load, masked, read_sources, warnings_for
from gateway.settings.view import build_view
from tests.support.configs import ENVIRON, SMALL, problems_of, settings_of, write
from tests.support.tokens import ARN, key_set, signer

JWT = "claim: org, jwks: jwks.json, algorithms: [ES256], issuer: https://id.test/, audience: api"
KEYS = "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA"


def jwt(text: str = JWT, more: str = "") -> str:
    return SMALL + f"tenancy:\n  resolvers:\n    - jwt: {{{text}}}\n{more}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jwks.json").write_text(key_set(signer()))
    return tmp_path


def test_a_file_is_read_with_the_configuration_and_kept_with_it(folder: Path) -> None:
    path = write(folder, jwt())
    sources = read_sources(path, ENVIRON)
    (folder / "jwks.json").unlink()
    settings = load(decode_sources(encode_sources(sources)), ENVIRON)
    (resolver,) = build_view(settings, Conditions(), 0).resolvers
    assert resolver == JwtResolver(
        b"authorization",
        "org",
        str(folder / "jwks.json"),
        key_set(signer()),
        ("ES256",),
        ("https://id.test/",),
        ("api",),
        30.0,
    )
    assert problems_of(path) == [
        "gateway.yaml:11: tenancy.resolvers[0].jwt.jwks: expected a key set (RFC 7517) in "
        f"{folder}/jwks.json, got no such file or directory".replace(f"{folder}/", "")
    ]


def test_other_keys_in_the_file_are_another_configuration_that_is_data(folder: Path) -> None:
    path = write(folder, jwt())
    before = settings_of(path)
    (folder / "jwks.json").write_text(key_set(signer("two")))
    after = settings_of(path)
    difference = compare(before, after)
    assert (difference.code, difference.restart, difference.data) == ([], [], ["tenancy.resolvers"])
    assert before.digest != after.digest
    assert "***" not in json.dumps(masked(after)["tenancy"]), "public keys are no secret"


def test_a_url_is_controls_to_ask(folder: Path) -> None:
    path = write(folder, jwt(JWT.replace("jwks.json", "'https://id.test/keys?p=1'") + ", refresh: 1m, leeway: 0s"))
    (resolver,) = build_view(settings_of(path), Conditions(), 0).resolvers
    assert masked(settings_of(path))["tenancy"]["resolvers"][0]["jwt"]["jwks"] == "https://id.test/keys?***"
    assert isinstance(resolver, JwtResolver)
    assert (resolver.source, resolver.keys, resolver.leeway_s) == ("https://id.test/keys?p=1", "", 0.0)
    for place in ("http://127.0.0.1:80/k", "http://localhost/k", "'http://[::1]:8/k'", "https://10.0.0.1/k"):
        assert problems_of(write(folder, jwt(JWT.replace("jwks.json", place)))) == []


def test_lists_and_texts(folder: Path) -> None:
    text = JWT.replace("audience: api", "audience: [api, web]").replace("claim: org", "claim: a.b, header: X_Token")
    (resolver,) = build_view(settings_of(write(folder, jwt(text))), Conditions(), 0).resolvers
    assert isinstance(resolver, JwtResolver)
    assert (resolver.header, resolver.claim, resolver.audiences) == (b"x-token", "a.b", ("api", "web"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[ES256]", "[none]", f'algorithms[0]: expected one of {KEYS} (none is no signature), got "none"'),
        (
            "[ES256]",
            "[ES256, HS256]",
            f"algorithms[1]: expected one of {KEYS} (with HMAC whoever may verify may also sign, and a public key is "
            'no secret), got "HS256"',
        ),
        ("[ES256]", "[]", "algorithms: expected at least one, got an empty list"),
        ("[ES256]", "ES256", 'algorithms: expected a list, got "ES256"'),
        (
            "[ES256]",
            "[ES256, RS256]",
            'algorithms[1]: expected an algorithm that a key in jwks.json is for, got "RS256"',
        ),
        ("issuer: https://id.test/, ", "", "issuer: expected text or list of texts, got nothing"),
        (", audience: api", "", "audience: expected text or list of texts, got nothing"),
        ("audience: api", "audience: []", "audience: expected a text of at most 1024 characters, got an empty list"),
        ("audience: api", "audience: [a, a]", 'audience[1]: expected each value once, got "a" again'),
        ("claim: org", "claim: ''", 'claim: expected a claim such as org_id or org.id, got ""'),
        ("claim: org, ", "", "claim: expected a claim such as org_id or org.id, got nothing"),
        ("claim: org", "clam: org", None),
        ("jwks.json", "''", 'jwks: expected a path, or a URL such as https://id.example.com/jwks.json, got ""'),
        ("jwks.json", "none.json", "jwks: expected a key set (RFC 7517) in none.json, got no such file or directory"),
        ("jwks.json", "gateway.yaml", "jwks: expected a key set (RFC 7517) in gateway.yaml, got no JSON"),
        ("jwks.json", ".", None),
        (
            "jwks.json",
            "http://id.test/k",
            "jwks: expected a URL that begins with https:// (plain http is for this machine only), got "
            '"http://id.test/k"',
        ),
        ("jwks.json", "ftp://id.test/k", None),
        ("jwks.json", "https://", None),
        ("jwks.json", "https://a:b@id.test/k", None),
        ("jwks.json", "https://id.test:99999/k", None),
        ("claim: org", "claim: org, leeway: 30", "leeway: expected a duration such as 250ms, got 30"),
        ("claim: org", "claim: org, header: Host", None),
        ("claim: org", "claim: org, header: Cookie", None),
        ("claim: org", "claim: org, header: X-Tenant", None),
        ("claim: org", "claim: org, header: X-Amzn-Oidc-Accesstoken", ""),
        ("claim: org", "claim: org, header: 'a b'", None),
    ],
)
def test_a_mistake_is_named(folder: Path, old: str, new: str, problem: str | None) -> None:
    """None: refused, in whatever words. "": not refused."""
    found = problems_of(write(folder, jwt(JWT.replace(old, new))))
    if problem == "":
        assert found == []
    elif problem is None:
        assert found
        assert all(line.startswith("gateway.yaml:11: tenancy.resolvers[0].jwt.") for line in found)
    else:
        assert found == [f"gateway.yaml:11: tenancy.resolvers[0].jwt.{problem}"]


def test_a_private_key_in_the_set_is_refused(folder: Path) -> None:
    (folder / "jwks.json").write_text(json.dumps({"keys": [signer().jwk(d="AAAA")]}))
    (problem,) = problems_of(write(folder, jwt()))
    assert problem.endswith("got keys[0] holds a secret: a set for verifying has public keys only")
    assert "AAAA" not in problem


ALB = f"claim: org, alb_arn: '{ARN}'"
TRUST = "trusted_proxies: [10.20.0.0/24]\n"


def alb(text: str = ALB, trust: str = TRUST) -> str:
    return SMALL + trust + f"tenancy:\n  resolvers:\n    - alb: {{{text}}}\n"


def test_the_load_balancers_keys_are_where_its_region_has_them(folder: Path) -> None:
    for arn, keys, source in [
        (ARN, "", "https://public-keys.auth.elb.us-east-1.amazonaws.com/{kid}"),
        (
            ARN.replace("arn:aws:", "arn:aws-us-gov:").replace("us-east-1", "us-gov-west-1"),
            "",
            "https://s3-us-gov-west-1.amazonaws.com/aws-elb-public-keys-prod-us-gov-west-1/{kid}",
        ),
        (ARN, ", keys: 'http://127.0.0.1:9/{kid}'", "http://127.0.0.1:9/{kid}"),
        (ARN.replace("arn:aws:", "arn:aws-cn:"), ", keys: 'https://k.test/{kid}'", "https://k.test/{kid}"),
    ]:
        path = write(folder, alb(f"claim: org, alb_arn: '{arn}'{keys}"))
        assert build_view(settings_of(path), Conditions(), 0).resolvers == (AlbResolver("org", arn, source, 30.0),)


@pytest.mark.parametrize(
    ("text", "trust", "problem"),
    [
        (
            ALB,
            "",
            "alb: expected trusted_proxies with the load balancer's subnets, since nobody else is believed, got none",
        ),
        ("claim: org, alb_arn: my-alb", TRUST, "alb.alb_arn: expected an ARN such as"),
        (ALB.replace("/app/", "/net/"), TRUST, "alb.alb_arn: expected an ARN such as"),
        (f"{ALB}, keys: 'https://k.test/'", TRUST, "alb.keys: expected a URL with {kid} in it, once, got"),
        (f"{ALB}, keys: 'http://k.test/{{kid}}'", TRUST, "alb.keys: expected a URL that begins with https://"),
        (
            ALB.replace("arn:aws:", "arn:aws-cn:"),
            TRUST,
            "alb.keys: expected a URL with {kid} in it, since it is not known where the keys of this ARN are, got no",
        ),
        ("alb_arn: x", TRUST, "alb.alb_arn"),
    ],
)
def test_what_is_wrong_with_a_load_balancer(folder: Path, text: str, trust: str, problem: str) -> None:
    found = problems_of(write(folder, alb(text, trust)))
    assert any(f"tenancy.resolvers[0].{problem}" in line for line in found), found


@pytest.mark.parametrize(
    ("agree", "problem"),
    [
        ("[]", ""),
        ("[host, jwt]", ""),
        ("[jwt, header]", 'agree[1]: expected a kind of resolver that tenancy.resolvers has, got "header"'),
        ("[jwt]", 'agree: expected two kinds or more, or none, got "jwt"'),
        ("[host, fixed]", None),
        ("[host, host]", 'agree[1]: expected each value once, got "host" again'),
        ("host", 'agree: expected a list, got "host"'),
    ],
)
def test_what_is_to_agree_has_to_be_there(folder: Path, agree: str, problem: str | None) -> None:
    found = problems_of(write(folder, jwt(more=f"  agree: {agree}\n")))
    if problem is None:
        assert found
    else:
        assert found == ([f"gateway.yaml:12: tenancy.{problem}"] if problem else [])
    if not found:
        view = build_view(settings_of(write(folder, jwt(more=f"  agree: {agree}\n"))), Conditions(), 0)
        assert view.agree == (("host", "jwt") if problem == "" and agree != "[]" else ())


def test_a_token_that_a_host_makes_moot_is_warned_of(folder: Path) -> None:
    def warned(text: str) -> list[str]:
        sources = read_sources(write(folder, text), ENVIRON)
        return [line for line in warnings_for(load(sources, ENVIRON), sources) if "token" in line]

    (line,) = warned(jwt())
    assert line.replace(f"{folder}/", "") == (
        "gateway.yaml:11: tenancy.resolvers[0].jwt: a request whose Host names a tenant is served without a look at a "
        "token; `agree: [host, jwt]` holds both against each other"
    )
    assert warned(jwt(more="  agree: [jwt, host]\n")) == []
    assert warned(jwt().replace("{tenant}.", "")) == []
    assert len(warned(alb())) == 1


def test_address_lists_of_routes(folder: Path) -> None:
    text = (
        SMALL + "routes:\n  - {prefix: /admin, cluster: app, allow: [10.0.0.0/8, '2001:db8::/32'], deny: [10.6.6.6]}\n"
    )
    (route,) = build_view(settings_of(write(folder, text)), Conditions(), 0).routes
    assert route.access is not None
    assert [route.access.permits(client) for client in ("10.1.1.1", "10.6.6.6", "192.0.2.1", "2001:db8::1")] == [
        *(True, False, False, True)
    ]
    assert problems_of(write(folder, text.replace("10.0.0.0/8", "10.0.0.1/8"))) == [
        'gateway.yaml:10: routes[0].allow[0]: expected a network such as 10.20.0.0/24, got "10.0.0.1/8"'
    ]
