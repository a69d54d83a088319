"""YAML as text with places: lines, ids as written, duplicates, and what no document may do."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.settings import document
from gateway.settings.document import Leaf, Listing, Source, Table, dotted, find, merge, parse, typed
from gateway.settings.problems import Invalid, shown

HERE = Source("f.yaml", "/folder")


def lines_of(text: str) -> list[str]:
    try:
        _, problems = parse(HERE, text)
    except Invalid as error:
        problems = error.problems
    return [str(problem) for problem in problems]


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both parsers: a platform without libyaml reads the same documents."""
    if request.param == "python":
        monkeypatch.setattr(document, "LOADER", yaml.SafeLoader)
    return str(request.param)


@pytest.mark.usefixtures("parser")
def test_every_value_knows_its_line() -> None:
    root, problems = parse(HERE, "a: 1\nb:\n  c: x\n  d:\n    - p\n    - q\ne:\nf: {g: h}\n")
    assert not problems
    lines = {
        path: find(root, path).line
        for path in [("a",), ("b",), ("b", "c"), ("b", "d"), ("b", "d", 1), ("e",), ("f", "g")]
    }
    assert list(lines.values()) == [1, 2, 3, 4, 6, 7, 8]


@pytest.mark.usefixtures("parser")
def test_ids_arrive_as_they_are_written() -> None:
    root, _ = parse(HERE, "no: 1\n007: 1\n12:30: 1\n0x1F: 1\nnull: 1\n1.0: 1\n~: 1\n2020-01-01: 1\n")
    assert list(root.entries) == ["no", "007", "12:30", "0x1F", "null", "1.0", "~", "2020-01-01"]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: expected this key once, got it again (first on line 1)"),
        ("a:\n  b: 1\n  b: 2\n", "f.yaml:3: a.b: expected this key once, got it again (first on line 2)"),
        ("- {x: 1, x: 2}\n", "f.yaml:1: [0].x: expected this key once, got it again (first on line 1)"),
        ("a: !!str 5\n", "f.yaml:1: a: expected a value without a tag, got the tag tag:yaml.org,2002:str"),
        ("a: !x {}\n", "f.yaml:1: a: expected a value without a tag, got the tag !x"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: expected one document, got a second one"),
        ("? [a]\n: 1\n", "f.yaml:1: expected a key that is a text, got a list, a mapping or an alias"),
        ("a: &x [*x]\n", "f.yaml:1: a[0]: expected no alias inside of an anchored value, got *x"),
        ("a: *x\n", "f.yaml:1: a: expected a known anchor, got *x"),
        ("just text\n", 'f.yaml:1: expected a mapping, got "just text"'),
        ("- a\n", "f.yaml:1: expected a mapping, got a list"),
        ("[" * 40 + "]" * 40, "f.yaml:1: [0][0][0]: expected at most 32 levels, got more"),
    ],
)
def test_problems_of_a_document(text: str, line: str) -> None:
    assert line in lines_of(text)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [1, 2\nc: 3\n", 3), ("a: 1\n\tb: 2\n", 2), ("a: b: c\n", 1), ("a: 'x\n", 2), ("a: \x00\n", 1)],
)
def test_what_is_no_yaml_is_one_problem_with_its_line(text: str, line: int) -> None:
    [problem] = lines_of(text)
    assert problem.startswith((f"f.yaml:{line}: expected valid YAML, got ", f"f.yaml:{line - 1}: expected valid YAML"))
    assert "\n" not in problem


def test_a_few_lines_of_aliases_do_not_become_billions_of_values() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    assert lines_of(bomb) == ["f.yaml:2: a1[0]: expected no alias inside of an anchored value, got *a0"]


def test_an_alias_stands_for_its_anchor() -> None:
    root, problems = parse(HERE, "a: &t {connect: 1s}\nb: *t\n")
    assert not problems
    assert root.entries["a"] is root.entries["b"]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "~\n", "null\n"])
def test_an_empty_document_is_an_empty_mapping(text: str) -> None:
    root, problems = parse(HERE, text)
    assert root.entries == {}
    assert not problems


def test_bytes_that_are_no_utf_8_are_named_with_their_line() -> None:
    with pytest.raises(Invalid) as caught:
        document.decode(HERE, b"a: 1\nb: \xff\n")
    assert str(caught.value) == "f.yaml:2: expected UTF-8, got the byte 0xff"
    assert document.decode(HERE, b"\xef\xbb\xbfa: 1") == "a: 1"


def test_mappings_merge_and_everything_else_replaces_with_its_own_place() -> None:
    base, _ = parse(HERE, "a: {b: 1, c: [1, 2]}\nd: x\n")
    over, _ = parse(Source("over.yaml"), "\n\na: {c: [3]}\nd: {e: 1}\n")
    merged = merge(base, over)
    assert (find(merged, ("a", "b")).source.name, find(merged, ("a", "b")).line) == ("f.yaml", 1)
    assert (find(merged, ("a", "c")).source.name, find(merged, ("a", "c")).line) == ("over.yaml", 3)
    assert isinstance(find(merged, ("a", "c")), Listing)
    assert isinstance(find(merged, ("d",)), Table)
    assert isinstance(find(base, ("d",)), Leaf), "a merge leaves its parts alone"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("clusters", "app", "endpoints", 0), "clusters.app.endpoints[0]"),
        (("clusters", "region:*"), "clusters.region:*"),
        (("a.b", "c d"), '"a.b"."c d"'),
        (("x\ny",), '"x\\u000ay"'),
        ((), ""),
    ],
)
def test_dotted(path: document.Path, text: str) -> None:
    assert dotted(path) == text


@pytest.mark.parametrize(
    ("text", "is_plain", "value"),
    [
        ("true", True, True),
        ("False", True, False),
        ("12", True, 12),
        ("-3", True, -3),
        ("1.5", True, 1.5),
        ("", True, None),
        ("~", True, None),
        ("no", True, "no"),
        ("007", True, "007"),
        ("12", False, "12"),
        ("true", False, "true"),
    ],
)
def test_typed_options(text: str, is_plain: bool, value: object) -> None:
    found = typed(Leaf(HERE, 1, text, is_plain), text)
    assert found == value
    assert type(found) is type(value)


@examples(deadline=None)
@given(st.text(max_size=200))
def test_whatever_the_text_the_outcome_is_a_tree_or_problems_on_single_lines(text: str) -> None:
    assert not any("\n" in line or "\r" in line for line in lines_of(text))


@examples(deadline=None)
@given(st.text(max_size=200))
def test_a_shown_value_is_one_short_printable_line(text: str) -> None:
    line = shown(text)
    assert line.isprintable()
    assert len(line) <= 6 * 82
