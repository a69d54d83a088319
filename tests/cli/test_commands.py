"""serve, check, explain, tenants, map: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway import __version__
from gateway.cli.main import app
from gateway.cli.output import cell
from gateway.core.placement import Failover, Placement, State, Version
from gateway.store.changes import Change, SourceState
from gateway.store.writer import Writer

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
region: here
listen: {http: 127.0.0.1:18080, hop: 127.0.0.1:18082}
state_dir: state
regions:
  here: {public: "https://{tenant}.here.example.com", gateways: ["gw.here:8082"]}
  there: {public: "https://{tenant}.there.example.com", gateways: ["gw.there:8082"]}
hop_keys: [0123456789abcdef0123456789abcdef]
clusters: {app: {endpoints: ["127.0.0.1:9000"]}}
tenancy: {resolvers: [{host: "{tenant}.example.com"}]}
tenant_map: {file: tenants.yaml}
"""
TENANTS = "tenants:\n  acme: {home: here}\n  globex: {home: there, hosts: [shop.globex.test]}\n"

MAP = [
    Placement(tenant="acme", home="here", standby=("there",), failover=Failover.ALL, labels={"plan": "gold"}),
    Placement(tenant="globex", home="there", hosts=("shop.globex.test",), version=Version(7, 0, "")),
    Placement(tenant="initech", home="here", state=State.SUSPENDED),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration and a tenants file, where the command is given."""
    for name in [name for name in os.environ if name.startswith("LANDBRIDGE")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.yaml").write_text(CONFIG.replace("state_dir: state", f"state_dir: {tmp_path}/state"))
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    return tmp_path


@pytest.fixture
def store(folder: Path) -> None:
    """A complete map with three tenants in state_dir."""
    (folder / "state" / "map").mkdir(parents=True)
    writer = Writer(folder / "state" / "map")
    writer.replace(MAP, 1_700_000_000_000)
    writer.close()


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments, *(() if "--version" in arguments else ("-c", "gateway.yaml"))])
    assert result.exit_code == code, result.output
    return result


def answer(*arguments: str, code: int = 0) -> Any:
    return json.loads(call(*arguments, "--json", code=code).stdout)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_version() -> None:
    assert call("--version").stdout == f"landbridge {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["serve", "--nothing"], ["explain"], ["demo", "stop-app"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_help_shows_what_stands_where_nothing_is_given() -> None:
    """In square brackets it would be taken for markup, and left out."""
    for command, words in (
        (["explain"], "(the configuration's)"),
        (["demo"], "(8000)"),
        (["tenants", "plan"], ".jsonl"),
    ):
        assert words in CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).stdout


def test_check_valid_and_not(folder: Path) -> None:
    assert "valid: region here of 2 regions" in call("check").stdout
    assert "region there" in call("check", "--region", "there").stdout
    (folder / "gateway.yaml").write_text(CONFIG.replace("18080", "http").replace("region: here", "region: nowhere"))
    lines = call("check", code=2).stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("gateway.yaml:") and "expected" in line and "got" in line for line in lines)


def test_check_schema_is_json() -> None:
    assert json.loads(call("check", "--schema").stdout)["type"] == "object"


@pytest.mark.parametrize(
    "command", [["tenants", "list"], ["map", "status"], ["explain", "--host", "a.test"], ["serve"]]
)
def test_a_bad_configuration_is_2_with_every_problem_on_stderr(folder: Path, command: list[str]) -> None:
    (folder / "gateway.yaml").write_text(CONFIG.replace("18080", "http").replace("region: here", "region: nowhere"))
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *command, "-c", "gateway.yaml"], capture_output=True, text=True, env=environ
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_is_2(folder: Path) -> None:
    (folder / "gateway.yaml").unlink()
    assert "gateway.yaml" in call("tenants", "list", code=2).stderr


@pytest.mark.usefixtures("store")
def test_tenants_list_reads_the_store() -> None:
    printed = rows(call("tenants", "list").stdout)
    assert printed[0] == ["tenant", "home", "standby", "failover", "state", "hosts", "version"]
    assert printed[2:] == [
        ["acme", "here", "there", "all", "active", "-", "-"],
        ["globex", "there", "-", "manual", "active", "shop.globex.test", "7.0."],
        ["initech", "here", "-", "manual", "suspended", "-", "-"],
    ]
    assert [t["tenant"] for t in answer("tenants", "list", "--home", "here")["tenants"]] == ["acme", "initech"]
    assert [t["tenant"] for t in answer("tenants", "list", "--state", "suspended")["tenants"]] == ["initech"]
    assert "expected one of active" in call("tenants", "list", "--state", "gone", code=2).stderr


@pytest.mark.usefixtures("store")
def test_more_tenants_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.tenants.PAGE", 2)
    assert [t["tenant"] for t in answer("tenants", "list")["tenants"]] == ["acme", "globex", "initech"]


@pytest.mark.usefixtures("store")
def test_tenants_get() -> None:
    assert answer("tenants", "get", "ACME") == {
        "tenant": "acme",
        "home": "here",
        "standby": ["there"],
        "failover": "all",
        "hosts": [],
        "public": {},
        "misroute": None,
        "state": "active",
        "cluster": None,
        "labels": {"plan": "gold"},
        "version": None,
        "partition": "serve",
        "limits": None,
        "allow": [],
        "deny": [],
        "claims": {},
        "by": "",
        "why": "",
        "takeover": False,
    }
    assert ["labels", "plan=gold"] in rows(call("tenants", "get", "acme").stdout)
    missing = call("tenants", "get", "nobody", code=1)
    assert missing.stderr == "landbridge: no such tenant: nobody\n"
    assert missing.stdout == ""


def test_tenants_of_a_file_need_no_store(folder: Path) -> None:
    assert [t["tenant"] for t in answer("tenants", "list", "--file", "tenants.yaml")["tenants"]] == ["acme", "globex"]
    assert answer("tenants", "get", "globex", "--file", "tenants.yaml")["home"] == "there"
    assert answer("map", "status", "--file", "tenants.yaml")["records"] == 2
    (folder / "tenants.yaml").write_text(TENANTS.replace("home: there", "home: mars"))
    assert "tenants.yaml:3:" in call("tenants", "list", "--file", "tenants.yaml", code=2).stderr
    assert "nothing.yaml" in call("tenants", "list", "--file", "nothing.yaml", code=2).stderr


def test_a_map_that_is_not_there_yet(folder: Path) -> None:
    assert "is not complete" in call("tenants", "list", code=1).stderr
    assert "is not complete" in call("tenants", "get", "acme", code=1).stderr
    assert answer("map", "status", code=1)["complete"] is False
    assert not (folder / "state").exists(), "reading makes nothing"


@pytest.mark.usefixtures("store")
def test_map_status(folder: Path) -> None:
    status = answer("map", "status")
    assert status["complete"] is True
    assert status["records"] == 3
    assert status["written"] == "2023-11-14T22:13:20.000Z"
    assert ["records", "3"] in rows(call("map", "status").stdout)


def test_explain_assumes_that_names_are_found(folder: Path) -> None:
    text = (folder / "gateway.yaml").read_text()
    (folder / "gateway.yaml").write_text(text.replace("127.0.0.1:9000", "srv://_http._tcp.app.internal"))
    assert call("check").exit_code == 0
    assert answer("explain", "--host", "acme.example.com")["decision"] == "local"


def test_explain_uses_the_tenants_file_before_there_is_a_map() -> None:
    explained = answer("explain", "--host", "acme.example.com")
    assert (explained["decision"], explained["region"]) == ("local", "here")
    assert explained["map"].endswith("tenants.yaml")
    elsewhere = answer("explain", "--host", "acme.example.com", "--from", "there")
    assert (elsewhere["entry"], elsewhere["decision"]) == ("there", "internal_redirect")
    browser = answer("explain", "--host", "globex.example.com", "--path", "/a?b", "--header", "Accept: text/html")
    assert (browser["status"], browser["location"]) == (307, "https://globex.there.example.com/a?b")
    assert answer("explain", "--host", "shop.globex.test", "--method", "POST")["tenant"] == "globex"


@pytest.mark.usefixtures("store")
def test_explain_of_a_refusal_is_an_answer() -> None:
    refused = answer("explain", "--host", "initech.example.com")
    assert (refused["status"], refused["flag"]) == (403, "tenant_suspended")
    assert refused["map"].endswith("/state/map")
    printed = call("explain", "--host", "nobody.example.com").stdout
    assert "tenant_unknown" in printed
    assert "rule tried" in printed


def test_explain_of_a_replicated_map_says_where_and_when_and_never_reads_a_file(folder: Path) -> None:
    redis = "tenant_map: {source: redis, redis: {url: 'redis://127.0.0.1:1', peers: {there: 'redis://127.0.0.1:1'}}}"
    text = (folder / "gateway.yaml").read_text()
    (folder / "gateway.yaml").write_text(text.replace("tenant_map: {file: tenants.yaml}", redis))
    (folder / "state" / "map").mkdir(parents=True)
    result = call("explain", "--host", "acme.example.com", code=1)
    assert "is not complete: has a gateway run there? (or name a --file)" in result.stderr
    writer = Writer(folder / "state" / "map")
    moved = Placement(tenant="acme", home="there", version=Version(8, 1_790_000_000_123, "there"))
    writer.apply([Change("acme", moved)], SourceState("log", 1), 1_790_000_000_456, complete=True)
    writer.close()
    explained = answer("explain", "--host", "acme.example.com")
    assert explained["version"] == "8.1790000000123.there"
    assert (explained["written_in"], explained["written"]) == ("there", "2026-09-21T14:13:20.123Z")
    assert explained["arrived"] == "2026-09-21T14:13:20.456Z"
    printed = call("explain", "--host", "acme.example.com").stdout
    assert ["written", "in", "there", "at", "2026-09-21T14:13:20.123Z"] in rows(printed)
    assert ["arrived", "in", "here", "at", "2026-09-21T14:13:20.456Z"] in rows(printed)
    assert "arrived" not in call("explain", "--host", "acme.example.com", "--file", "tenants.yaml").stdout


def test_output_in_a_pipe_is_never_wrapped(folder: Path) -> None:
    long = ", ".join(f"host-number-{n}.example.test" for n in range(20))
    (folder / "tenants.yaml").write_text(f"tenants:\n  acme: {{home: here, hosts: [{long}]}}\n")
    lines = call("tenants", "list", "--file", "tenants.yaml").stdout.splitlines()
    assert len(lines) == 3
    assert long in lines[2]


def test_an_unforeseen_error_is_a_line_and_no_traceback(folder: Path) -> None:
    code = (
        "import gateway.cli.tenants as t; t.settings_of = lambda *a: 1 / 0; from gateway.cli.main import main; main()"
    )
    environ = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "tenants", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 1
    assert "internal error: ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
    shown = subprocess.run(command, capture_output=True, text=True, env=environ | {"LANDBRIDGE_TRACEBACK": "1"})
    assert "Traceback" in shown.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), ("", "-"), ([], "-"), ({}, "-"), (True, "yes"), (False, "no"), (0, "0"), (["a", "b"], "a, b")],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text
