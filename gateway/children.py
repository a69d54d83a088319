"""A child of the supervisor, as data: what it may say, where that takes it, and when it is started again.

Nothing here starts, kills or waits: the supervisor does. Time is an argument (`now`, monotonic seconds).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 8.0
"""Restart delays: none, then 0.25 s doubling to 8 s: an outage that ends is over for us within seconds."""

SETTLED_S: Final = 10.0
"""A child that served this long is sound: its next death is a first one."""


class Phase(StrEnum):
    """Where a child is in its life. WAITING: dead, to be started at `due`; GONE: dead, for good."""

    WAITING = "waiting"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


ALIVE: Final = (Phase.STARTING, Phase.SERVING, Phase.DRAINING)

SAID: Final[dict[tuple[Phase, str], Phase]] = {
    (Phase.STARTING, "serving"): Phase.SERVING,
    (Phase.STARTING, "draining"): Phase.DRAINING,
    (Phase.SERVING, "draining"): Phase.DRAINING,
}
"""What a child may say of itself, and where that takes it. No key, no transition."""


@dataclass(eq=False, slots=True)
class Child:
    """One worker slot (`slot` 0 and up) or control (`slot` None), through all its lives."""

    name: str
    slot: int | None
    phase: Phase = Phase.WAITING
    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    due: float = 0.0
    served: float | None = None
    failures: int = 0
    restarts: int = 0
    inbox: bytes = b""
    outbox: bytes = b""
    behind: bool = False
    killed: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None and self.phase in ALIVE else 0

    def wait_again(self, now: float) -> float:
        """It died and will be started again: the seconds until then."""
        settled = self.served is not None and now - self.served >= SETTLED_S
        self.failures = 1 if settled else self.failures + 1
        self.restarts += 1
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
    return 0.0 if failures <= 1 else min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** (min(failures, 16) - 2))


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
