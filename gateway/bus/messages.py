"""What control and workers say to each other over the bus: MessagePack, each message tagged with its type.

Control speaks for the whole gateway (configuration, conditions, map changes); a worker reports what only it can see.
A worker that hears nothing goes on with what it has: no request waits for a message.
"""

from __future__ import annotations

import msgspec

from gateway.core.conditions import Conditions
from gateway.settings.schema import Settings


class Hello(msgspec.Struct, tag=True, frozen=True):
    """Worker: first message of every connection. `digest` is of the settings that it runs."""

    slot: int
    pid: int
    digest: str = ""


class Applied(msgspec.Struct, tag=True, frozen=True):
    """Worker: this View generation decides my requests now."""

    generation: int


class ConnectFailures(msgspec.Struct, tag=True, frozen=True):
    """Worker: `count` connects in a row to this endpoint failed (sent at three, at once)."""

    cluster: str
    endpoint: str
    count: int


class MapApplied(msgspec.Struct, tag=True, frozen=True):
    """Worker: of this generation of the map, what was committed up to `to_txn` decides my requests now.

    Said after each MapChanged that was acted on, and whenever the map was found to have moved without one.
    """

    generation: int
    to_txn: int


class MapUnreadable(msgspec.Struct, tag=True, frozen=True):
    """Worker: the map on disk failed a lookup, or its file is not what was opened (sent once a second at most)."""

    why: str


class FilterRemoved(msgspec.Struct, tag=True, frozen=True):
    """Worker: this filter kept failing and is out of my chain; `error` is the last line of its last traceback."""

    name: str
    error: str


class Configured(msgspec.Struct, tag=True, frozen=True):
    """Control: a new configuration, whole. `generation` grows with every Configured and every Conditions."""

    generation: int
    settings: Settings


class MapChanged(msgspec.Struct, tag=True, frozen=True):
    """Control: the store moved from one transaction to another; these ids and hosts are no longer what they were.

    An empty change whose `from_txn` is 0 means "everything may have changed": drop the whole cache. `generation` names
    the directory that the transactions are counted in: in another one they say nothing of those before.
    """

    from_txn: int
    to_txn: int
    tenants: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    generation: int = 0


FromWorker = Hello | Applied | ConnectFailures | FilterRemoved | MapApplied | MapUnreadable
FromControl = Configured | Conditions | MapChanged
