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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from gateway.store.copying import Copy
from gateway.store.making import Content
from gateway.store.record import StoreError, Summary, digest_of, unseal
from gateway.store.writer import Writer

SNAPSHOT_FILE: Final = "map.snapshot"
HEAD: Final = b"landbridge map snapshot 1\n"
LENGTHS: Final = struct.Struct(">HI")
END: Final = LENGTHS.pack(0, 0)
HASH_BYTES: Final = 16

SLICE: Final = 1000
"""Records in one read transaction and one write: short, so that the thread which does it lets others run."""

BLOCK: Final = 1 << 20
LAST_BYTES_MAX: Final = 1024
"""The last piece is shorter than this."""

RECORD_BYTES_MAX: Final = 1 << 20
"""A record is some hundred bytes; a length beyond this is damage, not to be allocated."""

TRIES: Final = 3
"""How often a copy starts again because the map was replaced meanwhile; that asks for a snapshot of its own."""

GENTLE_FROM: Final = 100_000
"""Beyond so many records a copy rests as long as it works: it shares an interpreter with control's event loop."""


def write(path: Path, writer: Writer) -> Summary | None:
    """Copy the map; None while it is not complete, or when it was replaced during each of `TRIES`. Blocks.

    A map that changes meanwhile is copied all the same: see store.copying. OSError when it cannot be written,
    StoreError when the map is damaged: the old snapshot stays in both cases.
    """
    for _ in range(TRIES):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with writer.copying() as copy:
                if not copy.meta.complete:
                    return None
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    hashed = _copy(file, writer, copy)
                    if hashed is None:
                        continue
                    summary = Summary(copy.records, copy.digest, copy.meta.written_ms)
                    last = END + msgspec.msgpack.encode(summary)
                    hashed.update(last)
                    file.write(last + hashed.digest())
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
        return summary
    return None


def _copy(file: BinaryIO, writer: Writer, copy: Copy) -> hashlib.blake2b | None:
    """Write every record, and hash it; None when the copy is void. Raises StoreError when it is not as summed up."""
    hashed = hashlib.blake2b(HEAD, digest_size=HASH_BYTES)
    file.write(HEAD)
    digest = records = 0
    after = b""
    while True:
        began = time.monotonic()
        transaction, rows = writer.tenant_slice(after, SLICE)
        copy.read(transaction, after)
        if copy.void:
            return None
        if not rows:
            break
        piece = b"".join(LENGTHS.pack(len(key), len(value)) + key + value for key, value in rows)
        hashed.update(piece)
        file.write(piece)
        digest = digest_of((unseal(key, value) for key, value in rows), digest)
        records, after = records + len(rows), rows[-1][0]
        if records > GENTLE_FROM:
            time.sleep(time.monotonic() - began)
    if (records, digest) != (copy.records, copy.digest):
        raise StoreError("the tenant map is not what its summary says: no snapshot is made of it")
    return hashed


def _sync_directory(path: Path) -> None:
    """Make the rename durable, where the file system lets us."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def content_of(path: Path) -> Content:
    """The map in a sound snapshot; its records are read as they are asked for. Raises StoreError. Blocks."""
    return Content(records(path), summary_of(path))


def records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(id, sealed record) in order, each against its checksum. Raises StoreError."""
    try:
        with path.open("rb") as file:
            file.seek(len(HEAD))
            for key, value in _records(file):
                unseal(key, value)
                yield key, value
    except OSError as error:
        raise StoreError(f"{path}: {error}") from error


def summary_of(path: Path) -> Summary:
    """What a sound snapshot says of itself: it is held against its hash. Raises StoreError. Blocks."""
    try:
        with path.open("rb") as file:
            return _verify(file)
    except OSError as error:
        raise StoreError(f"{path}: {error}") from error


def _verify(file: BinaryIO) -> Summary:
    """Hold the file against its hash, a block at a time: it may be larger than memory."""
    if file.read(len(HEAD)) != HEAD:
        raise StoreError(f"{file.name}: is no snapshot of this program")
    hashed = hashlib.blake2b(HEAD, digest_size=HASH_BYTES)
    kept = b""
    while block := file.read(BLOCK):
        hashed.update(kept[:-LAST_BYTES_MAX])
        kept = kept[-LAST_BYTES_MAX:] + block
    said, digest = kept[:-HASH_BYTES], kept[-HASH_BYTES:]
    hashed.update(said)
    if hashed.digest() != digest:
        raise StoreError(f"{file.name}: its checksum does not hold")
    at = len(said)
    while (at := said.rfind(END, 0, at)) >= 0:  # a number in the summary may look like the end mark
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.msgpack.decode(said[at + len(END) :], type=Summary)
        at += len(END) - 1
    raise StoreError(f"{file.name}: says nothing of itself")


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
