"""The map's LMDB environment, open, and the lookups that reader and writer share.

Databases: `tenants` (id to sealed placement), `hosts` (host to sealed tenant id), `meta` (summary, completeness mark,
how far the source was followed), and what a followed map has besides: see `Following`. Each lookup is one short
transaction, about half a microsecond: none is ever kept across a call, because a reader that keeps one stops the
writer from reusing pages.

LMDB allows an environment once per process. So control, which writes, reads through its Writer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import lmdb

from gateway.core.placement import Placement
from gateway.store.generations import DATA_FILE
from gateway.store.pages import is_whole
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
"""Six are used; a later program may add some without making older files unreadable."""

READERS_MAX: Final = 512
"""Slots in the lock file, one per process that reads: workers, those that drain, and the CLI."""

SUMMARY_KEY: Final = b"summary"
COMPLETE_KEY: Final = b"complete"
COMPLETE_MARK: Final = b"yes"
SOURCE_KEY: Final = b"source"

_T = TypeVar("_T")


class Following(NamedTuple):
    """What a map has that follows a source change by change; a file of an older program lacks it until it is written.

    `claims`: claims of contested hosts (`store.claims`); `arrived`: id to the Unix ms at which its record came;
    `waiting`: id to a sealed record that is newer than the one in `tenants`, and not routable here.
    """

    claims: lmdb._Database
    arrived: lmdb._Database
    waiting: lmdb._Database


FOLLOWING: Final = (b"claims", b"arrived", b"waiting")


class Tables:
    """An open environment. Raises `lmdb.Error` when it cannot be opened; its methods raise StoreError only. With
    `create` there must be none yet.

    A file that is there is looked at first, without mapping it: what is not whole is an `lmdb.CorruptedError`, not a
    SIGBUS. And each lookup asks first whether the file still has its length: 0.2 us against the death of the process.
    """

    def __init__(self, directory: Path, *, readonly: bool, map_size: int, create: bool = False) -> None:
        self._data = directory / DATA_FILE
        self._fd = -1
        self._bytes = 0
        if not create:
            _refuse_what_is_not_whole(self._data)
        self.env = lmdb.open(
            str(directory),
            map_size=map_size,
            readonly=readonly,
            create=create,
            mode=0o600,
            sync=False,
            metasync=False,
            max_dbs=DATABASES,
            max_readers=READERS_MAX,
            lock=True,
        )
        try:
            self.tenants = self.env.open_db(b"tenants", create=create)
            self.hosts = self.env.open_db(b"hosts", create=create)
            self.info = self.env.open_db(b"meta", create=create)
            self._following = self._open_following(create=not readonly)
            # A descriptor of our own, on the data only: closing one on the lock file would drop LMDB's locks.
            self._fd = os.open(self._data, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        except BaseException:
            self.env.close()
            raise

    def follows(self) -> bool:
        """Whether the file has what a followed map has."""
        if self._following is None:
            self._following = self._open_following(create=False)
        return self._following is not None

    def following(self) -> Following:
        """Raises StoreError while the file has none of it."""
        if not self.follows() or self._following is None:
            raise StoreError(f"{self._data} was never written to by a program that follows changes")
        return self._following

    def _open_following(self, *, create: bool) -> Following | None:
        try:
            return Following(*(self.env.open_db(name, create=create) for name in FOLLOWING))
        except lmdb.NotFoundError:
            return None

    def hold_whole(self) -> None:
        """Raise StoreError when the file was cut short: touching what is gone would be a SIGBUS."""
        now = os.lseek(self._fd, 0, os.SEEK_END)  # half of what fstat(2) costs: no tuple of twenty numbers is made
        if now < self._bytes:
            raise StoreError(f"{self._data} was cut from {self._bytes} to {now} bytes")
        self._bytes = now

    def is_in_place(self) -> bool:
        """Whether the file is still where it was opened, at its length."""
        try:
            self.hold_whole()
            return os.path.samestat(os.stat(self._data), os.fstat(self._fd))
        except (OSError, StoreError):
            return False

    def pad(self) -> None:
        """For the writer, after a commit: give the file the length that its meta page counts.

        A page that is allocated and freed again within one transaction is counted, and may never be written.
        """
        info = self.env.info()
        bytes_wanted = (info["last_pgno"] + 1) * self.env.stat()["psize"]
        if os.fstat(self._fd).st_size < bytes_wanted:
            os.ftruncate(self._fd, bytes_wanted)

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
        self.hold_whole()
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

        return self.read(read)

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

        return self.read(read)

    def slice(self, database: lmdb._Database, after: bytes, limit: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """The transaction, and at most `limit` keys above `after` with their values, as stored. Raises StoreError."""

        def read(txn: lmdb.Transaction[bytes]) -> tuple[int, list[tuple[bytes, bytes]]]:
            with txn.cursor(db=database) as cursor:
                if not (cursor.set_range(after) if after else cursor.first()):
                    return txn.id(), []
                found = list(islice(cursor, limit + 1))
            return txn.id(), found[1:] if found[0][0] == after else found[:limit]

        return self.read(read)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.env.close()

    def _get(self, database: lmdb._Database, key: bytes) -> bytes | None:
        self.hold_whole()
        try:
            txn = self.env.begin(database)  # without a `with`: three calls fewer
            try:
                return _find(txn, database, key)
            finally:
                txn.abort()
        except lmdb.MapResizedError:
            return self.read(lambda txn: _find(txn, database, key))
        except lmdb.Error as error:
            raise StoreError(f"the tenant map cannot be read: {error}") from error

    def read(self, read: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Run `read` in a transaction; once more with the new size when the writer has grown the map."""
        self.hold_whole()
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


def _refuse_what_is_not_whole(data: Path) -> None:
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise lmdb.Error(f"{data}: {error.strerror}") from error
    try:
        if not is_whole(fd):
            raise lmdb.CorruptedError(f"{data}: the file is damaged or was cut short")
    finally:
        os.close(fd)


def _find(txn: lmdb.Transaction[bytes], database: lmdb._Database, key: bytes) -> bytes | None:
    """The value under a key; None when nothing can have been there either. Raises CorruptRecord."""
    value = txn.get(key, db=database)
    if value is None:
        _hold_neighbours(txn, database, key)
    return value


def _hold_neighbours(txn: lmdb.Transaction[bytes], database: lmdb._Database, key: bytes) -> None:
    """Nothing is under `key`: hold the records to its left and right against their checksums. Raises CorruptRecord.

    Where one key of a page was scribbled over, the search for the true one ends beside it (it compares with it, and
    every other comparison is right). Without this the tenant would be unknown, a 404, instead of not readable.
    """
    with txn.cursor(db=database) as cursor:
        if cursor.set_range(key):
            unseal(cursor.key(), cursor.value())
            if not cursor.prev():
                return
        elif not cursor.last():
            return
        unseal(cursor.key(), cursor.value())
