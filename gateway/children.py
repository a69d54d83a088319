"""A child of the supervisor, as data: what it may say, where that takes it, and when it is started again.

Nothing here starts, kills or waits: the supervisor does. Time is an argument (`now`, monotonic seconds).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from gateway.holdings import Listeners
from gateway.settings.schema import Settings

BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 8.0
"""Restart delays: none twice, then 0.25 s doubling to 8 s: an outage that ends is over for us within seconds.

Twice, because two deaths in a row are still bad luck, and a queue waits for the third life.
"""

SETTLED_S: Final = 10.0
"""A child that served this long is sound: its next death is a first one."""

LINE_MAX_BYTES: Final = 16 * 1024
"""A child says one short JSON object a line; more is a child gone wrong."""

OUTBOX_MAX_BYTES: Final = 64 * 1024
"""Commands that wait for a child which does not read. It is restarted by its death, not by our memory."""


class Phase(StrEnum):
    """Where a child is in its life.

    READY: it could serve, and waits to be told `accept`. WAITING: dead, to be started at `due`; GONE: dead, for good.
    """

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


ALIVE: Final = (Phase.STARTING, Phase.READY, Phase.SERVING, Phase.DRAINING)

SAID: Final[dict[tuple[Phase, str], Phase]] = {
    (Phase.STARTING, "ready"): Phase.READY,
    (Phase.STARTING, "serving"): Phase.SERVING,
    (Phase.STARTING, "draining"): Phase.DRAINING,
    (Phase.READY, "draining"): Phase.DRAINING,
    (Phase.SERVING, "draining"): Phase.DRAINING,
}
"""What a child may say of itself, and where that takes it. No key, no transition."""


class Setup(NamedTuple):
    """What a child is started with: the file in `state_dir` that it reads, and the sockets it is given."""

    file: str
    settings: Settings
    listeners: Listeners


class Wire:
    """Our end of a child's channel: JSON lines both ways, never waited for."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._inbox = b""
        self._outbox = b""

    @property
    def behind(self) -> bool:
        """Whether something waits until the child reads."""
        return bool(self._outbox)

    def send(self, message: dict[str, Any]) -> bool:
        """Queue one message; False when the child does not read and this one is dropped."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(self._outbox) + len(line) > OUTBOX_MAX_BYTES:
            return False
        self._outbox += line
        self.flush()
        return True

    def flush(self) -> None:
        """Give the kernel what it takes."""
        try:
            sent = self.socket.send(self._outbox) if self._outbox else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # it closed its end: its exit is on the way
            sent = len(self._outbox)
        self._outbox = self._outbox[sent:]

    def receive(self) -> list[bytes] | None:
        """The lines that came; None at the end."""
        try:
            data = self.socket.recv(LINE_MAX_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        *lines, rest = (self._inbox + data).split(b"\n")
        self._inbox = rest[-LINE_MAX_BYTES:]
        return lines

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


@dataclass(eq=False, slots=True)
class Child:
    """One worker slot (`slot` 0 and up), control or the replicator (`slot` None), through all its lives.

    `waits`: it is started to say `ready` and to accept only when told. `complaint` is what it said before it failed;
    `expected`: its end was asked for, and is no failure.
    """

    name: str
    slot: int | None
    setup: Setup | None = None
    waits: bool = False
    phase: Phase = Phase.WAITING
    process: subprocess.Popen[bytes] | None = None
    wire: Wire | None = None
    due: float = 0.0
    served: float | None = None
    failures: int = 0
    killed: bool = False
    expected: bool = False
    complaint: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None and self.phase in ALIVE else 0

    @property
    def shown(self) -> str:
        """The state that operators see: starting, serving or draining."""
        return Phase.STARTING.value if self.phase is Phase.READY else self.phase.value

    def wait_again(self, now: float) -> float:
        """It died and will be started again: the seconds until then."""
        settled = self.served is not None and now - self.served >= SETTLED_S
        self.failures = 1 if settled else self.failures + 1
        delay = backoff(self.failures)
        self.phase, self.due = Phase.WAITING, now + delay
        return delay

    @property
    def in_backoff(self) -> bool:
        """Whether a sibling has to serve its slot. A first restart is at once; one that drains accepts no more."""
        return self.phase is Phase.DRAINING or (self.phase is not Phase.SERVING and self.failures > 1)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def backoff(failures: int) -> float:
    """Seconds before the restart after the `failures`-th death in a row (1 is the first: at once)."""
    return 0.0 if failures <= 2 else min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** (min(failures, 16) - 3))


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
