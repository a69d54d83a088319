"""Bodies: the chunked transfer coding (RFC 9112, 7.1), read strictly and written anew.

A chunked body is never passed on as it came: its data is re-framed, chunk extensions are dropped (a recipient must
ignore those it does not know, 7.1.1), so that no reading of the size lines but ours reaches the other side.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from gateway.core.http1.fields import REFUSED_IN_TRAILERS, TOKEN, FieldTable, Seen

_SIZE_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + TOKEN +
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"))?)*\Z'
)  # fmt: skip
"""chunk-size [ chunk-ext ], RFC 9112, 7.1. A quoted string cannot hold CRLF: the line ends there and does not match."""

SIZE_LINE_BYTES_MAX: Final = 1024
"""Extensions carry nothing for us; a longer line is an attack on whoever buffers it."""
CHUNK_BYTES_MAX: Final = 1 << 40
"""1 TiB in one chunk: beyond it a size is an overflow attempt, not a body."""

LAST_CHUNK: Final = b"0\r\n\r\n"


class BodyError(Exception):
    """The body is not chunked coding; the text is for the problem document."""


class Chunk(Enum):
    """Where in the coding the reader stands."""

    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()
    DONE = auto()


class ChunkedReader:
    """Reads one chunked body. `trailers` are whole lines, complete once `done`; `rest` is what came after the end.

    Limits: `trailer_bytes` and `trailer_count` are what the head left over of its own.
    """

    __slots__ = ("_left", "_partial", "_table", "rest", "state", "trailer_bytes", "trailer_count", "trailers")

    def __init__(self, table: FieldTable, trailer_bytes: int, trailer_count: int) -> None:
        self.state = Chunk.SIZE
        self.rest = b""
        self.trailers: list[bytes] = []
        self.trailer_bytes = trailer_bytes
        self.trailer_count = trailer_count
        self._left = 0
        self._partial = b""
        self._table = table

    @property
    def done(self) -> bool:
        return self.state is Chunk.DONE

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of body data in `data`, in order. Raises BodyError; after `done` nothing may be fed."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self.state is Chunk.DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self.state = Chunk.DATA_END
                continue
            if self.state is Chunk.DONE:
                self.rest = data[at:]
                break
            end = data.find(b"\r\n", at)
            if self.state is Chunk.DATA_END:
                at = self._data_end(data, at, end)
            elif end < 0:
                at = self._incomplete(data, at)
            else:
                self._line(data[at:end])
                at = end + 2
            if at < 0:
                break
        return pieces

    def _data_end(self, data: bytes, at: int, end: int) -> int:
        """CRLF after chunk-data, to the byte. The next position, -1 when more is needed."""
        if end == at:
            self.state = Chunk.SIZE
            return at + 2
        if data[at:] == b"\r":
            self._partial = b"\r"
            return -1
        raise BodyError("chunk data is not followed by CRLF")

    def _incomplete(self, data: bytes, at: int) -> int:
        """Keep a line that has not ended yet, unless it can no longer become a valid one."""
        partial = data[at:]
        limit = SIZE_LINE_BYTES_MAX if self.state is Chunk.SIZE else self.trailer_bytes
        if len(partial) > limit:
            raise BodyError("a chunk line is too long")
        if b"\n" in partial or b"\r" in partial[:-1]:
            raise BodyError("a bare CR or LF in a chunk line")
        self._partial = partial
        return -1

    def _line(self, line: bytes) -> None:
        if self.state is Chunk.SIZE:
            match = _SIZE_LINE.match(line)
            if match is None or len(line) > SIZE_LINE_BYTES_MAX:
                raise BodyError("a chunk size line is not valid")
            self._left = int(match[1], 16)
            if self._left > CHUNK_BYTES_MAX:
                raise BodyError("a chunk is too large")
            self.state = Chunk.DATA if self._left else Chunk.TRAILERS
            return
        if not line:
            self.state = Chunk.DONE
            return
        self.trailer_bytes -= len(line) + 2
        self.trailer_count -= 1
        if self.trailer_bytes < 0 or self.trailer_count < 0:
            raise BodyError("the trailers are too large")
        field = self._table.classify(line)
        if field.seen & Seen.BAD or field.seen & REFUSED_IN_TRAILERS:
            raise BodyError("a trailer field is not acceptable")
        self.trailers.append(line)


def chunk(data: bytes) -> bytes:
    """`data` as one chunk. Empty data would end the body: it must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: list[bytes]) -> bytes:
    """The end of a chunked body, with its trailer lines."""
    return b"0\r\n%b\r\n\r\n" % b"\r\n".join(trailers) if trailers else LAST_CHUNK
