"""The codec: what is written is what is read, damage is found, and the digest is a property of the set."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.placement import Failover, Misroute, Placement, State, Version
from gateway.store.record import (
    CorruptRecord,
    Summary,
    decode_placement,
    decode_summary,
    digest_of,
    digest_without,
    encode_placement,
    encode_summary,
    key_of,
    seal,
    unseal,
)

tenant_ids = st.from_regex(r"[a-z0-9_-]{1,63}", fullmatch=True)
region_names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
placements = st.builds(
    Placement,
    tenant=tenant_ids,
    home=region_names,
    standby=st.lists(region_names, max_size=3).map(tuple),
    failover=st.sampled_from(Failover),
    hosts=st.lists(st.text(max_size=40), max_size=3).map(tuple),
    public=st.dictionaries(region_names, st.text(max_size=40), max_size=3),
    misroute=st.none() | st.sampled_from(Misroute),
    state=st.sampled_from(State),
    cluster=st.none() | st.text(max_size=20),
    labels=st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3),
    version=st.builds(Version, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), region_names),
)


@given(placements)
def test_a_placement_comes_back_equal(placement: Placement) -> None:
    key = placement.tenant.encode()
    assert decode_placement(key, seal(key, encode_placement(placement))) == placement


@given(placements, st.data())
def test_any_changed_byte_is_found(placement: Placement, data: st.DataObject) -> None:
    key = placement.tenant.encode()
    value = bytearray(seal(key, encode_placement(placement)))
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptRecord):
        decode_placement(key, bytes(value))


@given(placements, st.data())
def test_any_cut_is_found(placement: Placement, data: st.DataObject) -> None:
    key = placement.tenant.encode()
    value = seal(key, encode_placement(placement))
    with pytest.raises(CorruptRecord):
        decode_placement(key, value[: data.draw(st.integers(0, len(value) - 1))])


def test_a_value_under_another_key_is_found() -> None:
    value = seal(b"acme", encode_placement(Placement(tenant="acme", home="us-east-1")))
    with pytest.raises(CorruptRecord, match="globex"):
        decode_placement(b"globex", value)


def test_a_whole_record_of_another_tenant_is_found() -> None:
    payload = encode_placement(Placement(tenant="acme", home="us-east-1"))
    with pytest.raises(CorruptRecord, match="holds the record of 'acme'"):
        decode_placement(b"globex", seal(b"globex", payload))


def test_a_sealed_value_of_another_kind_is_no_placement() -> None:
    with pytest.raises(CorruptRecord):
        decode_placement(b"acme", seal(b"acme", b"\xc0"))
    with pytest.raises(CorruptRecord):
        decode_summary(b"summary", seal(b"summary", b"\xc0"))


def test_a_summary_comes_back() -> None:
    summary = Summary(records=3, digest=2**64 - 1, written_ms=1_700_000_000_000)
    assert decode_summary(b"summary", encode_summary(b"summary", summary)) == summary


@given(st.binary(max_size=20), st.binary(max_size=50))
def test_seal_and_unseal(key: bytes, payload: bytes) -> None:
    assert unseal(key, seal(key, payload)) == payload


@given(st.sets(st.binary(max_size=20), max_size=20), st.randoms())
def test_the_digest_does_not_depend_on_order(records: set[bytes], rng: random.Random) -> None:
    shuffled = list(records)
    rng.shuffle(shuffled)
    assert digest_of(shuffled) == digest_of(sorted(records))


@given(st.sets(st.binary(max_size=20)), st.sets(st.binary(max_size=20)))
def test_the_digest_is_incremental(old: set[bytes], new: set[bytes]) -> None:
    stepped = digest_of(new - old, digest_without(digest_of(old), old - new))
    assert stepped == digest_of(new)


@given(st.sets(st.binary(max_size=20), min_size=1))
def test_the_digest_tells_a_missing_record(records: set[bytes]) -> None:
    assert digest_of(records) != digest_of(list(records)[1:])


def test_equal_placements_have_equal_bytes_however_they_were_built() -> None:
    one = Placement(tenant="acme", home="a", labels={"x": "1", "y": "2"}, public={"a": "u", "b": "v"})
    other = Placement(tenant="acme", home="a", labels={"y": "2", "x": "1"}, public={"b": "v", "a": "u"})
    assert encode_placement(one) == encode_placement(other)


@pytest.mark.parametrize(
    ("name", "key"), [("acme", b"acme"), ("", None), ("x" * 255, b"x" * 255), ("x" * 256, None), ("caf\u00e9", None)]
)
def test_names_that_can_be_no_key(name: str, key: bytes | None) -> None:
    assert key_of(name) == key
