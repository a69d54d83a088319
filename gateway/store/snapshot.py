"""`state_dir/map.snapshot`: the durable copy of the tenant map, from which a damaged one is rebuilt.

A head, the sealed records as they are in the map, each with its key and length, and a last piece with their number,
digest and a hash of everything before it. It is written to a temporary file, synced and renamed, so a full disk or a
crash leaves the snapshot before it. It is believed whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from gateway.store.record import StoreError, Summary, decode_placement, digest_of, unseal
from gateway.store.wanted import Wanted
from gateway.store.writer import Writer

SNAPSHOT_FILE: Final = "map.snapshot"
HEAD: Final = b"landbridge map snapshot 1\n"
LENGTHS: Final = struct.Struct(">HI")
END: Final = LENGTHS.pack(0, 0)
HASH_BYTES: Final = 16

SLICE: Final = 1000
"""Records in one read transaction and one write: short, so that the thread which does it lets others run."""

RECORD_BYTES_MAX: Final = 1 << 20
"""A record is some hundred bytes; a length beyond this is damage, not to be allocated."""

TRIES: Final = 3
"""How often a copy starts again because the map changed meanwhile; the change asks for a snapshot of its own."""


def write(path: Path, writer: Writer) -> Summary | None:
    """Copy the map as it is now; None while it is not complete, or when it changed during each of `TRIES`. Blocks.

    OSError when it cannot be written, StoreError when the map is damaged: the old snapshot stays in both cases.
    """
    for _ in range(TRIES):
        meta = writer.meta()
        if not meta.complete:
            return None
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                summary = Summary(meta.records, int(meta.digest, 16), meta.written_ms)
                if not _copy(file, writer, meta.transaction, summary):
                    continue
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
        return summary
    return None


def _copy(file: BinaryIO, writer: Writer, transaction: int, summary: Summary) -> bool:
    """Write everything; False when the map moved on meanwhile. Raises StoreError when it is not as summed up."""
    hashed = hashlib.blake2b(HEAD, digest_size=HASH_BYTES)
    file.write(HEAD)
    digest = records = 0
    after = b""
    while True:
        seen, rows = writer.tenant_slice(after, SLICE)
        if seen != transaction:
            return False
        if not rows:
            break
        piece = b"".join(LENGTHS.pack(len(key), len(value)) + key + value for key, value in rows)
        hashed.update(piece)
        file.write(piece)
        digest = digest_of((unseal(key, value) for key, value in rows), digest)
        records, after = records + len(rows), rows[-1][0]
    if (records, digest) != (summary.records, summary.digest):
        raise StoreError("the tenant map is not what its summary says: no snapshot is made of it")
    last = END + msgspec.msgpack.encode(summary)
    hashed.update(last)
    file.write(last + hashed.digest())
    return True


def _sync_directory(path: Path) -> None:
    """Make the rename durable, where the file system lets us."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read(path: Path) -> tuple[Wanted, int]:
    """The map in the snapshot and when it was written (Unix ms). Raises StoreError. Blocks."""
    try:
        with path.open("rb") as file:
            summary = _verify(file)
            file.seek(len(HEAD))
            wanted = Wanted.of(decode_placement(key, value) for key, value in _records(file))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    if (len(wanted.tenants), wanted.digest) != (summary.records, summary.digest):
        raise StoreError(f"{path}: holds {len(wanted.tenants)} records that are not the {summary.records} it names")
    return wanted, summary.written_ms


def summary_of(path: Path) -> Summary:
    """What a sound snapshot says of itself. Raises StoreError. Blocks."""
    try:
        with path.open("rb") as file:
            return _verify(file)
    except OSError as error:
        raise StoreError(f"{path}: {error}") from error


def _verify(file: BinaryIO) -> Summary:
    """Hold the file against its hash, without keeping it in memory."""
    if file.read(len(HEAD)) != HEAD:
        raise StoreError(f"{file.name}: is no snapshot of this program")
    hashed = hashlib.blake2b(HEAD, digest_size=HASH_BYTES)
    for key, value in _records(file):
        hashed.update(LENGTHS.pack(len(key), len(value)) + key + value)
    rest = file.read(1024)
    said, digest = rest[:-HASH_BYTES], rest[-HASH_BYTES:]
    hashed.update(END + said)
    if hashed.digest() != digest:
        raise StoreError(f"{file.name}: its checksum does not hold")
    return msgspec.msgpack.decode(said, type=Summary)


def _records(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(key, sealed record) up to the end mark. Raises StoreError when the file ends before it."""
    while True:
        lengths = file.read(LENGTHS.size)
        if len(lengths) < LENGTHS.size:
            raise StoreError(f"{file.name}: ends before its end")
        key_bytes, value_bytes = LENGTHS.unpack(lengths)
        if lengths == END:
            return
        if value_bytes > RECORD_BYTES_MAX:
            raise StoreError(f"{file.name}: a record that long is none")
        key, value = file.read(key_bytes), file.read(value_bytes)
        yield key, value
