"""The thread that speaks DNS: an event loop of its own, so that no answer, however long, stalls control's.

Reading 4,000 records takes dnspython a fifth of a second; control's loop tells workers in the meantime what it has
found out. The thread is started by the first question: who has no `dns://` endpoint pays nothing.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gateway.core.discovery import Answer, Kind, Record, Rules

RESOLV_CONF: Final = "/etc/resolv.conf"
_INET6: Final = Path("/proc/net/if_inet6")
_NOT_ROUTED: Final = (0x10, 0x20)
"""Scopes of /proc/net/if_inet6: the host itself, the link."""

CLOSE_S: Final = 1.0
"""What the thread gets to end: it is a daemon, and asks nothing that has to be finished."""


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 address beyond itself and its links: without one, AAAA records only fail."""
    try:
        lines = _INET6.read_text("ascii").splitlines()
    except OSError:
        return _would_route()
    return any(len(parts := line.split()) > 3 and int(parts[3], 16) not in _NOT_ROUTED for line in lines)


def _would_route() -> bool:
    """Where there is no /proc: connecting a datagram socket sends nothing, and fails without a route."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.connect(("2001:db8::1", 53))
    except OSError:
        return False
    return True


class Wire:
    """Asks; called in control's loop, works in its thread. `ipv6` is looked at with each question: it may change."""

    def __init__(self, ipv6: Callable[[], bool] = has_ipv6, resolv_conf: str = RESOLV_CONF) -> None:
        self._ipv6 = ipv6
        self._resolv_conf = resolv_conf
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def __call__(self, kind: Kind, name: str, rules: Rules) -> dict[Record, Answer]:
        if kind is Kind.SERVICE:
            records: Sequence[Record] = (Record.SRV,)
        else:
            records = (Record.A, Record.AAAA) if self._ipv6() else (Record.A,)
        work = _ask(name, records, rules, self._resolv_conf)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))

    async def ready(self) -> None:
        """Start the thread and load what it needs, so that no question's time is spent on that."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_load(), self._started()))

    def close(self) -> None:
        """End the thread; what is being asked is dropped."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_S)
            self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(loop,), name="dns", daemon=True)
            self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _load() -> None:
    """dnspython takes a tenth of a second to load: in this thread."""
    from gateway.control.discovery import speak  # noqa: F401


async def _ask(name: str, records: Sequence[Record], rules: Rules, resolv_conf: str) -> dict[Record, Answer]:
    from gateway.control.discovery import speak  # as `_load`

    return await speak.ask(name, records, rules, resolv_conf)
