"""Control's process: the composition root of the control plane.

`python -m gateway.control.main --state-dir D --config PATH --channel FD --admin FD`

It wires what finds out (configuration files, tenants file, name resolution, health checks, peers, workers' reports)
to what is told (workers over the bus, operators over admin). It may be killed at any moment: workers go on with what
they have, and the next control finds everything it needs in `state_dir`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from aiohttp import web

from gateway import __version__
from gateway.bus.channel import Channel
from gateway.bus.messages import (
    Applied,
    BreakerTurned,
    Configured,
    ConnectFailures,
    Demands,
    EndpointEjected,
    FilterRemoved,
    FromWorker,
    Hello,
    KeyWanted,
    MapApplied,
    MapChanged,
    MapUnreadable,
)
from gateway.bus.server import BusPeer, BusServer
from gateway.control.admin import make_app
from gateway.control.admin_listener import Listener
from gateway.control.admin_responses import GATE
from gateway.control.breakers import Breakers
from gateway.control.conditions import TICK_S, Judge, describe
from gateway.control.counters import Counters
from gateway.control.discovery.names import Names
from gateway.control.facts import Facts, Processes
from gateway.control.health_checks import HealthChecks
from gateway.control.isolation import Isolation, keep, was_isolated
from gateway.control.keys.keeper import KeyKeeper
from gateway.control.log_lines import log_to_stderr
from gateway.control.map_file import MapFile, open_map
from gateway.control.map_use import MapUse
from gateway.control.peer_probes import PeerProbes
from gateway.control.reload import (
    FILE_CHANGED,
    Configuration,
    Loaded,
    NoConfiguration,
    starting_point,
)
from gateway.control.replacement import Replacement
from gateway.control.shares.keeper import ShareKeeper
from gateway.control.sources.confirm import CONFIRMED_FILE
from gateway.control.sources.kinds import SOURCES
from gateway.control.sources.source import Ground
from gateway.control.switchboard import Ground as SwitchGround
from gateway.control.switchboard import Switchboard
from gateway.control.tasks import TaskSet
from gateway.control.watch import Watch
from gateway.core.conditions import Conditions
from gateway.settings.schema import Settings
from gateway.settings.view import build_view
from gateway.store.record import StoreError
from gateway.store.writer import Writer

LOG = logging.getLogger("landbridge.control")

STOP_MARGIN_S: Final = 2.0
"""What control stays beyond `drain.limit`, so that it is there for the last worker and never for ever."""

SHUTDOWN_S: Final = 1.0
"""What admin requests under way get when control ends."""


class Control:
    """One control process, from what it starts on to its end."""

    def __init__(self, options: argparse.Namespace, environ: Mapping[str, str], start: Loaded, writer: Writer) -> None:
        state_dir = Path(options.state_dir)
        self.options = options
        self.tasks = TaskSet()
        self.stopped = asyncio.Event()
        self.counters = Counters(state_dir)
        self.kept_isolated = was_isolated(state_dir)
        self.judge = Judge(Isolation(self.kept_isolated))
        rng = random.Random()
        self.names = Names(state_dir, self.tasks, rng, self.addresses_changed, self.counters.lookup)
        self.keys = KeyKeeper(state_dir, self.tasks, lambda known: self.bus.broadcast(known), rng, self.counters.keys)
        self.breakers = Breakers(lambda asked: self.bus.broadcast(asked), self.rejudge, asyncio.get_running_loop().time)
        self.shares = ShareKeeper(state_dir, self.tasks.spawn, lambda: self.facts.settings)
        self.checks = HealthChecks(self.judge.health, self.tasks, self.rejudge, rng)
        self.probes = PeerProbes(self.judge.peers, self.tasks, self.rejudge, rng, wall_ms)
        configuration = Configuration(
            Path(options.config),
            state_dir,
            environ,
            start,
            self.apply,
            self.counters.reload,
            wall_ms,
            self.replace_workers,
        )
        ground = Ground(
            writer=writer,
            settings=lambda: configuration.current.settings,
            changed=self.map_changed,
            ended=self.counters.reload,
            wall_ms=wall_ms,
            rejected=self.counters.rejected,
            suspect=lambda why: self.facts.map_file.suspect(why),
            program=__version__,
            rng=rng,
        )
        self.board = Switchboard(
            SwitchGround(state_dir, lambda: self.facts, self.rejudge, wall_ms),
            self.judge.switched,
        )
        self.facts = Facts(
            program=__version__,
            state_dir=state_dir,
            started=asyncio.get_running_loop().time(),
            processes=Processes(os.getppid(), os.getpid()),
            view=build_view(start.settings, Conditions(), 0),
            conditions=Conditions(),
            configuration=configuration,
            tenants=SOURCES[start.settings.tenant_map.source](ground),
            writer=writer,
            map_file=MapFile(writer, state_dir, self.map_replaced),
            judge=self.judge,
            names=self.names,
            keys=self.keys,
            board=self.board,
            breakers=self.breakers,
            shares=self.shares,
        )
        self.config_watch = Watch(configuration.files, lambda: configuration.reload(FILE_CHANGED))
        self.confirmed_watch = Watch(lambda: [state_dir / CONFIRMED_FILE], self.confirmed)
        self.bus = BusServer(state_dir / "bus.sock", self.heard, self.connected, self.left)
        self.map_use = MapUse(writer, lambda: self.bus.peers, self.facts.tenants.acknowledged)
        self.redis = start.settings.tenant_map.redis
        self.channel: Channel | None = None
        self.admin_address = start.settings.listen.admin
        self.replacement = Replacement(state_dir, self.ask)
        self.hears: dict[type, Callable[[BusPeer, Any], None]] = {
            Hello: self.hello,
            Applied: self.view_applied,
            BreakerTurned: self.breakers.turned,
            EndpointEjected: self.breakers.endpoint_ejected,
            ConnectFailures: self.connects_failed,
            Demands: self.shares.demands,
            FilterRemoved: self.filter_removed,
            KeyWanted: self.keys.wanted,
            MapApplied: self.map_use.applied,
            MapUnreadable: self.map_unreadable,
        }

    # --- life

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        facts = self.facts
        await self.names.use(facts.settings)
        await asyncio.to_thread(self.board.load)
        self.cover()
        self.rejudge()
        await self.bus.start()
        runner, listener = await self.open_admin()
        self.listen_to_supervisor()
        for work, name in (
            (self.config_watch.run, "watch configuration"),
            (facts.tenants.run, "follow the tenant map's source"),
            (self.confirmed_watch.run, "watch confirmations"),
            (facts.map_file.watch, "watch the map file"),
            (facts.map_file.keep_snapshot, "keep the map's snapshot"),
            (self.board.run, "follow the region's switches"),
            (self.names.resolver.run, "resolve bare names"),
            (self.names.discovery.run, "follow names"),
            (self.shares.run, "share limits out"),
            (self.shares.ask, "ask for shares of limits"),
            (self.tick, "judge by time"),
            (facts.map_file.free_readers, "free readers"),
            (self.begin, "read files"),
        ):
            self.tasks.keep(work, name)
        gc.collect()
        gc.freeze()  # what is here now lives as long as the process: no collection has to stop the loop to look at it
        if self.channel is not None:
            await self.channel.start()
            self.channel.send({"state": "draining" if facts.draining else "serving"})
        await self.stopped.wait()
        listener.close()
        await runner.cleanup()
        await self.tasks.close()
        if facts.map_file.behind:
            await asyncio.to_thread(facts.map_file.write_snapshot)
        await self.shares.close()
        await self.probes.close()
        await self.board.close()
        self.names.close()
        await self.keys.close()
        await self.bus.close()
        return 0

    async def begin(self) -> None:
        """Take in what is on disk: the watchers only tell what changes from now on."""
        await self.facts.tenants.read_all("start")
        await self.facts.configuration.catch_up()

    async def open_admin(self) -> tuple[web.AppRunner, Listener]:
        sock = socket.socket(fileno=self.options.admin)
        address = sock.getsockname()[0]
        app = make_app(self.facts, address == "::1" or address.startswith("127."), self.ask)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        assert runner.server is not None, "it was set up"
        listener = Listener(sock, runner.server, self.tasks, app[GATE].silent)
        listener.start()
        return runner, listener

    def listen_to_supervisor(self) -> None:
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's to forward
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self.channel = Channel(self.options.channel, self.command, self.supervisor_lost)

    def command(self, message: dict[str, Any]) -> None:
        """One command of the supervisor; what is not known comes from a newer one and is ignored."""
        match message.get("cmd"):
            case "reload":
                self.reload()
            case "drain":
                self.drain()
            case "stop":
                self.stopped.set()
            case "processes":
                self.processes_changed(message)
            case "replaced":
                self.replacement.answered(message.get("ticket"), str(message.get("why", "")))

    def ask(self, message: dict[str, Any]) -> bool:
        """Say something to the supervisor; False when it does not hear."""
        return self.channel is not None and self.channel.send(message)

    def processes_changed(self, message: dict[str, Any]) -> None:
        try:
            now = msgspec.convert(message, Processes)
        except msgspec.ValidationError as error:
            LOG.error("the supervisor's processes cannot be read: %s", error)
            return
        before, self.facts.processes = self.facts.processes, now
        slots = {worker.slot for worker in now.workers}
        self.facts.applied = {slot: done for slot, done in self.facts.applied.items() if slot in slots}
        if {w.pid for w in before.workers} - {w.pid for w in now.workers}:
            self.tasks.spawn(asyncio.to_thread(self.facts.writer.check_readers), "free readers")

    def reload(self) -> None:
        """SIGHUP: everything is read again at once, `${file:…}` included."""
        self.config_watch.settle()
        self.facts.tenants.settle()
        self.tasks.spawn(self.reload_all(), "reload")

    async def reload_all(self) -> None:
        await self.facts.configuration.reload("SIGHUP")
        await self.facts.tenants.read_all("SIGHUP")
        self.ask({"done": "reload"})

    def drain(self) -> None:
        """Go on for the workers that still serve, and say not ready; the end comes by `stop` or by time."""
        if self.facts.draining:
            return
        LOG.info("draining")
        self.facts.draining = True
        if self.channel is not None:
            self.channel.send({"state": "draining"})
        limit = self.facts.settings.drain.limit + STOP_MARGIN_S
        asyncio.get_running_loop().call_later(limit, self.stopped.set)

    def supervisor_lost(self) -> None:
        LOG.error("the supervisor is gone: draining for %g s", self.facts.settings.drain.limit)
        self.replacement.failed("the supervisor is gone")
        self.drain()
        asyncio.get_running_loop().call_later(self.facts.settings.drain.limit, self.stopped.set)

    # --- what changes

    async def replace_workers(self, loaded: Loaded) -> str:
        """Have new workers run `loaded`. "" once they serve; otherwise why they do not, and nothing has changed.

        They say Hello before the configuration is the gateway's: it is sent to whoever runs it already.
        """
        old, new = self.facts.settings, loaded.settings
        await self.names.use(new)
        self.keys.cover(old, new)
        why = await self.replacement.run(loaded)
        if why:
            self.names.only(old)
            self.keys.cover(old)
        return why

    async def apply(self, settings: Settings) -> None:
        """Make new settings the gateway's: names first, so that workers never see a cluster without addresses."""
        old = self.facts.view
        await self.names.use(settings)
        self.cover()
        self.rejudge()
        self.facts.generation += 1
        self.facts.view = build_view(settings, self.facts.conditions, self.facts.generation)
        self.bus.broadcast(Configured(self.facts.generation, settings))
        self.names.only(settings)  # workers have heard of the new ones before they lose the old ones
        new = self.facts.view
        before, self.redis = self.redis, settings.tenant_map.redis
        is_elsewhere = self.redis != before
        if is_elsewhere:
            self.ask({"ask": "restart-replicator"})
        means = (old.regions, old.resolvers, set(old.clusters)) != (new.regions, new.resolvers, set(new.clusters))
        if means or is_elsewhere:
            self.tasks.spawn(self.facts.tenants.reload("configuration changed"), "validate tenants")
        if settings.listen.admin != self.admin_address:
            LOG.info("listen.admin: control is started again on its new socket")
            self.ask({"ask": "restart"})

    def cover(self) -> None:
        """Judge, check and probe the endpoints that the settings and the resolved addresses make."""
        settings = self.facts.settings
        known = self.names.known().conditions()
        view = build_view(settings, known, 0)
        self.judge.cover(settings, view, known.addresses, known.discovered)
        self.checks.cover(
            [
                (name, settings.clusters[name].health, cluster.timeouts.connect, cluster.endpoints)
                for name, cluster in view.clusters.items()
                if cluster.region is None
            ]
        )
        self.probes.cover(view)
        self.keys.cover(settings)
        self.breakers.cover(view)

    def addresses_changed(self) -> None:
        self.cover()
        self.rejudge()

    def rejudge(self) -> None:
        """Conclude from everything known, and tell the workers when that is something new."""
        facts = self.facts
        self.judge.isolation.heard(facts.tenants.heard_at)
        self.judge.broken = self.breakers.unable(self.serving())
        found = self.judge.conclude(asyncio.get_running_loop().time())
        if found.isolated != self.kept_isolated:
            self.kept_isolated = found.isolated
            self.tasks.spawn(asyncio.to_thread(keep, facts.state_dir, found.isolated), "keep what was concluded")
        found = msgspec.structs.replace(found, generation=facts.conditions.generation)
        if found == facts.conditions:
            return
        for turn in describe(facts.conditions, found):
            LOG.log(logging.INFO if turn.is_good else logging.WARNING, "%s", turn.text)
        facts.generation += 1
        facts.conditions = msgspec.structs.replace(found, generation=facts.generation)
        facts.view = build_view(facts.settings, facts.conditions, facts.generation)
        self.bus.broadcast(facts.conditions)
        self.names.down({endpoint for endpoints in found.down.values() for endpoint in endpoints})

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.rejudge()

    def map_changed(self, change: MapChanged) -> None:
        self.bus.broadcast(change)
        self.facts.map_file.changed()

    async def map_replaced(self) -> None:
        """The map was rebuilt in another generation: of a snapshot that may be older than the tenants file."""
        writer = self.facts.writer
        self.bus.broadcast(MapChanged(0, writer.transaction(), generation=writer.generation))
        await self.facts.tenants.reload("map rebuilt")

    async def confirmed(self) -> None:
        """An operator confirmed a change that waits; the file goes when that is done."""
        if (self.facts.state_dir / CONFIRMED_FILE).exists():
            await self.facts.tenants.reload("confirmed")

    # --- workers

    def connected(self, peer: BusPeer) -> None:
        """Nothing yet: a worker says Hello first."""

    def serving(self) -> list[BusPeer]:
        """The workers that take new requests: not those that drain."""
        pids = {worker.pid for worker in self.facts.processes.workers if worker.state == "serving"}
        return [peer for peer in self.bus.peers if peer.hello is not None and peer.hello.pid in pids]

    def left(self, peer: BusPeer) -> None:
        self.breakers.left(peer)
        self.shares.left(peer)
        self.map_use.left(peer)

    def heard(self, peer: BusPeer, message: FromWorker) -> None:
        """One message of a worker; what it reports is judged at once, not at the next tick."""
        self.hears[type(message)](peer, message)

    def hello(self, peer: BusPeer, message: Hello) -> None:
        """A worker is there: it is told everything, by the configuration that it runs."""
        facts, slot = self.facts, message.slot
        facts.applied.pop(slot, None)
        self.map_use.tell()
        facts.removed_filters = {key: why for key, why in facts.removed_filters.items() if key[0] != slot}
        settings = self.replacement.settings_for(message.digest, facts.settings)
        peer.send(Configured(facts.generation, settings))
        peer.send(facts.conditions)
        self.keys.greet(peer)
        self.breakers.greet(peer)
        self.shares.hello(peer, message)
        peer.send(MapChanged(0, facts.writer.transaction(), generation=facts.writer.generation))

    def view_applied(self, peer: BusPeer, message: Applied) -> None:
        if peer.hello is not None:
            self.facts.applied[peer.hello.slot] = message.generation

    def filter_removed(self, peer: BusPeer, message: FilterRemoved) -> None:
        if peer.hello is not None:
            self.facts.removed_filters[peer.hello.slot, message.name] = message.error
            LOG.error("worker %d took filter %s out: %s", peer.hello.slot, message.name, message.error)

    def map_unreadable(self, peer: BusPeer, message: MapUnreadable) -> None:
        self.facts.map_file.suspect(message.why)

    def connects_failed(self, peer: BusPeer, message: ConnectFailures) -> None:
        if self.judge.connects_failed(message.cluster, message.endpoint, message.count):
            self.checks.settle()
            self.rejudge()


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.control.main", description="Started by the supervisor.")
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket to the supervisor")
    parser.add_argument("--admin", type=int, required=True, help="descriptor of the listening admin socket")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    state_dir = Path(options.state_dir)
    try:
        start, why = await asyncio.to_thread(starting_point, Path(options.config), state_dir, environ)
        writer = await asyncio.to_thread(open_map, state_dir)
    except (NoConfiguration, StoreError) as error:
        LOG.error("control cannot start: %s", error)
        return 1
    if why:
        LOG.error("the last good configuration cannot be used, the one on disk is: %s", why)
    try:
        return await Control(options, environ, start, writer).run()
    finally:
        writer.close()


def main() -> int:
    log_to_stderr("control")
    # What fails in a handler is logged by `admin.guard`; what is left is garbage on the socket, with a traceback each.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    options = parse_options(sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(options, dict(os.environ)))


if __name__ == "__main__":
    sys.exit(main())
