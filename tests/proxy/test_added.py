"""Operators' files: from text to filters, their places in the chain, and every mistake with its line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.core.filtering import ChainError
from gateway.proxy.added import MODULE_PREFIX, load_files, load_filters
from gateway.proxy.chain import assemble, chain_of
from gateway.settings.filter_files import FilterText

GOOD = """\
class Mine:
    name = "mine"
    kind = "inbound"

    def __call__(self, exchange):
        return None
"""


def text(source: str, path: str = "/f/mine.py") -> FilterText:
    return FilterText(path, source.encode())


def of_kind(name: str, kind: str, *lines: str) -> str:
    extra = "".join(f"    {line}\n" for line in lines)
    return f"class C:\n    name = '{name}'\n    kind = '{kind}'\n{extra}    def __call__(self, exchange): pass\n"


def problems_of(*files: FilterText, options: Mapping[str, Mapping[str, object]] | None = None) -> list[str]:
    loaded = load_files(files)
    return [str(p) for p in loaded.problems or assemble(options or {}, loaded.filters, {}).problems]


MISTAKES = [
    ("x = (\n", "/f/mine.py:1: expected Python that can be compiled, got SyntaxError: '(' was never closed"),
    ("x = 1\nx = \0", "/f/mine.py:1: expected Python that can be compiled, got SyntaxError: source code string cannot"),
    ("x = 1\n\nraise OSError('no')\n", "/f/mine.py:3: expected a file that can be imported, got OSError: no"),
    ("def f():\n    1 / 0\n\nf()\n", "/f/mine.py:2: expected a file that can be imported, got ZeroDivisionError"),
    ("import nowhere_at_all\n", "/f/mine.py:1: expected a file that can be imported, got ModuleNotFoundError"),
    ("raise SystemExit(0)\n", "/f/mine.py:1: expected a file that can be imported, got SystemExit: 0"),
    ("", "/f/mine.py:1: expected a class with `name` and `kind`, got none"),
    ("class Mine:\n    name = 'mine'\n", "/f/mine.py:1: expected a class with `name` and `kind`, got none"),
    (GOOD.replace('"mine"', '"Mine"'), "/f/mine.py:1: expected a `name` of 1 to 32 of a-z 0-9 _ -, beginning"),
    (GOOD.replace('name = "mine"', ""), "/f/mine.py:1: expected a `name` of 1 to 32 of a-z 0-9 _ -, beginning"),
    ("\n\n" + GOOD.replace("inbound", "upbound"), "/f/mine.py:3: expected a `kind`: inbound, endpoint, outbound, got"),
    (GOOD.partition("    def")[0], "/f/mine.py:1: expected a method `__call__(self, exchange)`, got none (Mine)"),
    (of_kind("tenant", "inbound"), "/f/mine.py:1: expected a name of its own, got tenant, which is built in"),
    (of_kind("a", "inbound", "before = 'log'"), "/f/mine.py:1: expected one of the inbound filters as its place: "),
    (of_kind("a", "inbound", "after = 5"), "/f/mine.py:1: expected the name of a filter as `before` and `after`"),
    (of_kind("a", "endpoint", "after = 'reply'"), "/f/mine.py:1: expected no `before` or `after`: endpoint filters"),
    (
        of_kind("a", "inbound", "after = 'tenant'", "before = 'identify'"),
        "/f/mine.py:1: expected tenant to come before",
    ),
    (
        of_kind("a", "outbound").replace("def __call__", "async def __call__"),
        "/f/mine.py:1: filters: expected a chain that can be built, got outbound filters cannot be async",
    ),
]


@pytest.mark.parametrize(("source", "problem"), MISTAKES)
def test_every_mistake_has_its_line(source: str, problem: str) -> None:
    [found] = problems_of(text(source))
    assert found.startswith(problem)


def test_all_files_are_told_of_at_once() -> None:
    found = problems_of(text("x = (", "/f/a.py"), text("1 / 0", "/f/b.py"), text(GOOD, "/f/c.py"))
    assert [line.partition(": ")[0] for line in found] == ["/f/a.py:1", "/f/b.py:1"]


def test_two_files_of_one_name_do_not_collide() -> None:
    one = text("LABEL = 'one'\n" + GOOD.replace("return None", "return LABEL").replace('"mine"', '"one"'), "/a/m.py")
    two = text("LABEL = 'two'\n" + GOOD.replace("return None", "return LABEL").replace('"mine"', '"two"'), "/b/m.py")
    made: list[Any] = [added.make({}) for added in load_filters([one, two])]
    assert [step(None) for step in made] == ["one", "two"]
    assert "m" not in sys.modules


def test_two_filters_of_one_name_do() -> None:
    found = problems_of(text(GOOD, "/a/m.py"), text("\n" + GOOD, "/b/m.py"))
    assert found == ["/b/m.py:2: expected a name of its own, got mine, which /a/m.py:1 has"]


def test_a_file_may_define_dataclasses_and_leaves_no_module_when_it_fails() -> None:
    [mine] = load_filters([text("from dataclasses import dataclass\n@dataclass\nclass D:\n    a: 'int'\n" + GOOD)])
    assert (mine.name, mine.line) == ("mine", 5)
    before = {name for name in sys.modules if name.startswith(MODULE_PREFIX)}
    load_files([text("1 / 0", "/elsewhere/never.py")])
    assert {name for name in sys.modules if name.startswith(MODULE_PREFIX)} == before


@pytest.mark.parametrize(
    ("source", "warned"),
    [
        ("import json, asyncio.streams\nfrom gateway.core.filtering import Respond\n", []),
        ("import yaml\n", ["yaml"]),
        ("from gateway.proxy.worker import Worker\n", ["gateway.proxy.worker"]),
        ("def f():\n    from filters import INBOUND\n", ["filters"]),
    ],
)
def test_imports_that_another_machine_may_not_have_are_warned_of(source: str, warned: list[str]) -> None:
    loaded = load_files([text(source + GOOD)])
    assert [line.split(": ")[1].removeprefix("imports ") for line in loaded.warnings] == warned
    assert not loaded.problems


PLACES = [
    ([("a", ()), ("b", ())], "identify tenant region access throttle shed a b"),
    ([("a", ("before = 'identify'",))], "a identify tenant region access throttle shed"),
    ([("a", ("after = 'tenant'",)), ("b", ("after = 'tenant'",))], "identify tenant a b region access throttle shed"),
    ([("a", ("after = 'b'",)), ("b", ("before = 'region'",))], "identify tenant b a region access throttle shed"),
    ([("a", ("after = 'identify'", "before = 'region'"))], "identify a tenant region access throttle shed"),
]


@pytest.mark.parametrize(("filters", "order"), PLACES)
def test_a_filter_says_where_it_stands(filters: list[tuple[str, tuple[str, ...]]], order: str) -> None:
    files = [text(of_kind(name, "inbound", *lines), f"/f/{name}.py") for name, lines in filters]
    chain = chain_of({}, load_filters(files))
    assert " ".join(step.name for step in chain.inbound) == order
    assert chain.removable == {name for name, _ in filters}


def test_an_outbound_filter_runs_before_the_log() -> None:
    chain = chain_of({}, load_filters([text(of_kind("a", "outbound")), text(of_kind("e", "endpoint"), "/f/e.py")]))
    assert [step.name for step in chain.outbound] == ["headers", "a", "log"]
    assert set(chain.endpoints) == {"forward", "redirect", "reply", "e"}


TAKES = GOOD.replace("    def", "    def __init__(self, options):\n        self.team = options['team']\n\n    def", 1)


@pytest.mark.parametrize(
    ("source", "options", "why"),
    [
        (GOOD, {"a": 1}, "a refusal: takes no options: a"),
        (GOOD, {"on_error": "ignore"}, "a refusal: on_error is remove or refuse"),
        (TAKES, {}, "a refusal: KeyError: 'team'"),
        (
            TAKES.replace("options['team']", "int(options['team'])"),
            {"team": "x"},
            "a refusal: invalid literal for int()",
        ),
    ],
)
def test_options_that_a_filter_does_not_take(source: str, options: dict[str, object], why: str) -> None:
    [found] = problems_of(text(source), options={"mine": options})
    assert found.startswith(f"/f/mine.py:1: filters.options.mine: expected options that this filter takes, got {why}")


def test_a_built_in_filter_is_never_taken_out() -> None:
    with pytest.raises(ChainError, match="this one is never taken out"):
        chain_of({"log": {"on_error": "refuse"}})
    assert chain_of({}).removable == frozenset()


def test_who_refuses_on_errors_stays() -> None:
    added = load_filters([text(TAKES)])
    chain = chain_of({"mine": {"team": "blue", "on_error": "refuse"}}, added)
    assert chain.removable == frozenset()
    assert chain.inbound[-1].inner.team == "blue"  # type: ignore[attr-defined]  # behind its guard


def test_options_of_nobody_name_the_filters_that_there_are() -> None:
    [found] = problems_of(text(GOOD), options={"mime": {}})
    assert (
        "one of identify, tenant, region, access, throttle, shed, forward, "
        "redirect, reply, headers, log, mine (did you mean mine?)"
    ) in found


def test_a_traceback_shows_the_text_that_ran(tmp_path: Path) -> None:
    import traceback

    path = tmp_path / "mine.py"
    path.write_text("# something else by now\n" * 9)
    [mine] = load_filters([text(GOOD.replace("return None", "return 1 / 0"), str(path))])
    step: Any = mine.make({})
    with pytest.raises(ZeroDivisionError) as caught:
        step(None)
    assert "return 1 / 0" in "".join(traceback.format_exception(caught.value))
