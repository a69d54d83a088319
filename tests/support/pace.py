"""How strictly time is judged: `make faults` holds every limit as it is written, `make test` allows for a busy machine.

A shared machine with two cores may stop a whole process for a second. A test of behaviour must not fail for that, and
a limit must not be forgotten: so each stands in its test as it is, and is multiplied here.
"""

from __future__ import annotations

import os
from typing import Final

ALLOWANCE: Final = float(os.environ.get("LANDBRIDGE_ALLOWANCE", "8"))
"""1 in `make faults`."""


def within(limit_s: float) -> float:
    """The limit in seconds to assert."""
    return limit_s * ALLOWANCE
