"""From files and environment to `Settings`: read, merge, walk, judge; every problem at once, or a configuration.

Two steps on purpose. `read_sources` touches the files named on the command line; `load` understands what it read.
The supervisor keeps the encoded sources of the last good configuration in `state_dir`, so that a worker or a
restarted control can build the same settings with the files gone or broken. Sources are text before expansion: no
secret that a file refers to is ever written there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FsPath
from typing import Any, Final, cast

import msgspec

from gateway.core.placement import REGION_NAME, Misroute
from gateway.core.view import region_cluster
from gateway.settings import document, keys, rules
from gateway.settings.document import Leaf, Listing, Node, Source, Table, merge
from gateway.settings.expansion import Unresolved, expand
from gateway.settings.filter_files import FilterFiles, digest_of, read_filters, unreadable
from gateway.settings.identity import key_paths, read_key_files
from gateway.settings.machine import usable_cores
from gateway.settings.problems import MASK, Invalid, Problem, masked_url
from gateway.settings.schema import (
    REGION_TIMEOUTS,
    AccessLogSettings,
    AdminSettings,
    BreakerSettings,
    ClusterLimitSettings,
    ClusterSettings,
    DnsSettings,
    DrainSettings,
    FilterFile,
    LimitSettings,
    Listen,
    OutlierSettings,
    ProbeSettings,
    RegionSettings,
    RetrySettings,
    RouteSettings,
    Settings,
    TenancySettings,
    TenantMapSettings,
    TimeoutSettings,
)
from gateway.settings.shape import KeyFile, Walk

__all__ = ["Invalid", "Problem", "Sources", "decode_sources", "encode_sources", "load", "read_sources", "warnings_for"]

FILE_BYTES_MAX: Final = 1024 * 1024
"""A configuration of a thousand regions and routes is a tenth of this; a larger file is the wrong file."""
OVERRIDE_PREFIX: Final = "LANDBRIDGE__"
REGION_VARIABLE: Final = "LANDBRIDGE_REGION"
FILTER_PATHS: Final = ("filters", "paths")


class Sources(msgspec.Struct, frozen=True):
    """What a configuration is made of, before expansion. `folder` and `overlay_folder` are absolute.

    `region` is the one that was chosen, empty when none could be found; `region_variable` says that the environment
    chose it. `overlay_text` is None when the region has no overlay.
    """

    file: str
    text: bytes
    folder: str
    region: str = ""
    region_variable: bool = False
    overlay_file: str = ""
    overlay_text: bytes | None = None
    overlay_folder: str = ""
    overrides: dict[str, str] = {}
    filters: FilterFiles = FilterFiles()
    key_files: tuple[KeyFile, ...] = ()


def read_sources(path: FsPath, environ: Mapping[str, str]) -> Sources:
    """Read `gateway.yaml`, choose the region, read its overlay, and the files that `filters.paths` names.

    Raises Invalid when one of the first two cannot be read; of the others `load` tells.

    The region comes from `LANDBRIDGE_REGION`, else `LANDBRIDGE__region`, else the file.
    """
    file = str(path)
    folder = os.path.dirname(os.path.abspath(path))
    text = _read(path)
    overrides = {k: v for k, v in sorted(environ.items()) if k.startswith(OVERRIDE_PREFIX)}
    chosen = environ.get(REGION_VARIABLE)
    region = chosen if chosen is not None else _region_of(Source(file, folder), text, overrides, environ)
    sources = Sources(file, text, folder, region, chosen is not None, overrides=overrides)
    overlay = path.parent / "regions" / f"{region}.yaml"
    if REGION_NAME.match(region) and overlay.exists():
        sources = msgspec.structs.replace(
            sources,
            overlay_file=str(overlay),
            overlay_text=_read(overlay),
            overlay_folder=os.path.dirname(os.path.abspath(overlay)),
        )
    try:
        root = _merged(sources, [])
    except Invalid:  # `load` will say why
        return sources
    if patterns := _filter_patterns(root, environ):
        sources = msgspec.structs.replace(sources, filters=read_filters(patterns))
    if paths := key_paths(root, environ):
        sources = msgspec.structs.replace(sources, key_files=read_key_files(paths))
    return sources


def _filter_patterns(root: Table, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What `filters.paths` says, absolute. Nothing where it cannot be read: `load` will say why."""
    node = document.find(root, FILTER_PATHS)
    found = keys.FILTER_PATHS.read(Walk(environ), node, FILTER_PATHS) if isinstance(node, Listing) else ()
    return tuple(str(path) for path in found) if isinstance(found, tuple) else ()


def _read(path: FsPath) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Invalid([Problem(str(path), 0, "", "a readable file", (error.strerror or "error").lower())]) from error
    if len(text) > FILE_BYTES_MAX:
        raise Invalid([Problem(str(path), 0, "", f"at most {FILE_BYTES_MAX} bytes", "more")])
    return text


def _region_of(source: Source, text: bytes, overrides: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """The region that the file or its override names; empty when `load` will have to say what is wrong with it."""
    written = overrides.get(f"{OVERRIDE_PREFIX}region")
    try:
        if written is None:
            root, _ = document.parse(source, document.decode(source, text))
            leaf = root.entries.get("region")
            written = leaf.text if isinstance(leaf, Leaf) else ""
        return expand(written, environ, source.folder)
    except (Invalid, Unresolved):
        return ""


def encode_sources(sources: Sources) -> bytes:
    """The content of `state_dir/config.last-good`."""
    return msgspec.json.encode(sources)


def decode_sources(data: bytes) -> Sources:
    """Raises ValueError (msgspec's errors are) for anything that `encode_sources` did not make."""
    return msgspec.json.decode(data, type=Sources)


@dataclass(frozen=True, slots=True)
class Reading:
    """The merged document, and what a walk made of it. `settings` holds stand-ins where `walk` noted a problem."""

    root: Table
    walk: Walk
    settings: Settings


def load(sources: Sources, environ: Mapping[str, str]) -> Settings:
    """The configuration, or Invalid with every problem, in the order of the files."""
    reading = _read_all(sources, environ)
    if reading.walk.problems:
        order = {sources.file: 0, sources.overlay_file: 1}
        raise Invalid(sorted(reading.walk.problems, key=lambda p: (order.get(p.file, 2), p.file, p.line)))
    settings = reading.settings
    return msgspec.structs.replace(settings, digest=digest(settings))


def warnings_for(settings: Settings, sources: Sources) -> list[str]:
    """What is valid and probably not meant, one line each. `settings` must come from these `sources`."""
    return rules.warnings(settings, _merged(sources, []))


def _merged(sources: Sources, problems: list[Problem]) -> Table:
    """File, overlay and overrides as one document. Appends to `problems`; raises Invalid when one is not YAML."""
    parts = [(Source(sources.file, sources.folder), sources.text)]
    if sources.overlay_text is not None:
        parts.append((Source(sources.overlay_file, sources.overlay_folder), sources.overlay_text))
    root = Table(parts[0][0], 1)
    broken = False
    for source, text in parts:
        try:
            over, found = document.parse(source, document.decode(source, text))
        except Invalid as error:
            found, broken = error.problems, True
        else:
            root = cast(Table, merge(root, over))
        problems += found
    if broken:  # what the rest would be judged by is not known
        raise Invalid(problems)
    for variable, value in sources.overrides.items():
        root = _overridden(root, Source(variable, sources.folder), value, problems)
    if sources.region_variable:
        source = Source(REGION_VARIABLE, sources.folder)
        root = cast(Table, merge(root, _nested(source, ("region",), Leaf(source, 0, sources.region))))
    return root


def _overridden(root: Table, source: Source, text: str, problems: list[Problem]) -> Table:
    """Lay `LANDBRIDGE__a__b=text` over the document."""
    path = tuple(source.name.removeprefix(OVERRIDE_PREFIX).split("__"))
    if "" in path:
        problems.append(Problem(source.name, 0, "", f"a name such as {OVERRIDE_PREFIX}drain__grace", "an empty key"))
        return root
    for depth in range(1, len(path)):
        above = document.find(root, path[:depth])
        if not isinstance(above, Table):
            problem = Problem(source.name, 0, document.dotted(path[:depth]), "a mapping to set a key in",
                              f"{document.kind_of(above)} (give it whole, as JSON)")  # fmt: skip
            problems.append(problem)
            return root
    return cast(Table, merge(root, _nested(source, path, _override_value(source, text, problems))))


def _nested(source: Source, path: tuple[str, ...], value: Node) -> Node:
    node = value
    for key in reversed(path):
        node = Table(source, 0, {key: node}, {key: 0})
    return node


def _override_value(source: Source, text: str, problems: list[Problem]) -> Node:
    """JSON where it is JSON (a list, a mapping, a quoted text), else the text as it stands: `[::1]:8081` is no list."""
    try:
        if not isinstance(json.loads(text), list | dict | str):
            return Leaf(source, 0, text)
    except ValueError:
        return Leaf(source, 0, text)
    try:
        node, found = document.parse_value(source, text)
    except Invalid as error:  # JSON that YAML does not take: a tab, or a surrogate pair
        problems += [problem._replace(line=0) for problem in error.problems]
        return Leaf(source, 0, "")
    problems += [problem._replace(line=0) for problem in found]
    return _unplaced(node) if node is not None else Leaf(source, 0, "", is_plain=False)


def _unplaced(node: Node) -> Node:
    """Without lines: an environment variable has none."""
    node.line = 0
    if isinstance(node, Table):
        node.lines = dict.fromkeys(node.lines, 0)
        for child in node.entries.values():
            _unplaced(child)
    elif not isinstance(node, Leaf):
        for child in node.items:
            _unplaced(child)
    return node


def _read_all(sources: Sources, environ: Mapping[str, str]) -> Reading:
    walk = Walk(environ, key_files={file.path: file for file in sources.key_files})
    root = _merged(sources, walk.problems)
    values = keys.ROOT.read(walk, root, ())
    assert isinstance(values, dict)
    settings = _settings(values, root, sources)
    rules.judge(settings, root, walk, chosen=sources.region)
    rules.judge_filters(settings, root, walk, sources.filters.unmatched, values.get("filters", {}).get("paths", ()))
    walk.problems.extend(unreadable(sources.filters))
    return Reading(root, walk, settings)


def _settings(values: dict[str, Any], root: Table, sources: Sources) -> Settings:
    """Put the walk's values together. A part that could not be read is as if it were absent."""
    region: str = values["region"]
    regions: dict[str, RegionSettings] = values["regions"]
    listen: Listen = values["listen"]
    tenant_map: dict[str, Any] = {"file": os.path.join(sources.folder, "tenants.yaml"), **values.get("tenant_map", {})}
    clusters: dict[str, Any] = values.get("clusters", {})
    return Settings(
        region=region,
        fleet=values.get("fleet", "landbridge"),
        listen=listen,
        state_dir=values["state_dir"],
        workers=values.get("workers", 0) or usable_cores(),
        trusted_proxies=values.get("trusted_proxies", ()),
        regions=regions,
        hop_keys=values.get("hop_keys", ()),
        clusters=_clusters(clusters, [name for name in regions if name != region]),
        routes=values.get("routes", (RouteSettings("/", "app"),)),
        tenancy=values.get("tenancy", TenancySettings()),
        misroute=values.get("misroute", Misroute.AUTO),
        limits=values.get("limits", LimitSettings()),
        timeouts=values.get("timeouts", TimeoutSettings()),
        drain=values.get("drain", DrainSettings()),
        probes=values.get("probes", ProbeSettings()),
        tenant_map=TenantMapSettings(**tenant_map),
        throttle=values.get("throttle"),
        shedding=values.get("shedding"),
        filter_files=tuple(FilterFile(file.path, digest_of(file.text)) for file in sources.filters.files),
        filter_options=values.get("filters", {}).get("options", {}),
        dns=values.get("dns", DnsSettings()),
        access_log=values.get("access_log", AccessLogSettings()),
        tenant_series=values.get("telemetry", {}).get("tenants", 200),
        admin=values.get("admin", AdminSettings()),
        origins=_origins(root),
    )


def _clusters(values: Mapping[str, Any], others: list[str]) -> dict[str, ClusterSettings]:
    """Applications' clusters as they are, and one of gateways per other region: defaults, `region:*`, its own."""
    clusters = {name: value for name, value in values.items() if isinstance(value, ClusterSettings)}
    for region in others:
        name = region_cluster(region)
        layers = [values.get(region_cluster("*"), {}), values.get(name, {})]
        timeouts = msgspec.structs.asdict(REGION_TIMEOUTS)
        retries: dict[str, Any] = {}
        limits: dict[str, Any] = {}
        breaker: dict[str, Any] | None = {}
        outliers: dict[str, Any] | None = {}
        for layer in layers:
            timeouts |= layer.get("timeouts", {})
            retries |= layer.get("retries", {})
            limits |= layer.get("limits", {})
            breaker = _laid_over(breaker, layer.get("breaker", {}))
            outliers = _laid_over(outliers, layer.get("outliers", {}))
        clusters[name] = ClusterSettings(
            timeouts=type(REGION_TIMEOUTS)(**timeouts),
            retries=RetrySettings(**retries),
            limits=ClusterLimitSettings(**limits),
            breaker=None if breaker is None else BreakerSettings(**breaker),
            outliers=None if outliers is None else OutlierSettings(**outliers),
        )
    return clusters


def _laid_over(below: dict[str, Any] | None, above: dict[str, Any] | None) -> dict[str, Any] | None:
    """A mapping over another, where `none` stands for off: whoever writes a key after that has it on again."""
    return None if above is None else (below or {}) | above if above else below


def _origins(root: Table) -> dict[str, str]:
    """Where each template stands that a tenant's hosts could collide with, and each filter's options."""
    regions = document.find(root, ("regions",))
    paths: list[document.Path] = [("regions", name, "public") for name in getattr(regions, "entries", {})]
    resolvers = document.find(root, ("tenancy", "resolvers"))
    paths += [("tenancy", "resolvers", index, "host") for index in range(len(getattr(resolvers, "items", ())))]
    options = document.find(root, ("filters", "options"))
    if "filters" in root.entries and isinstance(options, Table):
        paths += [("filters", "options", name) for name in options.entries]
    origins = {}
    for path in paths:
        node = document.find(root, path)
        if isinstance(node, Leaf) or path[0] == "filters":
            origins[document.dotted(path)] = f"{node.source.name}:{node.line}" if node.line else node.source.name
    return origins


def digest(settings: Settings) -> str:
    """Sixteen hex digits that change with the configuration's meaning and say nothing of its secrets."""
    bare = msgspec.structs.replace(settings, digest="", origins={})
    return hashlib.sha256(msgspec.msgpack.encode(bare, order="deterministic")).hexdigest()[:16]


SECRET_OPTION: Final = ("key", "token", "secret", "password", "credential")
"""An option whose name holds one of these words is masked: filters' options are the operator's own."""


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain data, fit to be shown: secrets are MASK."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    plain["hop_keys"] = [MASK for _ in settings.hop_keys]
    for token in plain["admin"]["tokens"]:
        token["token"] = MASK
    if (redis := settings.tenant_map.redis) is not None:
        plain["tenant_map"]["redis"] |= {"url": masked_url(redis.url), "peers": redis.masked_peers()}
    for resolver in plain["tenancy"]["resolvers"]:
        for kind, key in (("jwt", "jwks"), ("alb", "keys")):
            if kind in resolver:
                place, query, _ = resolver[kind][key].partition("?")
                resolver[kind][key] = f"{place}?{MASK}" if query else place
    plain["filter_options"] = {name: _masked_options(options) for name, options in settings.filter_options.items()}
    return plain


def _masked_options(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            name: MASK if any(word in str(name).lower() for word in SECRET_OPTION) else _masked_options(item)
            for name, item in value.items()
        }
    return [_masked_options(item) for item in value] if isinstance(value, list | tuple) else value
