"""The workers: which of them serves which slot, and how all of them are replaced while none of their work is lost.

A replacement is one round. A plain one (SIGUSR2, `POST /api/v1/workers/replace`) takes slot after slot: the newcomer
says that it serves, then its predecessor is told to retire. A round for a new configuration (other filters, worker
count or listeners) starts newcomers one by one that load everything and wait; only when all are ready is the new
configuration the last good one, and they accept and the old retire. Until then no old worker has noticed anything: a
newcomer that fails changes nothing. Sockets are shared, so what waits in a queue is taken by whoever accepts.

It decides; `Hands` (the supervisor) kill and send, and start whoever waits and is due. Time is an argument (`now`,
monotonic seconds).
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from gateway.children import Child, Phase, Setup
from gateway.holdings import CANDIDATE, LAST_GOOD, NEXT, CannotStart
from gateway.settings.loader import decode_sources, load
from gateway.settings.problems import Invalid
from gateway.settings.schema import DrainSettings

PREDECESSORS_MAX: Final = 5
"""Replaced workers of one slot that may drain at once: each has its memory, and a file of counters (at most 8)."""

RETIRED_MARGIN_S: Final = 2.0
"""Beyond `drain.limit`, before a retired worker that is still there is stuck."""

WHY_CHARS_MAX: Final = 2000
"""What control is told of a failure; the log has it all."""

GRACE_MARGIN_S: Final = 0.25
"""Beyond the grace, before sockets end: workers stop accepting by a sweep of 100 ms, and must have."""


class Asked(NamedTuple):
    """A wish for a replacement: `cause` is for the log.

    `ticket` is of the control process `asker`, which waits for the end; without one (0) nobody does.
    """

    cause: str
    ticket: int = 0
    configuration: bool = False
    asker: int = 0


@dataclass(slots=True)
class Round:
    """One replacement under way: `todo` are the slots whose newcomers are still to be started."""

    asked: Asked
    setup: Setup
    todo: deque[int]
    committed: bool = False


@dataclass(slots=True)
class Report:
    """What became of replacements, for status and metrics."""

    cause: str = ""
    result: str = ""
    why: str = ""
    done: int = 0
    failed: int = 0


class Hands(Protocol):
    """What the crew has done."""

    def send(self, child: Child, message: dict[str, Any]) -> None: ...
    def kill(self, child: Child, why: str) -> None: ...
    def log(self, text: str) -> None: ...
    def begun(self, asked: Asked) -> None: ...
    def ended(self, asked: Asked, why: str) -> None: ...


@dataclass(slots=True)
class Crew:
    """`workers` serve the slots, `newcomers` not yet, `outgoing` until their successors accept; `retired` drain."""

    hands: Hands
    setup: Setup
    state_dir: Path
    environ: Mapping[str, str]
    start_limit_s: float
    workers: list[Child] = field(default_factory=list)
    newcomers: list[Child] = field(default_factory=list)
    outgoing: list[Child] = field(default_factory=list)
    retired: list[Child] = field(default_factory=list)
    adopted: dict[int, Child] = field(default_factory=dict)
    closing: list[tuple[float, Setup]] = field(default_factory=list)
    wishes: deque[Asked] = field(default_factory=deque)
    round: Round | None = None
    report: Report = field(default_factory=Report)
    ending: bool = False

    def __post_init__(self) -> None:
        self.workers = [self._worker(slot, self.setup) for slot in range(self.setup.settings.workers)]

    @staticmethod
    def _worker(slot: int, setup: Setup, waits: bool = False) -> Child:
        return Child(f"worker {slot}", slot, setup, waits)

    @property
    def all(self) -> list[Child]:
        return [*self.workers, *self.newcomers, *self.outgoing, *self.retired]

    @property
    def all_serve(self) -> bool:
        return all(worker.phase is Phase.SERVING for worker in self.workers)

    def drain_settings(self) -> DrainSettings:
        """As of the last good reload: control writes what it applied there."""
        try:
            data = (self.state_dir / LAST_GOOD).read_bytes()
            return load(decode_sources(data), self.environ).drain
        except Exception as error:  # whatever is wrong with that file: a drain begins now
            self.hands.log(f"{LAST_GOOD} cannot be read, the drain times of the start hold: {error}")
            return self.setup.settings.drain

    def told(self) -> dict[str, Any]:
        """Who lives, and what became of replacements: what control hears of us."""
        living = sorted((w for w in self.all if w.pid), key=lambda w: w.slot or 0)
        report = self.report
        return {
            "workers": [{"slot": w.slot, "pid": w.pid, "state": w.shown} for w in living],
            "replacements": {
                "running": self.round is not None,
                "cause": report.cause,
                "result": report.result,
                "why": report.why[:WHY_CHARS_MAX],
                "done": report.done,
                "failed": report.failed,
            },
        }

    def status(self) -> str:
        """One line for the service manager."""
        serving = sum(worker.phase is Phase.SERVING for worker in self.workers)
        last = f"; the last replacement failed: {self.report.why}" if self.report.result == "failed" else ""
        return f"{serving} of {len(self.workers)} workers serve{last}"

    # --- rounds

    def replace(self, asked: Asked, now: float) -> None:
        """Begin a replacement, or note it for when the one that is under way has ended."""
        if self.ending:
            self.hands.ended(asked, "the gateway is draining")
        elif asked.configuration or all(wish.configuration for wish in self.wishes):
            self.wishes.append(asked)
            self.go_on(now)

    def go_on(self, now: float) -> None:
        """Take the next step that can be taken: begin a round, start a newcomer, end the round."""
        while self.round is None and self.wishes:
            self._begin(self.wishes.popleft(), now)
        round = self.round
        if round is None or (self.newcomers and self.newcomers[-1].phase is not Phase.READY):
            return
        if not round.todo:
            if round.asked.configuration and not round.committed:
                self._commit(round, now)
            elif not self.outgoing:
                self._end(now, "")
            return
        drain_here = Counter(child.slot for child in self.retired)
        if drain_here[round.todo[0]] < PREDECESSORS_MAX:
            newcomer = self._worker(round.todo.popleft(), round.setup, round.asked.configuration)
            newcomer.due = now
            self.newcomers.append(newcomer)

    def _begin(self, asked: Asked, now: float) -> None:
        self.hands.begun(asked)
        try:
            setup = self._candidate() if asked.configuration else self.setup
        except (Invalid, CannotStart, OSError, ValueError) as error:
            (self.state_dir / CANDIDATE).unlink(missing_ok=True)
            problems = error.problems if isinstance(error, Invalid) else [error]
            self._count(asked, "; ".join(map(str, problems)))
            return
        self.round = Round(asked, setup, deque(range(setup.settings.workers)))

    def _candidate(self) -> Setup:
        """What control wants, with its sockets open. Raises Invalid, CannotStart, OSError, ValueError."""
        data = (self.state_dir / CANDIDATE).read_bytes()
        settings = load(decode_sources(data), self.environ)
        before = self.setup
        listeners = before.listeners.changed(before.settings.listen, settings.listen, settings.workers)
        os.rename(self.state_dir / CANDIDATE, self.state_dir / NEXT)
        return Setup(NEXT, settings, listeners)

    def _commit(self, round: Round, now: float) -> None:
        """All newcomers are ready: from here on it is their configuration, come what may."""
        try:
            os.rename(self.state_dir / NEXT, self.state_dir / LAST_GOOD)
        except OSError as error:
            self.fail(f"{LAST_GOOD} cannot be written: {error.strerror}", now)
            return
        round.committed = True
        before, self.setup = self.setup, round.setup._replace(file=LAST_GOOD)
        self.closing.append((float("inf"), before))
        self.outgoing = [worker for worker in self.workers if worker.process is not None]
        self.workers, self.newcomers = self.newcomers, []
        for worker in self.workers:
            worker.setup, worker.waits = self.setup, False
            worker.phase, worker.due = Phase.STARTING, now + self.start_limit_s
            self.hands.send(worker, {"cmd": "accept"})
        self.settle(now)

    def fail(self, why: str, now: float) -> None:
        """Nothing changes: the newcomers go, whoever served goes on."""
        round = self.round
        assert round is not None, "only a round can fail"
        assert not round.committed, "what is committed stays"
        self.round = None
        for newcomer in self.newcomers:
            self.hands.kill(newcomer, "is not wanted any more")
            newcomer.phase = Phase.DRAINING
        self.retired += [newcomer for newcomer in self.newcomers if newcomer.process is not None]
        self.newcomers = []
        if round.asked.configuration:
            (self.state_dir / NEXT).unlink(missing_ok=True)
            made, kept = round.setup.listeners, self.setup.listeners
            made.end(made.not_in(kept))
            if made.admin is not kept.admin:
                made.admin.close()
        self._count(round.asked, why)

    def _end(self, now: float, why: str) -> None:
        assert self.round is not None
        asked, self.round = self.round.asked, None
        end = now + self.drain_settings().grace + GRACE_MARGIN_S
        self.closing = [(min(due, end), setup) for due, setup in self.closing]
        self._count(asked, why)
        self.go_on(now)

    def _count(self, asked: Asked, why: str) -> None:
        report = self.report
        report.cause, report.result, report.why = asked.cause, "failed" if why else "done", why
        if why:
            report.failed += 1
            self.hands.log(f"replacing workers ({asked.cause}) failed, nothing changes: {why}")
        else:
            report.done += 1
            self.hands.log(f"workers are replaced ({asked.cause})")
        self.hands.ended(asked, why)

    def end(self, now: float) -> None:
        """The gateway drains: what is not committed will not be."""
        self.ending = True
        wishes, self.wishes = list(self.wishes), deque()
        if self.round is not None and not self.round.committed:
            self.fail("the gateway is draining", now)
        for wish in wishes:
            self.hands.ended(wish, "the gateway is draining")

    # --- what becomes of workers

    def heard(self, child: Child, now: float) -> None:
        """A worker's phase changed by its own word."""
        if child in self.newcomers:
            if child.phase is Phase.DRAINING:
                self.fail(f"{child} drains by itself", now)
            elif child.phase is Phase.SERVING:
                assert child.slot is not None
                self.newcomers.remove(child)
                old, self.workers[child.slot] = self.workers[child.slot], child
                if old.process is not None:
                    self.outgoing.append(old)
        self.settle(now)

    def died(self, child: Child, how: str, now: float) -> bool:
        """Whether this end is dealt with; False: the worker serves a slot, and has to be started again."""
        for crowd in (self.newcomers, self.outgoing, self.retired):
            if child in crowd:
                name, child.phase, child.process = str(child), Phase.GONE, None
                crowd.remove(child)
                self.hands.log(f"{name} {how}")
                if crowd is self.newcomers and self.round is not None:
                    self.fail(f"{child.name} {how}" + (f": {child.complaint}" if child.complaint else ""), now)
                self.settle(now)
                return True
        return False

    def settle(self, now: float) -> None:
        """After any change: every socket has somebody who accepts, and who has a successor retires."""
        self._spread()
        for child in list(self.outgoing):
            assert child.slot is not None
            has_slot = child.slot < len(self.workers)
            if self.workers[child.slot].phase is Phase.SERVING if has_slot else child.slot in self.adopted:
                self.outgoing.remove(child)
                self._retire(child, now)
        if not self.ending:
            self.go_on(now)

    def _retire(self, child: Child, now: float) -> None:
        assert child.setup is not None
        assert child.slot is not None
        old, new = child.setup.listeners, self.setup.listeners
        groups = (("http", old.http, new.http), ("hop", old.hop, new.hop))
        keep = [name for name, had, have in groups if had and had[child.slot] not in have]
        self.hands.send(child, {"cmd": "retire", "keep": keep})
        child.phase, child.due = Phase.DRAINING, now + self.drain_settings().limit + RETIRED_MARGIN_S
        self.retired.append(child)
        self.hands.log(f"{child} is replaced and drains")

    def _spread(self) -> None:
        """Keep every slot served: a sibling adopts one that has no worker, or whose worker waits in back-off."""
        serving = [worker for worker in self.workers if worker.phase is Phase.SERVING]
        for slot in range(self.setup.listeners.slots):
            worker = self.workers[slot] if slot < len(self.workers) else None
            adopter = self.adopted.get(slot)
            if adopter is not None and adopter not in serving:
                del self.adopted[slot]
                adopter = None
            if worker is not None and worker in serving:
                if adopter is not None:
                    del self.adopted[slot]
                    self.hands.send(adopter, {"cmd": "release", "slots": [slot]})
            elif adopter is None and serving and not self.ending and (worker is None or worker.in_backoff):
                adopter = min(serving, key=lambda sibling: list(self.adopted.values()).count(sibling))
                self.adopted[slot] = adopter
                self.hands.send(adopter, {"cmd": "adopt", "slots": [slot]})
                self.hands.log(f"{adopter} serves the connections of worker {slot}")

    # --- time

    def due(self, now: float) -> None:
        """Kill retired workers that are stuck; close sockets that nobody needs since a while."""
        for child in self.retired:
            if child.due <= now:
                self.hands.kill(child, "was replaced and is still there")
        for due, setup in list(self.closing):
            if due <= now:
                setup.listeners.end(setup.listeners.not_in(self.setup.listeners))
                self.close_old_admin()
                self.closing.remove((due, setup))

    def close_old_admin(self) -> None:
        """Not shut down: a control that still stops has its own copy. Once that is gone nobody would answer."""
        for _, setup in self.closing:
            if setup.listeners.admin is not self.setup.listeners.admin:
                setup.listeners.admin.close()

    def next_due(self) -> list[float]:
        """When something comes due."""
        times = [child.due for child in self.retired if not child.killed]
        return times + [due for due, _ in self.closing if due != float("inf")]
