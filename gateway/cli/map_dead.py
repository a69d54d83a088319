"""`landbridge map dead list|show|retry|drop`: values that came from elsewhere and could not be taken in.

A letter holds the beginning of the value and why it is none. The record may be whole at its source by now, so a retry
asks there again; whatever is taken in goes the way of everything that comes from another region.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.cli.output import Exit, fail, note, print_json, print_record, print_table, time_of
from gateway.cli.regions import Regions, redis_of, run
from gateway.cli.tenants import settings_of
from gateway.control.replication.region_map import Letter, MapUnavailable
from gateway.core.replication import CONFLICTS, BadValue, Outcome, decode_value


def _letters(config: Path, region: str | None) -> dict[str, Letter]:
    settings = settings_of(config, region)
    redis_of(settings)

    async def work() -> dict[str, Letter]:
        async with Regions(settings) as regions:
            return await regions.here.letters()

    return run(work())


def list_letters(config: Path, region: str | None, as_json: bool) -> int:
    """Print all of them, the newest first."""
    found = sorted(_letters(config, region).items(), key=lambda item: (-item[1].at_ms, item[0]))
    if as_json:
        print_json({"letters": [_as_json(name, letter) for name, letter in found]})
    else:
        rows = ((name, letter.source, time_of(letter.at_ms), letter.reason) for name, letter in found)
        print_table(("tenant", "from", "since", "reason"), rows)
    return int(Exit.DONE)


def show(config: Path, region: str | None, tenant: str, as_json: bool) -> int:
    """Print one, whole."""
    letter = _letters(config, region).get(tenant)
    if letter is None:
        fail(f"there is no dead letter of {tenant}")
    if as_json:
        print_json(_as_json(tenant, letter))
    else:
        print_record(_as_json(tenant, letter).items())
    return int(Exit.DONE)


def _as_json(tenant: str, letter: Letter) -> dict[str, Any]:
    text = letter.value.decode("utf-8", "backslashreplace")
    return {
        "tenant": tenant,
        "from": letter.source,
        "since": time_of(letter.at_ms),
        "reason": letter.reason,
        "value": "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text),
    }


def retry(config: Path, region: str | None, tenant: str) -> int:
    """Take in the record as its region has it now; of one that our own gateways met, as any region has it whole."""
    settings = settings_of(config, region)
    redis_of(settings)

    async def work() -> int:
        async with Regions(settings) as regions:
            letter = (await regions.here.letters()).get(tenant)
            if letter is None:
                fail(f"there is no dead letter of {tenant}")
            sources = [letter.source] if letter.source in regions.peers else [regions.own, *regions.peers]
            for source in sources:
                if await _taken_from(regions, source, tenant):
                    return int(Exit.DONE)
            fail(f"{tenant} stays a dead letter: {', '.join(sources)} has no record of it that can be read")

    return run(work())


async def _taken_from(regions: Regions, source: str, tenant: str) -> bool:
    """Whether a region has the record whole: then it is in, and the letter is gone."""
    try:
        (value,) = await regions.maps[source].get([tenant])
    except MapUnavailable as error:
        note(f"the Redis of {error}")
        return False
    if value is None:
        note(f"{source} has no record of {tenant}")
        return False
    try:
        placement = decode_value(tenant, value)
    except BadValue as error:
        note(f"{source}: {tenant}: {error}")
        return False
    if source == regions.own:
        await regions.here.drop_letter(tenant)
        print(f"{tenant}: the record here can be read ({placement.version}); the letter is gone")
        return True
    (outcome,) = (await regions.here.merge([(tenant, value)])).outcomes
    what = "is the current one" if outcome in (Outcome.APPLIED, Outcome.CONFLICT_WON) else "is not newer than ours"
    if outcome in CONFLICTS:
        what += ", after a conflict that `tenants history` shows"
    print(f"{tenant}: {placement.version}, as {source} has it, {what}; the letter is gone")
    return True


def drop(config: Path, region: str | None, tenant: str) -> int:
    """Forget one."""
    settings = settings_of(config, region)
    redis_of(settings)

    async def work() -> bool:
        async with Regions(settings) as regions:
            return await regions.here.drop_letter(tenant)

    if not run(work()):
        fail(f"there is no dead letter of {tenant}")
    print(f"{tenant}: the letter is gone")
    return int(Exit.DONE)
