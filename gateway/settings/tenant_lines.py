"""Tenants as JSON Lines: one object a line, `{"tenant": "acme", "home": "us-east-1", ...}`, with the keys of the
tenants file, for maps that are too large to be one document.

A line that a struct can take, and that passes the direct checks below, is a record; it costs some 15 us. Every other
line goes through the walk of the tenants file (`tenants`), which either takes it too or says what is wrong with it, in
the same words. So the fast way may refuse what it does not understand, and must never take what the walk refuses; a
property test holds the two together.

No file is ever held whole. What has to be unique over all lines (ids, hosts) is remembered as 8 bytes each; only when
two of these agree the file is read again, to name both lines.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import BinaryIO, Final

import msgspec
from msgspec import UNSET, UnsetType

from gateway.core.addresses import ADDRESSES_MAX
from gateway.core.limits import TenantLimits
from gateway.core.placement import NO_VERSION, TENANT_ID, Failover, Misroute, Partition, Placement, State, Version
from gateway.core.view import REGION_CLUSTER
from gateway.settings import document, tenants, throttling, units
from gateway.settings.document import Leaf, Listing, Node, Path, Source, Table, dotted
from gateway.settings.problems import Invalid, Problem
from gateway.settings.schema import Settings
from gateway.settings.shape import Walk

PROBLEMS_MAX: Final = 100
"""Whoever made a file with more than these made them all in the same way."""

LINE_BYTES_MAX: Final = 256 * 1024
"""Twice the longest record: spaces and escapes may be left out, but not for ever."""

PROGRESS_EVERY: Final = 1000
_SHARDS: Final = 64
_EXAMPLE: Final = 'a JSON object such as {"tenant": "acme", "home": "us-east-1"}'


class _Limits(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    rate: str | UnsetType = UNSET
    burst: int | UnsetType = UNSET
    concurrency: int | UnsetType = UNSET


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line whose values are of the right types. UNSET: not given, which is not the same as null."""

    tenant: str
    home: str
    standby: tuple[str, ...] | UnsetType = UNSET
    failover: Failover | UnsetType = UNSET
    hosts: tuple[str, ...] | UnsetType = UNSET
    public: dict[str, str] | UnsetType = UNSET
    misroute: Misroute | UnsetType = UNSET
    state: State | UnsetType = UNSET
    cluster: str | UnsetType = UNSET
    limits: _Limits | UnsetType = UNSET
    allow: tuple[str, ...] | UnsetType = UNSET
    deny: tuple[str, ...] | UnsetType = UNSET
    partition: Partition | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    epoch: int | UnsetType = UNSET


_OPTIONAL: Final = _Line.__struct_fields__[2:]
_optional: Final = attrgetter(*_OPTIONAL)
_decode: Final = msgspec.json.Decoder(_Line).decode


class TenantLines:
    """A file of tenants by the rules of `settings`; `name` is the file's in problems. Blocks while it reads."""

    def __init__(self, name: str, file: BinaryIO, settings: Settings) -> None:
        self.file = file
        self._source = Source(name)
        self._settings = settings
        check = tenants.Check(settings, Table(self._source, 0), Walk())
        self._templates = [template.match for _, template in check.templates]
        self._clusters = frozenset(name for name in settings.clusters if not name.startswith(REGION_CLUSTER))
        self._can_hop = check.can_hop

    def check(self, progress: Callable[[int], None] = lambda count: None) -> int:
        """Read all of it once; how many tenants there are. Raises Invalid with at most PROBLEMS_MAX problems.

        `progress` hears now and then how many bytes have been read.
        """
        ids, hosts = _Seen(), _Seen()
        problems: list[Problem] = []
        count = size = 0
        for number, line in self._lines():
            size += len(line)
            count += 1
            if count % PROGRESS_EVERY == 0:
                progress(size)
            try:
                placement = self._placement(number, line)
            except Invalid as error:
                problems += error.problems
                if len(problems) >= PROBLEMS_MAX:
                    raise Invalid(problems[:PROBLEMS_MAX]) from None
                continue
            ids.add(placement.tenant)
            for host in placement.hosts:
                hosts.add(host)
        if not count:
            problems.append(Problem(self._source.name, 0, "", "at least one tenant", "nothing"))
        repeated = ids.repeated(), hosts.repeated()
        if any(repeated):
            problems += self._repetitions(*repeated)
        if problems:
            raise Invalid(sorted(problems, key=lambda problem: problem.line)[:PROBLEMS_MAX])
        return count

    def read(self) -> Iterator[Placement]:
        """Every tenant, in the file's order, from the beginning. Raises Invalid at the first one that is none: the
        file is another than the one that was checked.
        """
        for number, line in self._lines():
            yield self._placement(number, line)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines that hold something, by number, without their ends."""
        self.file.seek(0)
        number = 0
        while line := self.file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > LINE_BYTES_MAX:
                found = Problem(self._source.name, number, "", f"a line of at most {LINE_BYTES_MAX} bytes", "more")
                raise Invalid([found])
            line = line.strip()
            if line:
                yield number, line

    def _placement(self, number: int, line: bytes) -> Placement:
        try:
            found = self._fast(_decode(line), line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
            found = None
        return self._slow(number, line) if found is None else found

    # --- the fast way

    def _fast(self, line: _Line, text: bytes) -> Placement | None:
        """The record of this line; None where only the walk can tell. Raises ValueError for the same."""
        known = self._settings.regions
        values = {key: value for key, value in zip(_OPTIONAL, _optional(line), strict=True) if value is not UNSET}
        if not TENANT_ID.match(line.tenant) or line.home not in known:
            return None
        if not _is_each_key_once(line, len(values), text):
            return None
        for key, value in values.items():
            match key:
                case "standby":
                    fits = all(map(known.__contains__, value)) and line.home not in value and _distinct(value)
                case "hosts":
                    values["hosts"] = value = tuple(map(units.host_name, value))
                    fits = len(value) <= tenants.HOSTS_MAX and _distinct(value) and self._are_own(line.tenant, value)
                case "public":
                    values["public"] = {region: tenants.public_of(url) for region, url in value.items()}
                    fits = all(map(known.__contains__, value))
                case "labels":
                    fits = len(value) <= tenants.LABELS_MAX and all(map(_is_label, value.items()))
                case "state":
                    fits = value in (State.ACTIVE, State.SUSPENDED)
                case "cluster":
                    fits = value in self._clusters
                case "misroute":
                    fits = self._can_hop or value is Misroute.EXTERNAL
                case "failover":
                    fits = self._can_hop or value is Failover.MANUAL
                case "limits":
                    values["limits"] = limits = _limits(value)
                    fits = limits is not None
                case "allow" | "deny":
                    values[key] = value = tuple(map(units.network, value))
                    fits = len(value) <= ADDRESSES_MAX and _distinct(value)
                case "epoch":
                    fits = 0 <= value <= tenants.EPOCH_MAX
                case _:
                    fits = True
            if not fits:
                return None
        epoch = values.pop("epoch", 0)
        version = Version(epoch, 0, "") if epoch else NO_VERSION
        return Placement(tenant=line.tenant, home=line.home, version=version, **values)

    def _are_own(self, tenant: str, hosts: Sequence[str]) -> bool:
        """Whether no template makes one of the hosts another tenant's."""
        for host in hosts:
            for match in self._templates:
                if (label := match(host)) is not None and label != tenant:
                    return False
        return True

    # --- the other way

    def _slow(self, number: int, line: bytes) -> Placement:
        """The record of this line by the walk of the tenants file. Raises Invalid."""
        walk = Walk()
        table = self._table(number, line, walk)
        leaf = table.entries.pop("tenant", None)
        if not isinstance(leaf, Leaf) or leaf.is_null:
            found = "nothing" if leaf is None else document.described(leaf)
            raise Invalid([*walk.problems, Problem(self._source.name, number, "tenant", tenants.AN_ID, found)])
        root = Table(self._source, number)
        root.entries["tenants"] = Table(self._source, number, {leaf.text: table}, {leaf.text: number})
        root.lines["tenants"] = number
        (placement,) = tenants.placements_in(root, walk, self._settings)
        return placement

    def _table(self, number: int, line: bytes, walk: Walk) -> Table:
        """The line as a document, with the place of everything; keys that repeat are noted. Raises Invalid."""

        def refusal(expected: str, found: str) -> Invalid:
            return Invalid([Problem(self._source.name, number, "", expected, found)])

        try:
            text = document.decode(self._source, line)
        except Invalid as error:
            raise refusal("UTF-8", error.problems[0].found) from None
        try:
            value = json.loads(
                text, object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number, parse_constant=_refuse
            )
            node = self._node(number, value, walk, _base(value))
        except json.JSONDecodeError as error:
            raise refusal(_EXAMPLE, f"an error at column {error.colno}: {error.msg}") from None
        except (ValueError, RecursionError):
            raise refusal(_EXAMPLE, "a line that is no JSON") from None
        if not isinstance(node, Table):
            raise refusal(_EXAMPLE, document.described(node))
        return node

    def _node(self, number: int, value: object, walk: Walk, path: Path) -> Node:
        source = self._source
        if len(path) > document.DEPTH_MAX:
            raise ValueError("too deep")
        match value:
            case _Pairs():
                table = Table(source, number)
                for key, item in value:
                    inner = self._node(number, item, walk, (*path, key))
                    if key in table.entries:
                        found = Problem(source.name, number, dotted((*path, key)), "this key once", "it again")
                        walk.problems.append(found)
                        continue
                    table.entries[key] = inner
                    table.lines[key] = number
                return table
            case list():
                items = [self._node(number, item, walk, (*path, index)) for index, item in enumerate(value)]
                return Listing(source, number, items)
            case _Number():
                return Leaf(source, number, value)
            case str():
                return Leaf(source, number, value, is_plain=False)
            case _:
                return Leaf(source, number, json.dumps(value))

    # --- over all lines

    def _repetitions(self, ids: frozenset[int], hosts: frozenset[int]) -> Iterator[Problem]:
        """Both lines of everything that stands there twice, given the hashes that do."""
        first: dict[str, int] = {}
        owners: dict[str, tuple[str, int]] = {}
        for number, line in self._lines():
            try:
                placement = self._placement(number, line)
            except Invalid:
                continue
            tenant = placement.tenant
            if _hash(tenant) in ids and (before := first.setdefault(tenant, number)) != number:
                found = f"it again (first on line {before})"
                yield Problem(self._source.name, number, dotted(("tenants", tenant)), "each tenant once", found)
            for index, host in enumerate(placement.hosts):
                if _hash(host) not in hosts:
                    continue
                owner, before = owners.setdefault(host, (tenant, number))
                if owner != tenant:
                    path = dotted(("tenants", tenant, "hosts", index))
                    wanted = f"a host that no other tenant has (tenants.{owner} claims it on line {before})"
                    yield Problem(self._source.name, number, path, wanted, f'"{host}"')


def _base(value: object) -> Path:
    """The path of a line's keys, as in a tenants file."""
    tenant = next((item for key, item in value if key == "tenant"), None) if isinstance(value, _Pairs) else None
    return ("tenants", tenant) if isinstance(tenant, str) else ()


class _Pairs(list[tuple[str, object]]):
    """A JSON object as it stands in the text: keys may repeat."""


class _Number(str):
    """A JSON number as it stands in the text."""

    __slots__ = ()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class _Seen:
    """Texts that were seen, as 8 bytes each, in shards so that sorting needs little memory."""

    def __init__(self) -> None:
        self._shards = [array("Q") for _ in range(_SHARDS)]

    def add(self, text: str) -> None:
        key = _hash(text)
        self._shards[key % _SHARDS].append(key)

    def repeated(self) -> frozenset[int]:
        """The hashes that are there more than once."""
        found: set[int] = set()
        for shard in self._shards:
            found.update(a for a, b in pairwise(sorted(shard)) if a == b)
        return frozenset(found)


def _hash(text: str) -> int:
    return hash(text) & 0xFFFF_FFFF_FFFF_FFFF


def _distinct(values: Sequence[str]) -> bool:
    return len(values) < 2 or len(set(values)) == len(values)


def _limits(written: _Limits) -> TenantLimits | None:
    """These limits, or None where only the walk can tell. Raises ValueError for the same."""
    rate, burst, slots = (None if part is UNSET else part for part in msgspec.structs.astuple(written))
    if rate is burst is slots is None:
        return None
    if burst is not None and not 1 <= burst <= throttling.BURST_MAX:
        return None
    if slots is not None and not 1 <= slots <= throttling.CONCURRENCY_MAX:
        return None
    return TenantLimits(None if rate is None else units.rate(rate), burst, slots)


def _is_label(label: tuple[str, str]) -> bool:
    name, text = label
    return bool(tenants.LABEL_NAME.match(name)) and len(text) <= tenants.LABEL_CHARS_MAX and text.isprintable()


def _is_each_key_once(line: _Line, optional: int, text: bytes) -> bool:
    """Whether no key repeats, which the decoder does not see: then there are as many colons as keys and values have.

    Never true for a line with a key twice, since an escaped colon, which would even the count out, is not counted at
    all; false for some others.
    """
    colons = 2 + optional
    if line.limits is not UNSET:
        colons += sum(part is not UNSET for part in msgspec.structs.astuple(line.limits))
        colons += str(line.limits.rate).count(":")
    for networks in (line.allow, line.deny):
        if networks is not UNSET:
            colons += sum(network.count(":") for network in networks)
    for mapping in (line.public, line.labels):
        if mapping is not UNSET:
            for key, value in mapping.items():
                colons += 1 + key.count(":") + value.count(":")
    return text.count(b":") == colons and b"\\u003" not in text
