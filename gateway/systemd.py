"""What the supervisor says to systemd and takes from it: sd_notify(3), and sockets by sd_listen_fds(3).

A few lines over the environment and one datagram socket: no library. Without systemd everything here does nothing.
Telling must never hurt: a notification that cannot be sent is dropped, and nothing waits for its reader.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Final

LISTEN_FDS_START: Final = 3
"""Passed descriptors count from here (sd_listen_fds(3))."""

LISTENERS: Final = ("http", "hop", "admin")
"""What a socket may be for, as `FileDescriptorName=` says."""

OURS: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Meant for this process: a child that inherited them would speak for us, or take descriptors that are not its."""

STATUS_CHARS_MAX: Final = 200
"""`systemctl status` shows one line."""


class Unusable(Exception):
    """What systemd passed cannot be served on; the text says what to change."""


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a child."""
    return {name: value for name, value in environ.items() if name not in OURS}


def passed_sockets(environ: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """The listening sockets that were passed to process `pid`, by what they are for; {} when there are none.

    Takes the descriptors over. Raises Unusable for one without a name that we know, or that does not listen.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    count = environ.get("LISTEN_FDS", "0")
    if not count.isdecimal():
        raise Unusable(f"LISTEN_FDS: expected a number, got {count!r}")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        sock = _passed(LISTEN_FDS_START + index, name)
        found.setdefault(name, []).append(sock)
    if len(found.get("admin", ())) > 1:
        raise Unusable("more than one socket is named admin: control listens on one")
    return found


def _passed(fd: int, name: str) -> socket.socket:
    if name not in LISTENERS:
        raise Unusable(
            f"descriptor {fd} is named {name!r}: FileDescriptorName= has to be one of {', '.join(LISTENERS)}"
        )
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise Unusable(f"descriptor {fd} ({name}) is no socket: {error.strerror}") from None
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        sock.detach()
        raise Unusable(f"descriptor {fd} ({name}) is no listening TCP socket (Accept=no, ListenStream=)")
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


class Notifier:
    """The manager's ear. `busy` are the reasons for which we are reloading; READY=1 goes out when none is left."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self.address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ, pid)
        self.is_ready = False
        self.busy: set[str] = set()
        self._socket: socket.socket | None = None
        if self.address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def tell(self, **states: object) -> None:
        """Send states as one datagram, in order."""
        if self._socket is None:
            return
        text = "\n".join(f"{name}={str(value)[:STATUS_CHARS_MAX]}" for name, value in states.items())
        where = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(errors="backslashreplace"), socket.MSG_NOSIGNAL, where)

    def ready(self, status: str) -> None:
        """Everything serves; said once, and again after each time that was busy."""
        self.is_ready = True
        if not self.busy:
            self.tell(READY=1, STATUS=status)

    def begin(self, reason: str, status: str) -> None:
        """Something changes: reloading, until `end(reason)`. Before the first READY nothing is said."""
        was_busy = bool(self.busy)
        self.busy.add(reason)
        if self.is_ready and not was_busy:
            self.tell(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000, STATUS=status)

    def end(self, reason: str, status: str) -> None:
        if reason not in self.busy:
            return
        self.busy.discard(reason)
        if self.is_ready and not self.busy:
            self.tell(READY=1, STATUS=status)

    def stopping(self, status: str) -> None:
        self.busy.clear()
        self.is_ready = False
        self.tell(STOPPING=1, STATUS=status)


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """How often to say that we live: half of what the manager allows (sd_watchdog_enabled(3)); None for never."""
    usec = environ.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or int(usec) == 0 or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(usec) / 2e6
