"""YAML as a tree of text with places: every key and value knows the file and the line that it came from.

Built from the parser's events, not from YAML's typed objects, for three reasons: an id such as `no`, `007` or `12:30`
has to arrive as it was written; a duplicate key has to be seen; and a file of ten thousand tenants has to be read in
a second. What a text means is decided by the schema that reads it (`shape`).

Never constructs an object that a document names: a tag is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from gateway.settings.problems import Invalid, Problem, plain, shown

LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser is twenty times as fast; without it the same events come from Python."""

DEPTH_MAX: Final = 32
"""The schema is six levels deep and filters' options are the operator's own; a deeper document is an accident."""

NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_PLAIN_SEGMENT: Final = re.compile(r"[A-Za-z0-9_:*-]+\Z")


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or an environment variable: its `name` in problems, and the `folder` that relative paths start at."""

    name: str
    folder: str = ""


@dataclass(slots=True)
class Leaf:
    """A scalar. `is_plain`: written without quotes, so it may be a number, a boolean or nothing."""

    source: Source
    line: int
    text: str
    is_plain: bool = True

    @property
    def is_null(self) -> bool:
        return self.is_plain and self.text in NULLS


@dataclass(slots=True)
class Listing:
    source: Source
    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """A mapping. `lines` holds each key's own line; `line` is where the mapping's key stands, or its beginning."""

    source: Source
    line: int
    entries: dict[str, Node] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


Node = Leaf | Listing | Table

Path = tuple[str | int, ...]
"""Keys and list positions from the document's root to a value."""


def dotted(path: Path) -> str:
    """`clusters.app.endpoints[0]`: a path as problems write it."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_SEGMENT.match(step) else shown(step)
            text += f".{name}" if text else name
    return text


def find(root: Node, path: Path) -> Node:
    """The value at `path`, or the deepest one on the way to it that exists."""
    node = root
    for step in path:
        if isinstance(node, Table) and isinstance(step, str) and step in node.entries:
            node = node.entries[step]
        elif isinstance(node, Listing) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        else:
            break
    return node


def decode(source: Source, data: bytes) -> str:
    """UTF-8 with or without a byte order mark. Raises Invalid naming the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid([Problem(source.name, line, "", "UTF-8", f"the byte 0x{data[error.start]:02x}")]) from None


def parse(source: Source, text: str) -> tuple[Table, list[Problem]]:
    """The document in `text`, and its duplicate keys and forbidden constructs. Raises Invalid when it is not YAML.

    A document that is empty, or only comments, is an empty mapping.
    """
    root, problems = parse_value(source, text)
    if root is None:
        return Table(source, 1), problems
    if not isinstance(root, Table):
        raise Invalid([*problems, Problem(source.name, root.line, "", "a mapping", described(root))])
    root.line = 1
    return root, problems


def parse_value(source: Source, text: str) -> tuple[Node | None, list[Problem]]:
    """The one value in `text`, of any kind; None when there is nothing. Raises Invalid when it is not YAML."""
    try:
        # the loader scans its stream in its constructor too, so that is inside
        loader = LOADER(text)
        try:
            build = _Build(source, iter(loader.get_event, None))
            return build.document(), build.problems
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = plain(error.problem or error.context or "something else")
        raise Invalid([Problem(source.name, line, "", "valid YAML", f"an error: {what}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise Invalid([Problem(source.name, line, "", "valid YAML", "a character that YAML does not allow")]) from None


class _Build:
    """Events in, tree out."""

    def __init__(self, source: Source, events: Iterator[Any]) -> None:
        self.source = source
        self.events = events
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.anchored = 0

    def document(self) -> Node | None:
        root: Node | None = None
        seen = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise self.refusal(event, (), "one document", "a second one")
                seen = True
                root = self.value(next(self.events), 0, ())
        return None if isinstance(root, Leaf) and root.is_null else root

    def refusal(self, event: Any, path: Path, expected: str, found: str) -> Invalid:
        return Invalid([*self.problems, self.problem(event.start_mark.line + 1, path, expected, found)])

    def problem(self, line: int, path: Path, expected: str, found: str) -> Problem:
        return Problem(self.source.name, line, dotted(path), expected, found)

    def value(self, event: Any, key_line: int, path: Path) -> Node:
        """The value that begins with `event`. A collection takes the line of its key, so that it is found by it."""
        if len(path) > DEPTH_MAX:
            raise self.refusal(event, path[:3], f"at most {DEPTH_MAX} levels", "more")
        kind = type(event)
        if kind is yaml.AliasEvent:
            if self.anchored:
                # a few lines of aliases within aliases stand for billions of values, or for themselves
                raise self.refusal(event, path, "no alias inside of an anchored value", f"*{plain(event.anchor)}")
            if event.anchor not in self.anchors:
                raise self.refusal(event, path, "a known anchor", f"*{plain(event.anchor)}")
            return self.anchors[event.anchor]
        line = event.start_mark.line + 1
        if event.tag is not None and event.tag != "!":
            self.problems.append(self.problem(line, path, "a value without a tag", f"the tag {plain(event.tag)}"))
        if kind is yaml.ScalarEvent:
            is_plain = event.style is None or event.style == ""
            if is_plain and not event.value and key_line:
                line = key_line  # nothing is written: its place is wherever the parser noticed
            leaf = Leaf(self.source, line, event.value, is_plain)
            if event.anchor is not None:
                self.anchors[event.anchor] = leaf
            return leaf
        node: Listing | Table = Listing(self.source, key_line or line)
        if kind is not yaml.SequenceStartEvent:
            node = Table(self.source, key_line or line)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
            self.anchored += 1
        if isinstance(node, Listing):
            self.items(node, path)
        else:
            self.entries(node, path)
        self.anchored -= event.anchor is not None
        return node

    def items(self, node: Listing, path: Path) -> None:
        for event in self.events:
            if type(event) is yaml.SequenceEndEvent:
                return
            node.items.append(self.value(event, 0, (*path, len(node.items))))

    def entries(self, node: Table, path: Path) -> None:
        for event in self.events:
            if type(event) is yaml.MappingEndEvent:
                return
            line = event.start_mark.line + 1
            if type(event) is not yaml.ScalarEvent:
                raise self.refusal(event, path, "a key that is a text", "a list, a mapping or an alias")
            key: str = event.value
            inner = (*path, key)
            value = self.value(next(self.events), line, inner)
            if key in node.entries:
                first = node.lines[key]
                self.problems.append(self.problem(line, inner, "this key once", f"it again (first on line {first})"))
                continue
            node.entries[key] = value
            node.lines[key] = line


_NUMBER: Final = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?\Z")
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def described(node: Node) -> str:
    """A value as problems show it: its text, or what kind of thing it is."""
    match node:
        case Table():
            return "a mapping"
        case Listing():
            return "a list"
        case Leaf():
            if node.is_null:
                return "nothing"
            if node.is_plain and (_NUMBER.match(node.text) or node.text in _BOOLEANS):
                return plain(node.text)
            return shown(node.text)


def kind_of(node: Node) -> str:
    """What a value is, without what it says."""
    return "a value" if isinstance(node, Leaf) and not node.is_null else described(node)


def merge(base: Node, over: Node) -> Node:
    """`over` laid over `base`: mappings merge key by key, anything else replaces. Places stay with their values."""
    if not (isinstance(base, Table) and isinstance(over, Table)):
        return over
    merged = Table(base.source, base.line, dict(base.entries), dict(base.lines))
    for key, value in over.entries.items():
        merged.entries[key] = merge(base.entries[key], value) if key in base.entries else value
        merged.lines[key] = over.lines[key]
    return merged


def typed(leaf: Leaf, text: str) -> object:
    """A scalar of the operator's own mapping (a filter's option): nothing, boolean, number, or the text itself."""
    if not leaf.is_plain:
        return text
    if text in NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17})", text):
        return int(text)
    if re.fullmatch(r"[-+]?[0-9]+\.[0-9]+", text):
        return float(text)
    return text
