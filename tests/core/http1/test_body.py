"""The chunked coding: every valid body whole and byte by byte, every invalid one refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.http1.body import BodyError, ChunkedReader, chunk, last_chunk
from gateway.core.http1.fields import FieldTable


def reader() -> ChunkedReader:
    return ChunkedReader(FieldTable(), 1000, 5)


def read(data: bytes, step: int | None = None) -> tuple[bytes, ChunkedReader]:
    machine, body = reader(), []
    for at in range(0, len(data), step or len(data)):
        if machine.done:
            machine.rest += data[at : at + (step or len(data))]
            continue
        body += machine.feed(data[at : at + (step or len(data))])
    return b"".join(body), machine


VALID = [
    (b"0\r\n\r\n", b"", []),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
    (b"5;a=b; c=\"d\\\"e;\" ; f\r\nhello\r\n000\r\nX: y\r\nA:b\r\n\r\n", b"hello", [b"X: y", b"A:b"]),
    (b"1\r\n\r\r\n2\r\n\r\n\r\n0\r\n\r\n", b"\r\r\n", []),
    (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, []),
]  # fmt: skip


@pytest.mark.parametrize(("data", "body", "trailers"), VALID)
@pytest.mark.parametrize("step", [None, 1, 2, 3])
def test_valid_bodies(data: bytes, body: bytes, trailers: list[bytes], step: int | None):
    got, machine = read(data + b"GET / next", step)
    assert got == body
    assert machine.done
    assert machine.trailers == trailers
    assert machine.rest == b"GET / next"


INVALID = [
    b"\r\n",
    b"g\r\n",
    b"-1\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"1_0\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\rX0\r\n\r\n",
    b"5;a=\"b\r\nc\"\r\nhello\r\n0\r\n\r\n",
    b"5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"ffffffffffffffff\r\n",
    b"5;" + b"a" * 2000,
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\nTransfer_Encoding: chunked\r\n\r\n",
    b"0\r\nHost: a\r\n\r\n",
    b"0\r\nGateway-Hop: a\r\n\r\n",
    b"0\r\nX-Tenant: a\r\n\r\n",
    b"0\r\nX : a\r\n\r\n",
    b"0\r\n fold\r\n\r\n",
    b"0\r\nX: a\nY: b\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * 6 + b"\r\n",
    b"0\r\nX: " + b"y" * 2000 + b"\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", INVALID)
@pytest.mark.parametrize("step", [None, 1])
def test_invalid_bodies(data: bytes, step: int | None):
    with pytest.raises(BodyError):
        _, machine = read(data, step)
        assert not machine.done
        read(data + b"x" * 3000, step)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.integers(1, 7))
def test_what_is_written_is_read_back(pieces: list[bytes], step: int):
    data = b"".join(map(chunk, pieces)) + last_chunk([b"T: v"])
    body, machine = read(data, step)
    assert body == b"".join(pieces)
    assert machine.done
    assert machine.trailers == [b"T: v"]


@given(st.binary(max_size=80), st.integers(1, 5))
def test_any_bytes_are_read_or_refused_alike_however_they_are_cut(data: bytes, step: int):
    def outcome(cut: int | None) -> object:
        try:
            body, machine = read(data, cut) if data else (b"", reader())
        except BodyError:
            return "refused"
        return (body, machine.done, machine.trailers) if machine.done else "unfinished"

    whole, cut = outcome(None), outcome(step)
    assert whole == cut or "refused" in (whole, cut)
