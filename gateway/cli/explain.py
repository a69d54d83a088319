"""`landbridge explain`, in words: which rules were tried for a request, and what they came to.

What is printed comes from `core.explain`, which asks the functions that decide requests: here, by a configuration, or
in a running gateway, by what that one knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.cli.admin_client import ask
from gateway.cli.output import fail
from gateway.core.explain import Explanation, explain
from gateway.core.placement import Partition
from gateway.core.routing import Kind
from gateway.core.tenancy import Step

__all__ = ["Explanation", "as_json", "ask_gateway", "explain", "outcome", "summary"]


def ask_gateway(
    admin: str, token_file: Path | None, insecure: bool, *, host: str, method: str, path: str, headers: Sequence[str]
) -> Explanation:
    """What the gateway whose admin API is at `admin` would do, by its live View. Ends the command if it cannot say."""
    from gateway.control.admin_answers import Explained  # behind it stands all of control

    query = [("host", host), ("method", method), ("path", path), *(("header", line) for line in headers)]
    body = ask(admin, "/api/v1/explain", query, token_file, insecure)
    try:
        fields = msgspec.structs.asdict(msgspec.json.decode(body, type=Explained))
    except (msgspec.DecodeError, UnicodeDecodeError):
        fail(f"{admin} answered with something that is no gateway's")
    fields["steps"] = tuple(Step(step.rule, step.outcome) for step in fields["steps"])
    return Explanation(**fields)


def outcome(answer: Explanation) -> str:
    """One sentence: what would happen."""
    match answer.decision:
        case Kind.LOCAL:
            return f"served here ({answer.entry}) by cluster {answer.cluster}, reason {answer.reason}"
        case Kind.INTERNAL_REDIRECT:
            return f"carried to {answer.region} through {answer.cluster}, reason {answer.reason}"
        case Kind.EXTERNAL_REDIRECT:
            return f"sent to {answer.region} with {answer.status}, Location: {answer.location}"
    return f"refused with {answer.status} {answer.flag}: {answer.detail}"


def summary(answer: Explanation) -> list[tuple[str, object]]:
    """The properties to print, in order; those that were not reached are left out."""
    pairs: list[tuple[str, object]] = [
        ("request", f"{answer.method} {answer.path}"),
        ("host", answer.host),
        ("enters", answer.entry),
    ]
    if answer.tenant is not None:
        pairs.append(("tenant", f"{answer.tenant} (by {answer.named_by})"))
    if answer.home:
        standby = ", ".join(answer.standby) or "none"
        record = f"{answer.state}, home {answer.home}, standby {standby}, failover {answer.failover}"
        policy = f", partition {answer.partition}" if answer.partition != Partition.SERVE else ""
        pairs.append(("record", record + policy))
        pairs.append(("version", answer.version or "none"))
    if answer.written_in:
        pairs.append(("written", f"in {answer.written_in} at {answer.written}"))
        pairs.append(("arrived", f"in {answer.entry} at {answer.arrived}" if answer.arrived else "not known when"))
    pairs += [("decision", answer.decision), ("outcome", outcome(answer))]
    return pairs


def as_json(answer: Explanation) -> dict[str, Any]:
    """For `--json`: every property; each step as `{rule, outcome}`."""
    made: dict[str, Any] = msgspec.to_builtins(answer)
    made["standby"] = list(answer.standby)
    made["steps"] = [{"rule": rule, "outcome": came} for rule, came in answer.steps]
    return made
