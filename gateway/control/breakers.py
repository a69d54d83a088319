"""What workers say of their breakers, and what operators said: the gateway's table of them.

Each worker decides for itself, from the requests that it sees. Here it comes together: for the admin API and metrics,
for the log (once per change of the gateway, not of each worker), and for the judge: a cluster whose breaker is open in
all workers cannot serve. An operator's word is kept here for workers that start later; a control that starts later
hears of it from the workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from gateway.bus.messages import BreakerTurned, EndpointEjected, ForceBreaker
from gateway.bus.server import BusPeer
from gateway.core.breaker import BreakerRule, State
from gateway.core.view import View

LOG = logging.getLogger("landbridge.control")

Key = tuple[str, str]
"""Cluster and tenant; "" is the cluster's own breaker."""

_RANKS: Final = {
    state: rank
    for rank, state in enumerate(
        (State.CLOSED, State.FORCED_CLOSED, State.RAMPING, State.HALF_OPEN, State.OPEN, State.FORCED_OPEN)
    )
}
_OPEN: Final = frozenset((State.OPEN, State.FORCED_OPEN))
_FORCED: Final = frozenset((State.FORCED_OPEN, State.FORCED_CLOSED))


class Row(NamedTuple):
    """One breaker in one worker. `since` and `ends` are monotonic seconds; `ends` 0: not by time alone."""

    state: State
    since: float
    ends: float
    trips: int
    reason: str
    only: str


class Out(NamedTuple):
    """One endpoint that a worker leaves out, until `ends` (monotonic seconds)."""

    ends: float
    why: str


class Forced(NamedTuple):
    """An operator's word: held open or closed until `ends` (monotonic seconds)."""

    is_open: bool
    ends: float
    reason: str


class Breakers:
    """`broadcast` tells all workers; `changed` is called when a cluster's own breaker turned somewhere."""

    def __init__(
        self, broadcast: Callable[[ForceBreaker], None], changed: Callable[[], None], now: Callable[[], float]
    ) -> None:
        self._broadcast = broadcast
        self._changed = changed
        self._now = now
        self.rows: dict[Key, dict[BusPeer, Row]] = {}
        self.forced: dict[Key, Forced] = {}
        self.clusters: dict[str, BreakerRule] = {}
        """Those with a breaker, in order."""
        self.ejected: dict[Key, dict[BusPeer, Out]] = {}
        """By cluster and endpoint."""
        self.watched: frozenset[Key] = frozenset()
        """Cluster and endpoint of those where outliers are looked for."""

    def cover(self, view: View) -> None:
        """Know exactly the clusters of this View that have a breaker."""
        self.clusters = {name: c.breaker for name, c in view.clusters.items() if c.breaker is not None}
        self.rows = {key: rows for key, rows in self.rows.items() if key[0] in self.clusters}
        self.forced = {key: forced for key, forced in self.forced.items() if key[0] in self.clusters}
        self.watched = frozenset(
            (name, endpoint.key)
            for name, cluster in view.clusters.items()
            if cluster.outliers is not None
            for endpoint in cluster.endpoints
        )
        self.ejected = {key: outs for key, outs in self.ejected.items() if key in self.watched}

    # ---- workers

    def greet(self, peer: BusPeer) -> None:
        """A worker is there: tell it what operators said before."""
        now = self._now()
        for (cluster, tenant), forced in list(self.forced.items()):
            if forced.ends > now:
                peer.send(_asked(cluster, tenant, forced, now))
            else:
                del self.forced[cluster, tenant]

    def turned(self, peer: BusPeer, message: BreakerTurned) -> None:
        """A worker's report."""
        key, now = (message.cluster, message.tenant), self._now()
        if message.cluster not in self.clusters:
            return
        before = self.state(key)
        rows = self.rows.setdefault(key, {})
        state = State(message.state)
        if state is State.CLOSED:
            rows.pop(peer, None)
        else:
            ends = now + message.left_s if message.left_s else 0.0
            rows[peer] = Row(state, now, ends, message.trips, message.reason, message.only)
            if state in _FORCED and key not in self.forced:  # said to a control before this one
                self.forced[key] = Forced(state is State.FORCED_OPEN, ends, message.reason)
        if not rows:
            del self.rows[key]
        self._say(key, before, message)
        if not message.tenant:
            self._changed()

    def endpoint_ejected(self, peer: BusPeer, message: EndpointEjected) -> None:
        """A worker leaves an endpoint out, or takes it in again."""
        key = (message.cluster, message.endpoint)
        if key not in self.watched:
            return
        outs = self.ejected.setdefault(key, {})
        before = bool(outs)
        if message.left_s:
            outs[peer] = Out(self._now() + message.left_s, message.why)
        else:
            outs.pop(peer, None)
        if before is not bool(outs):
            if outs:
                LOG.warning("endpoint %s of %s is ejected for %.0f s: %s", key[1], key[0], message.left_s, message.why)
            else:
                LOG.info("endpoint %s of %s is no longer ejected", key[1], key[0])
        if not outs:
            del self.ejected[key]

    def left(self, peer: BusPeer) -> None:
        """A worker is gone, and what it knew."""
        for rows in self.rows.values():
            rows.pop(peer, None)
        for outs in self.ejected.values():
            outs.pop(peer, None)
        self.rows = {key: rows for key, rows in self.rows.items() if rows}
        self.ejected = {key: outs for key, outs in self.ejected.items() if outs}
        self._changed()

    def _say(self, key: Key, before: State, message: BreakerTurned) -> None:
        after = self.state(key)
        if after is before:
            return
        whose = f"the breaker of {key[0]}" + (f" for tenant {key[1]}" if key[1] else "")
        more = f" for {message.left_s:.1f} s" if after is State.OPEN else ""
        more += f" ({message.reason})" if message.reason else ""
        more += f": only {message.only} asks it" if message.only else ""
        level = logging.WARNING if after in _OPEN else logging.INFO
        LOG.log(level, "%s is %s%s", whose, after.value.replace("_", " "), more)

    # ---- what it comes to

    def state(self, key: Key) -> State:
        """The worst of all workers: nearest to open."""
        return max((row.state for row in self.rows.get(key, {}).values()), key=_RANKS.__getitem__, default=State.CLOSED)

    def unable(self, serving: Iterable[BusPeer]) -> frozenset[str]:
        """Clusters whose own breaker is open in each of these workers.

        Not one that a single tenant asked, since others may still be served; nor one with a fallback, which answers.
        """
        peers = list(serving)
        return frozenset(
            cluster
            for (cluster, tenant), rows in self.rows.items()
            if not (tenant or self.clusters[cluster].fallback)
            and peers
            and all(peer in rows and _is_open(rows[peer]) for peer in peers)
        )

    def tenants(self, cluster: str) -> int:
        """How many tenants of a cluster have a breaker that is not closed."""
        return sum(1 for name, tenant in self.rows if name == cluster and tenant)

    # ---- operators

    def force(self, cluster: str, tenant: str, is_open: bool, lasts_s: float, reason: str) -> None:
        """Hold a breaker in all workers, those that start until then included."""
        now = self._now()
        forced = self.forced[cluster, tenant] = Forced(is_open, now + lasts_s, reason)
        self._broadcast(_asked(cluster, tenant, forced, now))

    def release(self, cluster: str, tenant: str) -> None:
        """Take that back; an open breaker is asked again at once."""
        self.forced.pop((cluster, tenant), None)
        self._broadcast(ForceBreaker(cluster, tenant, ""))


def _is_open(row: Row) -> bool:
    return row.state in _OPEN and not row.only


def _asked(cluster: str, tenant: str, forced: Forced, now: float) -> ForceBreaker:
    return ForceBreaker(cluster, tenant, "open" if forced.is_open else "closed", forced.ends - now, forced.reason)
