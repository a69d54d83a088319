"""What clients say of their patience: three fields' grammars, the shortest wins, nonsense is no limit."""

from __future__ import annotations

import pytest

from gateway.core.patience import LEAST_S, client_timeout, within


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("grpc-timeout", b"1H", 3600),
        ("grpc-timeout", b"2M", 120),
        ("grpc-timeout", b"3S", 3),
        ("grpc-timeout", b"250m", 0.25),
        ("grpc-timeout", b"5000u", 0.005),
        ("grpc-timeout", b"99999999n", 0.099999999),
        ("grpc-timeout", b"0m", LEAST_S),
        ("grpc-timeout", b"123456789m", 0),
        ("grpc-timeout", b"1s", 0),
        ("grpc-timeout", b"-1S", 0),
        ("grpc-timeout", b"", 0),
        ("connect-timeout-ms", b"1500", 1.5),
        ("connect-timeout-ms", b"0", LEAST_S),
        ("connect-timeout-ms", b"1.5", 0),
        ("connect-timeout-ms", b"12345678901", 0),
        ("prefer", b"wait=10", 10),
        ("prefer", b"return=minimal, Wait = 7 ; x=y", 7),
        ("prefer", b'wait="3"', 3),
        ("prefer", b"respond-async, wait=10", 0),
        ("prefer", b"wait=10,respond-async", 0),
        ("prefer", b"return=representation", 0),
        ("prefer", b"await=1", 0),
        ("prefer", b"wait=1x", 0),
        ("prefer", b"handling=lenient;wait=1", 0),
        ("prefer", b"wait=", 0),
    ],
)
def test_a_field_is_read_as_its_own_standard_says(name: str, value: bytes, seconds: float):
    found = client_timeout(lambda wanted: [value] if wanted == name.encode() else [])
    assert found == pytest.approx(seconds)


def test_the_shortest_counts_and_nonsense_does_not():
    fields = {b"grpc-timeout": [b"2S", b"soon"], b"prefer": [b"wait=9", b"wait=1"], b"connect-timeout-ms": [b"1500"]}
    assert client_timeout(lambda name: fields.get(name, [])) == 1.0
    assert client_timeout(lambda name: []) == 0.0


@pytest.mark.parametrize(("deadline_s", "left_s"), [(20, 19.5), (1, 0.5), (0.2, 0.1), (0, 0)])
def test_the_way_back_takes_its_part(deadline_s: float, left_s: float):
    assert within(deadline_s) == pytest.approx(left_s)
