"""Address lists, against the plain meaning of networks."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.addresses import KNOWN_MAX, AddressList, access_list


@pytest.mark.parametrize(
    ("allow", "deny", "client", "may"),
    [
        ((), (), "192.0.2.1", True),
        (("192.0.2.0/24",), (), "192.0.2.255", True),
        (("192.0.2.0/24",), (), "192.0.3.0", False),
        (("192.0.2.0/24",), (), "2001:db8::1", False),
        (("192.0.2.0/24",), ("192.0.2.7/32",), "192.0.2.7", False),
        (("192.0.2.0/24",), ("192.0.2.7/32",), "192.0.2.8", True),
        ((), ("192.0.2.0/24",), "192.0.2.1", False),
        ((), ("192.0.2.0/24",), "2001:db8::1", True),
        ((), ("2001:db8::/32",), "2001:DB8:0::9", False),
        ((), ("10.0.0.0/8",), "::ffff:10.1.2.3", False),
        (("::ffff:10.0.0.0/104",), (), "10.1.2.3", True),
        ((), ("fe80::/10",), "fe80::1%eth0", False),
        ((), ("0.0.0.0/0", "::/0"), "192.0.2.1", False),
        (("0.0.0.0/0",), (), "", False),
        ((), ("0.0.0.0/0",), "no address", True),
    ],
)
def test_who_may(allow: tuple[str, ...], deny: tuple[str, ...], client: str, may: bool) -> None:
    assert AddressList(allow, deny).permits(client) is may


NETWORKS = st.lists(
    st.one_of(
        st.builds(
            lambda n, p: ipaddress.ip_network((n, p), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
        ),
        st.builds(
            lambda n, p: ipaddress.ip_network((n, p), strict=False), st.integers(2**64, 2**128 - 1), st.integers(1, 128)
        ),
    ),
    max_size=8,
)


@given(NETWORKS, NETWORKS, st.ip_addresses())
def test_it_means_what_networks_mean(allow: list, deny: list, client: object) -> None:  # type: ignore[type-arg]
    made = AddressList(tuple(map(str, allow)), tuple(map(str, deny)))
    clients = [client, *(network.network_address for network in (*allow, *deny)), *(n.broadcast_address for n in allow)]
    for one in clients:
        address = getattr(one, "ipv4_mapped", None) or one
        wanted = not any(address in net for net in deny) and (not allow or any(address in net for net in allow))
        for _ in range(2):
            assert made.permits(str(one)) is wanted


def test_what_is_remembered_is_bounded_and_the_same_text_is_the_same_list() -> None:
    made = access_list(("10.0.0.0/8",), ())
    assert made is access_list(("10.0.0.0/8",), ())
    assert made is not None
    for number in range(KNOWN_MAX + 10):
        made.permits(str(ipaddress.ip_address(number)))
    assert len(made._known) <= KNOWN_MAX
    assert access_list((), ()) is None
    with pytest.raises(ValueError, match="nonsense"):
        access_list(("nonsense",), ())
