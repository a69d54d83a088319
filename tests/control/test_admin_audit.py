"""The audit log: whole lines, private files, a bound."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.control.admin_audit import FILES_MAX, AuditLog, Entry

ENTRY = Entry(
    time="2026-01-02T03:04:05.678Z",
    actor="alice",
    role="operator",
    address="10.0.0.9",
    method="POST",
    path="/api/v1/workers/replace",
    reason='new "filter" \u2028',
    outcome="202 Accepted",
)
LINE_BYTES = len(msgspec.json.encode(ENTRY)) + 1


@pytest.fixture
def log(tmp_path: Path) -> Any:
    made = AuditLog(tmp_path, file_bytes_max=3 * LINE_BYTES)
    yield made
    made.close()


def reasons(path: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in path.read_text().split("\n")[:-1]]


def write(log: AuditLog, *numbers: int) -> None:
    for number in numbers:
        log.write(msgspec.structs.replace(ENTRY, reason=f"{number:0{len(ENTRY.reason or '') + 3}}"))


def test_a_line_is_one_object_with_all_keys_and_the_file_is_private(log: AuditLog) -> None:
    umask = os.umask(0)
    try:
        log.write(ENTRY)
    finally:
        os.umask(umask)
    [line] = log.path.read_bytes().splitlines()
    assert json.loads(line) == msgspec.to_builtins(ENTRY)
    assert os.stat(log.path).st_mode & 0o777 == 0o600


def test_it_is_bounded(log: AuditLog) -> None:
    write(log, *range(40))
    files = sorted(log.path.parent.iterdir())
    assert [file.name for file in files] == ["audit.log", *(f"audit.log.{n}" for n in range(1, FILES_MAX))]
    kept = [int(reason) for file in [*files[:0:-1], files[0]] for reason in reasons(file)]
    assert kept == list(range(40 - len(kept), 40)), "the newest, in order, without a hole"
    assert all(file.stat().st_size <= 3 * LINE_BYTES and file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_next(log: AuditLog) -> None:
    log.path.write_bytes(b'{"time": "2026-')
    write(log, 1)
    cut, line = log.path.read_bytes().splitlines()
    assert cut == b'{"time": "2026-'
    assert int(json.loads(line)["reason"]) == 1


def test_a_file_that_was_moved_away_is_made_anew(log: AuditLog) -> None:
    write(log, 1)
    log.path.rename(log.path.with_name("kept"))
    write(log, 2)
    assert [int(reason) for reason in reasons(log.path)] == [2]


def test_threads_do_not_mix_their_lines(log: AuditLog) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write(log, number), range(12)))
    assert sorted(int(r) for file in log.path.parent.iterdir() for r in reasons(file)) == list(range(12))


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path, log: AuditLog) -> None:
    (tmp_path / "elsewhere").write_text("")
    log.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"audit\.log"):
        log.prepare()
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(IsADirectoryError):
        log.write(ENTRY)


def test_half_a_line_is_taken_back_when_the_disk_is_full(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    write(log, 1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:20]))
    with pytest.raises(OSError, match="only 20 of"):
        write(log, 2)
    monkeypatch.undo()
    write(log, 3)
    assert [int(reason) for reason in reasons(log.path)] == [1, 3]
