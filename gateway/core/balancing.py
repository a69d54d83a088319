"""Which endpoint gets the next request: arithmetic over loads, nothing else.

`least_request` is the power of two choices (Mitzenmacher 2001), as Envoy does it: two at random, the less loaded one
wins. It needs no global order, and does not send a herd to the endpoint that has just come back empty. With weights
the two are drawn by weight, and the one with less to do for its weight wins: both shares and loads follow the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def least_request(loads: Sequence[int], rng: Callable[[], float], weights: Sequence[int] = ()) -> int:
    """The index of the endpoint to use. `loads` are requests in hand, at least one; `rng` is in [0, 1).

    `weights` are positive, one for each; none: all are equal.
    """
    count = len(loads)
    if count == 1:
        return 0
    if weights:
        first, second = _drawn(weights, rng()), _drawn(weights, rng())
        return second if loads[second] * weights[first] < loads[first] * weights[second] else first
    first = int(rng() * count)
    second = (first + 1 + int(rng() * (count - 1))) % count
    return second if loads[second] < loads[first] else first


def _drawn(weights: Sequence[int], chance: float) -> int:
    """An index, each as likely as its weight."""
    point = chance * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    return len(weights) - 1


BALANCERS: dict[str, Callable[[Sequence[int], Callable[[], float]], int]] = {"least_request": least_request}
