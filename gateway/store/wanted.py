"""A whole map as it shall be stored: made once, compared and written as bytes.

It can be made in another process: keys and sealed values cross as bytes, which cost a garbage collector nothing, so
that control's event loop does not stand still over a hundred thousand records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, KeysView
from typing import NamedTuple

from gateway.core.placement import Placement
from gateway.store.record import digest_of, encode_placement, key_of, seal


class Wanted(NamedTuple):
    """`tenants`: id to sealed record; `hosts`: host to sealed id. Both in order of their keys."""

    tenants: dict[bytes, bytes]
    hosts: dict[bytes, bytes]
    digest: int

    @classmethod
    def of(cls, placements: Iterable[Placement]) -> Wanted:
        """ValueError when a tenant or a host comes twice, or a name fits no key."""
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
        return cls(dict(sorted(tenants.items())), dict(sorted(hosts.items())), digest_of(payloads))

    def change_from(self, known: KeysView[bytes] | set[bytes], digest: str) -> str:
        """A name for the change from the map with these ids and this digest to this one, for an operator to confirm."""
        digests = f"{digest} {self.digest:016x}"
        removed = hashlib.blake2b(digest_size=8)
        for key in sorted(known - self.tenants.keys()):
            removed.update(key + b"\0")
        removed.update(digests.encode())
        return removed.hexdigest()


def _new_key(name: str, there: dict[bytes, bytes]) -> bytes:
    key = key_of(name)
    if key is None:
        raise ValueError(f"{name!r} can be no key of the tenant map")
    if key in there:
        raise ValueError(f"{name!r} comes twice")
    return key
