"""The worker's side of the tenant map: read-only, opened late, never waiting for the writer.

A map that does not exist yet is "not complete" and appears by itself once control has made it. A map that was rebuilt
in another generation is followed by `follow()`, which the worker asks each second and whenever control says so.
Nothing here writes, creates or repairs anything, and no transaction outlives a call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import lmdb

from gateway.core.placement import Placement
from gateway.store import following, generations
from gateway.store.generations import DATA_FILE
from gateway.store.record import MapMeta, StoreError
from gateway.store.tables import Tables

REOPEN_EVERY: Final = 256
"""An open that failed is tried again when the file has changed, and every so many calls in any case."""


class Reader:
    """Lookups in the map under `directory`. One per process, made after the process has started (never across fork).

    Before there is a readable map every lookup finds nothing and `complete()` is false: ask that first. A record that
    is damaged raises CorruptRecord: that tenant is not readable, others are. StoreError when the map as a whole fails.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tables: Tables | None = None
        self._failed: tuple[int, int, int] | None = None  # the data file at the last open that failed
        self._calls_since = 0
        self.generation = 0
        """The generation that is open; 0 without one."""

    def follow(self) -> bool:
        """Change over to the generation that counts, if that is another one; whether that was done.

        A complete map is left only for another complete one: while its successor is still empty, what we have may
        lack records that cannot be read, but the rest of it is right.
        """
        now = generations.current(self._directory)
        if now == 0 or (now == self.generation and self.in_place()):
            return False
        before, before_generation = self._tables, self.generation
        was_complete = before is not None and self.complete()
        self._tables = None
        opened = self._open()
        if opened is None or (was_complete and not _is_complete(opened)):
            if opened is not None:
                opened.close()
            self._tables, self.generation = before, before_generation
            return False
        if before is not None:
            before.close()
        return True

    def in_place(self) -> bool:
        """Whether the file that is open is where it was, at its length: otherwise somebody has to make it anew."""
        return self._tables is None or self._tables.is_in_place()

    def complete(self) -> bool:
        """Whether the completeness mark stands. Without it, or unreadable, an unknown tenant may exist all the same."""
        tables = self._tables or self._open()
        return tables is not None and _is_complete(tables)

    def placement(self, tenant: str) -> Placement | None:
        """The tenant's record, None without one (or without a map)."""
        tables = self._tables or self._open()
        return None if tables is None else tables.placement(tenant)

    def host(self, host: str) -> str | None:
        """The tenant that claims this host (lower case, no port), None without one (or without a map)."""
        tables = self._tables or self._open()
        return None if tables is None else tables.host(host)

    def transaction(self) -> int:
        """The last transaction of this generation, 0 without a map: what was cached at another one may be stale."""
        tables = self._tables or self._open()
        return 0 if tables is None else tables.transaction()

    def meta(self) -> MapMeta:
        """All that is known of the map, consistent with itself."""
        tables = self._tables or self._open()
        return MapMeta() if tables is None else tables.meta()

    def page(self, after: str, limit: int) -> list[Placement]:
        """At most `limit` records with ids above `after` ("" is from the start), in order; damaged ones left out."""
        tables = self._tables or self._open()
        return [] if tables is None else tables.page(after, limit)

    def arrived(self, tenant: str) -> int | None:
        """Unix ms at which the tenant's record came here; None when that is not known."""
        tables = self._tables or self._open()
        return None if tables is None else following.arrived(tables, tenant)

    def close(self) -> None:
        if self._tables is not None:
            self._tables.close()
            self._tables = None
        self.generation = 0

    def _open(self) -> Tables | None:
        """Open the map if there is one. Two system calls when there is none, or when it is as bad as it was."""
        generation = generations.current(self._directory)
        path = generations.path_of(self._directory, generation)
        try:
            there = os.stat(path / DATA_FILE)
        except OSError:
            return None
        identity = (there.st_ino, there.st_size, there.st_mtime_ns)
        self._calls_since += 1
        if there.st_size == 0 or (identity == self._failed and self._calls_since % REOPEN_EVERY):
            return None
        try:
            self._tables = Tables(path, readonly=True, map_size=0)
        except (lmdb.Error, OSError):
            # Half made, or damaged: both are "not complete". Control says what is wrong with a damaged map.
            self._failed = identity
            return None
        self.generation = generation
        return self._tables


def _is_complete(tables: Tables) -> bool:
    try:
        return tables.complete()
    except StoreError:
        return False


__all__ = ["DATA_FILE", "Reader", "StoreError"]
