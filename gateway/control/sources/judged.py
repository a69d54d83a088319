"""What a value of the replicated map is to this gateway: a record to decide by, one that has to wait, or none at all.

Pure. `core.replication` says what a record is anywhere; here it is held against this gateway's configuration with the
rules of a tenants file, so that nobody reaches by Redis what a file would be refused for. What does not pass changes
nothing: that tenant keeps the route that it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.control.replication.region_map import FeedEntry
from gateway.core.placement import REGION_NAME, TENANT_ID, Placement, State
from gateway.core.replication import PLAIN_HEAD, VALUE_BYTES_MAX, BadValue, Offset, decode_value, sum_over
from gateway.core.view import HostTemplate
from gateway.settings import templates, units
from gateway.settings.schema import Settings
from gateway.settings.tenants import HOSTS_MAX, host_templates
from gateway.store.changes import Change


class Reason(StrEnum):
    """Why a value was not taken in: the label of `landbridge_map_rejected_total`."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    """No record, or a damaged one."""
    INVALID = "invalid"
    """A record that no tenants file may hold: a host name or a URL that is none, a host that is another tenant's."""
    UNKNOWN_REGION = "unknown_region"
    """It is kept and waits; the last record that names regions of ours goes on deciding."""
    OLDER = "older"


NAMED_MAX: Final = 80
"""Characters of an id that is none: enough to find it, too few to fill a log."""


_placement: Final = msgspec.json.Decoder(Placement)


class Unfit(ValueError):
    """A value that is not taken in."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Rules:
    """What this gateway's configuration says of records."""

    def __init__(self, settings: Settings) -> None:
        self._regions = frozenset(settings.regions)
        self._templates: list[tuple[str, HostTemplate]] = list(host_templates(settings))

    def read(self, tenant: str, value: bytes) -> Placement:
        """The record in a value. Raises Unfit."""
        if len(value) > VALUE_BYTES_MAX:
            raise Unfit(Reason.OVERSIZED, f"{len(value)} bytes, expected at most {VALUE_BYTES_MAX}")
        try:
            placement = decode_value(tenant, value)
        except BadValue as error:
            raise Unfit(Reason.MALFORMED, str(error)) from error
        if placement.hosts and placement.state is not State.DELETED:
            self._hold_hosts(tenant, placement.hosts)
        if placement.public:
            _hold_public(placement.public)
        return placement

    def is_plain(self, placement: Placement) -> bool:
        """Whether there is nothing to look at but its regions, and these are ours: so it is with most."""
        return (
            not placement.hosts
            and not placement.public
            and placement.home in self._regions
            and self._regions.issuperset(placement.standby)
        )

    def routable(self, placement: Placement) -> bool:
        """Whether all regions that it names are ours. What is deleted needs none."""
        if placement.state is State.DELETED:
            return True
        return placement.home in self._regions and self._regions.issuperset(placement.standby)

    def unknown(self, placement: Placement) -> str:
        """The regions that it names and we do not know, for the log."""
        named = dict.fromkeys((placement.home, *placement.standby))
        return ", ".join(region for region in named if region not in self._regions)

    def _hold_hosts(self, tenant: str, hosts: tuple[str, ...]) -> None:
        if len(hosts) > HOSTS_MAX:
            raise Unfit(Reason.INVALID, f"{len(hosts)} hosts, expected at most {HOSTS_MAX}")
        for host in hosts:
            try:
                is_name = units.host_name(host) == host
            except ValueError:
                is_name = False
            if not is_name:
                raise Unfit(Reason.INVALID, f"hosts: {host[:NAMED_MAX]!r} is no host name in lower case")
            for key, template in self._templates:
                label = template.match(host)
                if label is not None and label != tenant:
                    raise Unfit(Reason.INVALID, f"hosts: {host} is that of {label} by {key}")


def quick(tenant: str, value: bytes) -> Placement | None:
    """`decode_value` for ten thousand entries a second: the same record for a quarter of the time, or None for whatever
    is not plain, which the other one decides, with its word why. The names of regions are the caller's to look at.
    """
    found = PLAIN_HEAD.match(value)
    if found is None or len(value) > VALUE_BYTES_MAX or TENANT_ID.match(tenant) is None:
        return None
    version, epoch, hlc, region, total = found.groups()
    body = value[found.end() :]
    if sum_over(tenant, version, body) != total:
        return None
    try:
        # Id and version go into the body's own object, behind everything else: of two equal keys the last one counts.
        return _placement.decode(
            b'%b,"tenant":"%b","version":[%b,%b,"%b"]}' % (body[:-1], tenant.encode(), epoch, hlc, region)
        )
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _hold_public(public: dict[str, str]) -> None:
    for region, url in public.items():
        try:
            is_url = templates.TENANT not in url and bool(templates.public_url(url))
        except ValueError:
            is_url = False
        if not is_url or not REGION_NAME.match(region):
            raise Unfit(Reason.INVALID, f"public: {url[:NAMED_MAX]!r} is no URL of a scheme, a host and a port alone")


class Rejected(NamedTuple):
    """A value that was not taken in, or has to wait."""

    tenant: str
    value: bytes
    reason: Reason
    why: str


class Judged(NamedTuple):
    """What entries of the feed amount to. `origins`: how far each region's own log is in, once they are applied."""

    changes: list[Change]
    rejected: list[Rejected]
    origins: dict[str, Offset]


def judge_entries(rules: Rules, entries: Iterable[FeedEntry]) -> Judged:
    """In the order of the feed; what a later entry of a tenant does to an earlier one is the store's to decide."""
    judged = Judged([], [], {})
    origins = judged.origins
    for _, tenant, value, origin in entries:
        if origin is not None:
            origins[origin[0]] = origin[1]
        if tenant or value:
            judge_value(rules, tenant, value, judged)
    return judged


def judge_value(rules: Rules, tenant: str, value: bytes, into: Judged) -> None:
    """One value; an empty one says that the tenant is not there any more."""
    placement = quick(tenant, value)
    if placement is not None and rules.is_plain(placement):
        into.changes.append(Change(tenant, placement))
        return
    if not value:
        if TENANT_ID.match(tenant):
            into.changes.append(Change(tenant, None))
        return
    try:
        placement = rules.read(tenant, value)
    except Unfit as unfit:
        into.rejected.append(Rejected(tenant, value, unfit.reason, str(unfit)))
        return
    routable = rules.routable(placement)
    if not routable:
        why = f"it names {rules.unknown(placement)}, which is no region of ours"
        into.rejected.append(Rejected(tenant, value, Reason.UNKNOWN_REGION, why))
    into.changes.append(Change(tenant, placement, routable))
