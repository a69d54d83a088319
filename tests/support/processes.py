"""What the kernel knows of processes: whether they live, their children, memory and sockets (proc(5))."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

EPHEMERAL_FIRST = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
PORT_FIRST = 10_000
ESTABLISHED = "01"


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
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, _, far, state, *rest = line.split()
        if state == ESTABLISHED and rest[5] in inodes:
            ports.add(int(far.rpartition(":")[2], 16))
    return ports


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
