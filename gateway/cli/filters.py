"""`landbridge filters list`: the chain that a request walks through, in order, with filters of the operator's in it."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path
from typing import Any, Final

from gateway.cli.output import Exit, cell, fail, print_json, print_table
from gateway.settings.filter_check import FilterFact, check_filters
from gateway.settings.loader import load, masked, read_sources
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings

STATUS_LIMIT_S: Final = 1.0
"""A gateway on this machine answers in milliseconds, or there is none."""
BUILT_IN: Final = "built in"
COLUMNS: Final = ("kind", "order", "name", "source", "required", "async", "on error", "options", "state")


def list_filters(config: Path, region: str | None, as_json: bool) -> None:
    """Print the chain of this configuration; exit 2, with every problem, when it cannot be built."""
    environ = {**os.environ, **({"LANDBRIDGE_REGION": region} if region else {})}
    try:
        sources = read_sources(config, environ)
        settings = load(sources, environ)
        finding = check_filters(settings, sources.filters, environ)
        if finding.problems:
            raise Invalid(finding.problems)
    except Invalid as error:
        for problem in error.problems[:-1]:
            print(problem)
        fail(str(error.problems[-1]), Exit.BAD_INPUT)
    running = _running(settings)
    options = masked(settings)["filter_options"]
    rows = [_row(fact, options.get(fact.name, {}), running) for fact in finding.filters]
    if as_json:
        print_json(rows)
        return
    print_table(COLUMNS, [[cell(value) for value in row.values()] for row in rows])


def _row(fact: FilterFact, options: object, running: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "kind": fact.kind,
        "order": fact.order,
        "name": fact.name,
        "source": f"{_shown(fact.file)}:{fact.line}" if fact.file else BUILT_IN,
        "required": fact.required,
        "async": fact.is_async,
        "on_error": fact.on_error or None,
        "options": options,
        "state": _state(fact, running),
    }


def _state(fact: FilterFact, running: dict[str, Any] | None) -> str | None:
    """What the gateway that runs makes of it; None when none runs."""
    if running is None:
        return None
    if fact.file and fact.file not in running["files"]:
        return "not loaded"
    out = sorted(row["worker"] for row in running["removed"] if row["filter"] == fact.name)
    return f"taken out by worker {', '.join(map(str, out))}" if out else "in the chain"


def _running(settings: Settings) -> dict[str, Any] | None:
    """`filters` of the running gateway's status; None when there is none, or it wants a token."""
    admin = settings.listen.admin
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=STATUS_LIMIT_S)
    try:
        connection.request("GET", "/api/v1/status")
        response = connection.getresponse()
        status = json.loads(response.read()) if response.status == 200 else {}
        found = status.get("filters") if status.get("region") == settings.region else None
        return found if isinstance(found, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _shown(path: str) -> str:
    """Relative to where the operator stands, when it is below."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
