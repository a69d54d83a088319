"""What can be asked of a map that follows a source: how far it is, what it knows, what waits, what is contested.

Each call is one short read transaction over a bounded number of records, so that whoever walks a large map never keeps
the writer from reusing pages, and nobody waits for long.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, NamedTuple

import lmdb
import msgspec

from gateway.core.placement import Placement, Version
from gateway.store import claims
from gateway.store.changes import SourceState, decode_arrived, decode_source
from gateway.store.claims import Contested
from gateway.store.record import CorruptRecord, decode_placement, key_of, unseal
from gateway.store.tables import SOURCE_KEY, Tables


class Known(NamedTuple):
    """The newest version of a tenant that this gateway has, routable or not."""

    tenant: str
    version: Version


class _Versioned(msgspec.Struct):
    """Of a placement only this much: a whole map is walked for it."""

    version: Version = Version()


_versioned: Final = msgspec.msgpack.Decoder(_Versioned)


def source(tables: Tables) -> SourceState | None:
    """How far the source was followed; None when it never was (or the map was rebuilt). Raises StoreError."""

    def read(txn: lmdb.Transaction[bytes]) -> SourceState | None:
        value = txn.get(SOURCE_KEY, db=tables.info)
        return None if value is None else decode_source(SOURCE_KEY, value)

    return tables.read(read)


def arrived(tables: Tables, tenant: str) -> int | None:
    """Unix ms at which the tenant's deciding record came here; None when that is not known. Raises StoreError."""
    key = key_of(tenant)
    if key is None or not tables.follows():
        return None

    def read(txn: lmdb.Transaction[bytes]) -> int | None:
        value = txn.get(key, db=tables.following().arrived)
        return None if value is None else decode_arrived(key, value)

    return tables.read(read)


def newest(tables: Tables, tenant: str) -> Placement | None:
    """The newest record of a tenant, also one that waits; None without any. Raises StoreError."""
    key = key_of(tenant)
    if key is None:
        return None

    def read(txn: lmdb.Transaction[bytes]) -> Placement | None:
        value = txn.get(key, db=tables.following().waiting) or txn.get(key, db=tables.tenants)
        return None if value is None else decode_placement(key, value)

    return tables.read(read)


def known(tables: Tables, after: str, limit: int) -> list[Known]:
    """At most `limit` tenants with ids above `after` ("": from the first), in order. Raises StoreError."""

    def read(txn: lmdb.Transaction[bytes]) -> list[Known]:
        rows = _above(txn, tables.tenants, after, limit)
        if not rows:
            return []
        newer = dict(_above(txn, tables.following().waiting, after, limit))
        return [Known(key.decode(), _version(key, newer.get(key, value))) for key, value in rows]

    return tables.read(read)


def waiting(tables: Tables, after: str, limit: int) -> list[Placement]:
    """At most `limit` records that wait to be routable, with ids above `after`, in order. Raises StoreError."""
    following = tables.following()
    rows = tables.read(lambda txn: _above(txn, following.waiting, after, limit))
    return [decode_placement(key, value) for key, value in rows]


def claimed_twice(tables: Tables, limit: int) -> list[Contested]:
    """The first `limit` hosts that more than one tenant claims. Raises StoreError."""
    return tables.read(lambda txn: claims.contested(txn, tables.following().claims, limit))


def _above(txn: lmdb.Transaction[bytes], database: lmdb._Database, after: str, limit: int) -> list[tuple[bytes, bytes]]:
    start = after.encode()
    with txn.cursor(db=database) as cursor:
        if not (cursor.set_range(start) if start else cursor.first()):
            return []
        rows = list(islice(cursor, limit + 1))
    return rows[1:] if rows[0][0] == start else rows[:limit]


def _version(key: bytes, value: bytes) -> Version:
    try:
        return _versioned.decode(unseal(key, value)).version
    except msgspec.MsgspecError as error:
        raise CorruptRecord(f"{key.decode('ascii', 'backslashreplace')}: {error}") from error
