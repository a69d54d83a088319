"""What the kernel knows of processes: whether they live, their children, memory and sockets (proc(5))."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

EPHEMERAL_FIRST = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
PORT_FIRST = 10_000
ESTABLISHED = "01"
LISTENING = "0A"


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that are still its own; empty when it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def rss_anon_bytes(pids: Iterable[int]) -> int:
    """Memory that belongs to these processes alone: heaps and stacks, no files, no code."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def client_ports(pid: int) -> set[int]:
    """The far ports of a process's established IPv4 connections: of a server on this machine, its clients' ports."""
    return {far[1] for _, far, state in connections(pid) if state == ESTABLISHED}


def far_ends(pid: int, listening: Collection[int]) -> set[tuple[str, int]]:
    """(address, port) of what a process connected to or tries to: of all but what came to its `listening` ports."""
    return {far for near, far, state in connections(pid) if state != LISTENING and near not in listening}


def connections(pid: int) -> list[tuple[int, tuple[str, int], str]]:
    """(near port, far address and port, state) of each TCP socket over IPv4 that the process holds."""
    inodes = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if (target := os.readlink(entry)).startswith("socket:["):
                    inodes.add(target[8:-1])
        table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in table:
        _, near, far, state, *rest = line.split()
        if rest[5] in inodes:
            address, port = far.split(":")
            host = socket.inet_ntoa(int(address, 16).to_bytes(4, sys.byteorder))
            found.append((int(near.rpartition(":")[2], 16), (host, int(port, 16)), state))
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside of the range from which the kernel gives ports to outgoing connections."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(PORT_FIRST, EPHEMERAL_FIRST)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
    return list(found)
