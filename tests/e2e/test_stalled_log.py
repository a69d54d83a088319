"""FAULTS 39: whoever reads the access log stops reading. Requests go on, lines are lost whole and counted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.support.fleet import US, Gateway, fleet, until
from tests.support.load import Load
from tests.support.measured import hold

TENANTS = "tenants: {acme: {home: us-east-1}}\n"
LONG = "/" + "x" * 3500
"""Lines near their limit fill a pipe and the worker's buffer in a moment."""

SLOWEST_S = 0.5
"""A request that waits for the log would wait for ever."""


async def log_to(gateway: Gateway, path: str) -> None:
    """Point the access log elsewhere by a reload."""
    text = gateway.config.read_text()
    assert "path: access.log" in text
    gateway.config.write_text(text.replace("path: access.log", f"path: {path}"))
    gateway.signal(signal.SIGHUP)

    async def applied() -> bool:
        last = (await gateway.api("status"))["config"]["last_reload"]
        return last is not None and last["result"] == "applied"

    await until(applied, "the reload is applied")


def take(reader: int) -> bytes:
    """Everything that is in the pipe now."""
    data = b""
    while True:
        try:
            piece = os.read(reader, 1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


async def test_a_reader_that_stops_slows_no_request_and_loses_whole_lines(tmp_path: Path) -> None:
    async with fleet(tmp_path, (US,), TENANTS) as made:
        gateway = made[US]
        fifo = gateway.folder / "pipe"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            await log_to(gateway, "pipe")
            async with Load(gateway.http, "acme.demo.test", rate=400, path=LONG) as load:

                async def dropped() -> bool:
                    return await gateway.metric("landbridge_log_dropped_total") > 20

                await until(dropped, "lines are dropped and counted")
                await load.goes_on()
            assert load.failed == [], str(load)
            hold("39", "nobody reads the access log: the slowest request", load.slowest_s, SLOWEST_S)
            lines = take(reader).splitlines(keepends=True)
            *whole, last = lines
            assert len(whole) > 10
            for line in whole:
                assert line.endswith(b"\n")
                assert len(line) <= 4096
                assert json.loads(line)["tenant"] == "acme"
            assert last.endswith(b"\n") or len(last) < 4096  # what the pipe had no more room for comes next
            print(f"{load}; {len(whole)} whole lines in the pipe")
        finally:
            os.close(reader)
