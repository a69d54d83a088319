"""Compiles a worker's filter chain: the registries in `filters`, in their order, and operators' own among them.

An inbound filter of an operator's runs after all of these, an outbound one before `log`, unless it says `before` or
`after` which filter of its kind it belongs. The built-in ones keep their order, and none of them can be left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from filters import ENDPOINT, INBOUND, OUTBOUND
from gateway.core.filtering import (
    Chain,
    ChainError,
    EndpointFilter,
    FilterFactory,
    InboundFilter,
    OutboundFilter,
    compile_chain,
)
from gateway.core.view import View
from gateway.proxy.added import ON_ERROR, REMOVE, Added, on_error
from gateway.proxy.guard import guarded
from gateway.settings.problems import Problem, nearest, plain, shown

Options = Mapping[str, Mapping[str, object]]

REGISTRIES: Final[dict[str, dict[str, FilterFactory]]] = {
    "inbound": INBOUND,
    "endpoint": ENDPOINT,
    "outbound": OUTBOUND,
}
LAST_BUILT_IN: Final = "log"
"""It writes what the client was sent, so it is the last outbound filter to see it."""
CONFIGURATION: Final = "the configuration"
"""What a problem names where nobody knows the file: a worker is given options, not their lines."""


class Assembled(NamedTuple):
    """A chain, and each filter's place in it by kind; or `chain` None and what is wrong."""

    chain: Chain | None
    order: dict[str, list[str]]
    problems: list[Problem]


def build_chain(view: View, added: Sequence[Added] = ()) -> Chain:
    """Raises ChainError for options that no filter takes, or that one cannot take."""
    return chain_of(view.filter_options, added)


def chain_of(options: Options, added: Sequence[Added] = ()) -> Chain:
    """The chain for these `filters.options`. Raises ChainError with a line for every problem."""
    assembled = assemble(options, added, {})
    if assembled.chain is None:
        raise ChainError("\n".join(map(str, assembled.problems)))
    return assembled.chain


def assemble(options: Options, added: Sequence[Added], origins: Mapping[str, str]) -> Assembled:
    """Name every problem, or make the chain. `origins` says where each `filters.options.<name>` is written."""
    problems: list[Problem] = []
    known = {name: factory for registry in REGISTRIES.values() for name, factory in registry.items()}
    added = _unclashing(added, known, problems)
    every = [*known, *(one.name for one in added)]
    for name in options:
        if name not in every:
            key = f"filters.options.{name}"
            found = f"the key {shown(name)}"
            problems.append(
                Problem(
                    origins.get(key, CONFIGURATION),
                    0,
                    key,
                    f"a filter: one of {', '.join(every)}{nearest(name, every)}",
                    found,
                )
            )
    order = {
        kind: _placed(kind, list(registry), [one for one in added if one.kind == kind], problems)
        for kind, registry in REGISTRIES.items()
    }
    made = _made(known, added, options, origins, problems)
    if problems:
        return Assembled(None, order, problems)
    removable = frozenset(one.name for one in added if on_error(options.get(one.name, {})) == REMOVE)
    try:
        chain = compile_chain(
            cast("list[InboundFilter]", [made[name] for name in order["inbound"]]),
            cast("list[EndpointFilter]", [made[name] for name in order["endpoint"]]),
            cast("list[OutboundFilter]", [made[name] for name in order["outbound"]]),
            removable,
        )
    except ChainError as error:
        origin = next((one for one in added if one.name in str(error)), None)
        where = (origin.file, origin.line) if origin else ("", 0)
        return Assembled(None, order, [Problem(*where, "filters", "a chain that can be built", plain(str(error)))])
    return Assembled(chain, order, [])


def _unclashing(added: Sequence[Added], known: Mapping[str, object], problems: list[Problem]) -> list[Added]:
    """Those whose names are their own."""
    firsts: dict[str, Added] = {}
    for one in added:
        if one.name in known:
            problems.append(Problem(one.file, one.line, "", "a name of its own", f"{one.name}, which is built in"))
        elif one.name in firsts:
            first = firsts[one.name]
            found = f"{one.name}, which {first.file}:{first.line} has"
            problems.append(Problem(one.file, one.line, "", "a name of its own", found))
        else:
            firsts[one.name] = one
    return list(firsts.values())


def _placed(kind: str, order: list[str], added: list[Added], problems: list[Problem]) -> list[str]:
    """The names of a kind in the order of the chain. One may be placed beside one that is itself placed."""
    waiting = list(added)
    followers: dict[str, str] = {}
    while waiting:
        ready = [one for one in waiting if all(name in order for name in (one.before, one.after) if name)]
        if not ready:
            break
        for one in ready:
            waiting.remove(one)
            if one.after:
                last = followers.get(one.after, one.after)  # of several after one filter, the file's order holds
                order.insert(order.index(last) + 1, one.name)
                followers[one.after] = one.name
                if one.before and order.index(one.name) > order.index(one.before):
                    problems.append(Problem(one.file, one.line, "", f"{one.after} to come before {one.before}",
                                            "the other order"))  # fmt: skip
            elif one.before:
                order.insert(order.index(one.before), one.name)
            elif kind == "outbound":
                order.insert(order.index(LAST_BUILT_IN), one.name)
            else:
                order.append(one.name)
    for one in waiting:
        missing = next(name for name in (one.before, one.after) if name and name not in order)
        expected = f"one of the {kind} filters as its place: {', '.join(order)}{nearest(missing, order)}"
        problems.append(Problem(one.file, one.line, "", expected, shown(missing)))
    return order


def _made(
    known: Mapping[str, FilterFactory],
    added: Sequence[Added],
    options: Options,
    origins: Mapping[str, str],
    problems: list[Problem],
) -> dict[str, Any]:
    """Every filter, made with its options; a problem for each that refuses them."""
    made: dict[str, Any] = {}
    for name, factory in known.items():
        given = options.get(name, {})
        try:
            if ON_ERROR in given:
                raise ValueError("on_error is for filters of your own: this one is never taken out")
            made[name] = factory(given)
        except (TypeError, ValueError) as error:
            problems.append(_refused(name, origins.get(f"filters.options.{name}", CONFIGURATION), plain(str(error))))
    for one in added:
        try:
            made[one.name] = guarded(one.name, one.make(options.get(one.name, {})))
        except Exception as error:  # an operator's constructor may raise anything
            text = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            origin = origins.get(f"filters.options.{one.name}", "")
            here = f"{one.file}:{one.line}"
            problems.append(_refused(one.name, origin or here, plain(text) + (f" ({here})" if origin else "")))
    return made


def _refused(name: str, where: str, why: str) -> Problem:
    return Problem(where, 0, f"filters.options.{name}", "options that this filter takes", f"a refusal: {why}")
