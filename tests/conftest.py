"""The loop that the gateway runs on is the loop that its tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from tests.support import measured


@pytest.hookimpl
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, beside its limit, in one place: `make faults` is long."""
    if rows := measured.table():
        terminalreporter.section("measured against limit")
        for row in rows:
            terminalreporter.line(row)
