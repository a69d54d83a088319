"""Where the map is: `map/<generation>/` holds an LMDB environment, and `map/current` links to the one that counts.

A bad map is never renamed, truncated or written to: a successor is made beside it and the link is swapped, which is one
rename. Whoever has the old one mapped keeps it until it follows. Generations only ever count up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CURRENT: Final = "current"
DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
BAD_FILE: Final = "bad"
"""In a generation that was set aside: why. The newest of these is kept for whoever wants to know what happened."""

_NAME: Final = re.compile(r"[0-9]{8}\Z")


def current(directory: Path) -> int:
    """The generation that counts; 0 without any. One system call: it may be asked often."""
    try:
        name = os.readlink(directory / CURRENT)
    except OSError:
        return 0
    return int(name) if _NAME.match(name) else 0


def path_of(directory: Path, generation: int) -> Path:
    return directory / f"{generation:08}"


def all_of(directory: Path) -> list[int]:
    """Every generation that there is, in order."""
    try:
        return sorted(int(name) for name in os.listdir(directory) if _NAME.match(name))
    except OSError:
        return []


def make(directory: Path) -> int:
    """A new, empty generation, which does not count yet. Raises OSError."""
    generation = max([*all_of(directory), current(directory)], default=0) + 1
    path_of(directory, generation).mkdir(mode=0o700)
    return generation


def point(directory: Path, generation: int) -> None:
    """Let `generation` count from now on. Raises OSError, and then nothing changed."""
    temporary = directory / f".{CURRENT}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(path_of(directory, generation).name)
    temporary.replace(directory / CURRENT)


def set_aside(directory: Path, generation: int, why: str) -> None:
    """Leave a note in a bad generation. It is only a note: a full disk must not keep a good map from taking over."""
    with contextlib.suppress(OSError):
        (path_of(directory, generation) / BAD_FILE).write_text(why + "\n")


def remove_old(directory: Path) -> list[int]:
    """Remove the generations before the current one that nobody has open, but for the newest bad one; which ones.

    Never call it in a process that still has an older one open: closing another descriptor of LMDB's lock file would
    drop that process's lock (fcntl(2), POSIX locks belong to a process).
    """
    now = current(directory)
    older = [generation for generation in all_of(directory) if generation < now]
    bad = [generation for generation in older if (path_of(directory, generation) / BAD_FILE).exists()]
    removed = []
    for generation in older:
        if generation not in bad[-1:] and not _in_use(path_of(directory, generation) / LOCK_FILE):
            shutil.rmtree(path_of(directory, generation), ignore_errors=True)
            removed.append(generation)
    return removed


def _in_use(lock_file: Path) -> bool:
    """Whether a process has the environment open: each holds a shared lock on the first byte of its lock file."""
    try:
        with lock_file.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One at a time may replace the map. Waits; makes `directory` (mode 0700). Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
