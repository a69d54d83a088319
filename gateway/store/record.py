"""The codec of the map on disk: how a placement, a host and the map's summary become bytes, and back.

Every value is a CRC-32 and what it covers; the key is covered too, so that a value under the wrong key is found as
well. The digest is a sum of hashes: it does not depend on order, and changes by what was added and removed, so two
regions, or two processes, compare whole maps by one number.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from gateway.core.placement import Placement

KEY_BYTES_MAX: Final = 255
"""Tenant ids have 63 bytes at most and host names 253 (RFC 1035, 2.3.4); LMDB takes 511."""

_CRC_BYTES: Final = 4
DIGEST_MODULUS: Final = 1 << 64

_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_decode: Final = msgspec.msgpack.Decoder(Placement).decode
_crc_at: Final = struct.Struct(">I").unpack_from


class StoreError(Exception):
    """The map on disk cannot be read or written here; the message is for the operator."""


class CorruptRecord(StoreError):
    """One record fails its checksum or is no record: this tenant (or host) is not readable, the others are."""


class Summary(msgspec.Struct, frozen=True):
    """What the writer says of the whole map. `digest` is a sum modulo 2^64.

    `boot` is the boot of the machine in which it was committed: commits are not synced, so after another one only a
    whole digest says that nothing was lost.
    """

    records: int
    digest: int
    written_ms: int
    boot: str = ""


class MapMeta(msgspec.Struct, frozen=True):
    """What is known of the map. `digest` is 16 hex digits; `written_ms` Unix milliseconds of the last change."""

    complete: bool = False
    records: int = 0
    digest: str = f"{0:016x}"
    written_ms: int = 0
    transaction: int = 0


BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The boot that this is; "" where the kernel does not say, which is the same as every other time it does not."""
    try:
        return BOOT_ID_FILE.read_text().strip()
    except OSError:
        return ""


_summary_decoder: Final = msgspec.msgpack.Decoder(Summary)


def key_of(name: str) -> bytes | None:
    """The key of a tenant id or host, or None when nothing in the map can have this name."""
    if not name.isascii():
        return None
    key = name.encode()
    return key if 0 < len(key) <= KEY_BYTES_MAX else None


def seal(key: bytes, payload: bytes) -> bytes:
    """The value to store under `key`."""
    return crc32(payload, crc32(key)).to_bytes(_CRC_BYTES, "big") + payload


def unseal(key: bytes, value: bytes) -> bytes:
    """What `seal` covered. Raises CorruptRecord."""
    payload = value[_CRC_BYTES:]
    if len(value) < _CRC_BYTES or crc32(payload, crc32(key)) != int.from_bytes(value[:_CRC_BYTES], "big"):
        raise CorruptRecord(f"{key.decode('ascii', 'backslashreplace')}: the record's checksum does not hold")
    return payload


def payload_in(value: bytes) -> bytes:
    """What is sealed in a value whose checksum was held already."""
    return value[_CRC_BYTES:]


def encode_placement(placement: Placement) -> bytes:
    """A placement's payload: equal placements give equal bytes, so a digest can be compared across regions."""
    return _encoder.encode(placement)


def decode_placement(key: bytes, value: bytes) -> Placement:
    """Read a sealed placement. Raises CorruptRecord."""
    payload = value[_CRC_BYTES:]
    try:  # what `unseal` does, without the call and at half the price: each look-up of what is not cached pays for it
        if crc32(payload, crc32(key)) != _crc_at(value)[0]:
            unseal(key, value)  # says what is wrong
        placement = _decode(payload)
    except (msgspec.MsgspecError, struct.error) as error:
        raise CorruptRecord(f"{key.decode('ascii', 'backslashreplace')}: {error}") from error
    if placement.tenant.encode() != key:
        raise CorruptRecord(f"{key.decode('ascii', 'backslashreplace')}: holds the record of {placement.tenant!r}")
    return placement


def encode_summary(key: bytes, summary: Summary) -> bytes:
    return seal(key, _encoder.encode(summary))


def decode_summary(key: bytes, value: bytes) -> Summary:
    """Read a sealed summary. Raises CorruptRecord."""
    try:
        return _summary_decoder.decode(unseal(key, value))
    except msgspec.MsgspecError as error:
        raise CorruptRecord(f"summary: {error}") from error


def record_hash(payload: bytes) -> int:
    """64 bits of a record: collisions by chance are out of the question, and no enemy writes the map."""
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), "big")


def digest_of(payloads: Iterable[bytes], base: int = 0) -> int:
    """`base` with these records added. `digest_of(all)` equals any way of adding and removing that ends there."""
    return (base + sum(map(record_hash, payloads))) % DIGEST_MODULUS


def digest_without(base: int, payloads: Iterable[bytes]) -> int:
    """`base` with these records removed."""
    return (base - sum(map(record_hash, payloads))) % DIGEST_MODULUS
