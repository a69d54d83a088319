"""Filters: one step of request policy each, in Zuul's three kinds, chained in a fixed order.

*Inbound* filters see the request before it is routed, in order; the first that answers ends the chain. The *endpoint*
filter that the region step named produces the answer. *Outbound* filters see the response's head, and are told when
the exchange is over. A filter returns None (go on) or an answer; the worker executes it. An error is raised as
`GatewayError`. A filter may be `async def`: only then does its exchange continue in a task.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import msgspec

from gateway.core.errors import GatewayError

if TYPE_CHECKING:
    from gateway.core.exchange import Exchange


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Send the request to a cluster of this View. `reason` stands in the log and in the metrics."""

    cluster: str
    reason: str = ""


class Respond(msgspec.Struct, frozen=True, gc=False):
    """Answer now. `fields` are (name, value) pairs without framing fields: the worker writes those."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


class Park(msgspec.Struct, frozen=True, gc=False):
    """Keep the request until the monotonic time `until`, then run the chain again."""

    until: float


Answer = Forward | Respond | Park


class InboundFilter(Protocol):
    """Runs before routing."""

    name: str

    def __call__(self, exchange: Exchange) -> Answer | Awaitable[Answer | None] | None: ...


class EndpointFilter(Protocol):
    """Produces the answer. It must return one: an endpoint filter cannot go on."""

    name: str

    def __call__(self, exchange: Exchange) -> Answer | Awaitable[Answer]: ...


class OutboundFilter(Protocol):
    """Sees the response's head before it is written (`exchange.response`), and the exchange's end."""

    name: str

    def __call__(self, exchange: Exchange) -> None: ...


@runtime_checkable
class Completes(Protocol):
    """What an outbound filter has besides, when it wants to hear that the exchange is over."""

    def complete(self, exchange: Exchange) -> None: ...


class ChainError(ValueError):
    """A chain that would be unsafe or cannot be built; the message is for the operator."""


FilterFactory = Callable[[Mapping[str, object]], object]
"""A filter's class: called with its options from `filters.options.<name>`. ValueError for options it cannot take."""

Step = Callable[["Exchange"], Any]
"""What the worker calls, whatever its kind."""

REQUIRED_INBOUND: Final = ("identify", "tenant", "region")
"""Without these, in this order, a client could choose its own identity, tenant or region."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A compiled chain: its filters, in order. `is_async` names filters whose result has to be awaited.

    `removable` names those that are taken out when they keep failing; none that carries safety is among them. `steps`,
    `ends` and `outs` are the same filters as bound methods: calling one costs a third of calling its instance.
    """

    inbound: tuple[InboundFilter, ...]
    endpoints: Mapping[str, EndpointFilter]
    outbound: tuple[OutboundFilter, ...]
    completes: tuple[Completes, ...]
    is_async: frozenset[str]
    removable: frozenset[str] = frozenset()
    steps: tuple[Step, ...] = field(init=False, repr=False, compare=False)
    ends: Mapping[str, Step] = field(init=False, repr=False, compare=False)
    outs: tuple[Step, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bound = {
            "steps": tuple(map(_bound, self.inbound)),
            "ends": {name: _bound(end) for name, end in self.endpoints.items()},
            "outs": tuple(map(_bound, self.outbound)),
        }
        for name, value in bound.items():
            object.__setattr__(self, name, value)


def _bound(step: object) -> Step:
    call: Step = step if inspect.isroutine(step) else step.__call__  # type: ignore[operator]
    return call


def name_of(step: object) -> str:
    """The filter's name, of an instance or of what the chain calls; "relay" where it is neither."""
    name: str = getattr(getattr(step, "__self__", step), "name", "relay")
    return name


def compile_chain(
    inbound: Iterable[InboundFilter],
    endpoints: Iterable[EndpointFilter],
    outbound: Iterable[OutboundFilter],
    removable: frozenset[str] = frozenset(),
) -> Chain:
    """Check and freeze a chain. Raises ChainError when a required filter is absent or out of order."""
    steps = tuple(inbound)
    ends = {end.name: end for end in endpoints}
    outs = tuple(outbound)
    names = [step.name for step in steps]
    if [name for name in names if name in REQUIRED_INBOUND] != list(REQUIRED_INBOUND):
        raise ChainError(f"inbound filters must hold {', '.join(REQUIRED_INBOUND)} once each in this order: {names}")
    if not ends:
        raise ChainError("a chain needs an endpoint filter: without one nothing answers")
    every = [*steps, *ends.values(), *outs]
    doubled = {f.name for f in every if sum(g.name == f.name for g in every) > 1}
    if doubled:
        raise ChainError(f"filter names must be unique: {', '.join(sorted(doubled))}")
    waits = [f.name for f in every if _is_async(f)]
    if late := [f.name for f in outs if f.name in waits]:
        raise ChainError(f"outbound filters cannot be async, a response is already on its way: {', '.join(late)}")
    completes = tuple(f for f in outs if isinstance(f, Completes))
    return Chain(steps, ends, outs, completes, frozenset(waits), removable)


class TakenOut:
    """Stands where an endpoint filter was taken out: who is sent to it has no answer, and runs none of its code."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, exchange: Exchange) -> Answer:
        raise GatewayError("internal_error", f"filter {self.name} was taken out")


def without(chain: Chain, name: str) -> Chain:
    """The chain after one of its removable filters failed too often."""
    if name not in chain.removable:
        raise ValueError(f"filter {name} cannot be taken out")
    return replace(
        chain,
        inbound=tuple(step for step in chain.inbound if step.name != name),
        endpoints={key: TakenOut(key) if key == name else end for key, end in chain.endpoints.items()},
        outbound=tuple(step for step in chain.outbound if step.name != name),
        completes=tuple(step for step in chain.completes if getattr(step, "name", None) != name),
        is_async=chain.is_async - {name},
        removable=chain.removable - {name},
    )


_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_FIELD_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")


def field_line(name: str, value: str) -> bytes:
    """One field as a line, for `exchange.forwarded` and `response.added`. ValueError for what no field may hold.

    RFC 9110, 5.1 and 5.5: a line break in a value would begin another field, or another message.
    """
    line = name.encode("latin-1"), value.encode("latin-1")
    if not _FIELD_NAME.match(line[0]) or not _FIELD_VALUE.match(line[1]):
        raise ValueError(f"no field: {name!r}: {value!r}")
    return b"%b: %b" % line


def _is_async(step: object) -> bool:
    call = getattr(step, "__call__", step)  # noqa: B004  an instance's __call__ decides, not its callability
    return inspect.iscoroutinefunction(step) or inspect.iscoroutinefunction(call)


def build_filters(registry: Mapping[str, FilterFactory], options: Mapping[str, Mapping[str, object]]) -> list[object]:
    """Make each filter of a registry, in its order, with its options. Raises ChainError naming filter and reason."""
    made = []
    for name, factory in registry.items():
        try:
            made.append(factory(options.get(name, {})))
        except (TypeError, ValueError) as error:
            raise ChainError(f"filters.options.{name}: {error}") from error
    return made
