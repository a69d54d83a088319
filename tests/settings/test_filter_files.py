"""`filters.paths`: which files it names, what is kept of them, and what a child makes of a file that misbehaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gateway.settings.difference import compare
from gateway.settings.filter_check import check_filters, require_filters
from gateway.settings.filter_files import FILE_BYTES_MAX, FILES_MAX, FilterText, matches
from gateway.settings.loader import decode_sources, encode_sources, load, read_sources
from gateway.settings.problems import Invalid
from tests.support.configs import ENVIRON, SMALL, problems_of, settings_of, write

GOOD = "class Mine:\n    name = 'mine'\n    kind = 'inbound'\n    def __call__(self, exchange): pass\n"
LINE = len(SMALL.splitlines()) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`my/b.py`, `my/a.py`, and what is no filter."""
    (tmp_path / "my").mkdir()
    for name in ("b.py", "a.py", "_shared.py", ".a.py.swp", "__init__.py", "notes.txt"):
        (tmp_path / "my" / name).write_text(GOOD)
    (tmp_path / "my" / "sub.py").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("my", ["a.py", "b.py"]),
        ("my/*.py", ["a.py", "b.py"]),
        ("my/[b-z]*.py", ["b.py"]),
        ("my/_shared.py", ["_shared.py"]),
        ("*", []),
        ("my/c.py", []),
        ("your", []),
    ],
)
def test_a_path_is_a_file_a_folder_or_a_pattern(folder: Path, pattern: str, names: list[str]) -> None:
    assert [os.path.basename(path) for path in matches(str(folder / pattern))] == names


def configured(folder: Path, *paths: str, options: str = "{}") -> Path:
    return write(folder, SMALL + f"filters: {{paths: [{', '.join(paths)}], options: {options}}}\n")


def test_texts_are_kept_with_the_sources_and_each_file_once(folder: Path) -> None:
    path = configured(folder, "./my/a.py", "./my")
    sources = read_sources(path, ENVIRON)
    assert [os.path.basename(file.path) for file in sources.filters.files] == ["a.py", "b.py"]
    for file in (folder / "my").glob("*.py"):
        if file.is_file():
            file.write_text("broken (")
    kept = decode_sources(encode_sources(sources))
    assert kept.filters.files[0].text == GOOD.encode(), "what was validated is what a worker gets"
    settings = load(kept, ENVIRON)
    assert [os.path.basename(file.path) for file in settings.filter_files] == ["a.py", "b.py"]


def test_a_path_starts_at_the_file_that_names_it(folder: Path) -> None:
    overlay = ("here", "filters: {paths: [../my/b.py]}\n")
    settings = settings_of(write(folder, SMALL, overlay))
    assert [file.path for file in settings.filter_files] == [str(folder / "my" / "b.py")]


def test_a_path_that_names_nothing_is_a_mistake_with_its_line(folder: Path) -> None:
    expected = "expected a file with filters, or a folder or pattern that has some, got "
    assert problems_of(configured(folder, "./my", "./your/*.py")) == [
        f'gateway.yaml:{LINE}: filters.paths[1]: {expected}"./your/*.py"'
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_a_mistake(folder: Path) -> None:
    (folder / "my" / "a.py").chmod(0)
    [found] = problems_of(configured(folder, "./my"))
    assert found.startswith("my/a.py: expected a readable file")


def test_files_have_limits(folder: Path) -> None:
    (folder / "my" / "a.py").write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    [found] = problems_of(configured(folder, "./my"))
    assert found == f"my/a.py: expected a readable file of at most {FILE_BYTES_MAX} bytes, got more than 262144 bytes"
    (folder / "my" / "a.py").write_text(GOOD)
    for number in range(FILES_MAX):
        (folder / "my" / f"c{number:02}.py").write_text(GOOD)
    [found] = problems_of(configured(folder, "./my"))
    assert f"filters.paths: expected at most {FILES_MAX} files, got more" in found


def test_a_changed_text_is_a_change_of_code(folder: Path) -> None:
    path = configured(folder, "./my/a.py")
    old = settings_of(path)
    (folder / "my" / "a.py").write_text(GOOD + "\n")
    new = settings_of(path)
    assert compare(old, new).code == ["filters.paths"]
    assert old.digest != new.digest


def test_options_of_unknown_filters_are_judged_once_the_files_are_known(folder: Path) -> None:
    assert "expected a filter: one of identify" in problems_of(configured(folder, options="{mine: {}}"))[0]
    path = configured(folder, "./my/a.py", options="{mine: {on_error: refuse}, mime: {}}")
    sources = read_sources(path, ENVIRON)
    settings = load(sources, ENVIRON)
    [problem] = check_filters(settings, sources.filters).problems
    assert str(problem).startswith(f"{path}:{LINE}: filters.options.mime: expected a filter: one of identify, ")


def checked(folder: Path, text: str) -> tuple[list[str], float]:
    """The problems of one file, and how long that took."""
    (folder / "my" / "a.py").write_text(text)
    sources = read_sources(configured(folder, "./my/a.py"), ENVIRON)
    began = time.monotonic()
    found = check_filters(load(sources, ENVIRON), sources.filters, import_limit_s=0.5, limit_s=5.0)
    return [str(problem).replace(f"{folder}/", "") for problem in found.problems], time.monotonic() - began


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import os\nos._exit(0)\n", "my/a.py:1: expected filters that can be loaded, got an exit with 0"),
        (
            "import os\nos.kill(os.getpid(), 9)\n",
            "my/a.py:1: expected filters that can be loaded, got death by signal 9",
        ),
        ("import sys\nsys.exit('bye')\n", "my/a.py:2: expected a file that can be imported, got SystemExit: bye"),
        ("x = 1\nwhile True:\n    x = 2\n", "got TooSlow: not done within 0.5 s"),
        ("import time\ntime.sleep(60)\n", "my/a.py:2: expected a file that can be imported, got TooSlow"),
        ("print('{}')\nprint('[1]', flush=True)\n" + GOOD, ""),
        ("import subprocess\nsubprocess.Popen(['sleep', '60'])\n" + GOOD, ""),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n" + GOOD, ""),
    ],
)
def test_a_file_that_hangs_or_exits_costs_nobody_but_the_child(folder: Path, text: str, problem: str) -> None:
    problems, took_s = checked(folder, text)
    assert took_s < 5
    if problem:
        assert problem in problems[0]
    else:
        assert problems == []


def test_a_start_is_refused_with_every_problem(folder: Path) -> None:
    (folder / "my" / "a.py").write_text("1 / 0\n")
    (folder / "my" / "b.py").write_text("x = (\n")
    sources = read_sources(configured(folder, "./my"), ENVIRON)
    with pytest.raises(Invalid) as caught:
        require_filters(load(sources, ENVIRON), sources.filters, os.environ)
    assert [os.path.basename(problem.file) for problem in caught.value.problems] == ["a.py", "b.py"]


def test_without_files_and_options_there_is_no_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    sources = read_sources(write(folder, SMALL), ENVIRON)
    require_filters(load(sources, ENVIRON), sources.filters, os.environ)


def test_a_file_says_what_kept_it_from_being_read() -> None:
    assert FilterText("/x", problem="permission denied").text == b""
