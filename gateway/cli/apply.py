"""`landbridge tenants plan|apply|delete`: what would change, and changing it.

Every command that changes the map comes through `carry_out`: the plan is shown, the rules of safety are judged, the
operator is asked, the audit log is there, and only then anything is written.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from gateway.cli import plan_output
from gateway.cli.authors import Audit, author_of
from gateway.cli.claims import claims_of
from gateway.cli.options import Format
from gateway.cli.output import Exit, fail, note, print_json, print_json_list, print_lines, progress
from gateway.cli.plans import Plan, fleet_of, lag_notes, make_edits, make_plan
from gateway.cli.regions import Regions, redis_of, run
from gateway.cli.tenants import settings_of
from gateway.cli.waiting import Acknowledged, wait
from gateway.cli.wanted import STANDARD_INPUT, Wanted, wanted_of
from gateway.cli.writing import Result, write
from gateway.control.replication.region_map import MapUnavailable
from gateway.core.placement import TENANT_ID, Placement
from gateway.core.planning import Author, Kind, Limits, broken_rules
from gateway.settings import units
from gateway.settings.schema import Settings

MOVES_MAX: Final = "10%"
WAIT_LIMIT_S: Final = 30.0
NAMED_MAX: Final = 20
"""Tenants that the audit log names: a change of a million has its count there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a change is to be made: what the commands have in common. `wait_s` None: not at all."""

    yes: bool = False
    reason: str | None = None
    actor: str | None = None
    takeover: bool = False
    force: bool = False
    wait_s: float | None = None
    moves_max: str = MOVES_MAX
    as_json: bool = False

    def author(self, command: str | None = None) -> Author:
        """Who and why; exit 2 without a reason where there has to be one."""
        needed = "--takeover" if self.takeover else "--force" if self.force else command
        return author_of(self.actor, self.reason, needed)

    def limits(self, settings: Settings) -> Limits:
        text = self.moves_max
        try:
            moves: float | int = units.percent(text) if text.endswith("%") else units.whole(text)
        except ValueError:
            fail(f"--moves-max: expected a share such as 10% or a number of tenants, got {text}", Exit.BAD_INPUT)
        return Limits(moves=moves, loss=settings.tenant_map.loss_guard)

    def can_ask(self, stdin_is_used: bool = False) -> None:
        """Exit 2 where nobody can be asked and nobody said yes."""
        if not self.yes and (stdin_is_used or not sys.stdin.isatty()):
            fail("there is no terminal to ask on: --yes makes the change without asking", Exit.BAD_INPUT)


# --- plan


def plan_file(
    config: Path,
    region: str | None,
    file: str,
    format_: Format | None,
    *,
    prune: bool,
    detailed: bool,
    moves_max: str,
    as_json: bool,
) -> int:
    """Print what `apply` would do, with everything that would keep it from doing so."""
    settings = settings_of(config, region)
    redis_of(settings)
    limits = Options(moves_max=moves_max).limits(settings)
    with wanted_of(file, format_, settings) as wanted:
        return run(_plan_file(settings, wanted, limits, prune, detailed, as_json))


async def _plan_file(
    settings: Settings, wanted: Wanted, limits: Limits, prune: bool, detailed: bool, as_json: bool
) -> int:
    with claims_of(settings) as claims, Plan(claims=claims) as made:
        async with Regions(settings) as regions:
            with progress(f"planning {wanted.name}", wanted.count) as done:
                await make_plan(made, regions, settings, wanted.read(), Author("", ""), prune=prune, progress=done)
            silent = await _silent(regions, made)
            notes = [*await lag_notes(regions), *_belongs(made, silent)]
            broken = await _broken(regions, settings, made, silent, limits)
        if as_json:
            rest = plan_output.counts(made) | {"notes": notes, "broken_rules": broken, "damaged": made.damaged}
            changes = (plan_output.as_json(change, (), regions.own) for change in made.changes)
            print_json_list("changes", changes, lambda: rest)
        else:
            print_lines(plan_output.lines(made, (), regions.own))
            for line in (*notes, *(f"apply would refuse: {line}" for line in broken), *made.damaged):
                note(line)
        if made.damaged:
            return int(Exit.FAILED)
        return int(Exit.DIFFERS if detailed and made.tally.changes else Exit.DONE)


async def _silent(regions: Regions, made: Plan) -> dict[str, str]:
    """The regions that something has to be written in and that do not answer, and why."""
    needed = [region for region in made.tally.regions if region != regions.own]
    return {region: head for region, head in (await regions.heads(needed)).items() if isinstance(head, str)}


async def _broken(regions: Regions, settings: Settings, made: Plan, lost: Collection[str], limits: Limits) -> list[str]:
    """A line for each rule of safety that a plan breaks."""
    return broken_rules(made.tally, await fleet_of(regions, settings, made, lost), limits) + made.claims.rule()


def _belongs(made: Plan, silent: dict[str, str]) -> list[str]:
    return [
        f"{region} has to write {made.tally.regions[region]} of the changes, and its Redis cannot be used ({why}): "
        f"--takeover --reason TEXT writes them here"
        for region, why in silent.items()
    ]


# --- apply


def apply_file(
    config: Path, region: str | None, file: str, format_: Format | None, *, prune: bool, options: Options
) -> int:
    """Make the map what a file says."""
    settings = settings_of(config, region)
    redis_of(settings)
    author, limits = options.author(), options.limits(settings)
    options.can_ask(file == STANDARD_INPUT)

    async def work(wanted: Wanted, made: Plan) -> int:
        async with Regions(settings) as regions:
            with progress(f"planning {wanted.name}", wanted.count) as done:
                await make_plan(made, regions, settings, wanted.read(), author, prune=prune, progress=done)
            if not options.as_json:
                for line in await lag_notes(regions):
                    note(line)
            return await carry_out(regions, settings, made, author, limits, options, f"tenants apply -f {file}")

    with wanted_of(file, format_, settings) as wanted, claims_of(settings) as claims, Plan(claims=claims) as made:
        return run(work(wanted, made))


def delete(config: Path, region: str | None, tenants: list[str], options: Options) -> int:
    """Delete tenants: each becomes a record that says so."""
    settings = settings_of(config, region)
    redis_of(settings)
    author, limits = options.author("delete"), options.limits(settings)
    wanted: dict[str, Placement | None] = dict.fromkeys(map(tenant_id, tenants))
    options.can_ask()

    async def work(made: Plan) -> int:
        async with Regions(settings) as regions:
            records = await make_edits(made, regions, settings, wanted, author)
            missing = [tenant for tenant, record in records.items() if record is None]
            if missing:
                fail(f"no such tenant: {', '.join(missing)}")
            return await carry_out(
                regions, settings, made, author, limits, options, f"tenants delete {' '.join(tenants)}"
            )

    with Plan() as made:
        return run(work(made))


def tenant_id(text: str) -> str:
    """An id from the command line, in lower case as the map has it; exit 2 for what is none."""
    found = text.lower()
    if not TENANT_ID.match(found):
        fail(f"expected a tenant id: 1 to 63 of a-z 0-9 - _, got {text!r}", Exit.BAD_INPUT)
    return found


async def carry_out(
    regions: Regions,
    settings: Settings,
    made: Plan,
    author: Author,
    limits: Limits,
    options: Options,
    command: str,
) -> int:
    """Show a plan and execute it, unless a rule forbids it or the operator says no. Returns the exit code."""
    silent = await _silent(regions, made)
    if silent and not options.takeover:
        fail("; ".join(_belongs(made, silent)))
    lost = frozenset(silent)
    if not options.as_json:
        print_lines(plan_output.lines(made, lost, regions.own))
    for line in made.damaged:
        note(line)
    if not made.tally.changes:
        return await _nothing_to_do(regions, made, options)
    broken = await _broken(regions, settings, made, lost, limits)
    _judge(broken, bool(made.tally.unknown), options.force)
    if not options.yes and not typer.confirm("Make these changes?", err=True):
        fail("nothing was done")
    audit = Audit(settings, command, author)
    audit.prepare()
    result = Result()
    await _write(regions, made, lost, result, audit)
    audit.write(_outcome(made, result, broken, lost))
    acknowledged = None
    if options.wait_s is not None and result.regions:
        acknowledged = await wait(regions, result.regions, options.wait_s, lost)
    return _tell(made, result, acknowledged, options)


async def _nothing_to_do(regions: Regions, made: Plan, options: Options) -> int:
    """The map says so already; with `--wait` all gateways have to as well, since somebody may have just written it."""
    acknowledged = None
    if options.wait_s is not None:
        heads = await regions.heads(regions.maps)
        written = [region for region, head in heads.items() if not isinstance(head, str) and head.log.last]
        acknowledged = await wait(regions, written, options.wait_s)
    return _tell(made, Result(), acknowledged, options)


def _judge(broken: list[str], never: bool, force: bool) -> None:
    """End with 3 when rules are broken, unless that is meant."""
    for line in broken:
        note(f"{'forced' if force else 'refused'}: {line}")
    if broken and (never or not force):
        more = "no region can be unknown" if never else "--force --reason TEXT does it nevertheless"
        fail(f"nothing was done, for the sake of safety ({more})", Exit.REFUSED)


async def _write(regions: Regions, made: Plan, lost: frozenset[str], result: Result, audit: Audit) -> None:
    """Write all of a plan; when that is cut short, say how far it came."""
    total = made.tally.changes

    def cut_short(why: str) -> None:
        note(f"{why}: at least {result.written} of {total} changes were written; the same command does the rest")
        audit.write(f"cut short after at least {result.written} of {total} changes: {why}")

    try:
        with progress("writing", total) as done:
            await write(regions, made.changes, lost, result, done)
    except MapUnavailable as error:
        cut_short(f"the Redis of {error}")
        raise typer.Exit(int(Exit.FAILED)) from None
    except asyncio.CancelledError:
        cut_short("interrupted")
        raise


def _tell(made: Plan, result: Result, acknowledged: Acknowledged | None, options: Options) -> int:
    """Print what came of it. Returns the exit code."""
    if options.as_json:
        print_json(_report(made, result, acknowledged))
    else:
        if made.tally.changes:
            kinds = ", ".join(f"{result.kinds[kind]} {kind.value}" for kind in Kind)
            print(f"Written: {kinds}" + (f"; {result.already} were so already" if result.already else ""))
        if acknowledged is not None and not acknowledged.laggards:
            print(f"In use by {acknowledged.gateways} gateways")
    for line in result.overtaken:
        note(f"not written: {line}")
    if acknowledged is not None:
        for line in acknowledged.silent:
            note(line)
        for line in acknowledged.laggards:
            note(f"written, but not in use everywhere after {options.wait_s:g} s: {line}")
    failed = result.overtaken or made.damaged or (acknowledged is not None and acknowledged.laggards)
    return int(Exit.FAILED if failed else Exit.DONE)


def _report(made: Plan, result: Result, acknowledged: Acknowledged | None) -> dict[str, Any]:
    return {
        "plan": plan_output.counts(made),
        "written": {kind.value: result.kinds[kind] for kind in Kind},
        "already": result.already,
        "overtaken": result.overtaken,
        "damaged": made.damaged,
        "acknowledged": None if acknowledged is None else acknowledged.as_json(),
    }


def _outcome(made: Plan, result: Result, broken: Iterable[str], lost: Iterable[str]) -> str:
    """One line for the audit log."""
    kinds = ", ".join(f"{result.kinds[kind]} {kind.value}" for kind in Kind if result.kinds[kind])
    names = [change.tenant for change, _ in zip(made.changes, range(NAMED_MAX), strict=False)]
    more = made.tally.changes - len(names)
    parts = [
        f"written: {kinds or 'nothing'} ({', '.join(names)}{f' and {more} more' if more else ''})",
        *(f"not written: {len(result.overtaken)} changed meanwhile" for _ in result.overtaken[:1]),
        *(f"taken over from {region}" for region in sorted(lost)),
        *(f"forced: {line}" for line in broken),
    ]
    return "; ".join(parts)
