"""How clients come back: who, when, and that each of them does so once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.ramp import RETURN_S, SHARE_FIRST, STEPS, place, share

NAMES = st.text(max_size=40)


@settings(deadline=None)
@given(NAMES, NAMES)
def test_a_place_is_a_place(tenant: str, client: str) -> None:
    assert 0.0 <= place(tenant, client) < 1.0


@pytest.mark.parametrize(
    ("tenant", "client", "at"), [("acme", "192.0.2.7", 0.7713470458984375), ("acme", "", 0.7382659912109375)]
)
def test_a_place_is_the_same_in_every_program(tenant: str, client: str, at: float) -> None:
    """Regions run different versions side by side, and must agree: another rule needs another key in the answer."""
    assert place(tenant, client) == at


def clients() -> list[str]:
    return [f"10.0.{high}.{low}" for high in range(20) for low in range(200)]


@pytest.mark.parametrize("share_of", [0.1, 0.25, 0.5, 0.9])
def test_as_many_clients_as_the_share_says(share_of: float) -> None:
    back = sum(place("acme", client) < share_of for client in clients())
    assert abs(back / 4000 - share_of) < 0.03


def test_neighbours_and_tenants_have_places_of_their_own() -> None:
    places = {place(tenant, client) for tenant in ("acme", "globex") for client in clients()[:200]}
    assert len(places) > 390


def test_a_share_grows_from_the_first_clients_to_all() -> None:
    shares = [share(step * RETURN_S / 1000) for step in range(1001)]
    assert shares[0] == SHARE_FIRST
    assert shares[-1] == 1.0
    assert all(before <= after for before, after in pairwise(shares))
    assert len(set(shares)) <= STEPS
    assert max(after - before for before, after in pairwise(shares)) <= 1.5 / STEPS
    assert share(-0.001) == 0.0
    assert share(1e9) == 1.0


@settings(deadline=None)
@given(NAMES, NAMES, st.lists(st.floats(0, 2 * RETURN_S), max_size=20))
def test_each_client_moves_once(tenant: str, client: str, times: list[float]) -> None:
    at = place(tenant, client)
    went = [at < share(time) for time in sorted(times)]
    assert went == sorted(went)
