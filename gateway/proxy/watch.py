"""What one worker makes of how tries at a cluster end: its breakers, and whom it tells when one turns.

The rules are in `core.breaker` and `core.blame`. Here they meet the clock, the counters and the bus. Every turn is
told to control at once; what control and an operator say comes back by `force`, `release` and the View.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from gateway.bus.messages import BreakerTurned
from gateway.core.blame import Blame
from gateway.core.breaker import Breaker, BreakerRule, State
from gateway.core.errors import GatewayError

if TYPE_CHECKING:
    from gateway.proxy.pool import EndpointPool
    from gateway.proxy.worker import Worker

_PASSING = frozenset((State.CLOSED, State.FORCED_CLOSED))


class Watch:
    """One cluster's, beside its pool; it survives reloads."""

    def __init__(self, worker: Worker, cluster: str, rule: BreakerRule) -> None:
        self.worker = worker
        self.cluster = cluster
        self.blame = Blame(rule, worker.now(), random.random)
        self._shown = (State.CLOSED, "")

    def use(self, rule: BreakerRule) -> None:
        """Go by a new View's rule."""
        if rule != self.blame.rule:
            self.blame.use(rule, self.worker.now())

    # ---- the request path

    def admit(self, tenant: str, now: float) -> Breaker | None:
        """Called before each try: the breaker that refuses it, or None."""
        blame = self.blame
        if not blame.active:
            return None
        refusing = blame.refusing(tenant, now)
        if refusing is not None:
            scope = "cluster" if refusing is blame.own else "tenant"
            labels = (("cluster", self.cluster), ("scope", scope))
            self.worker.meters.count("landbridge_breaker_refused_total", labels)
        return refusing

    def may_retry(self, tenant: str) -> bool:
        """Whether a failed try may be followed by another: never where a breaker is not closed."""
        blame = self.blame
        mine = blame.tenants.get(tenant)
        return blame.own.state in _PASSING and (mine is None or mine.state in _PASSING)

    def note(self, pool: EndpointPool, tenant: str, ok: bool, seconds: float, now: float) -> None:
        """One try ended: told once for each, at the response's head or when there will be none.

        Not ok: status 500 and above, reset, timeout, malformed, no connection (then `tenant` is ""). Never told: a
        client that left, a pooled connection that was found closed and replaced, a wait for a connection in vain.
        """
        blame = self.blame
        blame.note(tenant, ok, now - seconds, now)
        if blame.turns:
            self._tell(now)

    # ---- time, control and operators

    def sweep(self, now: float) -> None:
        """Ten times a second."""
        self.blame.tick(now)
        if self.blame.turns or self._shown[0] is not State.CLOSED:
            self._tell(now)

    def heal(self, now: float) -> None:
        """Control found endpoints well again: ask at once."""
        self.blame.heal(now)

    def force(self, tenant: str, is_open: bool, left_s: float, reason: str, now: float) -> None:
        """An operator's word for so many seconds."""
        self.blame.force(tenant, is_open, now + left_s, reason, now)
        self._tell(now)

    def release(self, tenant: str, now: float) -> None:
        """The operator takes it back."""
        self.blame.release(tenant, now)
        self._tell(now)

    def all_turned(self, now: float) -> list[BreakerTurned]:
        """Everything that is not closed: for a control that knows nothing yet."""
        found = [self._turned(name, mine, now) for name, mine in self.blame.tenants.items()]
        found.append(self._turned("", self.blame.own, now))
        return [turned for turned in found if turned.state != State.CLOSED.value]

    def _tell(self, now: float) -> None:
        blame = self.blame
        turns, blame.turns = blame.turns, []
        for tenant in dict.fromkeys(turn.tenant for turn in turns if turn.tenant):
            mine = blame.tenants.get(tenant)
            turned = BreakerTurned(self.cluster, tenant) if mine is None else self._turned(tenant, mine, now)
            self.worker.tell(turned)
        only = blame.sole() or ""
        shown = (blame.tenants[only].state if only else blame.own.state, only)
        if shown != self._shown or any(not turn.tenant for turn in turns):
            self._shown = shown
            self.worker.tell(self._turned("", blame.tenants[only] if only else blame.own, now, only))

    def _turned(self, tenant: str, breaker: Breaker, now: float, only: str = "") -> BreakerTurned:
        left_s = max(0.0, breaker.until - now)
        return BreakerTurned(self.cluster, tenant, breaker.state.value, left_s, breaker.trips, breaker.reason, only)


def refusal(breaker: Breaker, watch: Watch) -> GatewayError:
    """What a client hears of a breaker."""
    if breaker.reason:
        return GatewayError("breaker_open", "an operator has opened the application's breaker")
    whose = "the application's" if breaker is watch.blame.own else "this tenant's"
    return GatewayError("breaker_open", f"too many of {whose} requests failed: its breaker is open")
