"""What is let in: the fast look gives the verdict of the rules' own, whatever was done to a value."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.control.replication.incoming import (
    TOMBSTONE_MS,
    admit,
    bad_to_the_end,
    bucket_of,
    examine,
    holds,
    is_wanted,
    old_tombstone,
    weigh,
)
from gateway.core.placement import Placement, State, Version
from gateway.core.replication import (
    VALUE_BYTES_MAX,
    BadValue,
    check_value,
    decode_value,
    encode_body,
    encode_value,
    stamp_of,
    sum_of,
)
from tests.support.replication import US, body, value_of

NOW_MS = 1_795_752_000_000
V1, V2, V3 = Version(1, 1000, US), Version(1, 2000, US), Version(1, 3000, US)

versions = st.builds(
    Version, st.integers(0, 10**18), st.integers(0, 1 << 54), st.sampled_from(["", US, "a", "-", "Q", "x" * 33])
)
bodies = st.sampled_from(
    [
        encode_body(Placement(tenant="any", home=US, standby=("eu-west-1",), labels={"plan": "gold"})),
        encode_body(Placement(tenant="any", home="No Region")),
        encode_body(Placement(tenant="any", home=US, standby=("eu west",))),
        b'{"home":"us-east-1","state":"gone"}',
        b'{"home":"us-east-1","unknown":1}',
        b'{"home":"us-\xff"}',
        b"[]",
        b"",
        b"{}\n{}",
    ]
)
tenants = st.sampled_from(["acme", "a", "", "Acme", "a.b", "x" * 63, "x" * 64, "a\n"])


@st.composite
def values(draw: st.DrawFn) -> tuple[str, bytes]:
    """A value, right or wrong in any of its parts; at times with one byte changed, lost or doubled."""
    tenant = draw(tenants)
    replaces = draw(st.lists(versions, max_size=9))
    version, content = draw(versions), draw(bodies)
    value = encode_value(tenant, version, replaces, content)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        value = (
            value[:at] + draw(st.sampled_from([b"", b" ", b"0", b"\n", b",", value[at : at + 1] * 2])) + value[at + 1 :]
        )
    return tenant, value


@settings(deadline=None)
@given(values())
@example(("acme", b"1 1.1.us-east-1 - 0000000000000000\n{}"))
@example(("acme", b"1 1.1.us-east-1 1.0.us-east-1, 0000000000000000\n{}"))
@example(("acme", b"2 1.1.us-east-1 - 0000000000000000\n{}"))
def test_the_fast_look_says_what_the_rules_say(entry: tuple[str, bytes]) -> None:
    try:
        expected: int | str = decode_value(*entry).version.hlc
    except BadValue as error:
        expected = str(error)
    try:
        found: int | str = examine(*entry)
    except BadValue as error:
        found = str(error)
    assert found == expected


@pytest.mark.parametrize("version", ["01.5.us-east-1", "1.05.us-east-1", "1.00.", "00.0."])
def test_a_version_has_one_written_form(version: str) -> None:
    """Though its sum holds: control would never take it in."""
    content = body()
    value = f"1 {version} - {sum_of('acme', version, content)}\n".encode() + content
    with pytest.raises(BadValue):
        decode_value("acme", value)
    with pytest.raises(BadValue):
        examine("acme", value)
    assert weigh("acme", value) == ("", False)


@settings(deadline=None)
@given(values())
@example(("acme", b'1 1000.00. - 3c311c2455a1ab08\n{"home":"us-east-1"}'))
def test_weighing_says_whether_a_sum_holds(entry: tuple[str, bytes]) -> None:
    try:
        named = stamp_of(entry[1]).sum
    except BadValue:
        named = ""
    try:
        check_value(*entry)
        whole = True
    except BadValue:
        whole = False
    assert weigh(*entry) == (named, whole)
    if named:
        assert bucket_of(entry[1]) == named[:2]


def test_what_is_too_long_is_no_record() -> None:
    content = b'{"home":"us-east-1","why":"' + b"x" * VALUE_BYTES_MAX + b'"}'
    with pytest.raises(BadValue, match="expected at most"):
        examine("acme", encode_value("acme", V1, (), content))


def test_a_batch_keeps_every_place_and_only_the_good_values() -> None:
    good, later = value_of("acme", V1), value_of("globex", Version(1, 9000, US))
    batch = admit([("acme", good), ("bad one", b"x"), ("acme", good[:-1]), ("globex", later)], hlc_max=8000)
    assert batch.entries == [("acme", good), ("bad one", b""), ("acme", b""), ("globex", later)]
    assert [(bad.tenant, bad.value) for bad in batch.bad] == [("bad one", b"x"), ("acme", good[:-1])]
    assert batch.bad[1].reason == "its sum does not hold"
    assert batch.far_ahead == [3]


def test_the_letter_of_a_bad_value_outlives_the_good_one_before_it() -> None:
    good = value_of("acme", V1)
    assert [bad.value for bad in bad_to_the_end(admit([("acme", good), ("acme", b"x")], 1 << 60))] == [b"x"]
    assert bad_to_the_end(admit([("acme", b"x"), ("acme", good)], 1 << 60)) == []
    assert bad_to_the_end(admit([("acme", b"x")], 1 << 60)) == []  # it was put there before, and nothing clears it
    assert bad_to_the_end(admit([("acme", good)], 1 << 60)) == []


@pytest.mark.parametrize("value", [b"", b"\n", b"short\n", b"no line end at all"])
def test_what_has_no_sum_has_no_bucket(value: bytes) -> None:
    assert bucket_of(value) is None


# --- what is worth sending

first = value_of("acme", V1)
second = value_of("acme", V2, [V1])
stranger = value_of("acme", V3)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (None, first, True),
        (first, first, False),
        (first, second, True),
        (second, first, False),  # ours descends from it
        (second, stranger, True),
        (stranger, second, True),  # it loses, but belongs to the history
        (first[:-2] + b" }", first, True),  # ours is damaged under the same head
        (b"garbage", first, True),
        (second[:-2] + b" }", first, True),  # damaged, so it descends from nothing
    ],
)
def test_what_is_wanted(ours: bytes | None, theirs: bytes, expected: bool) -> None:
    assert is_wanted(ours, theirs, "acme", NOW_MS) is expected


def test_a_tombstone_that_may_be_purged_does_not_come_back() -> None:
    old = value_of("acme", Version(2, NOW_MS - TOMBSTONE_MS - 1, US), state=State.DELETED)
    young = value_of("acme", Version(2, NOW_MS - TOMBSTONE_MS + 1, US), state=State.DELETED)
    assert not is_wanted(None, old, "acme", NOW_MS)
    assert is_wanted(None, young, "acme", NOW_MS)
    assert is_wanted(first, old, "acme", NOW_MS)  # where the tenant still is, it is deleted
    assert old_tombstone(old, NOW_MS) == stamp_of(old)
    assert old_tombstone(young, NOW_MS) is None
    assert old_tombstone(first, NOW_MS) is None


def test_the_word_deleted_alone_is_no_tombstone() -> None:
    odd = value_of("acme", V1, labels={"state": "deleted", "x": '"state":"deleted"'})
    assert decode_value("acme", odd).state is State.ACTIVE
    assert is_wanted(None, odd, "acme", NOW_MS)
    assert old_tombstone(odd, NOW_MS) is None


def test_sums_are_those_of_the_core() -> None:
    assert sum_of("acme", str(V1), body()) == stamp_of(first).sum
    assert holds("acme", first)
    assert not holds("globex", first)
