"""Who reads a wall clock, and what for: no timeout, lease, back-off or judgement of ours may (FAULTS 22).

Held by reading every module's syntax tree. A new reader belongs into the table, with a reason that is no decision; time
that decides is monotonic, and an argument.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.test_imports import MODULES, ROOT, name_of

CLOCKS = {
    "time": {"time", "time_ns", "gmtime", "localtime", "strftime", "ctime", "asctime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
"""By class or module: what reads a wall clock, or does so when it is given none."""

READERS = {
    ("gateway.supervisor", "datetime.now"): "the time of a log line",
    ("gateway.control.admin", "datetime.now"): "the time of a line of the audit log",
    ("gateway.cli.authors", "datetime.now"): "the time of a line of the audit log",
    ("gateway.cli.region", "time.time_ns"): "what is shown of a switch that ends by itself",
    ("gateway.identity.verifier", "time.time_ns"): "whether a token's time is over, for `explain`",
    ("gateway.telemetry.access_log", "time.strftime"): "writes a time that it is given",
    ("gateway.telemetry.access_log", "time.gmtime"): "as above",
    ("gateway.proxy.main", "time.gmtime"): "log lines are in UTC",
    ("gateway.proxy.main", "time.time_ns"): "whether a region-wide switch has ended, until control says so",
    (
        "gateway.proxy.worker",
        "time.time_ns",
    ): "signs and judges hops (30 s); Date, access log, what peers are told",
    (
        "gateway.control.main",
        "time.time_ns",
    ): "signs questions to peers; what operators are shown; tombstones' days; when a switch was set",
    (
        "gateway.control.watch",
        "time.time",
    ): "whether a file stood still, by its own time, at start and SIGHUP",
    ("gateway.control.replication.tenure", "time.time_ns"): "until our Redis has told its own clock",
}


def _reads() -> Iterator[tuple[str, str]]:
    """(module, what it names) for every mention, called or passed on."""
    for path in MODULES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(), str(path))):
            match node:
                case ast.Attribute(value=ast.Name(id=owner), attr=name) if name in CLOCKS.get(owner, ()):
                    yield name_of(path), f"{owner}.{name}"
                case ast.Attribute(value=ast.Attribute(attr=owner), attr=name) if name in CLOCKS.get(owner, ()):
                    yield name_of(path), f"{owner}.{name}"
                case ast.ImportFrom(module="time", names=names):
                    yield from ((name_of(path), f"time.{n.name}") for n in names if n.name in CLOCKS["time"])


def test_whoever_reads_a_wall_clock_is_known_with_a_reason() -> None:
    assert set(_reads()) == READERS.keys()
