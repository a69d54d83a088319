"""What is wrong with a configuration: one line per problem, for the operator who has to mend it.

A problem says where (file and line, or the environment variable), which key, what was expected and what was found.
It never holds a secret: whoever makes one decides what may be shown (`shown`, or a description instead).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final, NamedTuple

SHOWN_CHARS_MAX: Final = 80
"""A longer value would push the rest of the line out of sight; its beginning says which one it is."""


class Problem(NamedTuple):
    """`line` 0: there is none (an environment variable, an unreadable file). `path` may be empty."""

    file: str
    line: int
    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{self.path}: " if self.path else ""
        return f"{where}: {key}expected {self.expected}, got {self.found}"


class Invalid(Exception):
    """A configuration or a tenants file that cannot be used, with every problem that was found in it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def shown(text: str) -> str:
    """`text` in quotes, on one line, cut when long: a value as a problem shows it."""
    cut = text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"
    return f'"{plain(cut)}"'


def plain(text: str) -> str:
    """`text` without anything that would break the line or hide what it says."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean drain?)` when `word` is close to a known one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
