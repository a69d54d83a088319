"""`landbridge throttles`: the limits that refuse, or are about to, as a gateway's admin API tells them."""

from __future__ import annotations

from typing import Any, Final

from gateway.cli.admin_client import Gateway
from gateway.cli.output import Exit, note, print_json, print_table

PATH: Final = "/api/v1/throttles"
COLUMNS: Final = ("limit of", "name", "what", "asked for", "share", "refused")


def throttles(gateway: Gateway, as_json: bool) -> int:
    """Print what is hot, most refused first."""
    found = gateway.ask(PATH)
    if as_json:
        print_json(found)
        return int(Exit.DONE)
    print_table(COLUMNS, [_cells(row) for row in found["hot"]])
    others = f"{found['gateways']} gateways" if found["shared_by"] == "region" else "this gateway"
    note(f"shared by the workers of {others}; demand and share are this gateway's, as parts of the whole limit")
    if found["problem"]:
        age = "" if found["age_s"] is None else f" (its last word is {found['age_s']:.0f} s old)"
        note(f"the region's Redis cannot be asked{age}: {found['problem']}")
    return int(Exit.DONE)


def _cells(row: dict[str, Any]) -> list[str]:
    parts = (f"{100 * row[key]:.1f} %" for key in ("demand", "share"))
    return [row["scope"], row["name"] or "", row["limit"], *parts, str(row["refused"])]
