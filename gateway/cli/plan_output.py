"""How a plan is shown: a line for each tenant that changes, one for each of its keys, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import msgspec

from gateway.cli.output import cell
from gateway.cli.plans import Plan
from gateway.core.planning import Change, Kind

SHOWN_MAX: Final = 100
"""Tenants that are shown one by one: what is longer nobody reads. `--json` has them all."""

SYMBOLS: Final = {Kind.CREATED: "+", Kind.CHANGED: "~", Kind.MOVED: ">", Kind.DELETED: "-"}
STYLES: Final = {Kind.CREATED: "green", Kind.CHANGED: "yellow", Kind.MOVED: "cyan", Kind.DELETED: "red"}


def lines(made: Plan, lost: Iterable[str], own: str) -> Iterator[tuple[str, str]]:
    """(text, style) of a plan for people."""
    taken = frozenset(lost)
    for change in islice(made.changes, SHOWN_MAX):
        style = STYLES[change.kind]
        yield f"  {SYMBOLS[change.kind]} {change.tenant}{_remark(change, taken, own)}", style
        if change.kind is not Kind.DELETED:
            for key, old, new in change.differences:
                was = "" if change.kind is Kind.CREATED else f"{_cell(old)} -> "
                yield f"      {key}: {was}{_cell(new)}", style
    if (more := made.tally.changes - SHOWN_MAX) > 0:
        yield f"  ... and {more} more (plan --json names them all)", ""
    if made.tally.changes:
        yield "", ""
    yield summary(made), "bold"


def summary(made: Plan) -> str:
    """`Plan: 1 to create, 0 to change, ...`: the same words whatever it holds, for `grep`."""
    kinds = made.tally.kinds
    about = "" if made.is_exact or not made.left_alone else "about "
    return (
        f"Plan: {kinds[Kind.CREATED]} to create, {kinds[Kind.CHANGED]} to change, {kinds[Kind.MOVED]} to move, "
        f"{kinds[Kind.DELETED]} to delete; {made.tally.unchanged} unchanged, {about}{made.left_alone} left alone"
    )


def counts(made: Plan) -> dict[str, Any]:
    """The same as JSON."""
    kinds = made.tally.kinds
    return {kind.value: kinds[kind] for kind in Kind} | {
        "unchanged": made.tally.unchanged,
        "left_alone": made.left_alone,
        "left_alone_is_exact": made.is_exact,
    }


def as_json(change: Change, lost: Iterable[str], own: str) -> dict[str, Any]:
    """One change."""
    is_taken = change.region in lost
    return {
        "tenant": change.tenant,
        "kind": change.kind.value,
        "differences": [
            {"key": key, "old": msgspec.to_builtins(old), "new": msgspec.to_builtins(new)}
            for key, old, new in change.differences
        ],
        "expected": None if change.expected is None else str(change.expected),
        "epoch": change.epoch,
        "written_in": own if is_taken else change.region,
        "takeover": is_taken,
    }


def _remark(change: Change, taken: frozenset[str], own: str) -> str:
    remarks = [f"written in {own}, taken over from {change.region}" if change.region in taken else ""]
    remarks.append("was deleted before" if change.kind is Kind.CREATED and change.expected is not None else "")
    remarks.append(f"the file is of epoch {change.stale_epoch}" if change.stale_epoch else "")
    found = "; ".join(filter(None, remarks))
    return f"  ({found})" if found else ""


def _cell(value: object) -> str:
    return cell(list(value) if isinstance(value, tuple) else value)
