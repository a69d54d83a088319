"""The keys of `throttle`, of a route's and of a tenant's limits, and what they have to say together."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

from gateway.core.limits import Limit, TenantLimits, Throttle, limit_of
from gateway.core.placement import TENANT_ID
from gateway.settings import units
from gateway.settings.document import Path
from gateway.settings.scalars import NETWORK, matching, whole
from gateway.settings.schema import ClientRule, ExemptSettings, RuleSettings, Settings, ThrottleSettings
from gateway.settings.shape import Items, Key, Record, Scalar, like
from gateway.settings.units import Wanted

BURST_MAX: Final = 10_000_000
CONCURRENCY_MAX: Final = 1_000_000
BY_ADDRESS: Final = "address"
BY_HEADER: Final = "header:"
_HEADER: Final = re.compile(r"header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")


def _by(text: str) -> str:
    if text != BY_ADDRESS and not _HEADER.match(text):
        raise Wanted("address or header:NAME")
    return text


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("no switch")
    return text == "true"


RATE: Final = Scalar("rate", "a rate such as 200/s", units.rate, 1.0, schema=like(units.RATE))
SHADOW: Final = Scalar("true or false", "true or false", _switch, False, is_number=True, schema={"type": "boolean"})
BY: Final = Scalar(
    "`address` or `header:NAME`",
    "address or header:NAME",
    _by,
    BY_ADDRESS,
    schema=like(rf"{BY_ADDRESS}|{_HEADER.pattern[:-2]}"),
)
TENANT: Final = matching("tenant id", "a tenant id: 1 to 63 of a-z 0-9 - _", TENANT_ID)

LIMITS: Final = {
    "rate": Key(RATE, "Requests in a second, minute or hour: `200/s`, `90/m`, `1000/h`."),
    "burst": Key(whole(1, BURST_MAX), "So many may come at once; without it one second's worth of the rate."),
    "concurrency": Key(whole(1, CONCURRENCY_MAX), "Requests at once."),
}
_SHADOW: Final = {"shadow": Key(SHADOW, "Counts what it would refuse, and refuses nothing.", "false")}
RULE: Final = Record(RuleSettings, {**LIMITS, **_SHADOW})
CLIENT: Final = Record(
    ClientRule,
    {
        **LIMITS,
        "by": Key(
            BY,
            "Who counts as one client: an address (of IPv6 a /64), or the value of a field; a request without it goes "
            "by its address. A field is worth what whoever sets it is.",
            BY_ADDRESS,
        ),
        **_SHADOW,
    },
)
EXEMPT: Final = Record(
    ExemptSettings,
    {
        "addresses": Key(Items(NETWORK, distinct=True), "Networks of clients that no limit holds for.", "[]"),
        "tenants": Key(Items(TENANT, distinct=True), "Tenants that no limit holds for.", "[]"),
    },
)
THROTTLE: Final = Record(
    ThrottleSettings,
    {
        "tenant": Key(RULE, "Each tenant, over all gateways of a region; a tenant's own `limits` go before it."),
        "client": Key(CLIENT, "Each client, where it enters: a hop from another region is not charged again."),
        "gateway": Key(RULE, "Everything that this gateway is asked, over its workers."),
        "exempt": Key(EXEMPT, "For whom no limit holds. Probes are never throttled."),
    },
)
TENANT_LIMITS: Final = Record(TenantLimits, LIMITS)


def judge(settings: Settings, note: Any, is_bad: Any) -> None:
    """Note rules that limit nothing, and bursts without a rate. `note(path, expected, found)`, `is_bad(*path)`."""
    throttle = settings.throttle
    rules: list[tuple[Path, RuleSettings | ClientRule | None]] = [
        (("routes", index, "throttle"), route.throttle) for index, route in enumerate(settings.routes)
    ]
    if throttle is not None:
        rules += [(("throttle", name), getattr(throttle, name)) for name in ("tenant", "client", "gateway")]
    for path, rule in rules:
        if rule is not None and not is_bad(*path):
            problem(path, rule.rate, rule.burst, rule.concurrency, note, burst_alone=False)


def problem(
    path: Path, rate: float | None, burst: int | None, concurrency: int | None, note: Any, *, burst_alone: bool
) -> None:
    """Note what is wrong with one rule: a tenant's `burst` may go with the default's rate (`burst_alone`)."""
    if burst is not None and rate is None and not burst_alone:
        note((*path, "burst"), "a rate beside it: a burst is how many of its requests may come at once")
    elif rate is None and burst is None and concurrency is None:
        note(path, "a rate or a concurrency")


def view_of(settings: Settings) -> Throttle | None:
    """The limits of a View; None when the configuration has none."""
    written = settings.throttle or ThrottleSettings()
    routes = sorted(settings.routes, key=lambda route: (-len(route.prefix), route.prefix))
    limits = tuple((route.prefix.encode("ascii"), _limit(route.throttle)) for route in routes)
    by = BY_ADDRESS if written.client is None else written.client.by
    found = Throttle(
        tenant=_limit(written.tenant),
        client=_limit(written.client),
        client_header=by.removeprefix(BY_HEADER).lower().encode("ascii") if by != BY_ADDRESS else None,
        gateway=_limit(written.gateway),
        routes=limits if any(limit for _, limit in limits) else (),
        exempt_networks=tuple(ipaddress.ip_network(network) for network in written.exempt.addresses),
        exempt_tenants=frozenset(written.exempt.tenants),
    )
    return None if found == Throttle() else found


def _limit(rule: RuleSettings | ClientRule | None) -> Limit | None:
    return None if rule is None else limit_of(rule.rate, rule.burst, rule.concurrency, rule.shadow)
