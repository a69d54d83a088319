"""`landbridge tenants history|rollback`: what a record was, what took its place, and bringing an earlier one back.

A version that was replaced by one that does not descend from it was in conflict: two regions wrote without knowing of
each other, one of the two won everywhere, and the other is kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gateway.cli.apply import Options, carry_out, tenant_id
from gateway.cli.claims import claims_of
from gateway.cli.output import Exit, fail, note, print_json, print_table, time_of
from gateway.cli.plans import Plan, make_edits
from gateway.cli.regions import Regions, redis_of, run
from gateway.cli.tenants import as_dict, settings_of
from gateway.control.replication.region_map import RegionMap
from gateway.core.placement import NO_VERSION, Placement, State, Version, parse_version
from gateway.core.planning import KEYS
from gateway.core.replication import BadValue, Stamp, decode_value, descends, stamp_of


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a record. `replaced_by` None: it is the current one. `at_ms`: when it was replaced, here.

    `conflict`: what replaced it did not know of it. `changed`: the keys in which it differs from the version that it
    replaced; None where that one is not known any more.
    """

    placement: Placement
    stamp: Stamp
    at_ms: int | None
    replaced_by: Version | None
    conflict: bool
    changed: tuple[str, ...] | None

    @property
    def version(self) -> Version:
        return self.stamp.version


async def entries(map_: RegionMap, tenant: str) -> list[Entry]:
    """The current version and the earlier ones that a region keeps, newest first. Raises MapUnavailable."""
    (value,) = await map_.get([tenant])
    rows: list[tuple[bytes, int | None, Version | None]] = [] if value is None else [(value, None, None)]
    rows += [(entry.value, entry.at_ms, entry.by) for entry in await map_.history(tenant)]
    read: list[tuple[Placement, Stamp, int | None, Version | None]] = []
    for value, at_ms, by in rows:
        try:
            read.append((decode_value(tenant, value), stamp_of(value), at_ms, by))
        except BadValue as error:
            note(f"a version of {tenant} cannot be read: {error}")
    stamps = {stamp.version: stamp for _, stamp, _, _ in read}
    placements = {stamp.version: placement for placement, stamp, _, _ in read}
    return [
        Entry(
            placement=placement,
            stamp=stamp,
            at_ms=at_ms,
            replaced_by=by,
            conflict=by in stamps and not descends(stamps[by], stamp.version),
            changed=_changed(placement, placements.get(stamp.replaces[0])) if stamp.replaces else None,
        )
        for placement, stamp, at_ms, by in read
    ]


def _changed(placement: Placement, before: Placement | None) -> tuple[str, ...] | None:
    if before is None:
        return None
    if placement.state is State.DELETED:
        return ("state",)  # what it was is in the version before
    return tuple(key for key in KEYS if getattr(placement, key) != getattr(before, key))


def history(config: Path, region: str | None, tenant: str, as_json: bool) -> int:
    """Print every version of a tenant that this region knows."""
    settings = settings_of(config, region)
    redis_of(settings)
    name = tenant_id(tenant)

    async def work() -> list[Entry]:
        async with Regions(settings) as regions:
            return await entries(regions.here, name)

    found = run(work())
    if not found:
        fail(f"no such tenant: {name}")
    if as_json:
        print_json({"tenant": name, "versions": [_as_json(entry) for entry in found]})
        return int(Exit.DONE)
    columns = ("version", "written", "by", "reason", "home", "state", "changed", "replaced by", "remark")
    print_table(columns, map(_row, found))
    return int(Exit.DONE)


def _row(entry: Entry) -> tuple[object, ...]:
    placement = entry.placement
    changed = ("-" if entry.stamp.replaces else "created") if entry.changed is None else ", ".join(entry.changed)
    remarks = [
        "current" if entry.replaced_by is None else "",
        "conflict: lost" if entry.conflict else "",
        "takeover" if placement.takeover else "",
    ]
    return (
        str(entry.version),
        time_of(entry.version.hlc),
        placement.by,
        placement.why,
        placement.home,
        placement.state.value,
        changed or "nothing",
        None if entry.replaced_by is None else str(entry.replaced_by),
        ", ".join(filter(None, remarks)),
    )


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "version": str(entry.version),
        "written": time_of(entry.version.hlc),
        "current": entry.replaced_by is None,
        "replaces": [str(version) for version in entry.stamp.replaces],
        "replaced_by": None if entry.replaced_by is None else str(entry.replaced_by),
        "replaced": None if entry.at_ms is None else time_of(entry.at_ms),
        "conflict": entry.conflict,
        "changed": None if entry.changed is None else list(entry.changed),
        "record": as_dict(entry.placement),
    }


# --- rollback


def rollback(config: Path, region: str | None, tenant: str, to: str | None, options: Options) -> int:
    """Make a tenant again what an earlier version of it said, as a new version."""
    settings = settings_of(config, region)
    redis_of(settings)
    name = tenant_id(tenant)
    author, limits = options.author("rollback"), options.limits(settings)
    wanted_version = _version(to)
    options.can_ask()

    async def work(made: Plan) -> int:
        async with Regions(settings) as regions:
            known = await entries(regions.here, name)
            target = _target(name, known, wanted_version)
            state = State.ACTIVE if target.placement.state is State.HELD else target.placement.state
            wanted = msgspec.structs.replace(target.placement, version=NO_VERSION, state=state)
            if not options.as_json:
                print(f"{name}: back to {target.version} of {time_of(target.version.hlc)}")
            await make_edits(made, regions, settings, {name: wanted}, author)
            command = f"tenants rollback {name} --to {target.version}"
            return await carry_out(regions, settings, made, author, limits, options, command)

    with claims_of(settings) as claims, Plan(claims=claims) as made:
        return run(work(made))


def _version(text: str | None) -> Version | None:
    try:
        return None if text is None else parse_version(text)
    except ValueError as error:
        fail(f"--to: {error} (`history` lists them)", Exit.BAD_INPUT)


def _target(tenant: str, known: list[Entry], version: Version | None) -> Entry:
    """The version to go back to: the one that was asked for, else the one that the current one replaced."""
    if not known or known[0].replaced_by is not None:
        fail(f"no such tenant: {tenant}")
    if version is not None:
        found = next((entry for entry in known if entry.version == version), None)
        if found is None:
            fail(f"{tenant} has no version {version} here (`landbridge tenants history {tenant}` lists them)")
        return found
    before = known[0].stamp.replaces[:1]
    found = next((entry for entry in known[1:] if (entry.version,) == before), None)
    if found is None:
        fail(f"no version of {tenant} before the current one is known here")
    return found
