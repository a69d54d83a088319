"""What names stood for, on disk: whole or not at all, and never a reason not to start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.core.conditions import Conditions, Target
from gateway.store.names import FILE, KnownNames, read, write

KNOWN = KnownNames(
    {"app.internal": ("10.0.0.1", "fd00::1")},
    {
        "srv://_http._tcp.app": (Target("10.0.0.2", 81, 5, 9, "one.internal"),),
        "dns://app:80": (Target("10.0.0.3", 80),),
    },
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read(tmp_path) == KnownNames()
    write(tmp_path, KNOWN)
    assert read(tmp_path) == KNOWN
    assert read(tmp_path).conditions() == Conditions(addresses=KNOWN.addresses, discovered=KNOWN.discovered)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe\x00", b'{"addresses": 5}', b"[]", b'{"discovered":{"a":[["x"]]}}']
)
def test_a_damaged_file_is_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    assert read(tmp_path) == KnownNames()


def test_every_cut_of_a_file_is_none_or_the_file(tmp_path: Path) -> None:
    write(tmp_path, KNOWN)
    whole = (tmp_path / FILE).read_bytes()
    for size in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        assert read(tmp_path) == KnownNames()


def test_what_cannot_be_written_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, KNOWN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, KnownNames())
    assert read(tmp_path) == KNOWN
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
