"""When a request may be sent once more, and how long to wait before: the rules, as pure functions.

A request may go out again when it cannot have been acted on (no connection was made), or when being acted on twice does
no harm: what only reads, what its method makes idempotent (RFC 9110, 9.2.2) and whose pooled connection was closed
under it (RFC 9112, 9.3.1), and what carries an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header), by which
the application itself tells a repetition. Everything else is the client's to repeat. Only the gateway that talks to the
application goes by how that answered: two layers that retry multiply. What may be retried still has to be paid for
(`core.retry_budget`), and has to end in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from gateway.core import backoff

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110, 9.2.2."""

SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""RFC 9110, 9.2.1; TRACE is answered by whoever it meets."""

REPLAY_BYTES_MAX: Final = 64 * 1024
"""Body bytes kept for a second try; a body beyond it has been streamed away and cannot be sent again."""


class Failure(Enum):
    """How the try ended. `CONNECT`: no connection; `STALE`: a reused connection died before any response byte, `RESET`:
    a fresh one did; `TIMEOUT`: no head within `per_try_timeout`; `STATUS`: a response that `statuses` names."""

    CONNECT = auto()
    STALE = auto()
    RESET = auto()
    TIMEOUT = auto()
    STATUS = auto()


class NotRetried(StrEnum):
    """Why a failed try was the last: the label of `landbridge_not_retried_total`.

    `STARTED`: some of a response is with the client already. `STATUS`: `statuses` does not name it. `BREAKER`: it is
    not closed.
    """

    LAYER = "layer"
    METHOD = "method"
    BODY = "body"
    ATTEMPTS = "attempts"
    DEADLINE = "deadline"
    BUDGET = "budget"
    STARTED = "started"
    STATUS = "status"
    BREAKER = "breaker"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Retries:
    """A cluster's rules besides the number of tries. `per_try_s` 0: a try may take all the time there is.

    `backoff_s` and `backoff_max_s`: the first wait is at most the one, each further at most twice the one before, none
    longer than the other.
    """

    budget: float = 0.1
    statuses: frozenset[int] = frozenset()
    per_try_s: float = 0.0
    backoff_s: float = 0.025
    backoff_max_s: float = 0.25


RETRIES: Final = Retries()
"""What holds where nothing is configured."""

_NOTHING_SENT: Final = frozenset((Failure.CONNECT,))
_BY_PEERS: Final = frozenset((Failure.CONNECT, Failure.STALE, Failure.RESET))
"""Towards another region's gateway: it lives there that somebody answers, and retries what does not."""
AT_ONCE: Final = frozenset((Failure.CONNECT, Failure.STALE))
"""The endpoint is not there, or has tidied up: another connection is no burden that a pause would lighten."""
FREE: Final = _NOTHING_SENT
"""Failures whose retry costs no budget: no request was sent, so there is none more than before."""


def why_not(
    failure: Failure, method: bytes, keyed: bool, replayable: bool, left: int, region: bool
) -> NotRetried | None:
    """Why not to try once more; None: it may be done, budget and time permitting.

    `keyed`: the request carries one Idempotency-Key; `replayable`: all that was read of its body is still here; `left`:
    tries that `retries.attempts` still allows; `region`: the other side is another region's gateway.
    """
    if region and failure not in _BY_PEERS:
        return NotRetried.LAYER
    if failure not in _NOTHING_SENT and not keyed:
        if method not in (IDEMPOTENT if failure is Failure.STALE else SAFE):
            return NotRetried.METHOD
    if not replayable:
        return NotRetried.BODY
    if left <= 0:
        return NotRetried.ATTEMPTS
    return None


def pause_s(retries: Retries, made: int, rng: Callable[[], float]) -> float:
    """Seconds to wait before try number `made` + 2 (`made` 0: the first retry). `rng` is in [0, 1)."""
    return backoff.pause_s(made + 1, retries.backoff_s, retries.backoff_max_s, rng())
