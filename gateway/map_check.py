"""The look at the map on disk before anybody maps it: a child of the supervisor that ends by itself.

A worker that maps a file which was cut short or scribbled over dies, and so would the next one: a restart loop. So
`python -m gateway.store.check` runs before the first children and after one died in a way that a bad map makes, and
nobody is started meanwhile. Whatever becomes of it, the gateway starts: it is a help, and must never be an obstacle.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

LIMIT_S: Final = 30.0
"""A look at a start is done in a second; one that takes longer waits for a disk that does not answer."""

WHOLE_LIMIT_S: Final = 180.0
"""A walk over ten million records."""

ENDS_OF_A_BAD_MAP: Final = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
"""A page that is gone, a page that is garbage, an assertion of LMDB's."""


class MapCheck:
    """At most one check at a time. `command` () is none at all; `log` says a line to the operator."""

    def __init__(
        self, command: tuple[str, ...], state_dir: Path, environ: Mapping[str, str], log: Callable[[str], None]
    ) -> None:
        self._command = command
        self._state_dir = state_dir
        self._environ = environ
        self._log = log
        self._wanted = any((state_dir / name).exists() for name in ("map", "map.snapshot"))
        self._whole = False  # the first look must not hold the start up; after a death the map is walked whole
        self._process: subprocess.Popen[bytes] | None = None
        self._limit_s = LIMIT_S
        self.deadline = 0.0
        """When the check that runs is given up."""

    def holds_starts(self, now: float) -> bool:
        """Whether nobody may be started yet. Begins a check that is wanted, ends one that hangs."""
        if self._wanted and self._process is None:
            self._wanted = False
            self._begin(now)
        if self._process is not None and now >= self.deadline:
            self._log(f"the check of the map takes longer than {self._limit_s:g} s: given up")
            self.stop()
        return self._process is not None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def child_died(self, status: int) -> None:
        """A child's wait status: one that a bad map may have killed asks for a check."""
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in ENDS_OF_A_BAD_MAP:
            self._wanted = self._whole = True

    def reaped(self, pid: int, status: int) -> bool:
        """Whether `pid` was the check, which is over then. What it found it has said itself."""
        if self._process is None or self._process.pid != pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            self._log(f"the check of the map ended with {self._process.returncode}")
        self._process = None
        return True

    def stop(self) -> None:
        """End it where it is: it changes nothing but by one last rename."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _begin(self, now: float) -> None:
        if not self._command:
            return
        depth = ("--start", "--whole") if self._whole else ("--start",)
        try:
            self._process = subprocess.Popen(
                [*self._command, "--state-dir", str(self._state_dir), *depth],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self._environ,
                process_group=0,
            )
        except OSError as error:
            self._log(f"the map cannot be checked: {error.strerror}")
            return
        self._limit_s = WHOLE_LIMIT_S if self._whole else LIMIT_S
        self.deadline = now + self._limit_s
