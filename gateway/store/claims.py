"""Which tenant has a host that more than one claims: the index `hosts` (host to sealed tenant id), change by change.

Two regions may give one host to two tenants while they do not see each other. Then the tenant that claimed it first has
it (by hybrid clock; by id where that is equal), in every region, in whatever order the records came; when it gives the
host up, the next one gets it. `claims` holds the claims of contested hosts only, the winner's among them, so a map
without a conflict keeps none. Its keys are host, NUL, hlc (8 bytes, big-endian) and tenant: the first one wins.

Both tables follow from the records alone, so that a map that is rebuilt from them comes to the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import lmdb

from gateway.core.placement import Placement, State
from gateway.store.record import key_of, seal, unseal

_HLC: Final = struct.Struct(">Q")

CLAIMANTS_NAMED_MAX: Final = 10
"""Of the tenants that claim one host in vain so many are named."""


class Contested(NamedTuple):
    """A host that more than one tenant claims. `others` lost, first claim first; at most CLAIMANTS_NAMED_MAX."""

    host: str
    winner: str
    others: tuple[str, ...]


def claims_of(placement: Placement | None) -> dict[bytes, int]:
    """Host to the hlc of its first claim. A deleted tenant claims nothing, and neither does a name that is no host."""
    if placement is None or not placement.hosts or placement.state is State.DELETED:
        return {}
    found = {}
    claims, hlc = placement.claims, placement.version.hlc
    for host in placement.hosts:
        key = key_of(host)
        if key is not None and b"\0" not in key:
            found[key] = claims.get(host, hlc) if claims else hlc
    return found


class HostIndex:
    """`hosts` and `claims` in one write transaction. `hlc_of(tenant, host)`: what the owner's record says, if it does.

    Each call leaves both tables as the records say, so the caller stores a tenant's record with the same step.
    """

    def __init__(
        self,
        txn: lmdb.Transaction[bytes],
        hosts: lmdb._Database,
        claims: lmdb._Database,
        hlc_of: Callable[[bytes, bytes], int | None],
    ) -> None:
        self.touched: set[bytes] = set()
        """Hosts whose owner changed at some step."""
        self._txn = txn
        self._hosts = hosts
        self._claims = claims
        self._hlc_of = hlc_of
        self._undisputed = txn.stat(claims)["entries"] == 0  # the rule; then no claim has to be looked for

    def follow(self, tenant: bytes, before: Placement | None, after: Placement | None) -> None:
        """This tenant's record was `before` and is `after`."""
        if (
            self._undisputed  # where nobody else claims them, the time of a claim decides nothing
            and before is not None
            and after is not None
            and before.hosts == after.hosts
            and before.state is not State.DELETED
            and after.state is not State.DELETED
        ):
            return
        self._change(tenant, claims_of(before), claims_of(after))

    def _change(self, tenant: bytes, before: Mapping[bytes, int], after: Mapping[bytes, int]) -> None:
        if before == after:
            return
        for host, hlc in before.items():
            if host not in after:
                self._withdraw(host, tenant, hlc)
            elif after[host] != hlc and self._first(host):
                self._drop(host, hlc, tenant)
                self._add(host, after[host], tenant)
                self._settle(host)
        for host, hlc in after.items():
            if host not in before:
                self._claim(host, tenant, hlc)

    def _claim(self, host: bytes, tenant: bytes, hlc: int) -> None:
        owner = self._owner(host)
        if owner is None or owner == tenant:
            self._give(host, tenant)
            return
        if not self._first(host):
            owners_hlc = self._hlc_of(owner, host)
            if owners_hlc is None:  # the index says what no record does: it is wrong, not the record
                self._give(host, tenant)
                return
            self._add(host, owners_hlc, owner)
        self._add(host, hlc, tenant)
        self._settle(host)

    def _withdraw(self, host: bytes, tenant: bytes, hlc: int) -> None:
        if not self._first(host):
            if self._owner(host) == tenant:
                self._txn.delete(host, db=self._hosts)
                self.touched.add(host)
            return
        self._drop(host, hlc, tenant)
        rest = self._first(host)
        self._settle(host)
        if len(rest) == 1:
            self._txn.delete(rest[0], db=self._claims)

    def _settle(self, host: bytes) -> None:
        """Let the first claim have the host."""
        winner = _tenant_in(self._first(host)[0], host)
        if self._owner(host) != winner:
            self._give(host, winner)

    def _give(self, host: bytes, tenant: bytes) -> None:
        self._txn.put(host, seal(host, tenant), db=self._hosts)
        self.touched.add(host)

    def _owner(self, host: bytes) -> bytes | None:
        value = self._txn.get(host, db=self._hosts)
        return None if value is None else unseal(host, value)

    def _add(self, host: bytes, hlc: int, tenant: bytes) -> None:
        key = claim_key(host, hlc, tenant)
        self._txn.put(key, seal(key, b""), db=self._claims)
        self._undisputed = False

    def _drop(self, host: bytes, hlc: int, tenant: bytes) -> None:
        self._txn.delete(claim_key(host, hlc, tenant), db=self._claims)

    def _first(self, host: bytes) -> list[bytes]:
        """The first two claims of a host: none when it is not contested."""
        return [] if self._undisputed else first_claims(self._txn, self._claims, host, 2)


def claim_key(host: bytes, hlc: int, tenant: bytes) -> bytes:
    return b"%b\0%b%b" % (host, _HLC.pack(hlc), tenant)


def _tenant_in(key: bytes, host: bytes) -> bytes:
    return key[len(host) + 1 + _HLC.size :]


def first_claims(txn: lmdb.Transaction[bytes], claims: lmdb._Database, host: bytes, limit: int) -> list[bytes]:
    """At most `limit` keys of the claims to a host, the winner's first."""
    found: list[bytes] = []
    prefix = host + b"\0"
    with txn.cursor(db=claims) as cursor:
        there = cursor.set_range(prefix)
        while there and len(found) < limit and (key := cursor.key()).startswith(prefix):
            found.append(key)
            there = cursor.next()
    return found


def contested(txn: lmdb.Transaction[bytes], claims: lmdb._Database, limit: int) -> list[Contested]:
    """The first `limit` contested hosts, in order."""
    found: list[Contested] = []
    with txn.cursor(db=claims) as cursor:
        there = cursor.first()
        while there and len(found) < limit:
            host = cursor.key().partition(b"\0")[0]
            keys = first_claims(txn, claims, host, 1 + CLAIMANTS_NAMED_MAX)
            winner, *others = (_tenant_in(key, host).decode() for key in keys)
            found.append(Contested(host.decode(), winner, tuple(others)))
            there = cursor.set_range(host + b"\1")
    return found
