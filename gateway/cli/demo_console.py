"""The demo's console: what the gateways log, in short, and how far each region's map is behind while it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

from gateway.cli.demo_files import REGIONS, Layout
from gateway.cli.demo_maps import IN_STEP, Maps

PEER_PATHS: Final = "/.landbridge/"
"""What gateways ask each other each second: in the log, not on the console."""

TAIL_S: Final = 0.1
TAIL_LINES_MAX: Final = 20
"""Of one region in one tenth of a second: what is more (a load test) is counted, for a terminal cannot follow it."""

LINE_MAX_BYTES: Final = 1024

LAG_S: Final = 2.0
"""How often lag is told while there is any."""


def say(region: str, text: str) -> None:
    """One line, as everything on the console is."""
    print(f"{region:15} {text}", flush=True)


async def tail(place: Layout) -> None:
    """Show each decision and each word of the gateways from now on, as they are logged. Ends by being cancelled."""
    with contextlib.ExitStack() as stack:
        files: list[tuple[str, BinaryIO, bool]] = []
        for region in REGIONS:
            for path, access in ((place.gateway_log(region), False), (place.access_log(region), True)):
                files.append((region, stack.enter_context(_read_on(path)), access))
        while True:
            for region, file, access in files:
                lines = [decision(line) if access else said(line) for line in _whole_lines(file)]
                shown = [line for line in lines if line]
                for line in shown[:TAIL_LINES_MAX]:
                    print(f"{region:15} {line}")
                if len(shown) > TAIL_LINES_MAX:
                    print(f"{region:15} ... and {len(shown) - TAIL_LINES_MAX} more")
            sys.stdout.flush()
            await asyncio.sleep(TAIL_S)


async def tell_lag(maps: Maps) -> None:
    """Tell each region's lag while something is broken and until all are in step again. Ends by being cancelled."""
    late = dict.fromkeys(REGIONS, IN_STEP)
    while True:
        await asyncio.sleep(LAG_S)
        broken = bool(maps.cut_off) or not all(maps.runs(region) for region in REGIONS)
        for region in REGIONS:
            now = await maps.behind(region) if broken or late[region] != IN_STEP else IN_STEP
            if now != late[region] or now != IN_STEP:
                say(region, now)
            late[region] = now


def _read_on(path: Path) -> BinaryIO:
    """Open a log behind what it already says."""
    path.touch()
    file = open(path, "rb")
    file.seek(0, os.SEEK_END)
    return file


def _whole_lines(file: BinaryIO) -> list[bytes]:
    """What was appended since, without a last line that is still being written."""
    start = file.tell()
    data = file.read(256 * 1024)
    end = data.rfind(b"\n") + 1
    file.seek(start + end)
    return data[:end].splitlines()


def said(line: bytes) -> str:
    """A line of a gateway's own log, as it is."""
    return line.decode(errors="replace")


def decision(line: bytes) -> str:
    """An access-log line in short: who asked for what, what was decided, how it ended. "" for gateways' own talk."""
    try:
        entry: dict[str, Any] = json.loads(line)
        if str(entry["path"]).startswith(PEER_PATHS):
            return ""
        what = entry["decision"] or "-"
        if entry["reason"]:
            what += f" ({entry['reason']})"
        millis = float(entry["seconds"]) * 1000
        flag = f" {entry['flag']}" if entry["flag"] else ""
        words = f"{entry['from']:6} {entry['method']:4} {entry['path']:20} {entry['tenant'] or '-':10} {what:28}"
        return f"{words} {entry['status']}{flag} {millis:.1f} ms"
    except (ValueError, KeyError, TypeError):
        return line[:LINE_MAX_BYTES].decode(errors="replace")
