"""A log writer against real pipes, sockets and files whose readers stall, leave or come back."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry import log_writer
from gateway.telemetry.log_writer import ATOMIC_BYTES, LogWriter, open_log

PIPE_BYTES = 64 << 10


def line(number: int, size: int = 100) -> bytes:
    return f"{number:0{size - 1}}\n".encode()


def numbers(content: bytes) -> list[int]:
    """The lines' numbers; fails on a line that is not whole."""
    assert content == b"" or content.endswith(b"\n")
    lines = content.splitlines()
    assert {len(text) for text in lines} <= {99}
    return [int(text) for text in lines]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it: that was its subject


def drain(fd: int) -> bytes:
    content = b""
    try:
        while chunk := os.read(fd, 1 << 20):
            content += chunk
    except BlockingIOError:
        pass
    return content


def test_lines_are_written_together_and_at_the_latest_by_flush(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, 1 << 20)
    writer.write(line(1))
    assert drain(reading) == b""
    writer.flush()
    assert numbers(drain(reading)) == [1]
    for n in range(100):
        writer.write(line(n))
    early = drain(reading)
    assert len(early) > ATOMIC_BYTES
    writer.flush()
    assert numbers(early + drain(reading)) == list(range(100))
    assert writer.pending == writer.dropped == 0
    writer.close()


def test_an_inherited_pipe_keeps_its_flags(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    before = fcntl.fcntl(writing, fcntl.F_GETFL)
    writer = LogWriter(writing, 1 << 20)
    for n in range(5000):
        writer.write(line(n))  # more than the pipe takes: would block if it could
    writer.flush()
    assert fcntl.fcntl(writing, fcntl.F_GETFL) == before
    assert os.get_blocking(writing)
    writer.close()


def test_a_stalled_reader_costs_whole_lines_which_are_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    told: list[int] = []
    writer = LogWriter(writing, 10_000, told.append)
    for n in range(2000):
        writer.write(line(n))
    assert writer.dropped > 1000
    assert sum(told) == writer.dropped
    assert writer.pending <= 10_000
    kept = numbers(drain(reading))
    writer.flush()
    kept += numbers(drain(reading))
    assert writer.pending == 0
    assert kept == list(range(len(kept)))  # the oldest are kept, in order
    assert len(kept) + writer.dropped == 2000
    writer.write(line(7))
    writer.close()
    assert numbers(drain(reading)) == [7]


@pytest.mark.parametrize("capacity", [1 << 20, 100_000])  # buffered, and dropped
def test_a_stalled_reader_costs_few_system_calls(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    _, writing = pipe
    writer = LogWriter(writing, capacity)
    while writer.pending < ATOMIC_BYTES:
        writer.write(line(1))  # until the pipe is full
    calls = 0
    real = os.write

    def counted(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        return real(fd, data)

    monkeypatch.setattr(os, "write", counted)
    for n in range(3000):
        writer.write(line(n))
    assert calls <= 20
    assert (writer.dropped > 0) == (capacity == 100_000)
    monkeypatch.undo()
    writer.close()


def test_a_reader_that_left_raises_nothing_and_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, 1 << 20)
    os.close(reading)
    for n in range(3):
        writer.write(line(n))
    writer.flush()
    assert (writer.dropped, writer.pending) == (3, 0)
    for n in range(1000):
        writer.write(line(n))
    writer.close()
    assert writer.dropped == 1003


def test_a_pipe_without_a_reader_from_the_start(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    writer = LogWriter(writing, 1 << 20)
    writer.write(line(1))
    writer.flush()
    assert writer.dropped == 1
    writer.close()


def test_a_pipe_that_cannot_be_opened_again_is_asked_first(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe

    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "another user's pipe")

    monkeypatch.setattr(os, "open", refuse)
    writer = LogWriter(writing, 50_000)
    monkeypatch.undo()
    assert os.get_blocking(writing)
    for n in range(3000):
        writer.write(line(n))  # would block for ever if it were written without asking
    assert writer.dropped > 0
    kept = numbers(drain(reading))
    writer.flush()
    kept += numbers(drain(reading))
    assert kept == list(range(len(kept)))
    assert len(kept) + writer.dropped == 3000
    writer.close()


def test_a_fifo_by_name_gets_a_new_reader(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        open_log(str(path))  # nobody reads: no waiting
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = open_log(str(path))
    writer = LogWriter(fd, 1 << 20)
    writer.write(line(1))
    writer.flush()
    assert numbers(drain(reading)) == [1]
    os.close(reading)
    writer.write(line(2))
    writer.flush()
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.write(line(3))
    writer.flush()
    assert numbers(drain(reading)) == [3]
    assert writer.dropped == 1
    writer.close()
    os.close(fd)
    os.close(reading)


@pytest.mark.parametrize("kind", [socket.AF_UNIX, socket.AF_INET])
def test_a_socket_is_never_waited_for_and_torn_lines_are_completed(kind: socket.AddressFamily) -> None:
    if kind is socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        writer = LogWriter(ours.fileno(), 20_000)
        written = 0
        while writer.dropped == 0:
            writer.write(line(written))
            written += 1
            assert written < 1_000_000
        assert os.get_blocking(ours.fileno())
        content = b""
        theirs.settimeout(10)
        while content.count(b"\n") < written - writer.dropped:
            content += theirs.recv(1 << 16)
            writer.flush()
        assert numbers(content) == list(range(written - writer.dropped))
        writer.write(line(1))
        theirs.close()
        writer.flush()
        writer.write(line(2))
        writer.close()
        assert writer.dropped >= 2


def test_a_file_takes_everything(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = open_log(str(path))
    writer = LogWriter(fd, 1 << 20)
    for n in range(20_000):
        writer.write(line(n))
    writer.close()
    os.close(fd)
    assert numbers(path.read_bytes()) == list(range(20_000))
    assert writer.dropped == 0
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_keeps_lines_whole_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LogWriter(fd, 5000)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # EFBIG stands for a full disk: the write that meets the limit is cut in the middle of a line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1050, old[1]))
        for n in range(100):
            writer.write(line(n))
        writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes().count(b"\n") == 10
    assert writer.dropped > 0
    writer.flush()
    writer.close()
    os.close(fd)
    kept = numbers(path.read_bytes())
    assert kept == list(range(len(kept)))
    assert len(kept) + writer.dropped == 100


def test_a_line_longer_than_a_pipe_takes_at_once_is_completed_before_the_next(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, 1 << 20)
    long = b"x" * (PIPE_BYTES * 2) + b"\n"
    writer.write(long)
    writer.write(b"next\n")
    content = b""
    while not content.endswith(b"next\n"):
        writer.flush()
        chunk = drain(reading)
        assert chunk
        content += chunk
    assert content == long + b"next\n"
    writer.close()


WRITES = """
import sys
from gateway.telemetry.log_writer import LogWriter
writer = LogWriter(1, 1 << 20)
sent = 0
while sent < 3000:
    if writer.pending < 500_000:
        writer.write(f"{sys.argv[1]}{sent:0{40 + sent % 900}}\\n".encode())
        sent += 1
    else:
        writer.flush()
while writer.pending:
    writer.flush()
print(writer.dropped, file=sys.stderr)
"""


def test_lines_of_several_processes_on_one_pipe_are_never_mixed() -> None:
    reading, writing = os.pipe()
    children = [
        subprocess.Popen([sys.executable, "-c", WRITES, name], stdout=writing, stderr=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    for child in children:
        assert child.communicate(timeout=30)[1] == "0\n"
    for name in "abc":
        mine = [text for text in lines if text.startswith(name)]
        assert [int(text[1:]) for text in mine] == list(range(3000))
        assert [len(text) for text in mine] == [1 + 40 + n % 900 for n in range(3000)]
    assert len(lines) == 9000


@given(st.lists(st.one_of(st.integers(1, 3000), st.just("read"), st.just("flush")), max_size=60), st.integers(0, 9000))
def test_whatever_happens_lines_are_whole_ordered_and_accounted_for(steps: list[int | str], capacity: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least
        theirs.setblocking(False)
        writer = LogWriter(ours.fileno(), capacity)
        wrote: list[bytes] = []
        content = b""
        for step in steps:
            if step == "read":
                content += _receive(theirs)
            elif step == "flush":
                writer.flush()
            else:
                wrote.append(b"%d:" % len(wrote) + b"x" * int(step) + b"\n")
                writer.write(wrote[-1])
            assert writer.pending <= capacity
        while writer.pending:
            content += _receive(theirs)
            writer.flush()
        content += _receive(theirs)
        kept = content.splitlines(keepends=True)
        everything = iter(wrote)
        assert all(any(text == other for other in everything) for text in kept)  # a subsequence
        assert len(kept) + writer.dropped == len(wrote)
        writer.close()


def _receive(sock: socket.socket) -> bytes:
    content = b""
    try:
        while chunk := sock.recv(1 << 16):
            content += chunk
    except BlockingIOError:
        pass
    return content


def test_a_closed_writer_lets_go_of_what_it_opened(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    before = len(os.listdir("/proc/self/fd"))
    writer = LogWriter(writing, 1 << 20)
    assert writer.fileno() != writing
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert log_writer.CAPACITY > PIPE_BYTES
