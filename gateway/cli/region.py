"""`landbridge region`: region-wide switches, set at a gateway that runs.

Without `--admin` that is the gateway of this machine: the wish is left in `state_dir`, which takes its owner's rights
and no token, and control answers there. So the rules of safety are judged by who knows which regions are able.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.cli.admin_client import Gateway
from gateway.cli.authors import Audit, author_of
from gateway.cli.output import Exit, fail, note, print_json, print_table, time_of
from gateway.cli.tenants import settings_of
from gateway.control.switchboard import ANSWER_FILE, WANTED_FILE, Answer, Wanted
from gateway.core.switches import OFF, Name, Switch
from gateway.settings import units
from gateway.settings.schema import Settings
from gateway.store.switches import FILE, decode
from gateway.store.whole import write_whole

ANSWER_LIMIT_S: Final = 15.0
"""Control looks each 0.1 s, and reads the whole map before a drain."""
POLL_S: Final = 0.05
COLUMNS: Final = ("switch", "value", "since", "until", "by", "why")


@dataclass(frozen=True, slots=True)
class Wish:
    """A switch as it was asked for; `value` "" is off."""

    name: Name
    value: str
    reason: str | None
    actor: str | None
    lasts: str | None = None
    force: bool = False


def rate_of(text: str) -> str:
    """`500/s` as a switch's value; "" for none."""
    if text in OFF:
        return ""
    try:
        return f"{units.rate(text):g}"
    except ValueError:
        fail(f"max-traffic: expected a rate such as 500/s, or none, found {text!r}", Exit.BAD_INPUT)


def status(config: Path, region: str | None, gateway: Gateway, as_json: bool) -> int:
    """What is set: as the gateway of `--admin` says, or as the one here keeps it on disk."""
    if gateway.admin is not None:
        found = gateway.ask("/api/v1/switches")
        _show(found["region"], found["switches"], as_json, shares=found["shares"], problem=found["problem"])
        return int(Exit.DONE)
    _no_token(gateway)
    settings = settings_of(config, region)
    try:
        known = decode((Path(settings.state_dir) / FILE).read_bytes())
    except FileNotFoundError:
        known = {}
    except (OSError, msgspec.MsgspecError) as error:
        fail(f"{Path(settings.state_dir) / FILE}: {error}")
    _show(settings.region, [_row(name, known.get(name)) for name in Name], as_json)
    return int(Exit.DONE)


def switch(config: Path, region: str | None, gateway: Gateway, wish: Wish, as_json: bool) -> int:
    """Set it, and say what is set then. 2 for what cannot be, 3 where a rule of safety forbids it."""
    author = author_of(wish.actor, wish.reason, f"region {wish.name}")
    try:
        lasts_s = units.duration(wish.lasts) if wish.lasts else 0.0
    except ValueError:
        fail(f"--for: expected a duration such as 30m, found {wish.lasts!r}", Exit.BAD_INPUT)
    if gateway.admin is not None:
        body = {"value": wish.value, "reason": author.why, "force": wish.force}
        body |= {"for": wish.lasts} if wish.lasts else {}
        found = gateway.ask(f"/api/v1/switches/{wish.name}", body)
        _say_where(found["everywhere"])
        _show(found["region"], found["switches"], as_json, shares=found["shares"], problem=found["problem"])
        return int(Exit.DONE)
    _no_token(gateway)
    settings = settings_of(config, region)
    audit = Audit(settings, f"region {wish.name} {wish.value or 'off'}", author)
    audit.prepare()
    wanted = Wanted(
        name=wish.name,
        value=wish.value,
        by=author.by,
        why=author.why,
        lasts_s=lasts_s,
        force=wish.force,
        id=secrets.token_hex(8),
    )
    answer = _ask_here(settings, wanted)
    if answer.refused:
        audit.write(f"refused: {answer.detail}")
        is_unsafe = answer.refused == "safety"
        how = "; --force does it all the same" if is_unsafe else ""
        fail(f"{answer.detail}{how}", Exit.REFUSED if is_unsafe else Exit.BAD_INPUT)
    audit.write("done")
    _say_where(answer.everywhere)
    return status(config, region, gateway, as_json)


def _no_token(gateway: Gateway) -> None:
    if gateway.token_file is not None or gateway.insecure:
        fail("--token-file and --insecure are for --admin", Exit.BAD_INPUT)


def _say_where(everywhere: bool | None) -> None:
    if everywhere is None:
        note("the map is not replicated: this holds for this gateway alone, set it at each one of the region")
    elif not everywhere:
        note("the region's Redis does not answer: this holds for this gateway, and for the others once it does")


def _ask_here(settings: Settings, wanted: Wanted) -> Answer:
    """Leave the wish in `state_dir` and wait for control's answer."""
    state_dir = Path(settings.state_dir)
    answer_file, wanted_file = state_dir / ANSWER_FILE, state_dir / WANTED_FILE
    try:
        write_whole(wanted_file, msgspec.json.encode(wanted))
        owner = state_dir.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:  # control has to be able to read it
            os.chown(wanted_file, owner.st_uid, owner.st_gid)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}: has a gateway ever run with this configuration?")
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            answer = msgspec.json.decode(answer_file.read_bytes(), type=Answer)
            if answer.id == wanted.id:
                answer_file.unlink()
                return answer
        time.sleep(POLL_S)
    with contextlib.suppress(OSError):
        wanted_file.unlink()
    fail(f"no gateway answered in {state_dir}: does one run here? --admin asks another one")


def _row(name: Name, switch: Switch | None) -> dict[str, Any]:
    """As the admin API shows it."""
    is_on = switch is not None and switch.is_on(time.time_ns() // 1_000_000)
    return {
        "switch": name.value,
        "value": switch.value if switch is not None and is_on else None,
        "by": "" if switch is None else switch.by,
        "why": "" if switch is None else switch.why,
        "since": None if switch is None else time_of(switch.at_ms),
        "until": None if switch is None or not switch.until_ms else time_of(switch.until_ms),
    }


def _show(
    region: str,
    rows: list[dict[str, Any]],
    as_json: bool,
    *,
    shares: dict[str, float] | None = None,
    problem: str | None = None,
) -> None:
    if as_json:
        print_json({"region": region, "switches": rows} | ({} if shares is None else {"shares": shares}))
        return
    print_table(COLUMNS, [[row["value"] or "off" if key == "value" else row[key] for key in COLUMNS] for row in rows])
    for cluster, share in (shares or {}).items():
        note(f"cluster {cluster} takes {share:.0%} of the clients that can go elsewhere")
    if problem:
        note(f"the Redis of {problem}")
