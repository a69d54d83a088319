"""What must not get out, and who must not get in: canaries through a running fleet, and the admin API's two doors.

FAULTS 34: an admin path on the public port is a request like any other. FAULTS 36: a canary in every place where a
secret can stand, then a look at everything that the gateways say or keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.control.admin import ROUTES
from tests.support.client import Reply, once
from tests.support.fleet import EU, KEY, US, Fleet, Gateway, flag_of, request, until

REPLACE = "/api/v1/workers/replace"
FILTER = """\
class Boom:
    name = "boom"
    kind = "inbound"

    def __init__(self, options):
        self.password = options["password"]

    def __call__(self, exchange):
        if exchange.request.values(b"x-org") == [b"boom"]:
            cookie, secret = exchange.request.values(b"cookie"), self.password
            raise RuntimeError("a bug while secrets are at hand")
"""


def canary(place: str) -> str:
    """One secret, told from all others by the place that it was put; long enough for every place."""
    return f"CANARY-{place}-{'0123456789abcdef' * 2}"


SENT = ("authorization", "cookie", "query", "apikey", "idempotency")
"""Where clients have theirs."""
PLACES = (*SENT, "hop", "oldhop", "viewer", "operator", "bad", "option", "short")


class Secretive(Fleet):
    """Two regions whose secrets are canaries, out of files, with an operator's filter that has a bug."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (US, EU), "tenants:\n  acme: {home: us-east-1}\n  globex: {home: eu-west-1}\n")
        for place in ("hop", "oldhop", "viewer", "operator"):
            (folder / place).write_text(canary(place) + "\n")
        (folder / "boom.py").write_text(FILTER)

    def configuration(self, gateway: Gateway) -> str:
        text = super().configuration(gateway)
        assert f"[{KEY}]" in text
        return text.replace(f"[{KEY}]", '["${file:../hop}", "${file:../oldhop}"]') + (
            'admin:\n  tokens:\n    - {name: prometheus, role: viewer, token: "${file:../viewer}"}\n'
            '    - {name: alice, role: operator, token: "${file:../operator}"}\n'
            "filters:\n  paths: [../boom.py]\n  options: {boom: {password: '${file:../option}'}}\n"
            "throttle: {client: {rate: 1/m, burst: 100, by: header:X-Api-Key}, tenant: {rate: 1000/s}}\n"
        )


@pytest.fixture
async def regions(tmp_path: Path) -> AsyncIterator[Secretive]:
    (tmp_path / "option").write_text(canary("option"))
    made = Secretive(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        ends = await asyncio.gather(*(g.stop() for g in made.gateways.values()), return_exceptions=True)
        for gateway in made.gateways.values():
            await gateway.application.stop()
    assert not any(isinstance(end, BaseException) for end in ends), ends


def bearer(place: str) -> str:
    return f"Authorization: Bearer {canary(place)}"


async def admin(gateway: Gateway, path: str, *lines: str, method: str = "GET") -> Reply:
    return await once(gateway.admin, request("localhost", path, method, lines=["Connection: close", *lines]))


async def test_each_door_opens_to_its_own(regions: Secretive) -> None:
    """FAULTS 34: the public port knows no admin API, and the admin port knows who may do what."""
    us = regions[US]
    for method, path in [*((route.method, route.path) for route in ROUTES), ("GET", "/metrics?x=1")]:
        us.application.requests.clear()
        reply = await once(us.http, request("acme.demo.test", path, method, lines=[bearer("operator")]))
        (seen,) = [seen for seen in us.application.requests if seen.values("authorization")]
        assert (reply.status, reply.value("x-region")) == (200, US)
        assert seen.start == f"{method} {path} HTTP/1.1".encode()
        assert seen.value("authorization") == f"Bearer {canary('operator')}"
        hop = await once(us.hop, request("acme.demo.test", path, method, lines=[bearer("operator")]))
        assert (hop.status, flag_of(hop)) == (403, "hop_rejected")
    unknown = await once(us.http, request("nobody.demo.test", "/api/v1/status"))
    assert (unknown.status, flag_of(unknown)) == (404, "tenant_unknown")
    bad = await admin(us, "/api/v1/status", bearer("bad"))
    assert (bad.status, bad.value("www-authenticate")) == (401, 'Bearer realm="landbridge", error="invalid_token"')
    assert (await admin(us, REPLACE, method="POST")).status == 401
    assert (await admin(us, REPLACE, bearer("viewer"), "X-Reason: x", method="POST")).status == 403
    before = await us.serving()
    done = await admin(us, REPLACE, bearer("operator"), "X-Reason: a test", method="POST")
    assert (done.status, json.loads(done.body)["actor"]) == (202, "alice")
    assert [worker["pid"] for worker in json.loads(done.body)["workers"]] == before

    async def replaced() -> bool:
        now = await us.serving()
        return len(now) == 1 and now != before

    await until(replaced, "another worker serves")
    await us.logged("asked for by alice: a test")
    outcomes = [json.loads(line)["outcome"] for line in (us.folder / "state" / "audit.log").read_text().splitlines()]
    assert outcomes == ["401 Unauthorized", "403 Forbidden", "202 Accepted"]


async def test_no_canary_gets_out(regions: Secretive) -> None:
    """FAULTS 36."""
    us, eu = regions[US], regions[EU]
    secret = [
        f"Authorization: Basic {canary('authorization')}",
        f"Cookie: a=b; session={canary('cookie')}",
        f"Idempotency-Key: {canary('idempotency')}",
        f"X-Api-Key: {canary('apikey')}",
    ]
    path = f"/x?token={canary('query')}"
    answers = [
        await regions.ask(US, "acme", path, "POST", secret, b"hello"),  # served here
        await regions.ask(EU, "acme", path, "POST", secret, b"hello"),  # carried
        await regions.ask(US, "nobody", path, lines=secret),  # unknown
        await regions.ask(US, "acme", path, lines=[*secret, f"X: {'y' * 70_000}"]),  # too large
        await regions.ask(US, "acme", path, lines=[*secret, "Bad Name: x"]),  # malformed
        await regions.ask(US, "acme", f"/x?{canary('query')}\x01", lines=secret),  # malformed
        await regions.ask(US, "acme", path, lines=[*secret, "X-Org: globex"]),
        await once(us.hop, request("acme.demo.test", path, lines=[*secret, f"Gateway-Hop: v=1; sig={canary('bad')}"])),
    ]
    boom = await once(us.http, request("nothing.example", path, lines=[*secret, "X-Org: boom"]))
    assert [*(reply.status for reply in answers[:3]), boom.status] == [200, 200, 404, 500]
    await us.logged("a bug while secrets are at hand")
    await us.application.stop()  # while it dies, requests are sent again, breakers open, endpoints go
    answers.append(await regions.ask(US, "acme", path, lines=secret))
    answers.append(await regions.ask(EU, "acme", path, lines=secret))
    assert {reply.status for reply in answers[-2:]} <= {502, 503}
    seen = [line for gateway in (us, eu) for seen in gateway.asked() for line in [seen.start, *seen.lines]]
    for place in SENT:
        assert any(canary(place).encode() in line for line in seen), "they were on their way"
    while (answer := await regions.ask(US, "acme", path, "POST", secret)).status != 429:
        answers.append(answer)  # until this client has had enough, and its bucket is hot
    answers.append(answer)
    for place in ("bad", "viewer", "operator"):
        reads = ("/api/v1/status", "/nowhere", f"/metrics?token={canary('query')}")
        answers += [await admin(us, what, bearer(place), secret[1]) for what in reads]
        answers.append(await admin(us, REPLACE, bearer(place), secret[1], method="POST"))
    (us.folder / "state" / "stats" / "worker-7.stats").mkdir()  # makes some scrapes fail, in the middle of it
    answers.append(await admin(us, "/metrics", bearer("viewer"), *secret))
    (us.folder / "state" / "stats" / "worker-7.stats").rmdir()
    for bad in (f"hop_keys: ['{canary('short')[:30]}']", f"admin: {{tokens: [{canary('short')}]}}"):
        good = us.config.read_text()
        key = bad.partition(":")[0]
        us.config.write_text(good.replace(f"\n{key}:", f"\nx_{key}:") + bad + "\n")
        await us.logged(f" {key}")
        us.config.write_text(good)

    places = dict(said(regions, answers))
    for path_, text in [(route.path, await every(us, route.path)) for route in ROUTES if route.read]:
        places[f"GET {path_}"] = text
    for gateway in (us, eu):
        await gateway.stop()
        places |= dict(files(gateway.folder))
    assert len(places) > 40
    assert b"RuntimeError" in places[f"{US}/log"], "there was a traceback to look at"
    assert b"prometheus" in places[f"{US}/state/audit.log"]
    hits = [(where, place) for where, text in places.items() for place in PLACES if canary(place)[:30].encode() in text]
    assert hits == []


async def every(gateway: Gateway, path: str) -> bytes:
    query = {"/api/v1/explain": "?host=acme.demo.test&header=" + bearer("authorization").replace(" ", "%20")}
    reply = await admin(gateway, path.replace("{id}", "acme") + query.get(path, ""))
    assert reply.status == 200, (path, reply.body)
    return b"\n".join([*reply.lines, reply.body])


def said(regions: Secretive, answers: list[Reply]) -> Iterator[tuple[str, bytes]]:
    """What clients were answered, and what any user of this machine can see of the processes."""
    for number, reply in enumerate(answers):
        yield f"answer {number}", b"\n".join([*reply.lines, reply.body])
    for gateway in regions.gateways.values():
        for pid in {gateway.pid, *gateway.started}:
            with contextlib.suppress(OSError):
                yield f"{pid} cmdline", Path(f"/proc/{pid}/cmdline").read_bytes()


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that a gateway wrote: logs, state."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder.parent)), path.read_bytes()


def test_the_canaries_are_told_apart() -> None:
    heads = {canary(place)[:30] for place in PLACES}
    assert len(heads) == len(PLACES)
