"""How long to wait before the next try: exponential, with full jitter, so that what failed together is not tried
together (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015). Pure; chance is an argument.
"""

from __future__ import annotations

from typing import Final

DOUBLINGS_MAX: Final = 32
"""Beyond this every cap is reached; it keeps the power of two small however long something stays away."""


def pause_s(failures: int, first_s: float, max_s: float, chance: float) -> float:
    """Seconds to wait after `failures` (1, 2, ...) in a row: up to `first_s` doubled each time, and up to `max_s`; as
    much of it as `chance` says, which is in [0, 1)."""
    assert failures > 0, "who has not failed does not wait"
    return chance * min(max_s, first_s * 2.0 ** min(failures - 1, DOUBLINGS_MAX))
