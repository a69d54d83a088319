"""Filters that operators write, as text: which files `filters.paths` names, and what is kept of them.

Their text is read together with the configuration and kept beside it in `state_dir/config.last-good`, so that a
worker runs the very text that was validated, whatever happened to the file since. Nothing here executes it: that is
done by workers, and before that by a child process (`filter_check`).
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.settings.problems import Problem

FILE_BYTES_MAX: Final = 256 * 1024
"""A filter is a thin step; what is larger is a program of its own, or the wrong file."""
FILES_MAX: Final = 64
"""A request would walk through all of them."""
_WILD: Final = frozenset("*?[")


class FilterText(msgspec.Struct, frozen=True):
    """One file: its absolute path and its bytes; or what kept it from being read."""

    path: str
    text: bytes = b""
    problem: str = ""


class FilterFiles(msgspec.Struct, frozen=True):
    """What `filters.paths` (absolute, as `patterns`) stood for when it was read; `unmatched` of them for nothing."""

    patterns: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    files: tuple[FilterText, ...] = ()


def matches(pattern: str) -> list[str]:
    """The files that one of `filters.paths` stands for: a file, a folder's *.py, or a pattern's; in order of name.

    In folders and patterns a name that begins with `_` or `.` is left out: `__init__.py`, an editor's copy.
    """
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "*.py")
    elif not _WILD & set(pattern):
        return [pattern] if os.path.exists(pattern) else []
    found = [path for path in glob.glob(pattern) if not os.path.basename(path).startswith(("_", "."))]
    return sorted(path for path in found if path.endswith(".py") and os.path.isfile(path))


def paths_of(patterns: Iterable[str]) -> list[str]:
    """All files, each once, in the order of the patterns."""
    return list(dict.fromkeys(path for pattern in patterns for path in matches(pattern)))


def read_filters(patterns: tuple[str, ...]) -> FilterFiles:
    """Read every file that the patterns stand for. Never raises: what cannot be read says so."""
    unmatched = tuple(pattern for pattern in patterns if not matches(pattern))
    return FilterFiles(patterns, unmatched, tuple(_read(path) for path in paths_of(patterns)[: FILES_MAX + 1]))


def _read(path: str) -> FilterText:
    try:
        with open(path, "rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        return FilterText(path, problem=(error.strerror or "an error").lower())
    if len(text) > FILE_BYTES_MAX:
        return FilterText(path, problem=f"more than {FILE_BYTES_MAX} bytes")
    return FilterText(path, text)


def unreadable(filters: FilterFiles) -> list[Problem]:
    """What is wrong with the files themselves, before anybody looks into them."""
    problems = [
        Problem(file.path, 0, "", f"a readable file of at most {FILE_BYTES_MAX} bytes", file.problem)
        for file in filters.files
        if file.problem
    ]
    if len(filters.files) > FILES_MAX:
        problems.append(Problem(filters.files[-1].path, 0, "filters.paths", f"at most {FILES_MAX} files", "more"))
    return problems


def digest_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
