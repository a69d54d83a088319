"""Records and the version that orders them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.placement import NO_VERSION, REGION_NAME, TENANT_ID, Version, newer, parse_version
from tests.support.facts import record

names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
versions = st.builds(Version, st.integers(0, 10**19 - 1), st.integers(0, 10**19 - 1), st.just("") | names)


@pytest.mark.parametrize(
    ("older", "later"),
    [
        (NO_VERSION, Version(1)),
        (Version(1, 9, "z"), Version(2)),
        (Version(2, 1, "z"), Version(2, 2)),
        (Version(2, 2, "a"), Version(2, 2, "b")),
        (Version(9), Version(10)),
    ],
)
def test_epoch_then_clock_then_region(older: Version, later: Version) -> None:
    assert newer(later, older)
    assert not newer(older, later)


@given(versions, versions)
def test_one_of_two_different_versions_wins(a: Version, b: Version) -> None:
    assert newer(a, b) + newer(b, a) == (a != b)


@given(versions)
def test_written_and_read_back(version: Version) -> None:
    assert parse_version(str(version)) == version


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "7.1",
        "7.1.US",
        "a.1.eu",
        "7.b.eu",
        "-7.1.eu",
        "7.1.eu.x",
        "7.1.a_b",
        "\u0667.1.eu",
        "1" * 20 + ".1.eu",
        "-",
    ],
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match=r"epoch\.hlc\.region"):
        parse_version(text)


@pytest.mark.parametrize("text", ["a", "007", "no", "a-b_c", "a" * 63, "-", "_"])
def test_ids(text: str) -> None:
    assert TENANT_ID.match(text)


@pytest.mark.parametrize("text", ["", "A", "a.b", "a b", "a" * 64, "a\n", "é", "a/b"])
def test_what_is_no_id(text: str) -> None:
    assert TENANT_ID.match(text) is None


def test_region_names() -> None:
    assert REGION_NAME.match("us-east-1")
    assert REGION_NAME.match("a" * 32)
    for bad in ("", "US", "a_b", "a.b", "a" * 33, "a\n"):
        assert REGION_NAME.match(bad) is None


def test_a_record_is_a_value() -> None:
    assert record() == record()
    with pytest.raises(AttributeError):
        record().home = "mars"  # type: ignore[misc]
