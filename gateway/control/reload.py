"""The configuration: what runs, what the disk says, and when the one becomes the other.

Control starts on `state_dir/config.last-good`, which the supervisor wrote after it had validated it. From then on the
files are watched; what is valid and needs no new processes becomes the new configuration, everything else changes
nothing and says so (log, metric, status). The disk is read and parsed in a thread, never in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway.settings.difference import compare
from gateway.settings.loader import Sources, decode_sources, encode_sources, load, read_sources, warnings_for
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings

LOG = logging.getLogger("landbridge.control")

LAST_GOOD: Final = "config.last-good"

APPLIED: Final = "applied"
REFUSED: Final = "refused"


class Outcome(msgspec.Struct, frozen=True):
    """How one attempt to take in a file ended. `source` is config or tenants; `result` applied or refused."""

    at_ms: int
    source: str
    cause: str
    result: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class NoConfiguration(Exception):
    """Neither last-good nor the file on disk is valid; the message lists what is wrong."""


class Loaded(msgspec.Struct, frozen=True):
    """Settings and what they were made of."""

    sources: Sources
    settings: Settings
    warnings: tuple[str, ...] = ()


def read_disk(path: Path, environ: Mapping[str, str]) -> Loaded:
    """Read and validate what is on disk now. Raises Invalid. Blocks."""
    sources = read_sources(path, environ)
    settings = load(sources, environ)
    return Loaded(sources, settings, tuple(warnings_for(settings, sources)))


def read_last_good(state_dir: Path, environ: Mapping[str, str]) -> Loaded:
    """What the supervisor, or a control before us, left there. Raises Invalid, OSError or ValueError. Blocks."""
    sources = decode_sources((state_dir / LAST_GOOD).read_bytes())
    return Loaded(sources, load(sources, environ))


def write_last_good(state_dir: Path, sources: Sources) -> None:
    """Replace last-good, whole or not at all, readable by its owner only. Raises OSError. Blocks."""
    path = state_dir / LAST_GOOD
    data = encode_sources(sources)
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass  # it is not there, or not readable: written anew
    temporary = state_dir / f".{LAST_GOOD}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def starting_point(path: Path, state_dir: Path, environ: Mapping[str, str]) -> tuple[Loaded, str]:
    """(what to start on, what is wrong with last-good or ""). Raises NoConfiguration. Blocks."""
    try:
        return read_last_good(state_dir, environ), ""
    except (Invalid, OSError, ValueError) as error:
        why = f"{state_dir / LAST_GOOD}: {describe(error)}"
    try:
        return read_disk(path, environ), why
    except Invalid as error:
        raise NoConfiguration(f"{why}\n{describe(error)}") from error


def describe(error: Exception) -> str:
    return "\n".join(problems_of(error))


def problems_of(error: Exception) -> tuple[str, ...]:
    """One line per problem."""
    return tuple(map(str, error.problems)) if isinstance(error, Invalid) else (str(error),)


class Configuration:
    """What runs (`current`), and the way from the disk to it. One attempt at a time.

    `apply(settings)` makes new settings the gateway's; it is awaited before the attempt counts as done.
    `ended(outcome)` hears of every attempt.
    """

    def __init__(
        self,
        path: Path,
        state_dir: Path,
        environ: Mapping[str, str],
        current: Loaded,
        apply: Callable[[Settings], Awaitable[None]],
        ended: Callable[[Outcome], None],
        wall_ms: Callable[[], int],
    ) -> None:
        self.path = path
        self.state_dir = state_dir
        self.environ = environ
        self.current = current
        self.last: Outcome | None = None
        self.on_disk_differs = False
        self._apply = apply
        self._ended = ended
        self._wall_ms = wall_ms
        self._lock = asyncio.Lock()

    def files(self) -> list[Path]:
        """The files whose change is a reload: gateway.yaml and this region's overlay, there or not."""
        return [self.path, self.path.parent / "regions" / f"{self.current.settings.region}.yaml"]

    async def catch_up(self) -> None:
        """After a start: take in what the disk says, unless it says what last-good says."""
        try:
            found = await asyncio.to_thread(read_sources, self.path, self.environ)
        except Invalid as error:
            return self._refuse("start", problems_of(error))
        if encode_sources(found) != encode_sources(self.current.sources):
            await self.reload("start")
        return None

    async def reload(self, cause: str) -> bool:
        """Read, validate, compare, apply; whether what is on disk now runs. `cause` is for the log and status."""
        async with self._lock:
            try:
                loaded = await asyncio.to_thread(read_disk, self.path, self.environ)
            except Invalid as error:
                self._refuse(cause, problems_of(error))
                return False
            if problems := _cannot_change(self.path, self.current.settings, loaded.settings):
                self._refuse(cause, problems)
                return False
            await self._accept(cause, loaded)
            return True

    async def _accept(self, cause: str, loaded: Loaded) -> None:
        try:
            await asyncio.to_thread(write_last_good, self.state_dir, loaded.sources)
        except OSError as error:
            # The bus carries it to the workers that live; one that starts later hears it a moment after its start.
            LOG.error("the new configuration runs, but cannot be kept for a restart: %s", error)
        for warning in loaded.warnings:
            LOG.warning("%s", warning)
        changed = compare(self.current.settings, loaded.settings).data
        self.current = loaded
        self.on_disk_differs = False
        await self._apply(loaded.settings)
        LOG.info("configuration applied (%s): %s", cause, ", ".join(changed) or "nothing changed")
        self._end(Outcome(self._wall_ms(), "config", cause, APPLIED, warnings=loaded.warnings))

    def _refuse(self, cause: str, problems: tuple[str, ...]) -> None:
        LOG.error("configuration refused (%s), the last good one stays:", cause)
        for problem in problems:
            LOG.error("%s", problem)
        self.on_disk_differs = True
        self._end(Outcome(self._wall_ms(), "config", cause, REFUSED, problems))

    def _end(self, outcome: Outcome) -> None:
        self.last = outcome
        self._ended(outcome)


def _cannot_change(path: Path, old: Settings, new: Settings) -> tuple[str, ...]:
    """Why this change cannot be made in place, by key."""
    difference = compare(old, new)
    lines = [f"{path}: {key}: a change needs a new start of the gateway" for key in difference.restart]
    lines += [
        f"{path}: {key}: a change needs new workers, which a reload cannot start yet: restart the gateway"
        for key in difference.code
    ]
    return tuple(lines)
