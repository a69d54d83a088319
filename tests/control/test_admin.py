"""The admin API with tokens, on a real control process: bearers, changes, the audit log, its own description."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from aiohttp import web
from yarl import URL

from gateway.control.admin import ROUTES, add_routes
from gateway.control.admin_access import FAILURES_BURST
from gateway.control.admin_openapi import document
from tests.support.control_process import ControlProcess, control_process

VIEWER, OPERATOR, ROTATED = "viewer-" + "v" * 24, "operator-" + "o" * 24, "rotated-" + "r" * 24
BAD = "bad-" + "b" * 24
CONFIG = """\
region: us-east-1
listen: {http: "127.0.0.1:0", hop: "127.0.0.1:0", admin: "ADMIN:0"}
state_dir: STATE_DIR
workers: 2
hop_keys: ["0123456789abcdef0123456789abcdef"]
regions:
  us-east-1: {public: "http://{tenant}.us.test"}
  eu-west-1: {public: "http://{tenant}.eu.test", gateways: ["127.0.0.1:9"]}
clusters:
  app: {endpoints: ["127.0.0.1:9000"]}
tenancy: {resolvers: [{host: "{tenant}.test"}]}
drain: {grace: 1s, limit: 2s}
admin:
  hosts: [gw.internal]
  tokens:
    - {name: prometheus, role: viewer, token: "${file:viewer.token}"}
    - {name: alice, role: operator, token: "${file:alice.token}"}
"""
TENANTS = "tenants:\n  acme: {home: us-east-1}\n"
REPLACE = "/api/v1/workers/replace"
WORKERS = [{"slot": 0, "pid": 11, "state": "serving"}, {"slot": 1, "pid": 12, "state": "draining"}]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def write_tokens(folder: Path) -> None:
    (folder / "viewer.token").write_text(VIEWER + "\n")
    (folder / "alice.token").write_text(OPERATOR + "\n")


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlProcess]:
    write_tokens(tmp_path)
    async with control_process(tmp_path, CONFIG.replace("ADMIN", "127.0.0.1"), TENANTS) as made:
        yield made
    assert_told_no_token(made)


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[ControlProcess]:
    write_tokens(tmp_path)
    async with control_process(tmp_path, CONFIG.replace("ADMIN", "0.0.0.0"), TENANTS, "0.0.0.0") as made:
        yield made
    assert_told_no_token(made)


def assert_told_no_token(control: ControlProcess) -> None:
    told = control.log() + "".join(map(str, audited(control)))
    assert not any(token in told for token in (VIEWER, OPERATOR, ROTATED, BAD))


def audited(control: ControlProcess) -> list[dict[str, Any]]:
    path = control.state_dir / "audit.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_change_takes_an_operator_and_a_reason_and_is_written_down(control: ControlProcess) -> None:
    control.tell(cmd="processes", supervisor=7, control=8, workers=WORKERS)
    while (await control.get("/api/v1/status"))["pids"]["supervisor"] != 7:
        pass
    denied, fields = await control.post(REPLACE, 401)
    assert fields["WWW-Authenticate"] == 'Bearer realm="landbridge"'
    assert denied["detail"].startswith("an operator's token is needed")
    denied, fields = await control.post(REPLACE, 401, **bearer(BAD))
    assert fields["WWW-Authenticate"] == 'Bearer realm="landbridge", error="invalid_token"'
    denied, _ = await control.post(REPLACE, 403, **bearer(VIEWER))
    assert denied["detail"] == "prometheus is a viewer; this takes an operator"
    for body in (None, b"{}", b"[]", b"no", b'{"reason": 5}', b'{"reason": " "}', b"\xff"):
        await control.post(REPLACE, 400, body, **bearer(OPERATOR))
    for reason in ("x" * 257, "a\tb"):
        await control.post(REPLACE, 400, json.dumps({"reason": reason}).encode(), **bearer(OPERATOR))
    await control.post(REPLACE, 413, b"x" * 70_000, **bearer(OPERATOR))
    assert not [message for message in control.said if "ask" in message]
    asked, _ = await control.post(REPLACE, 202, **bearer(OPERATOR), **{"X-Reason": "new filter"})
    assert asked == {"asked": "replace", "actor": "alice", "reason": "new filter", "workers": WORKERS}
    await control.wait_for({"ask": "replace", "actor": "alice", "reason": "new filter"})
    longest = "\U0001f9f1" * 256
    await control.post(REPLACE, 202, json.dumps({"reason": longest}).encode(), **bearer(OPERATOR))
    await control.wait_for({"ask": "replace", "actor": "alice", "reason": longest})
    lines = audited(control)
    assert [(line["actor"], line["role"], line["outcome"]) for line in lines] == [
        (None, None, "401 Unauthorized"),
        (None, None, "401 Unauthorized"),
        ("prometheus", "viewer", "403 Forbidden"),
        *[("alice", "operator", "400 Bad Request")] * 9,
        ("alice", "operator", "413 Request Entity Too Large"),
        *[("alice", "operator", "202 Accepted")] * 2,
    ]
    assert [line["reason"] for line in lines][-2:] == ["new filter", longest]
    assert {(line["address"], line["method"], line["path"]) for line in lines} == {("127.0.0.1", "POST", REPLACE)}
    assert os.stat(control.state_dir / "audit.log").st_mode & 0o777 == 0o600


async def test_what_cannot_be_written_down_is_not_done(control: ControlProcess) -> None:
    (control.state_dir / "audit.log").mkdir()
    why = {"X-Reason": "x"}
    await control.post(REPLACE, 503, **bearer(OPERATOR), **why)
    assert "the audit log cannot be written" in control.log()
    (control.state_dir / "audit.log").rmdir()
    control.tell(cmd="drain")
    await control.wait_said("draining")
    assert (await control.post(REPLACE, 409, **bearer(OPERATOR), **why))[0]["title"] == "Draining"
    assert not [message for message in control.said if "ask" in message]


async def test_a_rotated_token_holds_from_the_next_reload_on(control: ControlProcess) -> None:
    await control.get("/api/v1/status", 200, **bearer(OPERATOR))
    (control.folder / "alice.token").write_text(ROTATED)
    control.tell(cmd="reload")
    await control.logged(": admin.tokens\n")
    await control.get("/api/v1/status", 401, **bearer(OPERATOR))
    await control.post(REPLACE, 202, **bearer(ROTATED), **{"X-Reason": "rotated"})
    shown = await control.get("/api/v1/config")
    assert shown["config"]["admin"] == {
        "hosts": ["gw.internal"],
        "tokens": [
            {"name": "prometheus", "role": "viewer", "token": "***"},
            {"name": "alice", "role": "operator", "token": "***"},
        ],
    }
    (control.folder / "alice.token").write_text("short")
    control.tell(cmd="reload")
    await control.logged("admin.tokens[1].token: expected a token of at least 24")
    await control.get("/api/v1/status", 200, **bearer(ROTATED))


async def test_off_loopback_everything_but_the_probes_takes_a_token(elsewhere: ControlProcess) -> None:
    await elsewhere.get("/healthz", Host="evil.example")
    await elsewhere.logged("tenants applied")
    await elsewhere.get("/readyz", Host="evil.example")
    for path in [route.path for route in ROUTES if route.read and not route.open] + ["/nowhere"]:
        await elsewhere.get(path, 401)
        await elsewhere.get(path, 421, Host="localhost", **bearer(VIEWER))
    for method in ("POST", "PUT", "OPTIONS"):
        async with elsewhere.client.request(method, "/api/v1/status") as response:
            assert response.status == 401
    await elsewhere.get("/nowhere", 404, **bearer(VIEWER))
    assert "landbridge_" in await elsewhere.get("/metrics", **bearer(VIEWER))
    for host in ("gw.internal", "GW.internal.:81", "127.0.0.1"):
        await elsewhere.get("/api/v1/status", Host=host, **bearer(VIEWER))
    for host in ("evil.example", "10.0.0.1", "localhost:1"):
        await elsewhere.get("/api/v1/status", 421, Host=host, **bearer(VIEWER))
    await elsewhere.post(REPLACE, 403, **bearer(VIEWER))
    await elsewhere.post(REPLACE, 202, **bearer(OPERATOR), **{"X-Reason": "x"})


async def test_off_loopback_a_reload_cannot_take_the_last_token_away(elsewhere: ControlProcess) -> None:
    elsewhere.file.write_text(elsewhere.file.read_text().partition("admin:\n")[0])
    elsewhere.tell(cmd="reload")
    await elsewhere.logged("listen.admin: expected a loopback address, since admin.tokens has none")
    await elsewhere.get("/api/v1/status", 401)
    await elsewhere.get("/api/v1/status", **bearer(VIEWER))


async def test_who_guesses_has_to_wait_and_cannot_fill_the_audit_log(elsewhere: ControlProcess) -> None:
    for number in range(FAILURES_BURST):
        await elsewhere.post(REPLACE, 401, **bearer(f"{BAD}{number}"))
    for _ in range(5):
        refused, fields = await elsewhere.post(REPLACE, 429, **bearer(OPERATOR), **{"X-Reason": "x"})
        assert 1 <= int(fields["Retry-After"]) <= 6
        assert refused["title"] == "Too many bad tokens"
    await elsewhere.get("/api/v1/status", 429, **bearer(VIEWER))
    assert await elsewhere.get("/healthz") == "ok\n"
    assert len(audited(elsewhere)) == FAILURES_BURST
    assert elsewhere.log().count("refused POST from 127.0.0.1: this token is not known") == FAILURES_BURST


# --- openapi.json


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_route_is_described_and_everything_described_is_a_route() -> None:
    app = web.Application()
    add_routes(app.router)
    served = {
        (resource.canonical, route.method.lower())
        for resource in app.router.resources()
        for route in resource
        if route.method != "HEAD"  # GET without its body
    }
    made = document(ROUTES, "1")
    described = {(path, method) for path, methods in made["paths"].items() for method in methods}
    assert served == described == {(route.path, route.method.lower()) for route in ROUTES}
    names = [operation["operationId"] for methods in made["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    schemas = made["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in references(made)} == set(schemas)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for methods in made["paths"].values():
        for operation in methods.values():
            assert operation["summary"].endswith(".")
            assert all(said["description"].endswith(".") for said in operation["responses"].values())
            assert all(parameter["description"] for parameter in operation["parameters"])


async def test_what_is_answered_is_what_is_described(control: ControlProcess) -> None:
    while not (await control.get("/api/v1/map"))["complete"]:
        pass
    described = await control.get("/api/v1/openapi.json")
    assert described == json.loads(msgspec.json.encode(document(ROUTES, described["info"]["version"])))
    queries = {"/api/v1/explain": "/api/v1/explain?host=acme.test", "/api/v1/tenants/{id}": "/api/v1/tenants/acme"}
    for path, methods in described["paths"].items():
        if "get" not in methods:
            continue
        async with control.client.get(queries.get(path, path)) as response:
            [(media, content)] = methods["get"]["responses"]["200"]["content"].items()
            assert (response.status, response.content_type) == (200, media), path
            if media == "application/json":
                schema = {**content["schema"], "components": described["components"]}
                jsonschema.validate(await response.json(), schema, jsonschema.Draft202012Validator)
    asked = {**described["paths"][REPLACE]["post"]["responses"]["202"]["content"]["application/json"]["schema"]}
    answered, _ = await control.post(REPLACE, 202, **bearer(OPERATOR), **{"X-Reason": "x"})
    jsonschema.validate(answered, {**asked, "components": described["components"]})
    refused, _ = await control.post(REPLACE, 401)
    problem = {"$ref": "#/components/schemas/Problem", "components": described["components"]}
    jsonschema.validate(refused, problem)


def test_the_documentation_names_every_endpoint() -> None:
    text = (Path(__file__).parents[2] / "docs" / "admin-api.md").read_text()
    for route in ROUTES:
        assert route.path.replace("{id}", "acme") in text, route.path


ODD = ["x" * 600, "%00", "%ff%fe", "%F0%9F%A7%B1" * 40, "a%2Fb", "..%2f", "%0d%0aX:1", "", "*", "-1", "9" * 400]


async def test_odd_parameters_are_answered_and_fail_nothing(control: ControlProcess) -> None:
    await control.logged("tenants applied")
    for odd in ODD:
        for path in (
            f"/api/v1/tenants/{odd}",
            f"/api/v1/tenants?after={odd}",
            f"/api/v1/tenants?filter={odd}",
            f"/api/v1/tenants?limit={odd}",
            f"/api/v1/explain?host={odd}",
            f"/api/v1/explain?host=acme.test&path={odd}&method={odd}",
            f"/api/v1/explain?host=acme.test&header={odd}:{odd}",
            f"/{odd}",
        ):
            async with control.client.get(URL(path, encoded=True)) as response:
                assert response.status in (200, 400, 404), (path, await response.text())


# --- region-wide switches

SWITCH = "/api/v1/switches/"


async def test_a_switch_is_set_by_an_operator_and_shown_to_everybody(control: ControlProcess) -> None:
    await control.logged("tenants applied")

    async def put(name: str, status: int, **body: object) -> Any:
        return (await control.post(SWITCH + name, status, json.dumps(body).encode(), **bearer(OPERATOR)))[0]

    await control.post(SWITCH + "drain", 401, b'{"value": "on", "reason": "x"}')
    await control.post(SWITCH + "drain", 403, b'{"value": "on", "reason": "x"}', **bearer(VIEWER))
    await put("drain", 400, value="on")
    assert "expected on or nothing" in (await put("drain", 400, value="sideways", reason="x"))["detail"]
    assert "failover-mode, max-traffic, drain" in (await put("turbo", 400, value="on", reason="x"))["detail"]
    assert "no duration" in (await put("drain", 400, value="on", reason="x", **{"for": "soon"}))["detail"]
    await put("drain", 400, value="on", reason="x", forse=True)
    refused = await put("drain", 409, value="on", reason="x")
    assert refused["detail"].startswith("1 tenant has no other region")
    assert "acme" in refused["detail"]
    done = await put("drain", 200, value="on", reason="new kernel", force=True, **{"for": "30m"})
    (row,) = [row for row in done["switches"] if row["switch"] == "drain"]
    assert (row["value"], row["by"], row["why"]) == ("on", "alice", "new kernel")
    assert 1790 < row["ends_in_s"] <= 1800
    assert (done["everywhere"], done["shares"]) == (None, {"app": 0.0})
    assert [row["switch"] for row in (await control.get("/api/v1/status"))["switches"]] == ["drain"]
    await put("max-traffic", 200, value=250, reason="x")
    await put("failover-mode", 200, value="standby", reason="x")
    shown = {row["switch"]: row["value"] for row in (await control.get("/api/v1/switches"))["switches"]}
    assert shown == {"drain": "on", "max-traffic": "250", "failover-mode": "standby"}
    for name, off in (("drain", "off"), ("max-traffic", "none"), ("failover-mode", "off")):
        await put(name, 200, value=off, reason="over")
    assert (await control.get("/api/v1/status"))["switches"] == []
    entries = [json.loads(line) for line in (control.folder / "state" / "audit.log").read_text().splitlines()]
    assert [entry["outcome"] for entry in entries][-3:] == ["200 OK"] * 3
    assert {entry["path"] for entry in entries} >= {SWITCH + "drain", SWITCH + "max-traffic"}
