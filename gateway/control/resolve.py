"""Resolving the bare host names of the configuration: at load and every 30 s, the last good answer kept.

`getaddrinfo` blocks for as long as the resolver of the machine likes, so each lookup runs in a daemon thread of its
own, at most one per name: a name server that hangs costs neither the event loop nor the process's exit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Collection
from typing import Final

from gateway.settings.schema import Scheme, Settings

LOG = logging.getLogger("landbridge.control")

EVERY_S: Final = 30.0
"""`getaddrinfo` tells no TTL; `dns://` endpoints follow theirs."""

FIRST_S: Final = 2.0
"""How long a start or a reload waits for names that were never resolved."""

ADDRESSES_MAX: Final = 64
"""Addresses kept of one name: every one is an endpoint that is probed."""

Lookup = Callable[[str], tuple[str, ...]]


def bare_names(settings: Settings) -> set[str]:
    """The host names among the endpoints of clusters and the gateways of other regions."""
    endpoints = [address for cluster in settings.clusters.values() for address in cluster.endpoints]
    hosts = {address.host for address in endpoints if address.scheme is Scheme.PLAIN}
    hosts |= {a.host for name, region in settings.regions.items() if name != settings.region for a in region.gateways}
    return {host for host in hosts if not is_address(host)}


def look_up(name: str) -> tuple[str, ...]:
    """Ask the machine's resolver; sorted, so that a shuffled answer is no change. Raises OSError. Blocks."""
    # AI_ADDRCONFIG: on a machine without IPv6 an AAAA answer is an endpoint that can only fail.
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return tuple(sorted({str(entry[4][0]) for entry in found})[:ADDRESSES_MAX])


class Resolver:
    """Keeps `addresses` of the names it was told last. `changed` is called in the loop when an answer differs."""

    def __init__(self, changed: Callable[[], None], lookup: Lookup = look_up) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.failing: dict[str, str] = {}
        self._changed = changed
        self._lookup = lookup
        self._names: set[str] = set()
        self._inflight: dict[str, asyncio.Future[None]] = {}

    async def use(self, names: Collection[str]) -> None:
        """Keep exactly these names resolved. Waits for new ones at most `FIRST_S`; they may come later."""
        self._names = set(names)
        self.narrow(names)
        new = [self._start(name) for name in self._names if name not in self.addresses]
        if new:
            await asyncio.wait(new, timeout=FIRST_S)

    def narrow(self, names: Collection[str]) -> None:
        """Keep only these names."""
        self._names &= set(names)
        self.addresses = {name: found for name, found in self.addresses.items() if name in self._names}
        self.failing = {name: why for name, why in self.failing.items() if name in self._names}

    async def run(self) -> None:
        """Ask again every 30 s until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            for name in self._names:
                self._start(name)

    def _start(self, name: str) -> asyncio.Future[None]:
        """The lookup of `name` that is under way, or a new one."""
        if (running := self._inflight.get(name)) is not None:
            return running
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._inflight[name] = done

        def ask() -> None:
            try:
                answer, why = self._lookup(name), ""
            except (OSError, UnicodeError) as error:
                answer, why = (), str(error)
            try:
                loop.call_soon_threadsafe(self._answered, name, answer, why)
            except RuntimeError:
                pass  # the loop closed while the name server thought

        threading.Thread(target=ask, name=f"resolve {name}", daemon=True).start()
        return done

    def _answered(self, name: str, answer: tuple[str, ...], why: str) -> None:
        done = self._inflight.pop(name)
        if name in self._names:
            if not answer:
                if name not in self.failing:
                    kept = ", ".join(self.addresses.get(name, ())) or "none yet"
                    LOG.warning("cannot resolve %s: %s; the last good answer stays: %s", name, why, kept)
                self.failing[name] = why or "no address"
            else:
                self.failing.pop(name, None)
                if self.addresses.get(name) != answer:
                    LOG.info("%s resolves to %s", name, ", ".join(answer))
                    self.addresses = {**self.addresses, name: answer}
                    self._changed()
        if not done.done():
            done.set_result(None)


def is_address(host: str) -> bool:
    """Whether `host` needs no resolving. What does is not dialled: a connect would look it up in a shared thread."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
