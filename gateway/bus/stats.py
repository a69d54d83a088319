"""Counters in a mapped file: one file per process, one writer each, summed by control when it is scraped.

A counter lives in the page cache, not in the process: a worker killed with -9 loses none, and its successor goes on
from the same numbers. The hot path is one store into a memoryview, `values[i] += 1`: no call, no lock, no syscall.
Cells are unsigned 64-bit, aligned to 8 bytes, so whoever maps the file too sees whole values only.

Layout, native byte order: a header (one page), `capacity` cells, then the directory, which only grows. An entry is
length, CRC-32 and MessagePack; it counts once `used` in the header covers it, and `used` is written last. So a writer
that dies between any two instructions leaves a file that its successor can read.

A file must never be truncated while anybody maps it: a bad one is renamed and a new one made.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

Labels = tuple[tuple[str, str], ...]
Series = dict[tuple[str, Labels], int]

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: from a local answer to just above the longest default timeout (20 s over a hop)."""

SUM_CELL: Final = len(BUCKETS) + 1
"""Where a histogram's sum in microseconds stands, counted from its base."""

HISTOGRAM_CELLS: Final = len(BUCKETS) + 2

bucket_of: Final[Callable[[float], int]] = partial(bisect_left, BUCKETS)
"""The bucket of a duration in seconds: the first whose bound is not below it; `len(BUCKETS)` is +Inf."""

OVERFLOW: Final = "landbridge_stats_overflow_total"
"""Counts series that were refused because the file was full."""

SET_ASIDE: Final = "landbridge_stats_set_aside_total"
"""Counts files that could not be read and were put beside their successor."""

CAPACITY: Final = 8192
"""Cells: 200 tenants, 20 regions and 50 clusters with all their outcomes and histograms take a quarter."""

DIRECTORY_BYTES_PER_CELL: Final = 32
"""A histogram's entry is shared by 16 cells and a counter's takes about 100 bytes: 32 is a balanced mix."""

ENTRY_BYTES_MAX: Final = 1024
"""A longer name and labels are a mistake, and would let one series use up the directory."""

SIBLINGS_MAX: Final = 8
"""How many processes may want the same file at once (one draining, one starting) before something is badly wrong."""

_MAGIC: Final = b"LBSTATS1"
_HEADER: Final = struct.Struct("=8sIIQQ")  # magic, CRC-32 of the bucket bounds, 0, capacity, directory bytes
_USED_OFFSET: Final = 64  # the directory's used bytes; apart from the header proper, which never changes
_CELLS_OFFSET: Final = 4096
_ENTRY: Final = struct.Struct("=II")  # length and CRC-32 of the MessagePack that follows
_LAYOUT: Final = zlib.crc32(repr(BUCKETS).encode())
_FLOCK: Final = struct.Struct("hhqqi")  # struct flock: l_type, l_whence, l_start, l_len, l_pid

_OVERFLOW_CELL: Final = 0
_SET_ASIDE_CELL: Final = 1
_DUMP_BASE: Final = 2  # cells that refused series write to: nobody reads them
_RESERVED_CELLS: Final = _DUMP_BASE + HISTOGRAM_CELLS


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """A registered series. `cells` is 1, or HISTOGRAM_CELLS; `reset` marks what only a live process has."""

    name: str
    labels: Labels
    index: int
    cells: int
    reset: bool


class _Damaged(Exception):
    """The file is not one of ours, is of another layout, or is torn. Never leaves this module."""


class _Layout(NamedTuple):
    capacity: int
    directory_bytes: int

    @property
    def directory_offset(self) -> int:
        return _CELLS_OFFSET + self.capacity * 8

    @property
    def size(self) -> int:
        return self.directory_offset + self.directory_bytes


class StatsFile:
    """The writer's side. One process, one thread. `values[index] += 1` counts.

    Opens `path` and continues its numbers, or makes it (mode 0600; its folder 0700). A damaged file is set aside as
    `<path>.bad`, counted, and never fatal. When another live process writes to `path` (a predecessor that drains), a
    sibling `<stem>.1<suffix>` is used, so that no two processes ever store into one cell; `.path` says which.
    OSError only when the folder cannot be written.
    """

    def __init__(self, path: Path, capacity: int = CAPACITY) -> None:
        if capacity <= _RESERVED_CELLS:
            raise ValueError(f"a stats file needs more than {_RESERVED_CELLS} cells, got {capacity}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self._fd, set_aside = _open_for_writing(path, capacity)
        self._map = mmap.mmap(self._fd, 0)
        layout = _layout(self._map)
        self._directory_offset = layout.directory_offset
        self._directory_bytes = layout.directory_bytes
        self.capacity = layout.capacity
        self._bytes = memoryview(self._map)
        self.values = self._bytes[_CELLS_OFFSET : layout.directory_offset].cast("Q")
        self._used = self._bytes[_USED_OFFSET : _USED_OFFSET + 8].cast("Q")
        self._index: dict[tuple[str, Labels], int] = {}
        self._next = _RESERVED_CELLS
        for entry in _entries(self._map, layout):
            self._index[entry.name, entry.labels] = entry.index
            self._next = max(self._next, entry.index + entry.cells)
            if entry.reset:
                self.values[entry.index] = 0
        self.values[_SET_ASIDE_CELL] += set_aside

    def series(self, name: str, labels: Labels = (), *, reset: bool = False) -> int:
        """The index of this series' cell, registered if new. With `reset` it starts at 0 in every new process.

        When the file is full: the index of a cell that nobody reads, and the refusal is counted.
        """
        return self._register(name, labels, 1, reset)

    def histogram(self, name: str, labels: Labels = ()) -> int:
        """The first of HISTOGRAM_CELLS cells: one per bucket (not cumulative), +Inf, the sum in microseconds."""
        return self._register(name, labels, HISTOGRAM_CELLS, False)

    def known(self, name: str) -> list[tuple[Labels, int]]:
        """Labels and index of every series of this name that the file holds already, a predecessor's included."""
        return [(labels, index) for (found, labels), index in self._index.items() if found == name]

    def observe(self, base: int, seconds: float) -> None:
        """Count a duration in the histogram at `base`."""
        values = self.values
        values[base + bucket_of(seconds)] += 1
        values[base + SUM_CELL] += int(seconds * 1e6)

    def close(self) -> None:
        """Let go of the file; its numbers stay. Other memoryviews of `values` must be gone."""
        self.values.release()
        self._used.release()
        self._bytes.release()
        self._map.close()
        os.close(self._fd)

    def _register(self, name: str, labels: Labels, cells: int, reset: bool) -> int:
        index = self._index.get((name, labels))
        if index is not None:
            return index
        index = self._next
        payload = msgspec.msgpack.encode(_Entry(name, labels, index, cells, reset))
        used = self._used[0]
        size = _ENTRY.size + len(payload)
        if len(payload) > ENTRY_BYTES_MAX or index + cells > self.capacity or used + size > self._directory_bytes:
            self.values[_OVERFLOW_CELL] += 1
            return _DUMP_BASE
        start = self._directory_offset + used
        self._map[start : start + size] = _ENTRY.pack(len(payload), zlib.crc32(payload)) + payload
        self._used[0] = used + size  # last: from here on the entry counts
        self._index[name, labels] = index
        self._next = index + cells
        return index


def read_series(paths: Iterable[Path]) -> Series:
    """Sum all series over these files; for control, at each scrape. Files that are gone or damaged are left out.

    A histogram comes as one `<name>_bucket` per bound with a label `le` (counts of that bucket alone, not cumulative)
    and `<name>_sum` in microseconds. What only a live process has (`reset`) is left out once its process is dead.
    """
    total: Series = {}
    for path in paths:
        with suppress(OSError, _Damaged):
            _add_file(path, total)
    return total


def _add_file(path: Path, total: Series) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < _CELLS_OFFSET:
            raise _Damaged("too short")
        is_live = _is_locked(fd)
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
            layout = _layout(mapped)
            entries = list(_entries(mapped, layout))  # all or nothing: half a damaged file would make sums jump
            with memoryview(mapped) as raw, raw[_CELLS_OFFSET : layout.directory_offset].cast("Q") as values:
                _add(total, OVERFLOW, (), values[_OVERFLOW_CELL])
                _add(total, SET_ASIDE, (), values[_SET_ASIDE_CELL])
                for entry in entries:
                    if entry.cells == HISTOGRAM_CELLS:
                        _add_histogram(total, entry, values)
                    elif is_live or not entry.reset:
                        _add(total, entry.name, entry.labels, values[entry.index])
    finally:
        os.close(fd)


def _add_histogram(total: Series, entry: _Entry, values: memoryview[int]) -> None:
    bounds = (*map(str, BUCKETS), "+Inf")
    for offset, bound in enumerate(bounds):
        _add(total, f"{entry.name}_bucket", (*entry.labels, ("le", bound)), values[entry.index + offset])
    _add(total, f"{entry.name}_sum", entry.labels, values[entry.index + SUM_CELL])


def _add(total: Series, name: str, labels: Labels, value: int) -> None:
    key = (name, labels)
    total[key] = total.get(key, 0) + value


def _layout(mapped: mmap.mmap) -> _Layout:
    """Check header and size. Raises _Damaged."""
    magic, crc, zero, capacity, directory_bytes = _HEADER.unpack_from(mapped, 0)
    layout = _Layout(capacity, directory_bytes)
    if magic != _MAGIC or crc != _LAYOUT or zero != 0 or capacity <= _RESERVED_CELLS or layout.size != len(mapped):
        raise _Damaged("not a stats file of this layout")
    return layout


def _entries(mapped: mmap.mmap, layout: _Layout) -> Iterator[_Entry]:
    """Walk the directory. Raises _Damaged at the first entry that is not whole or points outside the cells."""
    (used,) = struct.unpack_from("=Q", mapped, _USED_OFFSET)
    if used > layout.directory_bytes:
        raise _Damaged("directory longer than its room")
    at = layout.directory_offset
    end = at + used
    while at < end:
        if at + _ENTRY.size > end:
            raise _Damaged("torn entry")
        length, crc = _ENTRY.unpack_from(mapped, at)
        at += _ENTRY.size
        payload = mapped[at : at + length]
        if at + length > end or zlib.crc32(payload) != crc:
            raise _Damaged("torn entry")
        at += length
        try:
            entry = msgspec.msgpack.decode(payload, type=_Entry)
        except msgspec.MsgspecError as error:
            raise _Damaged(str(error)) from error
        if (
            entry.cells not in (1, HISTOGRAM_CELLS)
            or not _RESERVED_CELLS <= entry.index <= layout.capacity - entry.cells
        ):
            raise _Damaged("entry outside the cells")
        yield entry


def _open_for_writing(path: Path, capacity: int) -> tuple[Path, int, int]:
    """(path used, locked descriptor of a good file, how many files were set aside)."""
    set_aside = 0
    for number in range(SIBLINGS_MAX):
        candidate = path if number == 0 else path.with_name(f"{path.stem}.{number}{path.suffix}")
        while True:
            _make_unless_there(candidate, capacity)
            fd = os.open(candidate, os.O_RDWR | os.O_CLOEXEC)
            if not _lock(fd):
                os.close(fd)
                break
            if _is_good(fd):
                return candidate, fd, set_aside
            os.close(fd)
            candidate.replace(candidate.with_name(candidate.name + ".bad"))
            set_aside += 1
            if set_aside > SIBLINGS_MAX:
                raise OSError(f"{candidate}: a file that was just made cannot be read back")
    raise OSError(f"{path}: {SIBLINGS_MAX} other processes hold this stats file and its siblings")


def _make_unless_there(path: Path, capacity: int) -> None:
    """Write an empty file under another name and link it into place: nobody ever sees half of one."""
    if path.exists():
        return
    layout = _Layout(capacity, capacity * DIRECTORY_BYTES_PER_CELL)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, layout.size)  # a hole would be a SIGBUS at the first store on a full disk
        os.pwrite(fd, _HEADER.pack(_MAGIC, _LAYOUT, 0, layout.capacity, layout.directory_bytes), 0)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.close(fd)
        temporary.unlink()


def _is_good(fd: int) -> bool:
    if os.fstat(fd).st_size < _CELLS_OFFSET:
        return False
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
        try:
            for _ in _entries(mapped, _layout(mapped)):
                pass
        except _Damaged:
            return False
    return True


def _lock(fd: int) -> bool:
    """Claim the file for this open description: gone with the process, however it ends; readers only look at it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(fd: int) -> bool:
    """Whether a live process writes to the file. Only looks: taking the lock would get in a new worker's way."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
