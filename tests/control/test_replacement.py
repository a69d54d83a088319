"""Asking for other workers: what the supervisor answers, when, and what each worker is told meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.control import replacement
from gateway.control.reload import Loaded, read_disk
from gateway.control.replacement import Replacement
from tests.support.configs import ENVIRON, SMALL, write
from tests.support.eventually import eventually


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return read_disk(write(tmp_path, SMALL), ENVIRON)


class Asked:
    """A supervisor that hears, and says nothing by itself."""

    def __init__(self, state_dir: Path) -> None:
        self.messages: list[dict[str, Any]] = []
        self.hears = True
        self.replacement = Replacement(state_dir, self.ask)

    def ask(self, message: dict[str, Any]) -> bool:
        self.messages.append(message)
        return self.hears


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


async def run_until_asked(asked: Asked, loaded: Loaded) -> asyncio.Task[str]:
    before = len(asked.messages)
    running = asyncio.get_running_loop().create_task(asked.replacement.run(loaded))
    await eventually(lambda: len(asked.messages) > before)
    return running


async def test_only_the_answer_to_this_request_counts(asked: Asked, loaded: Loaded) -> None:
    running = await run_until_asked(asked, loaded)
    ticket = asked.messages[0]["ticket"]
    asked.replacement.answered(ticket - 1, "an earlier one failed")
    asked.replacement.answered(None, "no ticket")
    await asyncio.sleep(0)
    assert not running.done()
    asked.replacement.answered(ticket, "")
    assert await running == ""


async def test_a_newcomer_is_told_what_it_runs_and_everybody_else_what_counts(
    asked: Asked, loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("current")
    current = read_disk(write(folder, SMALL.replace("here.example", "elsewhere.example")), ENVIRON)
    replaced, settings = asked.replacement, loaded.settings
    assert replaced.settings_for(settings.digest, current.settings) is current.settings
    running = await run_until_asked(asked, loaded)
    assert replaced.settings_for(settings.digest, current.settings) is settings
    assert replaced.settings_for(current.settings.digest, current.settings) is current.settings
    replaced.failed("the supervisor is gone")
    assert await running == "the supervisor is gone"
    assert replaced.settings_for(settings.digest, current.settings) is current.settings


async def test_who_does_not_hear_or_answer_is_given_up(
    asked: Asked, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.hears = False
    assert await asked.replacement.run(loaded) == "the supervisor does not hear"
    asked.hears = True
    monkeypatch.setattr(replacement, "LIMIT_S", 0.0)
    monkeypatch.setattr(replacement, "LIMIT_EACH_S", 0.01)
    assert "did not answer within" in await asked.replacement.run(loaded)


async def test_a_configuration_that_cannot_be_written_down_is_not_asked_for(tmp_path: Path, loaded: Loaded) -> None:
    asked = Asked(tmp_path / "gone")
    assert await asked.replacement.run(loaded) == f"{tmp_path / 'gone'}: No such file or directory"
    assert asked.messages == []
