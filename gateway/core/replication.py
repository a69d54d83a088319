"""The replicated tenant map's rules, pure: what a record looks like on the wire, which of two records wins, what a
follower does with the next entry of a log, how far behind it is.

The function that writes in Redis (`control/replication/functions.lua`) follows these very rules; a differential test
holds the two together, and the simulator runs on these.

A *value* is what Redis keeps of a tenant, and what travels between regions, word for word:

    1 <version> <replaces> <sum>\\n<body>

`version` is epoch.hlc.region; `replaces` the versions that it descends from, newest first, at most LINEAGE_MAX, joined
by commas (`-`: none, or not known); `sum` the first 16 hex digits of SHA-1 over id, NUL, version, NUL and body; `body`
the record as JSON. The sum finds damage, and a map's digest is the exclusive or of its sums.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from enum import Enum, StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.core.addresses import access_list
from gateway.core.limits import TenantLimits
from gateway.core.placement import (
    REGION_NAME,
    TENANT_ID,
    Failover,
    Misroute,
    Partition,
    Placement,
    State,
    Version,
    parse_version,
)

LINEAGE_MAX: Final = 8
"""How many ancestors a value names: so far apart may two regions be and still tell a late entry from a conflict."""

VALUE_BYTES_MAX: Final = 128 * 1024
"""A tenant with a thousand custom domains has some 60 KB; what is longer is no record."""

SUM_DIGITS: Final = 16
"""64 bits: damage does not pass by chance, and no enemy writes the map."""

EPOCH_DIGITS_MAX: Final = 18
HLC_MAX: Final = (1 << 53) - 1
"""Lua's numbers are doubles: whole up to here, which is the year 287396 in milliseconds."""

FAR_AHEAD_MS: Final = 60_000
"""A peer's clock that is further ahead than this is alarmed; its records are merged all the same."""

FAILOVER_MARGIN_MS: Final = 10_000
"""How far a Redis that was restarted or promoted moves its clock on before its next write: beyond the lag of a replica
and the skew of its clock, so that no version is given twice."""

_HEAD: Final = re.compile(rb"1 (\S{1,80}) (\S{1,800}) ([0-9a-f]{16})\n")

_EPOCH: Final = rb"(?:0|[1-9][0-9]{0,17})"
_HLC: Final = rb"(?:0|[1-9][0-9]{0,14})"
_REGION: Final = rb"[a-z0-9-]{0,32}"
_VERSION: Final = rb"\.".join((_EPOCH, _HLC, _REGION))
PLAIN_HEAD: Final = re.compile(
    rb"1 ((%b)\.(%b)\.(%b)) (?:-|%b(?:,%b){0,%d}) ([0-9a-f]{16})\n"
    % (_EPOCH, _HLC, _REGION, _VERSION, _VERSION, LINEAGE_MAX - 1)
)
"""A head that `stamp_of` takes, for who reads ten thousand values a second: version, its three parts, and sum. What it
does not match may be one all the same, and is `stamp_of`'s to judge."""


class BadValue(ValueError):
    """A value that is no record; the message says why, for a dead letter."""


class Body(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A record without its id and version, as JSON has it. Keys as in the tenants file, and the replicated ones."""

    home: str
    standby: tuple[str, ...] = ()
    failover: Failover = Failover.MANUAL
    hosts: tuple[str, ...] = ()
    public: dict[str, str] = {}
    misroute: Misroute | None = None
    state: State = State.ACTIVE
    cluster: str | None = None
    labels: dict[str, str] = {}
    partition: Partition = Partition.SERVE
    limits: TenantLimits | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    claims: dict[str, int] = {}
    by: str = ""
    why: str = ""
    takeover: bool = False


class Stamp(NamedTuple):
    """What decides between two values of one tenant."""

    version: Version
    replaces: tuple[Version, ...]
    sum: str


_body_encoder: Final = msgspec.json.Encoder(order="deterministic")
_body_decoder: Final = msgspec.json.Decoder(Body)


def encode_body(placement: Placement) -> bytes:
    """The body of this record: equal records give equal bytes."""
    return _body_encoder.encode(
        Body(
            home=placement.home,
            standby=placement.standby,
            failover=placement.failover,
            hosts=placement.hosts,
            public=placement.public,
            misroute=placement.misroute,
            state=placement.state,
            cluster=placement.cluster,
            labels=placement.labels,
            partition=placement.partition,
            limits=placement.limits,
            allow=placement.allow,
            deny=placement.deny,
            claims=placement.claims,
            by=placement.by,
            why=placement.why,
            takeover=placement.takeover,
        )
    )


def sum_of(tenant: str, version: str, body: bytes) -> str:
    """16 hex digits over id, version and body."""
    return sum_over(tenant, version.encode(), body).decode()


def sum_over(tenant: str, version: bytes, body: bytes) -> bytes:
    """`sum_of`, as it stands in a value."""
    covered = b"%b\0%b\0%b" % (tenant.encode(), version, body)
    return hashlib.sha1(covered, usedforsecurity=False).hexdigest()[:SUM_DIGITS].encode()


def encode_value(tenant: str, version: Version, replaces: Sequence[Version], body: bytes) -> bytes:
    """A whole value; of `replaces` the first LINEAGE_MAX are named."""
    text = str(version)
    ancestors = ",".join(map(str, replaces[:LINEAGE_MAX])) or "-"
    return b"1 %b %b %b\n%b" % (text.encode(), ancestors.encode(), sum_of(tenant, text, body).encode(), body)


def stamp_of(value: bytes) -> Stamp:
    """The stamp of a value, its body unseen. Raises BadValue."""
    found = _HEAD.match(value)
    if found is None:
        raise BadValue("expected `1 VERSION REPLACES SUM` and a line end")
    version, *replaces = map(_version, (found[1], *(() if found[2] == b"-" else found[2].split(b","))))
    if len(replaces) > LINEAGE_MAX:
        raise BadValue(f"{len(replaces)} versions replaced, expected at most {LINEAGE_MAX}")
    return Stamp(version, tuple(replaces), found[3].decode())


def _version(text: bytes) -> Version:
    """A version in its one written form, within what every reader of it can hold. Raises BadValue."""
    try:
        version = parse_version(text.decode("ascii"))
    except ValueError as error:
        raise BadValue(f"no version: {error}") from error
    if str(version).encode() != text or len(str(version.epoch)) > EPOCH_DIGITS_MAX or version.hlc > HLC_MAX:
        raise BadValue(f"a version out of range, or not as it is written: {text.decode('ascii')}")
    return version


def check_value(tenant: str, value: bytes) -> Stamp:
    """The stamp of a value whose id, size and sum hold. Raises BadValue. The body is not decoded."""
    if not TENANT_ID.match(tenant):
        raise BadValue(f"{tenant[:80]!r} is no tenant id")
    if len(value) > VALUE_BYTES_MAX:
        raise BadValue(f"{len(value)} bytes, expected at most {VALUE_BYTES_MAX}")
    stamp = stamp_of(value)
    body = value[value.index(b"\n") + 1 :]
    if sum_of(tenant, str(stamp.version), body) != stamp.sum:
        raise BadValue("its sum does not hold")
    return stamp


def decode_value(tenant: str, value: bytes) -> Placement:
    """The record in a value. Raises BadValue for everything that is none."""
    stamp = check_value(tenant, value)
    try:
        body = _body_decoder.decode(value[value.index(b"\n") + 1 :])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadValue(f"no record: {error}") from error
    if not REGION_NAME.match(body.home) or not all(map(REGION_NAME.match, body.standby)):
        raise BadValue("home or standby is no region's name")
    if body.allow or body.deny:
        try:
            access_list(body.allow, body.deny)
        except ValueError:
            raise BadValue("allow or deny holds what is no network") from None
    return Placement(
        tenant=tenant,
        home=body.home,
        standby=body.standby,
        failover=body.failover,
        hosts=body.hosts,
        public=body.public,
        misroute=body.misroute,
        state=body.state,
        cluster=body.cluster,
        labels=body.labels,
        version=stamp.version,
        partition=body.partition,
        limits=body.limits,
        allow=body.allow,
        deny=body.deny,
        claims=body.claims,
        by=body.by,
        why=body.why,
        takeover=body.takeover,
    )


# --- which of two records wins


class Outcome(StrEnum):
    """What became of a value that came from elsewhere. The letters are the ones that Redis answers with."""

    APPLIED = "A"
    DUPLICATE = "D"
    STALE = "S"
    """Older than ours, which descends from it: it only came late."""
    CONFLICT_WON = "W"
    """Newer than ours without descending from it: ours is in history now."""
    CONFLICT_LOST = "L"
    """Older than ours without being an ancestor of it: it is in history now."""


CONFLICTS: Final = frozenset({Outcome.CONFLICT_WON, Outcome.CONFLICT_LOST})
TAKES: Final = frozenset({Outcome.APPLIED, Outcome.CONFLICT_WON})
"""After these the value that came is the current one."""


def judge(current: Stamp | None, incoming: Stamp, history: Collection[Version] = ()) -> Outcome:
    """What to do with `incoming` where `current` is. `history`: versions that were current or lost here before.

    A record that wins without descending from the one it replaces, or loses without being an ancestor, is a conflict:
    two writes that did not know of each other. One that is older than all that a full lineage remembers cannot be told
    from an ancestor, and is taken for one. Equal versions with other content (somebody's hand) go by their sums, so
    that every region ends with the same.
    """
    if current is None:
        return Outcome.APPLIED
    if incoming.version == current.version:
        if incoming.sum == current.sum:
            return Outcome.DUPLICATE
        return Outcome.CONFLICT_WON if incoming.sum > current.sum else Outcome.CONFLICT_LOST
    if incoming.version > current.version:
        return Outcome.APPLIED if descends(incoming, current.version) else Outcome.CONFLICT_WON
    if descends(current, incoming.version) or incoming.version in history:
        return Outcome.STALE
    return Outcome.CONFLICT_LOST


def descends(stamp: Stamp, ancestor: Version) -> bool:
    """Whether `stamp` names `ancestor` among those it replaces, or remembers too little to say."""
    if ancestor in stamp.replaces:
        return True
    return len(stamp.replaces) >= LINEAGE_MAX and ancestor < min(stamp.replaces)


def lineage(current: Stamp | None) -> tuple[Version, ...]:
    """What the next version here replaces."""
    return () if current is None else (current.version, *current.replaces[: LINEAGE_MAX - 1])


def next_hlc(clock_ms: int, hlc: int) -> int:
    """The hybrid logical clock's next reading: never below the wall, never twice the same (Kulkarni et al., 2014)."""
    return max(clock_ms, hlc + 1)


# --- following a log


class Offset(NamedTuple):
    """How far a log was followed: everything up to `seq` of the log `log_id` is here."""

    log_id: str
    seq: int

    def __str__(self) -> str:
        return f"{self.log_id} {self.seq}"


def parse_offset(text: str) -> Offset | None:
    """Read `str(offset)`; None for anything else, which is followed from the beginning."""
    log_id, _, seq = text.partition(" ")
    return Offset(log_id, int(seq)) if log_id and seq.isascii() and seq.isdigit() else None


class Head(NamedTuple):
    """The ends of a log: entries `first` to `last` can be read. An empty log has `first == last + 1`."""

    log_id: str
    first: int
    last: int


class Step(Enum):
    """What a follower does with one entry, or with a log's head."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    GAP = "gap"
    RESYNC = "resync"


def step(offset: Offset | None, log_id: str, seq: int) -> Step:
    """What entry `seq` of log `log_id` is to a follower that is at `offset`."""
    if offset is None or offset.log_id != log_id:
        return Step.RESYNC
    if seq == offset.seq + 1:
        return Step.APPLIED
    return Step.DUPLICATE if seq <= offset.seq else Step.GAP


def can_follow(offset: Offset | None, head: Head) -> bool:
    """Whether the log still holds everything beyond `offset`: otherwise both maps are compared whole (a resync).

    Another log id, a head behind our offset (the log was rolled back), entries trimmed that we have not seen: all
    three mean that counting on would skip something.
    """
    return offset is not None and offset.log_id == head.log_id and head.first - 1 <= offset.seq <= head.last


def lag_records(offset: Offset | None, head: Head) -> int:
    """Entries of the log that are not here; all of it when it cannot be told."""
    if offset is None or offset.log_id != head.log_id:
        return head.last
    return max(0, head.last - offset.seq)


def goes_forward(before: Offset | None, after: Offset, resynced: bool) -> bool:
    """Whether an offset may move so: up in its log; to another log only by a resync."""
    if before is None or before.log_id != after.log_id:
        return resynced
    return after.seq > before.seq
