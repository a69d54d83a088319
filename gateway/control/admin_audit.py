"""`state_dir/audit.log`: who tried to change what, from where, why, and what came of it. One JSON object a line.

Written by control only, readable by the gateway's user only, appended to and never edited. Bounded: a full file
becomes `audit.log.1`, and so on; the oldest goes. What cannot be written down is not done: a change is refused while
the file cannot be opened. It never holds a token. Blocks: a thread is its place.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "audit.log"
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
"""About 15,000 changes."""
FILES_MAX: Final = 5
"""The one that is written and four before it: at most 20 MiB."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `actor` and `role` are null when no token said who it was; `outcome` is the answer's status and, of
    a refusal, its detail.
    """

    time: str
    actor: str | None
    role: str | None
    address: str
    method: str
    path: str
    reason: str | None
    outcome: str


class AuditLog:
    """See the module. Methods raise OSError."""

    def __init__(self, state_dir: Path, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.path = state_dir / FILE
        self._max = file_bytes_max
        self._lock = threading.Lock()
        self._fd = -1

    def prepare(self) -> None:
        """Make sure that there is a file to write to."""
        with self._lock:
            self._open()

    def write(self, entry: Entry) -> None:
        """Append one line, whole or not at all."""
        line = msgspec.json.encode(entry) + b"\n"
        with self._lock:
            self._open()
            size = os.fstat(self._fd).st_size
            if size and size + len(line) > self._max:
                self._rotate()
                self._open()
                size = 0
            written = os.write(self._fd, line)
            if written != len(line):  # the disk is full: half a line would spoil the next one
                os.ftruncate(self._fd, size)
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")

    def close(self) -> None:
        with self._lock:
            self._close()

    def _open(self) -> None:
        """Open it, or open it again when the file at the path is another one: somebody moved ours away."""
        if self._fd >= 0:
            try:
                there, ours = os.stat(self.path), os.fstat(self._fd)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            self._close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o600)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":  # we were killed, or the machine was, in mid-line
            os.write(self._fd, b"\n")

    def _rotate(self) -> None:
        self._close()
        for number in range(FILES_MAX - 1, 0, -1):
            older = self.path.with_name(f"{FILE}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{FILE}.{number - 1}")
            if newer.exists():
                newer.rename(older)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
