"""Noticing that files changed, and only once they stand still.

Half-written YAML is often valid YAML, so a change counts when size and mtime have not moved for `STILL_S`. Files are
polled by stat: it works on every file system, on bind mounts and on the symlinks that Kubernetes swaps, where change
notification does not.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

STILL_S: Final = 0.2
"""How long a file must stand still: longer than an editor or a copy pauses between two writes."""

POLL_S: Final = 0.1
"""Half of `STILL_S`, so that a change is acted upon within 0.3 s."""

REST_LIMIT_S: Final = 5.0
"""What a reload that was asked for waits for a file that is being written."""

Stamp = tuple[int, int, int] | None
"""(size, mtime in ns, inode) of a file; None where there is none."""

Stamps = tuple[tuple[str, Stamp], ...]


class StandStill:
    """Says once, for each change, that it has come to rest. Pure: the caller brings stamps and monotonic `now`.

    A change that is undone before it came to rest never happened.
    """

    def __init__(self, settled: Stamps) -> None:
        self._settled = settled
        self._moving: Stamps | None = None
        self._since = 0.0

    @property
    def pending(self) -> bool:
        """Whether a change was seen that has not come to rest."""
        return self._moving is not None

    def observe(self, stamps: Stamps, now: float) -> bool:
        """Whether the files differ from what was last acted upon, and have stood still for `STILL_S`."""
        if stamps == self._settled:
            self._moving = None
            return False
        if stamps != self._moving:
            self._moving, self._since = stamps, now
            return False
        if now - self._since < STILL_S:
            return False
        self._settled, self._moving = stamps, None
        return True

    def settle(self, stamps: Stamps) -> None:
        """Take `stamps` as acted upon: whoever read the files for another reason says so here."""
        self._settled, self._moving = stamps, None


def stamp(path: Path) -> Stamp:
    """What `path` (its target, if a symlink) looks like now. Never raises: what cannot be read is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def stamps_of(paths: Iterable[Path]) -> Stamps:
    return tuple((str(path), stamp(path)) for path in paths)


class Watch:
    """Polls files and awaits `act` after each change that stood still.

    `paths` is asked at every poll: which files matter may itself change with a reload.
    """

    def __init__(self, paths: Callable[[], Iterable[Path]], act: Callable[[], Awaitable[object]]) -> None:
        self._paths = paths
        self._act = act
        self._rule = StandStill(stamps_of(paths()))

    @property
    def pending(self) -> bool:
        return self._rule.pending

    def settle(self) -> None:
        """The files as they are now are known: call it before reading them for another reason than a change."""
        self._rule.settle(stamps_of(self._paths()))

    async def at_rest(self, wall_s: Callable[[], float] = time.time) -> bool:
        """Whether the files stand still; waits for it as long as `REST_LIMIT_S`. For who reads them without a change.

        A file that is still written to then is left to `run`, which sees it come to rest.
        """
        for _ in range(int(REST_LIMIT_S / STILL_S)):
            written_s = max((s[1] / 1e9 for _, s in stamps_of(self._paths()) if s is not None), default=0.0)
            if not 0 <= wall_s() - written_s < STILL_S:  # a time to come is a clock that was set, not a write
                self.settle()
                return True
            await asyncio.sleep(STILL_S)
        return False

    async def run(self) -> None:
        """Poll until cancelled. What is wrong with a file is told by `act`; an exception of it ends this run."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(POLL_S)
            if self._rule.observe(stamps_of(self._paths()), loop.time()):
                await self._act()
