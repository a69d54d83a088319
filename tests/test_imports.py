"""Imports run one way (DESIGN, 3): held by reading every module's syntax tree, whatever is imported lazily too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "gateway", ROOT / "filters")
MODULES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in folder.rglob("*.py"))

DATA_LIBRARIES = {"msgspec"}
"""What `core` may use besides the standard library: values in, values out, no I/O."""

IMPURE = {
    "asyncio",
    "socket",
    "selectors",
    "subprocess",
    "threading",
    "multiprocessing",
    "random",
    "secrets",
    "time",
    "os",
}
"""Standard modules that `core` must not use: it does no I/O and takes time and chance as arguments."""

SHARED = ("gateway.settings", "gateway.store", "gateway.bus", "gateway.telemetry", "gateway.identity")

ALLOWED: dict[str, tuple[str, ...]] = {
    "gateway.core": ("gateway.core",),
    "gateway.settings": ("gateway.core", "gateway.settings"),
    "gateway.store": ("gateway.core", "gateway.store", "gateway.bus.messages"),  # it returns a MapChanged
    "gateway.bus": ("gateway.core", "gateway.bus", "gateway.settings.schema"),
    "gateway.identity": ("gateway.core", "gateway.identity"),
    "gateway.telemetry": ("gateway.core", "gateway.telemetry", "gateway.settings.schema"),
    "filters": ("gateway.core", "filters"),
    "gateway.proxy": ("gateway.core", "filters", *SHARED, "gateway.proxy"),
    "gateway.control": ("gateway.core", "filters", *SHARED, "gateway.control"),
    "gateway.supervisor": (
        "gateway.settings",
        "gateway.children",
        "gateway.crew",
        "gateway.holdings",
        "gateway.map_check",
        "gateway.signals",
        "gateway.systemd",
    ),
    "gateway.crew": ("gateway.settings", "gateway.children", "gateway.holdings"),
    "gateway.children": ("gateway.settings", "gateway.holdings"),
    "gateway.map_check": (),
    "gateway.signals": (),
    "gateway.systemd": (),
    "gateway.holdings": ("gateway.settings",),
    "gateway.cli": ("gateway", "filters"),
    "gateway.__main__": ("gateway.cli",),
    "gateway": (),
}
"""Who may import what of this project; the longest name that covers a module counts."""


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def covers(prefix: str, module: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in the file, also inside functions and `if TYPE_CHECKING`; none is relative."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                yield node.lineno, inner if is_module else node.module


def rule_of(module: str) -> str:
    return max((prefix for prefix in ALLOWED if covers(prefix, module)), key=len)


def test_there_is_something_to_hold() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"gateway.core.placement", "gateway.supervisor", "gateway.proxy.main", "gateway.control.main"} <= names
    for prefix in ALLOWED:
        assert any(covers(prefix, name) for name in names), f"the rule for {prefix} holds nothing"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    rule = rule_of(name_of(path))
    wrong = [
        f"{path}:{line}: imports {module}; {rule} may import {', '.join(ALLOWED[rule]) or 'nothing'} of this project"
        for line, module in imports(path)
        if module.split(".")[0] in ("gateway", "filters", "tests")
        and module != "gateway"  # that is the version
        and not any(covers(allowed, module) for allowed in ALLOWED[rule])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [path for path in MODULES if covers("gateway.core", name_of(path))], ids=str)
def test_core_is_pure(path: Path) -> None:
    tops = {(line, module.split(".")[0]) for line, module in imports(path)}
    foreign = {t for t in tops if t[1] not in sys.stdlib_module_names | DATA_LIBRARIES | {"gateway"}}
    assert not foreign, f"{path}: core imports the standard library and small data libraries only"
    assert not {t for t in tops if t[1] in IMPURE}, f"{path}: core does no I/O and takes time and chance as arguments"


@pytest.mark.parametrize(
    "name", ["gateway.supervisor", *(name for name in ALLOWED["gateway.supervisor"] if name != "gateway.settings")]
)
def test_the_supervisor_needs_the_standard_library_and_settings_only(name: str) -> None:
    path = Path(name.replace(".", "/")).with_suffix(".py")
    tops = {module.split(".")[0] for _, module in imports(path)}
    assert tops <= sys.stdlib_module_names | {"gateway"}
    assert "asyncio" not in tops


def test_lazily_imported_modules_are_seen() -> None:
    lazy = {module for _, module in imports(Path("gateway/cli/main.py"))}
    assert "gateway.cli.demo" in lazy
