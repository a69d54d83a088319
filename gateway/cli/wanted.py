"""What an operator wants the map to hold, out of a file: tenants as YAML, or as JSON Lines for a map of any size.

Whichever it is, all of it is checked before anything is done: every problem is a line that says where, and the command
ends with 2. Standard input is kept in a temporary file, since it is read more than once.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, cast

import typer

from gateway.cli.options import Format
from gateway.cli.output import Exit, fail, progress
from gateway.core.placement import Placement
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.settings.tenant_lines import TenantLines
from gateway.settings.tenants import TENANTS_BYTES_MAX, load_tenants

STANDARD_INPUT: Final = "-"
LINES_SUFFIXES: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that was checked. `read()` gives its tenants anew each time, in its order."""

    name: str
    count: int
    _source: list[Placement] | TenantLines

    def read(self) -> Iterator[Placement]:
        return iter(self._source) if isinstance(self._source, list) else self._source.read()


@contextmanager
def wanted_of(file: str, format_: Format | None, settings: Settings) -> Iterator[Wanted]:
    """The tenants in `file` (`-`: standard input); exit 2 with every problem. A name says what it holds, else YAML."""
    name = "<stdin>" if file == STANDARD_INPUT else file
    is_lines = format_ is Format.JSONL or (format_ is None and file.endswith(LINES_SUFFIXES))
    with _opened(file) as opened:
        try:
            if is_lines:
                lines = TenantLines(name, opened, settings)
                with progress(f"checking {name} (bytes)", _size(opened)) as done:
                    wanted = Wanted(name, lines.check(done), lines)
            else:
                text = opened.read(TENANTS_BYTES_MAX + 1)
                if len(text) > TENANTS_BYTES_MAX:
                    fail(f"{name}: more than {TENANTS_BYTES_MAX} bytes: use JSON Lines", Exit.BAD_INPUT)
                placements = load_tenants(name, text, settings)
                wanted = Wanted(name, len(placements), placements)
            yield wanted
        except Invalid as error:
            fail_invalid(error)


def fail_invalid(error: Invalid) -> NoReturn:
    """Print every problem and end with 2."""
    for problem in error.problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(int(Exit.BAD_INPUT))


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """It, so that it can be read from the beginning more than once."""
    if file == STANDARD_INPUT:
        with _spooled(sys.stdin.buffer) as spool:
            yield spool
        return
    try:
        opened = Path(file).open("rb")
    except OSError as error:
        fail(f"{file}: {error.strerror}", Exit.BAD_INPUT)
    with opened:
        if opened.seekable():
            yield opened
            return
        with _spooled(opened) as spool:  # a pipe, as in <(zcat tenants.jsonl.gz)
            yield spool


@contextmanager
def _spooled(stream: BinaryIO) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(stream, spool)
        spool.seek(0)
        yield cast("BinaryIO", spool)


def _size(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    return size
