"""Signals for a loop over descriptors."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Iterator
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


class Signals:
    """Signals as bytes on a socket, so that the loop sees them in order with everything else (signal.set_wakeup_fd)."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self.fd = self._read.fileno()
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def read(self) -> Iterator[int]:
        with contextlib.suppress(BlockingIOError):
            while data := self._read.recv(256):
                yield from data

    def wait(self, seconds: float) -> bool:
        """Sleep; False as soon as a signal says that we shall stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.fd, selectors.EVENT_READ)
            selector.select(seconds)
        return not any(number in (signal.SIGTERM, signal.SIGINT) for number in self.read())
