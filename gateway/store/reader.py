"""The worker's side of the tenant map: read-only, opened late, never waiting for the writer.

A map that does not exist yet is "not complete" and appears by itself once control has made it. Nothing here writes,
creates or repairs anything, and no transaction outlives a call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import lmdb

from gateway.core.placement import Placement
from gateway.store.record import MapMeta, StoreError
from gateway.store.tables import Tables

DATA_FILE: Final = "data.mdb"

REOPEN_EVERY: Final = 256
"""An open that failed is tried again when the file has changed, and every so many calls in any case."""


class Reader:
    """Lookups in the map under `directory`. One per process, made after the process has started (never across fork).

    Before there is a readable map every lookup finds nothing and `complete()` is false: ask that first. A record that
    is damaged raises CorruptRecord: that tenant is not readable, others are. StoreError when the map as a whole fails.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / DATA_FILE
        self._tables: Tables | None = None
        self._failed: tuple[int, int, int] | None = None  # the data file at the last open that failed
        self._calls_since = 0

    def complete(self) -> bool:
        """Whether the completeness mark stands. Without it, or unreadable, an unknown tenant may exist all the same."""
        tables = self._tables or self._open()
        try:
            return tables is not None and tables.complete()
        except StoreError:
            return False

    def placement(self, tenant: str) -> Placement | None:
        """The tenant's record, None without one (or without a map)."""
        tables = self._tables or self._open()
        return None if tables is None else tables.placement(tenant)

    def host(self, host: str) -> str | None:
        """The tenant that claims this host (lower case, no port), None without one (or without a map)."""
        tables = self._tables or self._open()
        return None if tables is None else tables.host(host)

    def transaction(self) -> int:
        """The last committed transaction, 0 without a map: whatever was cached at another one may be stale."""
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

    def close(self) -> None:
        if self._tables is not None:
            self._tables.close()
            self._tables = None

    def _open(self) -> Tables | None:
        """Open the map if there is one. One stat when there is none, or when it is as bad as it was."""
        try:
            there = os.stat(self._data)
        except OSError:
            return None
        identity = (there.st_ino, there.st_size, there.st_mtime_ns)
        self._calls_since += 1
        if there.st_size == 0 or (identity == self._failed and self._calls_since % REOPEN_EVERY):
            return None
        try:
            self._tables = Tables(self._directory, readonly=True, map_size=0)
        except lmdb.Error:
            # Half made, or damaged: both are "not complete". Control says what is wrong with a damaged map.
            self._failed = identity
            return None
        return self._tables


__all__ = ["DATA_FILE", "Reader", "StoreError"]
