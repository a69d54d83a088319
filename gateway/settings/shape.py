"""The kinds of value that a configuration is made of, and the walk that reads a document by them.

A schema is data: records of keys, each key with its kind, default and meaning (`keys`, `tenants`). The walk never
stops at a problem: it notes it, puts a stand-in where the value would be, and goes on, so that an operator sees every
mistake at once. The documentation, the JSON Schema and the walk read the same tables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, Protocol

import msgspec

from gateway.settings.document import Leaf, Listing, Node, Path, Source, Table, described, dotted, kind_of, typed
from gateway.settings.expansion import Unresolved, expand, has_reference
from gateway.settings.problems import Problem, nearest, shown
from gateway.settings.units import Wanted

NOT_YET: Final = "not supported yet"
OPTION_VALUES_MAX: Final = 10_000
"""Values below one `filters.options` entry: aliases could otherwise multiply a short text without end."""


class _Bad(Enum):
    BAD = "bad"


BAD: Final = _Bad.BAD
"""What a kind returns when it noted a problem instead of reading a value."""


class Effect(StrEnum):
    """What a changed key needs to take effect."""

    RELOAD = "reload"
    WORKERS = "new workers"
    RESTART = "restart"


class Kind(Protocol):
    """How one value is written. `type_name` is for the documentation."""

    @property
    def type_name(self) -> str: ...
    @property
    def secret(self) -> bool: ...

    def read(self, walk: Walk, node: Node, path: Path) -> object: ...
    def stand_in(self) -> object: ...


class KeyFile(msgspec.Struct, frozen=True):
    """A file that the configuration names and that is read together with it; or what kept it from being read."""

    path: str
    text: bytes = b""
    problem: str = ""


@dataclass(slots=True)
class Walk:
    """One reading of one document. `environ` None: `${…}` means nothing here (tenants files).

    `key_files` are the key sets that it names, by absolute path.
    """

    environ: Mapping[str, str] | None = None
    problems: list[Problem] = field(default_factory=list)
    bad: set[Path] = field(default_factory=set)
    key_files: Mapping[str, KeyFile] = field(default_factory=dict)

    def note(self, node: Node, path: Path, expected: str, found: str) -> _Bad:
        return self.note_at(node.source, node.line, path, expected, found)

    def note_at(self, source: Source, line: int, path: Path, expected: str, found: str) -> _Bad:
        self.problems.append(Problem(source.name, line, dotted(path), expected, found))
        self.bad.add(path)
        return BAD

    def text(self, leaf: Leaf, path: Path) -> str | None:
        """The leaf's text with its references replaced; None once it was noted that one stands for nothing."""
        if self.environ is None or not has_reference(leaf.text):
            return leaf.text
        try:
            return expand(leaf.text, self.environ, leaf.source.folder)
        except Unresolved as error:
            self.note(leaf, path, error.expected, error.found)
            return None


def found_in(node: Node, secret: bool) -> str:
    """A value as a problem may show it: text that could be a credential stays out."""
    return "a value that is not shown" if secret and isinstance(node, Leaf) and not node.is_null else described(node)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text and the function that understands it, with `ValueError` or, where it knows more, `Wanted`.

    `is_number`: quotes make it a text, which is another type. `schema` is for editors (JSON Schema): it may take what
    `parse` refuses, never refuse what that takes.
    """

    type_name: str
    expected: str
    parse: Callable[[str], object]
    substitute: object = ""
    secret: bool = False
    is_number: bool = False
    schema: Mapping[str, object] = field(default_factory=dict)

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, Leaf) or node.is_null:
            return walk.note(node, path, self.expected, found_in(node, self.secret))
        text = walk.text(node, path)
        if text is None:
            return BAD
        if self.is_number and not node.is_plain and text == node.text:
            return walk.note(node, path, self.expected, f"the text {shown(text)}")
        try:
            return self.parse(text)
        except ValueError as error:
            return walk.note(node, path, self.wanted(error), found_in(node, self.secret))

    def wanted(self, error: ValueError) -> str:
        return str(error) if isinstance(error, Wanted) else self.expected

    def stand_in(self) -> object:
        return self.substitute


def like(pattern: re.Pattern[str] | str) -> dict[str, object]:
    """The `schema` of a text by its pattern, which is anchored here. A name may look like a number or a boolean."""
    text = (pattern if isinstance(pattern, str) else pattern.pattern).removesuffix(r"\Z")
    whole = re.compile(rf"(?:{text})\Z")
    kinds = {"number": "7", "boolean": "true"}
    types = ["string", *(kind for kind, example in kinds.items() if whole.match(example))]
    return {"type": types if len(types) > 1 else "string", "pattern": f"^(?:{text})$"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words. `later` are words that a later version takes."""

    words: Mapping[str, object]
    later: tuple[str, ...] = ()
    hint: str = ""
    secret: bool = False

    @property
    def type_name(self) -> str:
        return " or ".join(f"`{word}`" for word in self.words)

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        text = walk.text(node, path) if isinstance(node, Leaf) else ""
        if text is None:
            return BAD
        if isinstance(node, Leaf) and text in self.words:
            return self.words[text]
        *most, last = self.words
        expected = f"{', '.join(most)} or {last}" if most else last
        if text in self.later:
            expected += f" ({text} is {NOT_YET})"
        elif most:
            expected += self.hint or nearest(text, self.words)
        return walk.note(node, path, expected, described(node))

    def stand_in(self) -> object:
        return next(iter(self.words.values()))


@dataclass(frozen=True, slots=True)
class OrNone:
    """`none`, or a value of another kind."""

    kind: Kind
    secret: bool = False

    @property
    def type_name(self) -> str:
        return f"`none` or {self.kind.type_name}"

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if isinstance(node, Leaf):
            if node.text == "none":
                return None
            if isinstance(self.kind, Record):
                return walk.note(node, path, "none or a mapping", described(node))
        return self.kind.read(walk, node, path)

    def stand_in(self) -> object:
        return None


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path; a relative one starts at the folder of the file that names it. `words` are kept as they are."""

    words: Mapping[str, object] = field(default_factory=dict)
    type_name: str = "path"
    secret: bool = False

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        text = walk.text(node, path) if isinstance(node, Leaf) and not node.is_null else ""
        if text is None:
            return BAD
        if text in self.words:
            return self.words[text]
        if not text or "\0" in text:
            return walk.note(node, path, "a path", described(node))
        return os.path.abspath(os.path.join(node.source.folder, text))

    def stand_in(self) -> object:
        return "/"


@dataclass(frozen=True, slots=True)
class Items:
    """A list. `distinct`: a value that stands in it twice is a problem."""

    kind: Kind
    distinct: bool = False

    @property
    def type_name(self) -> str:
        return f"list ({self.kind.type_name})"

    @property
    def secret(self) -> bool:
        return self.kind.secret

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, Listing):
            return walk.note(node, path, "a list", found_in(node, self.secret))
        values: list[object] = []
        for index, item in enumerate(node.items):
            value = self.kind.read(walk, item, (*path, index))
            if value is BAD:
                continue
            if self.distinct and value in values:
                walk.note(item, (*path, index), "each value once", f"{found_in(item, self.secret)} again")
                continue
            values.append(value)
        return tuple(values)

    def stand_in(self) -> object:
        return ()


@dataclass(frozen=True, slots=True)
class Later:
    """A key that belongs to a later version: refused by name, so that nobody believes that it works.

    `empty_is_fine`: an empty list asks for nothing and is the default.
    """

    type_name: str = NOT_YET
    empty_is_fine: bool = False
    secret: bool = True

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if self.empty_is_fine and isinstance(node, Listing) and not node.items:
            return ()
        wanted = "an empty list" if self.empty_is_fine else "no such key"
        return walk.note(node, path, f"{wanted} ({path[-1]} is {NOT_YET})", kind_of(node))

    def stand_in(self) -> object:
        return ()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a record. `default` is as a file would write it; empty: none, the key is required or has no effect.

    `about` is a sentence for the documentation.
    """

    kind: Kind
    about: str
    default: str = ""
    required: bool = False
    effect: Effect = Effect.RELOAD


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping with known keys, made into a value by `make(**values)`; keys that are absent are left out."""

    make: Callable[..., object]
    keys: Mapping[str, Key]
    type_name: str = "mapping"
    secret: bool = False

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, Table):
            return walk.note(node, path, "a mapping", found_in(node, self.secret))
        values: dict[str, object] = {}
        for name, child in node.entries.items():
            key = self.keys.get(name)
            if key is None:
                hint = nearest(name, self.keys) or f" ({', '.join(self.keys)})"
                walk.note_at(child.source, node.lines[name], (*path, name), f"a known key{hint}", shown(name))
                continue
            value = key.kind.read(walk, child, (*path, name))
            if value is not BAD:
                values[name] = value
        for name, key in self.keys.items():
            if not key.required or name in values:
                continue
            if name not in node.entries:
                walk.note(node, (*path, name), _wanted(key.kind), "nothing")
            values[name] = key.kind.stand_in()
        return self.make(**values)

    def stand_in(self) -> object:
        return self.make(**{name: key.kind.stand_in() for name, key in self.keys.items() if key.required})


def _wanted(kind: Kind) -> str:
    if isinstance(kind, Scalar):
        return kind.expected
    if isinstance(kind, FilePath):
        return "a path"
    return "a list" if isinstance(kind, Items) else "a mapping" if isinstance(kind, Record | Named) else kind.type_name


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names, taken as written, to values of one kind. `special` is another kind for some names."""

    name: Scalar
    kind: Kind
    special: Callable[[str], Kind | None] = field(default=lambda name: None)
    label: str = "<name>"
    secret: bool = False

    @property
    def type_name(self) -> str:
        return f"mapping of {self.name.type_name} to {self.kind.type_name}"

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, Table):
            return walk.note(node, path, "a mapping", found_in(node, self.secret))
        values: dict[str, object] = {}
        for name, child in node.entries.items():
            inner = (*path, name)
            try:
                self.name.parse(name)
            except ValueError as error:
                wanted = self.name.wanted(error)
                walk.note_at(child.source, node.lines[name], inner, wanted, f"the key {shown(name)}")
                (self.special(name) or self.kind).read(walk, child, inner)  # for its problems
                continue
            kind = self.special(name) or self.kind
            value = kind.read(walk, child, inner)
            # the name stays even when its value is bad: what refers to it does not dangle
            values[name] = kind.stand_in() if value is BAD else value
        return values

    def stand_in(self) -> object:
        return {}


@dataclass(frozen=True, slots=True)
class Free:
    """A value of the operator's own making: text, number, boolean, nothing, lists and mappings of these."""

    type_name: str = "mapping"
    secret: bool = False

    def read(self, walk: Walk, node: Node, path: Path) -> object:
        if not isinstance(node, Table):
            return walk.note(node, path, "a mapping", described(node))
        try:
            return self._value(walk, node, path, iter(range(OPTION_VALUES_MAX)))
        except _TooMuch:
            return walk.note(node, path, f"at most {OPTION_VALUES_MAX} values", "more")

    def _value(self, walk: Walk, node: Node, path: Path, budget: Iterator[int]) -> object:
        if next(budget, None) is None:
            raise _TooMuch
        match node:
            case Table():
                return {k: self._value(walk, v, (*path, k), budget) for k, v in node.entries.items()}
            case Listing():
                return [self._value(walk, v, (*path, i), budget) for i, v in enumerate(node.items)]
            case Leaf():
                text = walk.text(node, path)
                return None if text is None else typed(node, text)

    def stand_in(self) -> object:
        return {}


class _TooMuch(Exception):
    """A mapping of the operator's own beyond its limit."""
