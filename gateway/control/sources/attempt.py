"""Writing to a Redis that may refuse it: a replica, a full one, an ACL. What cannot be written is said once, not each
second, and keeps nobody from reading.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TypeVar

from gateway.control.replication.region_map import MapUnavailable

LOG = logging.getLogger("landbridge.control")

_T = TypeVar("_T")


class Attempts:
    """`problem` is why the last attempt failed, "" after one that did not."""

    def __init__(self) -> None:
        self.problem = ""

    async def write(self, what: str, work: Awaitable[_T]) -> _T | None:
        """The work's result; None where it could not be done."""
        try:
            done = await work
        except MapUnavailable as error:
            self.failed(what, error)
            return None
        if self.problem:
            LOG.info("Redis can be written to again")
            self.problem = ""
        return done

    def failed(self, what: str, error: MapUnavailable) -> None:
        if str(error) != self.problem:
            LOG.error("%s cannot be written: %s", what, error)
            self.problem = str(error)
