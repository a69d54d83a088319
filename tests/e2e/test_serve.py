"""`landbridge serve` with its real workers and control: what dies costs its own requests only, and drains lose none."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.supervisor import child_environ, python_module

LIMIT_S = 30.0
HOST = {"Host": "acme.example.test"}


class Application(http.server.ThreadingHTTPServer):
    """Answers `ok`; `/slow` waits until `release` is set, and sets `waiting` while it does."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        self.waiting, self.release = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Answer)
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()

    def handle_error(self, *_: object) -> None:
        """A client that was killed is what these tests are about."""


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Application

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.server.waiting.set()
            self.server.release.wait(LIMIT_S)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Gateway:
    """One region's gateway with two workers, before one application."""

    def __init__(self, folder: Path, application: Application) -> None:
        self.http, self.hop, self.admin = free_ports(3)
        self.folder = folder
        self.config = folder / "gateway.yaml"
        self.log = folder / "log"
        self.config.write_text(
            f"region: here\nlisten: {{http: '127.0.0.1:{self.http}', hop: '127.0.0.1:{self.hop}',"
            f" admin: '127.0.0.1:{self.admin}'}}\nworkers: 2\nstate_dir: state\n"
            "regions: {here: {public: 'http://{tenant}.here.test'}}\n"
            "hop_keys: [0123456789abcdef0123456789abcdef]\n"
            f"clusters: {{app: {{endpoints: ['127.0.0.1:{application.server_port}']}}}}\n"
            "tenancy: {resolvers: [{host: '{tenant}.example.test'}]}\ntenant_map: {file: tenants.yaml}\n"
            "drain: {grace: 500ms, limit: 5s}\naccess_log: {path: none}\nprobes: {live: /healthz}\n"
        )
        (folder / "tenants.yaml").write_text("tenants: {acme: {home: here}}\n")
        self.process = self.start()
        self.seen: set[int] = set()

    def start(self) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LANDBRIDGE")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*python_module("gateway"), "serve", "-c", "gateway.yaml"],
                cwd=self.folder,
                env=child_environ(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.process

    def ask(self, path: str, headers: dict[str, str] = HOST, port: int | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http, timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("/readyz", {})[0] == 200 and len(self.pids()["workers"]) == 2
        return False

    def pids(self) -> dict[str, Any]:
        """As the status tells them, once every worker serves; {"workers": []} before."""
        try:
            status, body = self.ask("/api/v1/status", {}, self.admin)
        except (OSError, http.client.HTTPException):
            return {"workers": []}
        pids: dict[str, Any] = json.loads(body)["pids"] if status == 200 else {"workers": []}
        self.seen |= {pids.get("control") or 0, *(worker["pid"] for worker in pids["workers"])} - {0}
        return pids if all(worker["state"] == "serving" for worker in pids["workers"]) else {"workers": []}

    def settled(self, other_than: int) -> dict[str, Any]:
        """The pids once two workers serve, none of them `other_than`, nor control."""

        def replaced() -> dict[str, Any] | None:
            pids = self.pids()
            known = {pids.get("control"), *(worker["pid"] for worker in pids["workers"])}
            return pids if len(pids["workers"]) == 2 and other_than not in known else None

        return dict(until(replaced, f"{other_than} is replaced"))

    def requests(self) -> int:
        """The sum of landbridge_requests_total."""
        text = self.ask("/metrics", {}, self.admin)[1].decode()
        lines = [line for line in text.splitlines() if line.startswith("landbridge_requests_total{")]
        return int(sum(float(line.rpartition(" ")[2]) for line in lines))


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.release.set()
    application.shutdown()
    application.server_close()


@pytest.fixture
def gateway(tmp_path: Path, application: Application) -> Iterator[Gateway]:
    application.release.clear()
    application.waiting.clear()
    gateway = Gateway(tmp_path, application)
    try:
        until(gateway.ready, "it is ready")
        yield gateway
        assert "Traceback" not in gateway.log.read_text(), gateway.log.read_text()
    finally:
        application.release.set()
        gateway.process.send_signal(signal.SIGTERM)
        try:
            gateway.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            gateway.process.kill()
            gateway.process.wait()
        until(lambda: not any(map(alive, gateway.seen)), "no child is left")


class Load:
    """Keep-alive GETs on `count` connections, each in a thread of its own; a connection that failed is made again."""

    def __init__(self, gateway: Gateway, count: int = 16) -> None:
        self.gateway = gateway
        self.enough = threading.Event()
        self.done = [0] * count
        self.failed: list[list[str]] = [[] for _ in range(count)]
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, n: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.http, timeout=LIMIT_S)
        while not self.enough.is_set():
            try:
                connection.request("GET", "/x", headers=HOST)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failed[n].append(str(response.status))
                else:
                    self.done[n] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failed[n].append(repr(error))
                connection.close()
        connection.close()

    def goes_on(self) -> None:
        """Wait until every connection has had ten more answers."""
        before = list(self.done)
        until(lambda: all(now >= then + 10 for now, then in zip(self.done, before, strict=True)), "all are answered")


def test_a_killed_worker_costs_its_own_requests_only(gateway: Gateway) -> None:
    victim = gateway.pids()["workers"][0]["pid"]
    with Load(gateway) as load:
        before = gateway.requests()
        os.kill(victim, signal.SIGKILL)
        gateway.settled(victim)
        load.goes_on()
        after = gateway.requests()
    assert all(len(failed) <= 1 for failed in load.failed), load.failed
    assert sum(map(len, load.failed)) < len(load.failed), "the other worker's connections did not notice"
    assert after > before
    assert gateway.requests() >= sum(load.done), "the killed worker's counters are still there"


def test_a_killed_control_costs_nothing(gateway: Gateway) -> None:
    victim = gateway.pids()["control"]
    with Load(gateway) as load:
        before = gateway.requests()
        os.kill(victim, signal.SIGKILL)
        gateway.settled(victim)
        load.goes_on()
        after = gateway.requests()
    assert not any(load.failed), load.failed
    assert after > before


def test_workers_need_no_control_not_even_to_start(gateway: Gateway) -> None:
    pids = gateway.pids()
    os.kill(pids["control"], signal.SIGSTOP)
    try:
        for worker in pids["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        for _ in range(20):
            assert gateway.ask("/x") == (200, b"ok")
        assert gateway.ask("/readyz", {})[0] == 200
    finally:
        os.kill(pids["control"], signal.SIGCONT)
    gateway.settled(pids["workers"][0]["pid"])


def test_a_drain_finishes_what_is_in_hand_and_lets_nothing_in(gateway: Gateway, application: Application) -> None:
    children = gateway.pids()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.http, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/slow", headers=HOST)
        assert application.waiting.wait(LIMIT_S)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        until(lambda: gateway.ask("/readyz", {}, gateway.admin)[0] == 503, "it is not ready any more")
        assert gateway.ask("/x") == (200, b"ok"), "the grace is for those who have not heard"

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", gateway.http), timeout=LIMIT_S).close()
            except ConnectionRefusedError:
                return True
            return False

        until(refused, "new connections are refused")
        assert 0.4 < time.monotonic() - began < 4.0
        assert gateway.process.poll() is None
        application.release.set()
        response = connection.getresponse()
        assert (response.status, response.getheader("Connection"), response.read()) == (200, "close", b"ok")
    assert gateway.process.wait(LIMIT_S) == 0
    assert time.monotonic() - began < 5.0, "nothing is in hand any more: no need to wait for the limit"
    assert not any(alive(worker["pid"]) for worker in children["workers"])


def test_what_is_left_at_the_limit_is_cut(gateway: Gateway, application: Application) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.http, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/slow", headers=HOST)
        assert application.waiting.wait(LIMIT_S)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(LIMIT_S) == 0
        assert 4.0 < time.monotonic() - began < 7.5
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()


def test_a_reload_takes_effect_in_place_or_changes_nothing(gateway: Gateway) -> None:
    before = gateway.pids()
    text = gateway.config.read_text()
    with Load(gateway, 4) as load:
        gateway.config.write_text(text.replace("live: /healthz", "live: /alive"))
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: gateway.ask("/alive", {})[0] == 200, "the new probe answers")
        gateway.config.write_text(text.replace("live: /healthz", "live: 7s7"))
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: "gateway.yaml:12:" in gateway.log.read_text(), "the mistake is named")
        assert gateway.ask("/alive", {})[0] == 200
        load.goes_on()
    assert not any(load.failed), load.failed
    assert gateway.pids() == before


def test_after_kill_9_of_the_supervisor_a_new_serve_takes_over(gateway: Gateway) -> None:
    old = gateway.pids()
    children = [old["control"], *(worker["pid"] for worker in old["workers"])]
    gateway.process.kill()
    gateway.process.wait()
    gateway.start()
    until(gateway.ready, "the new one is ready")
    assert not any(map(alive, children))
    assert gateway.ask("/x") == (200, b"ok")
