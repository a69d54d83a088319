"""Tables, `--json`, and errors: the one place that decides how a command speaks.

Results go to standard output, errors to standard error, one line each and never a traceback. A table fits a terminal;
where there is none, lines are as long as their content, so that `grep` and `awk` see whole lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Columns of something that is no terminal: wider than any row, so nothing is wrapped or cut."""


class Exit(IntEnum):
    """What a command's exit code says. DIFFERS is said only where it was asked for (`plan --detailed-exitcode`)."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    REFUSED = 3
    DIFFERS = 4


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """Say why on standard error and end the command."""
    print(f"landbridge: {message}", file=sys.stderr)
    raise typer.Exit(int(code))


def note(message: str) -> None:
    """Say something that is no result, on standard error, and go on."""
    print(f"landbridge: {message}", file=sys.stderr)


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Lines with a style each, which shows on a terminal only."""
    if not sys.stdout.isatty():
        for text, _ in lines:
            print(text)
        return
    console = Console(markup=False, emoji=False, highlight=False)
    for text, style in lines:
        console.print(Text(text, style=style))


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal; what is given takes how far it is. `total` None: unknown."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


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


def print_json_list(name: str, items: Iterable[Any], rest: Callable[[], dict[str, Any]]) -> None:
    """One JSON document with a list that may be long, a line each, as the first of its keys; then what `rest` says."""
    print(f"{{\n  {json.dumps(name)}: [", end="")
    comma = ""
    for item in items:
        print(f"{comma}\n    {json.dumps(item, ensure_ascii=False)}", end="")
        comma = ","
    body = json.dumps(rest(), indent=2, ensure_ascii=False)
    print("\n  ]" + (f",{body[1:-2]}" if len(body) > 2 else "") + "\n}")


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


def time_of(ms: int) -> str:
    """Unix milliseconds as people read them, in UTC."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # of a clock that was far ahead
        return f"{ms} ms"


def cell(value: object) -> str:
    """A value as people read it: `-` for nothing, lists with commas, mappings as `a=b`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return "-" if value is None or value == "" else str(value)
