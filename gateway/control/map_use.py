"""How far the workers are: what of the store all of them use, which is what a region may be told is in use here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.bus.messages import MapApplied
from gateway.bus.server import BusPeer
from gateway.store.writer import Writer


class MapUse:
    """`peers` are the connections that there are; `acknowledge` is told each time that something is news."""

    def __init__(
        self, writer: Writer, peers: Callable[[], Iterable[BusPeer]], acknowledge: Callable[[int | None], None]
    ) -> None:
        self._writer = writer
        self._peers = peers
        self._acknowledge = acknowledge
        self._seen: dict[BusPeer, tuple[int, int]] = {}

    def applied(self, peer: BusPeer, message: MapApplied) -> None:
        self._seen[peer] = message.generation, message.to_txn
        self.tell()

    def left(self, peer: BusPeer) -> None:
        self._seen.pop(peer, None)
        self.tell()

    def tell(self) -> None:
        """Say what all connected workers use; one that has said nothing holds it back."""
        generation = self._writer.generation
        known = [self._seen.get(peer, (0, 0)) for peer in self._peers() if peer.hello is not None]
        self._acknowledge(min((to_txn if its == generation else 0 for its, to_txn in known), default=None))
