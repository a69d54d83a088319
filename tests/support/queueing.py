"""A simulated application and the limit before it, event by event: seconds of overload take milliseconds of test."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.core.concurrency import SAMPLES_MAX, Concurrency
from gateway.core.shedding import REFUSED_LATELY, Priority, ceilings, retry_after_s, share_in_hand

TICK_S = 0.1


@dataclass
class Source:
    """Requests of one tenant and class, `rate(t)` a second at random; or a herd of `herd` clients within the second
    `at`, each of which comes back when it is told to until it is served."""

    tenant: str
    rate: Callable[[float], float]
    priority: Priority = Priority.DEFAULT
    offered: int = 0
    refused: int = 0
    herd: int = 0
    at: float = 0.0


@dataclass
class Simulation:
    """An application of `slots(t)` requests at a time, each of `service_s(t, rng)`; further ones queue in it."""

    sources: Sequence[Source]
    slots: Callable[[float], int]
    service_s: Callable[[float, random.Random], float]
    low: int = 4
    high: int = 10_000
    seed: int = 1
    served: list[tuple[float, float]] = field(default_factory=list)
    """When, and after how long."""
    limits: list[tuple[float, float]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        rng = random.Random(self.seed)
        self.limit = Concurrency(self.low, self.high, 0.0)
        self.in_hand: Counter[str] = Counter()
        self.samples: list[float] = []
        self.peak = self.busy = self.done = self.turned = 0
        self.waiting = 0.0
        self.queue: deque[tuple[float, str]] = deque()
        self.adapt(0.0)
        events: list[tuple[float, int, str, object]] = [(0.0, 0, "tick", None)]
        order = 1
        for source in self.sources:
            order += 1
            heapq.heappush(events, (rng.expovariate(1.0) / 50, order, "arrival", source))
        for source in self.sources:
            for _ in range(source.herd):
                order += 1
                heapq.heappush(events, (source.at + rng.random(), order, "back", source))
        while events:
            now, _, kind, what = heapq.heappop(events)
            if now > seconds:
                break
            order += 1
            if kind == "tick":
                self.adapt(now)
                heapq.heappush(events, (now + TICK_S, order, "tick", None))
            elif kind == "arrival":
                assert isinstance(what, Source)
                rate = what.rate(now)
                heapq.heappush(events, (now + (rng.expovariate(rate) if rate else 0.1), order, "arrival", what))
                if rate:
                    self.arrive(what, now)
            elif kind == "back":
                assert isinstance(what, Source)
                if not self.arrive(what, now):
                    rate = max(self.peak, self.limit.limit / 2) / self.limit.latency_s if self.limit.latency_s else 0
                    after = retry_after_s(self.waiting + self.turned, rate, rng.random())
                    heapq.heappush(events, (now + after + rng.random() / 20, order, "back", what))
            else:
                began, tenant = what  # type: ignore[misc]
                self.busy -= 1
                self.in_hand[tenant] -= 1
                self.served.append((now, now - began))
                self.done += 1
                if len(self.samples) < SAMPLES_MAX:
                    self.samples.append(now - began)
            while self.queue and self.busy < self.slots(now):
                job = self.queue.popleft()
                self.busy += 1
                order += 1
                heapq.heappush(events, (now + self.service_s(now, rng), order, "done", job))

    def adapt(self, now: float) -> None:
        if self.limit.due(self.samples, now):
            self.limit.end_window(self.samples, self.done, self.peak, 0.0, now)
            self.samples, self.done, self.peak = [], 0, self.total
        self.waiting, self.turned = self.waiting * REFUSED_LATELY + self.turned, 0
        limit = self.limit.limit
        self.limits.append((now, limit))
        self.ceilings = ceilings(limit)
        self.share = share_in_hand([count for count in self.in_hand.values() if count], limit)

    @property
    def total(self) -> int:
        return self.busy + len(self.queue)

    def arrive(self, source: Source, now: float) -> bool:
        """Whether it is let in."""
        source.offered += 1
        rank = source.priority.over + (self.in_hand[source.tenant] < self.share)
        if self.total >= self.ceilings[rank]:
            source.refused += 1
            self.turned += 1
            return False
        self.in_hand[source.tenant] += 1
        self.queue.append((now, source.tenant))
        self.peak = max(self.peak, self.total)
        return True

    def goodput(self, since: float, until: float) -> float:
        return sum(since <= at < until for at, _ in self.served) / (until - since)

    def latency_s(self, since: float, until: float, quantile: float = 0.99) -> float:
        found = sorted(took for at, took in self.served if since <= at < until)
        return found[int(len(found) * quantile)]
