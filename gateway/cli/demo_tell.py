"""`landbridge demo stop-app`, `cut` and so on: one line to the running demo, over a socket in its directory."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Final

from gateway.cli.demo_files import REGIONS, Layout, inside
from gateway.cli.output import Exit

ANSWER_LIMIT_S: Final = 20.0
"""For all that is asked of the demo: an application or a server is started within it."""


def tell(place: Layout, verb: str, region: str | None) -> int:
    """Ask the running demo to break or mend something of a region (None: of all); prints its answer."""
    if region not in (*REGIONS, None):
        print(f"landbridge: no such region: {region} (there are {', '.join(REGIONS)})", file=sys.stderr)
        return Exit.BAD_INPUT
    answer = _ask(place, f"{verb} {region or ''}")
    if answer is None:
        where = inside(place.directory)
        print(
            f"landbridge: no demo is running in {where} (other ports or directory? --base-port, --dir)", file=sys.stderr
        )
        return Exit.FAILED
    verdict, _, text = answer.partition(" ")
    print(text, file=sys.stdout if verdict == "ok" else sys.stderr)
    return Exit.DONE if verdict == "ok" else Exit.FAILED


def _ask(place: Layout, line: str) -> str | None:
    """One line to the demo's socket and its answer; None when no demo answers."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(place.directory, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(ANSWER_LIMIT_S)
            sock.connect(socket_path(folder))
            sock.sendall(line.encode() + b"\n")
            with sock.makefile("r") as file:
                return file.readline().strip() or None
        except OSError:
            return None


def socket_path(folder: int) -> str:
    """Through the directory's descriptor: a socket's path may have 107 bytes only (unix(7))."""
    return f"/proc/self/fd/{folder}/demo.sock"
