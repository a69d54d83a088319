"""`landbridge map status|digest|dead|confirm` of a replicated map, against two regions' real Valkey servers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.cli import map as map_command
from gateway.control.replication.region_map import Letter
from gateway.control.sources import confirm
from gateway.control.sources.confirm import Confirmation, Pending
from gateway.core.placement import Placement, Version
from gateway.core.replication import encode_body, encode_value
from tests.support.operator_world import HERE, THERE, World
from tests.support.valkey import Valkey

TENANTS = "tenants:\n" + "".join(f"  t{n}: {{home: here}}\n" for n in range(30))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Valkey]]:
    folder = tmp_path_factory.mktemp("valkey")
    with Valkey(folder / HERE, durable=False) as here, Valkey(folder / THERE, durable=False) as there:
        yield {HERE: here, THERE: there}


@pytest.fixture
def world(tmp_path: Path, servers: dict[str, Valkey], monkeypatch: pytest.MonkeyPatch) -> World:
    """Thirty tenants in both regions."""
    for name in [name for name in os.environ if name.startswith("LANDBRIDGE")]:
        monkeypatch.delenv(name)
    for server in servers.values():
        server.cli("FLUSHALL")
    made = World(tmp_path, servers)
    made.call("tenants", "import", "-f", made.file(TENANTS))
    made.replicate()
    return made


def value(tenant: str, epoch: int, home: str = HERE) -> bytes:
    return encode_value(tenant, Version(epoch, 5, THERE), (), encode_body(Placement(tenant=tenant, home=home)))


# --- status


def test_status_shows_peers_gateways_and_drift(world: World) -> None:
    world.hears(2.5, lag_records=7, offset="x 1", head="x 8", retries=3, conflicts=2, reason="slow")
    head = world.on(HERE, lambda map_: map_.head())
    world.alive(HERE, applied={HERE: f"{head.log_id} {head.log.last - 2}", THERE: "x 8"})
    world.alive(THERE, age_ms=60_000)
    told = world.answer("map", "status", code=1)
    assert told["complete"] is False, "no gateway ever ran here: the store is empty"
    redis = told["redis"]
    assert (redis["log"], redis["complete"], redis["records"]) == (f"{head.log_id} 30", True, 30)
    peer = redis["peers"][THERE]
    assert (peer["state"], peer["lag_records"], peer["lag_s"], peer["is_known"]) == ("following", 7, 2.5, True)
    assert [(row["region"], row["alive"], row["behind"]) for row in redis["gateways"]] == [
        (HERE, True, 2),
        (THERE, False, None),
    ]
    assert redis["drift"] == {"program": 0, "config": 0}
    printed = [line.split() for line in world.call("map", "status", code=1).stdout.splitlines()]
    assert [THERE, "following", "7", "2.5", "x", "1", "x", "8", "3", "2", "slow"] in printed
    assert [f"{HERE}/gw-1", "yes", "0.0", "2", "1", "a.b"] in printed


def test_status_of_a_replicator_that_says_nothing_any_more(world: World) -> None:
    world.hears(at_ms=1)
    assert world.answer("map", "status", code=1)["redis"]["peers"][THERE]["is_known"] is False
    assert "no replicator has said anything since" in world.call("map", "status", code=1).stdout


def test_status_without_redis_shows_the_store_and_is_1(world: World) -> None:
    world.servers[HERE].kill()
    try:
        done = world.call("map", "status", code=1)
    finally:
        world.servers[HERE].start()
    assert "records" in done.stdout
    assert done.stderr.startswith(f"landbridge: the Redis of here (redis://127.0.0.1:{world.servers[HERE].port}/0)")
    assert len(done.stderr.splitlines()) == 1


# --- digest


def test_digests_of_equal_maps(world: World) -> None:
    told = world.answer("map", "digest", "--peers", "--recount")
    assert told["records"] == 30
    assert told["peers"][THERE]["digest"] == told["digest"] != "0" * 16
    assert told["peers"][THERE]["outcome"] == "the same"
    assert told["recount"] == {"outcome": "it held", "wrong_buckets": [], "damaged": []}


def test_tenants_that_differ_are_named(world: World) -> None:
    world.on(THERE, lambda map_: map_.merge([("t3", value("t3", 7)), ("only-there", value("only-there", 1))]))
    world.on(HERE, lambda map_: map_.merge([("only-here", value("only-here", 1))]))
    told = world.answer("map", "digest", "--peers", code=1)["peers"][THERE]
    assert (told["differing"], told["tenants"]) == (3, ["only-here", "only-there", "t3"])
    assert "3 tenants in" in world.call("map", "digest", "--peers", code=1).stdout
    world.replicate()
    assert world.answer("map", "digest", "--peers")["peers"][THERE]["buckets"] == 0


def test_a_recount_finds_what_no_digest_knows_of_and_mends_it(world: World) -> None:
    server = world.servers[HERE]
    server.cli("HSET", "{landbridge}:tenants", "t1", value("t1", 9))
    server.cli("HSET", "{landbridge}:tenants", "t2", value("t2", 9).replace(b"here", b"hexe"))
    told = world.answer("map", "digest", "--recount", code=1)["recount"]
    assert told["damaged"] == ["t2"]
    assert told["wrong_buckets"]
    assert world.answer("map", "digest", "--recount", code=1)["recount"]["wrong_buckets"] == []


def test_a_digest_that_does_not_hold_is_told_from_maps_that_differ(world: World) -> None:
    world.servers[THERE].cli("DEL", "{landbridge}:digest")
    told = world.answer("map", "digest", "--peers", code=1)["peers"][THERE]
    assert (told["differing"], told["outcome"].partition(":")[0]) == (
        0,
        "the same records, but one of the digests does not hold",
    )


def test_a_peer_that_cannot_be_compared(world: World) -> None:
    world.servers[THERE].kill()
    try:
        done = world.call("map", "digest", "--peers", code=1)
    finally:
        world.servers[THERE].start()
    assert "it does not answer" in done.stdout
    assert done.stderr.startswith("landbridge: the Redis of there (redis://127.0.0.1:")


# --- dead letters


def bury(world: World, *letters: Letter) -> None:
    for letter in letters:
        world.on(HERE, lambda map_, letter=letter: map_.bury(letter))  # type: ignore[misc]


def test_dead_letters_are_listed_shown_and_dropped(world: World) -> None:
    bury(world, Letter("acme", THERE, "its sum does not hold", 1_700_000_000_000, b"1 1.2.there - x\n\xff\x1b[31m"))
    bury(world, Letter("t1", "feed", "damaged", 1_700_000_001_000))
    assert [letter["tenant"] for letter in world.answer("map", "dead", "list")["letters"]] == ["t1", "acme"]
    printed = world.call("map", "dead", "list").stdout.splitlines()
    assert printed[2].split()[:3] == ["t1", "feed", "2023-11-14T22:13:21.000Z"]
    shown = world.answer("map", "dead", "show", "acme")
    assert (shown["reason"], shown["value"]) == ("its sum does not hold", r"1 1.2.there - x\n\xff\x1b[31m")
    assert "\x1b" not in world.call("map", "dead", "show", "acme").stdout
    world.call("map", "dead", "drop", "acme")
    for command in ("drop", "show", "retry"):
        assert "there is no dead letter of acme" in world.call("map", "dead", command, "acme", code=1).stderr


def test_a_dead_letter_is_taken_in_once_its_region_has_it_whole(world: World) -> None:
    bury(world, Letter("acme", THERE, "its sum does not hold", 1))
    world.servers[THERE].cli("HSET", "{landbridge}:tenants", "acme", "rubbish")
    told = world.call("map", "dead", "retry", "acme", code=1).stderr
    assert "acme stays a dead letter: there has no record of it that can be read" in told
    assert [letter["tenant"] for letter in world.answer("map", "dead", "list")["letters"]] == ["acme"]
    world.servers[THERE].cli("HSET", "{landbridge}:tenants", "acme", value("acme", 3))
    assert "acme: 3.5.there, as there has it, is the current one" in world.call("map", "dead", "retry", "acme").stdout
    assert world.records()["acme"].version == Version(3, 5, THERE)
    assert world.answer("map", "dead", "list")["letters"] == []


def test_a_letter_of_our_own_gateways_is_mended_from_any_region(world: World) -> None:
    world.servers[HERE].cli("HSET", "{landbridge}:tenants", "t1", "rubbish")
    bury(world, Letter("t1", "feed", "damaged", 1), Letter("t2", "feed", "damaged", 1))
    assert "as there has it, is the current one" in world.call("map", "dead", "retry", "t1").stdout
    assert world.records()["t1"] == world.records(THERE)["t1"]
    assert "the record here can be read" in world.call("map", "dead", "retry", "t2").stdout
    assert world.answer("map", "dead", "list")["letters"] == []


# --- confirm


@pytest.mark.parametrize("restore", [False, True])
def test_confirm_says_which_of_both_maps_is_meant(world: World, restore: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_command, "TAKEN_LIMIT_S", 0.1)
    options = ["--restore"] if restore else []
    assert "no change waits" in world.call("map", "confirm", *options, code=1).stderr
    pending = Pending("abc", "redis://127.0.0.1/0", 30, 30, 0, ("t1", "t2"), 1_700_000_000_000)
    confirm.tell(world.state(), pending)
    assert "it is change abc that waits" in world.call("map", "confirm", *options, "--change", "x", code=3).stderr
    told = world.answer("map", "confirm", *options)
    assert msgspec.structs.asdict(confirm.confirmed(world.state()) or Confirmation("")) == {
        "change": "abc",
        "restore": restore,
    }
    assert told["restores" if restore else "removes"] == 30
    assert told["restored" if restore else "applied"] is False, "no gateway runs here"
    assert told["leaves"] == (30 if restore else 0)
