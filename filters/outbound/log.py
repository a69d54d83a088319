"""The access log: one line per exchange, when it is over."""

from __future__ import annotations

import random
from collections.abc import Mapping

from gateway.core.exchange import Exchange


class LogFilter:
    """Takes no options; `access_log.sample` says which share of exchanges is written."""

    name = "log"

    def __init__(self, options: Mapping[str, object]) -> None:
        if options:
            raise ValueError("takes no options")

    def __call__(self, exchange: Exchange) -> None:
        """Nothing to do while the response is on its way."""

    def complete(self, exchange: Exchange) -> None:
        if exchange.reason == "peer":  # gateways ask each other every second: no request, and much noise
            return
        sample = exchange.view.access_log_sample
        if exchange.view.access_log_path is not None and (sample >= 1.0 or random.random() < sample):
            exchange.services.log_exchange(exchange)
