"""A cluster that fails and comes back as it likes, against what is promised of it: a Hypothesis state machine."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.control.health import BY_CONNECT, HOLD_MAX_S, RELAPSE_S, REST_S, ClusterHealth, EndpointHealth
from gateway.core.ramp import RETURN_S, SHARE_FIRST

KEYS = ("a", "b")
TICK_S = 0.25


class Returning(RuleBasedStateMachine):
    """The model keeps since when the cluster was good without a break, and whether it ever was not."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = ClusterHealth(BY_CONNECT, {key: EndpointHealth() for key in KEYS})
        self.now = 100.0
        self.broken = False
        self.good_since: float | None = 0.0
        self.was_down = False
        self.failed: list[float] = []
        self.shares: list[float] = []

    def settle(self) -> None:
        good = not self.broken and any(endpoint.up for endpoint in self.cluster.endpoints.values())
        served = self.cluster.can_serve
        self.cluster.settle(self.now, self.broken)
        if not good:
            if served:
                self.failed.append(self.now)
            self.good_since, self.was_down = None, True
            self.shares.clear()
        elif self.good_since is None:
            self.good_since = self.now

    @rule(key=st.sampled_from(KEYS), up=st.booleans())
    def turn(self, key: str, up: bool) -> None:
        self.cluster.endpoints[key].up = up
        self.settle()

    @rule(broken=st.booleans())
    def breakers(self, broken: bool) -> None:
        self.broken = broken
        self.settle()

    @rule(ticks=st.integers(1, 400))
    def wait(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += TICK_S
            self.settle()
            if self.cluster.can_serve:
                self.shares.append(self.cluster.share(self.now))

    @invariant()
    def it_serves_when_it_can_and_soon(self) -> None:
        if self.good_since is None:
            assert not self.cluster.can_serve
        elif self.now - self.good_since >= REST_S + TICK_S:
            assert self.cluster.can_serve

    @invariant()
    def it_comes_back_by_a_ramp(self) -> None:
        share = self.cluster.share(self.now)
        assert 0.0 <= share <= 1.0
        assert self.shares == sorted(self.shares), "while it serves nobody is sent away again"
        if not self.was_down:
            assert share == 1.0
        elif self.cluster.can_serve and self.good_since is not None:
            stood = self.now - self.good_since
            if stood < RETURN_S:
                assert share < 1.0, "nobody comes back all at once"
            if stood >= REST_S + HOLD_MAX_S + RETURN_S + TICK_S:
                assert share == 1.0, "it does not stay away for ever"

    @invariant()
    def one_failure_holds_nobody_back(self) -> None:
        recent = [at for at in self.failed if self.now - at < 2 * RELAPSE_S + REST_S]
        if len(self.failed) == 1 and recent and self.cluster.can_serve and self.cluster.back_at is not None:
            assert self.cluster.share(self.now) >= SHARE_FIRST


TestReturning = Returning.TestCase
TestReturning.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
