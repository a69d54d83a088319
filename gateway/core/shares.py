"""Who may spend which part of a limit: its shares among a region's gateways, and a gateway's share among its workers.

A share is a fraction of the whole limit, and so is a demand: what somebody was asked for, as a part of the limit (more
than 1 when it is asked for more). Shares follow demands by max-min fairness; what nobody asks for is shared out
equally, so that whoever is asked next has something to begin with. The rules that hold at every moment:

- The sum of what all hold is never above the limit. A *grant* is therefore bounded by what the others hold, and whoever
  is to hold less counts as holding the old share until it has said that it does no longer.
- Whoever is not heard of holds what it had for FLAT_S, drifts to an equal share until EQUAL_S, and is forgotten after
  FORGOTTEN_S. It does the same on its side: so the sum holds while nobody can ask anybody.

Pure. `control/shares/shares.lua` follows these rules in a region's Redis; a test holds the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

FLOOR: Final = 0.015
"""What is shared out equally before anything else: a first request passes anywhere, at 1.5 % of the limit's use."""

HEADROOM: Final = 1.05
"""A share is this much above the demand where there is not enough for all: what came in the last tenth of a second
is no exact measure of what comes in the next. Where there is enough, there is more headroom than that."""

FLAT_S: Final = 30.0
EQUAL_S: Final = 60.0
FORGOTTEN_S: Final = 600.0

AHEAD_S: Final = 2.0
"""Silent gateways' drift is counted this much ahead of time, so that the others have made room when it is due."""

SILENT_S: Final = 1.0
"""A gateway that was not heard of for so long counts by its drift: it asks ten times a second."""

HOT_S: Final = 3.0
"""So long after its last demand a key is shared out by demand; then shares go back to equal ones."""

SETTLE_S: Final = 2.0
"""A table that has just begun gives nobody more than it holds, until all are heard that were there, or so long."""

EPSILON: Final = 1e-9
COLD: Final = 1e-6
"""A share within this of the equal one is equal."""


def fill(wants: Sequence[float], total: float) -> list[float]:
    """Max-min fairness: nobody gets more than it wants, and nobody less while another one gets more than it."""
    got = [0.0] * len(wants)
    left, waiting = total, len(wants)
    for index in sorted(range(len(wants)), key=wants.__getitem__):
        got[index] = min(wants[index], left / waiting)
        left -= got[index]
        waiting -= 1
    return got


def targets(demands: Sequence[float], total: float, floor: float) -> list[float]:
    """What each should hold of `total`: a floor, what it is asked for and some headroom, and an equal part of the rest.

    They add up to `total`.
    """
    count = len(demands)
    floor = min(floor, total / count)
    rest = max(0.0, total - floor * count)
    filled = fill([max(0.0, demand * HEADROOM - floor) for demand in demands], rest)
    left = max(0.0, rest - sum(filled)) / count
    return [floor + part + left for part in filled]


def grant(target: float, total: float, others: float, floor: float, held: float = 0.0) -> float:
    """What may be held at once by somebody who holds `held`, while the others still hold `others`.

    The floor is always there; and who is to hold less need not go below that because others have yet to.
    """
    return max(min(floor, total), target if held >= target else min(target, total - others))


def drift(share: float, equal: float, silent_s: float) -> float:
    """What is held after so long without a word: the last share, then on a straight line to the equal one."""
    if silent_s <= FLAT_S:
        return share
    part = min(1.0, (silent_s - FLAT_S) / (EQUAL_S - FLAT_S))
    return share + (equal - share) * part


def reserved(share: float, equal: float, silent_s: float) -> float:
    """What is kept for somebody who is silent: the more of what it holds now and in a moment."""
    if silent_s > FORGOTTEN_S:
        return 0.0
    return max(drift(share, equal, silent_s), drift(share, equal, silent_s + AHEAD_S))


def divisor(gateways: int, others: Iterable[int]) -> int:
    """Into how many parts a gateway cuts a limit that no one is near: the equal part of as many as there are.

    `others` are the divisors that the other gateways use now. 0 while they leave no room for an equal part: one that
    has just come waits until all have heard of it.
    """
    taken = sum(1.0 / other for other in others if other)
    return gateways if taken + 1.0 / gateways <= 1.0 + EPSILON else 0


# --- a region's table


class Report(NamedTuple):
    """What a gateway says of one key: the share that it may be spending, and what it is asked for."""

    held: float
    demand: float


class Answer(NamedTuple):
    """What a gateway may hold from now on. `shares`: None for a key that is shared out equally again.

    `gateways` is how many there are; `divisor` as above.
    """

    gateways: int
    divisor: int
    shares: dict[str, float | None]


@dataclass(slots=True)
class Row:
    """One gateway. `using` is the divisor that it said it uses, or a smaller one that it was told of: what it may hold.

    So are the shares in `keys`: of what it said and what it was granted the larger. `hot_at`: when each key was last
    asked for.
    """

    seen: float
    using: int
    keys: dict[str, Report] = field(default_factory=dict)
    hot_at: dict[str, float] = field(default_factory=dict)

    def part(self, gateways: int) -> float:
        """Its equal part, which it drifts to when it hears nothing. All of these together are never above the whole."""
        return 1.0 / self.using if self.using else FLOOR / gateways

    def holds(self, key: str, gateways: int) -> float:
        """What it holds of a key; of one that it says nothing of, an equal part."""
        known = self.keys.get(key)
        return self.part(gateways) if known is None else known.held


class Table:
    """The shares of a region's gateways: what the function in Redis keeps, and how it answers."""

    def __init__(self, now: float) -> None:
        self.rows: dict[str, Row] = {}
        self.born = now
        self.expected = 0

    def call(self, gateway: str, using: int, seen: int, reports: Mapping[str, Report], now: float) -> Answer:
        """One gateway's report. `using` is its divisor, 0 while it has none; `seen`: how many gateways it knows of."""
        self.rows = {name: row for name, row in self.rows.items() if now - row.seen <= FORGOTTEN_S}
        before = self.rows.get(gateway)
        asked = {key: now for key, report in reports.items() if report.demand > 0}
        kept = {} if before is None else {key: at for key, at in before.hot_at.items() if key in reports}
        self.rows[gateway] = Row(now, using, dict(reports), kept | asked)
        settles = now - self.born < SETTLE_S
        if settles:
            self.expected = max(self.expected, seen)
            settles = len(self.rows) < self.expected
        count = max(len(self.rows), self.expected) if settles else len(self.rows)
        others = [row for name, row in self.rows.items() if name != gateway]
        parts = using if settles else divisor(count, [row.using for row in others])
        keys = sorted({key for row in self.rows.values() for key in row.keys})
        shares = {key: self._share(key, gateway, count, parts, settles, now) for key in keys}
        row = self.rows[gateway]
        row.using = min(using, parts) or max(using, parts)
        for key, share in shares.items():
            if share is None:
                row.keys.pop(key, None)
                row.hot_at.pop(key, None)
            else:
                said = row.keys.get(key, Report(0.0, 0.0))
                row.keys[key] = Report(max(said.held, share), said.demand)
        return Answer(count, parts, shares)

    def leave(self, gateway: str) -> None:
        """It ends: what it held is free."""
        self.rows.pop(gateway, None)

    def _share(self, key: str, gateway: str, count: int, parts: int, settles: bool, now: float) -> float | None:
        """What this gateway may hold of a key; None once everybody has an equal part and nobody asked lately."""
        equal, floor = 1.0 / count, FLOOR / count
        demands, kept, others, largest = [], 0.0, 0.0, 0.0
        is_hot = False
        mine = own_demand = 0.0
        for name, row in self.rows.items():
            held, silent_s = row.holds(key, count), now - row.seen
            is_hot |= now - row.hot_at.get(key, -math.inf) <= HOT_S
            if name == gateway:
                mine = held
                own_demand = row.keys[key].demand if key in row.keys else 0.0
            elif silent_s > SILENT_S:
                held = reserved(held, row.part(count), silent_s)
                kept += held
                others += held
            else:
                demands.append(row.keys[key].demand if key in row.keys else 0.0)
                others += held
            largest = max(largest, held)
        if not is_hot and parts and not settles and largest <= equal + COLD:
            return None
        target = targets([own_demand, *demands], max(0.0, 1.0 - kept), floor)[0]
        share = grant(target, 1.0, others, floor, mine)
        return min(share, max(mine, floor)) if settles else share
