"""The supervisor with tiny real children (`tests/support/child_program.py`) on real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.children import ALIVE, BACKOFF_MAX_S, SAID, SETTLED_S, Child, Phase, backoff
from gateway.supervisor import child_environ, python_module

ROOT = Path(__file__).resolve().parents[2]
CHILD = ROOT / "tests" / "support" / "child_program.py"
LIMIT_S = 15.0

RUN = """
import os, sys
from pathlib import Path
from gateway.supervisor import Commands, run
child = (sys.executable, "-S", sys.argv[2])
sys.exit(run(Path(sys.argv[1]), os.environ, Commands(child, child, float(sys.argv[3]))))
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

    def start(self, start_limit_s: float = 20.0) -> subprocess.Popen[bytes]:
        with open(self.errors, "ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(self.config), str(CHILD), str(start_limit_s)],
                cwd=ROOT,
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


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    yield gateway
    for process in gateway.processes:
        process.kill()
        process.wait()
    for pid in gateway.pids():
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, gateway.pids())), "no child is left")


def test_backoff_starts_at_once_doubles_and_ends() -> None:
    assert [backoff(n) for n in range(1, 9)] == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert backoff(10_000) == BACKOFF_MAX_S


def test_who_served_long_enough_is_started_again_at_once() -> None:
    child = Child("worker 0", 0)
    assert [child.wait_again(1.0) for _ in range(3)] == [0.0, 0.25, 0.5]
    assert child.in_backoff
    child.served = 10.0
    assert child.wait_again(10.0 + SETTLED_S - 0.1) == 1.0
    assert child.wait_again(10.0 + SETTLED_S) == 0.0
    assert (child.failures, child.in_backoff) == (1, False)


def test_what_a_child_may_say() -> None:
    said = {
        (phase, word): SAID.get((phase, word)) for phase in Phase for word in ("ready", "serving", "draining", "other")
    }
    moves = {key: phase for key, phase in said.items() if phase}
    assert moves == {
        (Phase.STARTING, "ready"): Phase.READY,
        (Phase.STARTING, "serving"): Phase.SERVING,
        (Phase.STARTING, "draining"): Phase.DRAINING,
        (Phase.READY, "draining"): Phase.DRAINING,
        (Phase.SERVING, "draining"): Phase.DRAINING,
    }
    assert set(ALIVE) == set(Phase) - {Phase.WAITING, Phase.GONE}


def test_children_are_found_from_any_directory(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "gateway").mkdir()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*python_module("gateway.cli.demo_app"), "--help"],
        cwd=tmp_path,
        env=child_environ(environ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_starts_serves_and_drains(gateway: Gateway) -> None:
    process = gateway.start()
    told = gateway.serving()
    control, workers = gateway.starts("control")[0]["pid"], [gateway.starts(f"worker-{n}")[0]["pid"] for n in (0, 1)]
    assert told == {
        "cmd": "processes",
        "supervisor": process.pid,
        "control": control,
        "workers": [{"slot": n, "pid": workers[n], "state": "serving"} for n in (0, 1)],
        "restarts": {"worker": 0, "control": 0},
        "replacements": {"running": False, "cause": "", "result": "", "why": "", "done": 0, "failed": 0},
    }
    assert gateway.answer().startswith("worker-")
    assert gateway.state.stat().st_mode & 0o777 == 0o700
    assert (gateway.state / "config.last-good").stat().st_mode & 0o777 == 0o600
    assert gateway.stop() == 0
    assert not any(map(alive, (control, *workers)))
    ends = [(e["who"], e["got"]["cmd"]) for e in gateway.events() if e.get("got", {}).get("cmd") in ("drain", "stop")]
    assert sorted(ends) == [("control", "drain"), ("control", "stop"), ("worker-0", "drain"), ("worker-1", "drain")]
    assert ends[-1] == ("control", "stop")
    assert "lost" not in str(gateway.events())


def test_sigint_is_sigterm(gateway: Gateway) -> None:
    gateway.start()
    gateway.serving()
    assert gateway.stop(signal.SIGINT) == 0
    assert gateway.told("worker-0", "drain")


def test_a_queued_connection_waits_for_the_replacement(gateway: Gateway) -> None:
    gateway.config.write_text(gateway.config.read_text().replace("workers: 2", "workers: 1"))
    gateway.start()
    gateway.serving(1)
    first = int(gateway.answer().split()[1])
    os.kill(first, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", gateway.http), timeout=LIMIT_S) as queued:
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        name, pid = queued.makefile().readline().split()
        assert time.monotonic() - began < 5.0
    assert name == "worker-0"
    assert int(pid) != first
    assert gateway.serving(1)["restarts"] == {"worker": 1, "control": 0}
    assert f"worker 0 (pid {first}) was killed by SIGKILL; it is started again at once" in gateway.log()


def test_a_slot_in_back_off_is_served_by_its_sibling_until_it_is_back(gateway: Gateway) -> None:
    gateway.behave("worker-1", "die")
    gateway.start()
    until(lambda: gateway.told("worker-0", "adopt"), "worker 0 adopts slot 1")
    assert gateway.told("worker-0", "adopt") == [{"cmd": "adopt", "slots": [1]}]
    sibling = gateway.starts("worker-0")[0]["pid"]
    assert {gateway.answer() for _ in range(40)} == {f"worker-0 {sibling}"}
    gateway.behave("worker-1", "")
    until(lambda: gateway.told("worker-0", "release"), "worker 0 releases slot 1")
    assert gateway.told("worker-0", "release") == [{"cmd": "release", "slots": [1]}]
    until(lambda: len({gateway.answer() for _ in range(10)}) == 2, "both answer")
    log = gateway.log()
    assert "started again at once" in log
    assert "started again in 0.25 s" in log


def test_when_the_sibling_dies_too_another_adopts(gateway: Gateway) -> None:
    gateway.config.write_text(gateway.config.read_text().replace("workers: 2", "workers: 3"))
    gateway.behave("worker-2", "die")
    gateway.start()
    adopter = until(
        lambda: next((w for w in ("worker-0", "worker-1") if gateway.told(w, "adopt")), None), "slot 2 is adopted"
    )
    other = "worker-1" if adopter == "worker-0" else "worker-0"
    os.kill(gateway.starts(adopter)[0]["pid"], signal.SIGKILL)
    until(lambda: {"cmd": "adopt", "slots": [2]} in gateway.told(other, "adopt"), "the other adopts slot 2")


def test_a_killed_control_is_started_again_and_workers_stay(gateway: Gateway) -> None:
    gateway.start()
    first = gateway.serving()
    os.kill(first["control"], signal.SIGKILL)
    until(lambda: len(gateway.starts("control")) == 2, "control is started again")
    second = until(lambda: gateway.told("control", "processes")[-1]["restarts"]["control"] == 1, "it is told so")
    assert second
    told = gateway.told("control", "processes")[-1]
    assert told["control"] == gateway.starts("control")[1]["pid"]
    assert told["workers"] == first["workers"]


def test_a_worker_that_never_serves_is_killed_and_counted(gateway: Gateway) -> None:
    gateway.behave("worker-1", "mute")
    gateway.start(start_limit_s=0.6)
    until(lambda: len(gateway.starts("worker-1")) >= 3, "it is started a third time")
    assert "did not serve within 0.6 s: killed" in gateway.log()
    assert gateway.told("worker-0", "adopt")
    assert gateway.told("control", "processes")[-1]["restarts"]["worker"] >= 2
    assert len(gateway.starts("worker-0")) == 1


def test_a_worker_that_drains_by_itself_is_stood_in_for_and_replaced(gateway: Gateway) -> None:
    gateway.start()
    drained = gateway.serving()["workers"][1]["pid"]
    os.kill(drained, signal.SIGTERM)
    until(lambda: gateway.told("worker-0", "adopt"), "worker 0 adopts slot 1")
    assert gateway.told("control", "processes")[-1]["workers"][1] == {"slot": 1, "pid": drained, "state": "draining"}
    sibling = gateway.starts("worker-0")[0]["pid"]
    assert {gateway.answer() for _ in range(20)} == {f"worker-0 {sibling}"}
    os.kill(drained, signal.SIGKILL)
    until(lambda: gateway.told("worker-0", "release"), "its replacement serves")


def test_reload_goes_to_control_only(gateway: Gateway) -> None:
    process = gateway.start()
    gateway.serving()
    process.send_signal(signal.SIGHUP)
    until(lambda: gateway.told("control", "reload"), "control reloads")
    assert process.poll() is None
    assert gateway.told("worker-0", "reload") == []


def test_a_child_that_does_not_read_holds_nobody_up(gateway: Gateway) -> None:
    gateway.behave("control", "deaf")
    process = gateway.start()
    until(lambda: gateway.starts("control") and gateway.starts("worker-0") and gateway.answer(), "a worker answers")
    deaf = gateway.starts("control")[0]["pid"]
    for _ in range(4000):
        process.send_signal(signal.SIGHUP)
    pid = gateway.starts("worker-0")[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(gateway.starts("worker-0")) == 2, "workers are replaced all the same")
    assert gateway.stop() == 0
    assert not alive(deaf)


def test_the_sockets_end_after_the_grace_and_the_workers_at_the_limit(gateway: Gateway) -> None:
    gateway.config.write_text(gateway.config.read_text().replace("limit: 5s", "limit: 2s"))
    gateway.behave("worker-0", "linger")
    gateway.behave("worker-1", "linger")
    process = gateway.start()
    told = gateway.serving()
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", gateway.http), timeout=1.0).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused, "new connections are refused")
    assert time.monotonic() - began < 1.9
    assert all(alive(worker["pid"]) for worker in told["workers"])
    assert process.wait(LIMIT_S) == 0
    assert 1.9 < time.monotonic() - began < 4.0
    assert "is still there after 2 s: killed" in gateway.log()
    assert not any(map(alive, gateway.pids()))


def test_a_second_signal_ends_everything_at_once(gateway: Gateway) -> None:
    gateway.behave("worker-0", "stay")
    process = gateway.start()
    gateway.serving()
    process.send_signal(signal.SIGTERM)
    until(lambda: gateway.told("worker-0", "drain"), "the drain began")
    began = time.monotonic()
    assert gateway.stop(signal.SIGINT) == 1
    assert time.monotonic() - began < 1.0
    until(lambda: not any(map(alive, gateway.pids())), "no child is left")


def test_an_invalid_configuration_is_2_with_every_problem(gateway: Gateway) -> None:
    text = gateway.config.read_text()
    gateway.config.write_text(text.replace("100ms", "soon").replace("workers: 2", "workers: many"))
    assert gateway.start().wait(LIMIT_S) == 2
    lines = gateway.log().splitlines()
    assert len(lines) == 2, lines
    assert all(str(gateway.config) in line and "expected" in line for line in lines)
    assert not gateway.state.exists()


@pytest.mark.parametrize("key", ["http", "hop", "admin"])
@pytest.mark.parametrize("share", [False, True])
def test_an_address_in_use_is_named_with_its_key(gateway: Gateway, key: str, share: bool) -> None:
    port = getattr(gateway, key)
    with socket.socket() as other:
        if share:  # without care, SO_REUSEPORT would let us in and split the other's connections
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert gateway.start().wait(LIMIT_S) == 1
    assert f"listen.{key}: cannot listen on 127.0.0.1:{port}: Address already in use" in gateway.log()
    assert gateway.events() == []


def test_a_second_serve_names_the_first(gateway: Gateway) -> None:
    first = gateway.start()
    gateway.serving()
    assert gateway.start().wait(LIMIT_S) == 1
    assert f"the gateway of process {first.pid} is using this state_dir" in gateway.log()
    assert gateway.answer().startswith("worker-")
    assert first.poll() is None


def test_after_kill_9_children_leave_and_a_new_serve_waits_for_them(gateway: Gateway) -> None:
    gateway.behave("worker-0", "cling")  # it is slow to go: it still holds the lock and the sockets
    first = gateway.start()
    told = gateway.serving()
    gateway.behave("worker-0", "")
    old = [told["control"], *(worker["pid"] for worker in told["workers"])]
    first.kill()
    first.wait()
    second = gateway.start()
    until(lambda: f"waiting up to 8 s for process {first.pid}" in gateway.log(), "it waits")
    assert second.poll() is None
    assert len(gateway.starts("control")) == 1
    os.kill(old[1], signal.SIGTERM)
    until(lambda: len(gateway.starts("control")) == 2, "the new one starts")
    assert not any(map(alive, old))
    gateway.serving()
    assert gateway.answer().startswith("worker-")
    assert gateway.stop() == 0


def test_a_serve_that_waited_in_vain_says_for_whom(gateway: Gateway) -> None:
    gateway.config.write_text(gateway.config.read_text().replace("limit: 5s", "limit: 500ms"))
    gateway.behave("worker-0", "cling")
    first = gateway.start()
    gateway.serving()
    first.kill()
    first.wait()
    assert gateway.start().wait(LIMIT_S) == 1
    assert f"process {first.pid} or its workers did not end in 3.5 s" in gateway.log()
    assert len(gateway.starts("control")) == 1
