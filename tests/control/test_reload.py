"""From the files on disk to what runs: applied, or refused with nothing changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.control.reload import (
    LAST_GOOD,
    Configuration,
    Loaded,
    NoConfiguration,
    Outcome,
    read_disk,
    read_last_good,
    starting_point,
    write_last_good,
)
from gateway.settings.loader import read_sources
from gateway.settings.schema import Settings

CONFIG = """\
region: us-east-1
listen: {{http: "127.0.0.1:0"}}
state_dir: {state_dir}
misroute: external
regions:
  us-east-1: {{public: "http://{{tenant}}.us.test"}}
  eu-west-1: {{public: "http://{{tenant}}.eu.test"}}
clusters:
  app: {{endpoints: ["127.0.0.1:9000"]}}
"""


class Place:
    """A folder with gateway.yaml and state_dir, and a Configuration that runs what last-good says."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gateway.yaml"
        self.state_dir = folder / "state"
        self.state_dir.mkdir()
        self.environ: dict[str, str] = {}
        self.applied: list[Settings] = []
        self.outcomes: list[Outcome] = []
        self.asked: list[Settings] = []
        self.why = ""
        self.write(lambda text: text)
        write_last_good(self.state_dir, read_sources(self.file, self.environ))

    def write(self, edit: Callable[[str], str]) -> None:
        self.file.write_text(edit(CONFIG.format(state_dir=self.state_dir)))

    def configuration(self) -> Configuration:
        async def apply(settings: Settings) -> None:
            self.applied.append(settings)

        async def replace(loaded: Loaded) -> str:
            self.asked.append(loaded.settings)
            return self.why

        start, _ = starting_point(self.file, self.state_dir, self.environ)
        return Configuration(
            self.file, self.state_dir, self.environ, start, apply, self.outcomes.append, lambda: 1_000, replace
        )

    def last_good(self) -> bytes:
        return (self.state_dir / LAST_GOOD).read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def slower(text: str) -> str:
    return text + "drain: {grace: 3s}\n"


def broken(text: str) -> str:
    return text + "drian: {grace: 3s}\n"


async def test_a_valid_change_is_applied_and_kept(place: Place) -> None:
    configuration = place.configuration()
    place.write(slower)
    assert await configuration.reload("file changed")
    assert [s.drain.grace for s in place.applied] == [3.0]
    assert configuration.current.settings.drain.grace == 3.0
    assert read_last_good(place.state_dir, {}).settings.drain.grace == 3.0
    assert os.stat(place.state_dir / LAST_GOOD).st_mode & 0o777 == 0o600
    assert [path.name for path in place.state_dir.iterdir()] == [LAST_GOOD], "no temporary file is left"
    assert configuration.last == place.outcomes[-1]
    assert (place.outcomes[-1].source, place.outcomes[-1].result) == ("config", "applied")


async def test_an_invalid_change_changes_nothing_and_names_its_line(place: Place) -> None:
    configuration = place.configuration()
    before = place.last_good()
    place.write(broken)
    assert not await configuration.reload("file changed")
    assert place.applied == []
    assert place.last_good() == before
    assert configuration.on_disk_differs
    refused = place.outcomes[-1]
    assert refused.result == "refused"
    line = len(broken(CONFIG).splitlines())
    assert refused.problems[0].startswith(f"{place.file}:{line}: drian")
    place.write(slower)
    assert await configuration.reload("file changed"), "the next valid edit is taken"
    assert not configuration.on_disk_differs


async def test_every_problem_is_told(place: Place) -> None:
    configuration = place.configuration()
    place.write(lambda text: text + "drian: {}\nlimits: {headers: many}\ntimeouts: {header: fast}\n")
    await configuration.reload("SIGHUP")
    assert len(place.outcomes[-1].problems) == 3


async def test_a_file_that_is_gone_changes_nothing(place: Place) -> None:
    configuration = place.configuration()
    place.file.unlink()
    assert not await configuration.reload("file changed")
    assert str(place.file) in place.outcomes[-1].problems[0]


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda text: text.replace("region: us-east-1", "region: eu-west-1"), "region"),
        (lambda text: text + "fleet: staging\n", "fleet"),
        (lambda text: text.replace("/state", "/other"), "state_dir"),
    ],
)
async def test_what_needs_a_new_start_is_refused_by_name(place: Place, edit: Callable[[str], str], key: str) -> None:
    configuration = place.configuration()
    place.write(lambda text: slower(edit(text)))
    assert not await configuration.reload("file changed")
    assert any(f": {key}: a change needs" in problem for problem in place.outcomes[-1].problems)
    assert place.applied == []
    assert configuration.current.settings.drain.grace == 12.0, "not in part either"
    assert place.asked == [], "nobody is asked for what cannot be"


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda text: text + "workers: 7\n", "workers"),
        (lambda text: text.replace("127.0.0.1:0", "127.0.0.1:8080"), "listen.http"),
    ],
)
async def test_what_needs_new_workers_is_applied_when_they_serve(
    place: Place, edit: Callable[[str], str], key: str
) -> None:
    configuration = place.configuration()
    before = place.last_good()
    place.why = "worker 1 exited with 4: it is broken"
    place.write(lambda text: slower(edit(text)))
    assert not await configuration.reload("file changed")
    assert place.outcomes[-1].problems == (
        f"{place.file}: {key}: the new workers do not serve: worker 1 exited with 4: it is broken",
    )
    assert place.applied == []
    assert place.last_good() == before, "it is the supervisor's to write, once they serve"
    assert configuration.current.settings.drain.grace == 12.0
    place.why = ""
    assert await configuration.reload("file changed")
    assert [len(place.asked), len(place.applied)] == [2, 1]
    assert place.applied[-1] == place.asked[-1]
    assert place.outcomes[-1].result == "applied"


async def test_a_secret_file_is_read_again_though_no_text_changed(place: Place, tmp_path: Path) -> None:
    key = tmp_path / "hop_key"
    key.write_text("a" * 32)
    place.write(lambda text: text + 'hop_keys: ["${file:hop_key}"]\n')
    write_last_good(place.state_dir, read_sources(place.file, {}))
    configuration = place.configuration()
    assert configuration.current.settings.hop_keys == ("a" * 32,)
    key.write_text("b" * 32)
    assert await configuration.reload("SIGHUP")
    assert place.applied[-1].hop_keys == ("b" * 32,)
    assert b"bbbb" not in place.last_good(), "text before expansion: no secret is written"


async def test_the_overlay_is_watched_before_it_exists(place: Place) -> None:
    configuration = place.configuration()
    overlay = place.file.parent / "regions" / "us-east-1.yaml"
    assert configuration.files() == [place.file, overlay]
    overlay.parent.mkdir()
    overlay.write_text("drain: {grace: 4s}\n")
    assert await configuration.reload("file changed")
    assert place.applied[-1].drain.grace == 4.0


async def test_a_start_takes_in_what_differs_from_last_good_and_only_that(place: Place) -> None:
    await place.configuration().catch_up()
    assert place.outcomes == [], "the disk says what runs: that is no reload"
    place.write(slower)
    await place.configuration().catch_up()
    assert place.applied[-1].drain.grace == 3.0
    assert place.outcomes[-1].cause == "start"


async def test_a_start_with_an_invalid_file_runs_on_last_good_and_says_so(place: Place) -> None:
    place.write(broken)
    configuration = place.configuration()
    await configuration.catch_up()
    assert configuration.current.settings.drain.grace == 12.0
    assert configuration.on_disk_differs
    assert place.outcomes[-1].result == "refused"
    place.file.unlink()
    await configuration.catch_up()
    assert len(place.outcomes) == 2


def test_a_damaged_last_good_is_replaced_by_the_disk(place: Place) -> None:
    (place.state_dir / LAST_GOOD).write_bytes(b"\x00garbage")
    start, why = starting_point(place.file, place.state_dir, {})
    assert start.settings == read_disk(place.file, {}).settings
    assert LAST_GOOD in why


def test_with_neither_there_is_no_start(place: Place) -> None:
    (place.state_dir / LAST_GOOD).unlink()
    place.write(broken)
    with pytest.raises(NoConfiguration, match="drian"):
        starting_point(place.file, place.state_dir, {})


async def test_a_last_good_that_cannot_be_written_does_not_stop_a_reload(place: Place) -> None:
    configuration = place.configuration()
    (place.state_dir / LAST_GOOD).unlink()
    (place.state_dir / LAST_GOOD).mkdir()
    (place.state_dir / LAST_GOOD / "full").touch()
    place.write(slower)
    assert await configuration.reload("file changed")
    assert place.applied[-1].drain.grace == 3.0
    assert [path.name for path in place.state_dir.iterdir()] == [LAST_GOOD]
