"""Choosing an endpoint: by load, and by weight."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.balancing import least_request


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 65535)), min_size=1, max_size=9), st.randoms())
def test_the_choice_is_always_one_of_them(ends: list[tuple[int, int]], rng: random.Random) -> None:
    loads, weights = [load for load, _ in ends], [weight for _, weight in ends]
    assert 0 <= least_request(loads, rng.random) < len(ends)
    assert 0 <= least_request(loads, rng.random, weights) < len(ends)


def test_the_less_loaded_of_two_wins() -> None:
    rng = random.Random(1)
    assert {least_request([5, 2], rng.random) for _ in range(50)} == {1}


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 3, 6], [65535, 1, 1], [10, 0 + 1, 89]])
def test_idle_endpoints_are_chosen_by_their_weights(weights: list[int]) -> None:
    rng = random.Random(7)
    found = Counter(least_request([0, 0, 0], rng.random, weights) for _ in range(20_000))
    for index, weight in enumerate(weights):
        assert found[index] / 20_000 == pytest.approx(weight / sum(weights), abs=0.02)


def test_requests_in_hand_follow_the_weights_too() -> None:
    """Requests that last: 1,000 begun, the oldest ends whenever 100 are in hand."""
    rng, weights, loads, begun = random.Random(3), [1, 4], [0, 0], []
    for _ in range(1000):
        if len(begun) == 100:
            loads[begun.pop(0)] -= 1
        chosen = least_request(loads, rng.random, weights)
        loads[chosen] += 1
        begun.append(chosen)
    assert loads[1] / sum(loads) == pytest.approx(0.8, abs=0.06)
