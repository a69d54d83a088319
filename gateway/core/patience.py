"""How long a client says that it will wait, and what is left of that further on.

Three fields say so, each with a standard or a protocol of its own behind it: `Prefer: wait=10` (RFC 7240, 4.3),
`grpc-timeout: 500m` (gRPC over HTTP/2, and gRPC-Web over HTTP/1.1) and `Connect-Timeout-Ms: 500` (the Connect
protocol). They can only shorten what the configuration allows, so that nobody has to be trusted; all of them go on to
the application as they came. A value that is none is no limit: what it means is the application's to say. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_GRPC: Final = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_GRPC_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONNECT: Final = re.compile(rb"[0-9]{1,10}\Z")
_WAIT: Final = re.compile(rb'(?i)(?:\A|,)[ \t]*wait[ \t]*=[ \t]*"?([0-9]{1,6})"?[ \t]*(?=[,;]|\Z)')
_ASYNC: Final = re.compile(rb"(?i)(?:\A|,)[ \t]*respond-async[ \t]*(?=[,;]|\Z)")

LEAST_S: Final = 0.001
"""What a client without patience gets: it is still a request, and ends as one that took too long."""

WAY_BACK_S: Final = 0.5
"""What is left of a hop's deadline for the way back (DESIGN 5.4); half of it where it is shorter than a second."""

FIELDS: Final[dict[bytes, Callable[[bytes], float | None]]] = {
    b"prefer": lambda value: _prefer(value),
    b"grpc-timeout": lambda value: _grpc(value),
    b"connect-timeout-ms": lambda value: int(value) / 1000 if _CONNECT.match(value) else None,
}
"""By compared name: from a value to seconds, or None."""


def client_timeout(values: Callable[[bytes], list[bytes]]) -> float:
    """The client's limit in seconds, the shortest where it names more than one; 0 for none. `values` gives a field's
    values by its compared name."""
    found = [seconds for name, read in FIELDS.items() for value in values(name) if (seconds := read(value)) is not None]
    return max(min(found), LEAST_S) if found else 0.0


def within(deadline_s: float) -> float:
    """What the receiver of a hop with this deadline may take of it, in seconds."""
    return deadline_s - min(WAY_BACK_S, deadline_s / 2)


def _grpc(value: bytes) -> float | None:
    match = _GRPC.match(value)
    return None if match is None else int(match[1]) * _GRPC_S[match[2]]


def _prefer(value: bytes) -> float | None:
    """`wait`, unless the client wants to be told after that time that it has to come back (`respond-async`)."""
    match = _WAIT.search(value)
    return None if match is None or _ASYNC.search(value) else float(match[1])
