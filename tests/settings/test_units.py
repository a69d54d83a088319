"""The small grammars: what each accepts, and what looks alike and is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.settings import units
from gateway.settings.schema import Address


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("75s", 75.0), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0), ("0s", 0.0)]
)
def test_duration(text: str, seconds: float) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "fast", "1 s", "-1s", "1d", "1S", "s", "1.s", ".5s", "1e3s", "1s ", "٣s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        units.duration(text)


@pytest.mark.parametrize(
    ("text", "count"), [("0B", 0), ("512B", 512), ("64KiB", 65536), ("8MiB", 8 << 20), ("1GiB", 1 << 30)]
)
def test_size(text: str, count: int) -> None:
    assert units.size(text) == count


@pytest.mark.parametrize("text", ["", "64", "64KB", "64K", "64kib", "1.5MiB", "-1B", "1 KiB", "1TiB"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        units.size(text)


@pytest.mark.parametrize(("text", "fraction"), [("5%", 0.05), ("0%", 0.0), ("100%", 1.0), ("2.5%", 0.025)])
def test_percent(text: str, fraction: float) -> None:
    assert units.percent(text) == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["5", "101%", "-1%", "%", "5 %"])
def test_no_percent(text: str) -> None:
    with pytest.raises(ValueError, match="percentage"):
        units.percent(text)


@pytest.mark.parametrize("text", ["", "-1", "+1", "007", "1_000", "0x10", "1.0", "\N{FULLWIDTH DIGIT ONE}", "1e3"])
def test_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        units.whole(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.1.0.4:9000", "10.1.0.4", 9000),
        ("App.Internal:80", "app.internal", 80),
        ("my_app:1", "my_app", 1),
        ("[::1]:8081", "::1", 8081),
        ("[2001:DB8:0::1]:9", "2001:db8::1", 9),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_address(text: str, host: str, port: int) -> None:
    assert units.address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "host:",
        "host:70000",
        "host:-1",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[fe80::1%eth0]:80",
        "1.2.3:80",
        "010.0.0.1:80",
        "a..b:80",
        "-a:80",
        "a b:80",
        "https://a:80",
        "[a]:80",
        "\N{KELVIN SIGN}:80",
        "a.:80",
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        units.address(text)


def test_a_listener_is_numeric_or_localhost() -> None:
    assert units.listener("localhost:80") == Address("localhost", 80)
    with pytest.raises(ValueError, match="machine"):
        units.listener("gateway.internal:80")


def test_an_endpoint_has_a_port_to_dial() -> None:
    with pytest.raises(ValueError, match="port"):
        units.endpoint("app:0")


@pytest.mark.parametrize(
    ("text", "network"),
    [("10.20.0.0/24", "10.20.0.0/24"), ("192.0.2.1", "192.0.2.1/32"), ("2001:DB8::/48", "2001:db8::/48")],
)
def test_network(text: str, network: str) -> None:
    assert units.network(text) == network


@pytest.mark.parametrize("text", ["10.20.0.1/24", "10.0.0.0/33", "app", "10.0.0/8", ""])
def test_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        units.network(text)


@pytest.mark.parametrize(
    ("host", "loops"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("app", False),
    ],
)
def test_loopback(host: str, loops: bool) -> None:
    assert units.is_loopback(host) is loops


@examples(deadline=None)
@given(st.integers(min_value=0, max_value=10**6))
def test_milliseconds_are_exact_to_the_microsecond(count: int) -> None:
    assert abs(units.duration(f"{count}ms") * 1000 - count) < 0.001


@examples(deadline=None)
@given(st.ip_addresses(), st.integers(min_value=0, max_value=65535))
def test_an_address_reads_what_it_writes(ip: object, port: int) -> None:
    address = Address(str(ip), port)
    assert units.address(str(address)) == address
