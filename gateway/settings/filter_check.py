"""Asks a child process whether the filters of a configuration can be used: operators' files run nowhere else first.

A file may hang, exit or kill the process that imports it. So neither the supervisor, nor control, nor a command does:
a child gets the texts on standard input, has a limit in time, and answers with every problem as JSON. What it says is
all that is believed; that it died is a problem too, of the file that it was at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec

from gateway.settings.filter_files import FilterFiles, FilterText
from gateway.settings.problems import Invalid, Problem, plain
from gateway.settings.schema import Settings

IMPORT_LIMIT_S: Final = 5.0
"""What all files together may take: a worker that takes longer to start is a gap in service."""
LIMIT_S: Final = 15.0
"""When the child is killed: its own start on a busy machine takes seconds, its own limit is the one above."""
MODULE: Final = "gateway.proxy.check_filters"
STDERR_CHARS: Final = 400


class Question(msgspec.Struct, frozen=True):
    """What the child needs to build a chain."""

    files: tuple[FilterText, ...]
    options: dict[str, dict[str, object]]
    origins: dict[str, str]
    limit_s: float = IMPORT_LIMIT_S


class FilterFact(msgspec.Struct, frozen=True):
    """One filter of the chain. `file` and `on_error` (what happens when it keeps failing) are empty for a built-in."""

    name: str
    kind: str
    order: int
    required: bool
    is_async: bool = False
    file: str = ""
    line: int = 0
    on_error: str = ""


class Loading(msgspec.Struct, tag=True, frozen=True):
    """The child is about to execute this file."""

    path: str


class Finding(msgspec.Struct, tag=True, frozen=True):
    """The child's last word."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    filters: tuple[FilterFact, ...] = ()


def check_filters(
    settings: Settings,
    filters: FilterFiles,
    environ: Mapping[str, str] | None = None,
    import_limit_s: float = IMPORT_LIMIT_S,
    limit_s: float = LIMIT_S,
) -> Finding:
    """Build the chain in a child. Blocks for a third of a second, or until a limit. Never raises for a bad file."""
    question = Question(filters.files, settings.filter_options, settings.origins, import_limit_s)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_with_package(os.environ if environ is None else environ),
        start_new_session=True,  # what it starts is ended with it
    )
    in_time = True
    try:
        out, err = child.communicate(msgspec.json.encode(question), timeout=limit_s)
    except subprocess.TimeoutExpired:
        in_time = False
        _kill(child)
        out, err = child.communicate()
    finally:
        _kill(child)
    died = f"an exit with {child.returncode}" if child.returncode >= 0 else f"death by signal {-child.returncode}"
    return _understood(out, err, died if in_time else f"nothing within {limit_s:g} s")


def require_filters(settings: Settings, filters: FilterFiles, environ: Mapping[str, str]) -> None:
    """Raise Invalid with every problem, so that a start is refused before a worker fails. Without options, no child."""
    if settings.filter_files or settings.filter_options:
        finding = check_filters(settings, filters, environ)
        if finding.problems:
            raise Invalid(finding.problems)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child, and whatever a filter file has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _with_package(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, in which the child finds the very package that runs here: a checkout is on nobody's path."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    child = dict(environ)
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        child["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))
    return child


def _understood(out: bytes, err: bytes, end: str) -> Finding:
    """The child's last word; or, when it ended without one, how, and at which file."""
    at = ""
    for line in out.splitlines():
        try:
            said = msgspec.json.decode(line, type=Loading | Finding)
        except msgspec.DecodeError:
            continue
        if isinstance(said, Finding):
            return said
        at = said.path
    last = err.decode(errors="replace").strip().rpartition("\n")[2][:STDERR_CHARS]
    return Finding((Problem(at, 1 if at else 0, "", "filters that can be loaded", plain(f"{end} {last}".strip())),))
