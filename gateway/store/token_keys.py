"""The keys that were last heard of, on disk: what a worker that finds no control, and the next control, start with.

Public keys are no secret, but who could change this file could sign for everybody: it has mode 0600, as all of
`state_dir`. A file that cannot be read is none.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from gateway.core.jwks import BadKeys, TokenKeys, read_keys
from gateway.store.whole import write_whole

FILE: Final = "keys.last-good"
FILE_BYTES_MAX: Final = 16 * 1024**2
"""Far more than the key sets of all resolvers of any configuration."""


def read_kept(state_dir: Path) -> dict[str, TokenKeys]:
    """By source; nothing where there is no file or no such file. Blocks."""
    try:
        with (state_dir / FILE).open("rb") as file:
            found = msgspec.json.decode(file.read(FILE_BYTES_MAX), type=list[TokenKeys])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return {known.source: known for known in found if _is_good(known)}


def _is_good(known: TokenKeys) -> bool:
    """A key set that cannot be read is none: somebody else wrote it, or another program."""
    try:
        return all(read_keys(text, []) for kid, text in known.keys.items() if not kid)
    except BadKeys:
        return False


def write_kept(state_dir: Path, known: Collection[TokenKeys]) -> None:
    """Replace the file, whole or not at all. Raises OSError. Blocks."""
    write_whole(state_dir / FILE, msgspec.json.encode([TokenKeys(one.source, one.keys) for one in known]))
