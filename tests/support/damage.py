"""What becomes of a map file or a snapshot when a disk, a person or a crash has its way with it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from gateway.store import generations

PAGE = 4096

Damage = Callable[[Path], None]


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def deleted(path: Path) -> None:
    path.unlink()


def scribbled(path: Path) -> None:
    """Random bytes in every fifth page, the first two (LMDB's meta pages) left as they are: the worst to find."""
    rng = random.Random(7)
    with path.open("rb+") as file:
        for page in range(2, max(3, path.stat().st_size // PAGE), 5):
            file.seek(page * PAGE + 100 if path.stat().st_size > 3 * PAGE else path.stat().st_size // 2)
            file.write(rng.randbytes(2000))


def scribbled_from_the_start(path: Path) -> None:
    with path.open("rb+") as file:
        file.write(random.Random(8).randbytes(3 * PAGE))


def map_file(state: Path) -> Path:
    """The file that a gateway with this `state_dir` has its map in."""
    directory = state / "map"
    return generations.path_of(directory, generations.current(directory)) / generations.DATA_FILE


def snapshot_file(state: Path) -> Path:
    return state / "map.snapshot"
