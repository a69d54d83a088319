"""Where a tenant lives: its placement record, and the version that orders two records of one tenant.

Pure values. Everything that decides between two records of the same tenant (a map, a hop, a verdict) compares
versions here and nowhere else, so that every region comes to the same answer.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.core.limits import TenantLimits

TENANT_ID: Final = re.compile(r"[a-z0-9_-]{1,63}\Z")
"""A tenant id as the map holds it: lower case, one DNS label long at most (RFC 1035, 2.3.4), `_` allowed."""

REGION_NAME: Final = re.compile(r"[a-z0-9-]{1,32}\Z")
"""A region's or fleet's name: it stands in `Via` pseudonyms, metrics labels and cluster names."""


class Failover(StrEnum):
    """Which requests may be served by a standby region while home cannot serve."""

    MANUAL = "manual"
    READS = "reads"
    ALL = "all"


class State(StrEnum):
    """What may happen to a tenant's requests at all. `held` and `deleted` are set by tools only."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    HELD = "held"
    DELETED = "deleted"


class Misroute(StrEnum):
    """How a request that entered in the wrong region gets to the right one."""

    AUTO = "auto"
    INTERNAL = "internal"
    EXTERNAL = "external"


class Partition(StrEnum):
    """What a tenant's requests get while this region has heard from no other for too long."""

    SERVE = "serve"
    READ_ONLY = "read_only"
    REFUSE = "refuse"


class Version(NamedTuple):
    """(epoch, hlc, region), compared in that order; the greater wins everywhere.

    `epoch` grows with every change of home, standby or state; `hlc` is a hybrid logical clock in milliseconds;
    `region` breaks the tie. A record that has never been given an epoch has `NO_VERSION`.
    """

    epoch: int = 0
    hlc: int = 0
    region: str = ""

    def __str__(self) -> str:
        return f"{self.epoch}.{self.hlc}.{self.region}"


NO_VERSION: Final = Version()


def parse_version(text: str) -> Version:
    """Read `epoch.hlc.region` as written by `str(version)`. Raises ValueError."""
    epoch, dot, rest = text.partition(".")
    hlc, dot2, region = rest.partition(".")
    if not (dot and dot2 and epoch.isascii() and epoch.isdigit() and hlc.isascii() and hlc.isdigit()):
        raise ValueError(f"expected epoch.hlc.region, found {text!r}")
    if len(epoch) > 19 or len(hlc) > 19 or (region and not REGION_NAME.match(region)):
        raise ValueError(f"expected epoch.hlc.region, found {text!r}")
    return Version(int(epoch), int(hlc), region)


class Placement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One tenant's record in the tenant map.

    `tenant` is lower case. `public` maps a region to the URL where this tenant's clients are sent.
    `cluster` None means "by route"; `misroute` and `limits` None mean the gateway's own.
    `allow` and `deny` are networks of clients.

    What only a replicated record has: `claims` maps a host to the hlc at which this tenant first claimed it, where that
    was an earlier version's; `by` and `why` are actor and reason of the change that made this version; `takeover` says
    that it was made outside the home region.
    """

    tenant: str
    home: str
    standby: tuple[str, ...] = ()
    failover: Failover = Failover.MANUAL
    hosts: tuple[str, ...] = ()
    public: dict[str, str] = {}
    misroute: Misroute | None = None
    state: State = State.ACTIVE
    cluster: str | None = None
    labels: dict[str, str] = {}
    version: Version = NO_VERSION
    partition: Partition = Partition.SERVE
    limits: TenantLimits | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    claims: dict[str, int] = {}
    by: str = ""
    why: str = ""
    takeover: bool = False

    def claimed(self, host: str) -> int:
        """The hlc at which this tenant first claimed `host`, one of `hosts`."""
        return self.claims.get(host, self.version.hlc)


def newer(a: Version, b: Version) -> bool:
    """Whether `a` wins over `b`; equal versions win over nothing."""
    return a > b
