"""What one worker makes of how tries at a cluster end: its breakers, and whom it tells when one turns.

The rules are in `core.breaker` and `core.blame`. Here they meet the clock, the counters and the bus. Every turn is
told to control at once; what control and an operator say comes back by `force`, `release` and the View.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from gateway.bus.messages import BreakerTurned, EndpointEjected
from gateway.core.blame import Blame
from gateway.core.breaker import Breaker, BreakerRule, State
from gateway.core.errors import GatewayError
from gateway.core.outliers import Outliers

if TYPE_CHECKING:
    from gateway.core.view import Cluster
    from gateway.proxy.pool import ClusterPool, EndpointPool

NO_BREAKER: Final = BreakerRule(error_rate=2.0)
"""Where only outliers are wanted: more than everything would have to fail."""
_PASSING = frozenset((State.CLOSED, State.FORCED_CLOSED))


class Watch:
    """One cluster's, beside its pool; it survives reloads."""

    def __init__(self, pool: ClusterPool) -> None:
        self.pool = pool
        self.worker = pool.worker
        self.cluster = pool.name
        self.blame = Blame(NO_BREAKER, self.worker.now(), random.random)
        self.outliers: Outliers | None = None
        self.calm = True
        """Nothing has failed lately, nothing is refused: good answers need only be counted."""
        self._shown = (State.CLOSED, "")

    def use(self, config: Cluster) -> None:
        """Go by a new View's rules."""
        now, rule = self.worker.now(), config.breaker or NO_BREAKER
        if rule != self.blame.rule:
            self.blame.use(rule, now)
        if config.outliers is None:
            self.outliers = None
        elif self.outliers is None:
            self.outliers = Outliers(config.outliers, now)
        else:
            self.outliers.rule = config.outliers
        if self.outliers is not None:
            self.outliers.cover(endpoint.key for endpoint in config.endpoints)

    # ---- the request path

    def admit(self, tenant: str, now: float) -> Breaker | None:
        """Called before each try while some breaker is `active`: the one that refuses it, or None."""
        blame = self.blame
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
        client that left, a pooled connection that was found closed and replaced, a wait for a connection in vain. While
        the watch is `calm`, a good answer may be counted in `pool.good` instead.
        """
        blame = self.blame
        if self.calm:
            self._count(now)
        if ok and not blame.tenants and not blame.active:
            window = blame.own.window
            if now >= window.ends:
                window.advance(now)
            window.fresh += 1
        else:
            blame.note(tenant, ok, now - seconds, now)
            if blame.turns:
                self._tell(now)
        outliers = self.outliers
        if outliers is not None and tenant and outliers.note(pool.key, tenant, ok, now):
            self._ejected([pool.key], now)
        self._look()

    def _count(self, now: float) -> None:
        """Take in what was only counted."""
        window, outliers = self.blame.own.window, self.outliers
        window.advance(now)
        for pool in self.pool.endpoints.values():
            if pool.good:
                window.fresh += pool.good
                if outliers is not None:
                    outliers.count(pool.key, pool.good)
                pool.good = 0

    def _look(self) -> None:
        blame, outliers = self.blame, self.outliers
        self.calm = not (blame.tenants or blame.active) and (outliers is None or outliers.calm)

    # ---- time, control and operators

    def sweep(self, now: float) -> None:
        """Ten times a second."""
        if self.calm:
            self._count(now)
        self.blame.tick(now)
        if self.blame.turns or self._shown[0] is not State.CLOSED:
            self._tell(now)
        outliers = self.outliers
        if outliers is not None:
            if ejected := outliers.tick(now):
                self._ejected(ejected, now)
            if outliers.back:
                back, outliers.back = outliers.back, []
                self.pool.refresh(back)
                for key in back:
                    self.worker.tell(EndpointEjected(self.cluster, key))
        self._look()

    def _ejected(self, keys: list[str], now: float) -> None:
        outliers = self.outliers
        assert outliers is not None
        self.pool.refresh(())
        for key in keys:
            self.worker.meters.count("landbridge_ejections_total", (("cluster", self.cluster),))
            self.worker.tell(EndpointEjected(self.cluster, key, outliers.out[key] - now, outliers.why(key)))

    def heal(self, now: float) -> None:
        """Control found endpoints well again: ask at once."""
        self.blame.heal(now)

    def force(self, tenant: str, is_open: bool, left_s: float, reason: str, now: float) -> None:
        """An operator's word for so many seconds."""
        if self.calm:
            self._count(now)
        self.blame.force(tenant, is_open, now + left_s, reason, now)
        self._look()
        self._tell(now)

    def release(self, tenant: str, now: float) -> None:
        """The operator takes it back."""
        self.blame.release(tenant, now)
        self._look()
        self._tell(now)

    def all_turned(self, now: float) -> list[BreakerTurned]:
        """Everything that is not closed: for a control that knows nothing yet."""
        found = [self._turned(name, mine, now) for name, mine in self.blame.tenants.items()]
        found.append(self._turned("", self.blame.own, now))
        return [turned for turned in found if turned.state != State.CLOSED.value]

    def all_ejected(self, now: float) -> list[EndpointEjected]:
        outliers = self.outliers
        if outliers is None:
            return []
        return [EndpointEjected(self.cluster, k, until - now, outliers.why(k)) for k, until in outliers.out.items()]

    def _tell(self, now: float) -> None:
        blame = self.blame
        turns, blame.turns = blame.turns, []
        for turn in turns:
            scope = "tenant" if turn.tenant else "cluster"
            labels = (("cluster", self.cluster), ("scope", scope), ("state", turn.state.value))
            self.worker.meters.count("landbridge_breaker_turns_total", labels)
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
