"""Heads, as tables: what is read, what is left out, what is refused and with which flag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError
from gateway.core.http1.fields import FieldTable, Seen, response_table
from gateway.core.http1.head import CHUNKED, UNTIL_CLOSE, parse_request, parse_response
from gateway.core.view import Limits

LIMITS = Limits(headers=20, target_bytes=200)


def request(*lines: str):
    return parse_request("\r\n".join(lines).encode("latin-1"), FieldTable((b"x-org",)), LIMITS)


def response(*lines: str, method: bytes = b"GET"):
    return parse_response("\r\n".join(lines).encode("latin-1"), response_table(), LIMITS, method)


def test_a_plain_request_is_kept_line_by_line():
    got = request("GET /a?b HTTP/1.1", "hOst: Acme.Example.com.:8080", "X-A:  1 ", "x-a: 2", "Connection: keep-alive")
    assert (got.method, got.target, got.version) == (b"GET", b"/a?b", 11)
    assert got.kept == [b"hOst: Acme.Example.com.:8080", b"X-A:  1 ", b"x-a: 2"]
    assert got.host == "acme.example.com"
    assert got.keep_alive
    assert got.length == 0
    assert got.headers == {"host": "Acme.Example.com.:8080", "x-a": "1, 2"}


@pytest.mark.parametrize(
    ("lines", "flag"),
    [
        (["GET  / HTTP/1.1", "Host: a"], "request_malformed"),
        (["GET /\tHTTP/1.1", "Host: a"], "request_malformed"),
        (["GET /", "Host: a"], "request_malformed"),
        (["G(T / HTTP/1.1", "Host: a"], "request_malformed"),
        (["GET / HTTP/1.2", "Host: a"], "version_unsupported"),
        (["GET / HTTP/2.0", "Host: a"], "version_unsupported"),
        (["GET / http/1.1", "Host: a"], "request_malformed"),
        (["GET /a#b HTTP/1.1", "Host: a"], "target_malformed"),
        (["GET /\xe4 HTTP/1.1", "Host: a"], "target_malformed"),
        (["GET a HTTP/1.1", "Host: a"], "target_malformed"),
        (["GET //u@b/ HTTP/1.1", "Host: a", "Host: a"], "framing_ambiguous"),
        (["OPTIONS * HTTP/1.1", "Host: a"], "target_malformed"),
        (["CONNECT a:443 HTTP/1.1", "Host: a"], "connect_refused"),
        (["GET http://u@a/ HTTP/1.1", "Host: a"], "target_malformed"),
        (["GET http://b/ HTTP/1.1", "Host: a"], "target_malformed"),
        (["GET ftp://a/ HTTP/1.1", "Host: a"], "target_malformed"),
        (["GET /" + "x" * 200 + " HTTP/1.1", "Host: a"], "target_too_long"),
        (["GET / HTTP/1.1", *["A: b"] * 20, "Host: a"], "fields_too_large"),
        (["GET / HTTP/1.1"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", "Host: a"], "framing_ambiguous"),
        (["GET / HTTP/1.1", "Host: a, b"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a:99999"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a b"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: u@a"], "request_malformed"),
        (["GET / HTTP/1.1", "Host:"], "request_malformed"),
        (["GET / HTTP/1.1", "Host : a"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", " folded"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", "no colon"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", ": empty"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", "X: a\x00b"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", "X: a\rb"], "request_malformed"),
        (["GET / HTTP/1.1", "Host: a", "X: a\nb"], "request_malformed"),
        (["POST / HTTP/1.1", "Host: a", "Content-Length: +1"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Content-Length: 1, 1"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Content-Length: 0x1"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Content-Length:"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 1"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Content_Length: 1"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Transfer.Encoding: chunked"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"], "framing_ambiguous"),
        (["POST / HTTP/1.0", "Host: a", "Transfer-Encoding: chunked"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, chunked"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked,"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: identity"], "framing_ambiguous"),
        (["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: \x0bchunked"], "request_malformed"),
        (["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"], "coding_unknown"),
        (["GET / HTTP/1.1", "Host: a", "Connection: close, host"], "framing_ambiguous"),
    ],
)  # fmt: skip
def test_refused_requests(lines: list[str], flag: str):
    with pytest.raises(GatewayError) as caught:
        request(*lines)
    assert caught.value.flag.name == flag


def test_absolute_form_becomes_origin_form():
    got = request("GET HTTP://Acme.test:80?q HTTP/1.1", "Host: acme.test:80")
    assert (got.target, got.host) == (b"/?q", "acme.test")
    got = request("GET http://acme.test/x HTTP/1.0")
    assert (got.target, got.host, got.kept) == (b"/x", "acme.test", [b"Host: acme.test"])


@pytest.mark.parametrize(
    ("lines", "keep_alive"),
    [
        (["GET / HTTP/1.1", "Host: a"], True),
        (["GET / HTTP/1.1", "Host: a", "Connection: Close"], False),
        (["GET / HTTP/1.0", "Host: a"], False),
        (["GET / HTTP/1.0", "Host: a", "Connection: Keep-Alive"], True),
        (["GET / HTTP/1.0", "Host: a", "Connection: keep-alive, close"], False),
    ],
)
def test_keep_alive(lines: list[str], keep_alive: bool):
    assert request(*lines).keep_alive is keep_alive


def test_what_belongs_to_the_connection_or_to_us_is_left_out():
    got = request(
        "POST / HTTP/1.1", "Host: a", "Connection: x-hop, close", "X-Hop: 1", "Keep-Alive: 5", "TE: trailers",
        "Proxy-Connection: close", "Upgrade: h2c", "Expect: 100-continue", "Transfer-Encoding: Chunked",
        "X-Tenant: evil", "X_Tenant: evil", "GATEWAY-Hop: evil", "gateway_verdict: evil", "X-Forwarded-For: evil",
        "X-Org: acme", "Accept: */*", "Via: 1.1 other", "Cookie: a=b",
    )  # fmt: skip
    assert got.kept == [b"Host: a", b"X-Org: acme", b"Accept: */*", b"Via: 1.1 other", b"Cookie: a=b"]
    assert got.length == CHUNKED
    assert got.expect
    assert not got.upgrade
    assert got.values(b"x-tenant") == [b"evil", b"evil"]
    got.drop(b"x-org")
    assert b"X-Org: acme" not in got.kept


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        (["GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: WebSocket"], True),
        (["GET / HTTP/1.1", "Host: a", "Upgrade: websocket"], False),
        (["POST / HTTP/1.1", "Host: a", "Connection: upgrade", "Upgrade: websocket"], False),
        (["GET / HTTP/1.0", "Host: a", "Connection: upgrade", "Upgrade: websocket"], False),
        (["GET / HTTP/1.1", "Host: a", "Connection: upgrade", "Upgrade: websocket, h2c"], False),
        (["GET / HTTP/1.1", "Host: a", "Connection: upgrade", "Upgrade: websocket", "Content-Length: 1"], False),
    ],
)
def test_only_a_websocket_handshake_is_an_upgrade(lines: list[str], upgrade: bool):
    assert request(*lines).upgrade is upgrade


def test_lines_are_remembered_within_bounds_and_without_credentials():
    table = FieldTable()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: s=1\r\nAuthorization: b\r\nX-Long: " + b"x" * 300
    parse_request(head, table, Limits())
    assert set(table.cache) == {b"Host: a"}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + data, FieldTable(), LIMITS)
    except GatewayError as error:
        assert 400 <= error.flag.status < 600


@given(st.lists(st.sampled_from([b"Host: a", b"Accept: x", b"X: y", b"X-Tenant: t", b"Cookie: c"]), max_size=8))
def test_the_memory_changes_nothing(lines: list[bytes]):
    table, head = FieldTable(), b"\r\n".join([b"GET / HTTP/1.0", *lines])

    def read():
        try:
            got = parse_request(head, table, Limits())
        except GatewayError as error:
            return error.flag.name
        return got.kept, got.seen, [f.line for f in got.fields]

    assert read() == read()


@pytest.mark.parametrize(
    ("lines", "method", "length", "keep_alive"),
    [
        (["HTTP/1.1 200 OK", "Content-Length: 5"], b"GET", 5, True),
        (["HTTP/1.1 200", "Transfer-Encoding: chunked"], b"GET", CHUNKED, True),
        (["HTTP/1.1 200 OK"], b"GET", UNTIL_CLOSE, False),
        (["HTTP/1.0 200 OK", "Content-Length: 5"], b"GET", 5, False),
        (["HTTP/1.0 200 OK", "Content-Length: 5", "Connection: keep-alive"], b"GET", 5, True),
        (["HTTP/1.1 204 No Content"], b"GET", 0, True),
        (["HTTP/1.1 304 Not Modified", "Content-Length: 5"], b"GET", 0, True),
        (["HTTP/1.1 200 OK", "Content-Length: 5"], b"HEAD", 0, True),
        (["HTTP/1.1 200 OK", "Content-Length: 5", "Connection: close"], b"GET", 5, False),
    ],
)
def test_response_framing(lines: list[str], method: bytes, length: int, keep_alive: bool):
    got = response(*lines, method=method)
    assert (got.length, got.keep_alive) == (length, keep_alive)


def test_content_length_stays_where_it_means_something():
    assert response("HTTP/1.1 200 OK", "Content-Length: 5", method=b"HEAD").kept == [b"Content-Length: 5"]
    assert response("HTTP/1.1 304 Not Modified", "Content-Length: 5").kept == [b"Content-Length: 5"]
    assert response("HTTP/1.1 204 No Content", "Content-Length: 0").kept == []


@pytest.mark.parametrize(
    "lines",
    [
        ["HTTP/1.1 20 OK"],
        ["HTTP/1.1 2000 OK"],
        ["HTTP/1.1 099 OK"],
        ["HTTP/2.0 200 OK"],
        ["http/1.1 200 OK"],
        ["HTTP/1.1  200 OK"],
        ["HTTP/1.1 200 O\x00K"],
        ["HTTP/1.1 200 OK", "Content-Length: 1", "Content-Length: 2"],
        ["HTTP/1.1 200 OK", "Content-Length: 1", "Transfer-Encoding: chunked"],
        ["HTTP/1.0 200 OK", "Transfer-Encoding: chunked"],
        ["HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked"],
        ["HTTP/1.1 200 OK", "Transfer_Encoding: chunked"],
        ["HTTP/1.1 200 OK", "Content-Length: -1"],
        ["HTTP/1.1 200 OK", "X : y"],
        ["HTTP/1.1 200 OK", " folded: y"],
        ["HTTP/1.1 200 OK", "Connection: content-length", "Content-Length: 1"],
    ],
)
def test_refused_responses(lines: list[str]):
    with pytest.raises(GatewayError) as caught:
        response(*lines)
    assert caught.value.flag.name == "upstream_malformed"


def test_a_responses_own_fields_are_set_apart():
    got = response("HTTP/1.1 200 OK", "Content-Length: 0", "Gateway-Verdict: x", "X-Request-Id: y", "Via: z")
    assert got.kept == [b"Content-Length: 0", b"Via: z"]
    assert {field.name for field in got.own} == {b"gateway-verdict", b"x-request-id"}
    assert Seen.OWN
