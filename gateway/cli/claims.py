"""Hosts that a change would give to one tenant while another one has them: in the map the first claim wins, so the
second tenant would have a host that leads nobody to it.

Who has a host says the store of this machine's gateway, where there is one: the map in Redis is not kept by hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.core.placement import Placement
from gateway.core.planning import Change
from gateway.settings.schema import Settings
from gateway.store.reader import Reader
from gateway.store.record import StoreError

CONTESTED_MAX: Final = 1000
"""Beyond these a change is wrong in one way; what is not kept is not looked at."""
NAMED_MAX: Final = 5


class Claims:
    """`owner(host)` is the tenant that has a host now."""

    def __init__(self, owner: Callable[[str], str | None]) -> None:
        self._owner = owner
        self._released: set[tuple[str, str]] = set()
        self._contested: list[tuple[str, str, str]] = []

    def see(self, change: Change, current: Placement | None) -> None:
        """Look at the hosts that this change takes and gives up."""
        before = () if current is None else current.hosts
        after = change.placement.hosts
        if before == after:
            return
        self._released.update((host, change.tenant) for host in before if host not in after)
        for host in after:
            if host in before or len(self._contested) >= CONTESTED_MAX:
                continue
            owner = self._owner(host)
            if owner not in (None, change.tenant):
                self._contested.append((host, change.tenant, str(owner)))

    def rule(self) -> list[str]:
        """The line of the rule that this breaks, if it does: once all changes were seen."""
        found = [
            f"{host} of {tenant} is {owner}'s"
            for host, tenant, owner in self._contested
            if (host, owner) not in self._released
        ]
        if not found:
            return []
        more = len(found) - NAMED_MAX
        return [f"hosts: {', '.join(found[:NAMED_MAX])}" + (f" and {more} more" if more > 0 else "")]


@contextmanager
def claims_of(settings: Settings) -> Iterator[Claims]:
    """By the store of `settings`; where there is none, or it is not complete, nobody is known to have any host."""
    reader = Reader(Path(settings.state_dir) / "map")

    def owner(host: str) -> str | None:
        try:
            return reader.host(host) if reader.complete() else None
        except StoreError:
            return None

    try:
        yield Claims(owner)
    finally:
        reader.close()
