"""Round robin, weights and consistent hashing: shares, what moves when endpoints come and go, and bounded loads."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gateway.core.balancing import LOAD_BOUND, Ring, Turns, eased


def test_each_in_turn() -> None:
    turns, keys = Turns(), ["a", "b", "c"]
    assert [turns.next(keys) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_by_weight_and_not_in_a_row() -> None:
    turns, keys = Turns(), ["a", "b", "c"]
    assert "".join(keys[turns.next(keys, [5, 1, 1])] for _ in range(7)) == "aabacaa"


class InTurn(RuleBasedStateMachine):
    """As long as the same endpoints take part, nobody's count is ever a whole turn from its share."""

    @initialize(weights=st.lists(st.integers(1, 20), min_size=1, max_size=6))
    def begin(self, weights: list[int]) -> None:
        self.turns = Turns()
        self.weights = {f"e{n}": weight for n, weight in enumerate(weights)}
        self.counts: Counter[str] = Counter()

    @rule(times=st.integers(1, 30))
    def asks(self, times: int) -> None:
        keys, total = list(self.weights), sum(self.weights.values())
        for _ in range(times):
            self.counts[keys[self.turns.next(keys, list(self.weights.values()))]] += 1
        asked = sum(self.counts.values())
        for key, weight in self.weights.items():
            assert abs(self.counts[key] - asked * weight / total) < len(keys)

    @rule(weights=st.lists(st.integers(1, 20), min_size=1, max_size=6))
    def others(self, weights: list[int]) -> None:
        self.turns.next([f"o{n}" for n in range(len(weights))], weights)


TestInTurn = InTurn.TestCase
TestInTurn.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def shares(ring: Ring, usable: set[str], count: int = 20_000) -> Counter[str]:
    found = Counter(ring.find(b"user-%d" % n, usable, {}) for n in range(count))
    return Counter({key: value for key, value in found.items() if key is not None})


def test_a_ring_shares_by_weight() -> None:
    keys = {f"10.0.0.{n}:80": 1 for n in range(8)}
    for key, count in shares(Ring(keys), set(keys)).items():
        assert abs(count / 20_000 * 8 - 1) < 0.35, key
    weighted = keys | {"10.0.0.0:80": 4}
    assert 3.0 < shares(Ring(weighted), set(keys))["10.0.0.0:80"] / 20_000 * 11 < 5.0


def test_only_what_was_at_the_one_that_left_moves() -> None:
    keys = {f"10.0.0.{n}:80": 1 for n in range(6)}
    ring, all_keys = Ring(keys), set(keys)
    users = [b"user-%d" % n for n in range(5000)]
    before = {user: ring.find(user, all_keys, {}) for user in users}
    down = {user: ring.find(user, all_keys - {"10.0.0.3:80"}, {}) for user in users}
    moved = {user for user in users if before[user] != down[user]}
    assert moved == {user for user in users if before[user] == "10.0.0.3:80"}
    more = Ring(keys | {"10.0.0.9:80": 1})
    after = {user: more.find(user, {*all_keys, "10.0.0.9:80"}, {}) for user in users}
    assert {after[user] for user in users if after[user] != before[user]} == {"10.0.0.9:80"}
    assert {user: Ring(dict(reversed(keys.items()))).find(user, all_keys, {}) for user in users} == before


@given(st.integers(1, 8), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_no_endpoint_gets_more_than_its_bound(count: int, seed: int) -> None:
    """One key for everybody, requests that come and go: the busiest has at most 1.25 times its share, rounded up."""
    keys = {f"e{n}": 1 for n in range(count)}
    ring, rng = Ring(keys), random.Random(seed)
    loads = dict.fromkeys(keys, 0)
    for _ in range(200):
        if rng.random() < 0.7:
            owner = ring.find(b"hot", set(keys), loads)
            assert owner is not None
            assert loads[owner] + 1 <= -(-LOAD_BOUND * (sum(loads.values()) + 1) // count)
            loads[owner] += 1
        else:
            busy = [key for key, load in loads.items() if load]
            if busy:
                loads[rng.choice(busy)] -= 1


def test_nobody_and_one() -> None:
    assert Ring({}).find(b"x", set(), {}) is None
    assert Ring({"a": 1}).find(b"x", set(), {"a": 0}) is None
    assert Ring({"a": 1}).find(b"x", {"a"}, {"a": 50}) == "a"


@pytest.mark.parametrize(("age_s", "weight"), [(0.0, 30), (5.0, 150), (10.0, 300), (99.0, 300)])
def test_one_that_came_back_is_eased_in(age_s: float, weight: int) -> None:
    assert eased(3, age_s, 10.0) == weight
