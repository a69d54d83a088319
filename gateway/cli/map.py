"""`landbridge map status`: what the store on this machine holds, read without asking any process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from gateway.cli.output import Exit, print_json, print_record
from gateway.cli.tenants import placements_of, settings_of, store_of


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
        written = datetime.fromtimestamp(meta.written_ms / 1000, UTC).isoformat(timespec="milliseconds")
        report = {
            "source": str(Path(settings.state_dir) / "map"),
            "complete": meta.complete,
            "records": meta.records,
            "digest": meta.digest,
            "written": written.replace("+00:00", "Z") if meta.written_ms else None,
            "transaction": meta.transaction,
        }
    if as_json:
        print_json(report)
    else:
        print_record(report.items())
    if not report["complete"]:
        raise typer.Exit(int(Exit.FAILED))
