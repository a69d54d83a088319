"""One gateway's shares among its workers: who is asked for what, who may hold what, and who still holds more.

Pure; time is an argument. Workers report what they are asked for, smoothed here; what is theirs goes to them in
`Shares`. A worker that is told to hold less counts with its old share until it says that it goes by the new one, so
the workers' shares together never exceed the gateway's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.bus.messages import Demands, Shares
from gateway.core.shares import Report, grant, targets

SMOOTHING: Final = 0.3
"""How much the last tenth of a second counts: half of a change is believed after two of them."""
QUIET_S: Final = 0.25
"""A worker that says nothing for so long is asked for nothing that is hot."""
DEMAND_MIN: Final = 1e-4
TELL_PART: Final = 0.005
LESS_PART: Final = 0.0005
"""A share that grows by less than this part of itself is not worth a message; one that shrinks soon is, for the sum."""
BEAT_S: Final = 1.0


@dataclass(slots=True)
class Share:
    """`told` is what a worker was told last, in message `seq`; `upper` what it may hold until it says so."""

    told: float
    upper: float
    seq: int = 0

    def tell(self, share: float, seq: int) -> None:
        self.upper = max(self.upper, share)
        self.told, self.seq = share, seq

    def heard(self, seq: int) -> None:
        if seq >= self.seq:
            self.upper = self.told


@dataclass(slots=True)
class Member:
    """One worker. `base`: its share of what is cold; `refused` counts by key since it is hot."""

    heard_at: float
    base: float = 0.0
    own: float = 0.0
    seq: int = 0
    acked: int = 0
    said_at: float = -BEAT_S
    demands: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)

    def take_in(self, asked: Mapping[str, float]) -> None:
        """Move the demands towards what was said; one that is new counts at once."""
        for key in [key for key in self.demands if key not in asked]:
            self.demands[key] *= 1 - SMOOTHING
            if self.demands[key] < DEMAND_MIN:
                del self.demands[key]
        for key, demand in asked.items():
            before = self.demands.get(key, demand)
            self.demands[key] = before + SMOOTHING * (demand - before)

    def holds(self, key: str) -> float:
        share = self.shares.get(key)
        return self._cold(key) if share is None else share.upper

    def _cold(self, key: str) -> float:
        return self.own if key.startswith("g:") else self.base


class Split:
    """`refused` counts requests by key, for as long as it is hot. `adopted` are keys that an earlier control shared
    out: whoever reads them takes them."""

    def __init__(self) -> None:
        self.members: dict[Hashable, Member] = {}
        self.refused: dict[str, int] = {}
        self.adopted: set[str] = set()
        self._seq = 0

    def come(self, who: Hashable, base: float, own: float, now: float) -> None:
        """A worker is there, and holds equal parts until it says otherwise."""
        self.members[who] = Member(now, base, own)

    def leave(self, who: Hashable) -> None:
        self.members.pop(who, None)

    def heard(self, who: Hashable, message: Demands, now: float) -> None:
        """A worker's report. A share that we know nothing of is one that an earlier control gave it."""
        member = self.members.get(who)
        if member is None:
            return
        member.heard_at, member.acked = now, message.seq
        for share in member.shares.values():
            share.heard(message.seq)
        member.take_in({row.key: row.demand for row in message.keys})
        for row in message.keys:
            if row.key not in member.shares:
                member.shares[row.key] = Share(row.share, row.share)
                self.adopted.add(row.key)
            if row.refused:
                self.refused[row.key] = self.refused.get(row.key, 0) + row.refused

    @property
    def last(self) -> int:
        """The number of the last message."""
        return self._seq

    def acked(self) -> int:
        """The message that all workers go by."""
        return min((member.acked for member in self.members.values()), default=self._seq)

    def demand(self, key: str) -> float:
        return sum(member.demands.get(key, 0.0) for member in self.members.values())

    def reports(self) -> dict[str, Report]:
        """What the gateway holds and is asked for, of all that is hot in a worker or shared out by demand."""
        keys = {key for member in self.members.values() for key in (*member.shares, *member.demands)}
        return {
            key: Report(sum(member.holds(key) for member in self.members.values()), self.demand(key)) for key in keys
        }

    def divide(
        self, totals: Mapping[str, float], equal: float, floor: float, now: float
    ) -> Iterator[tuple[Hashable, Shares]]:
        """What each worker has to be told, if anything. `totals`: what the gateway may hold of each hot key; every
        other one is cold. `equal` is the gateway's part of a cold one, `floor` what a worker always has of any."""
        count = len(self.members)
        if not count:
            return
        for member in self.members.values():
            if now - member.heard_at > QUIET_S:
                member.take_in({})
        shares: dict[Hashable, dict[str, float]] = {who: {} for who in self.members}
        for key, total in totals.items():
            self._divide(key, total, floor, shares)
        for who, member in self.members.items():
            cold = tuple(key for key in member.shares if key not in totals)
            based = (member.base, member.own) != (equal / count, 1.0 / count)
            if shares[who] or cold or based or now - member.said_at >= BEAT_S:
                yield who, self._message(member, shares[who], cold, equal / count, now)
        for key in [key for key in self.refused if key not in totals]:
            del self.refused[key]

    def _message(
        self, member: Member, shares: dict[str, float], cold: tuple[str, ...], equal: float, now: float
    ) -> Shares:
        self._seq += 1
        for key in cold:
            del member.shares[key]
        for key, share in shares.items():
            known = member.shares.setdefault(key, Share(share, member.holds(key)))
            known.tell(share, self._seq)
        member.base, member.own = equal, 1.0 / len(self.members)
        member.seq, member.said_at = self._seq, now
        return Shares(self._seq, member.base, member.own, shares, cold)

    def _divide(self, key: str, total: float, floor: float, shares: dict[Hashable, dict[str, float]]) -> None:
        """One key's shares; into `shares` go those that are news."""
        wanted = targets([member.demands.get(key, 0.0) for member in self.members.values()], total, floor)
        held = {who: member.holds(key) for who, member in self.members.items()}
        for (who, member), target in zip(self.members.items(), wanted, strict=True):
            known = member.shares.get(key)
            told = held[who] if known is None else known.told
            others = sum(held.values()) - held[who]
            share = grant(target, total, others, floor, told)
            if known is None or share > told * (1 + TELL_PART) or share < told * (1 - LESS_PART):
                shares[who][key] = share
                held[who] = max(held[who], share)
