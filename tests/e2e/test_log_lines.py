"""FAULTS 35: whatever a request holds, the access log has one line for it, and that line is one JSON object.

Two regions with one worker each, so that lines come in the order of the requests.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.core.hop import sign
from gateway.core.placement import Placement
from tests.support.client import Client, Reply, once
from tests.support.fleet import EU, US, Fleet, Gateway, fleet, request, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = [
    "time", "request_id", "client", "from", "method", "path", "host", "tenant", "decision", "reason", "region",
    "status", "bytes_in", "bytes_out", "seconds", "flag",
]  # fmt: skip
LINE = re.compile(rb"[\x20-\x7e]{1,4095}\n")
"""Printable ASCII only: no line can end another, colour a terminal, or be longer than 4,096 bytes."""
FORGED = b'{"time":"FORGED","status":200}'
HOST = b"acme.demo.test"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def regions(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    tenants = "tenants: {acme: {home: us-east-1}, globex: {home: eu-west-1}}\n"
    async with fleet(tmp_path_factory.mktemp("log"), (US, EU), tenants) as made:
        yield made


def head(start: bytes, *lines: bytes, host: bytes = HOST) -> bytes:
    return b"\r\n".join([start, b"Host: " + host, *lines, b"", b""])


ATTACKS: dict[str, tuple[bytes, int, dict[str, Any]]] = {
    "quotes in path": (head(b'GET /"a"\'\\","x":"y HTTP/1.1'), 200, {"path": '/"a"\'\\","x":"y'}),
    "braces in path": (head(b"GET /%b HTTP/1.1" % FORGED), 200, {"path": "/" + FORGED.decode()}),
    "encoded CRLF": (head(b"GET /%0d%0a" + FORGED + b" HTTP/1.1"), 200, {"path": "/%0d%0a" + FORGED.decode()}),
    "encoded ANSI": (head(b"GET /%1b[31mred%1b[0m HTTP/1.1"), 200, {"path": "/%1b[31mred%1b[0m"}),
    "JSON escapes in path": (head(b"GET /\\u000a\\n\\x1b HTTP/1.1"), 200, {"path": "/\\u000a\\n\\x1b"}),
    "query": (head(b"GET /x?secret=FORGED HTTP/1.1"), 200, {"path": "/x"}),
    "the oddest method": (head(b"!#$%&'*+-.^_`|~09Az /x HTTP/1.1"), 200, {"method": "!#$%&'*+-.^_`|~09Az"}),
    "a long path": (head(b"GET /" + b"a" * 16000 + b" HTTP/1.1"), 200, {}),
    "a long path of quotes": (head(b"GET /" + b'"' * 16000 + b" HTTP/1.1"), 200, {}),
    "a long path of backslashes": (head(b"GET /" + b"\\" * 16000 + b" HTTP/1.1"), 200, {}),
    "odd Host": (head(b"GET /x HTTP/1.1", host=b"!$&'()*+;=%22~._"), 400, {"flag": "tenant_missing", "tenant": ""}),
    "a long Host": (head(b"GET /x HTTP/1.1", host=b"a" * 20000), 400, {"flag": "tenant_missing"}),
    "quotes in tenant": (head(b"GET /x HTTP/1.1", b'X-Org: a"b', host=b"127.0.0.1"), 400, {"tenant": ""}),
    "bytes in tenant": (head(b"GET /x HTTP/1.1", b"X-Org: \xff\xfe", host=b"127.0.0.1"), 400, {"tenant": ""}),
    "forged id": (head(b"GET /x HTTP/1.1", b'X-Request-Id: ","status":999,"a":"'), 200, {"status": 200}),
    "bytes in id": (head(b"GET /x HTTP/1.1", b"X-Request-Id: \xc3\xa9\xff"), 200, {"status": 200}),
    "a client's id": (head(b"GET /x HTTP/1.1", b"X-Request-Id: mine-1"), 200, {"request_id": "mine-1"}),
    "forged address": (head(b"GET /x HTTP/1.1", b'X-Forwarded-For: "\xff'), 200, {"client": "127.0.0.1"}),
    "bytes in a field": (head(b"GET /x HTTP/1.1", b"X: \xff\x80"), 200, {}),
    "unknown tenant": (head(b"GET /x HTTP/1.1", host=b"no.demo.test"), 404, {"tenant": "no"}),
    "HTTP/1.0": (b"GET /x HTTP/1.0\r\nHost: acme.demo.test\r\n\r\n", 200, {"tenant": "acme"}),
    "absolute-form": (head(b"GET http://acme.demo.test/y HTTP/1.1"), 200, {"path": "/y"}),
}
"""Case to (request, status, what its line holds)."""

MALFORMED = {
    "bytes in path": head(b"GET /\xff\xfe\x80 HTTP/1.1"),
    "UTF-8 in path": head("GET /é\u2028 HTTP/1.1".encode()),
    "ANSI in path": head(b"GET /\x1b[2J\x1b[31m HTTP/1.1"),
    "NUL in path": head(b"GET /\x00 HTTP/1.1"),
    "DEL in path": head(b"GET /\x7f HTTP/1.1"),
    "space in path": head(b"GET /a b HTTP/1.1"),
    "CRLF in path": head(b"GET /a\r\n" + FORGED + b" HTTP/1.1"),
    "LF in path": head(b"GET /a\n" + FORGED + b" HTTP/1.1"),
    "CR in path": head(b"GET /a\r" + FORGED + b" HTTP/1.1"),
    "ANSI in method": head(b"G\x1b[31mT /x HTTP/1.1"),
    "quote in method": head(b'G"T /x HTTP/1.1'),
    "ANSI in Host": head(b"GET /x HTTP/1.1", host=b"acme\x1b[31m.demo.test"),
    "bytes in Host": head(b"GET /x HTTP/1.1", host=b"\xff.demo.test"),
    "quotes in Host": head(b"GET /x HTTP/1.1", host=b'"acme".demo.test'),
    "CR in Host": head(b"GET /x HTTP/1.1", host=b"acme.demo.test\r" + FORGED),
    "LF in Host": head(b"GET /x HTTP/1.1", host=b"acme.demo.test\n" + FORGED),
    "LF in a field": head(b"GET /x HTTP/1.1", b"X: a\n" + FORGED),
    "CR in a field": head(b"GET /x HTTP/1.1", b"X: a\r" + FORGED),
    "ANSI in a field": head(b"GET /x HTTP/1.1", b"X: \x1b[31m"),
    "ANSI in the tenant's field": head(b"GET /x HTTP/1.1", b"X-Org: \x1b[31m", host=b"127.0.0.1"),
    "NUL in a field": head(b"GET /x HTTP/1.1", b"X: \x00"),
    "quotes in a name": head(b"GET /x HTTP/1.1", b'"X": y'),
    "ANSI in a version": head(b"GET /x HTTP/1.1\x1b[31m"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a line of JSON": FORGED + b"\r\n\r\n",
}
"""What is refused before it is a request: its line tells that, and repeats none of its bytes."""


async def lines_from(gateway: Gateway, before: int, count: int) -> list[dict[str, Any]]:
    """The `count` lines after the first `before`, each of them checked. AssertionError when there are more or fewer.

    A last request marks the end: its line comes after all others.
    """
    marker = f"/marker-{before}-{count}"
    await once(gateway.http, request("globex.demo.test" if gateway.region == EU else "acme.demo.test", marker))

    async def marked() -> bool:
        return any(marker.encode() in line for line in gateway.access_lines())

    await until(marked, f"the log of {gateway.region} has the last line")
    lines = gateway.access_lines()[before:]
    read = []
    for line in lines:
        assert LINE.fullmatch(line), line
        fields = json.loads(line)
        assert list(fields) == FIELDS, line
        assert fields["time"] != "FORGED"
        read.append(fields)
    assert read[-1]["path"] == marker
    assert len(read) - 1 == count, f"{count} requests, {len(read) - 1} lines"
    return read[:-1]


def check(fields: dict[str, Any], reply: Reply, expected: dict[str, Any]) -> None:
    """A line against the answer that it tells of."""
    assert fields["status"] == reply.status
    assert fields["request_id"] == reply.value("x-request-id")
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize("entry", [US, EU])
async def test_one_line_for_each_request(regions: Fleet, entry: str) -> None:
    """In at eu-west-1 the same requests are carried to us-east-1, whose log has a line for each, `from` hop."""
    gateway, far = regions[entry], regions[US]
    before, far_before = len(gateway.access_lines()), len(far.access_lines())
    replies = [await once(gateway.http, data) for data, _, _ in ATTACKS.values()]
    for (name, (_, status, expected)), reply, fields in zip(
        ATTACKS.items(), replies, await lines_from(gateway, before, len(ATTACKS)), strict=True
    ):
        assert reply.status == status, (name, reply.body)
        check(fields, reply, {"from": "client", "client": "127.0.0.1", **expected})
        if "a long" in name:
            assert "\u2026" in fields["path"] + fields["host"], "cut, and marked"
    if entry == EU:
        served = [(case, reply) for case, reply in zip(ATTACKS.values(), replies, strict=True) if reply.status == 200]
        for (case, reply), fields in zip(served, await lines_from(far, far_before, len(served)), strict=True):
            check(fields, reply, {"from": "hop", "client": "127.0.0.1", "tenant": "acme", **case[2]})


async def test_what_is_no_request_has_one_line_too(regions: Fleet) -> None:
    gateway = regions[US]
    before = len(gateway.access_lines())
    replies = [await once(gateway.http, data) for data in MALFORMED.values()]
    for name, reply, fields in zip(MALFORMED, replies, await lines_from(gateway, before, len(MALFORMED)), strict=True):
        assert reply.status in (400, 501, 505), (name, reply.status)
        check(fields, reply, {"from": "client", "bytes_out": len(reply.body)})
        assert fields["flag"], name
        assert fields["method"] == fields["path"] == "-", name
    assert b"\x1b" not in (gateway.folder / "log").read_bytes(), "nor does any byte of it reach the other log"


async def test_what_a_peer_says_of_its_client_is_escaped(regions: Fleet) -> None:
    """Only who has the key can say it; its bytes are no more trusted than any others."""
    gateway = regions[US]
    before = len(gateway.access_lines())
    client = b'"\xc3\xa9\xff\\' + FORGED.replace(b",", b";")
    field = sign(
        regions[EU].view(),
        Placement(tenant="acme", home=US),
        to=US,
        reason="misroute",
        deadline_s=10.0,
        ts=int(time.time()),
        method=b"GET",
        target=b"/x",
        host=HOST,
        forwarded_for=client,
        request_id=b"r-1",
    )
    lines = (b"Gateway-Hop: " + field, b"X-Forwarded-For: " + client, b"X-Request-Id: r-1")
    reply = await once(gateway.hop, head(b"GET /x HTTP/1.1", *lines))
    (fields,) = await lines_from(gateway, before, 1)
    check(fields, reply, {"status": 200, "from": "hop", "client": client.decode("latin-1")})


async def test_pipelined_requests_have_a_line_each(regions: Fleet) -> None:
    gateway = regions[US]
    before = len(gateway.access_lines())
    client = await Client.connect(gateway.http)
    data = [head(b"GET /pipelined-%d HTTP/1.1" % n) for n in range(20)]
    await client.send(b"\r\n".join([*data, head(b"POST /last HTTP/1.1", b"Content-Length: 9") + FORGED[:9]]))
    replies = [await client.reply() for _ in range(21)]
    await client.close()
    lines = await lines_from(gateway, before, 21)
    for reply, fields in zip(replies, lines, strict=True):
        check(fields, reply, {"status": 200})
    assert [fields["path"] for fields in lines] == [f"/pipelined-{n}" for n in range(20)] + ["/last"]
    assert [fields["bytes_in"] for fields in lines] == [0] * 20 + [9]


async def test_connections_without_a_request_have_no_line(regions: Fleet) -> None:
    gateway = regions[US]
    before = len(gateway.access_lines())
    for data in (b"", b"\r\n\r\n"):
        client = await Client.connect(gateway.http)
        await client.send(data)
        await client.close()
    await lines_from(gateway, before, 0)


async def test_a_client_that_leaves_has_a_line(regions: Fleet) -> None:
    """Its status is nginx's 499: there was nobody to answer."""
    gateway = regions[US]
    before = len(gateway.access_lines())
    client = await Client.connect(gateway.http)
    await client.send(head(b"POST /left HTTP/1.1", b"Content-Length: 100", b"Expect: 100-continue"))
    assert (await client.reply()).status == 100
    client.writer.transport.abort()

    async def told() -> bool:
        return len(gateway.access_lines()) > before

    await until(told, "the line is written")
    (fields,) = await lines_from(gateway, before, 1)
    assert (fields["path"], fields["status"], fields["bytes_out"]) == ("/left", 499, 0)
