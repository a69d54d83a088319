"""The mapped counters: they outlive their writer, they are bounded, and a damaged file costs a count, not a start."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.bus.stats import (
    BUCKETS,
    HISTOGRAM_CELLS,
    OVERFLOW,
    SET_ASIDE,
    SUM_CELL,
    StatsFile,
    bucket_of,
    read_series,
)

GET = (("method", "GET"),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stats" / "worker-0.stats"


@pytest.fixture
def stats(path: Path) -> Iterator[StatsFile]:
    with closing(StatsFile(path)) as opened:
        yield opened


def test_a_new_file_is_private(path: Path, stats: StatsFile) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_blocks * 512 >= path.stat().st_size  # no hole: a store can never meet a full disk


def test_counting_is_one_store_and_others_see_it(path: Path, stats: StatsFile) -> None:
    index = stats.series("requests", GET)
    stats.values[index] += 1
    stats.values[index] += 2
    assert read_series([path])["requests", GET] == 3
    assert stats.series("requests", GET) == index
    assert stats.series("requests", (("method", "POST"),)) != index


def test_cells_are_aligned_to_eight_bytes(stats: StatsFile) -> None:
    assert stats.values.itemsize == 8
    assert stats.values.nbytes % 8 == 0
    stats.values[stats.series("large")] = 2**64 - 1
    assert read_series([stats.path])["large", ()] == 2**64 - 1


def test_numbers_go_on_after_a_reopen(path: Path) -> None:
    for total in (5, 10, 15):
        with closing(StatsFile(path)) as stats:
            stats.values[stats.series("a")] += 5
            stats.observe(stats.histogram("b"), 0.003)
            assert read_series([path])["a", ()] == total
    assert read_series([path])["b_sum", ()] == 9000


def test_files_are_summed(tmp_path: Path) -> None:
    paths = [tmp_path / f"worker-{slot}.stats" for slot in range(3)]
    for number, path in enumerate(paths):
        with closing(StatsFile(path)) as stats:
            stats.values[stats.series(f"only-{number}")] += 1
            stats.values[stats.series("shared")] += 10
    series = read_series([*paths, tmp_path / "missing.stats"])
    assert series["shared", ()] == 30
    assert [series[f"only-{n}", ()] for n in range(3)] == [1, 1, 1]


def test_what_only_a_live_process_has_starts_again(path: Path) -> None:
    key = ("connections", (("worker", "0"),))
    with closing(StatsFile(path)) as stats:
        stats.values[stats.series(*key, reset=True)] += 7
        assert read_series([path])[key] == 7
    assert key not in read_series([path])  # nobody writes: nobody has connections
    with closing(StatsFile(path)) as stats:
        assert read_series([path])[key] == 0
        assert stats.values[stats.series(*key, reset=True)] == 0


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.0005, 0), (0.001, 0), (0.0011, 1), (1.0, BUCKETS.index(1.0)), (30.0, 13), (31.0, 14), (1e9, 14)],
)
def test_buckets_hold_their_upper_bound(seconds: float, bucket: int) -> None:
    assert bucket_of(seconds) == bucket


@given(st.floats(0, 100))
def test_a_duration_is_in_exactly_the_bucket_that_bounds_it(seconds: float) -> None:
    bounds = (*BUCKETS, float("inf"))
    at = bucket_of(seconds)
    assert seconds <= bounds[at]
    assert at == 0 or seconds > bounds[at - 1]


def test_a_histogram_is_read_bucket_by_bucket(path: Path, stats: StatsFile) -> None:
    base = stats.histogram("seconds", GET)
    for seconds in (0.0005, 0.002, 0.002, 60.0):
        stats.observe(base, seconds)
    series = read_series([path])
    assert series["seconds_bucket", (*GET, ("le", "0.001"))] == 1
    assert series["seconds_bucket", (*GET, ("le", "0.0025"))] == 2
    assert series["seconds_bucket", (*GET, ("le", "+Inf"))] == 1
    assert series["seconds_sum", GET] == 60_004_500
    assert sum(n for (name, _), n in series.items() if name == "seconds_bucket") == 4
    assert stats.values[base + SUM_CELL] == 60_004_500


def test_a_full_file_refuses_counts_and_keeps_what_it_has(path: Path) -> None:
    with closing(StatsFile(path, capacity=40)) as stats:
        given_out = [stats.series(f"s{n}") for n in range(100)]
        for index in given_out:
            stats.values[index] += 1
        histogram = stats.histogram("h")
        stats.observe(histogram, 1.0)
        series = read_series([path])
        kept = {name for (name, _), value in series.items() if name.startswith("s") and value == 1}
        assert 0 < len(kept) < 100
        assert kept == {f"s{n}" for n in range(len(kept))}  # first come, first served
        assert ("h_sum", ()) not in series
        assert series[OVERFLOW, ()] > 0
        assert histogram + HISTOGRAM_CELLS <= given_out[0]  # what was refused writes below the first series


def test_an_enormous_label_is_refused_and_counted(path: Path, stats: StatsFile) -> None:
    stats.values[stats.series("a", (("tenant", "x" * 5000),))] += 1
    series = read_series([path])
    assert series[OVERFLOW, ()] == 1
    assert not [key for key in series if key[0] == "a"]


def test_the_directory_is_bounded_too(path: Path) -> None:
    with closing(StatsFile(path, capacity=100)) as stats:
        for n in range(100):
            stats.series("n", (("label", f"{n:0>800}"),))
        assert read_series([path])[OVERFLOW, ()] > 90
    with closing(StatsFile(path)) as stats:
        assert stats.capacity == 100
        assert len(read_series([path])) > 2


KILLED = """
import os, signal, sys
from pathlib import Path
from gateway.bus.stats import StatsFile
stats = StatsFile(Path(sys.argv[1]))
index = stats.series("requests")
base = stats.histogram("seconds")
gauge = stats.series("connections", reset=True)
for n in range(1000):
    stats.values[index] += 1
    stats.values[gauge] += 1
    stats.observe(base, 0.001)
print(stats.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_loses_no_count(path: Path) -> None:
    for total in (1000, 2000, 3000):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path)], check=False, timeout=30, stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == -signal.SIGKILL
        assert done.stdout.strip() == str(path)
        series = read_series([path])
        assert series["requests", ()] == total
        assert series["seconds_sum", ()] == total * 1000
        assert ("connections", ()) not in series
        assert series[SET_ASIDE, ()] == 0


COUNTS_FOR_EVER = """
import sys
from pathlib import Path
from gateway.bus.stats import StatsFile
stats = StatsFile(Path(sys.argv[1]))
one, two = stats.series("one"), stats.series("two")
print("ready", flush=True)
n = 0
while True:
    stats.values[one] += 1
    stats.values[two] += 1
    n += 1
    if n % 50 == 0:
        stats.series("late", (("n", str(n)),))
"""


def test_killed_anywhere_the_file_is_good_and_counters_never_fall(path: Path) -> None:
    seen = 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", COUNTS_FOR_EVER, str(path)], stdout=subprocess.PIPE)
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            for _ in range(20):
                now = read_series([path])["one", ()]
                assert now >= seen
                seen = now
            child.kill()
        series = read_series([path])
        assert series["one", ()] - series["two", ()] in range(6)  # at most the one store each kill fell between
        assert series["one", ()] >= seen
        assert series[SET_ASIDE, ()] == 0


def test_a_process_that_comes_while_another_writes_gets_a_sibling(path: Path) -> None:
    with closing(StatsFile(path)) as old, closing(StatsFile(path)) as new:
        assert (old.path, new.path) == (path, path.with_name("worker-0.1.stats"))
        old.values[old.series("a")] += 1
        new.values[new.series("a")] += 2
        assert read_series(path.parent.glob("*.stats"))["a", ()] == 3
    with closing(StatsFile(path)) as next_one:
        assert next_one.path == path


def test_there_is_an_end_to_siblings(tmp_path: Path) -> None:
    path = tmp_path / "a.stats"
    held = [StatsFile(path) for _ in range(8)]
    with pytest.raises(OSError, match="hold this stats file"):
        StatsFile(path)
    for stats in held:
        stats.close()


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    directory = content.index(b"requests")
    match how:
        case "empty":
            content.clear()
        case "short":
            del content[1000:]
        case "truncated":
            del content[-1:]
        case "longer":
            content += bytes(4096)
        case "magic":
            content[0] ^= 1
        case "layout":
            content[8] ^= 1
        case "entry":
            content[directory] ^= 1
        case "used":
            content[64:72] = (2**63).to_bytes(8, sys.byteorder)
        case "used-into-nothing":
            content[64] += 3
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["empty", "short", "truncated", "longer", "magic", "layout", "entry", "used", "used-into-nothing"]
)
def test_a_damaged_file_is_set_aside_and_counted(path: Path, how: str) -> None:
    with closing(StatsFile(path)) as stats:
        stats.values[stats.series("requests")] += 5
    damage(path, how)
    damaged = path.read_bytes()
    assert ("requests", ()) not in read_series([path])
    with closing(StatsFile(path)) as stats:
        assert stats.path == path
        assert path.with_name("worker-0.stats.bad").read_bytes() == damaged
        stats.values[stats.series("requests")] += 1
        series = read_series([path])
        assert series["requests", ()] == 1
        assert series[SET_ASIDE, ()] == 1
    with closing(StatsFile(path)):
        assert read_series([path])[SET_ASIDE, ()] == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_scribble_keeps_a_process_from_starting(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("stats") / "a.stats"
    with closing(StatsFile(path, capacity=32)) as stats:
        stats.series("a", GET)
    content = bytearray(path.read_bytes())
    interesting = [*range(80), *range(4096 + 32 * 8, 4096 + 32 * 8 + 60)]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(interesting))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 4096, 10]))])
    read_series([path])
    with closing(StatsFile(path, capacity=32)) as stats:
        stats.values[stats.series("a", GET)] += 1
        assert read_series([path])["a", GET] >= 1


def test_a_capacity_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs more than"):
        StatsFile(tmp_path / "a.stats", capacity=5)


def test_scraping_leaves_no_descriptor_behind(path: Path, stats: StatsFile) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_series([path])
    assert len(os.listdir("/proc/self/fd")) == before
