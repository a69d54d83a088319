"""What a reload would change, sorted by what the change needs to take effect.

Data is applied in place. Code and sockets need new workers. What a gateway *is* (its region, its fleet, its state, the
source of its map) needs a new start: everything that was ever said or stored under the old name would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gateway.settings.document import dotted
from gateway.settings.schema import Settings

RESTART: Final = frozenset({("region",), ("fleet",), ("state_dir",), ("tenant_map", "source")})
"""Another source holds other tenants under the same versions. Keys of the file, as paths."""
CODE: Final = frozenset({"listen", "workers", "filters"})
"""Top-level keys of the file; what is in neither is data."""
_NOT_MEANT: Final = frozenset({"digest", "origins"})
"""Fields that are derived from the others, or say only where they were written."""
_WRITTEN: Final = {
    "filter_files": ("filters", "paths"),
    "filter_options": ("filters", "options"),
    "tenant_series": ("telemetry", "tenants"),
}
"""Fields of Settings that stand under another key in the file."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Changed keys as the file names them (`clusters.app.timeouts.connect`), sorted. Never a value: some are secret."""

    restart: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.restart or self.code or self.data)


def compare(old: Settings, new: Settings) -> Difference:
    """Every key whose meaning differs; a key that only moved in the file does not."""
    difference = Difference()
    before, after = _plain(old), _plain(new)
    for path in sorted(_changed(before, after, ())):
        top = path[0]
        kind = difference.restart if path in RESTART else difference.code if top in CODE else difference.data
        kind.append(dotted(path))
    return difference


def _plain(settings: Settings) -> dict[str, object]:
    plain: dict[str, object] = {}
    for name, value in msgspec.to_builtins(settings).items():
        if name in _NOT_MEANT:
            continue
        top, *below = _WRITTEN.get(name, (name,))
        if below:
            parent = plain.setdefault(top, {})
            assert isinstance(parent, dict)
            parent[below[0]] = value
        else:
            plain[top] = value
    return plain


def _changed(old: object, new: object, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping) and not _is_address(old) and not _is_address(new):
        found = []
        for key in {**old, **new}:
            found += _changed(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, str(key)))
        return found
    return [path]


_ABSENT: Final = object()


def _is_address(value: Mapping[object, object]) -> bool:
    """A host and a port are one value in the file."""
    return value.keys() == {"host", "port"}
