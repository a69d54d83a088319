"""`${NAME}` and `${file:path}` in values: secrets and addresses that do not belong into a file under version control.

Read again at every load: a secret that was rotated in its file is picked up by a reload. Environment variables are as
they were when the process started. What a reference stands for is never part of a problem's text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

FILE_BYTES_MAX: Final = 64 * 1024
"""A secret or an address; a larger file is the wrong file."""


class Unresolved(Exception):
    """A reference that stands for nothing. `expected` and `found` are for the operator and hold no value."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found


def has_reference(text: str) -> bool:
    return "${" in text


def expand(text: str, environ: Mapping[str, str], folder: str) -> str:
    """`text` with its references replaced; `$${` stands for `${` itself. Raises Unresolved.

    A relative path starts at `folder`, that of the file in which it is written. One line break at the end of a file
    is not part of the secret: editors and `echo` put it there.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if not match[2] or not (_NAME.match(name) or name.startswith("file:")):
            raise Unresolved("${NAME} or ${file:path}", "another use of ${")
        if name.startswith("file:"):
            return _content(os.path.join(folder, name.removeprefix("file:")))
        if name not in environ:
            raise Unresolved(f"the environment variable {name} to be set", "nothing")
        return environ[name]

    return _REFERENCE.sub(value, text)


def _content(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise Unresolved(f"at most {FILE_BYTES_MAX} bytes in {path}", "more")
        text = data.decode("utf-8")
    except OSError as error:
        raise Unresolved(f"to read {path}", (error.strerror or "an error").lower()) from None
    except UnicodeDecodeError:
        raise Unresolved(f"UTF-8 in {path}", "other bytes") from None
    return text.removesuffix("\n").removesuffix("\r")
