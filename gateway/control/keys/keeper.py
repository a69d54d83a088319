"""The keeper of keys: asks each source in time, keeps its last good answer through everything, and tells the workers.

A key set is asked for every `refresh`; when a token names a key that is not in it, at once, but once in ten seconds at
most. Single keys (the load balancer's) are asked for when a token names them, and never change. Whatever fails, the
last good keys stand: on disk too, so that neither a restart nor a first worker needs the source.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from gateway.bus.messages import KeyWanted
from gateway.bus.server import BusPeer
from gateway.control.keys.fetch import Fetcher, FetchFailed
from gateway.control.keys.rules import ABSENT_MAX, PEMS_MAX, for_key_set, for_single_keys, pause_s
from gateway.control.tasks import TaskSet
from gateway.core.jwks import TokenKeys, read_keys
from gateway.identity.rings import ABSENT_S, ASK_EVERY_S, KID, SINGLE_KID
from gateway.settings.identity import alb_source
from gateway.settings.schema import Settings
from gateway.store.token_keys import read_kept, write_kept

V = TypeVar("V")

LOG = logging.getLogger("landbridge.control")


class SourceState(NamedTuple):
    """A source as operators see it: its URL without a query, how many keys, why it fails, the last answer's age."""

    place: str
    keys: int
    failing: str
    age_s: float | None


def sources_of(settings: Settings) -> dict[str, float]:
    """Every URL that keys come from, and how often key sets are asked for; 0 for keys that come one by one."""
    found: dict[str, float] = {}
    for resolver in settings.tenancy.resolvers:
        if resolver.jwt is not None and not resolver.jwt.keys:
            url, refresh_s = resolver.jwt.jwks, resolver.jwt.refresh
            found[url] = min(found.get(url, refresh_s), refresh_s)
        elif resolver.alb is not None:
            found[alb_source(resolver.alb)] = 0.0
    return found


class _Source:
    """What is known of one source. `answered_at`: monotonic seconds of the last good answer in this life."""

    def __init__(self, url: str, keys: Mapping[str, str]) -> None:
        self.url = url
        self.refresh_s = 0.0
        self.keys = dict(keys)
        self.absent: dict[str, float] = {}
        self.why = ""
        self.failures = 0
        self.answered_at: float | None = None
        self.wanted = asyncio.Event()
        self.asked_at: float | None = None
        self.allowance = for_single_keys() if KID in url else for_key_set()
        self.under_way: set[str] = set()
        self.task: asyncio.Task[None] | None = None

    def told(self, now: float, asked: bool = False) -> TokenKeys:
        absent = tuple(kid for kid, until in self.absent.items() if until > now)
        return TokenKeys(self.url, dict(self.keys), absent, bool(self.why), asked)


class KeyKeeper:
    """`tell` broadcasts to all workers; `counted` hears of every question: applied or failed."""

    def __init__(
        self,
        state_dir: Path,
        tasks: TaskSet,
        tell: Callable[[TokenKeys], object],
        rng: random.Random,
        counted: Callable[[str], object],
    ) -> None:
        self._state_dir = state_dir
        self._tasks = tasks
        self._tell = tell
        self._rng = rng
        self._counted = counted
        self._fetcher = Fetcher()
        self._kept = read_kept(state_dir)
        self._written = {source: known.keys for source, known in self._kept.items()}
        self._writing: asyncio.Task[None] | None = None
        self._sources: dict[str, _Source] = {}

    def cover(self, *settings: Settings) -> None:
        """Keep the keys of exactly these settings' sources; there are two while new workers prove themselves."""
        wanted = {url: refresh_s for one in settings for url, refresh_s in sources_of(one).items()}
        for url in self._sources.keys() - wanted.keys():
            task = self._sources.pop(url).task
            if task is not None:
                task.cancel()
        for url, refresh_s in wanted.items():
            source = self._sources.get(url)
            if source is None:
                kept = self._kept.get(url)
                source = self._sources[url] = _Source(url, kept.keys if kept is not None else {})
            source.refresh_s = refresh_s
            if refresh_s and source.task is None:
                source.task = self._tasks.keep(partial(self._follow, source), f"keys of {_place(url)}")

    def greet(self, peer: BusPeer) -> None:
        """A worker is there: it is told everything."""
        for known in self.known():
            peer.send(known)

    def wanted(self, peer: BusPeer, message: KeyWanted) -> None:
        """A worker met a token whose key is not here."""
        source, now = self._sources.get(message.source), asyncio.get_running_loop().time()
        if source is None:
            return
        if KID in source.url:
            self._want_single(peer, source, message.kid, now)
        elif source.asked_at is not None and now - source.asked_at < ASK_EVERY_S:
            peer.send(source.told(now, asked=True))
        elif source.allowance.take(now):
            source.wanted.set()

    def known(self) -> list[TokenKeys]:
        """All that is known, for a worker or for who explains."""
        now = asyncio.get_running_loop().time()
        return [source.told(now) for source in self._sources.values()]

    def shown(self) -> list[SourceState]:
        now = asyncio.get_running_loop().time()
        return [
            SourceState(
                _place(source.url),
                _count(source),
                source.why,
                None if source.answered_at is None else now - source.answered_at,
            )
            for source in self._sources.values()
        ]

    async def close(self) -> None:
        await self._fetcher.close()

    # --- key sets

    async def _follow(self, source: _Source) -> None:
        loop, asked = asyncio.get_running_loop(), False
        while True:
            await self._refresh(source, asked)
            pause = pause_s(source.refresh_s, source.failures, self._rng)
            ends = loop.time() + pause
            try:
                async with asyncio.timeout_at(ends):
                    await source.wanted.wait()
            except TimeoutError:
                asked = False
            else:
                asked = True
            source.wanted.clear()

    async def _refresh(self, source: _Source, asked: bool) -> None:
        """Ask once. `asked`: because of a token, which waits for the answer; it is told, whatever it is."""
        before = source.told(0.0)
        try:
            text = await self._fetcher.key_set(source.url)
        except FetchFailed as failed:
            self._failed(source, str(failed))
        else:
            self._answered(source, {"": text})
        now = asyncio.get_running_loop().time()
        if asked:
            source.asked_at = now
        if asked or source.told(0.0) != before:
            self._tell(source.told(now, asked))

    # --- keys that come one by one

    def _want_single(self, peer: BusPeer, source: _Source, kid: str, now: float) -> None:
        if not SINGLE_KID.match(kid):
            return
        if kid in source.keys or source.absent.get(kid, 0.0) > now:
            peer.send(source.told(now))
        elif kid not in source.under_way and source.allowance.take(now):
            source.under_way.add(kid)
            self._tasks.spawn(self._look_up(source, kid), f"key of {_place(source.url)}")

    async def _look_up(self, source: _Source, kid: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            text = await self._fetcher.pem(source.url.replace(KID, kid))
        except FetchFailed as failed:
            if failed.is_absent:
                source.why = ""
                source.absent = _youngest({**source.absent, kid: loop.time() + ABSENT_S}, ABSENT_MAX)
                self._counted("absent")
            else:
                self._failed(source, str(failed))
        else:
            self._answered(source, _youngest({**source.keys, kid: text}, PEMS_MAX))
        finally:
            source.under_way.discard(kid)
        self._tell(source.told(loop.time(), asked=True))

    # --- both

    def _answered(self, source: _Source, keys: dict[str, str]) -> None:
        if source.why:
            LOG.info("keys of %s can be had again", _place(source.url))
        if keys != source.keys:
            LOG.info("keys of %s: %s", _place(source.url), "new ones" if source.keys else "known")
        source.keys, source.why, source.failures = keys, "", 0
        source.answered_at = asyncio.get_running_loop().time()
        self._counted("applied")
        self._keep()

    def _failed(self, source: _Source, why: str) -> None:
        if not source.why:
            kept = "the last good ones stand" if source.keys else "none is known: tokens are answered 503"
            LOG.error("keys of %s cannot be had: %s; %s", _place(source.url), why, kept)
        source.why = why
        source.failures += 1
        self._counted("failed")

    def _keep(self) -> None:
        """Bring what is known to disk, in a thread; once more when it changed meanwhile."""
        if self._writing is None and self._current() != self._written:
            self._writing = self._tasks.spawn(self._write(), "keep keys")

    def _current(self) -> dict[str, dict[str, str]]:
        return {source.url: dict(source.keys) for source in self._sources.values() if source.keys}

    async def _write(self) -> None:
        try:
            while (current := self._current()) != self._written:
                self._written = current  # also where that fails: the next change tries again
                known: Iterable[TokenKeys] = [TokenKeys(url, keys) for url, keys in current.items()]
                await asyncio.to_thread(write_kept, self._state_dir, list(known))
        except OSError as error:
            LOG.warning("keys cannot be kept in %s: %s", self._state_dir, error.strerror)
        finally:
            self._writing = None


def _youngest(items: dict[str, V], count: int) -> dict[str, V]:
    return dict(list(items.items())[-count:])


def _count(source: _Source) -> int:
    return len(source.keys) if KID in source.url else len(read_keys(source.keys[""], [])) if source.keys else 0


def _place(url: str) -> str:
    """The URL without its query, which may hold what is nobody's business."""
    return url.partition("?")[0]
