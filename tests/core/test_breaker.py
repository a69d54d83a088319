"""The breaker: its table walked whole, its window and its life against models said plainly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.core.breaker import BUCKETS, SHOWN, TRANSITIONS, Breaker, BreakerRule, Event, State, Window

RULE = BreakerRule(error_rate=0.5, min_requests=10, window=10.0, open=20.0, open_max=60.0, probes=2,
                   probe_interval=1.0, ramp=10.0)  # fmt: skip

EXPECTED = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBES_OK): State.RAMPING,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.RAMPING, Event.TRIPPED): State.OPEN,
    (State.RAMPING, Event.RAMPED): State.CLOSED,
    (State.FORCED_OPEN, Event.RELEASED): State.HALF_OPEN,
    (State.FORCED_CLOSED, Event.RELEASED): State.CLOSED,
}


def in_state(state: State, now: float = 100.0) -> Breaker:
    """A breaker that came into `state` at `now` the way it comes there in life."""
    breaker = Breaker(RULE, 0.0)
    if state in (State.FORCED_OPEN, State.FORCED_CLOSED):
        breaker.force(state is State.FORCED_OPEN, now + 50, "test", now)
    elif state is not State.CLOSED:
        breaker.trip(now if state is State.OPEN else 10.0, 0.0)
        if state in (State.HALF_OPEN, State.RAMPING):
            breaker.tick(now if state is State.HALF_OPEN else 40.0)
        if state is State.RAMPING:
            assert not breaker.note(True, now, now)
            assert breaker.note(True, now, now)
    assert breaker.state is state
    return breaker


def cause(breaker: Breaker, event: Event, now: float) -> bool:
    """Do what brings `event` about, whatever the state; whether the breaker says that it turned."""
    match event:
        case Event.TRIPPED:
            return breaker.trip(now, 0.0)
        case Event.WAITED:
            return breaker.heal(now)
        case Event.PROBES_OK:
            breaker.note(True, now, now)
            return breaker.note(True, now, now)
        case Event.PROBE_FAILED:
            return breaker.note(False, now, now) and breaker.reopen(now, 0.0)
        case Event.RAMPED:
            return breaker.state is State.RAMPING and breaker.tick(now + RULE.ramp)
        case Event.FORCED_OPEN | Event.FORCED_CLOSED:
            return breaker.force(event is Event.FORCED_OPEN, now + 5, "because", now)
        case Event.RELEASED:
            return breaker.release(now)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    forced = {Event.FORCED_OPEN: State.FORCED_OPEN, Event.FORCED_CLOSED: State.FORCED_CLOSED}
    target = EXPECTED.get((state, event)) or forced.get(event)
    assert TRANSITIONS.get((state, event)) is target
    breaker = in_state(state)
    assert cause(breaker, event, 101.0) is (target is not None)
    assert breaker.state is (target or state)
    if target is None:
        assert breaker.since == in_state(state).since


def test_what_each_state_lets_through() -> None:
    for state in State:
        breaker = in_state(state)
        passed = [breaker.admit(100.0) for _ in range(100)]
        match state:
            case State.CLOSED | State.FORCED_CLOSED:
                assert all(passed)
            case State.OPEN | State.FORCED_OPEN:
                assert not any(passed)
            case State.HALF_OPEN:
                assert passed == [True] + [False] * 99, "one probe in an interval"
                assert not breaker.admit(100.9)
                assert breaker.admit(101.0)
            case State.RAMPING:
                assert sum(passed) in (9, 10)
                assert sum(breaker.admit(105.0) for _ in range(1000)) in range(545, 556)
                assert sum(breaker.admit(109.99) for _ in range(1000)) >= 995
    assert list(SHOWN.values()) == [0, 1, 2, 3, 4, 5]


def test_open_times_double_and_never_exceed_the_most() -> None:
    breaker, now, waits = Breaker(RULE, 0.0), 0.0, []
    for chance in (0.0, 0.999, 0.0, 0.5, 0.0):
        assert breaker.trip(now, chance) or breaker.reopen(now, chance)
        waits.append(breaker.until - now)
        now = breaker.until
        assert not breaker.tick(now - 0.01)
        assert breaker.tick(now)
    assert waits == pytest.approx([20.0, 40 * (1 - 0.2 * 0.999), 60.0, 54.0, 60.0])
    assert breaker.trips == 5
    for _ in range(2):
        breaker.note(True, now, now)
    assert breaker.tick(now + RULE.ramp)
    assert breaker.state is State.CLOSED
    assert breaker.trip(now + RULE.ramp + 1, 0.0)
    assert breaker.until - breaker.since == pytest.approx(60.0), "it had been closed for a moment only"
    breaker = in_state(State.OPEN)
    breaker.heal(101.0)
    for _ in range(2):
        breaker.note(True, 101.0, 101.0)
    breaker.tick(111.0)
    assert breaker.trip(111.0 + 20, 0.0)
    assert breaker.until - breaker.since == 20.0, "it had been well for as long as it was open"


def test_what_was_sent_before_a_state_began_says_nothing_about_it() -> None:
    breaker = in_state(State.HALF_OPEN)
    assert not breaker.note(False, 99.0, 100.5)
    assert not breaker.note(True, 99.0, 100.5)
    assert not breaker.note(True, 100.0, 100.5)
    assert breaker.note(True, 100.0, 100.5)
    assert breaker.state is State.RAMPING
    breaker.note(False, 100.0, 100.6)
    assert breaker.window.total == 0


def test_a_burst_of_failures_after_a_long_silence_waits_as_if_all_had_been_well() -> None:
    breaker = Breaker(RULE, 0.0)
    for _ in range(100):
        breaker.note(False, 50.0, 50.0)
    assert not breaker.failing(50.0)
    assert not breaker.failing(54.9)
    assert breaker.failing(55.0)
    assert not breaker.failing(60.0), "and it is over once the window has forgotten it"


def test_a_forced_breaker_says_until_when_and_ends_by_itself() -> None:
    breaker = Breaker(RULE, 0.0)
    breaker.force(True, 30.0, "maintenance", 10.0)
    assert (breaker.reason, breaker.until, breaker.retry_after_s(10.5)) == ("maintenance", 30.0, 20)
    assert not breaker.tick(29.9)
    assert breaker.tick(30.0)
    assert (breaker.state, breaker.reason) == (State.HALF_OPEN, "")


Told = st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=80)


@given(Told, Told)
def test_a_window_counts_what_it_should_and_can_be_taken_out_of_another(ours: list, theirs: list) -> None:
    """In sixteenths of a second, which floats hold exactly; buckets of one second."""
    window, other = Window(float(BUCKETS), 0.0), Window(float(BUCKETS), 0.0)
    told: list[tuple[int, bool]] = []
    gaps = [(gap % 60, ok, False) for gap, ok in ours] + [(gap % 60, ok, True) for gap, ok in theirs]
    gaps.sort(key=lambda one: hash(one))
    now = 0
    for gap, ok, both in gaps:
        now += gap
        window.add(ok, now / 16)
        if both:
            other.add(ok, now / 16)
        else:
            told.append((now, ok))
    window.withdraw(other, now / 16)
    kept = [ok for at, ok in told if at // 16 > now // 16 - BUCKETS]
    assert (window.total, window.failures) == (len(kept), kept.count(False))
    assert (window.failing_since is None) is (False not in kept)


class Life(RuleBasedStateMachine):
    """A breaker beside a model of it: what it lets through, when it opens, when it asks again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.breaker = Breaker(RULE, self.now)
        self.ends: list[tuple[float, bool]] = []
        self.state = "closed"
        self.opened: list[float] = []
        self.probed: float | None = None
        self.good = 0
        self.ramped = 0.0
        self.closed_at = self.now
        self.open_s = 0.0

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 3.0, 7.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.breaker.tick(self.now)
        if self.state == "open" and self.now >= self.opened[-1] + self.open_s:
            self.state, self.probed, self.good, self.ends = "half_open", None, 0, []
        elif self.state == "ramping" and self.now >= self.ramped + RULE.ramp:
            self.state, self.closed_at = "closed", self.now

    @rule(ok=st.booleans(), times=st.integers(1, 12))
    def ended(self, ok: bool, times: int) -> None:
        for _ in range(times):
            turned = self.breaker.note(ok, self.now, self.now)
            if self.state in ("closed", "ramping"):
                self.ends.append((self.now, ok))
                if self.breaker.failing(self.now):
                    assert self.breaker.trip(self.now, 0.0)
                self._judge()
            elif self.state == "half_open":
                self.good += ok
                if not ok:
                    assert turned
                    assert self.breaker.reopen(self.now, 0.0)
                    self._opens()
                elif self.good == RULE.probes:
                    self.state, self.ramped, self.ends = "ramping", self.now, []

    @rule()
    def asks(self) -> None:
        passed = self.breaker.admit(self.now)
        if self.state == "closed":
            assert passed
        elif self.state == "open":
            assert not passed
        elif self.state == "half_open":
            assert passed is (self.probed is None or self.now >= self.probed + RULE.probe_interval)
            self.probed = self.now if passed else self.probed

    @precondition(lambda self: self.state == "open")
    @rule()
    def is_healed(self) -> None:
        assert self.breaker.heal(self.now)
        self.state, self.probed, self.good, self.ends = "half_open", None, 0, []

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state.value == self.state

    def _judge(self) -> None:
        kept = [(at, ok) for at, ok in self.ends if int(at) > int(self.now) - BUCKETS]
        bad = [at for at, ok in kept if not ok]
        since, last = None, 0.0
        for at, ok in self.ends:  # the first failure of those that followed each other within a window
            if not ok:
                since = at if since is None or int(at) - int(last) >= BUCKETS else since
                last = at
        long_enough = since is not None and self.now - since >= RULE.error_rate * RULE.window
        if len(kept) >= RULE.min_requests and len(bad) >= RULE.error_rate * len(kept) and bad and long_enough:
            self._opens()

    def _opens(self) -> None:
        rested = self.state == "closed" and self.now - self.closed_at >= self.open_s
        self.opened = [] if rested else self.opened
        self.open_s = min(RULE.open * 2 ** len(self.opened), RULE.open_max)
        self.opened.append(self.now)
        self.state = "open"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
