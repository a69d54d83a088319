"""When a source of keys is asked. Pure: time and chance are arguments."""

from __future__ import annotations

import random
from typing import Final

from gateway.core import backoff
from gateway.identity.rings import ASK_EVERY_S

JITTER: Final = 0.2
"""±20 %: gateways that started together must not ask together."""
BACK_OFF_S: Final = 1.0
BACK_OFF_MAX_S: Final = 60.0
LOOK_UPS_MAX: Final = 10
"""Look-ups of single keys at once; a kid is whatever somebody wrote into a token."""
LOOK_UP_EVERY_S: Final = 1.0
PEMS_MAX: Final = 32
"""Keys kept of a source that tells them one by one: a load balancer uses one, and changes it now and then."""
ABSENT_MAX: Final = 256


def pause_s(refresh_s: float, failures: int, rng: random.Random) -> float:
    """Until a key set is asked for again: the period, or after failures a back-off with full jitter."""
    if not failures:
        return refresh_s * rng.uniform(1 - JITTER, 1 + JITTER)
    longest_s = min(BACK_OFF_MAX_S, refresh_s)
    return BACK_OFF_S / 4 + backoff.pause_s(failures, BACK_OFF_S, longest_s, rng.random())


class Allowance:
    """Whether one more question may be asked for tokens' sake: `burst` at once, one in `every_s` then."""

    def __init__(self, burst: int, every_s: float) -> None:
        self._burst = burst
        self._every_s = every_s
        self._full_at = 0.0

    def take(self, now: float) -> bool:
        full_at = max(self._full_at, now) + self._every_s
        if full_at - now > self._burst * self._every_s:
            return False
        self._full_at = full_at
        return True


def for_key_set() -> Allowance:
    return Allowance(1, ASK_EVERY_S)


def for_single_keys() -> Allowance:
    return Allowance(LOOK_UPS_MAX, LOOK_UP_EVERY_S)
