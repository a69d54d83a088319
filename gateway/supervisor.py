"""The supervisor: opens the listening sockets, starts control, the workers and, where the map comes from Redis, the
replicator; starts them again, forwards signals.

It is the process of `landbridge serve` and PID 1 of a container. It holds the sockets, so that connections which are
queued when a worker dies wait for its replacement; it holds the lock of `state_dir`, and its children inherit it, so
that a new `serve` cannot begin while workers of a killed one still drain.

Which worker serves which slot, and when one replaces another, is decided in `gateway/crew.py`; this is the loop that
does it. It must never fail because of a child, so it does as little as can be done: one `selectors` loop, no threads,
no asyncio, no HTTP, no request data; the standard library and `gateway.settings`. Children are told things
over a socket pair as JSON lines, never waited for, and read the configuration from `state_dir/config.last-good`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.children import SAID, Child, Phase, Setup, Wire, how_it_ended
from gateway.crew import GRACE_MARGIN_S, Asked, Crew
from gateway.holdings import LAST_GOOD, CannotStart, Lock, open_listeners, prepare_state_dir, write_last_good
from gateway.map_check import MapCheck
from gateway.settings.filter_check import require_filters
from gateway.settings.loader import load, read_sources
from gateway.settings.problems import Invalid
from gateway.settings.schema import MapSource
from gateway.signals import Signals
from gateway.systemd import Notifier, Unusable, passed_sockets, without_ours

START_LIMIT_S: Final = 20.0
"""A worker that has not said `serving` by then is stuck: importing and opening the map takes below one second."""

STOP_LIMIT_S: Final = 2.0
"""What control and the replicator get to close what they have open, once the workers are gone."""

LEAVE_MARGIN_S: Final = 3.0
"""Beyond `drain.limit`, what a killed supervisor's control and workers take to close their files and be gone."""

RELOAD_LIMIT_S: Final = 15.0
"""When the manager is told that a reload is over, though control (which may just have died) has not said so."""


class Commands(NamedTuple):
    """How the children are started (the options of their roles are appended), and how long a worker may take.

    `check` looks at the map on disk before the first ones and after a death that a bad map makes. () is none.
    """

    worker: tuple[str, ...]
    control: tuple[str, ...]
    start_limit_s: float = START_LIMIT_S
    check: tuple[str, ...] = ()
    replicator: tuple[str, ...] = ()


def python_module(module: str) -> tuple[str, ...]:
    """Start `module` with this interpreter; `-P`, so that no file of the current directory shadows a module of ours."""
    return (sys.executable, "-P", "-m", module)


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, in which a child finds the very package that runs here: a checkout is on nobody's path."""
    root = str(Path(__file__).resolve().parent.parent)
    child = dict(environ)
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        child["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))
    return child


def log(text: str) -> None:
    """One event, one line on standard error. A reader that is gone must not end the gateway."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with contextlib.suppress(OSError):
        os.write(2, f"{now} supervisor[{os.getpid()}]: {text}\n".encode(errors="backslashreplace"))


class Supervisor:
    """The loop over children, their channels and our signals: the crew's hands. `serve()` returns the exit code."""

    def __init__(
        self,
        setup: Setup,
        config_path: Path,
        lock: Lock,
        commands: Commands,
        environ: Mapping[str, str],
        notifier: Notifier,
    ) -> None:
        self.config_path = config_path
        self.lock = lock
        self.commands = commands
        self.environ = child_environ(without_ours(environ))
        self.map_check = MapCheck(commands.check, Path(setup.settings.state_dir), self.environ, log)
        self.notifier = notifier
        self.selector = selectors.DefaultSelector()
        self.control = Child("control", None)
        replicates = setup.settings.tenant_map.source is MapSource.REDIS and bool(commands.replicator)
        self.replicator = Child("replicator", None) if replicates else None  # another source needs a new start
        self.crew = Crew(self, setup, Path(setup.settings.state_dir), environ, commands.start_limit_s)
        self.restarts = {"worker": 0, "control": 0, "replicator": 0}
        self.drain = setup.settings.drain
        self.signalled: float | None = None
        self.listening = True
        self.stop_sent: float | None = None
        self.reload_due: float | None = None
        self.watchdog_due = 0.0
        self.told_behind = False

    @property
    def children(self) -> list[Child]:
        return [*self.stewards, *self.crew.all]

    @property
    def stewards(self) -> list[Child]:
        """Who outlives the workers."""
        return [self.control] if self.replicator is None else [self.control, self.replicator]

    def serve(self, signals: Signals) -> int:
        """Run until the last child is gone after a signal: 0, or 1 upon a second signal."""
        self.selector.register(signals.fd, selectors.EVENT_READ, None)
        self.notifier.tell(STATUS=self.crew.status())
        while any(child.phase is not Phase.GONE for child in self.children):
            self._due(time.monotonic())
            for key, mask in self.selector.select(self._next(time.monotonic())):
                if isinstance(key.data, Child):
                    self._channel_ready(key.data, mask)
            for number in signals.read():
                if not self._signal(number, time.monotonic()):
                    return 1
            self._reap(time.monotonic())
        log("stopped")
        return 0

    # --- time

    def _due(self, now: float) -> None:
        """Do what has come due: starts, kills of what is stuck, the steps of the drain, words to the manager."""
        held = self.signalled is None and self.map_check.holds_starts(now)
        for child in self.children:
            if child.phase is Phase.WAITING and child.due <= now and not held:
                self._start(child, now)
            elif child.phase is Phase.STARTING and child.slot is not None and child.due <= now:
                child.complaint = f"did not serve within {self.commands.start_limit_s:g} s"
                self.kill(child, child.complaint)
                child.due = now + self.commands.start_limit_s
            elif child is self.replicator and child.expected and child.due <= now:
                self.kill(child, f"is still there {STOP_LIMIT_S:g} s after it was told to stop")
        self.crew.due(now)
        if self.notifier.watchdog_s is not None and now >= self.watchdog_due:
            self.watchdog_due = now + self.notifier.watchdog_s
            self.notifier.tell(WATCHDOG=1)
        if self.reload_due is not None and now >= self.reload_due and self.crew.round is None:
            self._reloaded()
        if self.signalled is not None:
            self._drain_on(self.signalled, now)

    def _drain_on(self, signalled: float, now: float) -> None:
        if self.listening and now >= signalled + self.drain.grace + GRACE_MARGIN_S:
            self.listening = False
            self.crew.setup.listeners.close_traffic()
        left = [worker for worker in self.crew.all if worker.phase is not Phase.GONE]
        if left and now >= signalled + self.drain.limit:
            for worker in left:
                self.kill(worker, f"is still there after {self.drain.limit:g} s")
        if not left and self.stop_sent is None:
            self.stop_sent = now
            for child in self.stewards:
                self.send(child, {"cmd": "stop"})
        if self.stop_sent is not None and now >= self.stop_sent + STOP_LIMIT_S:
            for child in self.stewards:
                self.kill(child, f"is still there {STOP_LIMIT_S:g} s after the last worker")

    def _next(self, now: float) -> float | None:
        """Seconds until something comes due; None when only events can come."""
        if self.map_check.is_running:
            times = [self.map_check.deadline]
        else:
            times = [c.due for c in self.children if c.phase is Phase.WAITING]
        times += [w.due for w in self.crew.all if w.phase is Phase.STARTING]
        if self.replicator is not None and self.replicator.expected and not self.replicator.killed:
            times.append(self.replicator.due)
        times += self.crew.next_due()
        if self.notifier.watchdog_s is not None:
            times.append(self.watchdog_due)
        if self.reload_due is not None:
            times.append(max(self.reload_due, now + 1.0) if self.crew.round else self.reload_due)
        if self.signalled is not None:
            steps = (self.drain.grace + GRACE_MARGIN_S, self.drain.limit)
            times += [self.signalled + step for step in steps if self.signalled + step > now]
            stop = now if self.stop_sent is None else self.stop_sent + STOP_LIMIT_S
            times.append(stop if stop > now else now + 1.0)  # who was killed may take long to be gone
        return max(0.0, min(times) - now) if times else None

    # --- life and death of children

    def _start(self, child: Child, now: float) -> None:
        """Start a process for `child`; what is wrong with it is heard by its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments, descriptors = self._arguments(child)
            arguments += ["--channel", str(theirs.fileno())]
            try:
                child.process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), self.lock.fd, *descriptors],
                    env=self.environ,
                    process_group=0,  # a terminal's Ctrl-C is for us to forward, also while the child still imports
                )
            except OSError as error:
                ours.close()
                self._died(child, f"cannot be started: {error.strerror}", now)
                return
        child.wire = Wire(ours)
        child.killed, child.expected, child.complaint = False, False, ""
        child.phase, child.served, child.due = Phase.STARTING, None, now + self.commands.start_limit_s
        self.selector.register(ours, selectors.EVENT_READ, child)
        log(f"{child} started")
        self.tell_processes()

    def _arguments(self, child: Child) -> tuple[list[str], list[int]]:
        setup = child.setup or self.crew.setup
        state_dir = ["--state-dir", setup.settings.state_dir]
        if child is self.replicator:
            return [*self.commands.replicator, *state_dir], []
        if child.slot is None:
            admin = setup.listeners.admin.fileno()
            config = ["--config", str(self.config_path), "--admin", str(admin)]
            return [*self.commands.control, *state_dir, *config], [admin]
        http = [sock.fileno() for sock in setup.listeners.http]
        hop = [sock.fileno() for sock in setup.listeners.hop]
        arguments = [*self.commands.worker, *state_dir, "--slot", str(child.slot)]
        arguments += ["--http", ",".join(map(str, http))]
        if hop:
            arguments += ["--hop", ",".join(map(str, hop))]
        if child.waits:
            arguments += ["--settings", setup.file, "--wait"]
        return arguments, [*{*http, *hop}]

    def _reap(self, now: float) -> None:
        """Collect every dead child; as PID 1 also those that were left to us by others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.map_check.reaped(pid, status):
                continue
            for child in self.children:
                if child.process is not None and child.pid == pid:
                    self._listen_to_the_last(child)
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    if child is not self.replicator:  # which never opens the map
                        self.map_check.child_died(status)
                    self._died(child, how_it_ended(status), now)
                    break

    def _listen_to_the_last(self, child: Child) -> None:
        """What a child said before it ended is still in its channel."""
        for line in (child.wire.receive() if child.wire else None) or []:
            self._said(child, line)

    def _died(self, child: Child, how: str, now: float) -> None:
        """Decide what follows a child's end: a restart, at once or later; or nothing while we drain."""
        name = str(child)
        if child.wire is not None:
            with contextlib.suppress(KeyError):
                self.selector.unregister(child.wire.socket)
            child.wire.close()
            child.wire = None
        if not self.crew.died(child, how, now):
            child.process = None
            if self.signalled is not None:
                child.phase = Phase.GONE
                log(f"{name} {how}")
            elif child.expected:
                child.phase, child.due, child.failures, child.expected = Phase.WAITING, now, 0, False
                if child is self.control:
                    self.crew.close_old_admin()
                log(f"{name} {how}; it is started again with its new configuration")
            else:
                delay = child.wait_again(now)
                self.restarts["worker" if child.slot is not None else child.name] += 1
                log(f"{name} {how}; it is started again " + (f"in {delay:g} s" if delay else "at once"))
            self.crew.settle(now)
        self.tell_processes()

    def kill(self, child: Child, why: str) -> None:
        """SIGKILL, once a life: what survives that is in the kernel's hands."""
        if child.process is not None and not child.killed:
            log(f"{child} {why}: killed")
            child.killed = True
            os.kill(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    # --- channels

    def log(self, text: str) -> None:
        log(text)

    def send(self, child: Child, message: dict[str, Any]) -> None:
        """Queue one message. Never waits: what does not fit the socket goes when the child reads."""
        if child.wire is None:
            return
        if not child.wire.send(message):
            log(f"{child} does not read its channel: {message['cmd']} is dropped")
        self._watch(child)

    def _watch(self, child: Child) -> None:
        if child.wire is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.wire.behind else 0)
            with contextlib.suppress(KeyError):
                self.selector.modify(child.wire.socket, events, child)

    def _channel_ready(self, child: Child, mask: int) -> None:
        wire = child.wire
        if wire is None:
            return
        if mask & selectors.EVENT_WRITE:
            wire.flush()
            if child is self.control and self.told_behind and not wire.behind:
                self.tell_processes()
            self._watch(child)
        if not mask & selectors.EVENT_READ:
            return
        lines = wire.receive()
        if lines is None:
            self.selector.unregister(wire.socket)
            return
        for line in lines:
            self._said(child, line)

    def _said(self, child: Child, line: bytes) -> None:
        """A child's word: a state of its own, why it fails; from control also what it wants."""
        now = time.monotonic()
        match _decoded(line):
            case {"state": str(state)}:
                phase = SAID.get((child.phase, state))
                if phase is None:
                    return
                child.phase = phase
                if phase is Phase.SERVING:
                    child.served = now
                log(f"{child} is {phase}")
                if child.slot is not None:
                    self.crew.heard(child, now)
                if not self.notifier.is_ready and self.signalled is None and self.crew.all_serve:
                    self.notifier.ready(self.crew.status())
                self.tell_processes()
            case {"failed": str(why)}:
                child.complaint = why
            case {"ask": "replace", **wish} if child is self.control:
                self._wished({str(name): value for name, value in wish.items()}, now)
            case {"ask": "restart"} if child is self.control:
                child.expected = True
                self.send(child, {"cmd": "stop"})
            case {"ask": "restart-replicator"} if child is self.control:
                if self.replicator is not None:
                    self._restart(self.replicator, now)
            case {"done": "reload"} if child is self.control:
                self._reloaded()
            case _:
                log(f"{child} said something that is no message: {line[:80]!r}")

    def _wished(self, wish: dict[str, Any], now: float) -> None:
        """Control asks for new workers: for a configuration that it wrote, or because an operator said so."""
        ticket = wish.get("ticket")
        if isinstance(ticket, int) and wish.get("configuration") is True:
            self.crew.replace(Asked("configuration", ticket, True, self.control.pid), now)
        else:
            who = f"asked for by {wish.get('actor') or 'the admin API'}"
            reason = wish.get("reason")
            self.crew.replace(Asked(f"{who}: {reason}" if reason else who), now)

    def _restart(self, replicator: Child, now: float) -> None:
        """Have it read its settings again, in a new life; also when it does not stop, or waits for its next one."""
        if replicator.phase is Phase.WAITING:
            replicator.due, replicator.failures = now, 0
        elif not replicator.expected and replicator.phase is not Phase.GONE:
            replicator.expected, replicator.due = True, now + STOP_LIMIT_S
            self.send(replicator, {"cmd": "stop"})

    def begun(self, asked: Asked) -> None:
        log(f"workers are replaced now ({asked.cause})")
        self.notifier.begin("replace", "replacing workers")

    def ended(self, asked: Asked, why: str) -> None:
        """A replacement is over; `why` it failed, or ""."""
        if asked.ticket and asked.asker == self.control.pid:  # a control that was started since has tickets of its own
            self.send(self.control, {"cmd": "replaced", "ticket": asked.ticket, "why": why})
        self.notifier.end("replace", self.crew.status())
        self.tell_processes()

    def tell_processes(self) -> None:
        """Tell control who lives. Only the latest counts: while an older one waits unread, none is queued behind it."""
        wire = self.control.wire
        if wire is None:
            return
        self.told_behind = wire.behind
        if wire.behind:
            return
        message = {"cmd": "processes", "supervisor": os.getpid(), "control": self.control.pid}
        message["replicator"] = None if self.replicator is None else self.replicator.pid
        self.send(self.control, message | self.crew.told() | {"restarts": dict(self.restarts)})

    # --- signals

    def _signal(self, number: int, now: float) -> bool:
        """Act on one signal; False ends the process at once."""
        if number == signal.SIGHUP:
            log("SIGHUP: the configuration is read again")
            self.notifier.begin("reload", "reading the configuration again")
            self.reload_due = now + RELOAD_LIMIT_S
            self.send(self.control, {"cmd": "reload"})
        elif number == signal.SIGUSR2:
            log("SIGUSR2: workers are to be replaced")
            self.crew.replace(Asked("SIGUSR2"), now)
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self.signalled is not None:
                log(f"{signal.Signals(number).name} again: stopped at once")
                self.map_check.stop()
                for child in self.children:
                    self.kill(child, "is cut off")
                return False
            self._drain(number, now)
        return True

    def _reloaded(self) -> None:
        self.reload_due = None
        self.notifier.end("reload", self.crew.status())

    def _drain(self, number: int, now: float) -> None:
        self.signalled, self.drain = now, self.crew.drain_settings()
        grace, limit = self.drain.grace, self.drain.limit
        log(f"{signal.Signals(number).name}: draining, {grace:g} s of grace, {limit:g} s at most")
        self.notifier.stopping(f"draining, {limit:g} s at most")
        self.lock.note("draining")
        self.map_check.stop()
        self.crew.end(now)
        for child in self.children:
            if child.phase is Phase.WAITING:
                child.phase = Phase.GONE
            if child is not self.replicator:  # what still serves wants news
                self.send(child, {"cmd": "drain"})


def _decoded(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def run(config_path: Path, environ: Mapping[str, str], commands: Commands | None = None) -> int:
    """Serve until a signal: 0 after a drain, 1 when it cannot start or was cut short, 2 for a bad configuration."""
    try:
        sources = read_sources(config_path, environ)
        settings = load(sources, environ)
        require_filters(settings, sources.filters, environ)
    except Invalid as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    commands = commands or Commands(
        python_module("gateway.proxy.main"),
        python_module("gateway.control.main"),
        check=python_module("gateway.store.check"),
        replicator=python_module("gateway.control.replication.main"),
    )
    state_dir = Path(settings.state_dir)
    signals = Signals()
    try:
        prepare_state_dir(state_dir)
        lock = Lock(state_dir / "lock")
        lock.take(settings.drain.limit + LEAVE_MARGIN_S, signals.wait, log)
        lock.note("serving")
        write_last_good(state_dir, sources)
        listeners = open_listeners(settings.listen, settings.workers, passed_sockets(environ, os.getpid()))
        log(f"listening on {listeners}")
    except (CannotStart, Unusable) as error:
        log(str(error))
        return 1
    except OSError as error:
        log(f"state_dir {state_dir}: {error.strerror}")
        return 1
    setup = Setup(LAST_GOOD, settings, listeners)
    notifier = Notifier(environ, os.getpid())
    return Supervisor(setup, config_path.resolve(), lock, commands, environ, notifier).serve(signals)
