"""When a request may be sent a second time (RFC 9110, 9.2.2; RFC 9112, 9.3.1), as one pure function.

Two failures qualify: a connection that was never made, so that nothing was written; and a pooled connection that the
origin closed before it could answer. Everything else might have been acted on, and is the client's to repeat.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110, 9.2.2."""

REPLAY_BYTES_MAX: Final = 64 * 1024
"""Body bytes kept for a second try; a body beyond it has been streamed away and cannot be sent again."""


class Failure(Enum):
    """How the try ended. `CONNECT`: no connection; `STALE`: a reused connection died before any response byte."""

    CONNECT = auto()
    STALE = auto()
    OTHER = auto()


def may_retry(failure: Failure, method: bytes, wrote: bool, replayable: bool, left: int) -> bool:
    """Whether to try once more. `wrote`: request bytes went out; `left`: tries that `retries.attempts` still allows."""
    if left <= 0 or not replayable:
        return False
    if failure is Failure.CONNECT:
        return True
    return failure is Failure.STALE and (not wrote or method in IDEMPOTENT)
