"""What was measured, beside its limit: asserted at once, and printed as one table at the end of `make faults`."""

from __future__ import annotations

from typing import NamedTuple

from tests.support.pace import ALLOWANCE, within


class Row(NamedTuple):
    """One measurement, of a fault by its number or its name; it holds when it is at most its limit."""

    fault: str
    what: str
    value: float
    limit: float
    unit: str


ROWS: list[Row] = []
_SCALES = {
    "s": (1.0, "s", ".2f"),
    "ms": (1e3, "ms", ".1f"),
    "MiB": (2**-20, "MiB", ".1f"),
    "%": (100.0, "%", "+.1f"),
    "": (1.0, "", "g"),
}
"""By unit: what a value is multiplied by to be shown, what stands behind it, how it is written."""


def hold(fault: str, what: str, value: float, limit: float, unit: str = "s") -> None:
    """Keep a measurement and assert that it is within its limit: for times and fractions by the rule of `within`.

    `unit` is how it is shown: `s`, `ms` (both of seconds), `%` (of a fraction), `MiB` (of bytes) or nothing (a count):
    the last two are never allowed for.
    """
    row = Row(fault, what, value, limit, unit)
    ROWS.append(row)
    print(shown(row))
    assert value <= (limit if unit in ("", "MiB") else within(limit)), shown(row)


def shown(row: Row) -> str:
    factor, unit, form = _SCALES[row.unit]
    value, limit = (f"{part * factor:{form}} {unit}".strip() for part in (row.value, row.limit))
    fault = f"FAULTS {row.fault}" if row.fault.isdigit() else row.fault
    return f"{fault}: {row.what}: {value} (limit {limit})"


def table() -> list[str]:
    """All of it, in order of the faults; nothing in `make test`, where the limits are not what is held."""
    if ALLOWANCE != 1:
        return []
    return [shown(row) for row in sorted(ROWS, key=lambda row: (int(row.fault) if row.fault.isdigit() else 99, row))]
