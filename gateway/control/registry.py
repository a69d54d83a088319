"""The gateways of all regions, as this region's Redis lists them, and this gateway's own row there.

A row says what its gateway runs and how far every region's writes have reached its requests: only what all connected
workers have acknowledged counts. From the rows comes who is behind, and whose program or configuration is another.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.control.replication.progress import Condition
from gateway.control.replication.region_map import GatewayRow, MapHead, PeerState, RegionMap
from gateway.control.sources.attempt import Attempts
from gateway.core.replication import parse_offset
from gateway.settings.schema import Address, Listen, Settings

ID_FILE: Final = "gateway.id"
ID_CHARS_MAX: Final = 64
"""Host names are cut to it: an id stands in tables and labels."""

LIVE_MS: Final = 10_000
"""A gateway that was not heard of for longer does not count: neither for `--wait` nor for drift."""

SAID_MS: Final = 10_000
"""A replicator says its state each second; what it said longer ago than this is not known any more."""

EVERY_S: Final = 1.0
AFTER_CHANGES_S: Final = 0.02
"""After a change is in use, our row says so within this: who waits for a write waits for it."""

COMMITS_MAX: Final = 1024


def gateway_id(state_dir: Path) -> str:
    """This gateway's name among all: made once, kept in `state_dir`. Blocks.

    Where it cannot be kept it is another one after the next start, and the old row grows old.
    """
    path = state_dir / ID_FILE
    try:
        known = path.read_text("ascii").strip()
        if known and known.isprintable() and len(known) <= ID_CHARS_MAX:
            return known
    except (OSError, UnicodeDecodeError):
        pass
    host = "".join(
        c for c in socket.gethostname().partition(".")[0].lower() if c.isascii() and (c.isalnum() or c in "-_")
    )
    made = f"{host[: ID_CHARS_MAX - 9] or 'gateway'}-{secrets.token_hex(4)}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(made + "\n")
    except OSError:
        pass
    return made


def config_digests(settings: Settings) -> str:
    """`SHARED.REGIONAL`, 8 hex digits each: over what all regions' configurations say alike, and over what besides that
    all gateways of one region say alike. Where they differ somebody decides differently.
    """
    shared = (
        settings.fleet,
        sorted((name, region.public) for name, region in settings.regions.items()),
        settings.hop_keys,
        settings.tenancy,
        settings.routes,
        settings.misroute,
        [file.digest for file in settings.filter_files],
        settings.filter_options,
    )
    # What is a machine's own affair is left out: where it listens and keeps its files, how many cores it has.
    regional = msgspec.structs.replace(
        settings, listen=Listen(Address("", 0)), workers=0, state_dir="", digest="", origins={}, filter_files=()
    )
    return f"{_digest(shared)}.{_digest(regional)}"


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(value, order="deterministic")).hexdigest()[:8]


# --- how far the workers are


class Progress(NamedTuple):
    """How far a store is: offset of its region's feed, and of each region's own log ("log_id seq")."""

    feed: str = ""
    origins: Mapping[str, str] = {}


class Acknowledged:
    """What of the store is in use by every worker: what was committed with a transaction that all of them have seen.

    Without a worker what is committed counts: the next one starts from the store.
    """

    def __init__(self) -> None:
        self.used = Progress()
        self._slowest: int | None = None
        self._commits: deque[tuple[int, Progress]] = deque()

    def committed(self, transaction: int, progress: Progress) -> bool:
        """The store is this far as of `transaction`; whether more is in use than before."""
        if self._commits and (self._commits[-1][0] == transaction or len(self._commits) >= COMMITS_MAX):
            self._commits.pop()  # who has seen the later one has seen this one
        self._commits.append((transaction, progress))
        return self._settle()

    def acknowledged(self, slowest: int | None) -> bool:
        """All workers have seen this transaction; whether more is in use than before."""
        self._slowest = slowest
        return self._settle()

    def restart(self) -> None:
        """Transactions are counted anew, in another store."""
        self._commits.clear()
        self.used = Progress()

    def _settle(self) -> bool:
        before = self.used
        while self._commits and (self._slowest is None or self._commits[0][0] <= self._slowest):
            self.used = self._commits.popleft()[1]
        return self.used != before


# --- what the rows say together


def live(rows: Iterable[GatewayRow]) -> list[GatewayRow]:
    return [row for row in rows if row.age_ms <= LIVE_MS]


class Drift(NamedTuple):
    """How many different programs and configurations run beyond the one that should: 0 and 0 when all are alike."""

    program: int
    config: int


def drift(rows: Iterable[GatewayRow]) -> Drift:
    """Over all that live. Regions are compared by what they share, gateways of one region by everything."""
    found = live(rows)
    shared = {row.config.partition(".")[0] for row in found}
    regional = {(row.region, row.config) for row in found}
    of_region = {row.region for row in found}
    config = len(shared) - 1 if len(shared) > 1 else len(regional) - len(of_region)
    return Drift(max(0, len({row.program for row in found}) - 1), config)


def behind(row: GatewayRow, heads: Mapping[str, str]) -> int | None:
    """Writes of all regions that this gateway does not use yet; None where that cannot be told."""
    total = 0
    for region, text in heads.items():
        head, used = parse_offset(text), parse_offset(row.applied.get(region, ""))
        if head is None or head.seq == 0:
            continue
        if used is None or used.log_id != head.log_id:
            return None
        total += max(0, head.seq - used.seq)
    return total


class Replication(msgspec.Struct, frozen=True):
    """How this region stands to the others, as its Redis said at `at` (monotonic seconds; None: never).

    `connected`: it can be read now; `problem` says why not. `id` is this gateway's, `offset` how far it follows the
    feed, which ends at `head`. `heads` has the end of each region's log, as far as it is known.
    """

    url: str
    connected: bool = False
    problem: str = ""
    at: float | None = None
    id: str = ""
    offset: str = ""
    head: str = ""
    complete: bool = False
    records: int = 0
    clock_ms: int = 0
    peers: dict[str, PeerState | None] = {}
    gateways: tuple[GatewayRow, ...] = ()
    heads: dict[str, str] = {}
    dead_letters: int = 0

    def said(self, peer: str) -> PeerState | None:
        """What is known of a peer now; None when nobody has said anything of it lately."""
        state = self.peers.get(peer)
        if not self.connected or state is None or self.clock_ms - state.at_ms > SAID_MS:
            return None
        return state


class Where(NamedTuple):
    """What this gateway's Redis last said of itself, and how much of it is in use here."""

    head: MapHead | None
    used: Progress


class Registry:
    """Keeps this gateway's row, and knows all of them. `where()` says how far we are; `progressed()` that it is more.

    `heard_at`: monotonic seconds of when the replicator last told something new of a region that it hears.
    """

    def __init__(
        self, state_dir: Path, program: str, settings: Callable[[], Settings], where: Callable[[], Where]
    ) -> None:
        self.heard_at: float | None = None
        self.known = Replication("")
        self._state_dir = state_dir
        self._program = program
        self._settings = settings
        self._where = where
        self._progressed = asyncio.Event()
        self._id = ""

    def progressed(self) -> None:
        self._progressed.set()

    def lost(self, url: str, why: str) -> None:
        """The Redis cannot be read: what is known grows old."""
        peers = {peer: self.known.peers.get(peer) for peer in _peers_of(self._settings())}
        self.known = msgspec.structs.replace(self.known, url=url, connected=False, problem=why, peers=peers)

    async def run(self, map_: RegionMap, attempts: Attempts) -> None:
        """Say what this gateway is and uses, each second and at once after a change; read what all are, each second."""
        loop = asyncio.get_running_loop()
        self._id = self._id or await asyncio.to_thread(gateway_id, self._state_dir)
        read_at = 0.0
        while True:
            self._progressed.clear()
            settings = self._settings()
            where = self._where()
            await attempts.write("this gateway's row", map_.register(self._row(settings, where.used)))
            if where.head is not None and loop.time() >= read_at:
                read_at = loop.time() + EVERY_S
                await self._read(map_, settings, where.head)
            await asyncio.sleep(AFTER_CHANGES_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, read_at - loop.time()) or EVERY_S):
                    await self._progressed.wait()

    def _row(self, settings: Settings, used: Progress) -> GatewayRow:
        return GatewayRow(
            region=settings.region,
            id=self._id,
            program=self._program,
            config=config_digests(settings),
            feed=used.feed,
            applied=dict(used.origins),
        )

    async def _read(self, map_: RegionMap, settings: Settings, head: MapHead) -> None:
        """Everything that the Redis says of regions and gateways. Raises MapUnavailable."""
        states = await map_.replication()
        rows = await map_.gateways()
        dead = await map_.dead_count()
        before = self.known.peers
        peers = {peer: states.get(peer) for peer in _peers_of(settings)}
        if any(is_news(before.get(peer), state) for peer, state in peers.items()):
            self.heard_at = asyncio.get_running_loop().time()
        heads = {peer: state.head for peer, state in peers.items() if state is not None}
        if head.log_id:
            heads[settings.region] = f"{head.log_id} {head.log.last}"
        self.known = Replication(
            url=map_.place,
            connected=True,
            at=asyncio.get_running_loop().time(),
            id=self._id,
            head=f"{head.log_id} {head.feed.last}" if head.log_id else "",
            complete=head.complete,
            records=head.records,
            clock_ms=head.clock_ms,
            peers=peers,
            gateways=tuple(rows),
            heads=heads,
            dead_letters=dead,
        )


def _peers_of(settings: Settings) -> Iterable[str]:
    redis = settings.tenant_map.redis
    return () if redis is None else redis.peers


HEARD: Final = frozenset({Condition.FOLLOWING, Condition.RESYNCING})


def is_news(before: PeerState | None, now: PeerState | None) -> bool:
    """Whether the replicator has heard the peer since it last said so. No clock is asked: one that stands says nothing,
    and what was said before we looked first may be as old as the Redis.
    """
    return now is not None and before is not None and now.state in HEARD and now.at_ms != before.at_ms
