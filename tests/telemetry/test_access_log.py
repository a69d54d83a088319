"""An access-log line is one parsable JSON object of printable ASCII, at most 4,096 bytes, whatever the request held."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.errors import FLAGS
from gateway.core.exchange import Exchange
from gateway.core.http1.head import Request
from gateway.core.routing import Decision, Kind
from gateway.core.view import View
from gateway.telemetry.access_log import LINE_MAX, MARK, AccessLog, encode, line_of

FIELDS = (
    "time request_id client from method path host tenant decision reason region status bytes_in bytes_out seconds flag"
).split()

PLAIN: dict[str, Any] = {
    "wall_ms": 1_732_460_000_007,
    "request_id": "0a1b",
    "client": "203.0.113.9",
    "source": "client",
    "method": b"GET",
    "path": b"/orders/1?token=secret",
    "host": b"acme.example.com",
    "tenant": "acme",
    "decision": "local",
    "reason": "home",
    "region": "us-east-1",
    "status": 200,
    "bytes_in": 12,
    "bytes_out": 3456,
    "seconds": 0.01234567,
    "flag": "",
}


def parsed(line: bytes) -> dict[str, Any]:
    """Check what holds for every line, and read it."""
    assert len(line) <= LINE_MAX
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    found = json.loads(line)
    assert list(found) == FIELDS
    return dict(found)


def test_a_plain_line() -> None:
    assert parsed(encode(**PLAIN)) == {
        "time": "2024-11-24T14:53:20.007Z",
        "request_id": "0a1b",
        "client": "203.0.113.9",
        "from": "client",
        "method": "GET",
        "path": "/orders/1",
        "host": "acme.example.com",
        "tenant": "acme",
        "decision": "local",
        "reason": "home",
        "region": "us-east-1",
        "status": 200,
        "bytes_in": 12,
        "bytes_out": 3456,
        "seconds": 0.012346,
        "flag": "",
    }


@pytest.mark.parametrize(
    ("wall_ms", "time"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
        (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
    ],
)
def test_time_is_rfc_3339_in_utc(wall_ms: int, time: str) -> None:
    assert parsed(encode(**PLAIN | {"wall_ms": wall_ms}))["time"] == time


@pytest.mark.parametrize(
    "nasty",
    [
        b'"quotes" and \\back\\slashes\\',
        b'","status":200,"x":"',
        b"\r\n\r\nforged line\r\n",
        b"\x1b[2J\x1b]0;title\x07",
        b"\x7f\x80\x85\x9b31m\x9f\xa0\xff",
        b"\x00\x01\x02",
        "\u2028\u202e\u00e9\U0001f600".encode(),
        b"\\\x7f\\\\\x9b\\",
    ],
)
def test_nothing_in_a_request_ends_or_forges_a_line(nasty: bytes) -> None:
    line = encode(**PLAIN | {"path": b"/" + nasty, "host": nasty, "method": nasty, "tenant": nasty.decode("latin-1")})
    assert line.count(b"\n") == 1
    found = parsed(line)
    assert found["path"] == "/" + nasty.decode("latin-1")
    assert found["host"] == found["method"] == found["tenant"] == nasty.decode("latin-1")
    assert found["status"] == 200


def test_a_query_is_never_written() -> None:
    for path in (b"/a?token=CANARY", b"/a??CANARY", b"?CANARY", "/a?CANARY", b"/" + b"x" * 5000 + b"?CANARY"):
        assert b"CANARY" not in encode(**PLAIN | {"path": path})


any_text = st.text(max_size=6000) | st.text(st.characters(), max_size=50)
any_bytes = st.binary(max_size=6000)


@st.composite
def repeated(draw: st.DrawFn) -> bytes:
    """Long values are what Hypothesis finds hard: a short piece many times."""
    return draw(st.binary(min_size=1, max_size=4)) * draw(st.integers(1, 9000))


requests = st.fixed_dictionaries(
    {
        "wall_ms": st.integers(0, 4_000_000_000_000),
        "request_id": any_text,
        "client": any_text,
        "source": st.sampled_from(["client", "hop"]),
        "method": any_bytes | repeated(),
        "path": any_bytes | repeated() | any_text,
        "host": any_bytes | repeated() | any_text,
        "tenant": any_text,
        "decision": any_text,
        "reason": any_text,
        "region": any_text,
        "status": st.integers(0, 999),
        "bytes_in": st.integers(0, 2**63 - 1),
        "bytes_out": st.integers(0, 2**63 - 1),
        "seconds": st.floats(0, 1e9),
        "flag": any_text,
    }
)


@given(requests)
@example(PLAIN | {"tenant": "\ud800", "path": "\udfff" * 3000})
@example(PLAIN | {name: "\U0001f600" * 3000 for name in ("client", "request_id", "tenant", "region", "flag")})
@example(PLAIN | {name: "\\" * 3000 for name in ("client", "request_id", "tenant", "region", "flag")})
def test_any_request_is_one_line_within_the_limit(values: dict[str, Any]) -> None:
    found = parsed(encode(**values))
    for name in ("status", "bytes_in", "bytes_out"):
        assert found[name] == values[name]
    for name in ("method", "host", "tenant", "client", "flag"):
        given_text = values[name].decode("latin-1") if isinstance(values[name], bytes) else values[name]
        given_text = given_text.encode("utf-8", "replace").decode()
        assert found[name] == given_text or (
            found[name].endswith(MARK) and given_text.startswith(found[name].removesuffix(MARK))
        )


def test_a_long_field_is_cut_and_marked_and_the_others_are_whole() -> None:
    line = encode(**PLAIN | {"path": b"/" + b"x" * 16_000})
    found = parsed(line)
    assert len(line) == LINE_MAX  # no byte is wasted
    assert found["path"].endswith("x" + MARK)
    whole = json.loads(encode(**PLAIN))
    assert {k: v for k, v in found.items() if k != "path"} == {k: v for k, v in whole.items() if k != "path"}


def test_the_longest_line_that_fits_is_not_cut() -> None:
    room = LINE_MAX - len(encode(**PLAIN | {"path": b""}))
    fits = parsed(encode(**PLAIN | {"path": b"x" * room}))
    assert fits["path"] == "x" * room
    assert parsed(encode(**PLAIN | {"path": b"x" * (room + 1)}))["path"].endswith("x" + MARK)


def test_two_long_fields_share_what_there_is() -> None:
    found = parsed(encode(**PLAIN | {"path": b"/" * 9000, "host": b"h" * 9000, "tenant": "t" * 63}))
    assert found["tenant"] == "t" * 63
    assert abs(len(found["path"]) - len(found["host"])) <= 1
    assert len(found["path"]) > 1500


def exchange(path: bytes) -> Exchange:
    request = Request(b"GET", path, 11)
    request.host_field = b"Acme.Example.com"
    services: Any = None  # a log line asks no service
    return Exchange(request, View("us-east-1"), services, "http", "127.0.0.1", 8080, 100.0, lambda: 1_732_460_000_007)


def test_an_exchange_of_which_little_is_known() -> None:
    found = parsed(line_of(exchange(b"/x?y"), 0.5))
    assert found["path"] == "/x"
    assert found["host"] == "Acme.Example.com"
    assert found["client"] == "127.0.0.1"
    assert (found["from"], found["decision"], found["region"], found["flag"]) == ("client", "", "", "")


def test_an_exchange_that_was_decided() -> None:
    done = exchange(b"/x")
    done.listener = "hop"
    done.decision = Decision(Kind.INTERNAL_REDIRECT, "misroute", region="eu-west-1")
    done.reason = "misroute"
    done.flag = FLAGS["loop"]
    done.status = 508
    found = parsed(line_of(done, 1.25))
    assert (found["from"], found["decision"], found["reason"]) == ("hop", "internal_redirect", "misroute")
    assert (found["region"], found["flag"], found["status"], found["seconds"]) == ("eu-west-1", "loop", 508, 1.25)


def test_a_log_in_a_file_is_appended_to_and_rotated(tmp_path: Path) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    path.write_bytes(b'{"older":1}\n')
    log = AccessLog(str(path))
    log.write(exchange(b"/1"))
    log.flush()
    path.rename(rotated)
    log.write(exchange(b"/2"))
    log.reopen(str(path))
    log.write(exchange(b"/3"))
    log.reopen(None)
    log.write(exchange(b"/4"))
    log.flush()
    assert [json.loads(line).get("path") for line in rotated.read_bytes().splitlines()] == [None, "/1", "/2"]
    assert [json.loads(line)["path"] for line in path.read_bytes().splitlines()] == ["/3"]
    log.close()


def test_a_log_that_cannot_be_opened_counts_its_lines_and_says_why(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = AccessLog(str(tmp_path / "missing" / "access.log"), dropped.append)
    assert "No such file" in log.problem
    log.write(exchange(b"/1"))
    log.flush()
    assert dropped == [1]
    log.reopen(str(tmp_path / "access.log"))
    assert log.problem == ""
    log.write(exchange(b"/2"))
    log.close()
    assert dropped == [1]
    assert (tmp_path / "access.log").read_bytes().count(b"\n") == 1


def test_reopening_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    log = AccessLog("-")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        log.reopen(str(tmp_path / "a.log"))
        log.reopen(str(tmp_path))  # a folder: refused
        log.reopen(None)
        log.reopen("-")
    assert len(os.listdir("/proc/self/fd")) == before
    log.close()
