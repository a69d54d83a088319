"""Control's side of the tenant map: the only writer, and control's own way to read it.

Each change, of one record or of all, is one transaction: records, hosts index, summary, how far the source was
followed, and last the completeness mark. Commits are not synced to disk: a machine that crashes may lose the map, a
process that crashes never does, and no commit waits for a disk.
Calls block (a thread is their place); lookups may come from another thread meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from gateway.bus.messages import MapChanged
from gateway.core.placement import Placement
from gateway.store import following, generations
from gateway.store.changes import Batch, Change, SourceState, encode_source
from gateway.store.claims import Contested
from gateway.store.copying import Copy
from gateway.store.following import Known
from gateway.store.making import GROWTH_MAX, MAP_BYTES, make
from gateway.store.record import (
    DIGEST_MODULUS,
    MapMeta,
    StoreError,
    Summary,
    boot_id,
    decode_summary,
    encode_summary,
    seal,
)
from gateway.store.tables import COMPLETE_KEY, COMPLETE_MARK, SOURCE_KEY, SUMMARY_KEY, Tables
from gateway.store.wanted import Wanted

NAMED_MAX: Final = 10_000
"""A change of more ids and hosts than this is told as "everything": dropping a cache is cheaper than a list."""


class Writer:
    """The map under `directory`, made if need be (mode 0700). Raises StoreError, also when what is there is no map.

    `generation` is the one that is written; `follow()` changes over when another one was made.
    """

    def __init__(self, directory: Path, map_bytes: int = MAP_BYTES) -> None:
        self._directory = directory
        self._map_bytes = map_bytes
        self.ignored = 0
        """Changes that `apply` left out so far, because a newer record was there."""
        self._copy: Copy | None = None
        self._write_lock = threading.Lock()  # one change at a time
        self._size_lock = threading.Lock()  # no lookup of this process while the map is resized
        try:
            self.generation = self._current()
            self._tables = self._open(self.generation)
            self.stale_readers = self._tables.env.reader_check()
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"{directory}: the tenant map cannot be opened: {error}") from error

    def follow(self) -> bool:
        """Write to the generation that counts from now on, if that is another one; whether that was done.

        Makes an empty one when none counts any more. Waits for a change under way. Raises StoreError, and then nothing
        changed.
        """
        with self._write_lock:
            if self.is_in_place():
                return False
            try:
                now = self._current()
                opened = self._open(now)
            except (OSError, lmdb.Error) as error:
                raise StoreError(f"{self._directory}: the rebuilt map cannot be opened: {error}") from error
            self._void_copy()
            with self._size_lock:
                before, self._tables, self.generation = self._tables, opened, now
                before.close()
            return True

    def _current(self) -> int:
        """The generation that counts, made if need be."""
        with generations.locked(self._directory):
            return generations.current(self._directory) or make(self._directory, self._map_bytes)

    def _open(self, generation: int) -> Tables:
        tables = Tables(generations.path_of(self._directory, generation), readonly=False, map_size=self._map_bytes)
        tables.pad()
        return tables

    def is_in_place(self) -> bool:
        """Whether the file is where it was, at its length, and its generation still counts."""
        with self._size_lock:
            return self._tables.is_in_place() and generations.current(self._directory) == self.generation

    def replace(self, placements: Iterable[Placement] | Wanted, written_ms: int) -> MapChanged:
        """Make the map hold exactly these placements. Writes differences only; without any, no transaction at all.

        Afterwards the map is complete. Returns what changed; more than NAMED_MAX names come as "everything"
        (`from_txn` 0, nothing named). ValueError when a tenant or a host comes twice, or a name fits no key.
        StoreError (disk full, say) leaves the map as it was.
        """
        wanted = placements if isinstance(placements, Wanted) else Wanted.of(placements)
        with self._write_lock:
            return self._grown(lambda: self._replace(wanted, written_ms))

    def apply(self, changes: Sequence[Change], source: SourceState, written_ms: int, complete: bool) -> MapChanged:
        """Take these changes in, in their order, and remember how far the source was followed: one transaction.

        What is older than the record here is left out and counted in `ignored`; an equal version takes its place. With
        `complete` the map is complete from now on; without, it stays what it was. Nothing new makes no transaction.
        Returns what changed, as `replace`. ValueError for a name that fits no key, StoreError when the map is damaged
        or cannot be written: nothing was changed then.
        """
        with self._write_lock:
            return self._grown(lambda: self._apply(changes, source, written_ms, complete))

    def _grown(self, work: Callable[[], MapChanged]) -> MapChanged:
        """Do this, again with more room as long as the map is full."""
        self._tables.hold_whole()
        for _ in range(GROWTH_MAX):
            try:
                return work()
            except lmdb.MapFullError:
                self._forget_last_step()
                self._grow()
            except (lmdb.Error, OSError) as error:
                self._forget_last_step()
                raise StoreError(f"the tenant map cannot be written and stays as it was: {error}") from error
        raise StoreError(f"the tenant map cannot be written: still full after growing {GROWTH_MAX} times")

    def _apply(self, changes: Sequence[Change], source: SourceState, written_ms: int, complete: bool) -> MapChanged:
        tables = self._tables
        mark = seal(COMPLETE_KEY, COMPLETE_MARK)
        state = encode_source(SOURCE_KEY, source)
        with tables.env.begin(write=True) as txn:
            to_txn = txn.id()
            from_txn = to_txn - 1
            said = txn.get(SUMMARY_KEY, db=tables.info)
            summary = Summary(0, 0, 0) if said is None else decode_summary(SUMMARY_KEY, said)
            batch = Batch(txn, tables, summary, written_ms)
            batch.add(changes)
            completes = complete and txn.get(COMPLETE_KEY, db=tables.info) != mark
            moves = txn.get(SOURCE_KEY, db=tables.info) != state
            if batch.steps or completes or said is None:
                summary = Summary(batch.records, batch.digest % DIGEST_MODULUS, written_ms, boot_id())
                txn.put(SUMMARY_KEY, encode_summary(SUMMARY_KEY, summary), db=tables.info)
            elif not (moves or batch.waiting_changed):
                self.ignored += batch.ignored
                return MapChanged(from_txn, from_txn, generation=self.generation)
            if moves:
                txn.put(SOURCE_KEY, state, db=tables.info)
            if completes:
                txn.put(COMPLETE_KEY, mark, db=tables.info)
            if self._copy is not None:
                self._copy.note(to_txn, batch.steps)
        tables.pad()
        self.ignored += batch.ignored
        return self._told(from_txn, to_txn, sorted({step.key for step in batch.steps}), sorted(batch.index.touched))

    def _forget_last_step(self) -> None:
        """What was noted for a copy has not been committed."""
        if self._copy is not None:
            self._copy.forget_after(self._tables.transaction())

    @contextmanager
    def copying(self) -> Iterator[Copy]:
        """Note what changes while the map is copied slice by slice; one copy at a time. Raises StoreError."""
        with self._write_lock:
            copy = self._copy = Copy(self.meta())
        try:
            yield copy
        finally:
            with self._write_lock:
                self._copy = None

    def _told(self, from_txn: int, to_txn: int, tenants: Sequence[bytes], hosts: Sequence[bytes]) -> MapChanged:
        if len(tenants) + len(hosts) > NAMED_MAX:
            return MapChanged(0, to_txn, generation=self.generation)
        return MapChanged(from_txn, to_txn, tuple(map(_name, tenants)), tuple(map(_name, hosts)), self.generation)

    def _replace(self, wanted: Wanted, written_ms: int) -> MapChanged:
        tables = self._tables
        with tables.env.begin(write=True) as txn:
            tenants = _differences(txn, tables.tenants, wanted.tenants)
            hosts = _differences(txn, tables.hosts, wanted.hosts)
            to_txn = txn.id()
            from_txn = to_txn - 1
            if not tenants and not hosts and self._says(txn, wanted):
                return MapChanged(
                    from_txn, from_txn, generation=self.generation
                )  # committing an empty transaction makes none
            for database, content, changed in (
                (tables.tenants, wanted.tenants, tenants),
                (tables.hosts, wanted.hosts, hosts),
            ):
                for key in changed:
                    if (value := content.get(key)) is None:
                        txn.delete(key, db=database)
                    else:
                        txn.put(key, value, db=database)
            summary = Summary(len(wanted.tenants), wanted.digest, written_ms, boot_id())
            txn.put(SUMMARY_KEY, encode_summary(SUMMARY_KEY, summary), db=tables.info)
            txn.put(COMPLETE_KEY, seal(COMPLETE_KEY, COMPLETE_MARK), db=tables.info)
            txn.delete(SOURCE_KEY, db=tables.info)
            for table in tables.following():
                txn.drop(table, delete=False)  # of another source: the next one that is followed compares whole
            self._void_copy()
        tables.pad()
        return self._told(from_txn, to_txn, tenants, hosts)

    def _void_copy(self) -> None:
        """The map is another: what was copied so far is none of it."""
        if self._copy is not None:
            self._copy.void = True

    def _says(self, txn: lmdb.Transaction[bytes], wanted: Wanted) -> bool:
        """Whether summary and mark say already what they would say, but for the time, and no source was followed."""
        tables = self._tables
        if txn.get(SOURCE_KEY, db=tables.info) is not None or any(
            txn.stat(table)["entries"] for table in tables.following()
        ):
            return False
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

    def tenant_slice(self, after: bytes, limit: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """(transaction, at most `limit` ids above `after` with their sealed records): as stored, in order."""
        with self._size_lock:
            return self._tables.slice(self._tables.tenants, after, limit)

    # --- what a followed map is asked for: see store.following

    def source(self) -> SourceState | None:
        """How far the source was followed; None when it never was, or the map was replaced or rebuilt since."""
        with self._size_lock:
            return following.source(self._tables)

    def arrived(self, tenant: str) -> int | None:
        """Unix ms at which the tenant's deciding record came here, as far as that is known."""
        with self._size_lock:
            return following.arrived(self._tables, tenant)

    def newest(self, tenant: str) -> Placement | None:
        """The newest record of a tenant, also one that waits because it is not routable here."""
        with self._size_lock:
            return following.newest(self._tables, tenant)

    def known(self, after: str = "", limit: int = 1000) -> list[Known]:
        """Tenants above `after` in order of id, each with its newest version, waiting or not: at most `limit`."""
        with self._size_lock:
            return following.known(self._tables, after, limit)

    def waiting(self, after: str = "", limit: int = 1000) -> list[Placement]:
        """Records that wait to be routable, with ids above `after`: at most `limit`."""
        with self._size_lock:
            return following.waiting(self._tables, after, limit)

    def claimed_twice(self, limit: int = 100) -> list[Contested]:
        """The first `limit` hosts that more than one tenant claims."""
        with self._size_lock:
            return following.claimed_twice(self._tables, limit)

    def check_readers(self) -> int:
        """Free the slots of readers that died in a lookup; how many there were. For each worker's exit."""
        with self._size_lock:
            return self._tables.env.reader_check()

    def close(self) -> None:
        with self._write_lock, self._size_lock:
            self._tables.close()


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
