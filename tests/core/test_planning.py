"""What a wish means for a record: kind, keys, epoch, region; and the rules of safety."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.placement import Failover, Misroute, Partition, Placement, State, Version
from gateway.core.planning import (
    Author,
    Change,
    Fleet,
    Kind,
    Limits,
    Tally,
    broken_rules,
    moved_to,
    plan,
    tombstone,
)

AUTHOR = Author("alice", "because")
V = Version(5, 1000, "a")
REGIONS = ("a", "b", "c")


def wish(**parts: Any) -> Placement:
    return Placement(**({"tenant": "acme", "home": "a"} | parts))


def record(version: Version = V, **parts: Any) -> Placement:
    return wish(version=version, **parts)


def change(wanted: Placement, current: Placement | None, own: str = "c") -> Change:
    found = plan(wanted, current, own, AUTHOR)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("wanted", "current", "kind", "keys", "region", "epoch"),
    [
        (wish(home="b"), None, Kind.CREATED, ("home",), "b", 1),
        (wish(home="b", version=Version(7, 0, "")), None, Kind.CREATED, ("home", "epoch"), "b", 7),
        (wish(labels={"x": "y"}), None, Kind.CREATED, ("home", "labels"), "a", 1),
        # everything that is not where it lives or whether: written here, epoch kept
        (wish(labels={"x": "y"}), record(), Kind.CHANGED, ("labels",), "c", 5),
        (wish(failover=Failover.ALL), record(), Kind.CHANGED, ("failover",), "c", 5),
        (wish(partition=Partition.REFUSE), record(), Kind.CHANGED, ("partition",), "c", 5),
        (wish(misroute=Misroute.INTERNAL), record(cluster="x"), Kind.CHANGED, ("misroute", "cluster"), "c", 5),
        (wish(hosts=("n.test",)), record(hosts=("o.test",)), Kind.CHANGED, ("hosts",), "c", 5),
        # home, standby and state: in the region where it lives now, with the next epoch
        (wish(home="b"), record(), Kind.MOVED, ("home",), "a", 6),
        (wish(home="b", standby=("a",)), record(), Kind.MOVED, ("home", "standby"), "a", 6),
        (wish(standby=("b",)), record(), Kind.CHANGED, ("standby",), "a", 6),
        (wish(standby=("b", "c")), record(standby=("c", "b")), Kind.CHANGED, ("standby",), "a", 6),
        (wish(state=State.SUSPENDED), record(), Kind.CHANGED, ("state",), "a", 6),
        (wish(), record(state=State.SUSPENDED, labels={"x": "y"}), Kind.CHANGED, ("state", "labels"), "a", 6),
        # an epoch in the file is a floor
        (wish(version=Version(9, 0, "")), record(), Kind.CHANGED, ("epoch",), "a", 9),
        (wish(home="b", version=Version(9, 0, "")), record(), Kind.MOVED, ("home",), "a", 9),
        (wish(home="b", version=Version(5, 0, "")), record(), Kind.MOVED, ("home",), "a", 6),
        # a deleted tenant comes back in the region that had it, with the next epoch
        (wish(home="b"), record(state=State.DELETED), Kind.CREATED, ("home",), "a", 6),
        (wish(state=State.DELETED), record(), Kind.DELETED, ("state",), "a", 6),
    ],
)
def test_what_changes_where(
    wanted: Placement, current: Placement | None, kind: Kind, keys: tuple[str, ...], region: str, epoch: int
) -> None:
    found = change(wanted, current)
    assert (found.kind, found.keys, found.region, found.epoch) == (kind, keys, region, epoch)
    assert found.expected == (None if current is None else V)
    assert (found.placement.by, found.placement.why) == AUTHOR
    assert not found.stale_epoch


@pytest.mark.parametrize(
    ("wanted", "current"),
    [
        (wish(), record()),
        (wish(version=Version(5, 0, "")), record()),
        (wish(version=Version(2, 0, "")), record()),
        (wish(hosts=("x.test", "y.test")), record(hosts=("y.test", "x.test"))),
        (wish(), record(state=State.HELD)),
        (wish(), record(takeover=True, by="bob", why="x", claims={})),
        (wish(state=State.DELETED), record(state=State.DELETED)),
        (wish(state=State.DELETED), None),
    ],
)
def test_what_is_so_already_is_no_change(wanted: Placement, current: Placement | None) -> None:
    assert plan(wanted, current, "c", AUTHOR) is None


def test_a_host_that_stays_keeps_its_claim() -> None:
    current = record(hosts=("old.test", "older.test", "gone.test"), claims={"older.test": 7})
    found = change(wish(hosts=("new.test", "older.test", "old.test")), current)
    assert found.placement.claims == {"older.test": 7, "old.test": 1000}
    assert change(wish(hosts=("old.test",)), record(state=State.DELETED)).placement.claims == {}


def test_a_held_tenant_is_not_released_by_a_file() -> None:
    found = change(wish(labels={"x": "y"}), record(state=State.HELD))
    assert (found.placement.state, found.keys, found.held) == (State.HELD, ("labels",), True)
    assert change(wish(state=State.SUSPENDED), record(state=State.HELD)).keys == ("state",)


def test_a_tombstone_keeps_home_and_nothing_else() -> None:
    found = tombstone(record(hosts=("x.test",), labels={"x": "y"}, standby=("b",), takeover=True), AUTHOR)
    assert found.placement == wish(state=State.DELETED, by="alice", why="because")
    assert (found.region, found.epoch, found.expected) == ("a", 6, V)


def test_a_file_older_than_the_record_is_told() -> None:
    assert change(wish(home="b", version=Version(4, 0, "")), record()).stale_epoch == 4
    assert change(wish(labels={"x": "y"}, version=Version(4, 0, "")), record()).stale_epoch == 0


def test_a_takeover_is_flagged_until_the_next_ordinary_write() -> None:
    taken = moved_to(change(wish(home="b"), record()), "b")
    assert (taken.region, taken.placement.takeover, taken.epoch) == ("b", True, 6)
    assert not change(wish(home="b", labels={"x": "y"}), record(home="b", takeover=True)).placement.takeover


def test_a_change_survives_being_written_down() -> None:
    for found in (change(wish(home="b"), record()), change(wish(hosts=("x.test",)), None), tombstone(record(), AUTHOR)):
        read = msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Change)
        assert msgspec.structs.replace(read, differences=()) == msgspec.structs.replace(found, differences=())
        assert read.keys == found.keys


some_regions = st.sampled_from(REGIONS)
wishes = st.builds(
    Placement,
    tenant=st.just("acme"),
    home=some_regions,
    standby=st.lists(some_regions, unique=True, max_size=2).map(tuple),
    failover=st.sampled_from(Failover),
    hosts=st.lists(st.sampled_from(("x.test", "y.test", "z.test")), unique=True).map(tuple),
    misroute=st.sampled_from([None, *Misroute]),
    state=st.sampled_from([State.ACTIVE, State.SUSPENDED, State.DELETED]),
    labels=st.dictionaries(st.sampled_from("xy"), st.sampled_from("12")),
    partition=st.sampled_from(Partition),
    version=st.builds(Version, st.integers(0, 3), st.just(0), st.just("")),
)


@given(st.lists(wishes, min_size=1, max_size=6), some_regions)
def test_whatever_is_wished_one_after_the_other(wanted: list[Placement], own: str) -> None:
    """Written, it is what was wished, and no change any more; epochs count exactly what they have to."""
    current: Placement | None = None
    clock = 100
    for wished in wanted:
        found = plan(wished, current, own, AUTHOR)
        if found is None:
            continue
        clock += 1
        assert found.expected == (None if current is None else current.version)
        written = msgspec.structs.replace(found.placement, version=Version(found.epoch, clock, found.region))
        assert plan(wished, written, own, AUTHOR) is None
        if current is not None:
            assert written.version > current.version
            moved = any(getattr(written, key) != getattr(current, key) for key in ("home", "standby", "state"))
            asked = wished.version.epoch > current.version.epoch and wished.state is not State.DELETED
            assert (written.version.epoch > current.version.epoch) == (moved or asked)
            assert found.region == (current.home if moved or asked else own)
            for host in set(written.hosts) & set(current.hosts):
                assert written.claimed(host) == current.claimed(host)
        current = written


# --- safety


def fleet(**parts: Any) -> Fleet:
    usual = {
        "own": "a",
        "tenants": 1000,
        "regions": REGIONS,
        "live": {"a": 1, "b": 2, "c": 1},
        "lag_s": {"b": 0.1, "c": 0.0},
    }
    return Fleet(**(usual | parts))


def tally(*changes: Change | None, times: int = 1) -> Tally:
    counted = Tally()
    for found in changes:
        for n in range(times):
            assert found is not None
            counted.add(msgspec.structs.replace(found, tenant=f"t{n}"), REGIONS)
    return counted


MOVE = plan(wish(home="b"), record(), "a", AUTHOR)
LABEL = plan(wish(labels={"x": "y"}), record(), "a", AUTHOR)
DELETE = tombstone(record(), AUTHOR)
HELD = plan(wish(home="b"), record(state=State.HELD), "a", AUTHOR)
STALE = plan(wish(home="b", version=Version(1, 0, "")), record(), "a", AUTHOR)
UNKNOWN = plan(wish(home="z"), record(), "a", AUTHOR)
UNKNOWN_STANDBY = plan(wish(standby=("z",)), record(), "a", AUTHOR)
NO_STANDBY = plan(wish(), record(standby=("b",)), "a", AUTHOR)


@pytest.mark.parametrize(
    ("counted", "known", "limits", "rules"),
    [
        (tally(), fleet(lag_s={"b": None}), Limits(), []),
        (tally(MOVE, LABEL, DELETE), fleet(), Limits(), []),
        # moves: a tenth, and ten in any case
        (tally(MOVE, times=100), fleet(), Limits(), []),
        (tally(MOVE, times=101), fleet(), Limits(), ["moves at once"]),
        (tally(MOVE, times=10), fleet(tenants=20), Limits(), []),
        (tally(MOVE, times=11), fleet(tenants=20), Limits(), ["moves at once"]),
        (tally(MOVE, times=11), fleet(tenants=20), Limits(moves=1.0), []),
        (tally(MOVE, times=3), fleet(), Limits(moves=2), ["moves at once"]),
        (tally(MOVE, times=3), fleet(), Limits(moves=3), []),
        # deletions: the loss guard
        (tally(DELETE, times=9), fleet(tenants=20), Limits(), []),
        (tally(DELETE, times=10), fleet(tenants=200), Limits(), []),
        (tally(DELETE, times=11), fleet(tenants=200), Limits(), ["loss guard"]),
        (tally(DELETE, times=2), fleet(tenants=2), Limits(), ["loss guard"]),
        # who is alive
        (tally(MOVE), fleet(live={"a": 1}), Limits(), ["target alive", "last region"]),
        (tally(MOVE), fleet(live={"c": 1}), Limits(), ["target alive"]),
        (tally(NO_STANDBY), fleet(live={"b": 1}), Limits(), ["last region"]),
        (tally(NO_STANDBY), fleet(live={"a": 1}), Limits(), []),
        (tally(LABEL), fleet(live={}), Limits(), []),
        # how far behind we are
        (tally(LABEL), fleet(lag_s={"b": 10.0, "c": 9.9}), Limits(), ["map lag"]),
        (tally(LABEL), fleet(lag_s={"b": None, "c": None}), Limits(), ["map lag", "map lag"]),
        (tally(LABEL), fleet(lag_s={"b": None}, lost={"b"}), Limits(), []),
        (tally(LABEL), fleet(complete=False), Limits(), ["whole map"]),
        (tally(LABEL), fleet(waiting="60 of 60"), Limits(), ["whole map"]),
        (tally(), fleet(complete=False, waiting="60 of 60"), Limits(), []),
        (tally(HELD), fleet(), Limits(), ["held"]),
        (tally(STALE), fleet(), Limits(), ["epoch"]),
        (tally(UNKNOWN), fleet(), Limits(), ["known regions", "last region"]),
        (tally(UNKNOWN_STANDBY), fleet(), Limits(), ["known regions"]),
    ],
)
def test_rules(counted: Tally, known: Fleet, limits: Limits, rules: list[str]) -> None:
    assert [line.partition(":")[0] for line in broken_rules(counted, known, limits)] == rules


def test_a_rule_names_what_and_how_many() -> None:
    (line,) = broken_rules(tally(MOVE, times=101), fleet(), Limits())
    assert line == "moves at once: 101 of 1000 tenants would move (101 to b), at most 100 may"
    dead, _ = broken_rules(tally(MOVE, times=7), fleet(live={"a": 1}), Limits())
    assert dead == (
        "target alive: no gateway of b is alive, and 7 tenants would move there (t0, t1, t2, t3, t4 and 2 more)"
    )
