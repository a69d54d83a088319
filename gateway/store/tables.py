"""The map's LMDB environment, open, and the lookups that reader and writer share.

Three databases: `tenants` (id to sealed placement), `hosts` (host to sealed tenant id), `meta` (summary and
completeness mark). Each lookup is one short transaction, about half a microsecond: none is ever kept across a call,
because a reader that keeps one stops the writer from reusing pages.

LMDB allows an environment once per process. So control, which writes, reads through its Writer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from gateway.core.placement import Placement
from gateway.store.record import (
    CorruptRecord,
    MapMeta,
    StoreError,
    decode_placement,
    decode_summary,
    key_of,
    unseal,
)

DATABASES: Final = 8
"""Three are used; a later program may add some without making older files unreadable."""

READERS_MAX: Final = 512
"""Slots in the lock file, one per process that reads: workers, those that drain, and the CLI."""

SUMMARY_KEY: Final = b"summary"
COMPLETE_KEY: Final = b"complete"
COMPLETE_MARK: Final = b"yes"

_T = TypeVar("_T")


class Tables:
    """An open environment. Raises `lmdb.Error` when it cannot be opened; its methods raise StoreError only."""

    def __init__(self, directory: Path, *, readonly: bool, map_size: int) -> None:
        self.env = lmdb.open(
            str(directory),
            map_size=map_size,
            readonly=readonly,
            create=not readonly,
            mode=0o600,
            sync=False,
            metasync=False,
            max_dbs=DATABASES,
            max_readers=READERS_MAX,
            lock=True,
        )
        try:
            self.tenants = self.env.open_db(b"tenants", create=not readonly)
            self.hosts = self.env.open_db(b"hosts", create=not readonly)
            self.info = self.env.open_db(b"meta", create=not readonly)
        except BaseException:
            self.env.close()
            raise

    def placement(self, tenant: str) -> Placement | None:
        """The tenant's record, None without one. Raises CorruptRecord, or StoreError when the map is not readable."""
        key = key_of(tenant)
        if key is None:
            return None
        value = self._get(self.tenants, key)
        return None if value is None else decode_placement(key, value)

    def host(self, host: str) -> str | None:
        """The tenant that claims this host (lower case, no port), None without one. Raises like `placement`."""
        key = key_of(host)
        if key is None:
            return None
        value = self._get(self.hosts, key)
        return None if value is None else unseal(key, value).decode()

    def complete(self) -> bool:
        """Whether the completeness mark stands. Raises StoreError."""
        return self._is_mark(self._get(self.info, COMPLETE_KEY))

    def transaction(self) -> int:
        """The last committed transaction: grows with every change. Raises StoreError."""
        try:
            return self.env.info()["last_txnid"]
        except lmdb.Error as error:
            raise StoreError(f"the tenant map cannot be read: {error}") from error

    def meta(self) -> MapMeta:
        """All that is known of the map, from one transaction. Raises StoreError."""

        def read(txn: lmdb.Transaction[bytes]) -> MapMeta:
            value = txn.get(SUMMARY_KEY, db=self.info)
            if value is None:
                return MapMeta(transaction=txn.id())
            summary = decode_summary(SUMMARY_KEY, value)
            return MapMeta(
                complete=self._is_mark(txn.get(COMPLETE_KEY, db=self.info)),
                records=summary.records,
                digest=f"{summary.digest:016x}",
                written_ms=summary.written_ms,
                transaction=txn.id(),
            )

        return self._read(read)

    def page(self, after: str, limit: int) -> list[Placement]:
        """At most `limit` readable records with ids above `after` ("" is from the start), in order of id.

        Records that are not readable are left out: a list of tenants must not fail because of one.
        """

        def read(txn: lmdb.Transaction[bytes]) -> list[Placement]:
            found: list[Placement] = []
            with txn.cursor(db=self.tenants) as cursor:
                start = after.encode("utf-8", "replace")[:KEY_SEARCH_BYTES_MAX]
                there = cursor.set_range(start) if start else cursor.first()
                if there and start and cursor.key() == start:
                    there = cursor.next()
                while there and len(found) < limit:
                    try:
                        found.append(decode_placement(cursor.key(), cursor.value()))
                    except CorruptRecord:
                        pass
                    there = cursor.next()
            return found

        return self._read(read)

    def close(self) -> None:
        self.env.close()

    def _get(self, database: lmdb._Database, key: bytes) -> bytes | None:
        try:
            with self.env.begin() as txn:
                return txn.get(key, db=database)
        except lmdb.MapResizedError:
            return self._read(lambda txn: txn.get(key, db=database))
        except lmdb.Error as error:
            raise StoreError(f"the tenant map cannot be read: {error}") from error

    def _read(self, read: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Run `read` in a transaction; once more with the new size when the writer has grown the map."""
        try:
            try:
                with self.env.begin() as txn:
                    return read(txn)
            except lmdb.MapResizedError:
                self.env.set_mapsize(0)  # adopt the size that the writer has set
                with self.env.begin() as txn:
                    return read(txn)
        except lmdb.Error as error:
            raise StoreError(f"the tenant map cannot be read: {error}") from error

    @staticmethod
    def _is_mark(value: bytes | None) -> bool:
        if value is None:
            return False
        try:
            return unseal(COMPLETE_KEY, value) == COMPLETE_MARK
        except CorruptRecord:
            return False


KEY_SEARCH_BYTES_MAX: Final = 511
"""LMDB's longest key: an `after` beyond it is cut, which starts the page no later than asked."""
