"""What `landbridge serve` holds for its whole life, whoever of its children dies: the lock of `state_dir`, the last
good configuration in it, and the listening sockets.

It has one text for everything that keeps a gateway from starting (`CannotStart`), which names the key and the address
or the process. Never opens a socket before the lock is held: two gateways would share one port's connections.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.settings.loader import Sources, encode_sources
from gateway.settings.schema import Address, Listen

BACKLOG: Final = 4096
"""Connections that may wait for a worker's replacement; the kernel cuts it to `net.core.somaxconn`."""

LOCK_POLL_S: Final = 0.05
NOTE_MAX_BYTES: Final = 4096


class CannotStart(Exception):
    """Why there will be no gateway; the text is for the operator."""


def prepare_state_dir(path: Path) -> None:
    """Make `state_dir`, open to its owner only: it holds the configuration's text and the bus."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise CannotStart(f"state_dir {path}: {error.strerror}") from None


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22); 0 if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


class Lock:
    """The lock of `state_dir`, with a note of who holds it: pid, its start time, and whether it is on its way out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, limit_s: float, wait: Callable[[float], bool], log: Callable[[str], None]) -> None:
        """Take it. A holder that drains or was killed gets `limit_s` to be gone; a sound one is named and kept.

        `wait(seconds)` sleeps, and says False when we were told to stop. Raises CannotStart.
        """
        deadline = time.monotonic() + limit_s
        told = False
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            pid, dying = self._holder()
            if not dying:
                raise CannotStart(f"{self.path} is locked: the gateway of process {pid} is using this state_dir")
            if time.monotonic() >= deadline:
                raise CannotStart(f"{self.path} is locked: process {pid} or its workers did not end in {limit_s:g} s")
            if not told:
                log(f"waiting up to {limit_s:g} s for process {pid} and its workers to end")
                told = True
            if not wait(LOCK_POLL_S):
                raise CannotStart("stopped while waiting for the lock")

    def _holder(self) -> tuple[int, bool]:
        """(pid, whether it is ending). A note that cannot be read is one that is being written: look again."""
        try:
            note = json.loads(os.pread(self.fd, NOTE_MAX_BYTES, 0))
            pid, started, state = int(note["pid"]), int(note["started"]), str(note["state"])
        except (ValueError, KeyError, TypeError):
            return 0, True
        return pid, state != "serving" or _started(pid) != started

    def note(self, state: str) -> None:
        text = json.dumps({"pid": os.getpid(), "started": _started(os.getpid()), "state": state})
        os.pwrite(self.fd, text.encode() + b"\n", 0)
        os.ftruncate(self.fd, len(text) + 1)


def write_last_good(state_dir: Path, sources: Sources) -> None:
    """Leave the validated text (secrets not expanded) where children find it, whole or not at all."""
    path = state_dir / "config.last-good"
    temporary = state_dir / "config.last-good.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(encode_sources(sources))
        file.flush()
        os.fsync(fd)
    temporary.rename(path)


# --- listening sockets -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Listeners:
    """`http` and `hop`: one socket per worker slot, in slot order; `hop` is empty without a hop listener."""

    admin: socket.socket
    http: list[socket.socket] = field(default_factory=list)
    hop: list[socket.socket] = field(default_factory=list)

    def __str__(self) -> str:
        groups = (("http", self.http), ("hop", self.hop), ("admin", [self.admin]))
        return ", ".join(f"{name} {_address(socks[0])}" for name, socks in groups if socks)

    def close_traffic(self) -> None:
        """End http and hop for every process that holds them, also one that is stuck: connects are refused from now on.

        Closing would end nothing while a worker still has its copy; shutdown(2) ends the listening itself (Linux).
        """
        for sock in self.http + self.hop:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _address(sock: socket.socket) -> Address:
    host, port, *_ = sock.getsockname()
    return Address(host, port)


def _listen(key: str, address: Address, share: bool, port: int) -> socket.socket:
    """One listening socket. `share`: more of this address follow or came before (SO_REUSEPORT)."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise CannotStart(f"{key}: cannot listen on {address}: {error.strerror}") from None
    return sock


def _listen_slots(key: str, address: Address, slots: int) -> list[socket.socket]:
    """One socket per slot. An address that somebody listens on is refused first, without SO_REUSEPORT.

    Otherwise a second gateway of this user would silently get a share of the first one's connections.
    """
    if address.port:
        _listen(key, address, False, address.port).close()
    sockets: list[socket.socket] = []
    port = address.port
    for _ in range(slots):
        sockets.append(_listen(key, address, True, port))
        port = sockets[0].getsockname()[1]
    return sockets


def open_listeners(listen: Listen, slots: int) -> Listeners:
    """Open everything, or raise CannotStart naming key and address."""
    admin = _listen("listen.admin", listen.admin, False, listen.admin.port)
    http = _listen_slots("listen.http", listen.http, slots)
    hop = _listen_slots("listen.hop", listen.hop, slots) if listen.hop else []
    return Listeners(admin, http, hop)
