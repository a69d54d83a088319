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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from gateway.settings.loader import Sources, encode_sources
from gateway.settings.schema import Address, Listen

BACKLOG: Final = 4096
"""Connections that may wait for a worker's replacement; the kernel cuts it to `net.core.somaxconn`."""

LOCK_POLL_S: Final = 0.05
NOTE_MAX_BYTES: Final = 4096

LAST_GOOD: Final = "config.last-good"
CANDIDATE: Final = "config.candidate"
"""Written by control: a valid configuration that needs new workers."""
NEXT: Final = "config.next"
"""What newcomers read while they prove themselves; it becomes the last good one when they have."""


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
    path = state_dir / LAST_GOOD
    temporary = state_dir / f"{LAST_GOOD}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(encode_sources(sources))
        file.flush()
        os.fsync(fd)
    temporary.rename(path)


# --- listening sockets -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Listeners:
    """`http` and `hop`: one socket per worker slot, in slot order; `hop` is empty without a hop listener.

    There may be more sockets than workers, where slots were removed: closing one of a SO_REUSEPORT group would lose the
    connections in its queue. One socket may stand for several slots, where the group cannot grow. `passed` are the
    service manager's, which go on listening without us.
    """

    admin: socket.socket
    http: list[socket.socket] = field(default_factory=list)
    hop: list[socket.socket] = field(default_factory=list)
    passed: list[socket.socket] = field(default_factory=list)

    def __str__(self) -> str:
        groups = (("http", self.http), ("hop", self.hop), ("admin", [self.admin]))
        return ", ".join(f"{name} {_address(socks[0])}" for name, socks in groups if socks)

    @property
    def slots(self) -> int:
        return len(self.http)

    def close_traffic(self) -> None:
        """End http and hop: connects are refused from now on."""
        self.end(self.http + self.hop)

    def end(self, sockets: Iterable[socket.socket]) -> None:
        """End sockets for every process that has a copy, also for one that is stuck.

        Closing would end nothing until the last one did; shutdown(2) ends the listening itself (Linux).
        """
        for sock in sockets:
            if sock not in self.passed:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def not_in(self, other: Listeners) -> list[socket.socket]:
        """The traffic sockets that `other` does not have."""
        kept = {*other.http, *other.hop}
        return [sock for sock in dict.fromkeys(self.http + self.hop) if sock not in kept]

    def changed(self, old: Listen, new: Listen, slots: int) -> Listeners:
        """What `new` and so many slots need: sockets of the same address stay, others are opened.

        Raises CannotStart; nothing is open then that was not.
        """
        opened: list[socket.socket] = []
        try:
            admin = self.admin
            if new.admin != old.admin:
                admin = _listen("listen.admin", new.admin, False, new.admin.port)
                opened.append(admin)
            lists: list[list[socket.socket]] = []
            for key, before, was, now in (
                ("listen.http", self.http, old.http, new.http),
                ("listen.hop", self.hop, old.hop, new.hop),
            ):
                if now is None:
                    lists.append([])
                elif now == was:
                    lists.append(_grown(key, now, before, slots))
                else:
                    lists.append(_listen_slots(key, now, slots))
                opened += [sock for sock in lists[-1] if sock not in before]
        except CannotStart:
            for sock in opened:
                sock.close()
            raise
        return Listeners(admin, lists[0], lists[1], self.passed)


def _address(sock: socket.socket) -> Address:
    host, port, *_ = sock.getsockname()
    return Address(host, port)


def _listen(key: str, address: Address, share: bool, port: int, backlog: int = BACKLOG) -> socket.socket:
    """One listening socket. `share`: more of this address follow or came before (SO_REUSEPORT).

    With a `backlog` of 0 it is bound only: it gets its share of connections once its worker listens.
    """
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
            if backlog:
                sock.listen(backlog)
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


def _grown(key: str, address: Address, sockets: list[socket.socket], slots: int) -> list[socket.socket]:
    """`sockets` and as many more as `slots` needs. A group that cannot grow is shared by its slots.

    That is so for a passed socket without `ReusePort=`, or of another user (root's manager): the kernel refuses.
    """
    grown = list(sockets)
    port = sockets[0].getsockname()[1]
    while len(grown) < slots:
        if not sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            grown.append(sockets[len(grown) % len(sockets)])
            continue
        try:
            grown.append(_listen(key, address, True, port, backlog=0))
        except CannotStart:
            grown.append(sockets[len(grown) % len(sockets)])
    return grown


def open_listeners(
    listen: Listen, slots: int, passed: Mapping[str, list[socket.socket]] = MappingProxyType({})
) -> Listeners:
    """Open everything that was not `passed`, or raise CannotStart naming key and address."""
    given = [sock for sockets in passed.values() for sock in sockets]
    admin = (
        passed["admin"][0] if passed.get("admin") else _listen("listen.admin", listen.admin, False, listen.admin.port)
    )
    groups = []
    for name, address in (("http", listen.http), ("hop", listen.hop)):
        if sockets := passed.get(name):
            groups.append(_grown(f"listen.{name}", _address(sockets[0]), sockets, slots))
        else:
            groups.append(_listen_slots(f"listen.{name}", address, slots) if address else [])
    return Listeners(admin, groups[0], groups[1], given)
