"""For every fleet of three regions: two sends at most, one application at most, one end; and service where maps agree.

"Every" is reduced as follows, and nothing else is left out. (1) Regions are interchangeable, so the entry is always
the first. (2) `covers` is the only reader of `failover` and of the method, so a record either covers the request or
does not: `all` and `manual` stand for both. A standby that is not covered is never read. (3) Versions are only
compared: ranks stand for them, older than, equal to (with the same or with another record), between and newer than
those that the request has met. (4) A fact that no function was handed cannot have changed its answer: another region's
record and state, and whether the request is a browser's, are chosen when the request first meets them, and every
choice is tried. What gateways *know* is handed to every decision, so it is chosen at the outset.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest

from gateway.core.placement import Failover, Placement
from tests.support.facts import REGIONS, Facts, record
from tests.support.model import Site, travel

T = TypeVar("T")
ENTRY = REGIONS[0]


def bodies() -> Iterator[tuple[str, tuple[str, ...], Failover]]:
    """Home, standbys and failover of every record there is, by reduction 2."""
    for home in REGIONS:
        yield home, (), Failover.MANUAL
        others = [name for name in REGIONS if name != home]
        for count in (1, 2):
            for standby in itertools.permutations(others, count):
                yield home, standby, Failover.ALL


BODIES = tuple(bodies())
RANKS: tuple[tuple[int, ...], ...] = ((4,), (2, 4, 6), (1, 2, 3, 4, 5, 6, 7))
"""Of the first, second and third record that a request meets: all orders of three with ties."""
RECORDS = tuple(
    (None, *(record(home, standby=standby, failover=failover, epoch=rank)
             for rank in ranks for home, standby, failover in BODIES))
    for ranks in RANKS
)  # fmt: skip
DEAD = tuple(frozenset(names) for count in range(4) for names in itertools.combinations(REGIONS, count))


class Choices:
    """Depth-first over everything that may be chosen: each run repeats a prefix, and takes the next branch."""

    def __init__(self) -> None:
        self._path: list[int] = []
        self._sizes: list[int] = []
        self._at = 0

    def pick(self, options: Sequence[T]) -> T:
        if self._at == len(self._path):
            self._path.append(0)
            self._sizes.append(len(options))
        self._at += 1
        return options[self._path[self._at - 1]]

    def next(self) -> bool:
        """Whether there is another branch; it starts at the beginning."""
        self._at = 0
        while self._path:
            self._path[-1] += 1
            if self._path[-1] < self._sizes[-1]:
                return True
            self._path.pop()
            self._sizes.pop()
        return False


class Fleet:
    """Three regions whose facts are chosen when a request meets them, and stay."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.records: dict[str, Placement | None] = {}
        self.sites: dict[str, Site] = {}
        self.dead = choices.pick(DEAD)
        self.unknown: str | None = None

    def record(self, region: str) -> Placement | None:
        if region not in self.records:
            met = self._choices.pick(RECORDS[len(self.records)])
            self.records[region] = met
            if region == ENTRY and met is None:
                self.unknown = self._choices.pick(REGIONS)
        return self.records[region]

    def site(self, region: str) -> Site:
        if region not in self.sites:
            options = (Site.UP, Site.DYING) if region == ENTRY else (Site.UP, Site.DYING, Site.CUT)
            self.sites[region] = Site.DEAD if region in self.dead else self._choices.pick(options)
        return self.sites[region]


class Chosen(Facts):
    """A GET that is a browser's page load or not: chosen when somebody wants to know."""

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        object.__setattr__(self, "pick", choices.pick)
        object.__setattr__(self, "accept", None)

    def values(self, name: bytes) -> list[bytes]:
        if name != b"accept":
            return []
        if self.accept is None:
            object.__setattr__(self, "accept", self.pick((b"*/*", b"text/html")))
        return [self.accept]


REFUSALS = {"region_disagrees", "cluster_unavailable", "region_unreachable", "upstream_connect"}


def test_two_sends_one_application_one_end_for_every_fleet():
    choices, ends = Choices(), Counter[str]()
    while True:
        fleet = Fleet(choices)
        fleet.record(ENTRY)
        journey = travel(ENTRY, Chosen(choices), fleet.record, fleet.site, fleet.dead, fleet.unknown)
        world = (fleet.dead, fleet.records, fleet.sites, journey)
        assert len(journey.sends) <= 2, world
        assert ENTRY not in journey.sends, world
        assert len(journey.received) == (journey.end == "served"), world
        assert journey.end in ("served", "redirected") or journey.end in REFUSALS, world
        ends[journey.end] += 1
        if not choices.next():
            break
    assert set(ends) == {"served", "redirected", *REFUSALS}, "an end that no fleet reaches is a branch not tried"
    assert ends.total() > 100_000


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("failover", Failover)
def test_where_maps_agree_a_request_is_served_if_anybody_may(failover: Failover, method: bytes):
    """By home if it is up, else by the first standby that is, where `failover` covers it; else by nobody."""
    request = Facts(method=method)
    covered = failover is Failover.ALL or (failover is Failover.READS and method == b"GET")
    for home in REGIONS:
        others = [name for name in REGIONS if name != home]
        for standby in itertools.chain.from_iterable(itertools.permutations(others, count) for count in range(3)):
            placement = record(home, standby=standby, failover=failover)
            for states in itertools.product((Site.UP, Site.DEAD, Site.DYING), *[Site] * 2):
                sites = dict(zip(REGIONS, states, strict=True))
                dead = frozenset(name for name in REGIONS if sites[name] is Site.DEAD)
                journey = travel(ENTRY, request, lambda _, p=placement: p, sites.__getitem__, dead, None)
                able = [name for name in (home, *(standby if covered else ())) if sites[name] is Site.UP]
                assert journey.region == (able[0] if able else ""), (placement, sites, journey)
                assert journey.end == "served" or (not able and journey.end in REFUSALS), (placement, sites, journey)


def test_what_peers_say_ends_with_the_newest_record():
    """Where a hop is refused, the next one goes by a record that is newer: versions along a journey only grow."""
    moved = {
        ENTRY: record(REGIONS[1], epoch=1),
        REGIONS[1]: record(REGIONS[2], epoch=2),
        REGIONS[2]: record(REGIONS[0], epoch=3),
    }
    journey = travel(ENTRY, Facts(), moved.__getitem__, lambda _: Site.UP, frozenset(), None)
    assert (journey.end, journey.region, journey.sends) == ("served", ENTRY, REGIONS[1:])
