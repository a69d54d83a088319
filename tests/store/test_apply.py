"""Changes of single records: the map, its index and its summary end as if they had been made of the last records."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import lmdb
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.bus.messages import MapChanged
from gateway.core.placement import Placement, State, Version
from gateway.store import check, generations
from gateway.store import writer as writer_module
from gateway.store.changes import Change, SourceState
from gateway.store.claims import Contested
from gateway.store.reader import Reader
from gateway.store.record import CorruptRecord, digest_of, encode_placement, seal
from gateway.store.writer import Writer

AT = SourceState("log-1", 1)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with closing(Writer(tmp_path / "map")) as opened:
        yield opened


def placement(
    tenant: str, hlc: int = 1, hosts: tuple[str, ...] = (), epoch: int = 0, home: str = "us-east-1"
) -> Placement:
    return Placement(tenant=tenant, home=home, hosts=hosts, version=Version(epoch, hlc, home))


def put(writer: Writer, *changes: Placement | Change, ms: int = 1000, source: SourceState = AT) -> MapChanged:
    wanted = [c if isinstance(c, Change) else Change(c.tenant, c) for c in changes]
    return writer.apply(wanted, source, ms, complete=True)


# --- one transaction, differences only


def test_a_batch_is_one_transaction_that_names_what_changed(writer: Writer) -> None:
    before = writer.transaction()
    a, b = placement("a", hosts=("a.com",)), placement("b", hosts=("b.com", "b.org"))
    assert put(writer, a, b) == MapChanged(before, before + 1, ("a", "b"), ("a.com", "b.com", "b.org"), 1)
    moved = placement("b", 2, ("b.com",), home="eu-west-1")
    assert put(writer, moved) == MapChanged(before + 1, before + 2, ("b",), ("b.org",), 1)
    assert writer.page("", 10) == [a, moved]
    assert (writer.host("b.com"), writer.host("b.org")) == ("b", None)
    meta = writer.meta()
    assert (meta.complete, meta.records, meta.written_ms) == (True, 2, 1000)
    assert int(meta.digest, 16) == digest_of(map(encode_placement, (a, moved)))


def test_nothing_new_makes_no_transaction_and_a_step_of_the_source_does(writer: Writer) -> None:
    put(writer, placement("a"))
    at = writer.transaction()
    assert put(writer, placement("a")) == MapChanged(at, at, generation=1)
    assert put(writer) == MapChanged(at, at, generation=1)
    further = SourceState("log-1", 2, {"eu-west-1": "log-9 7"})
    assert put(writer, source=further, ms=2000) == MapChanged(at, at + 1, generation=1)
    assert writer.source() == further
    assert writer.meta().written_ms == 1000, "no record is another"


def test_completeness_is_marked_and_never_taken_back(writer: Writer) -> None:
    writer.apply([Change("a", placement("a"))], AT, 1, complete=False)
    assert not writer.complete()
    writer.apply([], AT, 1, complete=True)
    assert writer.complete()
    writer.apply([Change("b", placement("b"))], AT, 1, complete=False)
    assert writer.complete()


def test_very_many_are_told_as_everything(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "NAMED_MAX", 3)
    assert put(writer, *map(placement, "abcd")) == MapChanged(0, writer.transaction(), generation=1)


def test_the_map_grows_under_a_batch(tmp_path: Path) -> None:
    with closing(Writer(tmp_path / "map", map_bytes=128 * 1024)) as writer:
        put(writer, *(placement(f"t{n}", hosts=(f"{n}.com",)) for n in range(5000)))
        assert writer.meta().records == 5000
        assert writer.source() == AT


FULL_DISK = """
import resource, sys
from pathlib import Path
from gateway.core.placement import Placement
from gateway.store.changes import Change, SourceState
from gateway.store.record import StoreError
from gateway.store.writer import Writer
writer = Writer(Path(sys.argv[1]))
size = sum(file.stat().st_size for file in Path(sys.argv[1]).glob("0*/data.mdb"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 65536, resource.RLIM_INFINITY))
for number in range(100):
    made = [Placement(tenant=f"t{n}", home="us-east-1") for n in range(number * 100, number * 100 + 100)]
    changes = [Change(placement.tenant, placement) for placement in made]
    before = writer.meta()
    try:
        writer.apply(changes, SourceState("log", number), 1, True)
    except StoreError:
        assert (writer.meta(), writer.source()) == (before, SourceState("log", number - 1))
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.apply(changes, SourceState("log", number), 1, True)
print(number, writer.meta().records)
"""


def test_a_full_disk_leaves_the_map_as_it_was_until_there_is_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "map")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    number, records = map(int, done.stdout.split())
    assert 0 < number < 99
    assert records == number * 100 + 100
    assert check.mend(tmp_path, full=True).code is check.Code.SOUND


def test_a_bad_name_changes_nothing(writer: Writer) -> None:
    put(writer, placement("a"))
    meta = writer.meta()
    for change in (Change("x" * 300, placement("x" * 300)), Change("", None), Change("b", placement("c"))):
        with pytest.raises(ValueError, match="no key"):
            put(writer, placement("b"), change)
    assert writer.meta() == meta


def test_a_host_that_can_be_no_key_is_claimed_by_nobody(writer: Writer) -> None:
    put(writer, placement("a", hosts=("x" * 300, "caf\u00e9", "a\0b", "", "a.com", "a.com")))
    assert [writer.host(host) for host in ("x" * 300, "a\0b", "a.com")] == [None, None, "a"]
    put(writer, placement("a", 2))
    assert writer.host("a.com") is None


def test_a_damaged_record_stops_the_batch_and_changes_nothing(tmp_path: Path) -> None:
    with closing(Writer(tmp_path / "map")) as writer:
        put(writer, placement("a"), placement("b"))
    directory = generations.path_of(tmp_path / "map", 1)
    with closing(lmdb.open(str(directory), max_dbs=8)) as env, env.begin(write=True) as txn:
        assert txn.put(b"a", b"scribbled", db=env.open_db(b"tenants", txn=txn))
    with closing(Writer(tmp_path / "map")) as writer:
        meta = writer.meta()
        with pytest.raises(CorruptRecord, match="a"):
            put(writer, placement("b", 2), placement("a", 2))
        assert writer.meta() == meta


# --- versions


def test_no_version_goes_back(writer: Writer) -> None:
    newer = placement("a", 5, ("new.com",))
    put(writer, newer, placement("b", 5))
    put(writer, placement("a", 4, ("old.com",)), placement("b", 6), placement("a", 3))
    assert writer.ignored == 2
    assert writer.placement("a") == newer
    assert writer.host("old.com") is None
    assert writer.arrived("b") == 1000


def test_an_equal_version_with_other_content_takes_its_place(writer: Writer) -> None:
    put(writer, placement("a", 5))
    other = msgspec.structs.replace(placement("a", 5), labels={"plan": "gold"})
    put(writer, other)
    assert writer.placement("a") == other


def test_a_purged_record_is_gone_and_an_older_one_may_come_after_it(writer: Writer) -> None:
    put(writer, placement("a", 5, ("a.com",)), placement("b"))
    put(writer, Change("a", None), Change("never", None))
    assert (writer.placement("a"), writer.host("a.com"), writer.arrived("a")) == (None, None, None)
    assert writer.meta().records == 1
    put(writer, Change("b", None), placement("b", 0))
    assert writer.newest("b") == placement("b", 0)


def test_a_tombstone_stays_as_a_record_and_claims_nothing(writer: Writer) -> None:
    put(writer, placement("a", 1, ("a.com",)))
    deleted = msgspec.structs.replace(placement("a", 2, ("a.com",), epoch=1, home="gone"), state=State.DELETED)
    put(writer, Change("a", deleted, routable=False))
    assert writer.placement("a") == deleted, "deleted is deleted, wherever it pointed"
    assert writer.host("a.com") is None
    assert writer.waiting() == []
    put(writer, placement("b", 9, ("a.com",)))
    assert writer.host("a.com") == "b"


def test_when_it_arrived(writer: Writer) -> None:
    put(writer, placement("a"), placement("b"), ms=10)
    put(writer, placement("a"), placement("b", 2), ms=20)
    assert (writer.arrived("a"), writer.arrived("b"), writer.arrived("c"), writer.arrived("\xe9")) == (
        10,
        20,
        None,
        None,
    )


# --- records that are not routable


def unroutable(tenant: str, hlc: int, hosts: tuple[str, ...] = ()) -> Change:
    return Change(tenant, placement(tenant, hlc, hosts, home="mars"), routable=False)


def test_an_unroutable_record_waits_and_the_last_routable_one_decides(writer: Writer) -> None:
    first, mars = placement("a", 1, ("a.com",)), unroutable("a", 2, ("b.com",))
    put(writer, first)
    meta = writer.meta()
    assert put(writer, mars).tenants == ()
    assert (writer.placement("a"), writer.newest("a"), writer.waiting()) == (first, mars.placement, [mars.placement])
    assert (writer.host("a.com"), writer.host("b.com")) == ("a", None)
    assert (writer.meta().digest, writer.meta().records) == (meta.digest, 1)
    assert writer.known() == [("a", Version(0, 2, "mars"))]
    put(writer, placement("a", 1))
    assert writer.ignored == 1, "older than what waits"
    put(writer, Change("a", mars.placement), ms=3000)  # the region is known by now
    assert (writer.placement("a"), writer.waiting(), writer.host("b.com")) == (mars.placement, [], "a")
    assert writer.arrived("a") == 3000


def test_the_first_record_of_a_tenant_is_stored_as_it_is_and_its_successor_takes_its_place(writer: Writer) -> None:
    put(writer, unroutable("a", 1))
    assert writer.placement("a") == unroutable("a", 1).placement
    assert writer.waiting() == [unroutable("a", 1).placement], "it is judged again too"
    at = writer.transaction()
    assert put(writer, unroutable("a", 1)).to_txn == at
    put(writer, unroutable("a", 2))
    assert writer.placement("a") == unroutable("a", 2).placement
    routable = placement("a", 3)
    put(writer, routable)
    assert (writer.placement("a"), writer.waiting()) == (routable, [])
    put(writer, unroutable("a", 4))
    assert writer.placement("a") == routable
    put(writer, placement("a", 5))
    assert (writer.placement("a"), writer.waiting()) == (placement("a", 5), [])


def test_a_purge_takes_what_waits_along(writer: Writer) -> None:
    put(writer, placement("a"), unroutable("a", 2))
    put(writer, Change("a", None))
    assert (writer.placement("a"), writer.newest("a"), writer.waiting(), writer.known()) == (None, None, [], [])


def test_what_is_known_comes_in_slices(writer: Writer) -> None:
    ids = [f"t{n:02}" for n in range(25)]
    put(writer, *(placement(t) for t in ids), *(unroutable(t, 2) for t in ids[::3]))
    seen: list[tuple[str, Version]] = []
    while rows := writer.known(seen[-1][0] if seen else "", 4):
        seen += rows
    assert [t for t, _ in seen] == ids
    assert {t for t, version in seen if version.hlc == 2} == set(ids[::3])
    assert [p.tenant for p in writer.waiting("t03", 2)] == ["t06", "t09"]


# --- hosts that more than one claims


def test_the_first_claim_has_the_host_and_the_next_one_gets_it(writer: Writer) -> None:
    put(writer, placement("late", 9, ("x.com",)))
    assert writer.claimed_twice() == []
    changed = put(writer, placement("early", 3, ("x.com",)), placement("middle", 5, ("x.com",)))
    assert (writer.host("x.com"), changed.hosts) == ("early", ("x.com",))
    assert writer.claimed_twice() == [Contested("x.com", "early", ("middle", "late"))]
    put(writer, placement("early", 10))
    assert writer.host("x.com") == "middle"
    put(writer, Change("middle", None))
    assert (writer.host("x.com"), writer.claimed_twice()) == ("late", [])
    put(writer, placement("late", 10))
    assert writer.host("x.com") is None


def test_a_new_version_keeps_the_first_claim(writer: Writer) -> None:
    put(writer, placement("a", 3, ("x.com",)), placement("b", 5, ("x.com",)))
    kept = msgspec.structs.replace(placement("a", 9, ("x.com",)), claims={"x.com": 3})
    assert put(writer, kept).hosts == ()
    assert writer.host("x.com") == "a"
    put(writer, placement("a", 10, ("x.com",)))  # a claim of its own time
    assert writer.host("x.com") == "b"


def test_equal_claims_go_by_id(writer: Writer) -> None:
    put(writer, placement("b", 3, ("x.com",)), placement("c", 3, ("x.com",)), placement("a", 3, ("x.com",)))
    assert writer.claimed_twice() == [Contested("x.com", "a", ("b", "c"))]


def test_the_list_of_contested_hosts_is_bounded(writer: Writer) -> None:
    hosts = tuple(f"{n:03}.com" for n in range(50))
    put(writer, *(placement(f"t{n:02}", n, hosts) for n in range(30)))
    found = writer.claimed_twice(7)
    assert [c.host for c in found] == list(hosts[:7])
    assert found[0] == Contested("000.com", "t00", tuple(f"t{n:02}" for n in range(1, 11)))


# --- beside the other ways in and out


def test_a_replacement_forgets_the_source_and_what_belongs_to_it(writer: Writer) -> None:
    put(writer, placement("a", 1, ("x.com",)), placement("b", 2, ("x.com",)), unroutable("a", 3))
    writer.replace([placement("a", 1, ("x.com",))], 5)
    assert (writer.source(), writer.arrived("a"), writer.waiting(), writer.claimed_twice()) == (None, None, [], [])
    assert writer.host("x.com") == "a"
    at = writer.transaction()
    assert writer.replace([placement("a", 1, ("x.com",))], 6).to_txn == at
    put(writer)
    assert writer.replace([placement("a", 1, ("x.com",))], 7).to_txn == at + 2, "the source alone is a difference"
    assert writer.source() is None


OLDER = (b"claims", b"arrived", b"waiting")


def made_by_an_older_program(directory: Path) -> None:
    with closing(Writer(directory)) as writer:
        writer.replace([placement("a", hosts=("a.com",))], 1)
    path = generations.path_of(directory, 1)
    with closing(lmdb.open(str(path), max_dbs=8)) as env:
        for name in OLDER:
            database = env.open_db(name)
            with env.begin(write=True) as txn:
                txn.drop(database)


def test_the_map_of_an_older_program_is_read_checked_and_followed(tmp_path: Path) -> None:
    made_by_an_older_program(tmp_path / "map")
    assert check.mend(tmp_path, full=True).code is check.Code.SOUND
    with closing(Reader(tmp_path / "map")) as reader:
        assert (reader.complete(), reader.host("a.com"), reader.arrived("a")) == (True, "a", None)
    with closing(Writer(tmp_path / "map")) as writer:
        assert (writer.source(), writer.arrived("a"), writer.known()) == (None, None, [("a", placement("a").version)])
        put(writer, placement("b", 0, ("a.com",)), ms=7)
        assert writer.claimed_twice() == [Contested("a.com", "b", ("a",))]
    assert check.mend(tmp_path, full=True).code is check.Code.SOUND
    with closing(Reader(tmp_path / "map")) as reader:
        assert reader.arrived("b") == 7


@pytest.mark.parametrize("name", OLDER)
def test_damage_in_what_a_followed_map_has_besides_is_found(tmp_path: Path, name: bytes) -> None:
    with closing(Writer(tmp_path / "map")) as writer:
        put(writer, placement("a", 1, ("x.com",)), placement("b", 2, ("x.com",)), unroutable("a", 3))
    directory = generations.path_of(tmp_path / "map", 1)
    with closing(lmdb.open(str(directory), max_dbs=8)) as env:
        database = env.open_db(name)
        with env.begin(write=True) as txn:
            with txn.cursor(db=database) as cursor:
                assert cursor.first()
                key = cursor.key()
            assert txn.put(key, seal(key + b"?", b"sound for another key"), db=database)
    assert check.mend(tmp_path).code is check.Code.EMPTIED


# --- any sequence

HOSTS = ("x.com", "y.com", "z.com")
changes = st.builds(
    lambda tenant, epoch, hlc, hosts, first, state, gone, routable: Change(
        tenant,
        None
        if gone
        else Placement(
            tenant=tenant,
            home="us-east-1",
            hosts=hosts,
            claims={} if first is None else {host: first for host in hosts[:1]},
            state=state,
            version=Version(epoch, hlc, "us-east-1"),
        ),
        routable,
    ),
    st.sampled_from("abcde"),
    st.integers(0, 1),
    st.integers(0, 4),
    st.lists(st.sampled_from(HOSTS), max_size=3).map(tuple),
    st.none() | st.integers(0, 3),
    st.sampled_from([State.ACTIVE, State.ACTIVE, State.SUSPENDED, State.DELETED]),
    st.integers(0, 9).map(lambda n: n == 0),
    st.integers(0, 3).map(lambda n: n > 0),
)


class Model:
    """What the map has to hold, by the plainest rules."""

    def __init__(self) -> None:
        self.deciding: dict[str, tuple[Placement, bool]] = {}  # and whether it is routable
        self.waiting: dict[str, Placement] = {}
        self.ignored = 0

    def newest(self, tenant: str) -> Placement | None:
        return self.waiting.get(tenant) or (self.deciding[tenant][0] if tenant in self.deciding else None)

    def add(self, change: Change) -> None:
        tenant, new, routable = change
        before = self.newest(tenant)
        if new is None:
            self.deciding.pop(tenant, None)
            self.waiting.pop(tenant, None)
            return
        if before is not None and before.version > new.version:
            self.ignored += 1
            return
        routable = routable or new.state is State.DELETED
        if tenant in self.deciding and self.deciding[tenant][1] and not routable:
            if new != self.deciding[tenant][0]:
                self.waiting[tenant] = new
            return
        self.deciding[tenant] = (new, routable)
        self.waiting.pop(tenant, None)
        if not routable:
            self.waiting[tenant] = new

    def owners(self) -> dict[str, str]:
        claims: dict[str, list[tuple[int, str]]] = {}
        for tenant, (record, _) in self.deciding.items():
            if record.state is not State.DELETED:
                for host in set(record.hosts):
                    claims.setdefault(host, []).append((record.claimed(host), tenant))
        return {host: min(found)[1] for host, found in claims.items()}

    def contested(self) -> list[str]:
        hosts = [
            host
            for record, _ in self.deciding.values()
            if record.state is not State.DELETED
            for host in {*record.hosts}
        ]
        return sorted({host for host in hosts if hosts.count(host) > 1})


def tables_of(writer: Writer) -> list[list[tuple[bytes, bytes]]]:
    """tenants, hosts and claims, as they are stored."""
    opened = writer._tables
    return [
        opened.slice(database, b"", 1000)[1] for database in (opened.tenants, opened.hosts, opened.following().claims)
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(changes, max_size=5), max_size=8), st.integers())
def test_any_sequence_of_batches_ends_as_the_last_records_do_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Change]], seed: int
) -> None:
    directory = tmp_path_factory.mktemp("apply")
    model = Model()
    with closing(Writer(directory / "map")) as writer:
        for seq, batch in enumerate(batches):
            source = SourceState("log", seq)
            before = {t: record for t, (record, _) in model.deciding.items()}
            owners = model.owners()
            for change in batch:
                model.add(change)
            told = writer.apply(batch, source, seq, complete=True)
            now = {t: record for t, (record, _) in model.deciding.items()}
            assert set(told.tenants) >= {t for t in before.keys() | now.keys() if before.get(t) != now.get(t)}
            after = model.owners()
            assert set(told.hosts) >= {h for h in HOSTS if owners.get(h) != after.get(h)}
            assert writer.source() == source
            assert writer.page("", 100) == [now[t] for t in sorted(now)]
            assert {host: writer.host(host) for host in HOSTS if writer.host(host)} == after
            assert [c.host for c in writer.claimed_twice()] == model.contested()
            assert writer.waiting() == [model.waiting[t] for t in sorted(model.waiting)]
            assert writer.known() == [(t, newest.version) for t in sorted(now) if (newest := model.newest(t))]
            assert writer.ignored == model.ignored
            meta = writer.meta()
            assert (meta.complete, meta.records) == (True, len(now))
            assert int(meta.digest, 16) == digest_of(map(encode_placement, now.values()))
        last = [Change(t, record, routable) for t, (record, routable) in model.deciding.items()]
        random.Random(seed).shuffle(last)
        with closing(Writer(directory / "again")) as again:
            again.apply(last, AT, 1, complete=True)
            assert tables_of(again) == tables_of(writer)
            assert again.meta().digest == writer.meta().digest
    assert check.mend(directory, full=True).code is check.Code.SOUND
