"""`landbridge map status`: what the store on this machine holds, read without asking any process; `landbridge map
confirm`: let a change pass that removes so many tenants that the loss guard holds it up.

Both work on `state_dir`, so they need its owner's rights and no token, and a gateway need not run.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import typer

from gateway.cli.output import Exit, fail, print_json, print_record
from gateway.cli.tenants import placements_of, settings_of, store_of
from gateway.control.sources import confirm as guard

TAKEN_LIMIT_S: Final = 10.0
"""How long `confirm` waits for control to act: it looks each 0.1 s, and a large file is parsed again."""

POLL_S: Final = 0.05


def status(config: Path, region: str | None, file: Path | None, as_json: bool) -> None:
    """Print it; exit 1 when the map is not complete, so that scripts can wait for it.

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
            "written": _time(meta.written_ms) if meta.written_ms else None,
            "transaction": meta.transaction,
            "generation": generation,
            "waiting": _waiting(guard.waiting(Path(settings.state_dir)), as_json),
        }
    if as_json:
        print_json(report)
    else:
        print_record(report.items())
    if not report["complete"]:
        raise typer.Exit(int(Exit.FAILED))


def confirm(config: Path, region: str | None, change: str | None, as_json: bool) -> None:
    """Name the change that waits as meant, and wait until it is applied."""
    state_dir = Path(settings_of(config, region).state_dir)
    pending = guard.waiting(state_dir)
    if pending is None:
        fail("no change waits to be confirmed")
    if change not in (None, pending.change):
        fail(f"it is change {pending.change} that waits, not {change}: {_waiting(pending, False)}", Exit.REFUSED)
    try:
        guard.confirm(state_dir, pending.change)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    report = {
        "change": pending.change,
        "removes": pending.removed,
        "of": pending.known,
        "leaves": pending.records,
        "tenants": list(pending.first),
        "applied": _taken(state_dir, pending.change),
    }
    if as_json:
        print_json(report)
        return
    applied = "yes" if report["applied"] else "once a gateway runs here and the file still says so"
    print_record((report | {"tenants": _names(pending), "applied": applied}).items())


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
            "since": _time(pending.since_ms),
        }
    return f"change {pending.change} removes {pending.removed} of {pending.known} tenants ({_names(pending)})"


def _names(pending: guard.Pending) -> str:
    more = pending.removed - len(pending.first)
    return ", ".join(pending.first) + (f" and {more} more" if more > 0 else "")


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
