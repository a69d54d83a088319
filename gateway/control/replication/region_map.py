"""One region's map in its Redis, as typed operations: what is written goes through `functions.lua`, what is read is
read plainly.

Everything that goes wrong with the connection or the server is a MapUnavailable whose message may be shown; nothing
else comes out of here, and nothing is retried here. A call has a limit of its own, so a server that hangs is found.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError, RedisError

from gateway.control.replication import keys
from gateway.control.replication.connect import connect
from gateway.core.placement import Version, parse_version
from gateway.core.replication import Head, Offset, Outcome, Step, parse_offset
from gateway.core.switches import Switch
from gateway.settings import redis_url
from gateway.settings.problems import masked_url
from gateway.settings.schema import TlsSettings

TIMEOUT_S: Final = 2.0
"""For one call: a server that takes longer is slower than the gateway can use, and is asked again anyway."""

SCAN: Final = 1000
LETTER_VALUE_BYTES_MAX: Final = 4096
"""Of a value that could not be read this much is kept: enough to see what it is."""

_SCRIPT: Final = (Path(__file__).parent / "functions.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()

_T = TypeVar("_T")


class MapUnavailable(Exception):
    """This region's Redis cannot be used now; the message is for the operator and holds no password."""


class WrongRegion(MapUnavailable):
    """The Redis holds the map of another region: two regions' configurations name one server."""


class LeaseLost(Exception):
    """Another replicator holds the lease: nothing was written."""


class Write(NamedTuple):
    """A new version of one record. `expected` is the version that it replaces; None: there must be no record."""

    tenant: str
    expected: Version | None
    epoch: int
    body: bytes


class Written(NamedTuple):
    """Acknowledged: entry `seq` of the log `log_id`."""

    version: Version
    log_id: str
    seq: int


class Refused(NamedTuple):
    """Nothing was written: the record is another than expected. `current` is its value, None without one."""

    current: bytes | None


class Merged(NamedTuple):
    """What became of each value that was not only counted; `ours` stood here before, for each conflict in order."""

    outcomes: list[Outcome]
    ours: list[bytes]
    duplicates: int


class MapHead(NamedTuple):
    """What a map says of itself. `log_id` "" : nothing was ever written. `clock_ms`: the server's clock."""

    log_id: str
    run: str
    region: str
    log: Head
    feed: Head
    hlc: int
    complete: bool
    records: int
    clock_ms: int


class FeedEntry(NamedTuple):
    """`tenant` "" is a marker: only `origin` counts. `value` empty: the tenant was purged."""

    seq: int
    tenant: str
    value: bytes
    origin: tuple[str, Offset] | None


class HistoryEntry(NamedTuple):
    """A value that is not current any more (or never was, here): what took its place, and when."""

    at_ms: int
    by: Version
    value: bytes


class Letter(msgspec.Struct, frozen=True):
    """A value that could not be taken in. `source`: the peer it came from, or `feed`; `value` is cut."""

    tenant: str
    source: str
    reason: str
    at_ms: int
    value: bytes = b""


class GatewayRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway says of itself. `applied`: region to the offset of its log up to which all workers use it.

    `age_ms` is since it was last heard of, by the clock of the Redis that the row was read from.
    """

    region: str
    id: str
    program: str
    config: str
    feed: str = ""
    applied: dict[str, str] = {}
    age_ms: int = 0


class PeerState(msgspec.Struct, frozen=True, kw_only=True):
    """How the replicator stands to one peer. `lag_records` and `lag_s` are as of `at_ms` (the own server's clock)."""

    state: str
    offset: str = ""
    head: str = ""
    lag_records: int = 0
    lag_s: float = 0.0
    retries: int = 0
    conflicts: int = 0
    holder: str = ""
    at_ms: int = 0
    reason: str = ""


class RegionMap:
    """The map of `region` at `url`. Nothing is connected before the first call. Close it."""

    def __init__(
        self, url: str, region: str, tls: TlsSettings | None = None, *, timeout_s: float = TIMEOUT_S, name: str = ""
    ) -> None:
        self.region = region
        self.place = redis_url.read(url).bare()
        """Where it is, as it may be shown."""
        self._timeout_s = timeout_s
        self._connected = connect(redis_url.read(url), tls, timeout_s, name)
        self._client = self._connected.client

    def __repr__(self) -> str:
        return f"<RegionMap {self.region} {self.place}>"

    async def close(self) -> None:
        await self._connected.close(self._timeout_s)

    # --- reading

    async def head(self) -> MapHead:
        """Ends of both streams, and what else the map says of itself."""
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.hmget(keys.META, ["region", "run", "log_id", "log_seq", "feed_seq", "hlc", "complete"])
            pipe.xrange(keys.LOG, count=1)
            pipe.xrange(keys.FEED, count=1)
            pipe.hlen(keys.TENANTS)
            meta, log, feed, records = await self._ask(pipe.execute())
        region, run, log_id, log_seq, feed_seq, hlc, complete = ((part or b"").decode() for part in meta)
        if region and region != self.region:
            raise self._wrong(region)
        return MapHead(
            log_id=log_id,
            run=run,
            region=region,
            log=Head(log_id, _first(log, int(log_seq or 0)), int(log_seq or 0)),
            feed=Head(log_id, _first(feed, int(feed_seq or 0)), int(feed_seq or 0)),
            hlc=int(hlc or 0),
            complete=complete == "1",
            records=records,
            clock_ms=await self._clock_ms(),
        )

    async def read_log(self, after_seq: int, count: int, block_ms: int) -> list[tuple[int, str, bytes]]:
        """(seq, tenant, value) of at most `count` entries after `after_seq`; waits up to `block_ms` for the first."""
        rows = await self._stream(keys.LOG, after_seq, count, block_ms)
        return [
            (_seq(key), fields.get(b"i", b"").decode("utf-8", "replace"), fields.get(b"v", b"")) for key, fields in rows
        ]

    async def read_feed(self, after_seq: int, count: int, block_ms: int) -> list[FeedEntry]:
        """As `read_log`, of what was applied here."""
        rows = await self._stream(keys.FEED, after_seq, count, block_ms)
        return [
            FeedEntry(
                _seq(key),
                fields.get(b"i", b"").decode("utf-8", "replace"),
                fields.get(b"v", b""),
                _origin(fields.get(b"o", b"-")),
            )
            for key, fields in rows
        ]

    async def _stream(
        self, key: str, after_seq: int, count: int, block_ms: int
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        asked = self._client.xread({key: f"{after_seq}-0"}, count=count, block=block_ms or None)
        found = await self._ask(asked, self._timeout_s + block_ms / 1000)
        return found[0][1] if found else []

    async def get(self, tenants: Sequence[str]) -> list[bytes | None]:
        """Their values, in order."""
        if not tenants:
            return []
        return cast("list[bytes | None]", await self._ask(self._client.hmget(keys.TENANTS, list(tenants))))

    async def scan(self, count: int = SCAN) -> AsyncIterator[list[tuple[str, bytes]]]:
        """The whole map in pieces of about `count`; what changes meanwhile may come in either state, or twice."""
        cursor: int | None = None
        while cursor != 0:
            cursor, rows = await self._ask(self._client.hscan(keys.TENANTS, cursor or 0, count=count))
            if rows:
                yield [(tenant.decode("utf-8", "replace"), value) for tenant, value in rows.items()]

    async def digests(self) -> dict[str, str]:
        """Bucket (two hex digits) to digest (16 hex digits); a bucket that is not there is empty."""
        found = await self._ask(self._client.hgetall(keys.DIGEST))
        return {bucket.decode(): digest.decode() for bucket, digest in found.items() if digest.strip(b"0")}

    async def offsets(self) -> dict[str, Offset]:
        """Peer to how far its log is followed here."""
        found = await self._ask(self._client.hgetall(keys.OFFSETS))
        parsed = {peer.decode(): parse_offset(text.decode()) for peer, text in found.items()}
        return {peer: offset for peer, offset in parsed.items() if offset is not None}

    async def history(self, tenant: str) -> list[HistoryEntry]:
        """What was current here or lost here, newest first."""
        entries = []
        for row in await self._ask(self._client.lrange(keys.HISTORY + tenant, 0, -1)):
            head, _, value = row.partition(b"\n")
            at_ms, _, by = head.decode().partition(" ")
            entries.append(HistoryEntry(int(at_ms), parse_version(by), value))
        return entries

    async def exists_at_all(self) -> bool:
        """Whether anything was ever written here."""
        return (await self.head()).log_id != ""

    # --- writing

    async def begin(self) -> str:
        """Give the log a new name if the server is another process than the last writer's; the log's name."""
        return str((await self._call("begin"))[1].decode())

    async def write(self, items: Sequence[Write]) -> list[Written | Refused]:
        """Write new versions, each by compare-and-set; one that is refused keeps no other from being written."""
        arguments: list[str | bytes] = []
        for item in items:
            expected = "-" if item.expected is None else str(item.expected)
            arguments += (item.tenant, expected, str(item.epoch), item.body)
        reply = await self._call("write", *arguments)
        log_id = reply[1].decode()
        results: list[Written | Refused] = []
        for at in range(2, len(reply), 3):
            if reply[at] == b"A":
                results.append(Written(parse_version(reply[at + 1].decode()), log_id, int(reply[at + 2])))
            else:
                results.append(Refused(reply[at + 1] or None))
        return results

    async def follow(
        self, peer: str, log_id: str, first_seq: int, entries: Iterable[tuple[str, bytes]], lease: str
    ) -> Merged | Step:
        """Take in entries of a peer's log, dense from `first_seq`, and move its offset. An empty value only counts.

        GAP or RESYNC when the offset here does not fit: nothing was written then. Raises LeaseLost.
        """
        arguments: list[str | bytes] = [peer, lease, log_id, str(first_seq)]
        for entry in entries:
            arguments += entry
        reply = await self._call("follow", *arguments)
        if reply[0] == b"RESYNC":
            return Step.RESYNC
        return Step.GAP if reply[0] == b"GAP" else _merged(reply)

    async def merge(self, entries: Iterable[tuple[str, bytes]], *, lease: str = "", relog: bool = False) -> Merged:
        """Take in values from anywhere. `relog`: what wins is also told the peers. Raises LeaseLost."""
        arguments: list[str | bytes] = [lease, "1" if relog else "0"]
        for entry in entries:
            arguments += entry
        return _merged(await self._call("merge", *arguments))

    async def resynced(self, peer: str, offset: Offset, lease: str, complete: bool, own_log: str = "") -> bool:
        """All of the peer's map up to `offset` is here; whether the offset moved. Raises LeaseLost.

        `own_log`: what our own log was called when the comparison began. If it is called otherwise by now, our Redis is
        another process or was emptied, and may lack what came in before: nothing is done then.
        """
        said = ("1" if complete else "0", own_log)
        reply = await self._call("resynced", peer, lease, offset.log_id, str(offset.seq), *said)
        return bool(reply[1] == b"1")

    async def mark_complete(self) -> None:
        """This map is whole: who is not in it is nobody."""
        await self._call("complete")

    async def purge(self, tenant: str, version: Version, lease: str = "") -> bool:
        """Forget a tombstone of this version, with its history; whether it was there. Raises LeaseLost."""
        return bool((await self._call("purge", tenant, str(version), lease))[1] == b"1")

    async def set_digests(self, feed_seq: int, digests: Mapping[str, str]) -> bool:
        """Replace the digests by ones counted anew; False, and nothing done, when the feed has moved on since."""
        arguments = [part for pair in digests.items() for part in pair]
        return bool((await self._call("digests", str(feed_seq), *arguments))[1] == b"1")

    # --- switches of the region

    async def switches(self) -> dict[str, Switch]:
        """All that were ever set, by name."""
        found = await self._ask(self._client.hgetall(keys.SWITCHES))
        switches = {}
        for name, row in found.items():
            at_ms, _, text = row.partition(b" ")
            switch = _read(text, Switch)
            if switch is not None and at_ms.isdigit():
                switches[name.decode("utf-8", "replace")] = msgspec.structs.replace(switch, at_ms=int(at_ms))
        return switches

    async def put_switch(self, name: str, switch: Switch) -> int:
        """Set one (`at_ms` 0: now), unless it was set later already; when the one that counts was set."""
        return int((await self._call("switch", name, str(switch.at_ms), msgspec.json.encode(switch)))[1])

    # --- dead letters

    async def bury(self, letter: Letter) -> bool:
        """Keep what could not be taken in; the newest of a tenant. Whether that is a new letter."""
        cut = msgspec.structs.replace(letter, value=letter.value[:LETTER_VALUE_BYTES_MAX])
        key = letter.tenant.encode("utf-8", "replace")[:256]
        return bool(await self._ask(self._client.hset(keys.DEAD, key, msgspec.json.encode(cut))))

    async def letters(self) -> dict[str, Letter]:
        """All of them, by tenant."""
        found = await self._ask(self._client.hgetall(keys.DEAD))
        return {
            tenant.decode("utf-8", "replace"): letter
            for tenant, row in found.items()
            if (letter := _read(row, Letter)) is not None
        }

    async def dead_count(self) -> int:
        return int(await self._ask(self._client.hlen(keys.DEAD)))

    async def drop_letter(self, tenant: str) -> bool:
        """Forget a letter; whether there was one."""
        return bool(await self._ask(self._client.hdel(keys.DEAD, tenant)))

    # --- registry, lease, state of the replication

    async def register(self, row: GatewayRow) -> None:
        """Keep a gateway's row, last seen `row.age_ms` ago."""
        await self._call("register", f"{row.region}/{row.id}", str(row.age_ms), msgspec.json.encode(row))

    async def gateways(self) -> list[GatewayRow]:
        """Every row, with its age, in order."""
        found = await self._ask(self._client.hgetall(keys.GATEWAYS))
        now = await self._clock_ms()
        rows = []
        for text in found.values():
            seen, _, written = text.partition(b" ")
            row = _read(written, GatewayRow)
            if row is not None and seen.isdigit():
                rows.append(msgspec.structs.replace(row, age_ms=max(0, now - int(seen))))
        return sorted(rows, key=lambda row: (row.region, row.id))

    async def forget_gateway(self, region: str, name: str) -> None:
        await self._ask(self._client.hdel(keys.GATEWAYS, f"{region}/{name}"))

    async def acquire(self, token: str, ttl_ms: int) -> bool:
        """Take the lease if it is free, or renew ours; whether it is ours now."""
        return bool((await self._call("acquire", token, str(ttl_ms)))[1] == b"1")

    async def release(self, token: str) -> None:
        """Give the lease up if it is ours."""
        await self._call("release", token)

    async def put_replication(self, states: Mapping[str, PeerState]) -> None:
        """Say how the replicator stands to each peer."""
        if states:
            rows = {peer: msgspec.json.encode(state) for peer, state in states.items()}
            await self._ask(self._client.hset(keys.REPLICATION, mapping=rows))  # type: ignore[arg-type]

    async def replication(self) -> dict[str, PeerState]:
        """What the replicator said last, by peer."""
        found = await self._ask(self._client.hgetall(keys.REPLICATION))
        return {peer.decode(): state for peer, row in found.items() if (state := _read(row, PeerState)) is not None}

    # --- the server

    async def _clock_ms(self) -> int:
        """The server's clock; in a cluster that of any node, since TIME has no key."""
        anywhere = {"target_nodes": RedisCluster.RANDOM} if isinstance(self._client, RedisCluster) else {}
        seconds, micros = await self._ask(self._client.execute_command("TIME", **anywhere))
        return int(seconds) * 1000 + int(micros) // 1000

    async def _call(self, operation: str, *arguments: str | bytes) -> list[Any]:
        """Run the function; load it first where the server does not know it."""
        asked = (keys.TENANTS, operation, self.region, *arguments)
        try:
            reply = await self._ask(self._client.evalsha(_SHA, 1, *asked), raw=True)
        except NoScriptError:
            reply = await self._ask(self._client.eval(_SCRIPT, 1, *asked))  # type: ignore[arg-type]
        if reply[0] == b"LEASE":
            raise LeaseLost
        if reply[0] == b"REGION":
            raise self._wrong(reply[1].decode())
        return cast("list[Any]", reply)

    async def _ask(self, asked: Awaitable[_T] | Any, limit_s: float | None = None, raw: bool = False) -> Any:
        """Wait for an answer within the limit. Raises MapUnavailable; with `raw` also NoScriptError."""
        try:
            async with asyncio.timeout(limit_s or self._timeout_s):
                return await asked
        except NoScriptError:
            if raw:
                raise
            raise MapUnavailable(f"{self.region} ({self.place}): the script is not known") from None
        except TimeoutError:
            await self._connected.hang_up()
            raise MapUnavailable(
                f"{self.region} ({self.place}): no answer within {limit_s or self._timeout_s:g} s"
            ) from None
        except (RedisError, OSError) as error:
            await self._connected.hang_up()
            raise MapUnavailable(f"{self.region} ({self.place}): {masked_url(str(error))}") from error

    def _wrong(self, found: str) -> WrongRegion:
        return WrongRegion(f"{self.region} ({self.place}): holds the map of {found}, so one of the two URLs is wrong")


def _first(rows: list[tuple[bytes, Any]], last: int) -> int:
    return _seq(rows[0][0]) if rows else last + 1


def _seq(key: bytes) -> int:
    return int(key.partition(b"-")[0])


def _origin(text: bytes) -> tuple[str, Offset] | None:
    """`region log_id seq`; None for `-`, and for what no function of ours wrote."""
    try:
        region, log_id, seq = text.decode().split(" ")
        return region, Offset(log_id, int(seq))
    except ValueError:
        return None


def _merged(reply: list[bytes]) -> Merged:
    return Merged([Outcome(letter) for letter in reply[1].decode()], reply[3:], int(reply[2]))


_R = TypeVar("_R")


def _read(row: bytes, type_: type[_R]) -> _R | None:
    """A row as JSON; None for what another program, or a hand, left there."""
    try:
        return msgspec.json.decode(row, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
