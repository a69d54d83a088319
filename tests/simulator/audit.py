"""Who was promised what, and whether it was kept: looks on from outside, and takes part in nothing.

**Kept.** An acknowledged write is, when all is quiet, current or in the history of some region, and nothing older is
current. It may be missing only
(a) if at the moment when a Redis lost data (fell back, was emptied) no other Redis had it, current or in history, and
no gateway had it as its record: replication is asynchronous, and nobody else knew;
(b) if at such a moment it was left as a gateway's record only, and a newer one came to that gateway before it gave this
one back: it gives back what its Redis lacks or has older, and remembers no history;
(c) if some region's history of that tenant is full, since a history remembers the last twenty.

**Ancestry.** Every version has one parent, the version that compare-and-set found, so a tenant's versions are trees.
*Two homes at one epoch*: let E and F be the first writes that raised the epoch (or created the tenant) on the two
branches after the last common ancestor A. Both raised the same epoch. If neither is a takeover, both were written in
the Redis of A's home, by compare-and-set, on records of A's epoch. After the first of the two that Redis held a
greater epoch, for good, unless it lost data in between. So one of these holds: E or F is a takeover (one is enough:
the home region may go on writing meanwhile); A's home lost data between them; there is no A (the tenant was created in
two regions that did not see each other). The same three explain a deleted tenant that is not deleted in the end without
anybody's having written on the tombstone.

**Versions are unique**, unless a clock was stepped, a server was emptied (it forgets its hybrid clock), or data was
lost twice within seconds: the second replica knows nothing of the margin that the first one took, or a region gives
out again what it had written on a record of another that fell as well. Such twins converge by their sums.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

from gateway.core import replication as rules
from gateway.core.placement import Placement, State, Version
from gateway.core.replication import CONFLICTS, LINEAGE_MAX, Outcome
from tests.simulator.redis import HISTORY_MAX, Broken, Record

TWINS_WITHIN_MS: Final = rules.FAILOVER_MARGIN_MS + 10_000


class Write:
    __slots__ = (
        "acked",
        "gone",
        "is_deleted",
        "key",
        "order",
        "parent",
        "placement",
        "region",
        "stored_only",
        "takeover",
        "version",
    )

    def __init__(self, key: Key, parent: Write | None, placement: Placement, region: str, order: int) -> None:
        self.key = key
        self.parent = parent
        self.placement = placement
        self.version: Version = placement.version
        self.takeover = placement.takeover
        self.is_deleted = placement.state is State.DELETED
        self.region = region
        self.order = order
        self.acked = False
        self.gone = False
        self.stored_only = False

    def __repr__(self) -> str:
        return f"{self.key.tenant} {self.version} home {self.placement.home} {self.placement.state}"


class Key(NamedTuple):
    """Names a write for good: two may have one version, not one sum."""

    tenant: str
    sum: str


class Audit:
    """The book of all writes. `excuse_twins`: a clock was stepped or a server emptied."""

    def __init__(self) -> None:
        self.writes: dict[Key, Write] = {}
        self.versions: dict[tuple[str, Version], Key] = {}
        self.losses: dict[str, list[tuple[int, int]]] = {}
        """Region to (number of writes before, time) of each loss."""
        self.overtaken: set[Key] = set()
        """What a gateway had before it had something newer."""
        self.rebuilt: set[str] = set()
        """Tenants with a record that a gateway gave back, without what it had replaced."""
        self.excuse_twins = False
        self.twins = 0
        self.conflicts = 0

    def wrote(self, tenant: str, was: Record | None, now: Record, placement: Placement, region: str) -> Write:
        key = Key(tenant, now.stamp.sum)
        parent = None if was is None else self.writes[Key(tenant, was.stamp.sum)]
        write = self.writes[key] = Write(key, parent, placement, region, len(self.writes))
        if was is not None and now.stamp.version <= was.stamp.version:
            raise Broken(f"{write} does not come after {was.stamp.version}, which it replaces")
        twin = self.versions.setdefault((tenant, write.version), key)
        if twin != key:
            self.twins += 1
            if not (self.excuse_twins or self._fell_together()):
                raise Broken(f"{write} was given twice: the other is {self.writes[twin]}")
        return write

    def _fell_together(self) -> bool:
        """Whether data was lost twice within seconds."""
        times = sorted(time for losses in self.losses.values() for _, time in losses)
        return any(b - a < TWINS_WITHIN_MS for a, b in itertools.pairwise(times))

    def lost(self, region: str, now: int, held: set[Key], stored: set[Key]) -> None:
        """A server lost data; `held` is what any Redis still has, `stored` what is some gateway's record."""
        self.losses.setdefault(region, []).append((len(self.writes), now))
        for write in self.writes.values():
            if write.key not in held:
                if write.key in stored:
                    write.stored_only = True
                else:
                    write.gone = True

    def overtook(self, tenant: str, ours: Record) -> None:
        """A newer record took the place of a gateway's."""
        self.overtaken.add(Key(tenant, ours.stamp.sum))

    def judged(self, tenant: str, was: Record | None, came: Record, outcome: Outcome, history: set[Version]) -> None:
        """Hold a verdict against the true ancestry: no conflict is made up, none overlooked but by a full lineage."""
        if was is None or outcome is Outcome.DUPLICATE or self.twins or tenant in self.rebuilt:
            return
        older, younger = (was, came) if was.stamp.version < came.stamp.version else (came, was)
        if outcome in CONFLICTS:
            self.conflicts += 1
            if self.descends(tenant, younger, older):
                raise Broken(f"{tenant}: {older.stamp.version} is an ancestor of {younger.stamp.version}, no conflict")
        elif (
            len(younger.stamp.replaces) < LINEAGE_MAX
            and came.stamp.version not in history
            and not self.descends(tenant, younger, older)
        ):
            raise Broken(f"{tenant}: {older.stamp.version} and {younger.stamp.version} are a conflict, not {outcome}")

    def descends(self, tenant: str, younger: Record, older: Record) -> bool:
        end = self.writes[Key(tenant, older.stamp.sum)]
        at: Write | None = self.writes[Key(tenant, younger.stamp.sum)]
        while at is not None and at.order > end.order:
            at = at.parent
        return at is end

    # --- at the end

    def check_writes(self, held: set[Key], current: dict[str, Record], full: set[str]) -> None:
        """`held`: everything that is current or in history in any region. `full`: tenants with a full history."""
        for write in self.writes.values():
            if not write.acked or write.gone:
                continue
            record = current.get(write.key.tenant)
            if record is None:
                raise Broken(f"{write} was acknowledged, and the tenant is nowhere")
            if record.stamp.version < write.version:
                raise Broken(f"{write} was acknowledged, and the older {record.stamp.version} is current")
            if write.key in held or write.key.tenant in full:
                continue
            if not (write.stored_only and write.key in self.overtaken):
                raise Broken(f"{write} was acknowledged in {write.region}, and is in no history")

    def check_homes(self) -> None:
        """Two homes at one epoch have their explanation."""
        homes: dict[tuple[str, int], dict[str, Write]] = {}
        for write in self.writes.values():
            homes.setdefault((write.key.tenant, write.version.epoch), {}).setdefault(write.placement.home, write)
        for found in homes.values():
            if len(found) > 1:
                first, *others = found.values()
                for other in others:
                    if not self.is_explained(first, other):
                        raise Broken(f"two homes at one epoch, without a takeover: {first}; {other}")

    def check_deleted(self, current: dict[str, Record]) -> None:
        """Who was deleted is deleted, unless somebody wrote on the tombstone, or the fork is explained."""
        for write in self.writes.values():
            if not (write.is_deleted and write.acked) or write.gone:
                continue
            end = self.writes[Key(write.key.tenant, current[write.key.tenant].stamp.sum)]
            if end.is_deleted:
                continue
            branch: Write | None = end
            while branch is not None and branch is not write:
                branch = branch.parent
            if branch is not write and not self.is_explained(write, end):
                raise Broken(f"{write} was deleted, and came back as {end}")

    def is_explained(self, a: Write, b: Write) -> bool:
        """Whether a takeover, a loss, or a double creation stands where the branches of the two part."""
        lines = [list(_line(write)) for write in (a, b)]
        common: Write | None = None
        while lines[0] and lines[1] and lines[0][-1] is lines[1][-1]:
            common = lines[0].pop()
            lines[1].pop()
        epoch = 0 if common is None else common.version.epoch
        firsts = [next((write for write in reversed(line) if write.version.epoch > epoch), None) for line in lines]
        if any(first is None for first in firsts):
            return False
        one, other = (first for first in firsts if first is not None)
        if common is None and one.region != other.region:
            return True
        home = one.region if common is None else common.placement.home
        low, high = sorted((one.order, other.order))
        return one.takeover or other.takeover or any(low < at <= high for at, _ in self.losses.get(home, ()))


def _line(write: Write | None) -> list[Write]:
    """It, its parent, and so on."""
    line = []
    while write is not None:
        line.append(write)
        write = write.parent
    return line


def keys_of(tenants: dict[str, Record], history: dict[str, tuple[Record, ...]]) -> set[Key]:
    """All that a Redis has, current or in history."""
    held = {Key(tenant, record.stamp.sum) for tenant, record in tenants.items()}
    for tenant, records in history.items():
        held.update(Key(tenant, record.stamp.sum) for record in records)
    return held


def full_histories(history: dict[str, tuple[Record, ...]]) -> set[str]:
    return {tenant for tenant, records in history.items() if len(records) >= HISTORY_MAX}
