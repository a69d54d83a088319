"""The tenant map's source `yaml`: one file that an operator edits, watched, validated, written to the store whole.

A bad edit keeps the old map and names file and line. A change that loses too many tenants keeps it too: an emptied or
half-copied file is far more often a mistake than a wish. Large files are parsed in a child process, because parsing
YAML holds the interpreter for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from gateway.bus.messages import MapChanged
from gateway.control.reload import APPLIED, FILE_CHANGED, REFUSED, Outcome
from gateway.control.sources import confirm, parse
from gateway.control.sources.confirm import Confirmation, Pending, loss
from gateway.control.sources.source import Ground
from gateway.control.watch import Watch
from gateway.settings.schema import Settings
from gateway.store.record import StoreError
from gateway.store.wanted import Wanted

LOG = logging.getLogger("landbridge.control")

CHILD_FROM_BYTES: Final = 64 * 1024
"""Below this (a thousand tenants) a thread parses it in less time than a child needs to start."""

FILE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Two million tenants; a larger file is not what the operator meant."""

PAGE: Final = 1000


class Refused(Exception):
    """The file was not taken in. `pending`: it is valid, but loses too many tenants, and waits to be confirmed."""

    def __init__(self, problems: tuple[str, ...], pending: Pending | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.pending = pending


def read(path: Path, settings: Settings) -> Wanted:
    """The map that the file holds. Raises Refused. Blocks."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise Refused((f"{path}: expected at most {FILE_BYTES_MAX} bytes",))
        text = path.read_bytes()
    except OSError as error:
        raise Refused((f"{path}: cannot be read: {error.strerror or error}",)) from error
    job = parse.Job(str(path), text, settings)
    answer = parse.run(sys.executable, job) if len(text) > CHILD_FROM_BYTES else parse.work(job)
    if answer.problems:
        raise Refused(answer.problems)
    return answer.wanted


class YamlFile:
    """One tenants file and the map that was made of it. One attempt at a time, in threads."""

    def __init__(self, ground: Ground) -> None:
        self.last: Outcome | None = None
        self.last_error: Outcome | None = None
        self.pending: Pending | None = None
        self.heard_at: float | None = None
        self._writer = ground.writer
        self._settings = ground.settings
        self._changed = ground.changed
        self._ended = ground.ended
        self._wall_ms = ground.wall_ms
        self._stale_since_ms = ground.writer.meta().written_ms
        self._lock = asyncio.Lock()
        self._watch = Watch(lambda: [self.path], lambda: self.reload(FILE_CHANGED))

    @property
    def path(self) -> Path:
        return Path(self._settings().tenant_map.file)

    @property
    def place(self) -> str:
        return str(self.path)

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

    def settle(self) -> None:
        self._watch.settle()

    async def read_all(self, cause: str) -> None:
        """Read the file, unless it is being written: `run` sees it come to rest."""
        if await self._watch.at_rest():
            await self.reload(cause)

    async def run(self) -> None:
        await self._watch.run()

    def acknowledged(self, transaction: int | None) -> None:
        """Nobody asks how far the workers are."""

    def replication(self) -> None:
        """A file knows of no other region."""

    async def reload(self, cause: str) -> bool:
        """Read the file and make the map hold what it says; whether that was done."""
        async with self._lock:
            settings = self._settings()
            try:
                change = await asyncio.to_thread(self._take_in, self.path, settings)
            except Refused as refused:
                self._refuse(cause, refused)
                return False
            self.pending = None
            self.last_error = None
            if change.from_txn != change.to_txn:
                self._changed(change)
            LOG.info("tenants applied (%s): %s", cause, _count(change))
            self._end(Outcome(self._wall_ms(), "tenants", cause, APPLIED))
            return True

    def _take_in(self, path: Path, settings: Settings) -> MapChanged:
        state_dir = Path(settings.state_dir)
        try:
            wanted = read(path, settings)
            if self._writer.complete():
                self._guard(path, state_dir, wanted, settings.tenant_map.loss_guard)
            change = self._writer.replace(wanted, self._wall_ms())
        except (StoreError, ValueError) as error:
            raise Refused((str(error),)) from error
        except Refused as refused:
            if refused.pending is None:
                confirm.forget(state_dir)  # what waited is no longer what the file says
            raise
        confirm.forget(state_dir)
        return change

    def _guard(self, path: Path, state_dir: Path, wanted: Wanted, fraction: float) -> None:
        """Let nothing pass that removes too many tenants, unless this very change was confirmed. Raises Refused."""
        digest = self._writer.meta().digest
        known = set(self._ids())
        removed = loss(known, wanted.tenants.keys(), fraction)
        if not removed:
            return
        change = wanted.change_from(known, digest)
        said = confirm.confirmed(state_dir)
        if said == Confirmation(change):
            LOG.warning("an operator confirmed change %s: %d of %d tenants are removed", change, removed, len(known))
            return
        if said is not None:
            if said.restore:
                LOG.error("a tenants file has nothing to restore: put the file right")
            else:
                LOG.error("change %s was confirmed, but it is change %s that waits now", said.change, change)
            confirm.forget(state_dir)
        first = tuple(key.decode() for key in islice(sorted(known - wanted.tenants.keys()), confirm.NAMED_MAX))
        before = confirm.waiting(state_dir)
        since = before.since_ms if before is not None and before.change == change else self._wall_ms()
        pending = Pending(change, str(path), removed, len(known), len(wanted.tenants), first, since)
        with suppress(OSError):  # a full disk: the log and the admin API say it too
            confirm.tell(state_dir, pending)
        raise Refused(
            (
                f"{path}: this removes {removed} of {len(known)} tenants, which loss_guard ({fraction:.0%}) does not "
                f"let pass: `landbridge map confirm --change {change}` if it is meant, else put the file right",
            ),
            pending,
        )

    def _ids(self) -> Iterable[bytes]:
        after = b""
        while rows := self._writer.tenant_slice(after, PAGE)[1]:
            yield from (key for key, _ in rows)
            after = rows[-1][0]

    def _refuse(self, cause: str, refused: Refused) -> None:
        LOG.error("tenants refused (%s), the map stays as it is:", cause)
        for problem in refused.problems:
            LOG.error("%s", problem)
        if not self.stale:
            self._stale_since_ms = self._wall_ms()
        self.pending = refused.pending
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
