"""Whether this region has heard from no other for too long (`tenant_map.partition_after`). Time is an argument.

Hearing is either of two: the replicator reads a peer's log, or a peer's gateway answers a question. Time is monotonic,
so a clock that is set does not cut a region off. What was concluded is kept over a restart of control: otherwise
tenants that must not be served while cut off would be, for `partition_after` after each crash.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from gateway.settings.schema import Settings

LOG = logging.getLogger("landbridge.control")

ISOLATED_FILE: Final = "isolated"


class Isolation:
    """`was` is what an earlier control concluded last."""

    def __init__(self, was: bool = False) -> None:
        self._was = was
        self._after_s: float | None = None
        self._heard_at: float | None = None
        self._began_at: float | None = None

    def cover(self, settings: Settings) -> None:
        """Judge by these settings: without a limit, or nobody who could be heard, no region is isolated."""
        tenant_map = settings.tenant_map
        logs = tenant_map.redis is not None and bool(tenant_map.redis.peers)
        gateways = bool(settings.hop_keys) and any(
            region.gateways for name, region in settings.regions.items() if name != settings.region
        )
        self._after_s = tenant_map.partition_after if logs or gateways else None
        if self._after_s is None:
            self._was = False

    def heard(self, at: float | None) -> None:
        """Some other region was last heard of at `at`; None: not yet."""
        if at is not None and (self._heard_at is None or at > self._heard_at):
            self._heard_at, self._was = at, False

    def judge(self, now: float) -> bool:
        """Whether the region is isolated at `now`."""
        if self._began_at is None:
            self._began_at = now
        if self._after_s is None:
            return False
        since = self._began_at if self._heard_at is None else self._heard_at
        return self._was or now - since > self._after_s


def was_isolated(state_dir: Path) -> bool:
    """What was kept. Blocks."""
    return (state_dir / ISOLATED_FILE).exists()


def keep(state_dir: Path, isolated: bool) -> None:
    """Keep a conclusion over a restart. Blocks."""
    path = state_dir / ISOLATED_FILE
    try:
        if isolated:
            path.touch(mode=0o600)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        LOG.error("%s: a restarted control will not know whether this region is isolated: %s", path, error.strerror)
