"""A new generation of the map, empty or made of a snapshot: however large, in bounded memory.

Nothing of it counts until the last step, so it is written in as many transactions as suit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from gateway.store import generations
from gateway.store.claims import HostIndex, claims_of
from gateway.store.record import (
    DIGEST_MODULUS,
    StoreError,
    Summary,
    boot_id,
    decode_placement,
    encode_summary,
    payload_in,
    record_hash,
    seal,
)
from gateway.store.tables import COMPLETE_KEY, COMPLETE_MARK, SUMMARY_KEY, Tables

MAP_BYTES: Final = 1 << 36
"""Address space, not disk: the file is as long as what was written. Room for some hundred million tenants."""

GROWTH_MAX: Final = 8
"""How often one change may double the map: beyond that something else is wrong."""

TRANSACTION: Final = 20_000
"""Records in one transaction: some ten megabytes of pages in memory."""


class Content(NamedTuple):
    """A whole map: `records` are (id, sealed record) in order of their ids, `summary` says what they are together."""

    records: Iterable[tuple[bytes, bytes]]
    summary: Summary


def make(directory: Path, map_bytes: int = MAP_BYTES, content: Content | None = None) -> int:
    """Make a generation, with this content or empty, and let it count. Raises OSError, lmdb.Error or StoreError.

    The caller holds `generations.locked`. Until the last step nothing has changed; what fails leaves nothing behind.
    """
    generation = generations.make(directory)
    path = generations.path_of(directory, generation)
    try:
        tables = Tables(path, readonly=False, map_size=map_bytes, create=True)
        try:
            if content is not None:
                _fill(tables, content)
            tables.pad()
        finally:
            tables.close()
        generations.point(directory, generation)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return generation


def _fill(tables: Tables, content: Content) -> None:
    """Write a whole map into empty tables, the mark last. Raises StoreError when it is not what its summary says."""
    rows = iter(content.records)
    records = digest = 0
    while batch := list(islice(rows, TRANSACTION)):
        _grown(tables, batch)
        records += len(batch)
        digest += sum(record_hash(payload_in(value)) for _, value in batch)
    summary = Summary(records, digest % DIGEST_MODULUS, content.summary.written_ms, boot_id())
    if (summary.records, summary.digest) != (content.summary.records, content.summary.digest):
        raise StoreError(f"{records} records that are not the {content.summary.records} that were named")
    with tables.env.begin(write=True) as txn:
        txn.put(SUMMARY_KEY, encode_summary(SUMMARY_KEY, summary), db=tables.info)
        txn.put(COMPLETE_KEY, seal(COMPLETE_KEY, COMPLETE_MARK), db=tables.info)


def _grown(tables: Tables, batch: list[tuple[bytes, bytes]]) -> None:
    for _ in range(GROWTH_MAX):
        try:
            with tables.env.begin(write=True) as txn:
                _add(txn, tables, batch)
            return
        except lmdb.MapFullError:
            tables.env.set_mapsize(tables.env.info()["map_size"] * 2)
    raise lmdb.MapFullError(f"still full after growing {GROWTH_MAX} times")


def _add(txn: lmdb.Transaction[bytes], tables: Tables, batch: list[tuple[bytes, bytes]]) -> None:
    """Records with ids above all that are there, and who has their hosts."""
    with txn.cursor(db=tables.tenants) as cursor:
        cursor.putmulti(batch, append=True)

    def hlc_of(tenant: bytes, host: bytes) -> int | None:
        value = txn.get(tenant, db=tables.tenants)
        return None if value is None else claims_of(decode_placement(tenant, value)).get(host)

    index = HostIndex(txn, tables.hosts, tables.following().claims, hlc_of)
    for key, value in batch:
        index.follow(key, None, decode_placement(key, value))
