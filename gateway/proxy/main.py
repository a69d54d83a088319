"""The worker process: its composition root, its life from the first accept to the drain's end.

It starts from `state_dir/config.last-good`, so that it needs no control; what control says later comes over the bus.
Its listening sockets are the supervisor's, inherited by descriptor.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from gateway.bus.channel import Channel
from gateway.bus.client import BusClient
from gateway.bus.messages import (
    Applied,
    Configured,
    FilterRemoved,
    ForceBreaker,
    FromControl,
    Hello,
    MapChanged,
    Shares,
)
from gateway.core.conditions import Conditions
from gateway.core.filtering import Chain, ChainError
from gateway.core.jwks import TokenKeys
from gateway.core.switches import switched
from gateway.core.view import REGION_CLUSTER
from gateway.proxy.added import load_filters
from gateway.proxy.chain import build_chain
from gateway.proxy.downstream import Downstream, Phase
from gateway.proxy.memory import keep_freed_memory
from gateway.proxy.worker import SWEEP_S, Worker
from gateway.settings.filter_files import FilterFiles
from gateway.settings.loader import decode_sources, load
from gateway.settings.schema import Settings
from gateway.settings.view import build_view, undiscovered
from gateway.store.names import read as read_names
from gateway.store.switches import read as read_switches
from gateway.telemetry.access_log import AccessLog

_log = logging.getLogger("landbridge.worker")

BACKLOG: Final = 4096
"""Connections that may wait while a worker starts; the kernel cuts it to somaxconn."""
GC_THRESHOLDS: Final = (20_000, 50, 100)
"""A request makes a dozen short-lived objects and no cycle: looking for cycles every 700 objects finds nothing."""
STATE_FILE: Final = "config.last-good"

TUNNEL_ENDS_S: Final = 2.0
TUNNEL_ENDS_FRACTION: Final = 0.1
"""Tunnels that live to the drain's limit end one by one in the last tenth of it, at most 2 s: clients that all lost
theirs in the same moment would all come back in the same moment."""

NAMES_MARGIN_S: Final = 3.0
"""What control gets to start in, besides `dns.timeout`, before a worker that knows no name serves without its word."""

KEYS_S: Final = 6.0
"""What a first start gives control to fetch the keys of tokens: then a worker serves, and answers those 503."""

COMPLAINT_CHARS_MAX: Final = 2000

QUIET_SWEEPS: Final = 2
"""Sweeps without a connection before the end: one that was just accepted is not listed before the next turn."""


class Process:
    """One worker process: sockets, bus, channel, drain."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: argparse.Namespace, settings: Settings, chain: Chain
    ) -> None:
        self.loop = loop
        self.slot: int = options.slot
        self.settings = settings
        self.conditions = on_disk(Path(options.state_dir), settings)  # control's word takes its place
        self.sockets = {"http": options.http, "hop": options.hop}
        self.servers: dict[tuple[int, str], asyncio.AbstractServer] = {}
        self.waits: bool = options.wait
        self.may_accept = asyncio.Event()
        self.informed = asyncio.Event()
        self.informed_of_keys = asyncio.Event()
        self.done = asyncio.Event()
        self.draining_since: float | None = None
        self.retired = False
        self.closing = False
        self.quiet_sweeps = 0
        self.tunnel_ends: dict[Downstream, float] = {}
        view = build_view(settings, self.conditions, 0)
        self.bus = BusClient(Path(options.state_dir) / "bus.sock", self.on_bus, self.on_connected)
        self.worker = Worker(
            loop,
            view,
            lambda _: chain,
            Path(options.state_dir),
            self.slot,
            self.bus.send,
            AccessLog(view.access_log_path),
        )
        self.channel = Channel(options.channel, self.on_command, self.on_supervisor_lost)

    async def run(self) -> None:
        """Accept until drained. Returns when the last connection is over or the drain's limit is reached."""
        await self.channel.start()
        for name in (signal.SIGTERM,):
            self.loop.add_signal_handler(name, self.drain)
        self.bus.start()
        await self.hear_of_names()
        await self.hear_of_keys()
        if not self.waits and self.draining_since is None:
            await self.serve_slot(self.slot)
        self.loop.call_later(SWEEP_S, self.sweep)
        self.tell_log_problem()
        gc.collect()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()  # what is here now lives as long as the process: later collections need not look at it
        if self.waits:
            self.channel.send({"state": "ready"})
            await self.may_accept.wait()
            if self.draining_since is None:
                await self.serve_slot(self.slot)
        if self.draining_since is None:
            self.channel.send({"state": "serving"})
        await self.done.wait()
        self.worker.close()
        await self.bus.close()

    async def hear_of_names(self) -> None:
        """At a first start only control knows what `dns://` endpoints stand for: hear that before the first request.

        Connections wait in the sockets' queues meanwhile. Whatever was known once is on disk, and without control a
        worker serves what it can.
        """
        if not self.informed.is_set() and undiscovered(self.settings, self.conditions):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.dns.timeout + NAMES_MARGIN_S):
                    await self.informed.wait()

    async def hear_of_keys(self) -> None:
        """As `hear_of_names`: without a key of a source that was never asked, no token of its could be judged."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEYS_S):
                while self.worker.tokens.lacking():
                    self.informed_of_keys.clear()
                    await self.informed_of_keys.wait()

    # ---- sockets

    async def serve_slot(self, slot: int) -> None:
        """Accept on one slot's sockets: our own, or an orphan's that we stand in for."""
        for listener, descriptors in self.sockets.items():
            key = slot, listener
            if slot >= len(descriptors) or key in self.servers:
                continue
            sock = socket.socket(fileno=os.dup(descriptors[slot]))
            sock.setblocking(False)
            factory = self.worker.accept(sock, listener)
            server = await self.loop.create_server(factory, sock=sock, backlog=BACKLOG)
            if key in self.servers or self.closing or self.retired:
                server.close()
            else:
                self.servers[key] = server

    def release(self, slot: int | None = None, keep: Sequence[str] = ()) -> None:
        """Stop accepting: on one slot's sockets or on all, but not on those of the listeners in `keep`.

        What waits in the queue stays there: others hold the same socket.
        """
        for key in tuple(self.servers):
            if slot in (None, key[0]) and key[1] not in keep:
                self.servers.pop(key).close()

    def tell_log_problem(self) -> None:
        """A log that cannot be opened costs no request, but its operator has to hear of it."""
        if self.worker.access_log.problem:
            _log.error("%s: its lines are dropped", self.worker.access_log.problem)

    # ---- what others say

    def on_command(self, command: dict[str, Any]) -> None:
        """The supervisor's word."""
        match command.get("cmd"):
            case "drain":
                self.drain()
            case "adopt":
                for slot in command.get("slots", []):
                    self.worker.spawn(self.serve_slot(slot))
            case "release":
                for slot in command.get("slots", []):
                    if slot != self.slot:
                        self.release(slot)
            case "accept":
                self.may_accept.set()
            case "retire":
                self.retire(command.get("keep", []))

    def on_supervisor_lost(self) -> None:
        """Nobody holds our sockets any more: finish what is in hand, and leave."""
        _log.warning("the supervisor is gone: draining")
        self.drain()

    def on_connected(self) -> None:
        self.bus.send(Hello(self.slot, os.getpid(), self.settings.digest))
        for name, error in self.worker.removed.items():
            self.bus.send(FilterRemoved(name, error))
        self.worker.limiter.forget_others()
        for said in self.worker.watched():
            self.bus.send(said)

    def on_bus(self, message: FromControl) -> None:
        """Control's word. What cannot be applied changes nothing."""
        if isinstance(message, MapChanged):
            self.worker.map_changed(message)
            return
        if isinstance(message, ForceBreaker):
            self.worker.force_breaker(message)
            return
        if isinstance(message, Shares):
            self.worker.limiter.told(message, self.worker.now())
            return
        if isinstance(message, TokenKeys):
            self.worker.tokens.learn(message)
            self.informed_of_keys.set()
            return
        if isinstance(message, Configured):
            if self.retired:  # it may be of the successor's code; what is in hand ends as it began
                return
            settings, conditions = message.settings, self.conditions
        else:
            settings, conditions = self.settings, message
            self.informed.set()
        try:
            view = build_view(settings, conditions, message.generation)
            self.worker.swap(view)
        except Exception:
            _log.exception("generation %d could not be applied; the last one stands", message.generation)
            return
        if settings.access_log != self.settings.access_log:
            self.worker.access_log.reopen(view.access_log_path)
            self.tell_log_problem()
        self.settings, self.conditions = settings, conditions
        self.bus.send(Applied(message.generation))

    # ---- time

    def sweep(self) -> None:
        """The one timer of this process; a failing sweep must not be the last one."""
        self.loop.call_later(SWEEP_S, self.sweep)
        try:
            self.worker.sweep()
        except Exception:
            _log.exception("the sweep failed")
        if self.draining_since is not None:
            self._drain_on(self.worker.now() - self.draining_since)

    def drain(self) -> None:
        """The gateway ends: go on serving for the grace, with `Connection: close`; then no new connections; the end."""
        self.worker.draining = True
        self._leave()

    def retire(self, keep: Sequence[str]) -> None:
        """A successor accepts: this worker stops, but on listeners that nobody else serves (`keep`), for the grace.

        It finishes what it has. The gateway goes on, so nobody is told that it does not.
        """
        if self.draining_since is None:
            self.retired = True
            self.release(keep=keep)
            self._leave()

    def _leave(self) -> None:
        self.worker.leaving = True
        self.may_accept.set()
        if self.draining_since is None:
            self.draining_since = self.worker.now()
            self.channel.send({"state": "draining"})

    def _drain_on(self, elapsed: float) -> None:
        """One sweep of the drain, `elapsed` seconds after it began."""
        drain, downs = self.worker.view.drain, self.worker.downs
        if elapsed >= drain.grace:
            self.closing = True
            self.release()
            self._close_idle(drain.grace)
        if elapsed >= drain.limit - min(TUNNEL_ENDS_S, TUNNEL_ENDS_FRACTION * drain.limit):
            self._end_tunnels(elapsed, drain.limit)
        self.quiet_sweeps = 0 if downs or self.servers else self.quiet_sweeps + 1
        if self.quiet_sweeps >= QUIET_SWEEPS or elapsed >= drain.limit:
            self.done.set()

    def _close_idle(self, grace_s: float) -> None:
        """Close what has been idle for the grace; a client that just connected gets it too."""
        now, keepalive_s = self.worker.now(), self.worker.view.timeouts.keepalive
        for down in tuple(self.worker.downs):
            idle_s = keepalive_s - (down.deadline - now)  # its deadline was set when it became idle
            if down.phase is Phase.HEAD and not down.busy and idle_s >= grace_s:
                down.close()

    def _end_tunnels(self, elapsed: float, limit_s: float) -> None:
        """FIN to every tunnel, each at a moment of its own before the limit."""
        for down in tuple(self.worker.downs):
            if down.phase is Phase.TUNNEL:
                ends = self.tunnel_ends.setdefault(down, random.uniform(elapsed, limit_s - 2 * SWEEP_S))
                if elapsed >= ends:
                    down.close()


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Only the supervisor starts a worker, so there is no help to print."""
    parser = argparse.ArgumentParser(prog="gateway.proxy.main", add_help=False)
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--slot", type=int, required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--http", type=_descriptors, required=True)
    parser.add_argument("--hop", type=_descriptors, default=[])
    parser.add_argument("--settings", default=STATE_FILE)
    parser.add_argument("--wait", action="store_true")
    return parser.parse_args(arguments)


def _descriptors(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def last_good(state_dir: str, file: str = STATE_FILE) -> tuple[Settings, FilterFiles]:
    """The configuration that the supervisor or control found valid last, and the operator's filters with it.

    `file` is another one of state_dir for the workers of a configuration that is still to prove itself.

    The filters are the very text that was validated: what became of their files since does not matter.
    """
    sources = decode_sources((Path(state_dir) / file).read_bytes())
    return load(sources, os.environ), sources.filters


def on_disk(state_dir: Path, settings: Settings) -> Conditions:
    """What is known without control: what names stood for, and what operators switched."""
    own = [name for name in settings.clusters if not name.startswith(REGION_CLUSTER)]
    return switched(read_names(state_dir).conditions(), read_switches(state_dir), time.time_ns() // 1_000_000, own)


def complain(channel: int, text: str) -> None:
    """Tell the supervisor why there will be no worker: it names that where a replacement fails."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(channel)) as sock:
        sock.send(json.dumps({"failed": text[:COMPLAINT_CHARS_MAX]}).encode() + b"\n", socket.MSG_NOSIGNAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker. 0 after a drain; anything else is a crash, which the supervisor repairs."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s worker {options.slot}: %(levelname)s %(message)s"
    )
    logging.Formatter.converter = time.gmtime
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    settings, filters = last_good(options.state_dir, options.settings)
    try:
        chain = build_chain(build_view(settings, Conditions(), 0), load_filters(filters.files))
    except ChainError as error:  # it was valid: what it imports is gone since. Without it, requests might pass unasked
        _log.error("the filters cannot be loaded, so this worker does not start: %s", error)
        complain(options.channel, str(error))
        return 1

    async def amain() -> None:
        try:
            process = Process(asyncio.get_running_loop(), options, settings, chain)
        except Exception as error:
            complain(options.channel, f"{type(error).__name__}: {error}")
            raise
        await process.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(amain())
    return 0


if __name__ == "__main__":
    sys.exit(main())
