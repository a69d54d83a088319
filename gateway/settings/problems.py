"""What is wrong with a configuration: one line per problem, for the operator who has to mend it.

A problem says where (file and line, or the environment variable), which key, what was expected and what was found.
It never holds a secret: whoever makes one decides what may be shown (`shown`, or a description instead).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

SHOWN_CHARS_MAX: Final = 80
"""A longer value would push the rest of the line out of sight; its beginning says which one it is."""

MASK: Final = "***"
_USERINFO: Final = re.compile(r"(?<=://).*@", re.DOTALL)


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


def masked_url(text: str) -> str:
    """`text` without what may be a user's name and password: all between `://` and the last `@`, if there are both.

    An unencoded password may hold anything, so what looks like a host before that `@` may be a part of it.
    """
    return _USERINFO.sub(f"{MASK}@", text)


def shown(text: str) -> str:
    """`text` in quotes, on one line, without credentials, cut when long: a value as a problem shows it."""
    text = masked_url(text)
    cut = text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"
    return f'"{plain(cut)}"'


def plain(text: str) -> str:
    """`text` without anything that would break the line or hide what it says."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean drain?)` when `word` is close to a known one, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
