"""What control and workers say to each other over the bus: MessagePack, each message tagged with its type.

Control speaks for the whole gateway (configuration, conditions, map changes); a worker reports what only it can see.
A worker that hears nothing goes on with what it has: no request waits for a message.
"""

from __future__ import annotations

import msgspec

from gateway.core.conditions import Conditions
from gateway.core.jwks import TokenKeys
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


class KeyWanted(msgspec.Struct, tag=True, frozen=True):
    """Worker: a token names a key that this source was not heard to have (sent once a second at most for each)."""

    source: str
    kid: str


class BreakerTurned(msgspec.Struct, tag=True, frozen=True):
    """Worker: a breaker of mine changed; told at once, and of all that are not closed after Hello.

    `tenant` "" is the cluster's own. `state` is a value of `core.breaker.State`; `left_s` seconds until it ends by time
    (0: not by time); `trips` in a row; `reason` is an operator's. `only`: the cluster is asked by nobody but this
    tenant, whose breaker this is.
    """

    cluster: str
    tenant: str
    state: str = "closed"
    left_s: float = 0.0
    trips: int = 0
    reason: str = ""
    only: str = ""


class EndpointEjected(msgspec.Struct, tag=True, frozen=True):
    """Worker: this endpoint gets none of my requests for so long, and why; `left_s` 0: it does again."""

    cluster: str
    endpoint: str
    left_s: float = 0.0
    why: str = ""


class ForceBreaker(msgspec.Struct, tag=True, frozen=True):
    """Control: an operator holds this breaker `open` or `closed` for so long, or with "" takes that back."""

    cluster: str
    tenant: str
    state: str
    left_s: float = 0.0
    reason: str = ""


class Configured(msgspec.Struct, tag=True, frozen=True):
    """Control: a new configuration, whole. `generation` grows with every Configured and every Conditions."""

    generation: int
    settings: Settings


class KeyDemand(msgspec.Struct, frozen=True, array_like=True):
    """One limit that is hot in a worker: its share, and what it is asked for, both as parts of the whole limit.

    `refused`: requests since the last report. Keys are `t:<tenant>`, `c:<client>`, `r:<prefix>`, `g:`, and with `#`
    behind it the same limit's slots.
    """

    key: str
    share: float
    demand: float
    refused: int


class Demands(msgspec.Struct, tag=True, frozen=True):
    """Worker: what is hot here, ten times a second while something is. `seq` is the last Shares that I go by."""

    seq: int
    keys: tuple[KeyDemand, ...] = ()


class Shares(msgspec.Struct, tag=True, frozen=True):
    """Control, to one worker: its shares of what is hot somewhere; `cold` are those that are shared out equally again.

    `equal` is its share of any other limit, `own` of one that is this gateway's alone. Said once a second at least, so
    that a worker knows that somebody counts.
    """

    seq: int
    equal: float
    own: float
    keys: dict[str, float] = {}
    cold: tuple[str, ...] = ()


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


FromWorker = (
    Hello
    | Applied
    | BreakerTurned
    | ConnectFailures
    | Demands
    | EndpointEjected
    | FilterRemoved
    | KeyWanted
    | MapApplied
    | MapUnreadable
)
FromControl = Configured | Conditions | ForceBreaker | MapChanged | Shares | TokenKeys
