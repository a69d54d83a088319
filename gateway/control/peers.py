"""Judging other regions from what their gateways say. Pure; time is an argument.

Each second every gateway of every other region is asked (`peer_probes`). Three failures in a row take a gateway down,
two answers bring it back. A region's cluster is *able* if one gateway that is up and not draining said so within
`FRESH_S`, *unable* if all such gateways said unable, and the region is *unreachable* if there is no such gateway. A
region in which nobody answered yet and somebody is not yet down was never probed: it counts as able (DESIGN 5.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.core.conditions import PeerCondition
from gateway.core.peering import PeerAnswer
from gateway.core.view import Ability

FRESH_S: Final = 5.0
"""How long a gateway's word counts: five questions may go unanswered, a sixth may not."""

FAILURES_MAX: Final = 3
SUCCESSES_MIN: Final = 2


@dataclass(slots=True)
class PeerGateway:
    """One gateway of another region: one address of its hop listener."""

    up: bool = True
    good: int = 0
    bad: int = 0
    heard_at: float | None = None
    answer: PeerAnswer | None = None
    skew_s: float | None = None
    reason: str = ""

    def answered(self, answer: PeerAnswer, skew_s: float, now: float) -> bool:
        """Take in an answer with a valid signature; whether the gateway came back up."""
        self.answer, self.skew_s, self.heard_at = answer, skew_s, now
        self.good, self.bad = self.good + 1, 0
        if self.up or self.good < SUCCESSES_MIN:
            return False
        self.up, self.reason = True, ""
        return True

    def failed(self, reason: str, count: int = 1) -> bool:
        """Take in `count` failures in a row; whether the gateway went down."""
        self.good, self.bad, self.reason = 0, self.bad + count, reason
        if not self.up or self.bad < FAILURES_MAX:
            return False
        self.up = False
        return True

    @property
    def draining(self) -> bool:
        return self.answer is not None and self.answer.draining

    def speaks(self, now: float) -> bool:
        """Whether its word counts: up, not draining, heard of lately."""
        return self.up and not self.draining and self.heard_at is not None and now - self.heard_at <= FRESH_S


def judge_region(gateways: Iterable[PeerGateway], now: float) -> PeerCondition:
    """What its gateways' words amount to."""
    known = list(gateways)
    heard = any(g.heard_at is not None for g in known)
    if not known or (not heard and any(g.up for g in known)):
        return PeerCondition(probed=False, reachable=True, clusters={})
    words = [g.answer.clusters for g in known if g.answer is not None and g.speaks(now)]
    if not words:
        return PeerCondition(probed=True, reachable=False, clusters={})
    names = sorted({name for word in words for name in word})
    clusters = {
        name: Ability.ABLE if any(word.get(name) == Ability.ABLE for word in words) else Ability.UNABLE
        for name in names
    }
    said = [g.answer for g in known if g.answer is not None and g.speaks(now)]
    shares: dict[str, float] = {}
    for answer in said:  # the least that any says: one whose control has just started knows of no return
        for name, share in answer.shares.items():
            if clusters.get(name) is Ability.ABLE and answer.clusters.get(name) == Ability.ABLE:
                shares[name] = min(share, shares.get(name, 1.0))
    takes_over = any(answer.failover_mode for answer in said)
    return PeerCondition(probed=True, reachable=True, clusters=clusters, shares=shares, takes_over=takes_over)


@dataclass(slots=True)
class Peers:
    """All other regions: region to the endpoint keys of its gateways. Survives reloads, like `health.Health`."""

    regions: dict[str, dict[str, PeerGateway]] = field(default_factory=dict)

    def cover(self, endpoints: Mapping[str, Iterable[str]]) -> None:
        """Judge exactly these gateways; keep what is known of those that stay."""
        old, self.regions = self.regions, {}
        for region, keys in endpoints.items():
            known = old.get(region, {})
            self.regions[region] = {key: known.get(key) or PeerGateway() for key in keys}

    def find(self, region: str, key: str) -> PeerGateway | None:
        return self.regions.get(region, {}).get(key)

    def judge(self, now: float) -> dict[str, PeerCondition]:
        return {region: judge_region(gateways.values(), now) for region, gateways in self.regions.items()}

    def skew_s(self, region: str) -> float | None:
        """The clock skew of the region's worst gateway, with its sign; None before any answered."""
        skews = [g.skew_s for g in self.regions.get(region, {}).values() if g.skew_s is not None]
        return max(skews, key=abs, default=None)
