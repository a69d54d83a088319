"""The supervisor: opens the listening sockets, starts control and the workers, starts them again, forwards signals.

It is the process of `landbridge serve` and PID 1 of a container. It holds the sockets, so that connections which are
queued when a worker dies wait for its replacement; it holds the lock of `state_dir`, and its children inherit it, so
that a new `serve` cannot begin while workers of a killed one still drain.

It must never fail because of a child, so it does as little as can be done: one `selectors` loop, no threads, no
asyncio, no HTTP, no request data; it imports the standard library and `gateway.settings`. Children are told things
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
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.children import SAID, Child, Phase, how_it_ended
from gateway.holdings import CannotStart, Listeners, Lock, open_listeners, prepare_state_dir, write_last_good
from gateway.map_check import MapCheck
from gateway.settings.filter_check import require_filters
from gateway.settings.loader import decode_sources, load, read_sources
from gateway.settings.problems import Invalid
from gateway.settings.schema import DrainSettings, Settings

START_LIMIT_S: Final = 20.0
"""A worker that has not said `serving` by then is stuck: importing and opening the map takes below one second."""

GRACE_MARGIN_S: Final = 0.25
"""Beyond the grace, before the sockets end: workers stop accepting by a sweep of 100 ms, and must have."""

STOP_LIMIT_S: Final = 2.0
"""What control gets to close its files once the workers are gone."""

LEAVE_MARGIN_S: Final = 3.0
"""Beyond `drain.limit`, what a killed supervisor's control and workers take to close their files and be gone."""

LINE_MAX_BYTES: Final = 4096
"""A child says one short JSON object a line; more is a child gone wrong."""

OUTBOX_MAX_BYTES: Final = 64 * 1024
"""Commands that wait for a child which does not read. It is restarted by its death, not by our memory."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


class Commands(NamedTuple):
    """How the children are started (the options of their roles are appended), and how long a worker may take.

    `check` looks at the map on disk before the first ones and after a death that a bad map makes; () is no check.
    """

    worker: tuple[str, ...]
    control: tuple[str, ...]
    start_limit_s: float = START_LIMIT_S
    check: tuple[str, ...] = ()


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
    """The loop over children, their channels and our signals. `serve()` returns the exit code."""

    def __init__(
        self,
        settings: Settings,
        config_path: Path,
        lock: Lock,
        listeners: Listeners,
        commands: Commands,
        environ: Mapping[str, str],
    ) -> None:
        self.settings = settings
        self.drain = settings.drain
        self.config_path = config_path
        self.lock = lock
        self.listeners = listeners
        self.commands = commands
        self.given = environ
        self.environ = child_environ(environ)
        self.map_check = MapCheck(commands.check, Path(settings.state_dir), self.environ, log)
        self.selector = selectors.DefaultSelector()
        self.control = Child("control", None)
        self.workers = [Child(f"worker {slot}", slot) for slot in range(settings.workers)]
        self.adopted: dict[int, Child] = {}
        self.signalled: float | None = None
        self.listening = True
        self.stop_sent: float | None = None

    @property
    def children(self) -> list[Child]:
        return [self.control, *self.workers]

    def serve(self, signals: Signals) -> int:
        """Run until the last child is gone after a signal: 0, or 1 upon a second signal."""
        self.selector.register(signals.fd, selectors.EVENT_READ, None)
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
        """Do what has come due: starts, kills of what is stuck, the steps of the drain."""
        held = self.signalled is None and self.map_check.holds_starts(now)
        for child in self.children:
            if child.phase is Phase.WAITING and child.due <= now and not held:
                self._spawn(child, now)
            elif child.phase is Phase.STARTING and child.slot is not None and child.due <= now:
                self._kill(child, f"did not serve within {self.commands.start_limit_s:g} s")
                child.due = now + self.commands.start_limit_s
        if self.signalled is None:
            return
        if self.listening and now >= self.signalled + self.drain.grace + GRACE_MARGIN_S:
            self.listening = False
            self.listeners.close_traffic()
        left = [worker for worker in self.workers if worker.phase is not Phase.GONE]
        if left and now >= self.signalled + self.drain.limit:
            for worker in left:
                self._kill(worker, f"is still there after {self.drain.limit:g} s")
        if not left and self.stop_sent is None:
            self.stop_sent = now
            self._send(self.control, {"cmd": "stop"})
        if self.stop_sent is not None and now >= self.stop_sent + STOP_LIMIT_S:
            self._kill(self.control, f"is still there {STOP_LIMIT_S:g} s after the last worker")

    def _next(self, now: float) -> float | None:
        """Seconds until something comes due; None when only events can come."""
        if self.map_check.is_running:
            times = [self.map_check.deadline]
        else:
            times = [c.due for c in self.children if c.phase is Phase.WAITING]
        times += [w.due for w in self.workers if w.phase is Phase.STARTING]
        if self.signalled is not None:
            steps = (self.drain.grace + GRACE_MARGIN_S, self.drain.limit)
            times += [self.signalled + step for step in steps if self.signalled + step > now]
            times.append(self.stop_sent + STOP_LIMIT_S if self.stop_sent is not None else now + 1.0)
        return max(0.0, min(times) - now) if times else None

    # --- life and death of children

    def _spawn(self, child: Child, now: float) -> None:
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
        ours.setblocking(False)
        child.channel = ours
        child.inbox, child.outbox, child.behind, child.killed = b"", b"", False, False
        child.phase, child.served, child.due = Phase.STARTING, None, now + self.commands.start_limit_s
        self.selector.register(ours, selectors.EVENT_READ, child)
        log(f"{child} started")
        self._tell_processes()

    def _arguments(self, child: Child) -> tuple[list[str], list[int]]:
        state_dir = ["--state-dir", self.settings.state_dir]
        if child.slot is None:
            admin = self.listeners.admin.fileno()
            config = ["--config", str(self.config_path), "--admin", str(admin)]
            return [*self.commands.control, *state_dir, *config], [admin]
        http = [sock.fileno() for sock in self.listeners.http]
        hop = [sock.fileno() for sock in self.listeners.hop]
        arguments = [*self.commands.worker, *state_dir, "--slot", str(child.slot)]
        arguments += ["--http", ",".join(map(str, http))]
        if hop:
            arguments += ["--hop", ",".join(map(str, hop))]
        return arguments, http + hop

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
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    self.map_check.child_died(status)
                    self._died(child, how_it_ended(status), now)

    def _died(self, child: Child, how: str, now: float) -> None:
        """Decide what follows a child's end: a restart, at once or later; or nothing while we drain."""
        name = str(child)
        if child.channel is not None:
            with contextlib.suppress(KeyError):
                self.selector.unregister(child.channel)
            child.channel.close()
            child.channel = None
        child.process = None
        if self.signalled is not None:
            child.phase = Phase.GONE
            log(f"{name} {how}")
        else:
            delay = child.wait_again(now)
            log(f"{name} {how}; it is started again " + (f"in {delay:g} s" if delay else "at once"))
        self._spread()
        self._tell_processes()

    def _kill(self, child: Child, why: str) -> None:
        """SIGKILL, once a life: what survives that is in the kernel's hands."""
        if child.process is not None and not child.killed:
            log(f"{child} {why}: killed")
            child.killed = True
            os.kill(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    def _spread(self) -> None:
        """Keep every slot served: a sibling adopts one whose worker waits in back-off, until that serves again."""
        serving = [worker for worker in self.workers if worker.phase is Phase.SERVING]
        for worker in self.workers:
            slot = worker.slot
            assert slot is not None
            adopter = self.adopted.get(slot)
            if adopter is not None and adopter not in serving:
                del self.adopted[slot]
                adopter = None
            if worker in serving:
                if adopter is not None:
                    del self.adopted[slot]
                    self._send(adopter, {"cmd": "release", "slots": [slot]})
            elif adopter is None and serving and self.signalled is None and worker.in_backoff:
                adopter = min(serving, key=lambda sibling: list(self.adopted.values()).count(sibling))
                self.adopted[slot] = adopter
                self._send(adopter, {"cmd": "adopt", "slots": [slot]})
                log(f"{adopter} serves the connections of {worker.name}")

    # --- channels

    def _send(self, child: Child, message: dict[str, Any]) -> None:
        """Queue one message. Never waits: what does not fit the socket goes when the child reads."""
        if child.channel is None:
            return
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(child.outbox) + len(line) > OUTBOX_MAX_BYTES:
            log(f"{child} does not read its channel: {message['cmd']} is dropped")
            return
        child.outbox += line
        self._flush(child)

    def _flush(self, child: Child) -> None:
        if child.channel is None:
            return
        try:
            sent = child.channel.send(child.outbox) if child.outbox else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # it closed its end: its exit is on the way
            sent = len(child.outbox)
        child.outbox = child.outbox[sent:]
        if not child.outbox and child.behind:
            self._tell_processes()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.outbox else 0)
        with contextlib.suppress(KeyError):
            self.selector.modify(child.channel, events, child)

    def _channel_ready(self, child: Child, mask: int) -> None:
        if child.channel is None:
            return
        if mask & selectors.EVENT_WRITE:
            self._flush(child)
        if not mask & selectors.EVENT_READ:
            return
        try:
            data = child.channel.recv(LINE_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(child.channel)
            return
        *lines, rest = (child.inbox + data).split(b"\n")
        child.inbox = rest[-LINE_MAX_BYTES:]
        for line in lines:
            self._said(child, line)

    def _said(self, child: Child, line: bytes) -> None:
        try:
            state = str(json.loads(line)["state"])
        except (ValueError, KeyError, TypeError):
            log(f"{child} said something that is no message: {line[:80]!r}")
            return
        phase = SAID.get((child.phase, state))
        if phase is None:
            return
        child.phase = phase
        if phase is Phase.SERVING:
            child.served = time.monotonic()
        log(f"{child} is {phase}")
        self._spread()
        self._tell_processes()

    def _tell_processes(self) -> None:
        """Tell control who lives. Only the latest counts: while an older one waits unread, none is queued behind it."""
        if self.control.outbox:
            self.control.behind = True
            return
        self.control.behind = False
        workers = [{"slot": w.slot, "pid": w.pid, "state": w.phase.value} for w in self.workers if w.pid]
        restarts = {"worker": sum(w.restarts for w in self.workers), "control": self.control.restarts}
        message = {"cmd": "processes", "supervisor": os.getpid(), "control": self.control.pid}
        self._send(self.control, message | {"workers": workers, "restarts": restarts})

    # --- signals

    def _signal(self, number: int, now: float) -> bool:
        """Act on one signal; False ends the process at once."""
        if number == signal.SIGHUP:
            log("SIGHUP: the configuration is read again")
            self._send(self.control, {"cmd": "reload"})
        elif number == signal.SIGUSR2:
            log("SIGUSR2: replacing workers is not supported yet; nothing was done")
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self.signalled is not None:
                log(f"{signal.Signals(number).name} again: stopped at once")
                self.map_check.stop()
                for child in self.children:
                    self._kill(child, "is cut off")
                return False
            self._drain(number, now)
        return True

    def _drain_settings(self) -> DrainSettings:
        """As of the last good reload: control writes what it applied to where we wrote ours."""
        try:
            data = (Path(self.settings.state_dir) / "config.last-good").read_bytes()
            return load(decode_sources(data), self.given).drain
        except Exception as error:  # whatever is wrong with that file: a drain begins now
            log(f"config.last-good cannot be read, the drain times of the start hold: {error}")
            return self.drain

    def _drain(self, number: int, now: float) -> None:
        self.signalled, self.drain = now, self._drain_settings()
        grace, limit = self.drain.grace, self.drain.limit
        log(f"{signal.Signals(number).name}: draining, {grace:g} s of grace, {limit:g} s at most")
        self.lock.note("draining")
        self.map_check.stop()
        for child in self.children:
            if child.phase is Phase.WAITING:
                child.phase = Phase.GONE
            self._send(child, {"cmd": "drain"})


class Signals:
    """Signals as bytes on a socket, so that the loop sees them in order with everything else (signal.set_wakeup_fd)."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self.fd = self._read.fileno()
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def read(self) -> Iterator[int]:
        with contextlib.suppress(BlockingIOError):
            while data := self._read.recv(256):
                yield from data

    def wait(self, seconds: float) -> bool:
        """Sleep; False as soon as a signal says that we shall stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.fd, selectors.EVENT_READ)
            selector.select(seconds)
        return not any(number in (signal.SIGTERM, signal.SIGINT) for number in self.read())


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
    )
    state_dir = Path(settings.state_dir)
    signals = Signals()
    try:
        prepare_state_dir(state_dir)
        lock = Lock(state_dir / "lock")
        lock.take(settings.drain.limit + LEAVE_MARGIN_S, signals.wait, log)
        lock.note("serving")
        write_last_good(state_dir, sources)
        listeners = open_listeners(settings.listen, settings.workers)
        log(f"listening on {listeners}")
    except CannotStart as error:
        log(str(error))
        return 1
    except OSError as error:
        log(f"state_dir {state_dir}: {error.strerror}")
        return 1
    return Supervisor(settings, config_path.resolve(), lock, listeners, commands, environ).serve(signals)
