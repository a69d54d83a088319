"""Control's side of the tenant map: the only writer, and control's own way to read it.

Each change is one transaction: records, hosts index, summary, and last the completeness mark. Commits are not synced
to disk: a machine that crashes may lose the map, a process that crashes never does, and no commit waits for a disk.
Calls block (a thread is their place); lookups may come from another thread meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from gateway.bus.messages import MapChanged
from gateway.core.placement import Placement
from gateway.store.record import (
    MapMeta,
    StoreError,
    Summary,
    decode_summary,
    digest_of,
    encode_placement,
    encode_summary,
    key_of,
    seal,
)
from gateway.store.tables import COMPLETE_KEY, COMPLETE_MARK, SUMMARY_KEY, Tables

MAP_BYTES: Final = 1 << 30
"""Address space, not disk: the file is as long as what was written. Room for some two million tenants."""

GROWTH_MAX: Final = 8
"""How often one change may double the map: beyond that something else is wrong."""

NAMED_MAX: Final = 10_000
"""A change of more ids and hosts than this is told as "everything": dropping a cache is cheaper than a list."""


class Writer:
    """The map under `directory`, made if need be (mode 0700). Raises StoreError, also when another map is there."""

    def __init__(self, directory: Path, map_bytes: int = MAP_BYTES) -> None:
        self._write_lock = threading.Lock()  # one change at a time
        self._size_lock = threading.Lock()  # no lookup of this process while the map is resized
        try:
            if not directory.exists():
                directory.mkdir(mode=0o700, parents=True)
            self._tables = Tables(directory, readonly=False, map_size=map_bytes)
            self.stale_readers = self._tables.env.reader_check()
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{directory}: the tenant map cannot be opened: {error}") from error

    def replace(self, placements: Iterable[Placement], written_ms: int) -> MapChanged:
        """Make the map hold exactly these placements. Writes differences only; without any, no transaction at all.

        Afterwards the map is complete. Returns what changed; more than NAMED_MAX names come as "everything"
        (`from_txn` 0, nothing named). ValueError when a tenant or a host comes twice, or a name fits no key.
        StoreError (disk full, say) leaves the map as it was.
        """
        wanted = _Wanted.of(placements)
        with self._write_lock:
            for _ in range(GROWTH_MAX):
                try:
                    return self._replace(wanted, written_ms)
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.Error as error:
                    raise StoreError(f"the tenant map cannot be written and stays as it was: {error}") from error
        raise StoreError(f"the tenant map cannot be written: still full after growing {GROWTH_MAX} times")

    def _replace(self, wanted: _Wanted, written_ms: int) -> MapChanged:
        tables = self._tables
        with tables.env.begin(write=True) as txn:
            tenants = _differences(txn, tables.tenants, wanted.tenants)
            hosts = _differences(txn, tables.hosts, wanted.hosts)
            to_txn = txn.id()
            from_txn = to_txn - 1
            if not tenants and not hosts and self._says(txn, wanted):
                return MapChanged(from_txn, from_txn)  # committing an empty transaction makes none
            for database, content, changed in (
                (tables.tenants, wanted.tenants, tenants),
                (tables.hosts, wanted.hosts, hosts),
            ):
                for key in changed:
                    if (value := content.get(key)) is None:
                        txn.delete(key, db=database)
                    else:
                        txn.put(key, value, db=database)
            summary = Summary(len(wanted.tenants), wanted.digest, written_ms)
            txn.put(SUMMARY_KEY, encode_summary(SUMMARY_KEY, summary), db=tables.info)
            txn.put(COMPLETE_KEY, seal(COMPLETE_KEY, COMPLETE_MARK), db=tables.info)
        if len(tenants) + len(hosts) > NAMED_MAX:
            return MapChanged(0, to_txn)
        return MapChanged(from_txn, to_txn, tuple(map(_name, tenants)), tuple(map(_name, hosts)))

    def _says(self, txn: lmdb.Transaction[bytes], wanted: _Wanted) -> bool:
        """Whether summary and mark already say what they would say now, but for the time."""
        tables = self._tables
        value = txn.get(SUMMARY_KEY, db=tables.info)
        if value is None or txn.get(COMPLETE_KEY, db=tables.info) != seal(COMPLETE_KEY, COMPLETE_MARK):
            return False
        try:
            summary = decode_summary(SUMMARY_KEY, value)
        except StoreError:
            return False
        return summary.records == len(wanted.tenants) and summary.digest == wanted.digest

    def _grow(self) -> None:
        with self._size_lock:
            self._tables.env.set_mapsize(self._tables.env.info()["map_size"] * 2)

    def meta(self) -> MapMeta:
        """All that is known of the map. StoreError when it cannot be read."""
        with self._size_lock:
            return self._tables.meta()

    def complete(self) -> bool:
        with self._size_lock:
            return self._tables.complete()

    def placement(self, tenant: str) -> Placement | None:
        """As Reader.placement."""
        with self._size_lock:
            return self._tables.placement(tenant)

    def host(self, host: str) -> str | None:
        """As Reader.host."""
        with self._size_lock:
            return self._tables.host(host)

    def transaction(self) -> int:
        with self._size_lock:
            return self._tables.transaction()

    def page(self, after: str, limit: int) -> list[Placement]:
        """As Reader.page."""
        with self._size_lock:
            return self._tables.page(after, limit)

    def check_readers(self) -> int:
        """Free the slots of readers that died in a lookup; how many there were. For each worker's exit."""
        return self._tables.env.reader_check()

    def close(self) -> None:
        with self._write_lock, self._size_lock:
            self._tables.close()


class _Wanted(NamedTuple):
    """What the map shall hold, as stored."""

    tenants: dict[bytes, bytes]
    hosts: dict[bytes, bytes]
    digest: int

    @classmethod
    def of(cls, placements: Iterable[Placement]) -> _Wanted:
        tenants: dict[bytes, bytes] = {}
        hosts: dict[bytes, bytes] = {}
        payloads: list[bytes] = []
        for placement in placements:
            key = _new_key(placement.tenant, tenants)
            payload = encode_placement(placement)
            payloads.append(payload)
            tenants[key] = seal(key, payload)
            for host in placement.hosts:
                host_key = _new_key(host, hosts)
                hosts[host_key] = seal(host_key, key)
        return cls(tenants, hosts, digest_of(payloads))


def _new_key(name: str, there: dict[bytes, bytes]) -> bytes:
    key = key_of(name)
    if key is None:
        raise ValueError(f"{name!r} can be no key of the tenant map")
    if key in there:
        raise ValueError(f"{name!r} comes twice")
    return key


def _differences(txn: lmdb.Transaction[bytes], database: lmdb._Database, wanted: dict[bytes, bytes]) -> list[bytes]:
    """Keys whose value is not what is wanted, in order: changed, added, removed."""
    same = 0
    changed: list[bytes] = []
    seen: set[bytes] = set()
    with txn.cursor(db=database) as cursor:
        for key, value in cursor:
            seen.add(key)
            if wanted.get(key) == value:
                same += 1
            else:
                changed.append(key)
    if same < len(wanted):
        changed.extend(key for key in wanted if key not in seen)
    return sorted(changed)


def _name(key: bytes) -> str:
    return key.decode("ascii", "backslashreplace")
