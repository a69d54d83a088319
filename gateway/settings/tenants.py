"""`tenants.yaml` to placements: validated against the settings, every problem at once, with file and line.

A file is taken whole or not at all. An emptied file is a problem, never an empty map: half-written YAML is often valid
YAML, and the tenants of a map that lost them are all answered 404.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from gateway.core.addresses import ADDRESSES_MAX
from gateway.core.placement import REGION_NAME, TENANT_ID, Failover, Misroute, Partition, Placement, State, Version
from gateway.core.view import REGION_CLUSTER, HostTemplate
from gateway.settings import document, templates, units
from gateway.settings.document import Path, Source, Table, described, find
from gateway.settings.keys import MISROUTE
from gateway.settings.problems import Invalid, nearest, shown
from gateway.settings.scalars import CLUSTER, NETWORK, REGION
from gateway.settings.schema import Settings
from gateway.settings.shape import Choice, Items, Key, Named, Record, Scalar, Walk
from gateway.settings.throttling import TENANT_LIMITS, problem
from gateway.settings.units import Wanted

EPOCH_MAX: Final = 10**18 - 1
"""Eighteen digits: what a version's text form and every reader of it can hold."""
HOSTS_MAX: Final = 1000
"""Per tenant: a record travels whole in one message."""
TENANTS_BYTES_MAX: Final = 256 * 1024**2
"""A million tenants of the usual size; a larger file is the wrong file."""
LABELS_MAX: Final = 64
LABEL_CHARS_MAX: Final = 256
LABEL_NAME: Final = re.compile(r"[A-Za-z0-9._/-]{1,63}\Z")


def _tenant_id(text: str) -> str:
    if not TENANT_ID.match(text):
        raise Wanted("a tenant id in lower case: 1 to 63 of a-z 0-9 - _")
    return text


def _epoch(text: str) -> int:
    value = units.whole(text)
    if value > EPOCH_MAX:
        raise ValueError("out of range")
    return value


def public_of(text: str) -> str:
    """A tenant's own URL in its one written form. Raises ValueError."""
    if templates.TENANT in text:
        raise Wanted("a URL of this tenant, without {tenant}")
    return templates.public_url(text).render("")


def _label_name(text: str) -> str:
    if not LABEL_NAME.match(text):
        raise ValueError("no label")
    return text


def _label(text: str) -> str:
    if len(text) > LABEL_CHARS_MAX or not text.isprintable():
        raise ValueError("no label")
    return text


STATE: Final = Choice(
    {s.value: s for s in (State.ACTIVE, State.SUSPENDED)}, hint=" (held and deleted are set by the tools only)"
)

TENANT_KEYS: Final[Mapping[str, Key]] = {
    "home": Key(REGION, "The region that serves this tenant.", required=True),
    "standby": Key(Items(REGION, distinct=True), "Regions that may serve it while home cannot, in order.", "[]"),
    "failover": Key(
        Choice({f.value: f for f in Failover}),
        "Which requests a standby serves while home cannot: none, those with safe methods, or every one (the "
        "application is active-active).",
        "manual",
    ),
    "hosts": Key(
        Items(Scalar("host name", "a host name such as shop.acme.com", units.host_name), distinct=True),
        "Custom domains. Each belongs to one tenant.",
        "[]",
    ),
    "public": Key(
        Named(REGION, Scalar("URL", "a URL such as https://eu.shop.acme.com", public_of), label="<region>"),
        "Where this tenant's clients are sent, per region; otherwise the region's template.",
        "{}",
    ),
    "misroute": Key(MISROUTE, "Overrides the gateway's `misroute`."),
    "state": Key(STATE, "`suspended` is answered 403. `held` and `deleted` are set by the tools only.", "active"),
    "cluster": Key(CLUSTER, "The cluster for every request of this tenant; otherwise by route."),
    "limits": Key(
        TENANT_LIMITS, "What is let through of it, before `throttle.tenant`, which holds for what is not named here."
    ),
    "allow": Key(Items(NETWORK, distinct=True), "Where there are some, only clients from these networks.", "[]"),
    "deny": Key(Items(NETWORK, distinct=True), "No client from these networks, whatever `allow` says.", "[]"),
    "partition": Key(
        Choice({p.value: p for p in Partition}),
        "What its requests get while this region is cut off from all others (`tenant_map.partition_after`): they are "
        "served; only GET, HEAD and OPTIONS are; or none is.",
        "serve",
    ),
    "labels": Key(
        Named(
            Scalar("name", "a label of 1 to 63 of A-Z a-z 0-9 . _ / -", _label_name),
            Scalar("text", f"a text of at most {LABEL_CHARS_MAX} characters", _label),
            label="<label>",
        ),
        f"What you want to remember of it; at most {LABELS_MAX}.",
        "{}",
    ),
    "epoch": Key(
        Scalar("whole number", f"a whole number up to {EPOCH_MAX}", _epoch, 0, is_number=True),
        "Written by the tools: grows with every change of home, standby or state.",
    ),
}
"""Every key of a tenant, in the order of the documentation."""

TENANT: Final = Record(dict, TENANT_KEYS)
AN_ID: Final = "a tenant id: 1 to 63 of a-z 0-9 - _"
_TENANT_ID: Final = Scalar("tenant id", AN_ID, _tenant_id)
ROOT: Final = Record(
    dict, {"tenants": Key(Named(_TENANT_ID, TENANT, label="<tenant>"), "Every tenant, by its id.", required=True)}
)


def load_tenants(file: str, text: bytes, settings: Settings) -> list[Placement]:
    """The placements in `text`, in the file's order. `file` is its name in problems. Raises Invalid with all of them.

    Ten thousand tenants take about a second; a caller that must not block parses in another process.
    """
    source = Source(file)
    root, problems = document.parse(source, document.decode(source, text))
    walk = Walk(problems=problems)
    written = root.entries.get("tenants")
    if written is None or (isinstance(written, document.Leaf) and written.is_null):
        line = root.lines.get("tenants", 1)
        walk.note_at(source, line, ("tenants",), "a mapping ({} where there is no tenant)", "nothing")
        root.entries["tenants"] = Table(source, line)
        root.lines["tenants"] = line
    return placements_in(root, walk, settings)


def placements_in(root: Table, walk: Walk, settings: Settings) -> list[Placement]:
    """The placements in a document, in its order. Raises Invalid with all problems, those in `walk` among them."""
    values = cast("dict[str, Any]", ROOT.read(walk, root, ()))
    check = Check(settings, root, walk)
    placements = [check.placement(tenant, record) for tenant, record in values["tenants"].items()]
    if walk.problems:
        raise Invalid(sorted(walk.problems, key=lambda problem: problem.line))
    return placements


class Check:
    """What a tenant's record says of the settings and of other tenants."""

    def __init__(self, settings: Settings, root: Table, walk: Walk) -> None:
        self.settings = settings
        self.root = root
        self.walk = walk
        self.clusters = [name for name in settings.clusters if not name.startswith(REGION_CLUSTER)]
        self.templates = list(host_templates(settings))
        self.hosts: dict[str, Path] = {}
        self.can_hop = bool(settings.hop_keys) or len(settings.regions) < 2

    def placement(self, tenant: str, record: dict[str, Any]) -> Placement:
        self.regions(tenant, record)
        self.claims(tenant, record.get("hosts", ()))
        if (cluster := record.get("cluster")) is not None and cluster not in self.clusters:
            self.note((tenant, "cluster"), f"one of clusters{nearest(cluster, self.clusters)}")
        if len(record.get("labels", ())) > LABELS_MAX:
            self.note((tenant, "labels"), f"at most {LABELS_MAX} labels", str(len(record["labels"])))
        if (limits := record.get("limits")) is not None and not self.is_bad((tenant, "limits")):
            problem((tenant, "limits"), limits.rate, limits.burst, limits.concurrency, self.note, burst_alone=True)
        for key in ("allow", "deny"):
            if len(record.get(key, ())) > ADDRESSES_MAX:
                self.note((tenant, key), f"at most {ADDRESSES_MAX} networks", str(len(record[key])))
        if not self.can_hop:
            self.hops(tenant, record)
        epoch = record.pop("epoch", 0)
        if epoch:
            record["version"] = Version(epoch, 0, "")
        return Placement(tenant=tenant, **record)

    def is_bad(self, path: Path) -> bool:
        """Whether something at or below `path` could not be read."""
        whole = ("tenants", *path)
        return any(bad[: len(whole)] == whole for bad in self.walk.bad)

    def note(self, path: Path, expected: str, found: str = "") -> None:
        whole = ("tenants", *path)
        node = find(self.root, whole)
        self.walk.note(node, whole, expected, found or described(node))

    def regions(self, tenant: str, record: dict[str, Any]) -> None:
        known = self.settings.regions
        home: str = record["home"]
        if home and home not in known:
            self.note((tenant, "home"), f"one of regions{nearest(home, known)}")
        for index, standby in self.listed(tenant, "standby", record.get("standby", ())):
            if standby not in known:
                self.note((tenant, "standby", index), f"one of regions{nearest(standby, known)}")
            elif standby == home:
                self.note((tenant, "standby", index), "a region other than home")
        for region in record.get("public", ()):
            if region not in known and REGION_NAME.match(region):
                expected = f"one of regions{nearest(region, known)}"
                child = find(self.root, ("tenants", tenant, "public", region))
                path = ("tenants", tenant, "public", region)
                self.walk.note(child, path, expected, f"the key {shown(region)}")

    def listed(self, tenant: str, key: str, values: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """The values that could be read, each with its place in the file's list."""
        items = getattr(find(self.root, ("tenants", tenant, key)), "items", ())
        bad = self.walk.bad
        places = [index for index in range(len(items)) if ("tenants", tenant, key, index) not in bad]
        return zip(places, values, strict=False)

    def claims(self, tenant: str, hosts: tuple[str, ...]) -> None:
        """Each host belongs to one tenant, and no template may name another one for it."""
        if not hosts:
            return
        if len(hosts) > HOSTS_MAX:
            self.note((tenant, "hosts"), f"at most {HOSTS_MAX} hosts", str(len(hosts)))
            return
        for index, host in self.listed(tenant, "hosts", hosts):
            path = (tenant, "hosts", index)
            first = self.hosts.setdefault(host, path)
            if first is not path:
                line = find(self.root, ("tenants", *first)).line
                self.note(path, f"a host that no other tenant has (tenants.{first[0]} claims it on line {line})")
            for key, template in self.templates:
                label = template.match(host)
                if label is not None and label != tenant:
                    origin = self.settings.origins.get(key, "")
                    where = f"{key} at {origin}" if origin else key
                    self.note(path, f"a host that names no other tenant ({where} makes it that of {label})")

    def hops(self, tenant: str, record: dict[str, Any]) -> None:
        """Without hop keys nothing can be carried to another region."""
        if record.get("misroute") in (Misroute.AUTO, Misroute.INTERNAL):
            self.note((tenant, "misroute"), "external, since the gateway has no hop_keys")
        if record.get("failover") in (Failover.READS, Failover.ALL):
            self.note((tenant, "failover"), "manual, since the gateway has no hop_keys")


def host_templates(settings: Settings) -> Iterator[tuple[str, HostTemplate]]:
    """Every host template that names a tenant, by its key in the configuration."""
    for name, region in settings.regions.items():
        if region.public is not None:
            key = document.dotted(("regions", name, "public"))
            yield key, templates.public_url(region.public).host
    for index, resolver in enumerate(settings.tenancy.resolvers):
        if resolver.kind == "host":
            yield f"tenancy.resolvers[{index}].host", templates.host_template(resolver.value)
