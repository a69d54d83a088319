"""Which endpoint gets the next request: arithmetic over loads, nothing else.

`least_request` is the power of two choices (Mitzenmacher 2001), as Envoy does it: two at random, the less loaded one
wins. It needs no global order, and does not send a herd to the endpoint that has just come back empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def least_request(loads: Sequence[int], rng: Callable[[], float]) -> int:
    """The index of the endpoint to use. `loads` are requests in hand, at least one; `rng` is in [0, 1)."""
    count = len(loads)
    if count == 1:
        return 0
    first = int(rng() * count)
    second = (first + 1 + int(rng() * (count - 1))) % count
    return second if loads[second] < loads[first] else first


BALANCERS: dict[str, Callable[[Sequence[int], Callable[[], float]], int]] = {"least_request": least_request}
