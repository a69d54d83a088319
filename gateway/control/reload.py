"""The configuration: what runs, what the disk says, and when the one becomes the other.

Control starts on `state_dir/config.last-good`, which the supervisor wrote after it had validated it. From then on the
files are watched; what is valid and needs no new processes becomes the new configuration, everything else changes
nothing and says so (log, metric, status). The disk is read and parsed in a thread, never in the event loop. Filters
of the operator's are tried in a child process, and then run by new workers, which the supervisor is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway.settings.difference import Difference, compare
from gateway.settings.filter_check import check_filters
from gateway.settings.filter_files import paths_of
from gateway.settings.loader import Sources, decode_sources, encode_sources, load, read_sources, warnings_for
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.store.whole import write_whole

LOG = logging.getLogger("landbridge.control")

LAST_GOOD: Final = "config.last-good"
CANDIDATE: Final = "config.candidate"

FILTERS: Final = "filters."
"""Keys whose change new workers take in; they read them from last-good."""
FILE_CHANGED: Final = "file changed"

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
    return load_all(read_sources(path, environ), environ)


def load_all(sources: Sources, environ: Mapping[str, str]) -> Loaded:
    """Validate what was read. Raises Invalid. Blocks for the time of the parsing."""
    settings = load(sources, environ)
    return Loaded(sources, settings, tuple(warnings_for(settings, sources)))


def read_last_good(state_dir: Path, environ: Mapping[str, str]) -> Loaded:
    """What the supervisor, or a control before us, left there. Raises Invalid, OSError or ValueError. Blocks."""
    sources = decode_sources((state_dir / LAST_GOOD).read_bytes())
    return Loaded(sources, load(sources, environ))


def write_last_good(state_dir: Path, sources: Sources) -> None:
    """Replace last-good, whole or not at all, readable by its owner only. Raises OSError. Blocks."""
    _write(state_dir, LAST_GOOD, sources)


def write_candidate(state_dir: Path, sources: Sources) -> None:
    """Leave for the supervisor what new workers are to prove. Raises OSError. Blocks."""
    _write(state_dir, CANDIDATE, sources)


def _write(state_dir: Path, name: str, sources: Sources) -> None:
    path = state_dir / name
    data = encode_sources(sources)
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass  # it is not there, or not readable: written anew
    write_whole(path, data, sync=True)


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
    `ended(outcome)` hears of every attempt. `replace(loaded)` has new workers run what needs them (filters, listeners,
    the number of workers): it returns "" when they serve it, and last-good is it; otherwise why nothing has changed.
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
        replace: Callable[[Loaded], Awaitable[str]],
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
        self._replace = replace
        self._lock = asyncio.Lock()
        self._read = current.sources
        self._echo = False

    def files(self) -> list[Path]:
        """The files whose change is a reload: gateway.yaml, this region's overlay, there or not, and all filters.

        Filters by what the file on disk names, although it may have been refused: its mending is a change too.
        """
        filters = paths_of(dict.fromkeys((*self.current.sources.filters.patterns, *self._read.filters.patterns)))
        overlay = self.path.parent / "regions" / f"{self.current.settings.region}.yaml"
        keys = dict.fromkeys(file.path for file in (*self.current.sources.key_files, *self._read.key_files))
        return [self.path, overlay, *map(Path, (*filters, *keys))]

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
                sources = await asyncio.to_thread(read_sources, self.path, self.environ)
                if self._is_echo(cause, sources):
                    return not self.on_disk_differs
                loaded = await asyncio.to_thread(load_all, sources, self.environ)
            except Invalid as error:
                self._refuse(cause, problems_of(error))
                return False
            difference = compare(self.current.settings, loaded.settings)
            problems = _needs_a_start(self.path, difference)
            if any(key.startswith(FILTERS) for key in difference.code):
                found = await asyncio.to_thread(check_filters, loaded.settings, sources.filters, self.environ)
                problems = (*map(str, found.problems), *problems)
                loaded = msgspec.structs.replace(loaded, warnings=(*loaded.warnings, *found.warnings))
            if not problems and difference.code:
                LOG.info("%s: new workers are asked for", ", ".join(difference.code))
                if why := await self._replace(loaded):
                    keys = ", ".join(difference.code)
                    problems = (f"{self.path}: {keys}: the new workers do not serve: {why}",)
            if problems:
                self._refuse(cause, problems)
                return False
            await self._accept(cause, loaded)
            return True

    def _is_echo(self, cause: str, sources: Sources) -> bool:
        """Whether this is no change: other `filters.paths` are other watched files, which the watch takes for one."""
        before, self._read = self._read, sources
        if self._echo and cause == FILE_CHANGED and sources == before:
            self._echo = False
            return True
        self._echo = self._echo or sources.filters.patterns != before.filters.patterns
        return False

    async def _accept(self, cause: str, loaded: Loaded) -> None:
        try:
            await asyncio.to_thread(write_last_good, self.state_dir, loaded.sources)
        except OSError as error:
            # The bus carries it to the workers that live; one that starts later hears it a moment after its start.
            LOG.error("the new configuration runs, but cannot be kept for a restart: %s", error)
        for warning in loaded.warnings:
            LOG.warning("%s", warning)
        difference = compare(self.current.settings, loaded.settings)
        changed = difference.code + difference.data
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


def _needs_a_start(path: Path, difference: Difference) -> tuple[str, ...]:
    """What a running gateway cannot become, by key."""
    return tuple(f"{path}: {key}: a change needs a new start of the gateway" for key in difference.restart)
