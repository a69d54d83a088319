"""This worker's access log: exchanges as lines, into a bounded buffer that never makes a request wait."""

from __future__ import annotations

from typing import Protocol

from gateway.core.exchange import Exchange


class AccessLog(Protocol):
    """Where exchanges go when they are over. Nothing here raises, and nothing waits."""

    def write(self, exchange: Exchange) -> None: ...

    def flush(self) -> None:
        """Called by the sweep: push out what is buffered."""
        ...
