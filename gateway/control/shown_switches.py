"""The region-wide switches as the admin API shows them, and a change of one as it is asked for."""

from __future__ import annotations

import msgspec

from gateway.control import admin_answers as answers
from gateway.control.facts import Facts
from gateway.control.shown_replication import time_of
from gateway.control.switchboard import Wanted
from gateway.core.switches import OFF, Name
from gateway.settings.units import duration


class _Body(msgspec.Struct, forbid_unknown_fields=True, rename={"lasts": "for"}):
    value: str | int | float
    reason: str = ""
    lasts: str = ""
    force: bool = False


def rows(facts: Facts) -> list[answers.RegionSwitch]:
    """All switches in order, off ones with who switched them off."""
    board = facts.board
    on = board.on()
    found = []
    for name in Name:
        known = board.known.get(name)
        ends_in_s = None if known is None else board.ends_in_s(name, known)
        found.append(
            answers.RegionSwitch(
                switch=name.value,
                value=on[name].value if name in on else None,
                by="" if known is None else known.by,
                why="" if known is None else known.why,
                since=None if known is None else time_of(known.at_ms),
                until=None if known is None or not known.until_ms else time_of(known.until_ms),
                ends_in_s=None if ends_in_s is None or name not in on else round(ends_in_s, 1),
            )
        )
    return found


def switches(facts: Facts, everywhere: bool | None = None) -> answers.RegionSwitches:
    return answers.RegionSwitches(
        region=facts.settings.region,
        switches=rows(facts),
        shares=facts.conditions.shares,
        problem=facts.board.problem or None,
        everywhere=everywhere,
    )


def wanted(name: str, body: bytes, by: str, why: str) -> Wanted:
    """What a request's body asks for. Raises ValueError for one that cannot be read."""
    try:
        asked = msgspec.json.decode(body or b"{}", type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f'the body: {error}; expected {{"value": "on", "for": "30m", "reason": "..."}}') from None
    value = str(asked.value)
    lasts_s = duration(asked.lasts) if asked.lasts else 0.0
    return Wanted(name=name, value="" if value in OFF else value, by=by, why=why, lasts_s=lasts_s, force=asked.force)
