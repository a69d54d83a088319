"""What control counts itself, in its own mapped file: a control that is killed and started again loses none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.bus.stats import Labels, StatsFile
from gateway.control.reload import APPLIED, REFUSED, Outcome
from gateway.core.discovery import Result

RELOADS: Final = "landbridge_config_reloads_total"
REJECTED: Final = "landbridge_map_rejected_total"
KEYS: Final = "landbridge_token_keys_fetches_total"
LOOKUPS: Final = "landbridge_dns_lookups_total"


class Counters:
    """Every series of reloads is there from the start, so that its first increase shows as one."""

    def __init__(self, state_dir: Path) -> None:
        self._stats = StatsFile(state_dir / "stats" / "control.stats")
        for source in ("config", "tenants"):
            for result in (APPLIED, REFUSED):
                self._stats.series(RELOADS, (("source", source), ("result", result)))

    def reload(self, outcome: Outcome) -> None:
        """An attempt to take in configuration or tenants ended."""
        self._count(RELOADS, (("source", outcome.source), ("result", outcome.result)))

    def rejected(self, reason: str) -> None:
        """A record of the replicated map was not taken in."""
        self._count(REJECTED, (("reason", reason),))

    def lookup(self, result: Result) -> None:
        """A name was asked for."""
        self._count(LOOKUPS, (("result", result.value),))

    def keys(self, result: str) -> None:
        """A source of tokens' keys was asked."""
        self._count(KEYS, (("result", result),))

    def _count(self, name: str, labels: Labels) -> None:
        self._stats.values[self._stats.series(name, labels)] += 1
