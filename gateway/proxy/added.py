"""Filters that operators write: from a file's text to classes, and to filters made with their options.

A file is executed from its text under a module name of its own: two files of one name do not collide, and nothing
imports one by accident. This runs in workers, and before that in the child process that validates them; never in the
supervisor or control, because a file may do anything, hang and exit included.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple, cast

from gateway.core.filtering import ChainError
from gateway.settings.filter_files import FilterText
from gateway.settings.problems import Problem, plain

KINDS: Final = ("inbound", "endpoint", "outbound")
ON_ERROR: Final = "on_error"
"""The one option that is ours and not the filter's: `remove` (the default) or `refuse`."""
REMOVE: Final = "remove"
REFUSE: Final = "refuse"
MODULE_PREFIX: Final = "_landbridge_filter_"

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_OURS: Final = ("gateway.core",)


@dataclass(frozen=True, slots=True)
class Added:
    """One filter class of an operator's file; `line` is where its class begins."""

    name: str
    kind: str
    file: str
    line: int
    factory: type[object]
    before: str = ""
    after: str = ""

    def make(self, options: Mapping[str, object]) -> object:
        """A filter with these options. Raises TypeError or ValueError for options that it does not take."""
        given = {key: value for key, value in options.items() if key != ON_ERROR}
        if on_error(options) not in (REMOVE, REFUSE):
            raise ValueError(f"on_error is {REMOVE} or {REFUSE}")
        if self.factory.__init__ is object.__init__:
            if given:
                raise ValueError(f"takes no options: {', '.join(given)}")
            return self.factory()
        return cast(Callable[[Mapping[str, object]], object], self.factory)(given)


def on_error(options: Mapping[str, object]) -> object:
    """What shall happen to a filter that keeps failing."""
    return options.get(ON_ERROR, REMOVE)


class Loaded(NamedTuple):
    """What some files define, and what is wrong with them. `warnings` are lines, as `check` prints them."""

    filters: list[Added]
    problems: list[Problem]
    warnings: list[str]


class _Text(importlib.abc.InspectLoader):
    """Loads one module from text that is in memory, so that what runs is what was validated."""

    def __init__(self, file: FilterText) -> None:
        self.file = file

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.file.text)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.file.text, self.file.path, "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return False


def load_filters(files: Iterable[FilterText]) -> list[Added]:
    """The filters of files that were validated. Raises ChainError naming what is wrong all the same."""
    loaded = load_files(files)
    if loaded.problems:
        raise ChainError("\n".join(map(str, loaded.problems)))
    return loaded.filters


def load_files(files: Iterable[FilterText], begins: Callable[[str], None] = lambda path: None) -> Loaded:
    """Execute the files, in order, and find their filters. `begins` hears each path before the file is executed."""
    found = Loaded([], [], [])
    for file in files:
        begins(file.path)
        _load(file, found)
    return found


def _load(file: FilterText, found: Loaded) -> None:
    def problem(line: int, expected: str, got: str, path: str = "") -> None:
        found.problems.append(Problem(file.path, line, path, expected, plain(got)))

    try:
        tree = ast.parse(file.text, file.path)
        module = _execute(file)
    except SyntaxError as error:
        where = error.lineno or 1
        return problem(where, "Python that can be compiled", f"{type(error).__name__}: {error.msg}")
    except (Exception, SystemExit) as error:
        line = _line_in(file.path, error)
        return problem(line, "a file that can be imported", "".join(traceback.format_exception_only(error)).strip())
    lines = {node.name: node.lineno for node in tree.body if isinstance(node, ast.ClassDef)}
    found.warnings.extend(_imports(file.path, tree))
    classes = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and hasattr(value, "kind")
    ]
    if not classes:
        return problem(1, "a class with `name` and `kind`", "none")
    for factory in dict.fromkeys(classes):
        added = _added(factory, file.path, lines.get(factory.__name__, 1), problem)
        if added is not None:
            found.filters.append(added)
    return None


def _execute(file: FilterText) -> ModuleType:
    name = MODULE_PREFIX + hashlib.sha256(file.path.encode(errors="surrogateescape")).hexdigest()[:12]
    loader = _Text(file)
    spec = importlib.machinery.ModuleSpec(name, loader, origin=file.path)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    code = loader.get_code(name)
    # a traceback shows the text that runs, not what the file holds by then: None keeps linecache from looking
    lines = loader.get_source(name).splitlines(keepends=True)
    linecache.cache[file.path] = (len(file.text), None, lines, file.path)
    sys.modules[name] = module  # dataclasses and typing look their module up
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line_in(path: str, error: BaseException) -> int:
    """The file's own last line in the traceback; 1 when it has none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] or 1 if lines else 1


def _added(factory: type[Any], file: str, line: int, problem: Callable[[int, str, str], None]) -> Added | None:
    """The class as a filter; None once it was said what is wrong with it."""
    name, kind = getattr(factory, "name", None), factory.kind
    places = {key: getattr(factory, key, "") for key in ("before", "after")}
    if not isinstance(name, str) or not _NAME.match(name):
        problem(line, "a `name` of 1 to 32 of a-z 0-9 _ -, beginning with a letter", f"{name!r} ({factory.__name__})")
    elif kind not in KINDS:
        problem(line, f"a `kind`: {', '.join(KINDS)}", f"{kind!r} ({factory.__name__})")
    elif "__call__" not in dir(factory):
        problem(line, "a method `__call__(self, exchange)`", f"none ({factory.__name__})")
    elif not all(isinstance(place, str) for place in places.values()):
        problem(line, "the name of a filter as `before` and `after`", f"another value ({factory.__name__})")
    elif kind == "endpoint" and any(places.values()):
        problem(line, "no `before` or `after`: endpoint filters have no order", f"one ({factory.__name__})")
    else:
        return Added(name, kind, file, line, factory, **places)
    return None


def _imports(path: str, tree: ast.Module) -> list[str]:
    """A line for each import that another machine, or our next version, may not have."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in sys.stdlib_module_names or name.startswith(_OURS):
                continue
            if name.startswith(("gateway", "filters")):
                what = "it is internal, and another version may have changed it"
            else:
                what = "it is not part of Python, so it has to be installed wherever this gateway runs"
            lines.append(f"{path}:{node.lineno}: imports {name}: {what}")
    return lines
