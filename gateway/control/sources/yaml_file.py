"""The tenant map's source `yaml`: one file that an operator edits, watched, validated, written to the store whole.

A bad edit keeps the old map and names file and line. A change that loses too many tenants keeps it too: an emptied or
half-copied file is far more often a mistake than a wish. Large files are parsed in a child process, because parsing
YAML holds the interpreter for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from gateway.bus.messages import MapChanged
from gateway.control.reload import APPLIED, REFUSED, Outcome, problems_of
from gateway.control.sources import parse
from gateway.core.placement import Placement
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.settings.tenants import load_tenants
from gateway.store.record import StoreError
from gateway.store.writer import Writer

LOG = logging.getLogger("landbridge.control")

LOSS_MIN: Final = 10
"""Fewer tenants than this may always go (unless they are all there are): small maps change by large fractions."""

CHILD_FROM_BYTES: Final = 64 * 1024
"""Below this (a thousand tenants) a thread parses it in less time than a child needs to start."""

FILE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Two million tenants; a larger file is not what the operator meant."""

PAGE: Final = 1000


class Refused(Exception):
    """The file was not taken in. `guarded`: it is valid, but loses too many tenants."""

    def __init__(self, problems: tuple[str, ...], guarded: bool = False) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.guarded = guarded


def loss(old: Iterable[str], new: Iterable[str], fraction: float) -> int:
    """How many tenants the change from `old` to `new` ids removes, if that is too many; else 0.

    Too many is all of them, or more than `fraction` of them and at least `LOSS_MIN` (DESIGN 5.1, `loss_guard`).
    """
    before = set(old)
    removed = len(before - set(new))
    if removed and (removed == len(before) or (removed >= LOSS_MIN and removed > fraction * len(before))):
        return removed
    return 0


def read(path: Path, settings: Settings) -> list[Placement]:
    """The placements that the file holds. Raises Refused. Blocks."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise Refused((f"{path}: expected at most {FILE_BYTES_MAX} bytes",))
        text = path.read_bytes()
    except OSError as error:
        raise Refused((f"{path}: cannot be read: {error.strerror or error}",)) from error
    if len(text) > CHILD_FROM_BYTES:
        return _parse_in_child(path, text, settings)
    try:
        return load_tenants(str(path), text, settings)
    except Invalid as error:
        raise Refused(problems_of(error)) from error


def _parse_in_child(path: Path, text: bytes, settings: Settings) -> list[Placement]:
    answer = parse.run(sys.executable, parse.Job(str(path), text, settings))
    if answer.problems:
        raise Refused(answer.problems)
    return answer.placements


class YamlFile:
    """One tenants file and the map that was made of it. One attempt at a time, in threads.

    `changed(change)` hears of every change of the store, `ended(outcome)` of every attempt.
    """

    def __init__(
        self,
        writer: Writer,
        settings: Callable[[], Settings],
        changed: Callable[[MapChanged], None],
        ended: Callable[[Outcome], None],
        wall_ms: Callable[[], int],
    ) -> None:
        self.last: Outcome | None = None
        self.last_error: Outcome | None = None
        self.guard_pending = False
        self._writer = writer
        self._settings = settings
        self._changed = changed
        self._ended = ended
        self._wall_ms = wall_ms
        self._stale_since_ms = writer.meta().written_ms
        self._lock = asyncio.Lock()

    @property
    def path(self) -> Path:
        return Path(self._settings().tenant_map.file)

    @property
    def stale(self) -> bool:
        """Whether the map is not what the file says, as far as is known."""
        return self.last is None or self.last.result == REFUSED

    @property
    def age_s(self) -> float | None:
        """Seconds since the map was last known to be what the file says: 0 while it is, None if it never was."""
        if not self.stale:
            return 0.0
        return max(0.0, (self._wall_ms() - self._stale_since_ms) / 1000) if self._stale_since_ms else None

    async def reload(self, cause: str) -> bool:
        """Read the file and make the map hold what it says; whether that was done."""
        async with self._lock:
            settings = self._settings()
            try:
                change = await asyncio.to_thread(self._take_in, self.path, settings)
            except Refused as refused:
                self._refuse(cause, refused)
                return False
            self.guard_pending = False
            self.last_error = None
            if change.from_txn != change.to_txn:
                self._changed(change)
            LOG.info("tenants applied (%s): %s", cause, _count(change))
            self._end(Outcome(self._wall_ms(), "tenants", cause, APPLIED))
            return True

    def _take_in(self, path: Path, settings: Settings) -> MapChanged:
        placements = read(path, settings)
        try:
            if self._writer.complete():
                self._guard(path, placements, settings.tenant_map.loss_guard)
            return self._writer.replace(placements, self._wall_ms())
        except (StoreError, ValueError) as error:
            raise Refused((str(error),)) from error

    def _guard(self, path: Path, placements: list[Placement], fraction: float) -> None:
        known = list(self._ids())
        if removed := loss(known, (p.tenant for p in placements), fraction):
            raise Refused(
                (
                    f"{path}: this removes {removed} of {len(known)} tenants, which loss_guard ({fraction:.0%}) does "
                    "not let pass: remove them in smaller steps or raise tenant_map.loss_guard (confirming such a "
                    "change is not supported yet)",
                ),
                guarded=True,
            )

    def _ids(self) -> Iterable[str]:
        after = ""
        while page := self._writer.page(after, PAGE):
            yield from (placement.tenant for placement in page)
            after = page[-1].tenant

    def _refuse(self, cause: str, refused: Refused) -> None:
        LOG.error("tenants refused (%s), the map stays as it is:", cause)
        for problem in refused.problems:
            LOG.error("%s", problem)
        if not self.stale:
            self._stale_since_ms = self._wall_ms()
        self.guard_pending = refused.guarded
        self.last_error = Outcome(self._wall_ms(), "tenants", cause, REFUSED, refused.problems)
        self._end(self.last_error)

    def _end(self, outcome: Outcome) -> None:
        self.last = outcome
        self._ended(outcome)


def _count(change: MapChanged) -> str:
    if change.from_txn == change.to_txn:
        return "nothing changed"
    if change.from_txn == 0:
        return "everything may have changed"
    return f"{len(change.tenants)} tenants and {len(change.hosts)} hosts changed"
