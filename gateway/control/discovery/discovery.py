"""Following `dns://` and `srv://` endpoints: who is asked when, and what is known of it. Runs in control's loop.

Each name is asked again when its answer's TTL is over, at once when one of its endpoints cannot be used, and sooner or
later after a failure. The last good answer stands all the while. `core.discovery` decides, this does.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from gateway.control.tasks import TaskSet
from gateway.core.conditions import Target
from gateway.core.discovery import (
    HURRY_EVERY_S,
    Answer,
    Kind,
    Known,
    Record,
    Result,
    Rules,
    again_in,
    host_targets,
    result_of,
    service_targets,
    take,
)
from gateway.settings.schema import Address, Scheme

LOG = logging.getLogger("landbridge.control")

AT_ONCE_MAX: Final = 16
"""Questions under way together: a service of hundreds of hosts must not flood its name server."""

_NONE: Final[frozenset[str]] = frozenset()

SHOWN_MAX: Final = 8
"""Addresses in one log line."""

UNKNOWN: Final = Known()

Targets = dict[str, tuple[Target, ...]]


class Key(NamedTuple):
    """What is asked. A host that an SRV record names ends in a dot: no search completes it."""

    kind: Kind
    name: str


class Ask(Protocol):
    async def __call__(self, kind: Kind, name: str, rules: Rules) -> Mapping[Record, Answer]: ...


@dataclass(slots=True)
class _Question:
    """One name. `due` and `asked_at` are of the loop's clock; `task` is its question under way.

    `learning`: the hosts that an answer of this service names for the first time, until they were asked once.
    """

    known: Known = UNKNOWN
    due: float = 0.0
    asked_at: float = float("-inf")
    task: asyncio.Task[None] | None = None
    learning: tuple[Key, ...] = ()


class Shown(NamedTuple):
    """One endpoint as written, for operators. `age_s`: since its records last came, None: not in this life."""

    written: str
    targets: int
    age_s: float | None
    ttl_s: float | None
    result: Result | None
    why: str


class Discovery:
    """Keeps `targets` of the endpoints it was told last. `changed` is called in the loop when they differ.

    `kept` is what an earlier life knew: it stands until this one has an answer.
    """

    def __init__(
        self,
        ask: Ask,
        tasks: TaskSet,
        rng: random.Random,
        changed: Callable[[], None],
        counted: Callable[[Result], None] = lambda result: None,
        kept: Targets | None = None,
    ) -> None:
        self.targets: Targets = {}
        self._kept = kept or {}
        self._ask_wire = ask
        self._tasks = tasks
        self._rng = rng
        self._changed = changed
        self._counted = counted
        self._rules = Rules()
        self._written: dict[str, Address] = {}
        self._questions: dict[Key, _Question] = {}
        self._endpoints: dict[Key, frozenset[str]] = {}
        self._down: frozenset[str] = frozenset()
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)
        self._wake = asyncio.Event()

    async def use(self, endpoints: Iterable[Address], rules: Rules) -> None:
        """Follow exactly these. Waits at most `rules.timeout` for those of which nothing is known yet."""
        moved, self._rules = self._rules.servers != rules.servers, rules
        self._written = {str(address): address for address in endpoints}
        self._settle()
        if moved:
            self._hurry(self._questions)
        asked = {key: self._start(key) for key in self._wanted() if self._questions[key].known.found_at is None}
        self._conclude()
        self._wake.set()
        lacking = [address for written, address in self._written.items() if written not in self.targets]
        if new := {asked[key] for address in lacking for key in self._keys(address) if key in asked}:
            await asyncio.wait(new, timeout=rules.timeout)

    def narrow(self, endpoints: Iterable[Address]) -> None:
        """Follow only these of those that are followed."""
        self._written = {str(address): address for address in endpoints if str(address) in self._written}
        self._settle()
        self._conclude()
        self._wake.set()

    async def run(self) -> None:
        """Ask whatever is due, until cancelled."""
        while True:
            self._wake.clear()
            now = self._now()
            for key, question in self._questions.items():
                if question.task is None and question.due <= now:
                    self._start(key)
            nearest = min((q.due for q in self._questions.values() if q.task is None), default=None)
            try:
                async with asyncio.timeout(None if nearest is None else max(0.0, nearest - now)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def down(self, endpoints: Collection[str]) -> None:
        """These endpoints (`address:port`, of all clusters) cannot be used now: ask at once where the new ones are."""
        fresh = frozenset(endpoints) - self._down
        self._down = frozenset(endpoints)
        if fresh:
            self._hurry(key for key in self._questions if self._endpoints.get(key, _NONE) & fresh)

    def shown(self) -> list[Shown]:
        now = self._now()
        found = []
        for written, address in self._written.items():
            known = [self._questions[key].known for key in self._keys(address) if key in self._questions]
            wrong = next((k.lacking for k in known if k.lacking is not None), None)
            first = known[0] if known else UNKNOWN
            age_s = None if first.found_at is None else now - first.found_at
            ttl_s = None if first.found_at is None else first.ttl_s
            count = len(self.targets.get(written, ()))
            found.append(
                Shown(written, count, age_s, ttl_s, wrong.result if wrong else None, wrong.why if wrong else "")
            )
        return found

    # --- asking

    def _start(self, key: Key) -> asyncio.Task[None]:
        """The question of `key` that is under way, or a new one."""
        question = self._questions[key]
        if question.task is None:
            question.asked_at = self._now()
            question.task = self._tasks.spawn(self._ask(key, question), f"resolve {key.name}")
        return question.task

    async def _ask(self, key: Key, question: _Question) -> None:
        try:
            async with self._at_once:
                answers = await self._ask_wire(key.kind, key.name, self._rules)
            if self._questions.get(key) is not question:
                return
            known = take(question.known, answers, self._now())
            await self._learn(question, known)
            if self._questions.get(key) is not question:
                return
            self._counted(result_of(answers))
            self._say(key, question.known, known)
            before, question.known, question.learning = question.known, known, ()
            if known.records != before.records:
                self._settle()
                self._conclude()
        finally:
            question.task = None
            troubled = bool(self._endpoints.get(key, _NONE) & self._down)
            question.due = self._now() + again_in(question.known, self._rules, troubled, self._rng.random())
            self._wake.set()

    async def _learn(self, question: _Question, known: Known) -> None:
        """Know the hosts of a service before it counts that it names them: until then its old endpoints stand."""
        hosts = dict.fromkeys(_host(service.host) for service in known.services)
        question.learning = tuple(key for key in hosts if key not in self._questions)
        for key in question.learning:
            self._questions[key] = _Question()
        if question.learning:
            await asyncio.wait([self._start(key) for key in question.learning])

    def _hurry(self, keys: Iterable[Key]) -> None:
        for key in keys:
            question = self._questions[key]
            question.due = min(question.due, question.asked_at + HURRY_EVERY_S)
        self._wake.set()

    # --- what is known

    def _keys(self, address: Address) -> list[Key]:
        """All questions behind one endpoint, its own first."""
        if address.scheme is Scheme.DNS:
            return [Key(Kind.HOST, address.host)]
        own = Key(Kind.SERVICE, address.host)
        question = self._questions.get(own)
        services = () if question is None else question.known.services
        return [own, *dict.fromkeys(_host(service.host) for service in services)]

    def _wanted(self) -> list[Key]:
        return list(dict.fromkeys(key for address in self._written.values() for key in self._keys(address)))

    def _settle(self) -> None:
        """Have a question for each name that is wanted or being learnt, and for no other."""
        wanted = dict.fromkeys(self._wanted())
        for key in tuple(wanted):
            if key in self._questions:
                wanted |= dict.fromkeys(self._questions[key].learning)
        self._questions = {key: self._questions.get(key) or _Question() for key in wanted}

    def _computed(self, address: Address) -> tuple[Target, ...]:
        own, *hosts = self._keys(address)
        known = self._questions[own].known
        if address.scheme is Scheme.DNS:
            return host_targets(address.host, address.port, known)
        by_host = {key.name[:-1]: self._questions[key].known for key in hosts if key in self._questions}
        return service_targets(known.services, by_host)

    def _conclude(self) -> None:
        """Bring what is known to `targets`. What has nothing now keeps what it had."""
        found: Targets = {}
        for written, address in self._written.items():
            if targets := self._computed(address) or self.targets.get(written) or self._kept.get(written, ()):
                found[written] = targets
        if found == self.targets:
            self._index()
            return
        for written, targets in found.items():
            if targets != self.targets.get(written):
                LOG.info("%s stands for %s", written, _listed(targets))
        self.targets = found
        self._index()
        self._changed()

    def _index(self) -> None:
        """Which endpoints (`address:port`) an answer can change, by what is asked."""
        found: dict[Key, set[str]] = {}
        for written, address in self._written.items():
            own = self._keys(address)[0]
            for target in self.targets.get(written, ()):
                endpoint = str(Address(target.address, target.port))
                found.setdefault(own, set()).add(endpoint)
                if address.scheme is Scheme.SRV:
                    found.setdefault(_host(target.name), set()).add(endpoint)
        self._endpoints = {key: frozenset(endpoints) for key, endpoints in found.items()}

    def _say(self, key: Key, before: Known, after: Known) -> None:
        """One line when a name turns bad, or bad in another way, and one when it is well again."""
        name = key.name.removesuffix(".")
        if after.lacking is None:
            if before.lacking is not None:
                LOG.info("%s is resolved again", name)
        elif before.lacking is None or before.lacking.result is not after.lacking.result:
            stands = "the last good answer stands" if after.records else "there is none yet"
            LOG.warning("cannot resolve %s: %s; %s", name, after.lacking.why, stands)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _host(name: str) -> Key:
    return Key(Kind.HOST, name + ".")


def _listed(targets: tuple[Target, ...]) -> str:
    words = [str(Address(target.address, target.port)) for target in targets[:SHOWN_MAX]]
    more = len(targets) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")
