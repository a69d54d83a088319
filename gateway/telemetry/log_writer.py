"""Lines to a descriptor that may stall, without ever waiting for it.

A bounded buffer, non-blocking writes, whole lines. When the reader stalls, new lines are dropped and counted, and what
is buffered stays in order; a line of which a part was written is completed before anything else. Nothing here raises
for what the other end does.

Several workers write to one standard output. So on a pipe or socket no write is longer than PIPE_BUF: the kernel takes
it whole or not at all, and two workers' lines are never mixed (pipe(7)). For the same reason O_NONBLOCK is never set on
an inherited descriptor, whose flags all its holders share (open(2)): it is opened again, or asked before each write.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Final

ATOMIC_BYTES: Final = select.PIPE_BUF
"""4,096 on Linux: as long as an access-log line may be."""

FILE_BYTES: Final = 64 << 10
"""A write to a file is as long as this: fewer system calls, and files take writes whole."""

CAPACITY: Final = 1 << 20
"""Bytes buffered per worker: some 3,000 lines, a third of a second at full load."""

RETRY_BYTES: Final = 16 << 10
"""While the reader stalls, `write` tries again only once so much more was offered: each try costs a system call."""

_PASSING: Final = frozenset((errno.EAGAIN, errno.EINTR, errno.ENOBUFS))
"""Keep what is buffered. Any other error of a pipe or socket means that the reader is gone, and its lines with it; any
error of a file (a full disk) may pass, and a line that it cut has to be completed."""


def open_log(path: str) -> int:
    """A descriptor to append to: a file (made with mode 0640) or a FIFO. Raises OSError. Never waits."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(path, flags, 0o640)


class LogWriter:
    """Writes lines to `fd`, which stays the caller's to close.

    `count_dropped` is told how many lines were just dropped; `dropped` is their sum, `pending` the bytes buffered.
    Call `flush` at intervals (and, if wanted, when `fileno()` becomes writable).
    """

    def __init__(
        self, fd: int, capacity_bytes: int = CAPACITY, count_dropped: Callable[[int], None] | None = None
    ) -> None:
        self._fd = fd
        self._capacity = capacity_bytes
        self._count_dropped = count_dropped
        self._lines: deque[bytes] = deque()
        self._partial = False  # whether a part of the first line is already written
        self._own: int | None = None
        self._socket: socket.socket | None = None
        self._poll: select.poll | None = None
        self._batch_bytes = ATOMIC_BYTES
        self._is_file = False
        self._stalled = False  # whether the last flush left something behind
        self._offered = 0  # bytes of lines since the last flush, dropped ones included
        self.pending = 0
        self.dropped = 0
        self._prepare()

    def write(self, line: bytes) -> None:
        """Take a line, its newline included; written when enough are together, at the latest by the next `flush`."""
        size = len(line)
        self._offered += size
        if self.pending + size > self._capacity:
            if not self._stalled or self._offered >= RETRY_BYTES:
                self.flush()
            if self.pending + size > self._capacity:
                self._drop(1)
                return
        self._lines.append(line)
        self.pending += size
        if self._offered >= (RETRY_BYTES if self._stalled else self._batch_bytes):
            self.flush()

    def flush(self) -> None:
        """Write what the other end takes now. Never waits, never raises."""
        try:
            while self._lines:
                batch = self._batch()
                written = self._write(batch)
                self._forget(written)
                if written < len(batch):
                    break
        except OSError as error:
            if not self._is_file and error.errno not in _PASSING:
                self._give_up()
        self._offered = 0
        self._stalled = bool(self._lines)

    def fileno(self) -> int:
        """The descriptor that is written to: for `loop.add_writer`, unless it is a regular file."""
        if self._socket is not None:
            return self._socket.fileno()
        return self._fd if self._own is None else self._own

    def close(self) -> None:
        """Write what can be written now, drop and count the rest, and let go."""
        self.flush()
        self._give_up()
        if self._own is not None:
            os.close(self._own)
            self._own = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _prepare(self) -> None:
        """Find out how this kind of descriptor is written to without waiting."""
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISREG(mode):
            self._is_file = True
            self._batch_bytes = FILE_BYTES
        elif stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._fd))
        elif os.get_blocking(self._fd):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
                self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
            except OSError:  # no reader (ENXIO), or another user's (EACCES)
                self._poll = select.poll()
                self._poll.register(self._fd, select.POLLOUT)

    def _batch(self) -> bytes:
        """Whole lines, as many as one write may carry; at least one (a longer line may be taken in parts)."""
        first = self._lines[0]
        if self._partial:
            return first
        size = 0
        batch: list[bytes] = []
        for line in self._lines:
            size += len(line)
            if batch and size > self._batch_bytes:
                break
            batch.append(line)
        return b"".join(batch) if len(batch) > 1 else first

    def _write(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._poll is not None and not self._poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, "not writable")
        return os.write(self._fd if self._own is None else self._own, data)

    def _forget(self, written: int) -> None:
        """Drop what was written from the buffer; the rest of a line that was cut stays at its head."""
        self.pending -= written
        while written:
            line = self._lines.popleft()
            if written < len(line):
                self._lines.appendleft(line[written:])
                self._partial = True
                return
            written -= len(line)
            self._partial = False

    def _give_up(self) -> None:
        """Nobody will read what is buffered."""
        if self._lines:
            self._drop(len(self._lines))
        self._lines.clear()
        self._partial = False
        self.pending = 0

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        if self._count_dropped is not None:
            self._count_dropped(lines)
