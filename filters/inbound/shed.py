"""Is there room for it? A request's class, and whether the application and this worker can take it now.

It is the last of what comes before the application, so that what is refused for another reason never counts. Probes
were answered before; a request that another region serves is judged there, by the class that its hop carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.core.client import is_trusted
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer
from gateway.core.http1.fields import Seen
from gateway.core.shedding import PRIORITIES, Priority, Shedding, class_of
from gateway.core.view import Network

PEERS_MAX: Final = 4096
_DEFAULT: Final = Priority.DEFAULT
_NO_LABELS: Final[Mapping[str, str]] = {}


class ShedFilter:
    """Takes no options: the rules are `shedding` and `routes[].priority`."""

    name = "shed"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options; see shedding")
        self._networks: tuple[Network, ...] = ()
        self._trusted: dict[str, bool] = {}

    def __call__(self, exchange: Exchange) -> Answer | None:
        rules = exchange.view.shedding
        if rules is None or exchange.endpoint == "reply":
            return None
        hop, placement = exchange.hop, exchange.placement
        labels = _NO_LABELS if placement is None else placement.labels
        if hop is not None or rules.routes or rules.header is not None:
            fields = None if hop is None else hop.fields
            claimed = self._claimed(exchange, rules) if hop is None else ()
            priority = class_of(rules, fields, claimed, exchange.request.target, labels)
        else:
            priority = PRIORITIES.get(labels.get(rules.label, ""), _DEFAULT) if labels else _DEFAULT
        exchange.services.shedder.admit(exchange, priority)
        return None

    def _claimed(self, exchange: Exchange, rules: Shedding) -> Sequence[bytes]:
        """What a trusted proxy says of the class; of anybody else nothing is believed."""
        request, networks = exchange.request, exchange.view.trusted_proxies
        if rules.header is None or not request.seen & Seen.RESOLVER:
            return ()
        if self._networks is not networks:
            self._networks = networks
            self._trusted.clear()
        trusted = self._trusted.get(exchange.peer)
        if trusted is None:
            if len(self._trusted) >= PEERS_MAX:
                self._trusted.clear()
            trusted = self._trusted[exchange.peer] = is_trusted(exchange.peer, networks)
        return request.values(rules.header) if trusted else ()
