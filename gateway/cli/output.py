"""Tables, `--json`, and errors: the one place that decides how a command speaks.

Results go to standard output, errors to standard error, one line each and never a traceback. A table fits a terminal;
where there is none, lines are as long as their content, so that `grep` and `awk` see whole lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Columns of something that is no terminal: wider than any row, so nothing is wrapped or cut."""


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    REFUSED = 3


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """Say why on standard error and end the command."""
    print(f"landbridge: {message}", file=sys.stderr)
    raise typer.Exit(int(code))


def _show(table: Table) -> None:
    """Print it. Markup and emoji codes are off: what is printed is data."""
    if sys.stdout.isatty():
        Console(markup=False, emoji=False, highlight=False).print(table)
        return
    wide = Console(width=PIPE_WIDTH, markup=False, emoji=False, highlight=False)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def print_json(value: Any) -> None:
    """One JSON document, indented, keys in the order given."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One table: a heading, then a row per line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    _show(table)


def print_record(pairs: Iterable[tuple[str, object]]) -> None:
    """One thing's properties, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(cell(value)))
    _show(table)


def cell(value: object) -> str:
    """A value as people read it: `-` for nothing, lists with commas, mappings as `a=b`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return "-" if value is None or value == "" else str(value)
