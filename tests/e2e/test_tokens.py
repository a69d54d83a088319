"""Tokens through whole gateways: a key server that rotates, fails and comes back; a key file; a load balancer; and
canaries (FAULTS 36) in every place where a token can stand.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.identity.rings import ASK_EVERY_S
from gateway.supervisor import python_module
from tests.support.client import Reply, once
from tests.support.fleet import US, Fleet, Gateway, landbridge, request, until
from tests.support.key_server import KeyServer
from tests.support.tokens import ARN, AUDIENCE, ISSUER, Signer, alb_token, key_set, signer

TENANTS = "tenants:\n  acme: {home: us-east-1}\n  globex: {home: us-east-1}\n"
ONE, TWO = signer("one"), signer("two")


class Guarded(Fleet):
    """One region, two workers; `resolvers` are lines of the configuration."""

    def __init__(self, folder: Path, resolvers: str, more: str = "") -> None:
        super().__init__(folder, (US,), TENANTS)
        self.resolvers = resolvers
        self[US].workers = 2
        self[US].more = more

    def configuration(self, gateway: Gateway) -> str:
        text = super().configuration(gateway)
        return text.replace("    - header: X-Org\n", f"{self.resolvers}    - header: X-Org\n  agree: [host, jwt]\n")


def jwt(keys: str, more: str = "") -> str:
    line = f"claim: org, jwks: '{keys}', algorithms: [ES256], issuer: '{ISSUER}', audience: {AUDIENCE}{more}"
    return f"    - jwt: {{{line}}}\n"


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    made = KeyServer()
    async with made.application:
        yield made


async def ask(gateway: Gateway, token: str, host: str = "any.test", *lines: str) -> str:
    """The tenant that was served, or the flag."""
    reply = await once(
        gateway.http, request(host, lines=[f"Authorization: Bearer {token}", "Connection: close", *lines])
    )
    return said(reply)


def said(reply: Reply) -> str:
    body = json.loads(reply.body)
    return str(body["tenant"] if reply.status == 200 else body["flag"])


async def everywhere(gateway: Gateway, token: str) -> set[str]:
    """What it comes to over so many connections that both workers have had some."""
    return set(await asyncio.gather(*(ask(gateway, token) for _ in range(16))))


@pytest.mark.faults
async def test_a_key_server_over_its_life(tmp_path: Path, keys: KeyServer) -> None:
    fleet = Guarded(tmp_path, jwt(f"{keys.url}/jwks"))
    us = fleet[US]
    try:
        await fleet.start()
        good = ONE.token()
        assert await everywhere(us, good) == {"acme"}, "workers had the keys before they accepted"
        for token in (
            ONE.token(exp=1),
            ONE.token(aud="other"),
            ONE.token(iss="https://other.test/"),
            signer("one", "RS256").token(),
            ONE.token(header={"alg": "none"}),
            ONE._replace(key=TWO.key).token(),
            "x" * 40_000,
            "garbage",
            "",
        ):
            assert await ask(us, token, "any.test", "X-Org: globex") == "token_invalid"
        assert await ask(us, good, "globex.demo.test") == "tenant_conflict"
        assert await ask(us, good, "acme.demo.test") == "acme"
        assert (await fleet.ask(US, "globex")).status == 200, "no token: nothing to agree with"
        assert keys.paths == ["/jwks"]

        # an unknown key is 503 until the server was asked, and 401 once it has said that there is none
        began = time.monotonic()
        assert await ask(us, TWO.token()) == "keys_unavailable"

        async def is_settled() -> bool:
            return await everywhere(us, TWO.token()) == {"token_invalid"}

        await until(is_settled, "the key server has no such key")
        intervals = 1 + int((time.monotonic() - began) / ASK_EVERY_S)
        assert 1 < len(keys.paths) <= 1 + intervals, "both workers asked, and it was asked once in an interval"

        # a rotated key counts without a reload; the old one no longer
        keys.signers = [TWO]

        async def is_rotated() -> bool:
            return await everywhere(us, TWO.token()) == {"acme"}

        await until(is_rotated, "the new key is known everywhere")
        assert await everywhere(us, good) == {"token_invalid"}

        # the server dies, then control, then everything: what is known goes on
        await keys.application.stop()
        pids = await us.pids()
        os.kill(pids["control"], signal.SIGKILL)
        assert await everywhere(us, TWO.token()) == {"acme"}

        async def control_is_back() -> bool:
            return int((await us.pids())["control"]) not in (0, pids["control"])

        await until(control_is_back, "another control")
        await us.logged("the last good ones stand")
        assert await us.metric("landbridge_token_keys_failing", source=f"{keys.url}/jwks") == 1
        (shown,) = (await us.api("status"))["token_keys"]
        assert (shown["source"], shown["keys"]) == (f"{keys.url}/jwks", 1)
        assert "Connect call failed" in shown["failing"] or "Cannot connect" in shown["failing"]
        us.signal(signal.SIGTERM)
        assert await us.ended() == 0
        us.start()
        await until(us.ready, "it starts without its key server")
        assert await everywhere(us, TWO.token()) == {"acme"}
        assert await ask(us, ONE.token()) == "keys_unavailable", "whether that key is one cannot be said now"
        assert await ask(us, TWO.token(exp=1)) == "token_invalid"
        await keys.application.start()

        async def heals() -> bool:
            return await us.metric("landbridge_token_keys_failing", source=f"{keys.url}/jwks") == 0

        await until(heals, "the key server is asked again")
    finally:
        await fleet.stop()


async def test_a_file_of_keys_is_followed_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(key_set(ONE))
    fleet = Guarded(tmp_path, jwt("../jwks.json"))
    us = fleet[US]
    try:
        await fleet.start()
        assert await everywhere(us, ONE.token()) == {"acme"}
        assert await everywhere(us, TWO.token()) == {"token_invalid"}, "there is nobody to ask"
        path.write_text('{"keys": []}')
        await us.logged("gateway.yaml:17: tenancy.resolvers[1].jwt.jwks: expected a key set (RFC 7517)")
        assert await everywhere(us, ONE.token()) == {"acme"}
        path.write_text(key_set(TWO))

        async def is_followed() -> bool:
            return await everywhere(us, TWO.token()) == {"acme"}

        await until(is_followed, "the new file counts")
        assert await everywhere(us, ONE.token()) == {"token_invalid"}
        path.unlink()
        await us.logged("got no such file or directory")
        for pid in await us.serving():
            os.kill(pid, signal.SIGKILL)

        async def serves() -> bool:
            return len(await us.serving()) == 2

        await until(serves, "workers are back")
        assert await everywhere(us, TWO.token()) == {"acme"}, "a new worker has the keys that were validated"
        told = landbridge(us, "explain", "--host", "x.test", "--header", f"Authorization: Bearer {ONE.token()}", code=2)
        assert told == {}, "what is on disk is no configuration"
        path.write_text(key_set(TWO))
        told = landbridge(us, "explain", "--host", "x.test", "--header", f"Authorization: Bearer {ONE.token()}")
        assert (told["flag"], told["detail"]) == ("token_invalid", "the token is signed with a key that is not known")
        told = landbridge(us, "explain", "--host", "x.test", "--header", f"Authorization: Bearer {TWO.token()}")
        assert (told["tenant"], told["decision"]) == ("acme", "local")
    finally:
        await fleet.stop()


async def test_a_load_balancers_word(tmp_path: Path, keys: KeyServer) -> None:
    alb = f"    - alb: {{claim: org, alb_arn: '{ARN}', keys: '{keys.url}/pem/{{kid}}'}}\n"
    (tmp_path / "jwks.json").write_text(key_set(ONE))
    fleet = Guarded(tmp_path, jwt("../jwks.json") + alb, "trusted_proxies: [127.0.0.0/8]\n")
    us = fleet[US]

    async def word(token: str) -> str:
        return said(await once(us.http, request("any.test", lines=[f"X-Amzn-Oidc-Data: {token}", "Connection: close"])))

    try:
        await fleet.start()
        good = alb_token(ONE)
        assert await word(good) == "keys_unavailable"

        async def is_known() -> bool:
            return {await word(good) for _ in range(8)} == {"acme"}

        await until(is_known, "its key was looked up")
        assert keys.paths == ["/pem/one"]
        assert await word(alb_token(ONE, ARN.replace("my-alb", "thiefs"))) == "token_invalid"

        async def is_absent() -> bool:
            return await word(alb_token(TWO)) == "token_invalid"

        await until(is_absent, "there is no such key")
        await keys.application.stop()
        assert await word(alb_token(ONE, org="globex")) == "globex"
    finally:
        await fleet.stop()


CANARY = "CANARYCANARY"


def canaries(by: Signer) -> list[str]:
    """Tokens with a canary in every part, good and bad: in clear, and in base64 they are all cut at the same place."""
    marked = by._replace(kid=by.kid)
    return [
        marked.token(jti=CANARY, header={"x": CANARY}),
        marked.token(jti=CANARY, exp=1),
        marked.token(org=CANARY + " "),
        marked.token(org={CANARY: CANARY}),
        marked.token(header={"kid": CANARY}),
        marked.token(header={"alg": CANARY}),
        marked.token(iss=CANARY),
        CANARY,
        f"{CANARY}.{CANARY}.{CANARY}",
        CANARY * 3000,
    ]


@pytest.mark.faults
async def test_no_token_gets_out(tmp_path: Path, keys: KeyServer) -> None:
    """FAULTS 36: logs, metrics, admin answers, commands and files hold no token, whatever became of it."""
    fleet = Guarded(tmp_path, jwt(f"{keys.url}/jwks") + jwt(f"{keys.url}/jwks", ", header: X-Token"))
    us = fleet[US]
    tokens = canaries(ONE)
    try:
        await fleet.start()
        answers: list[bytes] = []
        for token in tokens:
            for line in (f"Authorization: Bearer {token}", f"X-Token: {token}", f"X-Amzn-Oidc-Data: {token}"):
                reply = await once(us.http, request("any.test", lines=[line, "Connection: close"]))
                answers += [reply.start, *reply.lines, reply.body]
        assert b"HTTP/1.1 200 OK" in answers
        await us.application.stop()  # and on the ways on which a request fails late
        reply = await once(
            us.http, request("any.test", lines=[f"Authorization: Bearer {tokens[0]}", "Connection: close"])
        )
        assert reply.status in (502, 503)
        for what in ("status", "config", "regions", "clusters", "tenants", "map"):
            answers.append(json.dumps(await us.api(what)).encode())
        explained = await once(
            us.admin, request("localhost", f"/api/v1/explain?host=x&header=Authorization:Bearer%20{tokens[1]}")
        )
        assert json.loads(explained.body)["detail"] == "the token has expired"
        answers.append(explained.body)
        answers.append((await once(us.admin, request("localhost", "/metrics"))).body)
        command = [*python_module("gateway"), "explain", "-c", "gateway.yaml", "--host", "x"]
        for token in tokens[:6]:
            done = await asyncio.to_thread(
                subprocess.run,
                [*command, "--header", f"Authorization: Bearer {token}"],
                cwd=us.folder,
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            answers += [done.stdout, done.stderr]
        us.signal(signal.SIGTERM)
        assert await us.ended() == 0
        kept = [path.read_bytes() for path in us.folder.rglob("*") if path.is_file()]
        assert any(b'"flag":"token_invalid"' in text for text in kept), "the access log was looked at"
        needles = {part for token in tokens for part in token.encode().split(b".") if len(part) > 20}
        needles = {needle[-20:] for needle in needles} | {CANARY.encode()}
        for text in (*answers, *kept):
            assert not [needle for needle in needles if needle in text], text[:300]
    finally:
        await fleet.stop()
