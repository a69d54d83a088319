"""What a source of the tenant map is to the rest of control: one Protocol, and what every source is given.

A source brings the map to the store, tells of every change, and never stands between a request and its answer: while
it cannot read what it reads from, the last map stays, and it says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.bus.messages import MapChanged
from gateway.control.registry import Replication
from gateway.control.reload import Outcome
from gateway.control.sources.confirm import Pending
from gateway.settings.schema import Settings
from gateway.store.writer import Writer


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Ground:
    """What a source stands on. `settings()` are those that run.

    `changed(change)` hears of every change of the store, `ended(outcome)` of every attempt to take something in,
    `rejected(reason)` of every record that was not taken in, `suspect(why)` of damage in the store.
    """

    writer: Writer
    settings: Callable[[], Settings]
    changed: Callable[[MapChanged], None]
    ended: Callable[[Outcome], None]
    wall_ms: Callable[[], int]
    rejected: Callable[[str], None] = _ignore
    suspect: Callable[[str], None] = _ignore
    program: str = ""
    rng: random.Random = field(default_factory=random.Random)


class Source(Protocol):
    """One way in which the tenant map comes to this gateway. Its class is in `kinds.SOURCES`."""

    @property
    def last(self) -> Outcome | None:
        """How the last attempt ended."""

    @property
    def last_error(self) -> Outcome | None:
        """Why the map is not what the source says; None while it is."""

    @property
    def pending(self) -> Pending | None:
        """The change that the loss guard holds up."""

    @property
    def stale(self) -> bool:
        """Whether the map is not what the source says, as far as is known."""

    @property
    def age_s(self) -> float | None:
        """Seconds since the map was last known to be what the source says: 0 while it is, None if it never was."""

    @property
    def place(self) -> str:
        """Where it reads, without a password."""

    def settle(self) -> None:
        """What is about to be read for another reason is no change to be noticed."""

    @property
    def heard_at(self) -> float | None:
        """When another region was last heard of by way of this source, in monotonic seconds."""

    async def read_all(self, cause: str) -> None:
        """Take in what is there, once it stands still: after a start, and when an operator says so."""

    async def run(self) -> None:
        """Notice what changes, until cancelled."""

    async def reload(self, cause: str) -> bool:
        """What is there may be another, or mean another thing, from now on; whether the map is what the source says."""

    def acknowledged(self, transaction: int | None) -> None:
        """All connected workers use the store as of `transaction`; None: none is connected."""

    def replication(self) -> Replication | None:
        """How this region stands to the others; None for a source that knows of no others."""
