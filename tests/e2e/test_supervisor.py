"""The supervisor with tiny real children (`tests/support/child_program.py`) on real sockets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.children import ALIVE, BACKOFF_MAX_S, SAID, SETTLED_S, Child, Phase, backoff
from gateway.settings.loader import decode_sources, encode_sources, load, read_sources
from gateway.supervisor import child_environ, python_module
from tests.support.supervised import LIMIT_S, Gateway, alive, free_ports, until


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.end()


def test_backoff_starts_at_once_doubles_and_ends() -> None:
    assert [backoff(n) for n in range(1, 9)] == [0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert backoff(10_000) == BACKOFF_MAX_S


def test_who_served_long_enough_is_started_again_at_once() -> None:
    child = Child("worker 0", 0)
    assert [child.wait_again(1.0) for _ in range(4)] == [0.0, 0.0, 0.25, 0.5]
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
        "replicator": None,
        "restarts": {"worker": 0, "control": 0, "replicator": 0},
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
    assert gateway.serving(1)["restarts"] == {"worker": 1, "control": 0, "replicator": 0}
    assert f"worker 0 (pid {first}) was killed by SIGKILL; it is started again at once" in gateway.log()


def test_a_slot_in_back_off_is_served_by_its_sibling_until_it_is_back(gateway: Gateway) -> None:
    gateway.behave("worker-1", "die")
    gateway.start()
    until(lambda: gateway.told("worker-0", "adopt"), "worker 0 adopts slot 1")
    assert gateway.told("worker-0", "adopt") == [{"cmd": "adopt", "slots": [1]}]
    sibling = gateway.starts("worker-0")[0]["pid"]
    assert {gateway.answer() for _ in range(40)} == {f"worker-0 {sibling}"}
    until(lambda: "started again in 0.25 s" in gateway.log(), "it has died three times")
    gateway.behave("worker-1", "")
    until(lambda: gateway.told("worker-0", "release"), "worker 0 releases slot 1")
    assert gateway.told("worker-0", "release") == [{"cmd": "release", "slots": [1]}]
    until(lambda: len({gateway.answer() for _ in range(10)}) == 2, "both answer")
    assert "started again at once" in gateway.log()


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


# --- replacements


def serving_pids(gateway: Gateway) -> list[int]:
    """The pids of the workers that serve, by slot, as control was told last."""
    told = gateway.told("control", "processes")[-1]
    return [w["pid"] for w in told["workers"] if w["state"] == "serving"]


def report(gateway: Gateway) -> dict[str, Any]:
    """How control was told that the last replacement went, once none is under way."""

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = gateway.told("control", "processes")[-1]["replacements"]
        return found if found["result"] and not found["running"] else None

    result: dict[str, Any] = until(ended, "a replacement has ended")
    return result


def candidate(gateway: Gateway, edit: Callable[[str], str]) -> None:
    """Leave another configuration where control would, and have control ask for it."""
    gateway.config.write_text(edit(gateway.config.read_text()))
    sources = read_sources(gateway.config, {})
    (gateway.state / "config.candidate").write_bytes(encode_sources(sources))
    (gateway.state / "say-control").write_text(json.dumps({"ask": "replace", "ticket": 7, "configuration": True}))
    os.kill(gateway.starts("control")[-1]["pid"], signal.SIGUSR1)


def answered(gateway: Gateway) -> str:
    """What control was told of its wish: why nothing changed, or ""."""
    until(lambda: gateway.told("control", "replaced"), "control is answered")
    told = gateway.told("control", "replaced")[-1]
    assert told["ticket"] == 7
    return str(told["why"])


def test_sigusr2_replaces_slot_after_slot(gateway: Gateway) -> None:
    process = gateway.start()
    gateway.serving()
    old = serving_pids(gateway)
    process.send_signal(signal.SIGUSR2)
    until(lambda: len(serving_pids(gateway)) == 2 and not set(old) & set(serving_pids(gateway)), "both are replaced")
    assert report(gateway) == {
        "running": False,
        "cause": "SIGUSR2",
        "result": "done",
        "why": "",
        "done": 1,
        "failed": 0,
    }
    for slot in (0, 1):  # told in time, but written down by the child in its own
        until(partial(gateway.told, f"worker-{slot}", "retire"), f"worker {slot} has heard that it retires")
        assert gateway.told(f"worker-{slot}", "retire") == [{"cmd": "retire", "keep": []}]
    order = [
        (e["who"], "started" if "started" in e else e["got"]["cmd"]) for e in gateway.events() if e["pid"] not in old
    ]
    assert order.index(("worker-0", "started")) < order.index(("worker-1", "started"))
    until(lambda: not any(map(alive, old)), "the replaced are gone")
    assert gateway.told("control", "processes")[-1]["restarts"] == {"worker": 0, "control": 0, "replicator": 0}


def test_a_newcomer_that_fails_leaves_who_serves(gateway: Gateway) -> None:
    process = gateway.start()
    gateway.serving()
    old = serving_pids(gateway)
    gateway.behave("worker-0", "die")
    process.send_signal(signal.SIGUSR2)
    assert report(gateway)["why"] == "worker 0 exited with 3"
    assert report(gateway)["failed"] == 1
    assert serving_pids(gateway) == old
    assert {int(gateway.answer().split()[1]) for _ in range(20)} <= set(old)
    assert "replacing workers (SIGUSR2) failed, nothing changes: worker 0 exited with 3" in gateway.log()


def test_a_replaced_worker_that_stays_is_listed_and_ends_with_the_gateway(gateway: Gateway) -> None:
    gateway.config.write_text(gateway.config.read_text().replace("limit: 5s", "limit: 2s"))
    gateway.behave("worker-1", "stay")
    process = gateway.start()
    gateway.serving()
    old = serving_pids(gateway)
    gateway.behave("worker-1", "")
    process.send_signal(signal.SIGUSR2)
    report(gateway)
    shown = [(w["slot"], w["state"]) for w in gateway.told("control", "processes")[-1]["workers"]]
    assert sorted(shown) == [(0, "serving"), (1, "draining"), (1, "serving")]
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
    assert not alive(old[1])


def test_another_number_of_workers_and_another_address(gateway: Gateway) -> None:
    gateway.start()
    gateway.serving()
    old, before = serving_pids(gateway), gateway.http
    (gateway.http,) = free_ports(1)
    candidate(gateway, lambda t: t.replace("workers: 2", "workers: 3").replace(f":{before}'", f":{gateway.http}'"))
    assert answered(gateway) == ""
    gateway.serving(3)
    assert len({gateway.answer() for _ in range(60)}) == 3
    assert not set(old) & set(serving_pids(gateway))
    assert gateway.told("worker-0", "retire") == [{"cmd": "retire", "keep": ["http"]}], "it is served for the grace"
    last_good = decode_sources((gateway.state / "config.last-good").read_bytes())
    assert load(last_good, {}).workers == 3
    candidate(gateway, lambda t: t.replace("workers: 3", "workers: 1"))
    until(lambda: len(gateway.told("control", "replaced")) == 2, "fewer are taken in too")
    gateway.serving(1)
    survivor = serving_pids(gateway)[0]
    assert sorted(slot for told in gateway.told("worker-0", "adopt") for slot in told["slots"]) == [1, 2]
    assert {gateway.answer() for _ in range(60)} == {f"worker-0 {survivor}"}, "sockets of removed slots are served"


@pytest.mark.parametrize(
    ("how", "why"), [("fail", "filters/mine.py:3: no such name"), ("mute", "did not serve within")]
)
def test_a_configuration_whose_workers_fail_changes_nothing(gateway: Gateway, how: str, why: str) -> None:
    gateway.start(start_limit_s=1.0)
    gateway.serving()
    old, before = serving_pids(gateway), gateway.http
    good = (gateway.state / "config.last-good").read_bytes()
    (other,) = free_ports(1)
    gateway.behave("worker-1", how)
    candidate(gateway, lambda t: t.replace("workers: 2", "workers: 3").replace(f":{before}'", f":{other}'"))
    assert why in answered(gateway)
    assert serving_pids(gateway) == old
    assert not gateway.told("worker-0", "accept"), "the one that was ready never accepted"
    assert (gateway.state / "config.last-good").read_bytes() == good
    assert not (gateway.state / "config.next").exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", other))
    os.kill(old[0], signal.SIGKILL)
    until(
        lambda: len(serving_pids(gateway)) == 2 and old[0] not in serving_pids(gateway), "who dies comes back as before"
    )
    (again,) = (start for start in gateway.starts("worker-0") if start["pid"] == serving_pids(gateway)[0])
    assert "--settings" not in again["started"]


def test_a_drain_ends_a_replacement_that_is_under_way(gateway: Gateway) -> None:
    process = gateway.start()
    gateway.serving()
    gateway.behave("worker-1", "mute")
    candidate(gateway, lambda text: text.replace("workers: 2", "workers: 3"))
    until(lambda: len(gateway.starts("worker-1")) == 2, "a newcomer hangs")
    process.send_signal(signal.SIGTERM)
    assert answered(gateway) == "the gateway is draining"
    assert process.wait(LIMIT_S) == 0
    assert not any(map(alive, gateway.pids()))


def test_a_control_that_is_killed_does_not_end_a_replacement(gateway: Gateway) -> None:
    gateway.start(start_limit_s=5.0)
    gateway.serving()
    old = serving_pids(gateway)
    gateway.behave("worker-1", "slow")
    candidate(gateway, lambda text: text.replace("workers: 2", "workers: 3"))
    until(lambda: len(gateway.starts("worker-1")) == 2, "a newcomer takes its time")
    os.kill(gateway.starts("control")[0]["pid"], signal.SIGKILL)
    until(lambda: len(gateway.starts("control")) == 2, "control is started again")
    (gateway.state / "go-worker-1").touch()
    gateway.serving(3)
    assert not set(old) & set(serving_pids(gateway))
    assert gateway.told("control", "replaced") == [], "the new control has asked for nothing"


# --- systemd


class Manager:
    """The other end of NOTIFY_SOCKET: a real datagram socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(LIMIT_S)

    def hears(self, name: str) -> dict[str, str]:
        """The next datagram that says `name`."""
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            said = dict(line.split("=", 1) for line in lines)
            if name in said:
                return said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


def test_the_service_manager_is_told(gateway: Gateway, manager: Manager) -> None:
    process = gateway.start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="400000")
    ready = manager.hears("READY")
    assert ready == {"READY": "1", "STATUS": "2 of 2 workers serve"}
    began = time.monotonic()
    for _ in range(3):
        assert manager.hears("WATCHDOG") == {"WATCHDOG": "1"}
    assert 0.3 < time.monotonic() - began < 2.0
    gateway.serving()
    process.send_signal(signal.SIGUSR2)
    reloading = manager.hears("RELOADING")
    assert 0 <= time.monotonic() - int(reloading["MONOTONIC_USEC"]) / 1e6 < 5
    assert manager.hears("READY")["STATUS"] == "2 of 2 workers serve"
    process.send_signal(signal.SIGHUP)
    assert manager.hears("RELOADING")["STATUS"] == "reading the configuration again"
    (gateway.state / "say-control").write_text('{"done": "reload"}')
    os.kill(gateway.starts("control")[-1]["pid"], signal.SIGUSR1)
    assert manager.hears("READY")["READY"] == "1"
    process.send_signal(signal.SIGTERM)
    assert manager.hears("STOPPING")["STOPPING"] == "1"
    assert process.wait(LIMIT_S) == 0
    assert [e["environ"] for e in gateway.events() if e.get("environ")] == [], "no child can speak for the gateway"


ACTIVATE = """
import os, sys
names, fds = sys.argv[1].split(":"), [int(fd) for fd in sys.argv[2].split(",")]
for place, fd in enumerate(fds):
    os.dup2(fd, 3 + place, inheritable=True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@pytest.mark.parametrize("share", [True, False])
def test_passed_sockets_are_served_and_outlive_us(gateway: Gateway, share: bool) -> None:
    """With ReusePort= every slot gets a socket of its own; without, the slots share the one that was passed."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for port in (gateway.http, gateway.admin):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share))
            sock.bind(("127.0.0.1", port))
            sock.listen()
            sockets.append(sock)
        high = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in sockets]
        for fd in high:
            stack.callback(os.close, fd)
        process = gateway.start(before=["-c", ACTIVATE, "http:admin", ",".join(map(str, high))], pass_fds=high)
        gateway.serving()
        until(lambda: len({gateway.answer() for _ in range(40)}) == 2, "both slots take connections")
        given = gateway.starts("worker-0")[0]["started"]
        descriptors = given[given.index("--http") + 1].split(",")
        assert len(set(descriptors)) == (2 if share else 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        with socket.create_connection(("127.0.0.1", gateway.http), timeout=LIMIT_S):
            pass  # it waits in the queue of the manager's socket for the next start


@pytest.mark.parametrize(
    ("names", "why"),
    [("web", "descriptor 3 is named 'web'"), ("admin:admin", "more than one socket is named admin")],
)
def test_passed_sockets_that_cannot_be_used_are_named(gateway: Gateway, names: str, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        high = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for _ in names.split(":")]
        process = gateway.start(before=["-c", ACTIVATE, names, ",".join(map(str, high))], pass_fds=high)
        assert process.wait(LIMIT_S) == 1
        for fd in high:
            os.close(fd)
    assert why in gateway.log()
