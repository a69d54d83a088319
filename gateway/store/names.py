"""The last good answers of name servers on disk: what a worker that finds no control, and the next control, start with.

Without it a gateway that is started again while its name server is down would know no endpoint of names that it knew.
It is a memory, never a truth: whoever reads it replaces it by what is found out. A file that cannot be read is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from gateway.core.conditions import Conditions, Target
from gateway.store.whole import write_whole

FILE: Final = "names.last-good"
FILE_BYTES_MAX: Final = 16 * 1024**2
"""Far more than all names of any configuration at 256 endpoints each."""


class KnownNames(msgspec.Struct, frozen=True):
    """As in `Conditions`: bare name to addresses, endpoint as written to what it stands for."""

    addresses: dict[str, tuple[str, ...]] = {}
    discovered: dict[str, tuple[Target, ...]] = {}

    def conditions(self) -> Conditions:
        return Conditions(addresses=self.addresses, discovered=self.discovered)


def read(state_dir: Path) -> KnownNames:
    """What was kept last; nothing where there is no file or no such file. Blocks."""
    try:
        with (state_dir / FILE).open("rb") as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=KnownNames)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return KnownNames()


def write(state_dir: Path, known: KnownNames) -> None:
    """Replace the file, whole or not at all. Raises OSError. Blocks."""
    write_whole(state_dir / FILE, msgspec.json.encode(known))
