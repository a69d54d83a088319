"""Who is the client, and what of its word is believed (DESIGN 5.5)."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.client import (
    Client,
    client_address,
    forwarded_port,
    forwarded_proto,
    hop_client,
    is_trusted,
    kept_request_id,
    parse_address,
)

NETWORKS = tuple(map(ipaddress.ip_network, ("10.20.0.0/24", "10.20.1.0/24", "fd00::/8")))
LB, LB6, STRANGER = "10.20.0.7", "fd00::7", "203.0.113.9"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:80", "203.0.113.9"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("203.0.113", None),
        ("203.0.113.009", None),
        ("203.0.113.9:", None),
        ("203.0.113.9:port", None),
        ("[203.0.113.9", None),
        ("2001:db8::1]:80", None),
        ("fe80::1%eth0", None),
        ("1.2.3.4 5.6.7.8", None),
        ("0x7f.1", None),
        ("3405803785", None),
        ("²03.0.113.9", None),
        ("1" * 100, None),
    ],
)
def test_parse_address(text: str, address: str | None) -> None:
    parsed = parse_address(text)
    assert (None if parsed is None else str(parsed)) == address


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        (LB, True),
        ("10.20.1.255", True),
        ("::ffff:10.20.0.7", True),
        (LB6, True),
        ("10.20.2.1", False),
        (STRANGER, False),
        ("", False),
        ("not an address", False),
    ],
)
def test_is_trusted(address: str, trusted: bool) -> None:
    assert is_trusted(address, NETWORKS) is trusted
    assert not is_trusted(address, ())


@pytest.mark.parametrize(
    ("peer", "forwarded", "client", "written"),
    [
        pytest.param(STRANGER, [], STRANGER, STRANGER, id="nobody in front"),
        pytest.param(STRANGER, ["1.1.1.1"], STRANGER, STRANGER, id="a stranger is not believed"),
        pytest.param(STRANGER, [LB], STRANGER, STRANGER, id="nor where it names the load balancer"),
        pytest.param(LB, [], LB, LB, id="trusted, and says nothing"),
        pytest.param(LB, [""], LB, LB, id="trusted, empty field"),
        pytest.param(LB, ["1.1.1.1"], "1.1.1.1", "1.1.1.1", id="trusted"),
        pytest.param(LB6, ["1.1.1.1"], "1.1.1.1", "1.1.1.1", id="trusted over IPv6"),
        pytest.param("::ffff:10.20.0.7", ["1.1.1.1"], "1.1.1.1", "1.1.1.1", id="trusted on a dual-stack socket"),
        pytest.param("::ffff:203.0.113.9", [], STRANGER, STRANGER, id="a stranger on a dual-stack socket"),
        pytest.param(LB, ["9.9.9.9, 1.1.1.1"], "1.1.1.1", "9.9.9.9, 1.1.1.1", id="what stands left is kept"),
        pytest.param(LB, ["9.9.9.9", "1.1.1.1"], "1.1.1.1", "9.9.9.9, 1.1.1.1", id="two fields are one list"),
        pytest.param(LB, ["9.9.9.9, 1.1.1.1, 10.20.1.9"], "1.1.1.1", "9.9.9.9, 1.1.1.1", id="two proxies"),
        pytest.param(LB, ["10.20.0.9, 1.1.1.1"], "1.1.1.1", "10.20.0.9, 1.1.1.1", id="a forged trusted element"),
        pytest.param(LB, ["10.20.0.9, 10.20.1.9"], "10.20.0.9", "10.20.0.9", id="all trusted: the leftmost"),
        pytest.param(LB, ["1.1.1.1:4711"], "1.1.1.1", "1.1.1.1", id="port"),
        pytest.param(LB, ["[2001:db8::1]:4711"], "2001:db8::1", "2001:db8::1", id="brackets and port"),
        pytest.param(LB, ["9.9.9.9:1, [::2], x, 1.1.1.1"], "1.1.1.1", "9.9.9.9, ::2, x, 1.1.1.1", id="kept, stripped"),
        pytest.param(LB, [" , 1.1.1.1 ,"], "1.1.1.1", "1.1.1.1", id="empty elements"),
        pytest.param(LB, ["unknown"], LB, LB, id="no address"),
        pytest.param(LB, ["1.1.1.1, unknown"], LB, LB, id="no address at the right"),
        pytest.param(LB, ["1.1.1.1, unknown, 10.20.1.9"], LB, LB, id="no address behind a trusted one"),
        pytest.param(LB, ["unknown, 1.1.1.1"], "1.1.1.1", "unknown, 1.1.1.1", id="no address beyond the client"),
        pytest.param("unix", ["1.1.1.1"], "unix", "unix", id="a peer without an address"),
    ],
)
def test_client_address(peer: str, forwarded: list[str], client: str, written: str) -> None:
    values = [value.encode() for value in forwarded]
    assert client_address(peer, values, NETWORKS) == Client(client, written.encode())
    assert client_address(peer, values, NETWORKS, is_trusted(peer, NETWORKS)) == Client(client, written.encode())


element = st.one_of(
    st.ip_addresses().map(str), st.sampled_from((LB, "10.20.1.9", "unknown", "", "[::1]:80", "1.1.1.1:2"))
)


@given(st.sampled_from((LB, STRANGER)), st.lists(element, max_size=6))
def test_what_is_written_ends_in_a_client_that_is_an_address(peer: str, elements: list[str]) -> None:
    found = client_address(peer, [", ".join(elements).encode()], NETWORKS)
    assert parse_address(found.address) is not None
    assert hop_client([found.forwarded_for]) == found.address, "the other region comes to the same client"
    if peer == STRANGER:
        assert found == Client(STRANGER, STRANGER.encode())


def test_hop_client() -> None:
    assert hop_client([]) == ""
    assert hop_client([b"9.9.9.9, 1.1.1.1"]) == "1.1.1.1"
    assert hop_client([b"9.9.9.9", b"1.1.1.1"]) == "1.1.1.1"


@pytest.mark.parametrize(
    ("values", "trusted", "proto"),
    [
        ([b"https"], True, "https"),
        ([b"HTTPS"], True, "https"),
        ([b"http, https"], True, "https"),
        ([b"https", b"http"], True, "http"),
        ([b"https"], False, "http"),
        ([], True, "http"),
        ([b"gopher"], True, "http"),
    ],
)
def test_forwarded_proto(values: list[bytes], trusted: bool, proto: str) -> None:
    assert forwarded_proto(values, trusted) == proto


@pytest.mark.parametrize(
    ("values", "trusted", "port"),
    [
        ([b"443"], True, 443),
        ([b"80, 443"], True, 443),
        ([b"65535"], True, 65535),
        ([b"1"], True, 1),
        ([b"443"], False, 8080),
        ([], True, 8080),
        ([b"0"], True, 8080),
        ([b"65536"], True, 8080),
        ([b"00000443"], True, 8080),
        ([b"-1"], True, 8080),
        ([b"x"], True, 8080),
        ([b""], True, 8080),
    ],
)
def test_forwarded_port(values: list[bytes], trusted: bool, port: int) -> None:
    assert forwarded_port(values, trusted, 8080) == port


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([b"Root=1-67.A_b"], ""),
        ([b"1-67.A_b"], "1-67.A_b"),
        ([b"x" * 128], "x" * 128),
        ([b"x" * 129], ""),
        ([b""], ""),
        ([], ""),
        ([b"a", b"a"], ""),
        ([b"a b"], ""),
        ([b"a\n"], ""),
        ([b"\xe9"], ""),
    ],
)
def test_kept_request_id(values: list[bytes], kept: str) -> None:
    assert kept_request_id(values) == kept
