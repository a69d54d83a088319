"""The map on disk, watched over: its durable copy, and what happens when the file is cut short, scribbled over or gone.

Whoever meets damage (a worker, this process, the look at the file each second) says so here; then, at the start, and
from time to time in any case, a child process checks the whole file (`gateway.store.check`), and makes a new
generation of the snapshot when it has to. This process only follows: it never maps what nobody has found sound.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from gateway.control.sources.parse import environ
from gateway.control.watch import Stamp, stamp
from gateway.store import snapshot
from gateway.store.check import Code, mend
from gateway.store.record import StoreError
from gateway.store.writer import Writer

LOG = logging.getLogger("landbridge.control")

LOOK_S: Final = 1.0
"""How often the files are looked at by stat: as often as workers look."""

READERS_EVERY_S: Final = 60.0
CHECK_EVERY_S: Final = 60.0
CHECK_SHARE: Final = 100
"""A check runs each minute, or at most a hundredth of the time where the map is so large that it takes longer."""

CHECK_PAUSE_S: Final = 1.0
"""Between two checks that somebody asked for: each record that cannot be read asks."""

CHECK_LIMIT_S: Final = 1800.0
"""Beyond this a check hangs (a disk that does not answer): it is killed, and tried again later. Ten million records are
checked in two minutes of one core, and made anew in five, both below the priority of requests."""

SETTLE_S: Final = 0.5
"""A snapshot is written this long after a change, so that a burst of changes makes one."""

SNAPSHOT_SHARE: Final = 10
"""And after that not before ten times as long as it took."""

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
"""A disk that is full now may be full for long: retries slow down to one a minute."""


def open_map(state_dir: Path) -> Writer:
    """The map; one that cannot be opened is made anew first, of its snapshot. Raises StoreError. Blocks."""
    try:
        return Writer(state_dir / "map")
    except StoreError as error:
        LOG.error("%s", error)
    LOG.error("%s", mend(state_dir).text)
    return Writer(state_dir / "map")


class MapFile:
    """`replaced()` is awaited when another generation counts, and the writer writes to it already."""

    def __init__(self, writer: Writer, state_dir: Path, replaced: Callable[[], Awaitable[None]]) -> None:
        self.snapshot_path = state_dir / snapshot.SNAPSHOT_FILE
        self.snapshot_problem: str | None = None
        """Why the durable copy is not what the map is; None while it is."""
        self._writer = writer
        self._state_dir = state_dir
        self._replaced = replaced
        self._asked = asyncio.Event()
        self._dirty = asyncio.Event()
        self._stamp: Stamp = stamp(self.snapshot_path)
        self._is_damaged = False  # the map, as the last attempt to copy it found

    # --- the map

    def suspect(self, why: str) -> None:
        """Somebody met damage: have the file checked."""
        if not self._asked.is_set():
            LOG.error("the map on disk is checked: %s", why)
            self._asked.set()

    async def watch(self) -> None:
        """Look each second, check when there is a reason, and every minute."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self._writer.is_in_place():
                self.suspect("its file is not where it was, or was cut short")
            if stamp(self.snapshot_path) != self._stamp:
                self._dirty.set()
            if self._asked.is_set() or loop.time() >= due:
                is_routine = not self._asked.is_set() and self._is_served()
                self._asked.clear()
                began = loop.time()
                await self._check(is_routine)
                took = loop.time() - began
                due = loop.time() + max(CHECK_EVERY_S, CHECK_SHARE * took)
                await asyncio.sleep(CHECK_PAUSE_S)
            else:
                await _wait(self._asked, LOOK_S)

    def _is_served(self) -> bool:
        """Whether nothing is wrong as far as is known: then requests go first. A map that is bad cannot wait."""
        try:
            return self._writer.complete()
        except StoreError:
            return False

    async def _check(self, is_routine: bool) -> None:
        """Have a child check the file, and follow to where the map is then."""
        command = [sys.executable, "-P", "-m", "gateway.store.check", "--state-dir", str(self._state_dir), "--full"]
        if is_routine:
            command.append("--gentle")
        try:
            code, said = await _run(command)
        except (OSError, TimeoutError) as error:
            LOG.error("the map on disk cannot be checked: %s", error or f"no answer within {CHECK_LIMIT_S:g} s")
            return
        if code != Code.SOUND:
            LOG.error("%s", said or f"the check of the map on disk ended with {code}")
        try:
            followed = await asyncio.to_thread(self._writer.follow)
        except StoreError as error:
            LOG.error("%s", error)
            return
        if followed:
            LOG.warning("the map is in generation %d from now on", self._writer.generation)
            self._dirty.set()
            await self._replaced()

    # --- its durable copy

    def changed(self) -> None:
        """The map is another: so must its copy be, soon."""
        self._dirty.set()

    async def free_readers(self) -> None:
        """Free slots of dead readers from time to time, besides at each worker's exit."""
        while True:
            await asyncio.sleep(READERS_EVERY_S)
            await asyncio.to_thread(self._writer.check_readers)

    async def keep_snapshot(self) -> None:
        """Write the snapshot after each change; at the start only if it is not what the map is."""
        await asyncio.to_thread(self._compare)
        loop = asyncio.get_running_loop()
        retry = RETRY_FIRST_S
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SETTLE_S)
            self._dirty.clear()
            began = loop.time()
            if await asyncio.to_thread(self.write_snapshot):
                retry = RETRY_FIRST_S
                await asyncio.sleep(SNAPSHOT_SHARE * (loop.time() - began))
            else:
                if self._is_damaged:
                    self.suspect(self.snapshot_problem or "")
                self._dirty.set()
                await asyncio.sleep(retry)
                retry = min(RETRY_MAX_S, retry * 2)

    @property
    def behind(self) -> bool:
        """Whether the durable copy is not what the map is."""
        changed = self._dirty.is_set() or stamp(self.snapshot_path) != self._stamp
        return changed or self.snapshot_problem is not None

    def write_snapshot(self) -> bool:
        """Write it now; whether it is what the map is, as far as a map that is not complete can have one. Blocks."""
        try:
            written = snapshot.write(self.snapshot_path, self._writer)
        except (OSError, StoreError) as error:
            if str(error) != self.snapshot_problem:
                LOG.error("the map's snapshot cannot be written, the one before it stays: %s", error)
            self.snapshot_problem = str(error)
            self._is_damaged = isinstance(error, StoreError)
            return False
        if written is not None:  # else the map is not complete, or moved on: what is there is looked at again
            self._stamp = stamp(self.snapshot_path)
        self.snapshot_problem = None
        return True

    def _compare(self) -> None:
        """After a start: is the snapshot that is there what the map is? Blocks."""
        self._stamp = stamp(self.snapshot_path)
        try:
            said, meta = snapshot.summary_of(self.snapshot_path), self._writer.meta()
            if (said.records, f"{said.digest:016x}") == (meta.records, meta.digest):
                return
        except StoreError:
            pass  # there is none, or it is damaged: either way it is made anew
        self._dirty.set()


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        pass


async def _run(command: list[str]) -> tuple[int, str]:
    """Run a child to its end: exit code and what it said on standard error. Never leaves it behind."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environ(),
    )
    try:
        async with asyncio.timeout(CHECK_LIMIT_S):
            _, said = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return process.returncode or 0, said.decode(errors="replace").strip()
