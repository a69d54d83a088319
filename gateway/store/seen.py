"""How many gateways share this region's limits, as far as was last known: one number in `state_dir`.

A worker or a control that starts while nobody can be asked goes by it, so that a gateway alone does not take a whole
limit for its own while the others are only out of sight.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.store.whole import write_whole

FILE: Final = "gateways.seen"
GATEWAYS_MAX: Final = 10_000


def read(state_dir: Path) -> int:
    """The number; 1 where there is none that can be read. Blocks."""
    try:
        found = int((state_dir / FILE).read_text("ascii"))
    except (OSError, ValueError):
        return 1
    return found if 1 <= found <= GATEWAYS_MAX else 1


def keep(state_dir: Path, gateways: int) -> None:
    """Write it down; where that fails the next start goes by an older one. Blocks."""
    with suppress(OSError):
        write_whole(state_dir / FILE, b"%d\n" % gateways)
