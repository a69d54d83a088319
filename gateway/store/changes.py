"""Changes of single records, one transaction for many: what follows a replicated map writes nothing but what changed.

A `Batch` keeps everything that the map says in step with its records: the hosts index, when a record arrived, the
summary's count and digest. No version goes back: a record that is older than what is here is left out and counted.

A record that is not routable (it names a region that this gateway does not know) waits beside the map while the last
routable one goes on deciding. With none before it is stored all the same, and waits too: so the store knows that the
next one may take its place, and control finds in one place what it has to judge again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import lmdb
import msgspec

from gateway.core.placement import Placement, State, newer
from gateway.store.claims import HostIndex, claims_of
from gateway.store.copying import Step
from gateway.store.record import (
    CorruptRecord,
    Summary,
    decode_placement,
    encode_placement,
    key_of,
    payload_in,
    record_hash,
    seal,
    unseal,
)
from gateway.store.tables import Tables

_MS: Final = struct.Struct(">Q")


class Change(NamedTuple):
    """What a tenant's record is from now on; `placement` None: it is not there any more (purged)."""

    tenant: str
    placement: Placement | None
    routable: bool = True


class SourceState(msgspec.Struct, frozen=True):
    """How far the map has followed its source: everything up to `seq` of the feed `log_id` is in it.

    `origins`: of each region's own log, "log_id seq" up to which it is in.
    """

    log_id: str
    seq: int
    origins: dict[str, str] = {}


class Batch:
    """Changes within one write transaction, in their order. `add` raises CorruptRecord for a map that is damaged."""

    def __init__(self, txn: lmdb.Transaction[bytes], tables: Tables, summary: Summary, arrived_ms: int) -> None:
        self.records = summary.records
        self.digest = summary.digest
        """As a plain sum: the summary's is taken of it when all is added."""
        self.steps: list[Step] = []
        """Each change of a deciding record."""
        self.ignored = 0
        claims, self._arrived, self._waiting = tables.following()
        self.index = HostIndex(txn, tables.hosts, claims, self._hlc_of)
        self._txn = txn
        self._tenants = tables.tenants
        self._arrived_ms = _MS.pack(arrived_ms)
        self._none_waits = txn.stat(self._waiting)["entries"] == 0
        self.waiting_changed = False

    def add(self, changes: Iterable[Change]) -> None:
        """ValueError for a tenant whose name fits no key."""
        for tenant, placement, routable in changes:
            key = key_of(tenant)
            if key is None or (placement is not None and placement.tenant != tenant):
                raise ValueError(f"{tenant!r} can be no key of the tenant map")
            if placement is None:
                self._purge(key)
            else:
                # What is deleted is deleted wherever it pointed: it must not wait while the tenant lives on.
                self._put(key, placement, routable or placement.state is State.DELETED)

    def _put(self, key: bytes, placement: Placement, routable: bool) -> None:
        value = self._txn.get(key, db=self._tenants)
        held = None if self._none_waits else self._txn.get(key, db=self._waiting)
        there = None if value is None else decode_placement(key, value)
        newest = there if held is None or held == value else decode_placement(key, held)
        if newest is not None and newer(newest.version, placement.version):
            self.ignored += 1
            return
        wanted = seal(key, encode_placement(placement))
        if routable or there is None or held == value:
            if wanted != value:
                self._txn.put(key, wanted, db=self._tenants)
                self._txn.put(key, seal(key, self._arrived_ms), db=self._arrived)
                self._changes(key, there, value, placement, wanted)
            if not routable and wanted != held:
                self._hold(key, wanted)
            elif routable and held is not None:
                self._release(key)
        elif wanted not in (value, held):
            self._hold(key, wanted)

    def _purge(self, key: bytes) -> None:
        value = self._txn.get(key, db=self._tenants)
        if value is None:
            return
        there = decode_placement(key, value)
        self._txn.delete(key, db=self._tenants)
        self._txn.delete(key, db=self._arrived)
        self._changes(key, there, value, None, None)
        if not self._none_waits and self._txn.get(key, db=self._waiting) is not None:
            self._release(key)

    def _changes(
        self, key: bytes, there: Placement | None, value: bytes | None, after: Placement | None, wanted: bytes | None
    ) -> None:
        """Keep index, count and digest in step with a record that was `there`, sealed `value`, and is `after`."""
        step = Step(
            key,
            (wanted is not None) - (value is not None),
            (0 if wanted is None else record_hash(payload_in(wanted)))
            - (0 if value is None else record_hash(payload_in(value))),
        )
        self.records += step.records
        self.digest += step.digest
        self.steps.append(step)
        self.index.follow(key, there, after)

    def _hold(self, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._waiting)
        self._none_waits = False
        self.waiting_changed = True

    def _release(self, key: bytes) -> None:
        self._txn.delete(key, db=self._waiting)
        self.waiting_changed = True

    def _hlc_of(self, tenant: bytes, host: bytes) -> int | None:
        value = self._txn.get(tenant, db=self._tenants)
        return None if value is None else claims_of(decode_placement(tenant, value)).get(host)


def decode_arrived(key: bytes, value: bytes) -> int:
    """Unix ms. Raises CorruptRecord."""
    payload = unseal(key, value)
    if len(payload) != _MS.size:
        raise CorruptRecord(f"{key.decode('ascii', 'backslashreplace')}: no time of arrival")
    return int(_MS.unpack(payload)[0])


_source_decoder: Final = msgspec.msgpack.Decoder(SourceState)


def encode_source(key: bytes, source: SourceState) -> bytes:
    return seal(key, msgspec.msgpack.encode(source))


def decode_source(key: bytes, value: bytes) -> SourceState:
    """Raises CorruptRecord."""
    try:
        return _source_decoder.decode(unseal(key, value))
    except msgspec.MsgspecError as error:
        raise CorruptRecord(f"source: {error}") from error
