"""The keys of `shedding` and of a route's `priority`, and what they have to say together."""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.core.shedding import PRIORITIES, Shedding
from gateway.core.view import HeaderResolver
from gateway.settings import templates
from gateway.settings.scalars import matching, whole
from gateway.settings.schema import Settings, SheddingSettings
from gateway.settings.shape import Choice, Key, OrNone, Record, Scalar, like
from gateway.settings.throttling import SHADOW
from gateway.settings.units import Wanted

CONCURRENCY_MAX: Final = 1_000_000
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9._/-]{1,63}\Z")
"""As in the tenants file."""


def _field(text: str) -> str:
    """A field that a client may send: never one that the gateway or HTTP itself goes by."""
    try:
        templates.resolver("header", text)
    except Wanted as error:
        raise Wanted(str(error).replace("X-Tenant-ID", "X-Priority")) from None
    return text


LABEL: Final = matching("label's name", "a label's name: 1 to 63 of A-Z a-z 0-9 . _ / -", _LABEL_NAME)
PRIORITY: Final = Choice(dict(PRIORITIES))
FIELD: Final = Scalar(
    "field name", "a field name such as X-Priority", _field, schema=like(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
)
SHEDDING: Final = Record(
    SheddingSettings,
    {
        "min": Key(
            whole(1, CONCURRENCY_MAX),
            "Requests that each cluster may always have in hand, over the gateway's workers.",
            "16",
        ),
        "max": Key(whole(1, CONCURRENCY_MAX), "And the most that it may ever have.", "10000"),
        "label": Key(LABEL, "The tenant label whose value is a class: `critical`, `default` or `bulk`.", "priority"),
        "header": Key(
            OrNone(FIELD),
            "A field whose value is the class, believed from `trusted_proxies` only: they have to set or remove it.",
            "none",
        ),
        "shadow": Key(SHADOW, "Counts what it would refuse, and refuses nothing.", "false"),
    },
)


def judge(settings: Settings, note: Any, is_bad: Any) -> None:
    """Note bounds that cross, a field that nobody could set, and classes that nothing would ask for."""
    written = settings.shedding
    if written is None:
        for index, route in enumerate(settings.routes):
            if route.priority is not None and not is_bad("shedding"):
                note(("routes", index, "priority"), "shedding beside it: without that, no class has a meaning")
        return
    if is_bad("shedding"):
        return
    if written.min > written.max:
        note(("shedding", "min"), f"at most shedding.max ({written.max})")
    if written.header is not None and not settings.trusted_proxies and not is_bad("trusted_proxies"):
        note(("shedding", "header"), "trusted_proxies that may set it, of which there are none")


def view_of(settings: Settings) -> Shedding | None:
    """The rules of a View, with one worker's share of the bounds; None where shedding is off."""
    written = settings.shedding
    if written is None:
        return None
    routes = sorted(settings.routes, key=lambda route: (-len(route.prefix), route.prefix))
    classes = tuple((route.prefix.encode("ascii"), route.priority) for route in routes)
    header = None
    if written.header is not None:
        resolver = templates.resolver("header", written.header)
        assert isinstance(resolver, HeaderResolver)
        header = resolver.name
    return Shedding(
        low=-(-written.min // settings.workers),
        high=-(-written.max // settings.workers),
        label=written.label,
        header=header,
        routes=classes if any(priority for _, priority in classes) else (),
        shadow=written.shadow,
    )
