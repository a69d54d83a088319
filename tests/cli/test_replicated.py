"""The commands that change the replicated map, against two regions' real Valkey servers."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import apply
from gateway.cli.main import app
from gateway.control.replication.region_map import MapUnavailable
from gateway.control.sources import confirm
from gateway.control.sources.confirm import Pending
from gateway.core.placement import Failover, Placement, State
from gateway.store.writer import Writer
from tests.support.operator_world import HERE, THERE, World
from tests.support.valkey import Valkey

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"--config", "--region", "--json", "--help", "--file", "--output"}
"""Options that every command has, or that show by their short names."""

TENANTS = """\
tenants:
  acme: {home: here, standby: [there], hosts: [shop.acme.test], labels: {plan: gold}}
  globex: {home: there}
  initech: {home: here, state: suspended, epoch: 4}
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Valkey]]:
    folder = tmp_path_factory.mktemp("valkey")
    with Valkey(folder / HERE, durable=False) as here, Valkey(folder / THERE, durable=False) as there:
        yield {HERE: here, THERE: there}


@pytest.fixture
def world(tmp_path: Path, servers: dict[str, Valkey], monkeypatch: pytest.MonkeyPatch) -> World:
    """Two empty maps, with a live gateway in each region and no lag."""
    for name in [name for name in os.environ if name.startswith("LANDBRIDGE")]:
        monkeypatch.delenv(name)
    for server in servers.values():
        server.cli("FLUSHALL")
    made = World(tmp_path, servers)
    made.alive(HERE, THERE)
    made.hears()
    return made


@pytest.fixture
def filled(world: World) -> World:
    world.call("tenants", "import", "-f", world.file(TENANTS))
    world.replicate()
    return world


def version(placement: Placement | None) -> tuple[int, str]:
    assert placement is not None
    return placement.version.epoch, placement.version.region


# --- plan


def test_a_plan_says_what_and_where(filled: World) -> None:
    wanted = filled.file("""\
tenants:
  acme: {home: there, standby: [here], hosts: [shop.acme.test], labels: {plan: gold}}
  globex: {home: there, failover: all}
  hooli: {home: there}
""")
    plan = filled.answer("tenants", "plan", "-f", wanted)
    assert [(c["tenant"], c["kind"], c["written_in"], c["epoch"]) for c in plan["changes"]] == [
        ("acme", "moved", HERE, 2),
        ("globex", "changed", HERE, 1),
        ("hooli", "created", THERE, 1),
    ]
    assert plan["changes"][0]["differences"] == [
        {"key": "home", "old": "here", "new": "there"},
        {"key": "standby", "old": ["there"], "new": ["here"]},
    ]
    assert (plan["created"], plan["unchanged"], plan["left_alone"], plan["broken_rules"]) == (1, 0, 1, [])
    printed = filled.call("tenants", "plan", "-f", wanted).stdout.splitlines()
    assert printed[:3] == ["  > acme", "      home: here -> there", "      standby: there -> here"]
    assert printed[-1] == "Plan: 1 to create, 1 to change, 1 to move, 0 to delete; 0 unchanged, 1 left alone"
    assert filled.call("tenants", "plan", "-f", wanted, "--detailed-exitcode", code=4).exit_code == 4
    assert filled.call("tenants", "plan", "-f", filled.file(TENANTS, "same.yaml"), "--detailed-exitcode").exit_code == 0
    pruned = filled.answer("tenants", "plan", "-f", wanted, "--prune")
    assert [c["tenant"] for c in pruned["changes"] if c["kind"] == "deleted"] == ["initech"]
    assert filled.records() == filled.records(THERE), "a plan writes nothing"
    assert filled.audited()[1:] == []


def test_a_plan_says_what_makes_it_uncertain_and_what_apply_would_refuse(filled: World) -> None:
    filled.hears(12.0, lag_records=3)
    told = filled.call("tenants", "plan", "-f", filled.file("tenants: {acme: {home: there}}")).stderr
    assert "here is behind there (3 records, 12.0 s): what changed there may be missing" in told
    assert "apply would refuse: map lag: here is 12.0 s behind there" in told


# --- apply


def test_apply_writes_each_change_where_it_belongs(filled: World) -> None:
    wanted = filled.file("""\
tenants:
  acme: {home: here, standby: [there], hosts: [www.acme.test, shop.acme.test], labels: {plan: silver}}
  globex: {home: here, failover: all}
  hooli: {home: there}
""")
    before = filled.record("acme")
    printed = filled.call("tenants", "apply", "-f", wanted, "--yes", "--actor", "alice", "--reason", "sale").stdout
    assert printed.splitlines()[-1] == "Written: 1 created, 1 changed, 1 moved, 0 deleted"
    acme, globex, hooli = filled.record("acme"), filled.record("globex", THERE), filled.record("hooli", THERE)
    assert (version(acme), version(globex), version(hooli)) == ((1, HERE), (2, THERE), (1, THERE))
    assert acme is not None
    assert before is not None
    assert (acme.by, acme.why, acme.claims) == ("alice", "sale", {"shop.acme.test": before.version.hlc})
    assert globex is not None
    assert (globex.home, globex.failover) == (HERE, Failover.ALL)
    assert filled.record("hooli", HERE) is None, "it gets here by replication"
    assert [(line["actor"], line["reason"]) for line in filled.audited()[1:]] == [("alice", "sale")]
    assert filled.audited()[-1]["outcome"] == "written: 1 created, 1 changed, 1 moved (acme, globex, hooli)"
    filled.replicate()
    again = filled.answer("tenants", "apply", "-f", wanted, "--yes")
    assert (again["plan"]["unchanged"], sum(again["written"].values())) == (3, 0)


@pytest.mark.parametrize(("name", "text", "lines"), [
    ("t.yaml", "tenants:\n  acme: {home: hre}\n  globex: {home: there, x: 1}\n", [2, 3]),
    ("t.jsonl", '{"tenant": "acme", "home": "hre"}\n{"tenant": "globex", "home": "there", "x": 1}\n', [1, 2]),
])  # fmt: skip
def test_a_file_that_is_wrong_is_2_and_changes_nothing(filled: World, name: str, text: str, lines: list[int]) -> None:
    before = filled.records()
    file = filled.file(text, name)
    for command in (["apply", "--yes"], ["plan"], ["import"]):
        told = filled.call("tenants", command[0], "-f", file, *command[1:], code=2).stderr.splitlines()
        assert [line.partition(": ")[0] for line in told] == [f"{file}:{line}" for line in lines]
        assert "tenants.acme.home: expected one of regions (did you mean here?), got" in told[0]
    assert filled.records() == before


def test_standard_input(filled: World) -> None:
    line = json.dumps({"tenant": "piped", "home": "here"})
    filled.call("tenants", "apply", "-f", "-", "--format", "jsonl", "--yes", given=line)
    assert version(filled.record("piped")) == (1, HERE)
    assert "<stdin>:" in filled.call("tenants", "plan", "-f", "-", code=2, given="tenants: [").stderr


def test_nobody_to_ask_is_2(filled: World) -> None:
    for command in (["apply", "-f", filled.file("tenants: {}")], ["delete", "acme", "--reason", "x"]):
        assert "--yes" in filled.call("tenants", *command, code=2).stderr


def test_what_is_asked_on_a_terminal(filled: World) -> None:
    """No is no, and yes is yes."""
    command = [sys.executable, "-m", "gateway", "tenants", "apply", "-c", str(filled.config())]
    command += ["-f", filled.file("tenants: {acme: {home: here}}")]
    for said, code in (("n\n", 1), ("y\n", 0)):
        before = filled.record("acme")
        outer, inner = pty.openpty()
        os.write(outer, said.encode())
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdin=inner, capture_output=True, text=True, env=environ)
        os.close(inner)
        os.close(outer)
        assert done.returncode == code, done.stderr
        assert "Make these changes?" in done.stderr
        assert (filled.record("acme") == before) == (code == 1)


@pytest.mark.parametrize(
    "command",
    [
        ["tenants", "apply", "-f", "t.yaml", "--yes", "--force"],
        ["tenants", "apply", "-f", "t.yaml", "--yes", "--takeover"],
        ["tenants", "delete", "acme", "--yes"],
        ["tenants", "rollback", "acme", "--yes"],
        ["tenants", "apply", "-f", "t.yaml", "--yes", "--reason", "x" * 300],
        ["tenants", "apply", "-f", "t.yaml", "--yes", "--actor", ""],
        ["tenants", "apply", "-f", "t.yaml", "--yes", "--moves-max", "many"],
        ["tenants", "apply", "-f", "nowhere.yaml", "--yes"],
        ["tenants", "delete", "no tenant", "--yes", "--reason", "x"],
        ["tenants", "rollback", "acme", "--to", "1", "--yes", "--reason", "x"],
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(filled: World, command: list[str]) -> None:
    filled.file("tenants: {acme: {home: there}}")
    before = filled.records()
    command = [str(filled.folder / word) if word == "t.yaml" else word for word in command]
    assert filled.call(*command, code=2).stderr.startswith(("landbridge: ", "nowhere"))
    assert filled.records() == before


# --- safety


def test_a_broken_rule_is_3_and_names_itself(filled: World) -> None:
    filled.hears(60.0)
    filled.alive(THERE, age_ms=60_000)
    before = filled.records()
    file = filled.file("tenants: {acme: {home: there}}")
    told = filled.call("tenants", "apply", "-f", file, "--yes", code=3).stderr
    refused = [line.split(": ")[2] for line in told.splitlines() if "refused" in line]
    assert refused == ["target alive", "last region", "map lag"]
    assert filled.records() == before
    done = filled.call("tenants", "apply", "-f", file, "--yes", "--force", "--reason", "I know")
    assert done.stderr.count("forced: ") == 3
    assert filled.audited()[-1]["outcome"].count("forced: ") == 3
    assert version(filled.record("acme")) == (2, HERE)


def test_at_most_so_many_move_at_once(world: World) -> None:
    def homes(region: str) -> str:
        lines = (json.dumps({"tenant": f"t{n}", "home": region}) for n in range(30))
        return world.file("\n".join(lines), "t.jsonl")

    world.call("tenants", "import", "-f", homes(HERE))
    told = world.call("tenants", "apply", "-f", homes(THERE), "--yes", code=3).stderr
    assert "moves at once: 30 of 30 tenants would move (30 to there), at most 10 may" in told
    world.call("tenants", "apply", "-f", homes(THERE), "--yes", "--moves-max", "29", code=3)
    world.call("tenants", "apply", "-f", homes(THERE), "--yes", "--moves-max", "100%")
    assert {placement.home for placement in world.records().values()} == {THERE}


def test_deleting_all_is_refused(filled: World) -> None:
    told = filled.call("tenants", "delete", "acme", "globex", "initech", "--yes", "--reason", "x", code=3).stderr
    assert "loss guard: all 3 tenants would be deleted" in told
    assert {placement.state for placement in filled.records().values()} == {State.ACTIVE, State.SUSPENDED}


def test_a_file_that_is_older_than_the_map(filled: World) -> None:
    exported = filled.folder / "out.yaml"
    filled.call("tenants", "export", "-o", str(exported))
    filled.call("tenants", "apply", "-f", filled.file("tenants: {acme: {home: there}}"), "--yes")
    told = filled.call("tenants", "apply", "-f", str(exported), "--yes", code=3).stderr
    assert "epoch: acme changed home, standby or state since the file was written" in told


def test_a_map_that_is_not_whole_is_not_changed(world: World) -> None:
    """Tenants that are not there only because they were lost would begin anew, with old epochs."""
    file = world.file("tenants: {acme: {home: here}}")
    assert (
        "whole map: that of here is not complete" in world.call("tenants", "apply", "-f", file, "--yes", code=3).stderr
    )
    world.on(HERE, lambda map_: map_.mark_complete())
    confirm.tell(world.state(), Pending("abc", "redis", 60, 60, 0, (), 1_700_000_000_000))
    told = world.call("tenants", "apply", "-f", file, "--yes", code=3).stderr
    assert "has lost records (60 of 60, since 2023-11-14T22:13:20.000Z): `map confirm` first" in told
    confirm.forget(world.state())
    world.call("tenants", "apply", "-f", file, "--yes")


def test_a_host_of_another_tenant(filled: World) -> None:
    """It has the first claim, so a second tenant would have a host that leads nobody to it; unless both change."""
    (filled.state() / "map").mkdir(parents=True)
    writer = Writer(filled.state() / "map")
    writer.replace(list(filled.records().values()), 1)
    writer.close()
    file = filled.file("tenants: {globex: {home: there, hosts: [Shop.Acme.test]}}")
    told = filled.call("tenants", "apply", "-f", file, "--yes", code=3).stderr
    assert "refused: hosts: shop.acme.test of globex is acme's" in told
    both = "tenants: {globex: {home: there, hosts: [shop.acme.test]}, acme: {home: here, standby: [there]}}"
    filled.call("tenants", "apply", "-f", filled.file(both), "--yes")
    globex = filled.record("globex")
    assert globex is not None
    assert globex.hosts == ("shop.acme.test",)


# --- Redis that does not answer


def test_our_own_redis_down_is_1_and_one_line(filled: World) -> None:
    server = filled.servers[HERE]
    server.kill()
    try:
        for command in (
            ["tenants", "plan", "-f", filled.file(TENANTS)],
            ["tenants", "apply", "-f", filled.file(TENANTS), "--yes"],
            ["tenants", "import", "-f", filled.file(TENANTS)],
            ["tenants", "export"],
            ["tenants", "history", "acme"],
            ["map", "digest"],
            ["map", "dead", "list"],
        ):
            told = filled.call(*command, code=1).stderr.splitlines()
            assert len(told) == 1
            assert told[0].startswith(f"landbridge: the Redis of here (redis://127.0.0.1:{server.port}/0): ")
    finally:
        server.start()


def test_a_takeover_from_a_region_that_is_down(filled: World) -> None:
    filled.hears(30.0, state="unreachable")
    server = filled.servers[THERE]
    server.kill()
    try:
        file = filled.file("tenants: {globex: {home: here}, initech: {home: here, state: suspended, labels: {a: b}}}")
        told = filled.call("tenants", "apply", "-f", file, "--yes", code=1).stderr
        assert "there has to write 1 of the changes, and its Redis cannot be used" in told
        assert version(filled.record("globex")) == (1, HERE), "nothing is written before it is said that it may be"
        command = ["tenants", "apply", "-f", file, "--yes", "--takeover", "--reason", "there is down"]
        printed = filled.call(*command).stdout
    finally:
        server.start()
    assert "  > globex  (written in here, taken over from there)" in printed.splitlines()
    globex, initech = filled.record("globex"), filled.record("initech")
    assert globex is not None
    assert initech is not None
    assert (version(globex), globex.home, globex.takeover, globex.why) == ((2, HERE), HERE, True, "there is down")
    assert (version(initech), initech.takeover) == ((4, HERE), False)
    assert "taken over from there" in filled.audited()[-1]["outcome"]
    filled.hears()
    filled.call("tenants", "apply", "-f", filled.file("tenants: {globex: {home: here, labels: {a: b}}}"), "--yes")
    globex = filled.record("globex")
    assert globex is not None
    assert not globex.takeover


def test_a_region_that_goes_away_while_it_is_written(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: object) -> None:
        raise MapUnavailable("there (redis://127.0.0.1:1/0): no answer within 3 s")

    monkeypatch.setattr(apply, "write", failing)
    told = filled.call("tenants", "apply", "-f", filled.file("tenants: {acme: {home: there}}"), "--yes", code=1).stderr
    assert told == (
        "landbridge: the Redis of there (redis://127.0.0.1:1/0): no answer within 3 s: "
        "at least 0 of 1 changes were written; the same command does the rest\n"
    )
    assert filled.audited()[-1]["outcome"].startswith("cut short after at least 0 of 1 changes")


# --- waiting


def test_wait_returns_once_all_that_live_have_it(filled: World) -> None:
    head = filled.on(HERE, lambda map_: map_.head())
    enough = f"{head.log_id} {head.log.last + 1}"
    filled.alive(HERE, THERE, applied={HERE: enough})
    wanted = filled.file("tenants: {acme: {home: here, standby: [there]}}")
    done = filled.answer("tenants", "apply", "-f", wanted, "--yes", "--wait")
    assert done["acknowledged"] == {"gateways": 2, "laggards": [], "silent": []}


def test_wait_names_those_that_lag(filled: World) -> None:
    head = filled.on(HERE, lambda map_: map_.head())
    filled.alive(HERE, applied={HERE: f"{head.log_id} {head.log.last + 9}"})
    filled.alive(THERE, applied={HERE: f"{head.log_id} {head.log.last}"})
    filled.alive(THERE, applied={HERE: "another 9"}, name="gw-2")
    filled.alive(THERE, applied={HERE: "dead 1"}, age_ms=60_000, name="gw-3")
    wanted = filled.file("tenants: {acme: {home: here, standby: [there]}}")
    command = ["tenants", "apply", "-f", wanted, "--yes", "--wait", "--wait-limit", "0.1"]
    told = filled.call(*command, code=1).stderr.splitlines()
    again = filled.call(*command, code=1)
    assert (again.stderr.splitlines(), again.stdout.count("Written")) == (told, 0), "it is waited for all the same"
    assert [line.partition("after 0.1 s: ")[2] for line in told] == [
        f"there/gw-1: lacks 1 of here's writes (it is at {head.log.last} of {head.log.last + 1})",
        f"there/gw-2: follows another log of here (another instead of {head.log_id})",
    ]


# --- import, export


def test_import_fills_an_empty_map_only(world: World) -> None:
    file = world.file(TENANTS)
    assert "3 created" in world.call("tenants", "import", "-f", file, "--reason", "first").stdout
    records = world.records()
    assert {version(record) for record in records.values()} == {(1, HERE), (4, HERE)}
    assert world.on(HERE, lambda map_: map_.head()).complete
    assert "here holds 3 records (--merge adds" in world.call("tenants", "import", "-f", file, code=3).stderr
    more = world.file("tenants: {acme: {home: there}, globex: {home: there}, hooli: {home: here}}")
    told = world.call("tenants", "import", "-f", more, "--merge").stderr
    assert "1 are in the map with other content, or deleted, and stay so (`apply` changes them): acme" in told
    assert world.records() | {"hooli": None} == records | {"hooli": None}
    assert version(world.record("hooli")) == (1, HERE)


def test_a_region_that_is_being_filled_is_not_called_complete(world: World) -> None:
    world.call("tenants", "import", "-f", world.file(TENANTS), region=THERE)
    for more in ([], ["--merge"]):
        told = world.call("tenants", "import", "-f", world.file(TENANTS), *more, code=3).stderr
        assert "the map of there is complete, and here takes it over by itself" in told
    assert not world.on(HERE, lambda map_: map_.head()).complete


@pytest.mark.parametrize("name", ["out.yaml", "out.jsonl"])
def test_what_is_exported_is_the_map_again(filled: World, name: str) -> None:
    filled.call("tenants", "delete", "globex", "--yes", "--reason", "x")
    filled.replicate()
    path = filled.folder / name
    filled.call("tenants", "export", "-o", str(path))
    plan = filled.answer("tenants", "plan", "-f", str(path), "--prune")
    assert (plan["changes"], plan["unchanged"]) == ([], 2)
    before = filled.records()
    for server in filled.servers.values():
        server.cli("FLUSHALL")
    filled.call("tenants", "import", "-f", str(path))
    after = filled.records()
    assert after.keys() == before.keys() - {"globex"}
    assert all(version(after[tenant])[0] == before[tenant].version.epoch for tenant in after)
    assert filled.call("tenants", "export").stdout.startswith("tenants:\n  acme:\n    home: here\n")


def test_an_empty_map_is_exported_as_one(world: World) -> None:
    assert world.call("tenants", "export").stdout == "tenants:\n  {}\n"
    assert world.call("tenants", "export", "--format", "jsonl").stdout == ""


# --- delete, history, rollback


def test_delete_history_rollback(filled: World) -> None:
    filled.call("tenants", "apply", "-f", filled.file("tenants: {acme: {home: there}}"), "--yes", "--reason", "move")
    filled.replicate()
    filled.call("tenants", "delete", "ACME", "--yes", "--actor", "bob", "--reason", "gone")
    filled.replicate()
    acme = filled.record("acme")
    assert acme is not None
    assert (version(acme), acme.state, acme.hosts) == ((3, THERE), State.DELETED, ())
    assert (
        "no such tenant: nobody" in filled.call("tenants", "delete", "nobody", "--yes", "--reason", "x", code=1).stderr
    )
    versions = filled.answer("tenants", "history", "acme")["versions"]
    assert [(v["version"].split(".")[0], v["changed"], v["current"], v["conflict"]) for v in versions] == [
        ("3", ["state"], True, False),
        ("2", ["home", "standby", "hosts", "labels"], False, False),
        ("1", None, False, False),
    ]
    assert [v["record"]["why"] for v in versions] == ["gone", "move", ""]
    assert versions[1]["replaced_by"] == versions[0]["version"]
    # back to before the deletion, then to the beginning: new versions, by the same rules
    filled.call("tenants", "rollback", "acme", "--yes", "--reason", "sorry")
    filled.replicate()
    back = filled.record("acme")
    assert back is not None
    assert (version(back), back.home, back.state) == ((4, THERE), THERE, State.ACTIVE)
    filled.call("tenants", "rollback", "acme", "--to", versions[2]["version"], "--yes", "--reason", "all of it")
    filled.replicate()
    first = filled.record("acme")
    assert first is not None
    assert (version(first), first.home, first.hosts, first.why) == ((5, THERE), HERE, ("shop.acme.test",), "all of it")
    assert (
        "has no version 9.9.x"
        in filled.call("tenants", "rollback", "acme", "--to", "9.9.x", "--yes", "--reason", "x", code=1).stderr
    )
    assert (
        "no version of initech"
        in filled.call("tenants", "rollback", "initech", "--yes", "--reason", "x", code=1).stderr
    )
    assert "no such tenant" in filled.call("tenants", "history", "nobody", code=1).stderr


def test_a_conflict_is_told_in_the_history(filled: World) -> None:
    """Both regions change a label, not knowing of each other: one wins in both, the other is known as the loser."""
    for region in (HERE, THERE):
        file = filled.file(f"tenants: {{globex: {{home: there, labels: {{by: {region}}}}}}}")
        filled.call("tenants", "apply", "-f", file, "--yes", region=region)
    filled.replicate()
    for region in (HERE, THERE):
        versions = filled.answer("tenants", "history", "globex", region=region)["versions"]
        assert versions[0]["record"]["labels"] == {"by": THERE}
        assert [v["record"]["labels"] for v in versions if v["conflict"]] == [{"by": HERE}]
        assert "conflict: lost" in filled.call("tenants", "history", "globex", region=region).stdout


# --- the page


def test_the_page_lists_every_rule_and_every_option() -> None:
    page = (ROOT / "docs" / "tenants.md").read_text()
    table = page.partition("### What is refused")[2].partition("###")[0]
    listed = set(re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE))
    sources = [(ROOT / "gateway" / path).read_text() for path in ("core/planning.py", "cli/claims.py")]
    broken = {rule for source in sources for rule in re.findall(r'f?"([a-z ]+): [^"]*\{', source)}
    assert listed == broken
    for command in ("plan", "apply", "import", "export", "delete", "history", "rollback"):
        shown = CliRunner().invoke(app, ["tenants", command, "--help"], env={"COLUMNS": "200"}).stdout
        for option in set(re.findall(r"--[a-z-]+", shown)) - COMMON:
            assert option in page, (command, option)


# --- where the file is the map


@pytest.mark.parametrize(
    "command",
    [
        ["tenants", "plan", "-f", "t.yaml"],
        ["tenants", "apply", "-f", "t.yaml", "--yes"],
        ["tenants", "import", "-f", "t.yaml"],
        ["tenants", "export"],
        ["tenants", "delete", "acme", "--yes", "--reason", "x"],
        ["tenants", "history", "acme"],
        ["tenants", "rollback", "acme", "--yes", "--reason", "x"],
        ["map", "digest"],
        ["map", "dead", "list"],
        ["map", "dead", "retry", "x"],
        ["map", "confirm", "--restore"],
    ],
)
def test_with_the_source_yaml_the_file_is_the_map(world: World, command: list[str]) -> None:
    config = world.config()
    before, _, _ = config.read_text().rpartition("tenant_map:")
    config.write_text(before + "tenant_map: {file: tenants.yaml}\n")
    told = world.call(*command, code=2).stderr
    assert f"the tenants come from {world.folder}/tenants.yaml (tenant_map.source: yaml): edit that file" in told


def test_the_audit_log_that_cannot_be_written_keeps_everything_from_happening(filled: World) -> None:
    before = filled.records()
    log = filled.state() / "audit.log"
    log.unlink()
    log.mkdir()
    file = filled.file("tenants: {acme: {home: there}}")
    told = filled.call("tenants", "apply", "-f", file, "--yes", code=1).stderr
    assert "nothing was done, since the audit log cannot be written" in told
    assert filled.records() == before


def test_a_damaged_record_is_named_and_left_alone(filled: World) -> None:
    filled.servers[HERE].cli("HSET", "{landbridge}:tenants", "globex", "rubbish")
    file = filled.file("tenants: {globex: {home: here}, acme: {home: here}}")
    told = filled.call("tenants", "apply", "-f", file, "--yes", code=1).stderr
    assert "globex: its record cannot be read" in told
    assert version(filled.record("acme")) == (2, HERE)
    assert "globex: its record cannot be read" in filled.call("tenants", "export", code=1).stderr
