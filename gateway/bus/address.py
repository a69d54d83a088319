"""The bus socket's address. A Unix socket's path has 108 bytes at most, and a `state_dir` may be longer than that.

So the folder is opened and the socket named as `/proc/self/fd/N/bus.sock`: the same file, by a short path.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

BACKLOG: Final = 128
"""More than the workers that could ever connect at once."""


class Address:
    """A socket's path, made short. Good until `close()`. Raises OSError when the folder is not there."""

    def __init__(self, path: Path) -> None:
        self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.short = f"/proc/self/fd/{self._folder}/{path.name}"

    def close(self) -> None:
        os.close(self._folder)


def listen(address: Address) -> socket.socket:
    """A listening socket, mode 0600; whatever socket was there before is replaced. Raises OSError.

    The address must stay open as long as the socket: asyncio looks the socket's own name up when it closes it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(address.short)
        listener.bind(address.short)
        os.chmod(address.short, 0o600)  # before listen(): until then nobody can connect
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """A connected socket, or OSError at once: connecting to a Unix socket never has to wait."""
    with closing(Address(path)) as address:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(address.short)
        except BaseException:
            sock.close()
            raise
    return sock
