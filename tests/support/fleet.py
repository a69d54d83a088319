"""Whole regions for tests: per region one `landbridge serve` on real sockets, before an application that records.

All of a fleet's gateways watch one tenants file. Everything lives in one folder, on ports that were free.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from gateway.core.conditions import Conditions
from gateway.core.view import View
from gateway.settings.loader import load, read_sources
from gateway.settings.view import build_view
from gateway.supervisor import child_environ, python_module
from tests.support.client import Reply, once
from tests.support.origin import Answer, Origin, Seen
from tests.support.processes import alive, children, free_ports

US, EU, AP = REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-2")
KEY = "0123456789abcdef0123456789abcdef"
LIMIT_S = 30.0
"""Longer than anything takes on a busy machine: it only bounds a failure."""
START_LIMIT_S = 90.0
"""As that, for the processes of several gateways at once."""

TENANTS = """\
tenants:
  acme:
    home: us-east-1
  globex:
    home: eu-west-1
  initech:
    home: ap-southeast-2
  umbrella:
    home: us-east-1
    standby: [eu-west-1]
    failover: all
"""
HEALTH = b"GET /healthz "
T = TypeVar("T")


async def until(holds: Callable[[], Awaitable[T]], what: str, limit_s: float = LIMIT_S) -> T:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + limit_s
    while not (found := await holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        await asyncio.sleep(0.01)
    return found


def request(
    host: str, path: str = "/x", method: str = "GET", lines: Sequence[str | bytes] = (), body: bytes = b""
) -> bytes:
    """A request as bytes: `lines` are further field lines, as they shall go out."""
    head = [f"{method} {path} HTTP/1.1".encode(), f"Host: {host}".encode()]
    head += [line.encode() if isinstance(line, str) else line for line in lines]
    if body:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"\r\n"]) + body


def says(region: str) -> Answer:
    """An application's answer: who it is, whom it served for, and over which hops the request came."""

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        found = {"region": region, "tenant": seen.value("x-tenant"), "hops": seen.value("x-gateway-hops")}
        body = json.dumps(found).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nX-Region: %b\r\nContent-Length: %d\r\n\r\n" % (region.encode(), len(body)))
        writer.write(b"" if seen.start.startswith(b"HEAD ") else body)
        await writer.drain()
        return True

    return answer


@dataclass
class Gateway:
    """One region: its gateway's process and files, and its application. `more` is added to its configuration."""

    region: str
    folder: Path
    http: int
    hop: int
    admin: int
    application: Origin
    more: str = ""
    workers: int = 1
    drain: str = "{grace: 100ms, limit: 3s}"
    process: subprocess.Popen[bytes] | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    """What its processes have besides ours."""
    started: set[int] = field(default_factory=set)
    """Every process that was ever seen below the supervisor."""

    @property
    def config(self) -> Path:
        return self.folder / "gateway.yaml"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """Everything that supervisor, control and workers said."""
        return (self.folder / "log").read_text(errors="backslashreplace")

    def access_lines(self) -> list[bytes]:
        path = self.folder / "access.log"
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    def asked(self) -> list[Seen]:
        """What the application was asked, but for health checks."""
        return [seen for seen in self.application.requests if not seen.start.startswith(HEALTH)]

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LANDBRIDGE")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*python_module("gateway"), "serve", "-c", "gateway.yaml"],
                cwd=self.folder,
                env=child_environ({**environ, **self.environ}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self, limit_s: float = LIMIT_S) -> int:
        """The exit code, once every process of this gateway is gone."""
        assert self.process is not None
        process = self.process
        self.started |= set(children(process.pid))

        async def gone() -> bool:
            return process.poll() is not None

        await until(gone, f"{self.region} ends", limit_s)
        left = [pid for pid in self.started if alive(pid)]
        assert not left, f"{self.region} left processes behind: {left}"
        return process.returncode

    async def stop(self) -> None:
        """End it as a test's last act, whatever state it is in."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        self.started |= set(children(process.pid))
        self.signal(signal.SIGTERM)
        try:
            await self.ended()
        except AssertionError:
            process.kill()
            process.wait()
            for pid in self.started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise

    async def ready(self) -> bool:
        """Whether it is ready, all workers serve, and every peer was asked. AssertionError when it cannot become so."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        assert "it is started again in" not in self.log(), self.log()
        with contextlib.suppress(OSError, EOFError):
            reply = await once(self.admin, request("localhost", "/readyz"))
            if reply.status != 200 or len(await self.serving()) != self.workers:
                return False
            return all(row["here"] or row["probed"] for row in (await self.api("regions"))["regions"])
        return False

    async def api(self, what: str) -> Any:
        reply = await once(self.admin, request("localhost", f"/api/v1/{what}"))
        assert reply.status == 200, reply.body
        return json.loads(reply.body)

    async def pids(self) -> dict[str, Any]:
        """`pids` of the status: supervisor, control, workers."""
        pids: dict[str, Any] = (await self.api("status"))["pids"]
        self.started |= {pids["control"], *(worker["pid"] for worker in pids["workers"])} - {0}
        return pids

    async def serving(self) -> list[int]:
        """The pids of the workers that serve."""
        return [worker["pid"] for worker in (await self.pids())["workers"] if worker["state"] == "serving"]

    async def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of a scrape, by name and sorted labels."""
        reply = await once(self.admin, request("localhost", "/metrics"))
        assert reply.status == 200, reply.body
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(reply.body.decode())
            for sample in family.samples
        }

    async def metric(self, name: str, **labels: str) -> float:
        """One sample; 0 for a series that nothing has counted yet."""
        return (await self.metrics()).get((name, tuple(sorted(labels.items()))), 0.0)

    async def logged(self, text: str) -> None:
        async def has() -> bool:
            return text in self.log()

        await until(has, f"{text!r} is in the log of {self.region}")

    def view(self) -> View:
        """The View of its configuration file, all clusters able to serve: to sign with, as its workers would."""
        return build_view(load(read_sources(self.config, {}), {}), Conditions(), 0)


class Fleet:
    """`fleet[US]` is a region's gateway, `fleet[f"{US}/2"]` its second; `tenants` the file that all of them watch."""

    def __init__(self, folder: Path, names: Iterable[str] = REGIONS, tenants: str = TENANTS) -> None:
        self.folder = folder
        self.tenants = folder / "tenants.yaml"
        self.tenants.write_text(tenants)
        self.gateways: dict[str, Gateway] = {}
        for name in names:
            region, place = name.partition("/")[0], folder / name.replace("/", ".")
            place.mkdir()
            http, hop, admin = free_ports(3)
            self.gateways[name] = Gateway(region, place, http, hop, admin, Origin(says(region)))

    @property
    def regions(self) -> dict[str, list[Gateway]]:
        """Each region's gateways."""
        found: dict[str, list[Gateway]] = {}
        for gateway in self.gateways.values():
            found.setdefault(gateway.region, []).append(gateway)
        return found

    def __getitem__(self, region: str) -> Gateway:
        return self.gateways[region]

    async def start(self) -> Fleet:
        """Start everything; returns once every gateway is ready and has heard from every other."""
        for gateway in self.gateways.values():
            if not gateway.application.port:
                await gateway.application.start()
            gateway.config.write_text(self.configuration(gateway))
            gateway.start()
        for gateway in self.gateways.values():
            await until(gateway.ready, f"{gateway.region} is ready", START_LIMIT_S)
        return self

    async def stop(self) -> None:
        """Stop everything; AssertionError when a gateway left a process, or a traceback in its log."""
        ends = await asyncio.gather(*(g.stop() for g in self.gateways.values()), return_exceptions=True)
        for gateway in self.gateways.values():
            await gateway.application.stop()
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        for gateway in self.gateways.values():
            assert "Traceback" not in gateway.log(), gateway.log()

    def configuration(self, gateway: Gateway) -> str:
        """A whole gateway.yaml. Short times, so that tests are: checks each second, failures and grace in less."""
        regions = "".join(
            f'  {region}: {{public: "http://{{tenant}}.{region}.demo.test:{others[0].http}", '
            f"gateways: {json.dumps([f'127.0.0.1:{self.hop_port(gateway, other)}' for other in others])}}}\n"
            for region, others in self.regions.items()
        )
        return f"""\
region: {gateway.region}
fleet: test
listen: {{http: "127.0.0.1:{gateway.http}", hop: "127.0.0.1:{gateway.hop}", admin: "127.0.0.1:{gateway.admin}"}}
workers: {gateway.workers}
state_dir: state
regions:
{regions}hop_keys: [{KEY}]
clusters:
  app:
    endpoints: ["127.0.0.1:{gateway.application.port}"]
    timeouts: {{response: 10s}}
    health: {{path: /healthz, interval: 1s, healthy: 2, unhealthy: 2}}
tenancy:
  resolvers:
    - host: "{{tenant}}.demo.test"
    - header: X-Org
tenant_map: {self.tenant_map(gateway)}
drain: {gateway.drain}
access_log: {{path: access.log}}
{gateway.more}"""

    def tenant_map(self, gateway: Gateway) -> str:
        """Where this gateway has its tenants from."""
        return "{file: ../tenants.yaml}"

    def hop_port(self, gateway: Gateway, other: Gateway) -> int:
        """Where this gateway reaches the hop listener of another."""
        return other.hop

    async def ask(
        self,
        entry: str,
        tenant: str,
        path: str = "/x",
        method: str = "GET",
        lines: Sequence[str | bytes] = (),
        body: bytes = b"",
    ) -> Reply:
        """One request on a connection of its own, to the gateway of region `entry`."""
        return await once(self[entry].http, request(f"{tenant}.demo.test", path, method, lines, body))

    async def served_by(self, entry: str, tenant: str) -> str | None:
        """The region whose application answered; None for an error."""
        reply = await self.ask(entry, tenant)
        return reply.value("x-region") if reply.status == 200 else None

    def forget(self) -> None:
        """Start the applications' records afresh."""
        for gateway in self.gateways.values():
            gateway.application.requests.clear()

    def asked(self) -> list[tuple[str, Seen]]:
        """(region, request) of everything that the applications were asked, region by region."""
        return [(g.region, seen) for g in self.gateways.values() for seen in g.asked()]


def landbridge(gateway: Gateway, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What a command says with --json, run where the gateway's configuration is. Blocks."""
    environ = child_environ({k: v for k, v in os.environ.items() if not k.startswith("LANDBRIDGE")})
    command = [*python_module("gateway"), *arguments, "-c", "gateway.yaml", "--json"]
    done = subprocess.run(command, cwd=gateway.folder, env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    return found


def flag_of(reply: Reply) -> str:
    """The flag of an answer of the gateway itself."""
    return str(json.loads(reply.body)["flag"])


@asynccontextmanager
async def fleet(
    folder: Path,
    regions: Iterable[str] = REGIONS,
    tenants: str = TENANTS,
    elsewhere: Mapping[str, int] = MappingProxyType({}),
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """A started fleet; `settings` are fields of every `Gateway`. `elsewhere`: ports of applications not run here."""
    made = Fleet(folder, regions, tenants)
    for gateway in made.gateways.values():
        gateway.application.port = elsewhere.get(gateway.region, 0)
        for name, value in settings.items():
            setattr(gateway, name, value)
    try:
        yield await made.start()
    finally:
        await made.stop()
