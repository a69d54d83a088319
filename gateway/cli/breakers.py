"""`landbridge breakers`: what a gateway's breakers do, and an operator's word about one, over its admin API."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from gateway.cli.admin_client import Gateway
from gateway.cli.output import Exit, fail, note, print_json, print_table
from gateway.settings import units

PATH: Final = "/api/v1/breakers"
COLUMNS: Final = ("cluster", "tenant", "state", "workers", "trips", "ends in", "why")


def listed(gateway: Gateway, as_json: bool) -> int:
    """Every cluster's own, and those of tenants that are not closed."""
    _show(gateway.ask(PATH), as_json)
    return int(Exit.DONE)


def force(
    gateway: Gateway, cluster: str, tenant: str | None, state: str, lasts: str, reason: str | None, as_json: bool
) -> int:
    """Hold a breaker `open` or `closed` for so long, or with `auto` take that back."""
    if not reason or not reason.strip():
        fail("--reason: a change needs one", Exit.BAD_INPUT)
    body = {"reason": reason}
    if state != "auto":
        try:
            units.duration(lasts)
        except ValueError:
            fail(f"--for: expected a duration such as 10m, found {lasts!r}", Exit.BAD_INPUT)
        body["for"] = lasts
    parts = [cluster, *([tenant] if tenant else []), state]
    _show(gateway.ask("/".join([PATH, *(quote(part, safe=":") for part in parts)]), body), as_json)
    return int(Exit.DONE)


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(COLUMNS, [_cells(row) for row in found["breakers"]])
    for row in found["ejected"]:
        note(f"{row['cluster']}: {row['endpoint']} is left out for {row['ends_in_s']:g} s more: {row['reason']}")


def _cells(row: dict[str, Any]) -> list[str]:
    why = row["reason"] or (f"only {row['only']} asks it" if row["only"] else "")
    workers = ", ".join(f"{slot} {state}" for slot, state in sorted(row["workers"].items()))
    ends = "" if row["ends_in_s"] is None else f"{row['ends_in_s']:g} s"
    return [row["cluster"], row["tenant"] or "", row["state"], workers, str(row["trips"] or ""), ends, why]
