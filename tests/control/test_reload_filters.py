"""Operators' filters at a reload: tried first, run by new workers, and a broken one changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.control.reload import Configuration, Loaded, Outcome, read_last_good, starting_point, write_last_good
from gateway.settings.loader import read_sources
from gateway.settings.schema import Settings

CONFIG = """\
region: us-east-1
listen: {{http: "127.0.0.1:0"}}
state_dir: {state_dir}
misroute: external
regions: {{us-east-1: {{public: "http://{{tenant}}.us.test"}}}}
clusters: {{app: {{endpoints: ["127.0.0.1:9000"]}}}}
filters: {{paths: [{paths}]}}
"""
GOOD = "class Mine:\n    name = 'mine'\n    kind = 'inbound'\n    def __call__(self, exchange): pass\n"


class Place:
    """gateway.yaml, a folder `my` with one filter, and a Configuration whose new workers serve, or fail to."""

    def __init__(self, folder: Path, fails: str = "", paths: str = "./my") -> None:
        self.file, self.state_dir, self.filter = folder / "gateway.yaml", folder / "state", folder / "my" / "a.py"
        self.state_dir.mkdir()
        self.filter.parent.mkdir()
        self.filter.write_text(GOOD)
        self.write(paths)
        write_last_good(self.state_dir, read_sources(self.file, {}))
        self.outcomes: list[Outcome] = []
        self.applied: list[Settings] = []
        self.asked: list[str] = []
        start, _ = starting_point(self.file, self.state_dir, {})

        async def apply(settings: Settings) -> None:
            self.applied.append(settings)

        async def replace(loaded: Loaded) -> str:
            """As supervisor and workers do: what the newcomers serve becomes last-good, or nothing changes."""
            self.asked.append("".join(file.text.decode() for file in loaded.sources.filters.files))
            if not fails:
                write_last_good(self.state_dir, loaded.sources)
            return fails

        self.configuration = Configuration(
            *(self.file, self.state_dir, {}, start, apply, self.outcomes.append, lambda: 1_000),
            replace,
        )

    def write(self, paths: str) -> None:
        self.file.write_text(CONFIG.format(state_dir=self.state_dir, paths=paths))

    def kept(self) -> str:
        """The filter's text that a worker which starts now gets."""
        return "".join(file.text.decode() for file in read_last_good(self.state_dir, {}).sources.filters.files)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_changed_filter_is_run_by_new_workers(place: Place) -> None:
    changed = GOOD + "# changed\n"
    place.filter.write_text(changed)
    assert await place.configuration.reload("file changed")
    assert place.asked == [changed]
    assert place.kept() == changed
    assert place.outcomes[-1].result == "applied"
    assert await place.configuration.reload("SIGHUP")
    assert len(place.asked) == 1, "what did not change needs no new workers"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\ny = (\n", ":2: expected Python that can be compiled"),
        (GOOD + "\n1 / 0\n", ":6: expected a file that can be imported, got ZeroDivisionError"),
        ("import os\nos._exit(0)\n", ":1: expected filters that can be loaded, got an exit with 0"),
        (GOOD.replace("mine", "region"), ":1: expected a name of its own, got region, which is built in"),
    ],
)
async def test_a_broken_filter_changes_nothing_and_says_why(place: Place, text: str, problem: str) -> None:
    place.filter.write_text(text)
    assert not await place.configuration.reload("file changed")
    [why] = place.outcomes[-1].problems
    assert why.startswith(f"{place.filter}{problem}")
    assert (place.asked, place.applied, place.kept()) == ([], [], GOOD)
    assert place.configuration.on_disk_differs
    place.filter.write_text(GOOD + "\n")
    assert await place.configuration.reload("file changed"), "the next valid edit is taken"
    assert place.asked == [GOOD + "\n"]


async def test_newcomers_that_do_not_serve_change_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path, fails="worker 0 exited with 1")
    place.filter.write_text(GOOD + "\n")
    assert not await place.configuration.reload("file changed")
    [why] = place.outcomes[-1].problems
    assert "filters.paths" in why
    assert "worker 0 exited with 1" in why
    assert (place.applied, place.kept()) == ([], GOOD)


async def test_other_options_are_new_workers_too(place: Place) -> None:
    place.file.write_text(place.file.read_text().replace("[./my]", "[./my], options: {mine: {on_error: refuse}}"))
    assert await place.configuration.reload("file changed")
    assert len(place.asked) == 1
    place.file.write_text(place.file.read_text().replace("on_error: refuse", "colour: red"))
    assert not await place.configuration.reload("file changed")
    assert "takes no options: colour" in place.outcomes[-1].problems[0]


async def test_what_is_imported_from_elsewhere_is_warned_of(place: Place) -> None:
    place.filter.write_text("import msgspec\n" + GOOD)
    assert await place.configuration.reload("file changed")
    assert any("imports msgspec: it is not part of Python" in line for line in place.outcomes[-1].warnings)


async def test_all_filter_files_are_watched_also_those_of_a_refused_configuration(place: Place) -> None:
    configuration = place.configuration
    assert configuration.files()[2:] == [place.filter]
    (place.filter.parent / "b.py").write_text(GOOD.replace("mine", "other"))
    assert len(configuration.files()) == 4, "a new file is a change"
    yours = place.file.parent / "yours.py"
    yours.write_text("broken (")
    place.write("./my, ./yours.py")
    assert not await configuration.reload("file changed")
    assert configuration.files()[-1] == yours, "or its mending would go unseen"


async def test_other_watched_files_are_no_change_of_their_own(place: Place) -> None:
    """The watch sees other files after a reload that names others, and calls again: nothing has happened."""
    yours = place.file.parent / "yours.py"
    yours.write_text(GOOD.replace("mine", "yours"))
    place.write("./my, ./yours.py")
    assert await place.configuration.reload("file changed")
    assert await place.configuration.reload("file changed")
    assert len(place.outcomes) == 1
    yours.write_text(GOOD.replace("mine", "theirs"))
    assert await place.configuration.reload("file changed")
    assert [outcome.result for outcome in place.outcomes] == ["applied", "applied"]
