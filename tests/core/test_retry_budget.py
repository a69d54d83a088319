"""The budget holds: never more retries than the share of the requests, over any stretch, however it begins."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.core.retry_budget import EARNED, RESERVE_MIN, Budget

SHARES = st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.2, 0.5, 1.0])
REQUEST, RETRY, SECOND = "request", "retry", "second"


class Model:
    """The same by hand: every request is booked when it comes, in fractions, and every event is remembered."""

    def __init__(self, share: float) -> None:
        self.has = Fraction(RESERVE_MIN if share else 0)
        self.of_last_second = self.of_this_second = 0
        self.share = Fraction(0)
        self.use(share)

    def use(self, share: float) -> None:
        wanted = Fraction(share).limit_denominator(1000)
        if wanted != self.share:
            self.share = wanted
            self.of_last_second = 0
            self.has = min(self.has, self.most())

    def most(self) -> Fraction:
        reserve = Fraction(4, 5) * self.share * self.of_last_second
        return max(reserve, Fraction(RESERVE_MIN)) if self.share else Fraction(0)

    def request(self) -> None:
        self.of_this_second += 1
        self.has = min(self.has + Fraction(4, 5) * self.share, self.most())

    def retry(self) -> bool:
        if self.has < 1:
            return False
        self.has -= 1
        return True

    def second(self) -> None:
        self.of_last_second, self.of_this_second = self.of_this_second, 0
        self.has = min(self.has, self.most())


class Budgets(RuleBasedStateMachine):
    @initialize(share=SHARES)
    def begin(self, share: float) -> None:
        self.budget, self.model = Budget(share), Model(share)

    @rule(count=st.integers(1, 400))
    def requests(self, count: int) -> None:
        self.budget.requests += count
        for _ in range(count):
            self.model.request()

    @rule(count=st.integers(1, 12))
    def retries(self, count: int) -> None:
        for _ in range(count):
            assert self.budget.withdraw() == self.model.retry()

    @rule()
    def second(self) -> None:
        self.budget.turn()
        self.model.second()

    @rule(share=SHARES)
    def reload(self, share: float) -> None:
        self.budget.use(share)
        self.model.use(share)

    @invariant()
    def holds_the_same(self) -> None:
        if hasattr(self, "budget"):
            assert abs(self.budget.left - float(self.model.has)) < 1e-6, self.budget


Budgets.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBudgets = Budgets.TestCase

EVENTS = st.lists(st.sampled_from([(REQUEST, 1), (REQUEST, 30), (REQUEST, 300), (RETRY, 1), (RETRY, 40), (SECOND, 1)]))


@given(share=SHARES, events=EVENTS)
@settings(max_examples=300, deadline=None)
def test_no_stretch_holds_more_than_what_it_earned_and_a_second_s_worth(share: float, events: list[tuple[str, int]]):
    """Every stretch from one event to a later one, not only those from the beginning."""
    budget = Budget(share)
    sent, retried, busiest, this_second = [0], [0], 0, 0
    for what, count in events:
        made = 0
        if what == REQUEST:
            budget.requests += count
            this_second += count
        elif what == RETRY:
            made = sum(budget.withdraw() for _ in range(count))
        else:
            budget.turn()
            busiest, this_second = max(busiest, this_second), 0
        sent.append(sent[-1] + count * (what == REQUEST))
        retried.append(retried[-1] + made)
    reserve = max(RESERVE_MIN, EARNED * share * busiest) if share else 0
    excess = [float(r - EARNED * share * s) for r, s in zip(retried, sent, strict=True)]
    lowest = list(accumulate(excess, min))
    assert max(now - low for now, low in zip(excess, lowest, strict=True)) <= reserve + 1e-6
    for start in range(len(sent)):  # and so, once it is long enough, no more than the share
        for end in range(start, len(sent)):
            requests = sent[end] - sent[start]
            if requests >= max(4 * busiest, RESERVE_MIN / max(share, 1e-9) / (1 - EARNED)):
                assert retried[end] - retried[start] <= share * requests + 1e-6


def test_a_storm_after_a_busy_calm_is_within_a_tenth_after_four_seconds():
    """Everything fails at 1,000/s and asks for three retries each time: counted for an hour, and at 30 percent."""
    for every in (1, 3):
        budget = Budget(0.1)
        for _ in range(60):
            budget.requests += 1000
            budget.turn()
        requests = retries = 0
        for second in range(1, 3601):
            for number in range(1000):
                budget.requests += 1
                if number % every == 0:
                    retries += sum(budget.withdraw() for _ in range(3))
            budget.turn()
            requests += 1000
            if second >= 4:
                assert retries <= 0.1 * requests
        assert retries > 0.079 * requests, "and it is used"


def test_everything_in_hand_may_be_retried_when_an_application_dies():
    budget = Budget(0.1)
    for _ in range(3):
        budget.requests += 500
        budget.turn()
    assert sum(budget.withdraw() for _ in range(500)) == 40


def test_a_quiet_cluster_has_a_few_and_no_share_has_none():
    quiet = Budget(0.1)
    assert sum(quiet.withdraw() for _ in range(10)) == RESERVE_MIN
    assert not Budget(0.0).withdraw()
    budget = Budget(0.0)
    budget.requests += 1000
    budget.turn()
    assert not budget.withdraw()
