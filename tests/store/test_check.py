"""The check of the map on disk: whatever was done to the file, it is found or harmless, and a good map takes over."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from gateway.core.placement import Placement, Version
from gateway.store import check, generations, record, snapshot
from gateway.store.changes import Change, SourceState
from gateway.store.check import Code, inspect, mend
from gateway.store.pages import LEAF, Damage, Pages
from gateway.store.reader import Reader
from gateway.store.record import StoreError
from gateway.store.writer import Writer

PAGE = 4096
MANY = [
    Placement(tenant=f"t{n:04}", home="us-east-1", hosts=(f"t{n}.shop.test",), labels={"note": "x" * (n % 7 * 30)})
    for n in range(800)
]
LONG = Placement(tenant="long", home="us-east-1", labels={f"l{n}": "y" * 90 for n in range(100)})
"""A record with pages of its own."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A `state_dir` with a map that was written to several times, so that it has free pages, and its snapshot."""
    with closing(Writer(tmp_path / "map")) as made:
        made.replace(MANY[:500], 1)
        made.replace(MANY, 2)
        made.replace(MANY[1:], 3)
        made.replace([*MANY, LONG], 4)
        assert snapshot.write(tmp_path / "map.snapshot", made) is not None
    return tmp_path


def data_of(state: Path) -> Path:
    directory = state / "map"
    return generations.path_of(directory, generations.current(directory)) / generations.DATA_FILE


def content(state: Path) -> list[Placement]:
    with closing(Reader(state / "map")) as reader:
        assert reader.complete()
        return reader.page("", 10_000)


EXPECTED = sorted([*MANY, LONG], key=lambda placement: placement.tenant)


def test_a_sound_map_is_left_alone(state: Path) -> None:
    before = data_of(state).read_bytes()
    for full in (False, True):
        outcome = mend(state, full)
        assert (outcome.code, outcome.text) == (Code.SOUND, "the map is sound: 801 records")
    assert data_of(state).read_bytes() == before
    assert content(state) == EXPECTED


def test_nothing_at_all_is_a_first_start(tmp_path: Path) -> None:
    assert mend(tmp_path).code is Code.SOUND
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_was_never_written_to_is_no_damage(tmp_path: Path) -> None:
    Writer(tmp_path / "map").close()
    assert mend(tmp_path).code is Code.SOUND
    assert generations.current(tmp_path / "map") == 1


def cut(pages: int) -> Callable[[Path], None]:
    return lambda data: os.truncate(data, pages * PAGE)


def delete(data: Path) -> None:
    data.unlink()


def delete_everything(data: Path) -> None:
    for path in (*data.parent.iterdir(), data.parent, data.parents[1] / generations.CURRENT):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def scribble_over_leaves(data: Path) -> None:
    """Random bytes in every page of records; meta pages and branches stay."""
    content = bytearray(data.read_bytes())
    for at in range(2 * PAGE, len(content), PAGE):
        if content[at + 10] & LEAF:
            content[at + 100 : at + 2000] = random.Random(at).randbytes(1900)
    data.write_bytes(content)


def zero_a_leaf(data: Path) -> None:
    content = bytearray(data.read_bytes())
    for page in range(2, len(content) // PAGE):
        content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    data.write_bytes(content)


@pytest.mark.parametrize("damage", [cut(0), cut(1), cut(2), cut(20), delete, delete_everything, zero_a_leaf])
def test_a_bad_map_is_rebuilt_from_the_snapshot_in_a_new_generation(
    state: Path, damage: Callable[[Path], None]
) -> None:
    damage(data_of(state))
    with closing(Reader(state / "map")) as reader:
        assert not reader.complete()  # and no SIGBUS
    outcome = mend(state)
    assert outcome.code is Code.REBUILT, outcome.text
    assert content(state) == EXPECTED
    assert mend(state, full=True).code is Code.SOUND
    with closing(Reader(state / "map")) as reader:
        assert reader.meta().written_ms == 4


@pytest.fixture
def small_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the map were too large to be walked whole at a start."""
    monkeypatch.setattr(check, "WHOLE_RECORDS_MAX", 100)
    monkeypatch.setattr(check, "LEAVES_MAX", 4)


@pytest.mark.usefixtures("small_walks")
def test_a_start_takes_a_large_map_for_sound_by_its_outline(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(state)
    home = b"\xa5t0404\xa4home\xa9us"
    assert home in data.read_bytes()
    data.write_bytes(data.read_bytes().replace(home, home[:-2] + b"US"))
    assert mend(state, start=True).code is Code.SOUND, "it is in none of the leaves that were looked at"
    with pytest.raises(Damage):
        inspect(data, full=False)
    assert mend(state, start=True, whole=True).code is Code.LATER
    generations.point(state / "map", 1)
    monkeypatch.setattr(record, "BOOT_ID_FILE", state / "another boot")
    with pytest.raises(Damage):
        inspect(data, full=False, outline=True)


@pytest.mark.usefixtures("small_walks")
def test_a_start_reads_of_a_large_map_what_its_bounds_say(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with data_of(state).open("rb") as file:
        trees = Pages(file.fileno()).databases()
    assert trees[b"tenants"].leaves > 4 * check.LEAVES_MAX
    reads = []
    read = Pages._page
    monkeypatch.setattr(Pages, "_page", lambda pages, number: reads.append(number) or read(pages, number))
    inspect(data_of(state), full=False, outline=True)
    few = 20  # free list, list of databases, summary
    assert len(reads) <= sum(tree.branches + check.LEAVES_MAX for tree in trees.values()) + few


@pytest.mark.usefixtures("small_walks")
@pytest.mark.parametrize(
    "damage", [cut(0), cut(1), cut(2), cut(20), delete, delete_everything, zero_a_leaf, scribble_over_leaves]
)
def test_a_large_map_that_is_bad_at_a_start_is_left_to_control_to_make_anew(
    state: Path, damage: Callable[[Path], None]
) -> None:
    damage(data_of(state))
    outcome = mend(state, start=True)
    assert outcome.code is Code.LATER, outcome.text
    assert generations.current(state / "map") == 0
    assert mend(state, start=True).code is Code.LATER
    with closing(Reader(state / "map")) as reader:
        assert not reader.complete()
    Writer(state / "map").close()  # control's: it makes an empty one
    assert mend(state, full=True).code is Code.REBUILT
    assert content(state) == EXPECTED


@pytest.mark.usefixtures("small_walks")
def test_scribbles_over_branches_are_found_at_a_start_or_harmless(state: Path) -> None:
    data = data_of(state)
    original = data.read_bytes()
    with data.open("rb") as file:
        root = Pages(file.fileno()).databases()[b"tenants"].root
    found = 0
    for at in range(0, 200, 7):
        scribbled = bytearray(original)
        scribbled[root * PAGE + at] ^= 0x55
        data.write_bytes(scribbled)
        try:
            inspect(data, full=False, outline=True)
        except Damage:
            found += 1
            continue
        with closing(Reader(state / "map")) as reader:  # and no signal
            for placement in EXPECTED:
                with contextlib.suppress(StoreError):
                    assert reader.placement(placement.tenant) in (placement, None)
    assert found > 10


def test_the_bad_one_is_kept_with_a_note_and_the_one_before_it_goes(state: Path) -> None:
    for _ in range(3):
        os.truncate(data_of(state), 3 * PAGE)
        assert mend(state).code is Code.REBUILT
    assert generations.all_of(state / "map") == [3, 4]
    bad = generations.path_of(state / "map", 3)
    assert "the file ends before page" in (bad / generations.BAD_FILE).read_text()
    assert (bad / generations.DATA_FILE).stat().st_size == 3 * PAGE


def test_a_generation_that_somebody_has_open_is_kept(state: Path) -> None:
    hold = "import sys; from pathlib import Path; from gateway.store.reader import Reader\n"
    hold += "reader = Reader(Path(sys.argv[1])); assert reader.complete(); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(state / "map")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        os.truncate(data_of(state), 3 * PAGE)
        assert mend(state).code is Code.REBUILT
        os.truncate(data_of(state), 3 * PAGE)
        assert mend(state).code is Code.REBUILT
        assert generations.all_of(state / "map") == [1, 2, 3]
    assert mend(state).code is Code.SOUND
    assert generations.all_of(state / "map") == [2, 3]


@pytest.mark.parametrize("damage", [cut(0), delete])
def test_without_a_sound_snapshot_it_is_empty_and_not_complete(state: Path, damage: Callable[[Path], None]) -> None:
    os.truncate(data_of(state), 3 * PAGE)
    damage(state / "map.snapshot")
    outcome = mend(state)
    assert outcome.code is Code.EMPTIED, outcome.text
    with closing(Reader(state / "map")) as reader:
        assert not reader.complete()
        assert reader.placement("t0001") is None
    with closing(Writer(state / "map")) as made:
        made.replace(MANY, 5)
    assert mend(state).code is Code.SOUND


def test_a_disk_that_is_full_leaves_no_map_that_anybody_could_map(state: Path) -> None:
    os.truncate(data_of(state), 3 * PAGE)
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
    code += "from gateway.store.check import main; sys.exit(main(['--state-dir', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, str(state)], capture_output=True, text=True, timeout=30)
    assert done.returncode == Code.FAILED, done.stderr
    assert "cannot be replaced" in done.stderr
    assert generations.current(state / "map") == 0
    assert generations.all_of(state / "map") == [1]
    assert mend(state).code is Code.REBUILT
    assert content(state) == EXPECTED


def test_another_boot_compares_the_digest(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was never written to disk may hold an older, sound record: only the digest tells."""
    with closing(lmdb.open(str(data_of(state).parent), max_dbs=8)) as env, env.begin(write=True) as txn:
        tenants = env.open_db(b"tenants", txn=txn)
        older = record.encode_placement(Placement(tenant="t0007", home="eu-west-1"))
        assert txn.put(b"t0007", record.seal(b"t0007", older), db=tenants)
    assert mend(state).code is Code.SOUND
    monkeypatch.setattr(record, "BOOT_ID_FILE", state / "another boot")
    outcome = mend(state)
    assert (outcome.code, "the digest differs" in outcome.text) == (Code.REBUILT, True)
    assert content(state) == EXPECTED


def test_scribbles_are_found_or_harmless(state: Path) -> None:
    """Random bytes at random places: whatever the check lets pass reads as it was, in a process that survives it."""
    data = data_of(state)
    original = data.read_bytes()
    rng = random.Random(20)
    found = 0
    for _ in range(150):
        scribbled = bytearray(original)
        at = rng.randrange(len(original))
        junk = rng.randbytes(rng.choice([1, 2, 8, 100, 5000]))
        scribbled[at : at + len(junk)] = junk[: len(original) - at]
        data.write_bytes(scribbled)
        try:
            inspect(data, full=True)
        except Damage:
            found += 1
            continue
        assert content(state) == EXPECTED
    assert found > 20, "most scribbles hit something"


def test_a_map_that_is_written_to_meanwhile_is_no_damage(state: Path) -> None:
    code = "import sys; from pathlib import Path; from gateway.core.placement import Placement\n"
    code += "from gateway.store.writer import Writer; w = Writer(Path(sys.argv[1])); print('on', flush=True); n = 0\n"
    code += "import select\nwhile not select.select([sys.stdin], [], [], 0.01)[0]:\n"
    code += "    n += 1; w.replace([Placement(tenant=f't{i}', home=f'r{n}') for i in range(300)], n)\nw.close()"
    command = [sys.executable, "-c", code, str(state / "map")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as changing:
        assert changing.stdout is not None
        assert changing.stdout.readline() == b"on\n"
        outcomes = [mend(state, full=True) for _ in range(30)]
    assert {outcome.code for outcome in outcomes} == {Code.SOUND}, outcomes
    assert mend(state).text == "the map is sound: 300 records"


class Overtaking:
    """A writer that commits after so many pages were read, as long as the check runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writer: Writer, every: int) -> None:
        self.reads = 0
        read = Pages._page

        def page(pages: Pages, number: int) -> bytes:
            self.reads += 1
            if self.reads % every == 0:
                placement = Placement(
                    tenant=f"t{self.reads % 400:04}", home=f"r{self.reads}", version=Version(self.reads)
                )
                writer.apply([Change(placement.tenant, placement)], SourceState("log", self.reads), 5, complete=True)
            return read(pages, number)

        monkeypatch.setattr(Pages, "_page", page)


@pytest.mark.usefixtures("small_walks")
@pytest.mark.parametrize("every", [10, 40, 200])
def test_a_large_map_that_never_stands_still_is_walked_once_and_in_pieces(
    state: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    data = data_of(state)
    home = b"\xa5t0700\xa4home\xa9us"
    with closing(Writer(state / "map")) as writer, monkeypatch.context() as patch:
        overtaking = Overtaking(patch, writer, every)
        summary = inspect(data, full=True)
        assert summary is not None
        assert summary.records == 801
        assert overtaking.reads < 5000
    data.write_bytes(data.read_bytes().replace(home, home[:-2] + b"US"))
    with closing(Writer(state / "map")) as writer:
        Overtaking(monkeypatch, writer, every)
        with pytest.raises(Damage, match="t0700"):
            inspect(data, full=True)


def test_pieces_are_the_whole(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for leaves in (1, 2, 7, 1000):
        monkeypatch.setattr(check, "PIECE_LEAVES", leaves)
        summary = inspect(data_of(state), full=True)
        assert summary is not None
        assert summary.records == 801


@pytest.fixture
def command(state: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "gateway.store.check", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=30)

    return run


def test_the_command_says_what_it_found(state: Path, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("--state-dir", str(state))
    assert (done.returncode, done.stdout, done.stderr) == (0, "the map is sound: 801 records\n", "")
    os.truncate(data_of(state), 0)
    done = command("--state-dir", str(state), "--full")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("the map was bad (the file ends within meta page 0): rebuilt from the snapshot, 801")
    assert command().returncode == 2


def test_what_it_says_of_itself_names_every_code() -> None:
    text = (check.__doc__ or "").partition("Exit codes:")[2]
    assert all(f"{code.value} " in text for code in Code)
