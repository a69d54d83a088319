"""How many gateways were seen last: kept, and 1 for whatever is no such number."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store import seen


def test_it_is_kept(tmp_path: Path) -> None:
    assert seen.read(tmp_path) == 1
    seen.keep(tmp_path, 4)
    assert seen.read(tmp_path) == 4
    assert [path.name for path in tmp_path.iterdir()] == [seen.FILE]


@pytest.mark.parametrize("text", ["", "0", "-3", "many", "99999999", "4\n4"])
def test_whatever_is_no_number_of_gateways_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / seen.FILE).write_text(text)
    assert seen.read(tmp_path) == 1


def test_what_cannot_be_written_is_left(tmp_path: Path) -> None:
    seen.keep(tmp_path / "nowhere", 4)
    assert seen.read(tmp_path / "nowhere") == 1
