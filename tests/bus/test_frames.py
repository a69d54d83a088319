"""Frames arrive in any pieces and come out whole, in order, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bus.frames import FrameReader, FrameTooLong, frame

payload_lists = st.lists(st.binary(max_size=50), max_size=6)


@given(payload_lists, st.lists(st.integers(1, 20), min_size=1))
def test_frames_come_out_whole_however_they_arrive(payloads: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(frame(p, 100) for p in payloads)
    reader = FrameReader(100)
    out: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        out += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert out == payloads


def test_a_frame_split_at_every_byte() -> None:
    payloads = [b"first", b"", b"third" * 100]
    stream = b"".join(frame(p, 1000) for p in payloads)
    for at in range(len(stream) + 1):
        reader = FrameReader(1000)
        assert reader.feed(stream[:at]) + reader.feed(stream[at:]) == payloads


def test_a_frame_is_given_as_soon_as_its_last_byte_is_there() -> None:
    stream = frame(b"hello", 100)
    reader = FrameReader(100)
    assert [reader.feed(stream[n : n + 1]) for n in range(len(stream))] == [[]] * (len(stream) - 1) + [[b"hello"]]


@pytest.mark.parametrize("length", [0, 99, 100])
def test_the_limit_is_the_longest_that_passes(length: int) -> None:
    assert FrameReader(100).feed(frame(bytes(length), 100)) == [bytes(length)]


def test_beyond_the_limit_neither_side_goes_on() -> None:
    with pytest.raises(FrameTooLong):
        frame(bytes(101), 100)
    with pytest.raises(FrameTooLong):
        FrameReader(100).feed(frame(bytes(101), 1000)[:4])  # the length alone is enough
