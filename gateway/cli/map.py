"""`landbridge map status`: what the store on this machine holds, read without asking any process, and of a replicated
map what this region's Redis says; `landbridge map confirm`: let a change pass that removes so many tenants that the
loss guard holds it up, or have what is missing written back.

Both work on `state_dir`, so they need its owner's rights and no token, and a gateway need not run.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

from gateway.cli.map_regions import look
from gateway.cli.output import Exit, fail, print_json, print_record, time_of
from gateway.cli.regions import redis_of
from gateway.cli.tenants import placements_of, settings_of, store_of
from gateway.control.sources import confirm as guard
from gateway.settings.schema import MapSource

TAKEN_LIMIT_S: Final = 10.0
"""How long `confirm` waits for control to act: it looks each 0.1 s, and a large file is parsed again."""

POLL_S: Final = 0.05


def status(config: Path, region: str | None, file: Path | None, as_json: bool) -> int:
    """Print it. 1 when the map is not complete, so that scripts can wait for it, or when Redis does not answer.

    With `--file` there is no store: the status is that of a map made of this file, had it been applied.
    """
    settings = settings_of(config, region)
    if file is not None:
        report: dict[str, Any] = {"source": str(file), "complete": True, "records": len(placements_of(file, settings))}
    else:
        with store_of(settings) as reader:
            meta = reader.meta()
            generation = reader.generation
        report = {
            "source": str(Path(settings.state_dir) / "map"),
            "complete": meta.complete,
            "records": meta.records,
            "digest": meta.digest,
            "written": time_of(meta.written_ms) if meta.written_ms else None,
            "transaction": meta.transaction,
            "generation": generation,
            "waiting": _waiting(guard.waiting(Path(settings.state_dir)), as_json),
        }
    replicated = None
    if file is None and settings.tenant_map.source is MapSource.REDIS:
        replicated = asyncio.run(look(settings))
    if as_json:
        print_json(report if replicated is None else report | {"redis": replicated.as_json()})
    else:
        print_record(report.items())
        if replicated is not None:
            replicated.show()
    if replicated is not None and replicated.problem:
        fail(f"the Redis of {replicated.problem}")
    return int(Exit.DONE if report["complete"] else Exit.FAILED)


def confirm(config: Path, region: str | None, change: str | None, restore: bool, as_json: bool) -> int:
    """Name the change that waits as meant, or with `restore` as not meant, and wait until that is done."""
    settings = settings_of(config, region)
    if restore:
        redis_of(settings)
    state_dir = Path(settings.state_dir)
    pending = guard.waiting(state_dir)
    if pending is None:
        fail("no change waits to be confirmed")
    if change not in (None, pending.change):
        fail(f"it is change {pending.change} that waits, not {change}: {_waiting(pending, False)}", Exit.REFUSED)
    try:
        guard.confirm(state_dir, pending.change, restore=restore)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    is_done = _taken(state_dir, pending.change)
    report = {
        "change": pending.change,
        "restores" if restore else "removes": pending.removed,
        "of": pending.known,
        "leaves": pending.known if restore else pending.records,
        "tenants": list(pending.first),
        "restored" if restore else "applied": is_done,
    }
    if as_json:
        print_json(report)
        return int(Exit.DONE)
    later = "once a gateway runs here and the source still says so"
    shown = {"tenants": _names(pending), "restored" if restore else "applied": "yes" if is_done else later}
    print_record((report | shown).items())
    return int(Exit.DONE)


def _taken(state_dir: Path, change: str) -> bool:
    """Whether control has acted on it within the limit: then this change waits no more."""
    deadline = time.monotonic() + TAKEN_LIMIT_S
    while time.monotonic() < deadline:
        now = guard.waiting(state_dir)
        if (now is None or now.change != change) and guard.confirmed(state_dir) is None:
            return True
        time.sleep(POLL_S)
    return False


def _waiting(pending: guard.Pending | None, as_json: bool) -> Any:
    """The change that waits, for a reader or for a program."""
    if pending is None:
        return None
    if as_json:
        return {
            "change": pending.change,
            "file": pending.file,
            "removes": pending.removed,
            "of": pending.known,
            "leaves": pending.records,
            "tenants": list(pending.first),
            "since": time_of(pending.since_ms),
        }
    return f"change {pending.change} removes {pending.removed} of {pending.known} tenants ({_names(pending)})"


def _names(pending: guard.Pending) -> str:
    more = pending.removed - len(pending.first)
    return ", ".join(pending.first) + (f" and {more} more" if more > 0 else "")
