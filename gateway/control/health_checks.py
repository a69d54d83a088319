"""Asking endpoints whether they live: GET checks where a cluster has `health`, TCP connects to those that are down.

Nothing else is ever sent to applications. One task per endpoint that is asked; what it sees goes to the judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gateway.control.health import Health
from gateway.control.resolve import is_address
from gateway.control.tasks import TaskSet
from gateway.core.view import Endpoint
from gateway.settings.schema import HealthSettings

CONNECT_EVERY_S: Final = 1.0
"""How often an endpoint without `health` that is down is tried (DESIGN 5.1)."""

CONNECT_JITTER: Final = 0.1
"""Gateways that lost an endpoint together must not look for it together."""

STATUS_LINE_BYTES: Final = 4096
"""Of the head, only the status line is looked at (RFC 9112, 4)."""

BODY_BYTES: Final = 64 * 1024
"""Of the body, as much is searched for a text."""

REST_MAX_S: Final = 0.25
"""How long the rest of an answer may take before it is cut: it decides nothing."""

NOT_RESOLVED: Final = "its name has no address yet"


async def check(endpoint: Endpoint, health: HealthSettings) -> tuple[bool, str]:
    """One GET on a fresh connection: (whether the answer is what it should be, what went wrong)."""
    timeout_s = min(health.timeout, health.interval)
    if not is_address(endpoint.address):
        return False, NOT_RESOLVED
    request = (
        f"GET {health.path} HTTP/1.1\r\nHost: {endpoint.name}\r\nUser-Agent: landbridge-health\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    )
    try:
        async with asyncio.timeout(timeout_s):
            line, body = await _answer(endpoint, request.encode("ascii"), health.body)
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return False, str(error) or type(error).__name__
    version, _, rest = line.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        return False, "the answer is not HTTP/1"
    if not any(status == wanted.encode() or wanted == f"{chr(status[0])}xx" for wanted in health.status):
        return False, f"status {status.decode()}"
    if health.body is not None and health.body.encode() not in body:
        return False, f"the body does not hold {health.body!r}"
    return True, ""


async def connect(endpoint: Endpoint, timeout_s: float) -> tuple[bool, str]:
    """One TCP connect, closed at once."""
    if not is_address(endpoint.address):
        return False, NOT_RESOLVED
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
    except TimeoutError:
        return False, f"no connection within {timeout_s:g} s"
    except OSError as error:
        return False, str(error) or type(error).__name__
    writer.close()
    return True, ""


async def _answer(endpoint: Endpoint, request: bytes, text: str | None) -> tuple[bytes, bytes]:
    """The status line, and what has to be read of the rest to find `text` in it (nothing of it without)."""
    reader, writer = await asyncio.open_connection(endpoint.address, endpoint.port, limit=STATUS_LINE_BYTES)
    try:
        writer.write(request)
        line = await reader.readuntil(b"\n")
        rest, body = b"\r\n", b""  # the end of the status line, where no field follows it
        while text is not None and text.encode() not in body and len(body) < BODY_BYTES:
            piece = await reader.read(STATUS_LINE_BYTES)
            rest += piece
            body = rest.partition(b"\r\n\r\n")[2]
            if not piece or len(rest) > 2 * BODY_BYTES:
                break
        # Closing with the body unread would reset the connection, and the application would log it as an error.
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(REST_MAX_S):
                while await reader.read(STATUS_LINE_BYTES):
                    pass
        return line, body
    finally:
        writer.transport.abort()  # what is left after that is not worth a lingering close


@dataclass(frozen=True, slots=True)
class _Subject:
    """What one task asks, and how: a changed subject gets a new task."""

    cluster: str
    endpoint: Endpoint
    health: HealthSettings | None
    connect_s: float


class HealthChecks:
    """Keeps one task per endpoint that has to be asked. `changed` is called when an endpoint turned."""

    def __init__(self, health: Health, tasks: TaskSet, changed: Callable[[], None], rng: random.Random) -> None:
        self._health = health
        self._tasks = tasks
        self._changed = changed
        self._rng = rng
        self._subjects: dict[tuple[str, str], _Subject] = {}
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    def cover(self, clusters: list[tuple[str, HealthSettings | None, float, tuple[Endpoint, ...]]]) -> None:
        """Ask exactly these: (cluster, its `health`, its connect timeout in seconds, its endpoints)."""
        wanted = {
            (name, endpoint.key): _Subject(name, endpoint, health, connect_s)
            for name, health, connect_s, endpoints in clusters
            for endpoint in endpoints
        }
        for key in [k for k, subject in self._subjects.items() if wanted.get(k) != subject]:
            if (task := self._running.pop(key, None)) is not None:
                task.cancel()
        self._subjects = wanted
        self.settle()

    def settle(self) -> None:
        """Start what has to be asked now: call it after every report of a worker."""
        for key, subject in self._subjects.items():
            found = self._health.find(*key)
            running = self._running.get(key)
            if found is None or (running is not None and not running.done()):
                continue
            if subject.health is not None:
                work = partial(self._check, subject, subject.health)
            elif not found.up:
                work = partial(self._reconnect, subject)
            else:
                continue
            self._running[key] = self._tasks.keep(work, f"check {subject.cluster} {subject.endpoint.key}")

    async def _check(self, subject: _Subject, health: HealthSettings) -> None:
        await asyncio.sleep(self._rng.uniform(0, health.jitter) * health.interval)
        while True:
            ok, why = await check(subject.endpoint, health)
            self._observe(subject, ok, why)
            await asyncio.sleep(health.interval * self._rng.uniform(1 - health.jitter, 1 + health.jitter))

    async def _reconnect(self, subject: _Subject) -> None:
        while (found := self._health.find(subject.cluster, subject.endpoint.key)) is not None and not found.up:
            await asyncio.sleep(CONNECT_EVERY_S * self._rng.uniform(1 - CONNECT_JITTER, 1 + CONNECT_JITTER))
            self._observe(subject, *await connect(subject.endpoint, subject.connect_s))

    def _observe(self, subject: _Subject, ok: bool, why: str) -> None:
        if self._health.check(subject.cluster, subject.endpoint.key, ok, why):
            self._changed()
