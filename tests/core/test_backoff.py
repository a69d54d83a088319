"""The pause before the next try."""

from __future__ import annotations

import random

import pytest

from gateway.core.backoff import pause_s


@pytest.mark.parametrize(("failures", "cap"), [(1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (50, 1.0), (10**6, 1.0)])
def test_it_doubles_up_to_its_limit_and_is_spread_over_all_of_it(failures: int, cap: float) -> None:
    rng = random.Random(7)
    pauses = [pause_s(failures, 0.1, 1.0, rng.random()) for _ in range(1000)]
    assert all(0.0 <= pause <= cap for pause in pauses)
    assert min(pauses) < 0.05 * cap
    assert max(pauses) > 0.95 * cap
