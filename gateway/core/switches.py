"""What operators switch for a whole region: failover mode, a limit to its traffic, and whether it is drained.

Each switch is one record with who, why, when and until when; of two the later one counts, in Redis, on disk and in
memory. Switching off is a record too: otherwise a copy that has not heard of it would switch on again. Pure values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from gateway.core.conditions import Conditions
from gateway.core.view import View

FAILOVER_STANDBY: Final = "standby"
FAILOVER_ALL: Final = "all"
"""Failover mode for whom this region stands by, or for every tenant that comes."""

OFF: Final = ("off", "none", "")
"""As operators write it."""

RATE_MAX: Final = 10_000_000.0


class Name(StrEnum):
    """`failover-mode`: standby or all. `max-traffic`: requests a second. `drain`: on. "" is off for each of them."""

    FAILOVER_MODE = "failover-mode"
    MAX_TRAFFIC = "max-traffic"
    DRAIN = "drain"


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """One switch as it was last set. `at_ms` and `until_ms` are Unix milliseconds; `until_ms` 0: until set again."""

    value: str
    by: str
    why: str
    at_ms: int
    until_ms: int = 0

    def is_on(self, now_ms: int) -> bool:
        return bool(self.value) and (not self.until_ms or now_ms < self.until_ms)


Switches = Mapping[str, Switch]
"""By name; one that was never set is off."""


def problem(name: str, value: str) -> str:
    """Why this cannot be a switch's value; "" if it can."""
    match name:
        case Name.FAILOVER_MODE:
            return "" if value in ("", FAILOVER_STANDBY, FAILOVER_ALL) else "expected standby, all or nothing"
        case Name.DRAIN:
            return "" if value in ("", "on") else "expected on or nothing"
        case Name.MAX_TRAFFIC:
            return (
                "" if not value or rate_of(value) is not None else "expected requests a second, such as 500, or nothing"
            )
        case _:
            return f"expected one of {', '.join(Name)}"


def failover_mode(view: View) -> str:
    """What this region's is."""
    if view.region not in view.takes_over:
        return ""
    return FAILOVER_ALL if view.takes_all else FAILOVER_STANDBY


def switched(conditions: Conditions, switches: Switches, now_ms: int, clusters: Iterable[str]) -> Conditions:
    """What a worker goes by until it has heard from control. `clusters` are the region's own."""
    on = {
        name: switch.value
        for name, switch in switches.items()
        if switch.is_on(now_ms) and not problem(name, switch.value)
    }
    return msgspec.structs.replace(
        conditions,
        failover_mode=on.get(Name.FAILOVER_MODE, ""),
        max_traffic=rate_of(on.get(Name.MAX_TRAFFIC, "")),
        shares=dict.fromkeys(clusters, 0.0) if Name.DRAIN in on else conditions.shares,
    )


def rate_of(value: str) -> float | None:
    """Requests a second, above 0; None for what is no such number."""
    try:
        rate = float(value)
    except ValueError:
        return None
    return rate if 0.0 < rate <= RATE_MAX else None


def later(mine: Switch | None, other: Switch | None) -> Switch | None:
    """The one that counts. Set in the same millisecond, the greater value does, so that all agree."""
    if mine is None or other is None:
        return mine or other
    return other if (other.at_ms, other.value, other.by) > (mine.at_ms, mine.value, mine.by) else mine


def merged(mine: Switches, other: Switches) -> dict[str, Switch]:
    """Of each switch the later record."""
    found = {name: later(mine.get(name), other.get(name)) for name in {**mine, **other}}
    return {name: switch for name, switch in found.items() if switch is not None}
