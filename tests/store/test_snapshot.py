"""The durable copy: whole or not at all, and the one before it stays when it cannot be written."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from gateway.core.placement import Placement, Version
from gateway.store import generations, snapshot
from gateway.store.record import StoreError
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
    wanted, written_ms = snapshot.read(path)
    assert (len(wanted.tenants), f"{wanted.digest:016x}", written_ms) == (count, writer.meta().digest, 1234)
    assert len(wanted.hosts) == count
    assert snapshot.summary_of(path) == said
    before = writer.meta()
    assert writer.replace(wanted, 9).to_txn == before.transaction, "it differs in nothing"
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
            snapshot.read(path)
        with pytest.raises(StoreError):
            snapshot.summary_of(path)


@pytest.mark.parametrize("keep", [0, 1, 30, 1000, -1])
def test_a_part_of_one_is_none(writer: Writer, path: Path, keep: int) -> None:
    writer.replace(MANY[:50], 1)
    snapshot.write(path, writer)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError):
        snapshot.read(path)


def test_a_missing_one_is_an_error_of_the_store(path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        snapshot.read(path)


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
