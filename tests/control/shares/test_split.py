"""A gateway's shares among its workers: never more than its own together, whatever is on its way between them."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.bus.messages import Demands, KeyDemand, Shares
from gateway.control.shares.split import Split
from gateway.core.shares import FLOOR

KEY = "t:acme"


class Worker:
    """What a worker's limiter makes of its messages, which arrive in their order, some time."""

    def __init__(self, equal: float) -> None:
        self.equal = equal
        self.share: float | None = None
        self.seq = 0
        self.inbox: deque[Shares] = deque()
        self.demand = 0.0

    @property
    def holds(self) -> float:
        return self.equal if self.share is None else self.share

    def read(self) -> None:
        message = self.inbox.popleft()
        self.seq, self.equal = message.seq, message.equal
        if KEY in message.cold:
            self.share = None
        self.share = message.keys.get(KEY, self.share)

    def report(self) -> Demands:
        rows = (KeyDemand(KEY, self.holds, self.demand, 0),) if self.demand else ()
        return Demands(self.seq, rows)


class Gateway(RuleBasedStateMachine):
    """The gateway's part moves as the region says; workers read and report when they like."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.split = Split()
        self.now = 0.0
        self.total = 1.0
        self.floor = FLOOR / count
        self.workers = {n: Worker(1.0 / count) for n in range(count)}
        for n in self.workers:
            self.split.come(n, 1.0 / count, 1.0 / count, self.now)
        self.bound = 1.0

    @rule(number=st.integers(0, 3), demand=st.sampled_from([0.0, 0.02, 0.3, 2.0]))
    def ask(self, number: int, demand: float) -> None:
        self.workers[number % len(self.workers)].demand = demand

    @rule(number=st.integers(0, 3))
    def report(self, number: int) -> None:
        number %= len(self.workers)
        self.split.heard(number, self.workers[number].report(), self.now)

    @rule(number=st.integers(0, 3))
    def read(self, number: int) -> None:
        worker = self.workers[number % len(self.workers)]
        if worker.inbox:
            worker.read()

    @rule(total=st.sampled_from([1.0, 0.9, 0.4, 0.1]))
    def another_part(self, total: float) -> None:
        """As the keeper: it counts as holding the old part until the workers have said that they hold less."""
        self.total = total

    @rule(seconds=st.sampled_from([0.05, 0.1, 0.5]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        for who, message in self.split.divide({KEY: self.total}, 1.0, self.floor, self.now):
            self.workers[who].inbox.append(message)  # type: ignore[index]

    @rule()
    def all_is_said(self) -> None:
        """Everything on its way arrives, twice over: then the workers hold the gateway's part and no more."""
        for _ in range(4):
            self.tick(0.1)
            for number, worker in self.workers.items():
                while worker.inbox:
                    worker.read()
                self.split.heard(number, worker.report(), self.now)
        held = sum(worker.holds for worker in self.workers.values())
        assert held <= self.total + FLOOR + 0.01
        assert held >= self.total * 0.8 - 0.01  # more, once demands stand still

    @invariant()
    def what_is_reported_covers_what_is_held(self) -> None:
        """The region counts on it: whatever the workers may spend is in the report."""
        if hasattr(self, "workers"):
            reports = self.split.reports()
            if KEY in reports:
                assert reports[KEY].held >= sum(worker.holds for worker in self.workers.values()) - 1e-9


Gateway.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestGateway = Gateway.TestCase


def test_a_new_control_takes_over_what_an_earlier_one_gave() -> None:
    split = Split()
    for who, share in (("a", 0.9), ("b", 0.05)):
        split.come(who, 0.5, 0.5, 0.0)
        split.heard(who, Demands(7, (KeyDemand(KEY, share, 0.9, 3),)), 0.0)
    assert split.reports()[KEY].held == pytest.approx(0.95)
    assert split.refused == {KEY: 6}
    told = dict(split.divide({KEY: 1.0}, 1.0, FLOOR / 2, 0.1))
    assert told["b"].keys[KEY] == pytest.approx(0.1), "the other one has to let go first"  # type: ignore[index]
    assert told["a"].keys[KEY] == pytest.approx(0.5)  # type: ignore[index]


def test_a_worker_that_is_gone_holds_nothing() -> None:
    split = Split()
    for who in "ab":
        split.come(who, 0.5, 0.5, 0.0)
        split.heard(who, Demands(0, (KeyDemand(KEY, 0.5, 2.0, 0),)), 0.0)
    split.leave("b")
    (told,) = [message for _, message in split.divide({KEY: 1.0}, 1.0, FLOOR, 0.1)]
    assert (told.keys, told.equal, told.own) == ({KEY: 1.0}, 1.0, 1.0)


def test_one_that_says_nothing_is_asked_for_nothing() -> None:
    split = Split()
    for who in "ab":
        split.come(who, 0.5, 0.5, 0.0)
        split.heard(who, Demands(0, (KeyDemand(KEY, 0.5, 2.0, 0),)), 0.0)
    now = 0.0
    for _ in range(60):
        now += 0.1
        list(split.divide({KEY: 1.0}, 1.0, FLOOR / 2, now))
    assert split.demand(KEY) == 0.0
