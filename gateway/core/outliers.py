"""Which endpoints of a cluster get no requests for a while, because they answer worse than the others (after Envoy).

An endpoint is ejected when `consecutive_errors` of its answers in a row were failures, while tenants of those were
answered elsewhere or several failed here: what fails everywhere is no endpoint's fault, but the breaker's matter. It is
also ejected when over an `interval` its success rate lies `stdev` standard deviations below the mean of all. For how
long grows with each time, and shrinks with each interval that it is well. Never are more than `max_fraction` ejected,
and never the last one; and where too few would be left, all are used: a bad answer is better than none.

Pure: `now` is monotonic seconds. Connect failures are counted elsewhere: those concern the whole gateway at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

TENANTS_MIN: Final = 3
"""Different tenants in one streak that tell, without any of them being answered elsewhere, that it is the endpoint."""

HOSTS_MIN: Final = 5
"""Endpoints with enough requests, before their success rates are compared: of fewer none can lie so far off."""

GAP_MIN: Final = 0.05
"""A rate that is nearer to the mean is as good as the others', however much alike those are."""

REMEMBERED_MAX: Final = 1000
"""Tenants of whom it is remembered when they were last answered."""

TIMES_MAX: Final = 100
"""How often counts: beyond it `eject_max` has long been reached."""


@dataclass(frozen=True, slots=True)
class OutlierRule:
    """Seconds, counts and fractions. `connect_failures` in a row mark an endpoint down for the whole gateway.

    `requests_min`: an interval's requests of an endpoint, one worker's, below which its success rate tells nothing.
    """

    connect_failures: int = 3
    consecutive_errors: int = 5
    eject: float = 30.0
    eject_max: float = 300.0
    max_fraction: float = 0.5
    panic_fraction: float = 0.3
    interval: float = 10.0
    requests_min: int = 100
    stdev: float = 1.9


@dataclass(slots=True)
class _Seen:
    """One endpoint. `streak`: failures in a row since `began`, of `tenants`. `until`: ejected (0: it is not), for the
    `times`th time; `was_out`: at some time of this interval."""

    streak: int = 0
    began: float = 0.0
    tenants: set[str] = field(default_factory=set)
    total: int = 0
    failures: int = 0
    until: float = 0.0
    times: int = 0
    was_out: bool = False
    why: str = ""


class Outliers:
    """One cluster's endpoints in one worker, by key. `out` are those that are ejected now."""

    __slots__ = ("_interval_ends", "_ok_at", "_seen", "back", "out", "rule")

    def __init__(self, rule: OutlierRule, now: float) -> None:
        self.rule = rule
        self.out: dict[str, float] = {}
        """Key to when it may come back."""
        self.back: list[str] = []
        """Keys that came back since somebody looked."""
        self._seen: dict[str, _Seen] = {}
        self._interval_ends = now + rule.interval
        self._ok_at: dict[str, float] = {}

    def cover(self, keys: Iterable[str]) -> None:
        """Judge exactly these endpoints."""
        self._seen = {key: self._seen.get(key) or _Seen() for key in keys}
        self.out = {key: until for key, until in self.out.items() if key in self._seen}

    def why(self, key: str) -> str:
        return self._seen[key].why if key in self._seen else ""

    @property
    def calm(self) -> bool:
        """Whether nobody has failed lately: then good answers need only be counted."""
        return not self._ok_at

    def count(self, key: str, good: int) -> None:
        """So many good answers of an endpoint came while all was calm."""
        if (seen := self._seen.get(key)) is not None:
            seen.total += good

    def note(self, key: str, tenant: str, ok: bool, now: float) -> bool:
        """An answer of an endpoint, or what came instead; whether it is ejected for that."""
        seen = self._seen.get(key)
        if seen is None:
            return False
        seen.total += 1
        if ok:
            if self._ok_at:  # it is empty while nobody has failed lately, and then there is no streak
                seen.streak = 0
                seen.tenants.clear()
                self._remember(tenant, now)
            return False
        seen.failures += 1
        if not seen.streak:
            seen.began = now
        seen.streak += 1
        if len(seen.tenants) < TENANTS_MIN:
            if len(self._ok_at) >= REMEMBERED_MAX:
                self._ok_at.clear()
            seen.tenants.add(tenant)
            self._ok_at.setdefault(tenant, 0.0)  # from now on it is remembered when it is answered
        if seen.streak < self.rule.consecutive_errors or seen.until or not self._is_to_blame(seen):
            return False
        return self._eject(key, seen, f"{seen.streak} errors in a row", now)

    def _remember(self, tenant: str, now: float) -> None:
        if tenant in self._ok_at:
            self._ok_at[tenant] = now
        self._ok_at[""] = now

    def _is_to_blame(self, seen: _Seen) -> bool:
        """Whether a tenant of the streak, or with several of them anybody, was answered elsewhere since it began."""
        known = self._ok_at
        if any(known.get(tenant, 0.0) >= seen.began for tenant in seen.tenants):
            return True
        return len(seen.tenants) >= TENANTS_MIN and known.get("", 0.0) >= seen.began

    def _eject(self, key: str, seen: _Seen, why: str, now: float) -> bool:
        allowed = min(int(len(self._seen) * self.rule.max_fraction), len(self._seen) - 1)
        if len(self.out) >= allowed:
            return False
        seen.times = min(seen.times + 1, TIMES_MAX)
        seen.until = self.out[key] = now + min(self.rule.eject * seen.times, self.rule.eject_max)
        seen.why, seen.was_out = why, True
        seen.streak = 0
        seen.tenants.clear()
        return True

    def tick(self, now: float) -> list[str]:
        """What time changes, a few times a second: who comes back (also in `back`); the keys ejected by rate."""
        for key in [key for key, until in self.out.items() if now >= until]:
            del self.out[key]
            seen = self._seen[key]
            seen.until, seen.why, seen.total, seen.failures = 0.0, "", 0, 0
            self.back.append(key)
        if now < self._interval_ends:
            return []
        self._interval_ends = now + self.rule.interval
        ejected = [key for key in self._slow_ones() if self._eject(key, self._seen[key], "its success rate", now)]
        failing = False
        for seen in self._seen.values():
            if not (seen.until or seen.failures or seen.was_out):
                seen.times = max(0, seen.times - 1)
            seen.was_out = bool(seen.until)
            failing |= bool(seen.failures or seen.until)
            seen.total = seen.failures = 0
        if not failing:
            self._ok_at.clear()
            for seen in self._seen.values():
                seen.streak = 0
                seen.tenants.clear()
        return ejected

    def _slow_ones(self) -> list[str]:
        """Endpoints whose success rate is an outlier's, the worst first."""
        rates = {
            key: 1 - seen.failures / seen.total
            for key, seen in self._seen.items()
            if seen.total >= self.rule.requests_min and not seen.until
        }
        if len(rates) < HOSTS_MIN or not self.rule.stdev:
            return []
        mean = sum(rates.values()) / len(rates)
        deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
        threshold = mean - max(self.rule.stdev * deviation, GAP_MIN)
        return sorted((key for key, rate in rates.items() if rate < threshold), key=lambda key: (rates[key], key))

    def usable(self, keys: Collection[str]) -> frozenset[str]:
        """Which of these (those that are up) to use: all of them where too few of the cluster's would be left."""
        left = frozenset(key for key in keys if key not in self.out)
        return left if left and len(left) >= self.rule.panic_fraction * len(self._seen) else frozenset(keys)
