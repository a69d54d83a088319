"""`landbridge tenants list|get`, and where it and `map status` read from.

With `-c` alone they read the store in that configuration's `state_dir`: what this machine's gateway decides by, also
while no gateway runs. With `--file` they read a tenants file instead, by the rules of the same configuration (its
regions, its host templates), so `-c` names a valid configuration in both cases. Nothing here ever writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gateway.cli.output import Exit, fail, print_json, print_record, print_table
from gateway.cli.wanted import fail_invalid, wanted_of
from gateway.core.limits import written_limits
from gateway.core.placement import NO_VERSION, Placement, State
from gateway.core.view import View
from gateway.settings.loader import load, read_sources
from gateway.settings.problems import Invalid
from gateway.settings.schema import MapSource, Settings
from gateway.settings.view import assumed, build_view
from gateway.store.reader import Reader
from gateway.store.record import StoreError

PAGE: Final = 1000
"""Records per read transaction: a listing never holds one open while it prints."""


def settings_of(config: Path, region: str | None) -> Settings:
    """The configuration of `-c`, or every problem in it and exit 2."""
    environ = dict(os.environ)
    if region:
        environ["LANDBRIDGE_REGION"] = region
    try:
        return load(read_sources(config, environ), environ)
    except Invalid as error:
        fail_invalid(error)


def placements_of(file: Path, settings: Settings) -> list[Placement]:
    """The records of a tenants file in order of their ids, or every problem in it and exit 2."""
    with wanted_of(str(file), None, settings) as wanted:
        return sorted(wanted.read(), key=lambda placement: placement.tenant)


@contextmanager
def store_of(settings: Settings) -> Iterator[Reader]:
    """The store, read-only; exit 1 when it cannot be read."""
    reader = Reader(Path(settings.state_dir) / "map")
    try:
        yield reader
    except StoreError as error:
        fail(f"the map in {settings.state_dir} cannot be read: {error}")
    finally:
        reader.close()


def records(settings: Settings, file: Path | None) -> Iterator[Placement]:
    """Every record in order of ids: of `file`, or of the store (exit 1 while that is not complete)."""
    if file is not None:
        yield from placements_of(file, settings)
        return
    with store_of(settings) as reader:
        if not reader.complete():
            fail(f"the map in {settings.state_dir} is not complete: has a gateway run there? (or name a --file)")
        after = ""
        while page := reader.page(after, PAGE):
            yield from page
            after = page[-1].tenant


class Lookup(NamedTuple):
    """What `explain` decides by: this region's View (everything up and able), and a map with where it came from.

    `arrived` is None where the map is no gateway's, but a file.
    """

    view: View
    host_owner: Callable[[str], str | None]
    placement: Callable[[str], Placement | None]
    source: str
    arrived: Callable[[str], int | None] | None = None


@contextmanager
def lookup_of(settings: Settings, file: Path | None) -> Iterator[Lookup]:
    """The map of `file`; without one, the store where it is complete, else the tenants file of the configuration.

    A map from Redis has no such file: exit 1 then.
    """
    view = build_view(settings, assumed(settings), 0)
    if file is None:
        with store_of(settings) as reader:
            if reader.complete():
                place = str(Path(settings.state_dir) / "map")
                yield Lookup(view, reader.host, reader.placement, place, reader.arrived)
                return
        if settings.tenant_map.source is not MapSource.YAML:
            fail(f"the map in {settings.state_dir} is not complete: has a gateway run there? (or name a --file)")
        file = Path(settings.tenant_map.file)
    placements = {placement.tenant: placement for placement in placements_of(file, settings)}
    hosts = {host: placement.tenant for placement in placements.values() for host in placement.hosts}
    yield Lookup(view, hosts.get, placements.get, str(file))


def as_dict(placement: Placement) -> dict[str, Any]:
    """A record as JSON shows it: every property, the version as text (null without one)."""
    record: dict[str, Any] = {name: getattr(placement, name) for name in placement.__struct_fields__}
    record["limits"] = None if placement.limits is None else written_limits(placement.limits)
    record["version"] = None if placement.version == NO_VERSION else str(placement.version)
    return dict(msgspec.to_builtins(record))


def list_tenants(
    config: Path, region: str | None, file: Path | None, home: str | None, state: str | None, as_json: bool
) -> None:
    """Print the records, those of one home or state only when asked."""
    settings = settings_of(config, region)
    if state is not None and state not in list(State):
        fail(f"--state: expected one of {', '.join(State)}, got {state}", Exit.BAD_INPUT)
    chosen = (
        placement
        for placement in records(settings, file)
        if home in (None, placement.home) and state in (None, placement.state.value)
    )
    if as_json:
        print_json({"tenants": [as_dict(placement) for placement in chosen]})
        return
    columns = ("tenant", "home", "standby", "failover", "state", "hosts", "version")
    print_table(columns, ([as_dict(placement)[column] for column in columns] for placement in chosen))


def get_tenant(tenant: str, config: Path, region: str | None, file: Path | None, as_json: bool) -> None:
    """Print one record; exit 1 when there is none. Ids are compared in lower case, as in a request."""
    settings = settings_of(config, region)
    wanted = tenant.lower()
    placement = _find(wanted, settings, file)
    if placement is None:
        fail(f"no such tenant: {wanted}")
    record = as_dict(placement)
    if as_json:
        print_json(record)
    else:
        print_record(record.items())


def _find(tenant: str, settings: Settings, file: Path | None) -> Placement | None:
    if file is not None:
        return next((p for p in placements_of(file, settings) if p.tenant == tenant), None)
    with store_of(settings) as reader:
        if not reader.complete():
            fail(f"the map in {settings.state_dir} is not complete: has a gateway run there? (or name a --file)")
        return reader.placement(tenant)
