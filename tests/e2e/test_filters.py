"""Operators' filters in a whole gateway: what was validated runs, whatever becomes of files and of control."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.supervisor import child_environ, python_module
from tests.support.fleet import US, Fleet, Gateway, until

STAMP = """\
from gateway.core.filtering import field_line

class Stamp:
    name = "stamp"
    kind = "outbound"

    def __init__(self, options):
        self.line = field_line("X-Team", options["team"])

    def __call__(self, exchange):
        exchange.response.added.append(self.line)
"""
FAILS = STAMP.replace("exchange.response", 'if exchange.request.target == b"/bad": 1 / 0\n        exchange.response')
BLUE = "filters: {paths: [./mine], options: {stamp: {team: blue}}}\n"


class Place:
    """One region with one worker, and its filter's file."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder, [US], "tenants: {acme: {home: us-east-1}}\n")
        self.gateway: Gateway = self.fleet[US]
        self.gateway.more = BLUE
        self.filter = self.gateway.folder / "mine" / "stamp.py"
        self.filter.parent.mkdir()
        self.filter.write_text(STAMP)

    async def team(self) -> str | None:
        """The stamp on a response; None without one, or while nobody answers."""
        try:
            return (await self.fleet.ask(US, "acme")).value("x-team")
        except (OSError, EOFError):
            return None

    async def refused(self) -> bool:
        last = (await self.gateway.api("status"))["config"]["last_reload"]
        return last is not None and last["result"] == "refused"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    try:
        await made.fleet.start()
        yield made
    finally:
        await made.gateway.stop()
        await made.gateway.application.stop()


async def test_a_filters_life(place: Place) -> None:
    """Kept while control cannot do anything and the file holds rubbish; out after ten errors; back once mended."""
    await _stays_as_it_was_validated(place)
    await _goes_out_after_ten_errors_and_comes_back_mended(place)


async def _stays_as_it_was_validated(place: Place) -> None:
    """The worker that knew better is killed: its successor runs the text that was validated."""
    pids = await place.gateway.pids()
    os.kill(pids["control"], signal.SIGSTOP)
    try:
        place.filter.write_text("rubbish (")
        os.kill(pids["workers"][0]["pid"], signal.SIGKILL)
        await place.gateway.logged("was killed by SIGKILL")

        async def blue() -> bool:
            return await place.team() == "blue"

        await until(blue, "the next worker stamps")
    finally:
        os.kill(pids["control"], signal.SIGCONT)
    await until(place.refused, "the rubbish is refused")
    status = await place.gateway.api("status")
    assert "mine/stamp.py:1: expected Python that can be compiled" in status["config"]["last_reload"]["problems"][0]
    assert status["filters"] == {"files": [str(place.filter)], "removed": []}
    assert await place.gateway.metric("landbridge_config_reloads_total", source="config", result="refused") == 1
    assert await place.team() == "blue"


async def _goes_out_after_ten_errors_and_comes_back_mended(place: Place) -> None:
    place.filter.write_text(FAILS)
    await place.gateway.logged("configuration applied (file changed): filters.paths")
    statuses = [(await place.fleet.ask(US, "acme", "/bad")).status for _ in range(13)]
    assert statuses == [500] * 10 + [200] * 3
    assert await place.team() is None, "it is out for all requests"

    async def told() -> list[dict[str, object]]:
        found: list[dict[str, object]] = (await place.gateway.api("status"))["filters"]["removed"]
        return found

    assert await until(told, "status names it") == [
        {"filter": "stamp", "worker": 0, "error": "ZeroDivisionError: division by zero (stamp.py:11)"}
    ]
    assert await place.gateway.metric("landbridge_filter_removed", filter="stamp") == 1
    assert await place.gateway.metric("landbridge_filter_errors_total", filter="stamp") == 10
    listed = await listed_by(place.gateway)
    assert "taken out by worker 0" in listed
    place.filter.write_text(STAMP)

    async def back() -> bool:
        return await place.team() == "blue"

    await until(back, "a new worker has it")

    async def in_again() -> bool:
        """Once the worker that took it out has drained: until then there is one that has it not."""
        return await place.gateway.metric("landbridge_filter_removed", filter="stamp") == 0

    await until(in_again, "no worker is without it")
    assert await place.gateway.metric("landbridge_filter_errors_total", filter="stamp") == 10, "counters do not fall"
    assert await told() == []


async def listed_by(gateway: Gateway) -> str:
    """What `landbridge filters list` prints."""
    listing = await asyncio.create_subprocess_exec(
        *(*python_module("gateway"), "filters", "list", "-c", "gateway.yaml"),
        cwd=gateway.folder, env=child_environ(os.environ), stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await listing.communicate()
    assert listing.returncode == 0
    return out.decode()


def test_a_start_on_a_broken_filter_is_refused_with_its_line(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.filter.write_text(STAMP + "\nraise OSError('not here')\n")
    text = place.fleet.configuration(place.gateway)
    place.gateway.config.write_text(text.replace("127.0.0.1:0", "127.0.0.1:9000"))
    done = subprocess.run(
        [*python_module("gateway"), "serve", "-c", "gateway.yaml"],
        cwd=place.gateway.folder, env=child_environ(os.environ), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        f"{place.filter}:13: expected a file that can be imported, got OSError: not here"
    )
    assert not (place.gateway.folder / "state").exists(), "nothing was begun"
