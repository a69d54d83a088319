"""The durable copy: whole or not at all, and the one before it stays when it cannot be written."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import lmdb
import msgspec
import pytest

from gateway.core.placement import Placement, State, Version
from gateway.store import copying, generations, making, snapshot
from gateway.store.changes import Change, SourceState
from gateway.store.claims import Contested
from gateway.store.making import make
from gateway.store.record import StoreError, Summary, decode_placement, digest_of, payload_in
from gateway.store.writer import Writer

MANY = [
    Placement(tenant=f"t{n:04}", home="us-east-1", hosts=(f"t{n}.shop.test",), version=Version(n, 0, ""))
    for n in range(2500)
]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with closing(Writer(tmp_path / "map")) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map.snapshot"


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_what_is_read_is_what_was_written(writer: Writer, path: Path, count: int) -> None:
    writer.replace(MANY[:count], 1234)
    said = snapshot.write(path, writer)
    assert said is not None
    assert (said.records, f"{said.digest:016x}", said.written_ms) == (count, writer.meta().digest, 1234)
    assert snapshot.summary_of(path) == said
    assert [(key, decode_placement(key, value)) for key, value in snapshot.records(path)] == [
        (placement.tenant.encode(), placement) for placement in MANY[:count]
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["map", "map.snapshot"]


def test_a_map_that_is_not_complete_has_none(writer: Writer, path: Path) -> None:
    assert snapshot.write(path, writer) is None
    assert not path.exists()


def test_every_bit_counts(writer: Writer, path: Path) -> None:
    writer.replace(MANY[:50], 1)
    snapshot.write(path, writer)
    good = path.read_bytes()
    rng = random.Random(1)
    for at in [0, 30, len(good) - 1, *rng.choices(range(len(good)), k=60)]:
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(StoreError):
            snapshot.summary_of(path)


@pytest.mark.parametrize("keep", [0, 1, 30, 1000, -1])
def test_a_part_of_one_is_none(writer: Writer, path: Path, keep: int) -> None:
    writer.replace(MANY[:50], 1)
    snapshot.write(path, writer)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError):
        snapshot.summary_of(path)


@pytest.mark.parametrize("look", [snapshot.summary_of, lambda path: list(snapshot.records(path))])
def test_a_missing_one_is_an_error_of_the_store(path: Path, look: Callable[[Path], object]) -> None:
    with pytest.raises(StoreError, match="No such file"):
        look(path)


@pytest.mark.parametrize("digest", [0, 1 << 56, 1 << 60, 0x0100_0000_0000_0001, (1 << 64) - 1])
def test_a_number_that_looks_like_the_end_mark_is_a_number(path: Path, digest: int) -> None:
    summary = Summary(0, digest, 0)
    said = snapshot.HEAD + snapshot.END + msgspec.msgpack.encode(summary)
    path.write_bytes(said + hashlib.blake2b(said, digest_size=snapshot.HASH_BYTES).digest())
    assert snapshot.summary_of(path) == summary


def read_back(path: Path, directory: Path) -> Writer:
    """A map that is made of the snapshot."""
    with generations.locked(directory):
        make(directory, content=snapshot.content_of(path))
    return Writer(directory)


def test_contested_hosts_are_who_they_were(writer: Writer, path: Path, tmp_path: Path) -> None:
    made = [
        Placement(tenant=tenant, home="us-east-1", hosts=("x.com",), state=state, version=Version(0, hlc, "r"))
        for tenant, hlc, state in (
            ("a", 3, State.ACTIVE),
            ("b", 2, State.ACTIVE),
            ("c", 1, State.DELETED),
            ("d", 2, State.ACTIVE),
        )
    ]
    writer.apply([Change(p.tenant, p) for p in made], SourceState("log", 1), 5, complete=True)
    snapshot.write(path, writer)
    with closing(read_back(path, tmp_path / "again")) as again:
        assert again.claimed_twice() == writer.claimed_twice() == [Contested("x.com", "b", ("d", "a"))]
        assert again.host("x.com") == "b"
        assert again.page("", 9) == writer.page("", 9)
        assert (again.source(), again.arrived("a")) == (None, None), "it is to be compared whole"
        assert (again.meta().digest, again.meta().written_ms, again.complete()) == (writer.meta().digest, 5, True)


def test_a_large_one_is_read_back_in_several_transactions(
    writer: Writer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "TRANSACTION", 700)
    writer.replace(MANY, 1)
    snapshot.write(path, writer)
    with closing(read_back(path, tmp_path / "again")) as again:
        assert again.page("", 10_000) == MANY
        assert all(again.host(host) == p.tenant for p in MANY for host in p.hosts)


class Changing:
    """A writer that takes in a change after each slice that is read of it."""

    def __init__(self, writer: Writer, change: Callable[[Writer, int], object]) -> None:
        self._writer = writer
        self._change = change
        self.slices = 0
        self.copying = writer.copying

    def tenant_slice(self, after: bytes, limit: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        found = self._writer.tenant_slice(after, limit)
        self._change(self._writer, self.slices)
        self.slices += 1
        return found


def test_a_map_that_changes_all_the_time_is_copied_and_held_against_its_digest(
    writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the copy, before it and at its edge: records that change, come and go."""
    monkeypatch.setattr(snapshot, "SLICE", 100)
    writer.replace(MANY, 1)
    rng = random.Random(3)

    def change(writer: Writer, number: int) -> None:
        def one(n: int) -> Change:
            tenant = rng.choice([f"t{n:04}", f"t{n:04}-new"])
            version = Version(10_000 + number, 0, "")
            return Change(tenant, rng.choice([None, Placement(tenant=tenant, home="eu-west-1", version=version)]))

        edge = min(2400, number * 100)
        changes = [one(n) for n in (*rng.sample(range(2600), 30), *range(edge + 95, edge + 105))]
        writer.apply(changes, SourceState("log", number), 2, complete=True)

    changing = Changing(writer, change)
    said = snapshot.write(path, cast(Writer, changing))
    assert said is not None, "at the first try"
    assert changing.slices < 40
    assert [key for key, _ in snapshot.records(path)] == sorted({key for key, _ in snapshot.records(path)})
    assert said.records == len(list(snapshot.records(path)))
    assert said.digest == digest_of(payload_in(value) for _, value in snapshot.records(path))


def test_a_change_that_was_not_committed_is_not_counted(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SLICE", 10)
    with closing(Writer(tmp_path / "map", map_bytes=256 * 1024)) as writer:
        writer.replace(MANY[:100], 1)

        def grow(writer: Writer, number: int) -> None:
            placements = [msgspec.structs.replace(p, labels={"pad": "x" * 900}) for p in MANY[1000:2000]]
            if number == 3:
                writer.apply([Change(p.tenant, p) for p in placements], SourceState("log", number), 2, complete=True)

        said = snapshot.write(path, cast(Writer, Changing(writer, grow)))
        assert said is not None
        assert said.records == 1100


def test_a_map_that_is_replaced_meanwhile_is_copied_from_the_start(writer: Writer, path: Path) -> None:
    writer.replace(MANY[:10], 1)

    def replace(writer: Writer, number: int) -> None:
        if number == 0:
            writer.replace(MANY[5:20], 2)

    said = snapshot.write(path, cast(Writer, Changing(writer, replace)))
    assert said is not None
    assert (said.records, said.written_ms) == (15, 2)
    assert snapshot.write(path, cast(Writer, Changing(writer, lambda w, n: w.replace(MANY[n:], n)))) is None
    assert snapshot.summary_of(path) == said


def test_a_copy_that_stands_still_is_given_up(writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "NOTED_MAX", 5)
    writer.replace(MANY[:10], 1)
    changes = [Change(p.tenant, p) for p in MANY[10:30]]
    late = Changing(writer, lambda w, n: w.apply(changes[n * 6 : n * 6 + 6], SourceState("log", n), 2, complete=True))
    said = snapshot.write(path, cast(Writer, late))
    assert said is None or said.records > 10


def test_a_damaged_map_is_not_copied(tmp_path: Path, path: Path) -> None:
    with closing(Writer(tmp_path / "map")) as writer:
        writer.replace(MANY[:50], 1)
        snapshot.write(path, writer)
    good = path.read_bytes()
    directory = generations.path_of(tmp_path / "map", 1)
    with closing(lmdb.open(str(directory), max_dbs=8)) as env, env.begin(write=True) as txn:
        assert txn.put(b"t0007", b"scribbled", db=env.open_db(b"tenants", txn=txn))
    with closing(Writer(tmp_path / "map")) as writer, pytest.raises(StoreError, match="t0007"):
        snapshot.write(path, writer)
    assert path.read_bytes() == good
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


FULL_DISK = """
import resource, sys
from pathlib import Path
from gateway.store import snapshot
from gateway.store.writer import Writer
writer = Writer(Path(sys.argv[1]) / "map")
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    snapshot.write(Path(sys.argv[1]) / "map.snapshot", writer)
except OSError as error:
    print(type(error).__name__)
"""


def test_a_full_disk_leaves_the_one_before_it(tmp_path: Path, path: Path) -> None:
    with closing(Writer(tmp_path / "map")) as writer:
        writer.replace(MANY[:50], 1)
        snapshot.write(path, writer)
        writer.replace(MANY, 2)
    good = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("OSError\n", "")
    assert path.read_bytes() == good
    assert sorted(os.listdir(tmp_path)) == ["map", "map.snapshot"]
