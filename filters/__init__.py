"""The request's path, to be read top to bottom: the inbound filters, one of three endpoints, two outbound.

A filter is a thin step. It imports `gateway.core` and nothing else; pools, the map and counters reach it as
`exchange.services`. A new one is a class and a line here.
"""

from __future__ import annotations

from filters.endpoint.forward import ForwardFilter
from filters.endpoint.redirect import RedirectFilter
from filters.endpoint.reply import ReplyFilter
from filters.inbound.access import AccessFilter
from filters.inbound.identify import IdentifyFilter
from filters.inbound.region import RegionFilter
from filters.inbound.shed import ShedFilter
from filters.inbound.tenant import TenantFilter
from filters.inbound.throttle import ThrottleFilter
from filters.outbound.headers import HeadersFilter
from filters.outbound.log import LogFilter
from gateway.core.filtering import FilterFactory

INBOUND: dict[str, FilterFactory] = {
    "identify": IdentifyFilter,
    "tenant": TenantFilter,
    "region": RegionFilter,
    "access": AccessFilter,
    "throttle": ThrottleFilter,
    "shed": ShedFilter,
}
ENDPOINT: dict[str, FilterFactory] = {
    "forward": ForwardFilter,
    "redirect": RedirectFilter,
    "reply": ReplyFilter,
}
OUTBOUND: dict[str, FilterFactory] = {
    "headers": HeadersFilter,
    "log": LogFilter,
}
