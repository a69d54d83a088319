"""Frames on the bus: four bytes of length, big-endian, then one MessagePack message. Sans I/O.

Both directions have a largest frame, so that neither process can make the other hold more than that.
"""

from __future__ import annotations

from typing import Final

CONTROL_FRAME_MAX: Final = 8 << 20
"""Control to worker, bytes: the largest message is a map change that names 10,000 ids and hosts, about 3 MiB."""

WORKER_FRAME_MAX: Final = 64 << 10
"""Worker to control, bytes: a worker only says short things."""

LENGTH_BYTES: Final = 4


class FrameTooLong(ValueError):
    """A frame beyond the limit: the stream cannot be followed any further."""


def frame(payload: bytes, frame_max: int) -> bytes:
    """The payload as one frame. Raises FrameTooLong."""
    if len(payload) > frame_max:
        raise FrameTooLong(f"a bus message of {len(payload)} bytes is longer than {frame_max}")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class FrameReader:
    """Cuts a byte stream into payloads, however it arrives. Holds less than one frame between calls."""

    def __init__(self, frame_max: int) -> None:
        self._frame_max = frame_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes, in order. Raises FrameTooLong once a length is beyond the limit."""
        buffer = self._buffer
        buffer += data
        done: list[bytes] = []
        at = 0
        while len(buffer) - at >= LENGTH_BYTES:
            start = at + LENGTH_BYTES
            length = int.from_bytes(buffer[at:start], "big")
            if length > self._frame_max:
                raise FrameTooLong(f"a bus message of {length} bytes is longer than {self._frame_max}")
            if len(buffer) - start < length:
                break
            at = start + length
            done.append(bytes(buffer[start:at]))
        del buffer[:at]
        return done
