"""`state_dir/switches.json`: the region-wide switches as this gateway last knew them, for a start without control."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from gateway.core.switches import Switch

FILE: Final = "switches.json"


def decode(data: bytes) -> dict[str, Switch]:
    """What the file holds. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=dict[str, Switch])


def read(state_dir: Path) -> dict[str, Switch]:
    """All of them; none where there is no file that can be read. Blocks."""
    try:
        return decode((state_dir / FILE).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
