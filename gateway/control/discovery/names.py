"""All names of the configuration: bare ones as the machine resolves them, `dns://` and `srv://` as name servers do.

What they stood for last is kept on disk (`store.names`), so that neither a restart of this process nor one of a worker
without it needs a name server.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from gateway.control.discovery.discovery import Discovery, Shown
from gateway.control.discovery.wire import Wire
from gateway.control.resolve import Resolver, bare_names
from gateway.control.tasks import TaskSet
from gateway.core.conditions import Target
from gateway.core.discovery import Result, Rules
from gateway.settings.schema import Address, Scheme, Settings
from gateway.store.names import KnownNames, read, write

LOG = logging.getLogger("landbridge.control")


def rules_of(settings: Settings) -> Rules:
    dns = settings.dns
    servers = tuple((server.host, server.port) for server in dns.servers)
    return Rules(servers, dns.ttl_min, dns.ttl_max, dns.timeout)


def discovered_names(settings: Settings) -> set[Address]:
    """The endpoints that name servers are asked for."""
    endpoints = {address for cluster in settings.clusters.values() for address in cluster.endpoints}
    return {address for address in endpoints if address.scheme is not Scheme.PLAIN}


class Names:
    """`addresses` and `discovered` are what Conditions say of names. `changed` is called in the loop upon news."""

    def __init__(
        self,
        state_dir: Path,
        tasks: TaskSet,
        rng: random.Random,
        changed: Callable[[], None],
        counted: Callable[[Result], None],
    ) -> None:
        self._state_dir = state_dir
        self._tasks = tasks
        self._changed = changed
        self._kept = self._written = read(state_dir)
        self._writing: asyncio.Task[None] | None = None
        self._bare: set[str] = set()
        self._settings: Settings | None = None
        self._using = 0
        self._unsaid = False
        self._wire = Wire()
        self.resolver = Resolver(self._news)
        self.discovery = Discovery(self._wire, tasks, rng, self._news, counted, self._kept.discovered)

    @property
    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Of bare names: what the machine says, and until it says something what it said in an earlier life."""
        kept = {name: found for name, found in self._kept.addresses.items() if name in self._bare}
        return {**kept, **self.resolver.addresses}

    @property
    def discovered(self) -> Mapping[str, tuple[Target, ...]]:
        return self.discovery.targets

    async def use(self, settings: Settings) -> None:
        """Know the names of `settings`, besides those in use. Waits for new ones, for a bounded time.

        News in the meantime is told at the end: nobody shall judge a configuration of which half is not asked yet.
        """
        self._using += 1
        try:
            await self._use(*(() if self._settings is None else (self._settings,)), settings)
        finally:
            self._using -= 1
        if self._settings is None:
            self._settings = settings
        if self._unsaid and not self._using:
            self._unsaid = False
            self._changed()

    def only(self, settings: Settings) -> None:
        """Forget the names that `settings` lack, once nobody uses another configuration any more."""
        self._settings = settings
        self._bare = bare_names(settings)
        self.resolver.narrow(self._bare)
        self.discovery.narrow(discovered_names(settings))
        self._keep()

    async def _use(self, *configurations: Settings) -> None:
        self._bare = set().union(*map(bare_names, configurations))
        endpoints: set[Address] = set().union(*map(discovered_names, configurations))
        if endpoints:
            await self._wire.ready()
        # the resolver and discovery wait at the same time, each by its own limit
        await asyncio.gather(self.resolver.use(self._bare), self.discovery.use(endpoints, rules_of(configurations[-1])))
        self._keep()

    def down(self, endpoints: Collection[str]) -> None:
        """These endpoints (`address:port`) cannot be used now."""
        self.discovery.down(endpoints)

    def shown(self) -> list[Shown]:
        """Every `dns://` and `srv://` endpoint, for operators."""
        return self.discovery.shown()

    def close(self) -> None:
        self._wire.close()

    def _news(self) -> None:
        self._keep()
        if self._using:
            self._unsaid = True
        else:
            self._changed()

    def _keep(self) -> None:
        """Bring what is known to disk, in a thread; once more when it changed meanwhile."""
        if self._writing is None and self.known() != self._written:
            self._writing = self._tasks.spawn(self._write(), "keep what names stand for")

    async def _write(self) -> None:
        try:
            while (known := self.known()) != self._written:
                self._written = known  # also where that fails: the next change tries again
                await asyncio.to_thread(write, self._state_dir, known)
        except OSError as error:
            LOG.warning("what names stand for cannot be kept in %s: %s", self._state_dir, error.strerror)
        finally:
            self._writing = None

    def known(self) -> KnownNames:
        """Both, as one value."""
        return KnownNames(dict(self.addresses), dict(self.discovered))
