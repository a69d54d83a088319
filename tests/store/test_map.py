"""Writer and reader over a real LMDB file: differences only, one transaction, damage contained, across processes."""

from __future__ import annotations

import os
import shutil
import stat
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
from gateway.core.placement import Placement, Version
from gateway.store import generations, tables
from gateway.store import writer as writer_module
from gateway.store.making import Content, make
from gateway.store.reader import REOPEN_EVERY, Reader
from gateway.store.record import CorruptRecord, MapMeta, StoreError, Summary, digest_of, encode_placement
from gateway.store.wanted import Wanted
from gateway.store.writer import Writer

ACME = Placement(tenant="acme", home="us-east-1", hosts=("shop.acme.com", "acme.org"))
GLOBEX = Placement(tenant="globex", home="eu-west-1", version=Version(7, 0, ""))
INITECH = Placement(tenant="initech", home="ap-southeast-2", hosts=("initech.com",))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "map"


@pytest.fixture
def writer(directory: Path) -> Iterator[Writer]:
    with closing(Writer(directory)) as opened:
        yield opened


def write(directory: Path, *placements: Placement) -> MapChanged:
    with closing(Writer(directory)) as writer:
        return writer.replace(placements, 1000)


def generation(directory: Path) -> Path:
    """The directory of the generation that counts."""
    return generations.path_of(directory, generations.current(directory))


def scribble(directory: Path, database: bytes, key: bytes, value: bytes) -> None:
    with closing(lmdb.open(str(generation(directory)), max_dbs=8, map_size=1 << 30)) as env:
        with env.begin(write=True) as txn:
            assert txn.put(key, value, db=env.open_db(database, txn=txn))


def bad_map(directory: Path, content: bytes) -> Path:
    """A generation whose data file holds this."""
    directory.mkdir(parents=True)
    number = generations.make(directory)
    generations.point(directory, number)
    data = generations.path_of(directory, number) / "data.mdb"
    data.write_bytes(content)
    return data


def test_a_new_map_is_private_and_not_complete(directory: Path, writer: Writer) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((generation(directory) / "data.mdb").stat().st_mode) == 0o600
    assert not writer.complete()
    assert writer.meta().complete is False
    assert writer.page("", 10) == []


def test_the_first_content_is_all_named_and_the_map_complete(writer: Writer) -> None:
    before = writer.transaction()
    changed = writer.replace([ACME, GLOBEX], written_ms=1234)
    assert changed == MapChanged(before, before + 1, ("acme", "globex"), ("acme.org", "shop.acme.com"), 1)
    assert writer.transaction() == before + 1
    assert writer.placement("acme") == ACME
    assert writer.host("acme.org") == "acme"
    meta = writer.meta()
    digest = digest_of([encode_placement(ACME), encode_placement(GLOBEX)])
    assert meta == MapMeta(complete=True, records=2, digest=f"{digest:016x}", written_ms=1234, transaction=before + 1)


def test_an_empty_map_can_be_complete(writer: Writer) -> None:
    changed = writer.replace([], 1)
    assert changed.to_txn == changed.from_txn + 1
    assert (changed.tenants, changed.hosts) == ((), ())
    assert writer.complete()
    assert writer.meta().digest == "0" * 16


def test_without_a_difference_there_is_no_transaction(writer: Writer) -> None:
    writer.replace([ACME, GLOBEX], 1)
    meta = writer.meta()
    assert writer.replace([GLOBEX, ACME], 2) == MapChanged(meta.transaction, meta.transaction, generation=1)
    assert writer.meta() == meta
    assert writer.replace([GLOBEX, ACME], 3) == MapChanged(meta.transaction, meta.transaction, generation=1)


def test_only_what_differs_is_named(writer: Writer) -> None:
    writer.replace([ACME, GLOBEX, INITECH], 1)
    at = writer.transaction()
    moved = msgspec.structs.replace(ACME, home="eu-west-1", hosts=("acme.org", "acme.net"))
    changed = writer.replace([moved, GLOBEX], 2)
    assert changed == MapChanged(at, at + 1, ("acme", "initech"), ("acme.net", "initech.com", "shop.acme.com"), 1)
    assert writer.placement("acme") == moved
    assert writer.placement("initech") is None
    assert writer.host("shop.acme.com") is None
    assert writer.host("acme.net") == "acme"


def test_a_host_that_changes_hands_is_named(writer: Writer) -> None:
    writer.replace([ACME, GLOBEX], 1)
    changed = writer.replace(
        [msgspec.structs.replace(ACME, hosts=("acme.org",)), msgspec.structs.replace(GLOBEX, hosts=("shop.acme.com",))],
        2,
    )
    assert changed.tenants == ("acme", "globex")
    assert changed.hosts == ("shop.acme.com",)
    assert writer.host("shop.acme.com") == "globex"


def test_a_change_of_very_many_is_told_as_everything(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "NAMED_MAX", 3)
    changed = writer.replace([ACME, GLOBEX], 1)
    assert changed == MapChanged(0, writer.transaction(), generation=1)


@pytest.mark.parametrize(
    "placements",
    [
        [ACME, ACME],
        [ACME, msgspec.structs.replace(GLOBEX, hosts=("acme.org",))],
        [Placement(tenant="", home="x")],
        [Placement(tenant="x" * 300, home="x")],
    ],
)
def test_what_no_map_can_hold_is_refused_and_changes_nothing(writer: Writer, placements: list[Placement]) -> None:
    writer.replace([INITECH], 1)
    meta = writer.meta()
    with pytest.raises(ValueError, match=r"comes twice|no key"):
        writer.replace(placements, 2)
    assert writer.meta() == meta


def test_the_map_grows_when_it_is_full(directory: Path) -> None:
    many = [Placement(tenant=f"t{i}", home="us-east-1", labels={"pad": "x" * 500}) for i in range(2000)]
    with closing(Writer(directory, map_bytes=64 * 1024)) as writer:
        writer.replace(many, 1)
        assert writer.meta().records == 2000
        assert writer.placement("t1999") == many[-1]
    with closing(Reader(directory)) as reader:
        assert reader.placement("t0") == many[0]


def test_a_map_that_cannot_grow_enough_stays_as_it_was(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "GROWTH_MAX", 1)
    many = [Placement(tenant=f"t{i}", home="us-east-1", labels={"pad": "x" * 500}) for i in range(2000)]
    with closing(Writer(directory, map_bytes=64 * 1024)) as writer:
        writer.replace([ACME], 1)
        meta = writer.meta()
        with pytest.raises(StoreError, match="full"):
            writer.replace(many, 2)
        assert writer.meta() == meta
        assert writer.placement("acme") == ACME


def test_pages_are_in_order_and_whole(writer: Writer) -> None:
    every = [Placement(tenant=f"t{i:03}", home="us-east-1") for i in range(25)]
    writer.replace(reversed(every), 1)
    seen: list[Placement] = []
    while page := writer.page(seen[-1].tenant if seen else "", 10):
        seen += page
    assert seen == every
    assert writer.page("t0100", 1) == [every[11]]
    assert writer.page("zzz", 10) == []
    assert writer.page("x" * 5000, 10) == []
    assert writer.page("", 0) == []


def test_a_damaged_record_costs_its_own_tenant_only(directory: Path) -> None:
    write(directory, ACME, GLOBEX)
    scribble(directory, b"tenants", b"acme", b"\x00\x01\x02\x03scribbled")
    scribble(directory, b"hosts", b"acme.org", b"?")
    with closing(Reader(directory)) as reader:
        with pytest.raises(CorruptRecord, match="acme"):
            reader.placement("acme")
        with pytest.raises(CorruptRecord, match=r"acme\.org"):
            reader.host("acme.org")
        assert reader.placement("globex") == GLOBEX
        assert reader.host("shop.acme.com") == "acme"
        assert reader.complete()
        assert reader.page("", 10) == [GLOBEX]
    with closing(Writer(directory)) as writer:
        changed = writer.replace([ACME, GLOBEX], 2)
        assert (changed.tenants, changed.hosts) == (("acme",), ("acme.org",))
        assert writer.placement("acme") == ACME


def test_a_damaged_mark_or_summary_is_not_complete_and_is_written_again(directory: Path) -> None:
    write(directory, ACME)
    scribble(directory, b"meta", b"complete", b"yes")
    with closing(Reader(directory)) as reader:
        assert not reader.complete()
    scribble(directory, b"meta", b"summary", b"")
    with closing(Reader(directory)) as reader, pytest.raises(StoreError):
        reader.meta()
    changed = write(directory, ACME)
    assert changed.tenants == ()
    assert changed.to_txn > changed.from_txn
    with closing(Reader(directory)) as reader:
        assert reader.meta().complete


def test_a_reader_without_a_map_finds_nothing(directory: Path) -> None:
    reader = Reader(directory)
    assert not reader.complete()
    assert reader.placement("acme") is None
    assert reader.host("acme.org") is None
    assert reader.transaction() == 0
    assert reader.meta() == MapMeta()
    assert reader.page("", 10) == []
    assert not directory.exists()
    reader.close()


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(64 * 1024)])
def test_a_bad_file_is_not_complete_and_its_successor_is_seen(directory: Path, content: bytes) -> None:
    data = bad_map(directory, content)
    with closing(Reader(directory)) as reader:
        assert not reader.complete()
        assert not reader.complete()
        assert data.read_bytes() == content
        shutil.rmtree(directory)
        run(directory, "writer.replace([Placement(tenant='acme', home='us-east-1')], 1)")
        assert reader.complete()


def test_a_failed_open_is_not_tried_at_every_call(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_map(directory, bytes(64 * 1024))
    looked = []
    real = tables.is_whole

    def counted(fd: int) -> bool:
        looked.append(fd)
        return real(fd)

    monkeypatch.setattr(tables, "is_whole", counted)
    with closing(Reader(directory)) as reader:
        for _ in range(REOPEN_EVERY - 1):
            assert not reader.complete()
        assert len(looked) == 1
        reader.complete()
        assert len(looked) == 2


def test_a_writer_says_what_is_wrong_with_a_bad_file(directory: Path) -> None:
    bad_map(directory, b"x" * 64 * 1024)
    with pytest.raises(StoreError, match="cannot be opened"):
        Writer(directory)


def test_names_that_can_be_no_key_are_simply_not_there(directory: Path) -> None:
    write(directory, ACME)
    with closing(Reader(directory)) as reader:
        for name in ("", "x" * 10_000, "caf\u00e9", "\udc80", "ACME", "acme\0"):
            assert reader.placement(name) is None
            assert reader.host(name) is None


RUN = """
import sys
from pathlib import Path
from gateway.core.placement import Placement
from gateway.store.writer import Writer
writer = Writer(Path(sys.argv[1]))
{}
writer.close()
"""


def run(directory: Path, code: str) -> None:
    subprocess.run([sys.executable, "-c", RUN.format(code), str(directory)], check=True, timeout=30)


def test_a_reader_sees_what_another_process_commits(directory: Path) -> None:
    with closing(Reader(directory)) as reader:
        assert not reader.complete()
        run(directory, "writer.replace([Placement(tenant='acme', home='us-east-1', hosts=('a.com',))], 1)")
        assert reader.complete()
        first = reader.transaction()
        assert reader.host("a.com") == "acme"
        run(directory, "writer.replace([Placement(tenant='acme', home='eu-west-1')], 2)")
        assert reader.transaction() == first + 1
        found = reader.placement("acme")
        assert found is not None
        assert found.home == "eu-west-1"
        assert reader.host("a.com") is None
        assert reader.meta().written_ms == 2


def test_an_open_reader_follows_a_map_that_grows(directory: Path) -> None:
    with closing(Writer(directory, map_bytes=128 * 1024)) as writer:
        writer.replace([ACME], 1)
    with closing(Reader(directory)) as reader:
        assert reader.placement("acme") == ACME
        run(
            directory,
            "writer.replace([Placement(tenant=f't{i}', home='x', labels={'pad': 'y' * 900}) for i in range(3000)], 2)",
        )
        assert reader.placement("acme") is None
        assert reader.meta().records == 3000
        last = reader.placement("t2999")
        assert last is not None
        assert last.home == "x"


KILLED_READER = """
import os, signal, sys
from pathlib import Path
from gateway.store.tables import Tables
tables = Tables(Path(sys.argv[1]), readonly=True, map_size=0)
txn = tables.env.begin()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_reader_killed_in_a_lookup_is_cleared_at_the_next_open(directory: Path) -> None:
    write(directory, ACME)
    # Somebody keeps the environment open meanwhile: the last one to leave would reset the reader table.
    with closing(Reader(directory)) as reader:
        assert reader.complete()
        done = subprocess.run(
            [sys.executable, "-c", KILLED_READER, str(generation(directory))], check=False, timeout=30
        )
        assert done.returncode == -9
        run(directory, "assert writer.stale_readers == 1, writer.stale_readers")
        run(directory, "assert writer.stale_readers == 0, writer.stale_readers")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from gateway.core.placement import Placement
from gateway.store.writer import Writer
writer = Writer(Path(sys.argv[1]))
writer.replace([Placement(tenant='globex', home='eu-west-1')], 5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_loses_nothing_that_was_committed(directory: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(directory)], check=False, timeout=30)
    assert done.returncode == -9
    with closing(Writer(directory)) as writer:
        assert writer.complete()
        assert [p.tenant for p in writer.page("", 10)] == ["globex"]


def test_lookups_leave_no_descriptor_behind(directory: Path) -> None:
    write(directory, ACME)
    before = len(os.listdir("/proc/self/fd"))
    with closing(Reader(directory)) as reader:
        for _ in range(100):
            reader.placement("acme")
            reader.meta()
    assert len(os.listdir("/proc/self/fd")) == before


maps = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.sampled_from("xyz"), st.integers(0, 2)), max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(maps, min_size=1, max_size=6))
def test_any_sequence_of_maps_leaves_exactly_the_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, tuple[str, int]]]
) -> None:
    directory = tmp_path_factory.mktemp("map") / "map"
    with closing(Writer(directory)) as writer:
        held: dict[str, Placement] = {}
        for step in steps:
            wanted = {
                t: Placement(tenant=t, home=home, hosts=tuple(f"{t}{n}.com" for n in range(hosts)))
                for t, (home, hosts) in step.items()
            }
            before = writer.meta()
            changed = writer.replace(wanted.values(), 1)
            expected = {t for t in held.keys() | wanted.keys() if held.get(t) != wanted.get(t)}
            assert set(changed.tenants) == expected
            held = wanted
            assert writer.page("", 100) == [wanted[t] for t in sorted(wanted)]
            meta = writer.meta()
            assert meta.complete
            assert meta.records == len(wanted)
            assert int(meta.digest, 16) == digest_of(map(encode_placement, wanted.values()))
            assert (meta == before) == (before.complete and not expected)
            owners = {host: p.tenant for p in wanted.values() for host in p.hosts}
            for t in "abcdefgh":
                for n in range(3):
                    assert writer.host(f"{t}{n}.com") == owners.get(f"{t}{n}.com")


# --- generations


def rebuild(directory: Path, *placements: Placement, complete: bool = True) -> int:
    """What the check does: a new generation, with this content or empty, that counts from now on."""
    with generations.locked(directory):
        if not complete:
            return make(directory)
        wanted = Wanted.of(placements)
        return make(directory, content=Content(wanted.tenants.items(), Summary(len(placements), wanted.digest, 7)))


def test_reader_and_writer_follow_to_another_generation(directory: Path) -> None:
    write(directory, ACME)
    with closing(Reader(directory)) as reader:
        assert reader.placement("acme") == ACME
        assert not reader.follow()
        assert rebuild(directory, GLOBEX) == 2
        assert reader.placement("acme") == ACME, "until it is told to"
        assert reader.follow()
        assert (reader.generation, reader.placement("acme"), reader.placement("globex")) == (2, None, GLOBEX)
        assert reader.meta().written_ms == 7
    with closing(Writer(directory)) as writer:
        assert writer.generation == 2
        assert not writer.follow()
        rebuild(directory, INITECH)
        assert not writer.is_in_place()
        assert writer.follow()
        assert writer.is_in_place()
        assert (writer.generation, writer.placement("initech")) == (3, INITECH)
        assert writer.replace([ACME], 9).generation == 3


def test_a_reader_leaves_a_complete_map_for_a_complete_one_only(directory: Path) -> None:
    write(directory, ACME)
    with closing(Reader(directory)) as reader:
        assert reader.complete()
        rebuild(directory, complete=False)
        assert not reader.follow()
        assert (reader.generation, reader.placement("acme")) == (1, ACME)
        run(directory, "writer.replace([Placement(tenant='globex', home='x')], 1)")
        assert reader.follow()
        assert (reader.generation, reader.placement("acme")) == (2, None)


def test_a_map_made_anew_under_the_same_number_is_followed(directory: Path) -> None:
    write(directory, ACME)
    with closing(Reader(directory)) as reader:
        assert reader.placement("acme") == ACME
        shutil.rmtree(directory)
        assert not reader.in_place()
        run(directory, "writer.replace([Placement(tenant='globex', home='x')], 1)")
        assert reader.follow()
        assert (reader.generation, reader.placement("acme")) == (1, None)


@pytest.mark.parametrize("pages", [0, 1, 5])
def test_a_map_cut_short_under_its_reader_is_an_error_and_no_signal(directory: Path, pages: int) -> None:
    write(directory, *(Placement(tenant=f"t{n}", home="x") for n in range(500)))
    data = generation(directory) / "data.mdb"
    whole = data.read_bytes()
    with closing(Reader(directory)) as reader:
        assert reader.placement("t1") is not None
        os.truncate(data, pages * 4096)
        assert not reader.in_place()
        for call in (lambda: reader.placement("t400"), lambda: reader.host("h"), reader.meta, reader.transaction):
            with pytest.raises(StoreError, match="was cut from"):
                call()
        assert not reader.complete()
    data.write_bytes(whole)
    with closing(Writer(directory)) as writer:
        assert writer.is_in_place()
        os.truncate(data, pages * 4096)
        assert not writer.is_in_place()
        with pytest.raises(StoreError, match="was cut from"):
            writer.replace([ACME], 1)
    with closing(Reader(directory)) as reader:
        assert not reader.complete()
    with pytest.raises(StoreError, match="cut short"):
        Writer(directory)


def test_a_writer_whose_map_is_gone_makes_another(directory: Path) -> None:
    with closing(Writer(directory)) as writer:
        writer.replace([ACME], 1)
        shutil.rmtree(directory)
        assert writer.follow()
        assert not writer.complete()
        writer.replace([GLOBEX], 2)
    with closing(Reader(directory)) as reader:
        assert reader.placement("globex") == GLOBEX


def test_a_tenant_whose_key_was_scribbled_over_is_not_readable_instead_of_unknown(directory: Path) -> None:
    """Wherever the key falls in its page's order, the search for the true one ends beside it."""
    every = [Placement(tenant=f"tenant-{n:02}", home="us-east-1") for n in range(30)]
    for scribble_over in (b"\x00", b"t", b"\xff", b"tenant-2"):
        for victim in (0, 1, 14, 15, 28, 29):
            shutil.rmtree(directory, ignore_errors=True)
            write(directory, *every)
            data = generation(directory) / "data.mdb"
            key = every[victim].tenant.encode()
            scribbled = data.read_bytes().replace(key, scribble_over.ljust(len(key), b"0"))
            data.write_bytes(scribbled)
            with closing(Reader(directory)) as reader, pytest.raises(CorruptRecord):
                assert reader.placement(every[victim].tenant) is None
