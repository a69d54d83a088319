"""`landbridge tenants export|import`: the map as a file that is the map again, and a first map out of a file.

What is exported can be applied, which changes nothing, or imported into an empty map, which makes the same one again
with its epochs. Deleted tenants are not exported. An import is written in our own region, wherever its tenants live:
the one exception to who may write what, since where there is no record nobody's can be lost.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from gateway.cli import plan_output
from gateway.cli.apply import Options
from gateway.cli.authors import Audit
from gateway.cli.options import Format
from gateway.cli.output import Exit, fail, note, print_json, progress
from gateway.cli.plans import Plan, make_plan
from gateway.cli.regions import Regions, redis_of, run
from gateway.cli.tenants import settings_of
from gateway.cli.wanted import LINES_SUFFIXES, Wanted, wanted_of
from gateway.cli.writing import Result, write
from gateway.control.replication.region_map import MapUnavailable
from gateway.core.limits import TenantLimits, written_limits
from gateway.core.placement import Placement, State
from gateway.core.planning import KEYS, Change, Kind
from gateway.core.replication import BadValue, decode_value

SORTED_MAX: Final = 100_000
"""Records that are put in order, so that two exports can be compared; more come as the server has them."""

NAMED_MAX: Final = 20
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")
_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""What other readers of YAML take for something else than a text."""

_DEFAULTS: Final = Placement(tenant="", home="")


def export(config: Path, region: str | None, output: Path | None, format_: Format | None) -> int:
    """Write the map to `output`, or print it."""
    settings = settings_of(config, region)
    redis_of(settings)
    is_lines = output is not None and output.name.endswith(LINES_SUFFIXES)
    chosen = format_ or (Format.JSONL if is_lines else Format.YAML)

    async def work() -> int:
        async with Regions(settings) as regions:
            total = (await regions.here.head()).records
            with _output(output) as file, progress("exporting", total) as done:
                return await _export(regions, file, chosen, total <= SORTED_MAX, done)

    return run(work())


async def _export(regions: Regions, file: TextIO, format_: Format, is_sorted: bool, done: Callable[[int], None]) -> int:
    seen: set[str] = set()  # a scan may give a record twice
    kept: list[Placement] = []
    damaged = written = 0
    if format_ is Format.YAML:
        print("tenants:", file=file)
    async for rows in regions.here.scan():
        for tenant, value in rows:
            if tenant in seen:
                continue
            seen.add(tenant)
            try:
                placement = decode_value(tenant, value)
            except BadValue as error:
                note(f"{tenant}: its record cannot be read: {error}")
                damaged += 1
                continue
            if placement.state is State.DELETED:
                continue
            written += 1
            if is_sorted:
                kept.append(placement)
            else:
                file.write(written_as(placement, format_))
        done(len(seen))
    for placement in sorted(kept, key=lambda placement: placement.tenant):
        file.write(written_as(placement, format_))
    if format_ is Format.YAML and not written:
        print("  {}", file=file)
    return int(Exit.FAILED if damaged else Exit.DONE)


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there once it is whole."""
    if path is None:
        yield sys.stdout
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    finally:
        with suppress(OSError):
            temporary.unlink()


def said(placement: Placement) -> dict[str, Any]:
    """What a tenants file says of a tenant, in its order; what is as usual is left out."""
    record: dict[str, Any] = {
        key: written_limits(value) if isinstance(value, TenantLimits) else msgspec.to_builtins(value)
        for key in KEYS
        if (value := getattr(placement, key)) != getattr(_DEFAULTS, key) and value is not State.HELD
    }
    if placement.version.epoch:
        record["epoch"] = placement.version.epoch
    return record


def written_as(placement: Placement, format_: Format) -> str:
    """A tenant in a file: a line, or some lines below `tenants:`."""
    record = said(placement)
    if format_ is Format.JSONL:
        return json.dumps({"tenant": placement.tenant} | record, ensure_ascii=False, separators=(",", ":")) + "\n"
    body = "".join(f"    {key}: {_yaml(value)}\n" for key, value in record.items())
    return f"  {_yaml(placement.tenant)}:\n{body}"


def _yaml(value: Any) -> str:
    """A value in flow style: JSON is YAML, and what needs no quotes gets none."""
    if isinstance(value, str):
        is_plain = _PLAIN.match(value) and value.lower() not in _WORDS
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return json.dumps(value)


# --- import


def import_file(
    config: Path, region: str | None, file: str, format_: Format | None, *, merge: bool, options: Options
) -> int:
    """Fill an empty map; with `merge` add to one that is not what it lacks, changing nothing of what it has."""
    settings = settings_of(config, region)
    redis_of(settings)
    author = options.author()

    async def work(wanted: Wanted, made: Plan) -> int:
        async with Regions(settings) as regions:
            await _only_empty(regions, merge)
            differs: list[str] = []

            def choose(change: Change) -> Change | None:
                if change.kind is Kind.CREATED and change.expected is None:
                    return msgspec.structs.replace(change, region=regions.own)
                differs.append(change.tenant)
                return None

            with progress(f"planning {wanted.name}", wanted.count) as done:
                source = wanted.read()
                await make_plan(made, regions, settings, source, author, choose=choose, progress=done)
            audit = Audit(settings, f"tenants import -f {file}", author)
            audit.prepare()
            result = Result()
            try:
                with progress("writing", made.tally.changes) as done:
                    await write(regions, made.changes, frozenset(), result, done)
                await regions.here.mark_complete()
            except MapUnavailable as error:
                audit.write(f"cut short after {result.written} of {made.tally.changes} tenants: {error}")
                fail(f"the Redis of {error}: {result.written} tenants were written; --merge does the rest")
            audit.write(f"written: {result.written} created")
            return _tell(made, result, differs, options.as_json)

    with wanted_of(file, format_, settings) as wanted, Plan() as made:
        return run(work(wanted, made))


async def _only_empty(regions: Regions, merge: bool) -> None:
    """End with 3 when a region holds records already and nobody said that this is known."""
    heads = await regions.heads(regions.maps)
    if isinstance(own := heads[regions.own], str):
        raise MapUnavailable(own)
    whole = [region for region, head in heads.items() if not isinstance(head, str) and head.complete]
    if whole and not own.complete:
        fail(
            f"nothing was done: the map of {', '.join(whole)} is complete, and {regions.own} takes it over by itself; "
            f"import there, or wait",
            Exit.REFUSED,
        )
    filled = [f"{region} holds {head.records} records" for region, head in heads.items()
              if not isinstance(head, str) and head.records]  # fmt: skip
    for region, head in heads.items():
        if isinstance(head, str):
            note(f"whether the map of {region} is empty is not known: {head}")
    if filled and not merge:
        fail(f"nothing was done: {', '.join(filled)} (--merge adds what is missing)", Exit.REFUSED)


def _tell(made: Plan, result: Result, differs: list[str], as_json: bool) -> int:
    left = [*made.damaged, *result.overtaken]
    if as_json:
        report = plan_output.counts(made) | {"written": result.written, "differs": len(differs), "overtaken": left}
        print_json(report)
    else:
        print(f"Written: {result.written} created; {made.tally.unchanged + result.already} were so already")
    if differs:
        names = ", ".join(differs[:NAMED_MAX]) + (f" and {more} more" if (more := len(differs) - NAMED_MAX) > 0 else "")
        note(
            f"{len(differs)} are in the map with other content, or deleted, and stay so (`apply` changes them): {names}"
        )
    for line in left:
        note(f"not written: {line}")
    return int(Exit.FAILED if left else Exit.DONE)
