"""Who is refused first when there is too much: by class, and within a class by tenants' shares.

Two things may be too much. The *application* has as many requests in hand as it can have (`concurrency`): each rank
may use the limit up to its own part of it, so that the lower ones wait outside while the higher ones come in. A part is
compared request by request, so nothing is switched on and off and nothing oscillates. The *worker* itself has no time
left, which shows as the delay of its event loop (`Pressure`): then a share of all requests is refused, from the lowest
rank upwards, found by what one tick refused too few or too many, as Uber's Cinnamon finds its rejection ratio.

A rank is a class, and whether the tenant is above its share. Shares are max-min fair: a level is found such that what
tenants have below it just fits; only who stands above it is over its share, and only then is it the first of its class.

Pure: time is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final


class Priority(StrEnum):
    """A request's class: `critical` is refused last, `bulk` first. `over` is its rank above its tenant's share, the
    next one that within it."""

    over: int  # an attribute: a look-up by an enum member costs as much as the rest of a decision

    CRITICAL = "critical"
    DEFAULT = "default"
    BULK = "bulk"


PRIORITIES: Final[dict[str, Priority]] = {priority.value: priority for priority in Priority}
"""By the text of a label, a header or a hop."""


@dataclass(frozen=True, slots=True)
class Shedding:
    """How to shed. `low` and `high` bound one worker's limit for one cluster. `label` is the tenant label that names a
    class, `header` (in lower case) the field in which a trusted proxy does; `routes` are all (prefix, class), the
    longest first, or none where no route has a class. `shadow`: count, and refuse nothing."""

    low: int
    high: int
    label: str
    header: bytes | None = None
    routes: tuple[tuple[bytes, Priority | None], ...] = ()
    shadow: bool = False


def class_of(
    rules: Shedding, hop: Mapping[str, str] | None, claimed: Sequence[bytes], target: bytes, labels: Mapping[str, str]
) -> Priority:
    """A request's class: what the hop that it came by says; what a trusted proxy says (`claimed`, empty where nobody is
    to be believed); the route's; the tenant's. Values that are no class, or contradict each other, say nothing."""
    if hop is not None and (carried := PRIORITIES.get(hop.get(HOP_KEY, ""))) is not None:
        return carried
    if claimed:
        words = {value.decode("latin-1").strip().lower() for value in claimed}
        if len(words) == 1 and (said := PRIORITIES.get(words.pop())) is not None:
            return said
    for prefix, priority in rules.routes:
        if target.startswith(prefix):
            if priority is not None:
                return priority
            break
    return PRIORITIES.get(labels.get(rules.label, ""), Priority.DEFAULT)


HOP_KEY: Final = "priority"
"""The key of `Gateway-Hop` in which the region that a request entered says its class."""

RANKS: Final = 6
"""Bulk over its share, bulk, default over its share, default, critical over its share, critical."""
Priority.BULK.over, Priority.DEFAULT.over, Priority.CRITICAL.over = 0, 2, 4

_PARTS: Final = ((0.6, 0), (0.8, 0), (0.9, 0), (1.5, 4), (1.5, 4), (2.0, 8))
"""By rank: the part of the limit, and requests on top of it, up to which it comes in.

A single tenant's default requests stop at 90 percent, its bulk at 80. What stands above 1 is no more load: it is used
only while the ranks below are shut out, and the limit follows latency whoever made it. It has to be so wide because
few requests in hand vary much: with a limit of 20, half of it by small tenants, a margin of 2 would refuse one in 20
of theirs. Above their level nobody stays for long: whoever is among the greatest then is over its share.
"""
LEVEL_PART: Final = 0.85
"""The part of the limit that is shared out max-min fair: below the part at which default requests over it stop."""
LONE_PART: Final = 0.95
"""No tenant ever gets more of the limit within its share: also where the others come only now."""


def ceilings(limit: float) -> tuple[int, ...]:
    """By rank: as many requests in hand as shut it out. At least one: nobody is refused while nothing is in hand."""
    return tuple(max(1, ceil(limit * part) + more) for part, more in _PARTS)


def fair_level(counts: Collection[int], total: float) -> float:
    """The level at which the sum of `min(count, level)` is `total`; infinite when all of them fit."""
    left, tenants = total, len(counts)
    if sum(counts) <= total:
        return float("inf")
    for count in sorted(counts):
        if count * tenants >= left:
            break
        left -= count
        tenants -= 1
    return left / tenants


def share_in_hand(counts: Collection[int], limit: float) -> float:
    """How many requests a tenant may have in hand within its share. At least one."""
    return max(1.0, min(limit * LONE_PART, fair_level(counts, limit * LEVEL_PART)))


LAG_S: Final = 0.025
"""The delay of the event loop at which a worker counts as overloaded: it adds about four times that to a request."""
LAG_WEIGHT: Final = 0.3
"""Of a new measurement: one stall of 100 ms (a collection, a neighbour on the machine) is no overload."""
ERROR_MAX: Final = 4.0
"""By how many LAG_S a lag counts at most: what queues must not run away while a busy loop seldom comes to a tick."""
STEP: Final = 0.03
"""What one LAG_S too much adds to the refused share in a tick."""
AT_ONCE: Final = 0.05
"""And what it adds for as long as it lasts: without that, the share would swing."""
REFUSED_MAX: Final = 0.95
"""Some always come in: without them it would never be seen that the load is gone."""


class Pressure:
    """One worker's own overload. `refused` is the share of requests to refuse, `chances` that of each rank.

    `level` is how many requests of one tick make a tenant go over its share.
    """

    def __init__(self) -> None:
        self.lag_s = 0.0
        self.refused = 0.0
        self._lasting = 0.0
        self.chances: tuple[float, ...] = (0.0,) * RANKS
        self.level = float("inf")

    def tick(self, late_s: float, offered: Sequence[int], tenants: Collection[int]) -> None:
        """A tick came `late_s` late, after `offered` requests by rank and `tenants` requests by tenant."""
        self.lag_s += (late_s - self.lag_s) * LAG_WEIGHT
        lag_s = min(self.lag_s, late_s) if self.lag_s > LAG_S else self.lag_s
        error = min(ERROR_MAX, lag_s / LAG_S - 1.0)
        self._lasting = min(REFUSED_MAX, max(0.0, self._lasting + STEP * error))
        self.refused = min(REFUSED_MAX, max(0.0, self._lasting + AT_ONCE * error)) if self._lasting else 0.0
        self.chances = chances(self.refused, offered)
        self.level = max(1.0, fair_level(tenants, (1.0 - self.refused) * sum(tenants)))


def chances(refused: float, offered: Sequence[int]) -> tuple[float, ...]:
    """By rank: the share to refuse, so that `refused` of all are, and no rank loses one while a lower one is let in.

    Of ranks that offered nothing nothing is known; they count as one request each.
    """
    counts = [max(1, count) for count in offered]
    left = refused * sum(counts)
    found = []
    for count in counts:
        found.append(min(1.0, max(0.0, left / count)))
        left -= count
    return tuple(found)


def retry_after_s(waiting: float, rate: float, chance: float) -> int:
    """Seconds after which one who is refused is to come back: when those refused before it have been served.

    `waiting` are those refused lately, `rate` what can be answered in a second, `chance` in [0, 1) makes it up to half
    as much more or less. All of them together would be a herd again; all of them late, and the application were idle.
    """
    return min(RETRY_AFTER_MAX_S, 1 + int((0.5 + chance) * waiting / max(1.0, rate)))


RETRY_AFTER_MAX_S: Final = 10
REFUSED_LATELY: Final = 0.9
"""What of those refused counts a tick later: they come back one by one, and are counted anew when refused again."""
