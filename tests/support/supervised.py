"""A supervisor over tiny real children (`child_program.py`): its files, its process, what its children were told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHILD = ROOT / "tests" / "support" / "child_program.py"
LIMIT_S = 15.0

RUN = """
import os, sys
from pathlib import Path
from gateway.supervisor import Commands, run
child = (sys.executable, "-S", sys.argv[2])
sys.exit(run(Path(sys.argv[1]), os.environ, Commands(child, child, float(sys.argv[3]), replicator=child)))
"""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait for `condition` to give something true, and return that."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"not within {limit_s} s: {what}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Gateway:
    """One `serve` with test children: its files, its process, what its children were told."""

    def __init__(self, directory: Path, workers: int = 2, limit: str = "5s", grace: str = "100ms") -> None:
        self.state = directory / "state"
        self.http, self.hop, self.admin = free_ports(3)
        self.config = directory / "gateway.yaml"
        (directory / "tenants.yaml").write_text("tenants: {}\n")
        self.config.write_text(
            f"region: here\nlisten: {{http: '127.0.0.1:{self.http}', hop: '127.0.0.1:{self.hop}',"
            f" admin: '127.0.0.1:{self.admin}'}}\nworkers: {workers}\nstate_dir: {self.state}\n"
            f"drain: {{grace: {grace}, limit: {limit}}}\ntenant_map: {{file: tenants.yaml}}\n"
            "hop_keys: ['0123456789abcdef0123456789abcdef']\n"
            "regions: {here: {public: 'http://{tenant}.here.test'}}\n"
            "clusters: {app: {endpoints: ['127.0.0.1:9']}}\ntenancy: {resolvers: [{host: '{tenant}.test'}]}\n"
        )
        self.errors = directory / "stderr"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, start_limit_s: float = 20.0, before: Sequence[str] = (), pass_fds: Sequence[int] = (), **environ: str
    ) -> subprocess.Popen[bytes]:
        """`before`: what is run in front, and becomes it; `environ` is added to ours."""
        with open(self.errors, "ab") as errors:
            process = subprocess.Popen(
                [sys.executable, *before, "-c", RUN, str(self.config), str(CHILD), str(start_limit_s)],
                cwd=ROOT,
                env={**os.environ, **environ},
                pass_fds=pass_fds,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )
        self.processes.append(process)
        return process

    def serving(self, workers: int = 2) -> dict[str, Any]:
        """Wait until control was told that all serve; what it was told."""

        def all_serve() -> dict[str, Any] | None:
            told = self.told("control", "processes")
            if told and [w["state"] for w in told[-1]["workers"]] == ["serving"] * workers:
                return told[-1]
            return None

        result: dict[str, Any] = until(all_serve, "every worker serves")
        return result

    def events(self) -> list[dict[str, Any]]:
        try:
            text = (self.state / "events").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def told(self, who: str, command: str) -> list[dict[str, Any]]:
        return [e["got"] for e in self.events() if e["who"] == who and e.get("got", {}).get("cmd") == command]

    def starts(self, who: str) -> list[dict[str, Any]]:
        return [e for e in self.events() if e["who"] == who and "started" in e]

    def pids(self) -> set[int]:
        return {e["pid"] for e in self.events()}

    def behave(self, who: str, how: str) -> None:
        self.state.mkdir(exist_ok=True, mode=0o700)
        (self.state / f"behave-{who}").write_text(how)

    def answer(self, port: int | None = None) -> str:
        """Which child took a new connection."""
        with socket.create_connection(("127.0.0.1", port or self.http), timeout=LIMIT_S) as sock:
            return sock.makefile().readline().strip()

    def log(self) -> str:
        return self.errors.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.processes[-1].send_signal(number)
        return self.processes[-1].wait(LIMIT_S)

    def end(self) -> None:
        """Leave no process behind, however the test ended."""
        for process in self.processes:
            process.kill()
            process.wait()
        for pid in self.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(alive, self.pids())), "no child is left")
