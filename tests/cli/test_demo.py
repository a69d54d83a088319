"""The demo's files and refusals; the running demo is in tests/e2e/test_demo.py."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cli import demo
from gateway.cli.demo_console import decision
from gateway.cli.demo_files import PAIRS, REGIONS, Layout, gateway_yaml, layout
from gateway.cli.demo_maps import IN_STEP, behind
from gateway.cli.demo_tell import tell
from gateway.cli.demo_text import program, to_try
from gateway.control.replication.region_map import PeerState
from gateway.settings.loader import load, read_sources, warnings_for
from gateway.settings.schema import MapSource, RedisSettings
from gateway.settings.tenants import load_tenants


@pytest.fixture(params=[True, False], ids=["replicated", "a file"])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Layout:
    return Layout(8000, tmp_path / 'a demo\'s "place"', request.param)


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    return Layout(8000, tmp_path / 'a demo\'s "place"')


def test_the_ports_are_the_documented_ones(place: Layout) -> None:
    expected = [*range(8101, 8104), *range(8111, 8114), *range(8201, 8204), *range(8301, 8304)]
    assert sorted(replace(place, replicated=False).ports) == expected
    assert sorted(place.ports) == [*expected, *range(8401, 8404), *range(8411, 8417)]
    assert place.ports[8102] == "eu-west-1 gateway"
    assert place.ports[8403] == "ap-southeast-2 valkey"
    assert place.ports[place.link("eu-west-1", "us-east-1")] == "eu-west-1 link to us-east-1"
    assert min(Layout(9000, place.directory).ports) == 9101


def test_its_files_are_found_without_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert layout(None, None) == Layout(8000, tmp_path / ".demo" / "8000")
    assert layout(9000, None) == Layout(9000, tmp_path / ".demo" / "9000")
    assert layout(9000, Path("here")) == Layout(9000, tmp_path / "here")


def test_what_it_writes_is_valid_in_every_region(either: Layout) -> None:
    place = either
    demo.write_files(place)
    for region in REGIONS:
        sources = read_sources(place.config(region), {})
        settings = load(sources, {})
        assert settings.region == region
        assert settings.workers == 1
        if place.replicated:
            assert settings.tenant_map.redis == RedisSettings(
                url=f"redis://127.0.0.1:{place.port('valkey', region)}/0",
                peers={
                    peer: f"redis://127.0.0.1:{place.link(region, peer)}/0"
                    for follower, peer in PAIRS
                    if follower == region
                },
            )
        else:
            assert settings.tenant_map.file == str(place.tenants)
            assert settings.tenant_map.source is MapSource.YAML
        assert settings.drain.limit == 5.0
        assert settings.clusters["app"].health is not None
        assert warnings_for(settings, sources) == []
        placements = {p.tenant: p for p in load_tenants(str(place.tenants), place.tenants.read_bytes(), settings)}
        assert {p.tenant: p.home for p in placements.values()} == {
            "acme": "us-east-1",
            "globex": "eu-west-1",
            "initech": "ap-southeast-2",
            "umbrella": "us-east-1",
        }
        assert (placements["umbrella"].standby, placements["umbrella"].failover) == (("eu-west-1",), "all")
    assert place.hop_key.stat().st_mode & 0o777 == 0o600
    assert place.directory.stat().st_mode & 0o777 == 0o700


def test_each_start_has_a_new_key_and_no_old_state(place: Layout) -> None:
    demo.write_files(place)
    key = place.hop_key.read_text()
    for folder in (place.state("us-east-1"), place.valkey("us-east-1")):
        folder.mkdir()
    place.tenants.write_text("edited")
    demo.write_files(place)
    assert place.hop_key.read_text() != key
    assert not place.state("us-east-1").exists()
    assert not place.valkey("us-east-1").exists()
    assert "acme" in place.tenants.read_text()


def test_no_other_directory_is_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "tenants.yaml"
    mine.write_text("mine")
    with pytest.raises(demo.Refused, match="is not empty and no demo's"):
        demo.write_files(Layout(8000, tmp_path))
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]


def test_the_printed_edit_moves_acme_and_nobody_else(either: Layout) -> None:
    place = either
    demo.write_files(place)
    command = next(line.strip() for line in to_try(place, False).splitlines() if line.strip().startswith("sed "))
    before = place.tenants.read_text()
    subprocess.run(command, shell=True, check=True)
    assert place.tenants.read_text() == before.replace("acme:\n    home: us-east-1", "acme:\n    home: eu-west-1")


def test_commands_carry_the_options_that_they_need(place: Layout) -> None:
    plain, moved = to_try(place, False), to_try(Layout(9000, place.directory), True)
    assert "demo stop-app us-east-1\n" in plain
    assert f"demo stop-app us-east-1 --base-port 9000 --dir {shlex.quote(str(place.directory))}\n" in moved
    assert f"demo heal --base-port 9000 --dir {shlex.quote(str(place.directory))}\n" in moved
    assert "http://127.0.0.1:9102/x" in moved


def test_what_cannot_be_tried_is_not_offered(place: Layout) -> None:
    text = to_try(replace(place, replicated=False), False)
    assert not [word for word in ("tenants apply", "demo cut", "valkey") if word in text]
    assert "demo stop-app" in text


def test_program_is_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [".venv/bin/landbridge", "demo"])
    assert program() == ".venv/bin/landbridge"
    monkeypatch.setattr("sys.argv", ["/elsewhere/gateway/__main__.py", "demo"])
    assert program().endswith(" -m gateway")


def test_ports_in_use_are_named_before_anything_starts(
    place: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        taken = {one.getsockname()[1]: "us-east-1 gateway", two.getsockname()[1]: "eu-west-1 hop"}
        monkeypatch.setattr(Layout, "ports", taken)
        assert demo.demo(place) == 2
    said = capsys.readouterr().err
    for port, owner in taken.items():
        assert f"127.0.0.1:{port} for the {owner}: Address already in use" in said
    assert not place.directory.exists()


def test_stop_app_without_a_demo_says_so(place: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(place, "stop-app", "us-east-1") == 1
    assert "no demo is running in" in capsys.readouterr().err
    assert tell(place, "stop-app", "mars") == 2
    assert "no such region: mars" in capsys.readouterr().err


def test_a_decision_in_short() -> None:
    entry = {
        "from": "client",
        "method": "GET",
        "path": "/x",
        "tenant": "acme",
        "decision": "internal_redirect",
        "reason": "misroute",
        "status": 200,
        "flag": None,
        "seconds": 0.0042,
    }
    assert decision(json.dumps(entry).encode()).split() == (
        "client GET /x acme internal_redirect (misroute) 200 4.2 ms".split()
    )
    refused = entry | {"decision": "reject", "reason": "", "status": 404, "flag": "tenant_unknown", "tenant": None}
    assert decision(json.dumps(refused).encode()).split() == (
        "client GET /x - reject 404 tenant_unknown 4.2 ms".split()
    )
    assert decision(json.dumps(entry | {"path": "/.landbridge/peer"}).encode()) == ""
    assert decision(b"no json") == "no json"
    assert decision(b'{"other": 1}') == '{"other": 1}'


def test_paths_with_quotes_survive_yaml(place: Layout) -> None:
    assert json.dumps(str(place.state("us-east-1"))) in gateway_yaml(place, "us-east-1")


def test_lag_in_one_line() -> None:
    well, late = PeerState(state="following"), PeerState(state="unreachable", lag_s=12.34, lag_records=3)
    assert behind({}) == behind({"us-east-1": well}) == IN_STEP
    assert behind(
        {"us-east-1": late, "eu-west-1": well, "ap-southeast-2": PeerState(state="following", lag_s=1.5)}
    ) == ("is behind ap-southeast-2 1.5 s, us-east-1 12.3 s and 3 records (unreachable)")
