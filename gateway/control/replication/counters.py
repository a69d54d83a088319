"""The replicator's counters, in a mapped file of its own: scraped by control, and kept over restarts and takeovers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.bus.stats import Labels, StatsFile

FILE: Final = "replicator.stats"

RETRIES: Final = "landbridge_map_retries_total"
CONFLICTS: Final = "landbridge_map_conflicts_total"
REPAIRED: Final = "landbridge_map_repaired_total"
FAR_AHEAD: Final = "landbridge_map_far_ahead_total"
TAKEOVERS: Final = "landbridge_map_lease_taken_total"
APPLIED: Final = "landbridge_map_applied_total"
RESYNCS: Final = "landbridge_map_resyncs_total"
BAD_VALUES: Final = "landbridge_map_bad_values_total"

_PLAIN: Final = (RETRIES, CONFLICTS, REPAIRED, FAR_AHEAD, TAKEOVERS)
_BY_PEER: Final = (APPLIED, RESYNCS, BAD_VALUES)


class Counters:
    """Every series is there from the start, so that its first increase shows as one."""

    def __init__(self, state_dir: Path, peers: tuple[str, ...]) -> None:
        self._stats = StatsFile(state_dir / "stats" / FILE)
        for name in _PLAIN:
            self._stats.series(name)
        for name in _BY_PEER:
            for peer in peers:
                self._stats.series(name, (("peer", peer),))

    def count(self, name: str, amount: int = 1, peer: str = "") -> None:
        """Add `amount`; `peer` for the names that are told apart by it."""
        if amount:
            labels: Labels = (("peer", peer),) if peer else ()
            self._stats.values[self._stats.series(name, labels)] += amount

    def close(self) -> None:
        self._stats.close()
