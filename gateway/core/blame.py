"""Whose errors are they: one tenant's, or the cluster's? One breaker for a cluster, and one for each tenant that fails.

A tenant whose own requests fail opens its own breaker. The cluster's opens only by what is left without such tenants,
and without the one that fails most besides them; or when nobody at all is left who gets an answer. So a tenant that
breaks whatever it touches never takes the others down, and an application that is gone is not asked by anybody.
What happened before there was anything to blame a tenant for (no connection) counts for the cluster alone.

A tenant gets a breaker with its first failure and loses it when it fails no more: memory is bounded by TENANTS_MAX.
Pure: `now` is monotonic seconds, `rng` is in [0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.core.breaker import Breaker, BreakerRule, State

TENANTS_MAX: Final = 1000
"""Tenants of one cluster with a breaker, about 1 KiB each: where more than that fail, it is no tenant's fault."""

JUDGE_EVERY_S: Final = 0.02
"""How often a cluster that fails is judged: it takes a look at every failing tenant."""

OTHERS_MIN: Final = 3
"""Tries of others that have to fail as well before one big tenant's failure counts as everybody's."""

_CLOSED: Final = State.CLOSED
_PASSING: Final = frozenset((State.CLOSED, State.FORCED_CLOSED))
_BLAMED: Final = frozenset((State.OPEN, State.HALF_OPEN))
_FORCED: Final = frozenset((State.FORCED_OPEN, State.FORCED_CLOSED))
_SILENT: Final = frozenset((State.OPEN, State.HALF_OPEN, State.FORCED_OPEN))
"""While the cluster's own breaker is so, nothing that a try brings says anything about its tenant."""


class Turn(NamedTuple):
    """A breaker changed. `tenant` is "" for the cluster's own."""

    tenant: str
    state: State


class Blame:
    """The breakers of one cluster in one worker. `turns` collects what changed, for the owner to take."""

    __slots__ = ("_judged_at", "_rng", "_unproved", "active", "own", "rule", "tenants", "turns")

    def __init__(self, rule: BreakerRule, now: float, rng: Callable[[], float]) -> None:
        self.rule = rule
        self.own = Breaker(rule, now)
        self.tenants: dict[str, Breaker] = {}
        self.active = 0
        """Breakers that are not closed: while there is none, nobody has to be asked."""
        self.turns: list[Turn] = []
        self._rng = rng
        self._judged_at = now
        self._unproved = ""

    def use(self, rule: BreakerRule, now: float) -> None:
        """Go by another rule from now on."""
        self.rule = rule
        for breaker in (self.own, *self.tenants.values()):
            breaker.use(rule, now)

    # ---- before a try

    def refusing(self, tenant: str, now: float) -> Breaker | None:
        """The breaker that keeps this request from passing, or None."""
        if not self.active:
            return None
        mine = self.tenants.get(tenant)
        own = self.own
        if own.state is State.HALF_OPEN and tenant and tenant == self._unproved:
            # It was this tenant's request that failed as the last probe: others first, for a moment.
            if now < own.since + 2 * self.rule.probe_interval:
                return own
        if mine is not None and mine.state is not _CLOSED and not mine.admit(now):
            return mine
        if own.state is not _CLOSED and not own.admit(now):
            return own
        return None

    # ---- after it

    def note(self, tenant: str, ok: bool, began: float, now: float) -> None:
        """A try that was sent at `began` ended. `tenant` is "" where it cannot have been the tenant's doing."""
        own = self.own
        mine = self.tenants.get(tenant) if self.tenants else None
        if mine is not None and mine.state is not _CLOSED:  # it answers for itself, and says nothing of the cluster
            self._tell(tenant, mine, ok, began, now)
            return
        if own.state is _CLOSED:
            own.window.add(ok, now)
        else:
            if not ok and own.state is State.HALF_OPEN and began >= own.since:
                self._unproved = tenant
            self._tell("", own, ok, began, now)
            if own.state in _SILENT:
                return
        if mine is not None:
            mine.note(ok, began, now)
        if not ok:
            self._failed(tenant, mine, now)

    def _tell(self, tenant: str, breaker: Breaker, ok: bool, began: float, now: float) -> None:
        if breaker.note(ok, began, now):
            if not ok:
                breaker.reopen(now, self._rng())
            self._turned(tenant, breaker)
        elif not ok and tenant and breaker.failing(now) and breaker.trip(now, self._rng()):
            self._turned(tenant, breaker)

    def _failed(self, tenant: str, mine: Breaker | None, now: float) -> None:
        if tenant:
            if mine is None and (mine := self._new(tenant, now)) is not None:
                mine.window.add(False, now)
            if mine is not None and mine.failing(now):
                self.own.window.withdraw(mine.window, now)
                mine.trip(now, self._rng())
                self._turned(tenant, mine)
        if now - self._judged_at >= JUDGE_EVERY_S:
            self._judge(now)

    def _new(self, tenant: str, now: float) -> Breaker | None:
        if len(self.tenants) >= TENANTS_MAX:
            oldest = next((name for name, breaker in self.tenants.items() if breaker.state is _CLOSED), None)
            if oldest is None:
                return None
            del self.tenants[oldest]
        mine = self.tenants[tenant] = Breaker(self.rule, now)
        return mine

    def tick(self, now: float) -> None:
        """What time alone changes; call it a few times a second."""
        own = self.own
        if own.tick(now):
            self._turned("", own)
        own.window.advance(now)
        gone = []
        for tenant, mine in self.tenants.items():
            if mine.tick(now):
                self._turned(tenant, mine)
            mine.window.advance(now)
            if mine.state is _CLOSED and not mine.window.failures:
                gone.append(tenant)
        for tenant in gone:
            del self.tenants[tenant]
        if self.tenants or own.window.failures:
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Trip the cluster's own breaker when it is not single tenants that fail."""
        self._judged_at = now
        own = self.own
        if own.state is not _CLOSED and own.state is not State.RAMPING:
            return
        own.window.advance(now)
        total, failures, worst_total, worst_failures, blamed = own.window.total, own.window.failures, 0, 0, 0
        if failures < self.rule.error_rate * total or not (total or self.active):
            return
        for mine in self.tenants.values():
            window = mine.window
            if mine.state is not _CLOSED:
                blamed += mine.state in _BLAMED
            elif mine.failing(now):
                blamed += 1
                total -= window.total
                failures -= window.failures
            elif window.failures > worst_failures:
                worst_total, worst_failures = window.total, window.failures
        if self._is_spread(now, total, failures, total - worst_total, failures - worst_failures, blamed):
            for tenant in [tenant for tenant, mine in self.tenants.items() if mine.state not in _FORCED]:
                mine = self.tenants.pop(tenant)
                if mine.state is not _CLOSED:  # one breaker has to let it back in, not two
                    self.turns.append(Turn(tenant, _CLOSED))
            own.trip(now, self._rng())
            self._turned("", own)

    def _is_spread(
        self, now: float, total: int, failures: int, rest_total: int, rest_failures: int, blamed: int
    ) -> bool:
        """`total` and `failures` are without the blamed tenants, `rest_…` also without the worst of the others."""
        rate = self.rule.error_rate
        if blamed >= 2 and failures >= rate * total:
            return True
        if blamed == 1 and total >= OTHERS_MIN and failures >= rate * total:
            return True
        since = self.own.window.failing_since
        long_enough = since is not None and now - since >= rate * self.rule.window
        return long_enough and rest_total >= self.rule.min_requests and rest_failures >= rate * rest_total

    # ---- an operator, or control

    def force(self, tenant: str, is_open: bool, until: float, reason: str, now: float) -> None:
        """Hold a breaker open or closed until then; "" is the cluster's own."""
        breaker = self.own if not tenant else self.tenants.get(tenant)
        if breaker is None:
            breaker = self.tenants[tenant] = Breaker(self.rule, now)
        breaker.force(is_open, until, reason, now)
        self._turned(tenant, breaker)

    def release(self, tenant: str, now: float) -> None:
        """End a forced state; also an open one is to be asked again at once."""
        breaker = self.own if not tenant else self.tenants.get(tenant)
        if breaker is not None and (breaker.release(now) or breaker.heal(now)):
            self._turned(tenant, breaker)

    def heal(self, now: float) -> None:
        """Somebody else found the cluster well again."""
        if self.own.heal(now):
            self._turned("", self.own)

    # ---- what is shown

    def sole(self) -> str | None:
        """The tenant that all tries of late were of, where its breaker is not closed: what is shown is the same then.

        Nobody else asked, so nothing is known of others, and others are not refused.
        """
        if self.own.state is not _CLOSED or self.active != 1:
            return None
        if self.own.window.total:
            return None
        return next((name for name, mine in self.tenants.items() if mine.state not in _PASSING), None)

    def _turned(self, tenant: str, breaker: Breaker) -> None:
        self.turns.append(Turn(tenant, breaker.state))
        self.active = (self.own.state is not _CLOSED) + sum(b.state is not _CLOSED for b in self.tenants.values())
