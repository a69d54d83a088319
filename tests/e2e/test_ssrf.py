"""FAULTS 33: no request chooses where the gateway connects, or where it sends a client. Two regions, and honeypots.

A honeypot is a listener that no configuration names, at the very address that an attack asks for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.support.client import Reply, once
from tests.support.fleet import EU, US, Fleet, flag_of, fleet, request
from tests.support.processes import far_ends

pytestmark = pytest.mark.asyncio(loop_scope="module")

HTML = "Accept: text/html"


class Honeypot:
    """Counts who connects, and closes."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, address: str = "127.0.0.1", port: int = 0) -> Honeypot:
        self._server = await asyncio.start_server(self._count, address, port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


@dataclass
class Trap:
    """The fleet, the honeypots, and every address that a process of a gateway was seen to be connected to."""

    regions: Fleet
    honeypots: list[Honeypot]
    seen: set[tuple[str, int]] = field(default_factory=set)
    enough: threading.Event = field(default_factory=threading.Event)

    @property
    def target(self) -> str:
        """The first honeypot as `address:port`."""
        return f"127.0.0.1:{self.honeypots[0].port}"

    @property
    def configured(self) -> set[tuple[str, int]]:
        ports = [(g.hop, g.application.port) for g in self.regions.gateways.values()]
        return {("127.0.0.1", port) for pair in ports for port in pair}

    def look(self, pids: list[int]) -> None:
        listening = {port for g in self.regions.gateways.values() for port in (g.http, g.hop, g.admin)}
        for pid in pids:
            self.seen |= far_ends(pid, listening)

    def watch(self, pids: list[int]) -> None:
        while not self.enough.wait(0.005):
            self.look(pids)

    def stung(self) -> int:
        return sum(honeypot.connections for honeypot in self.honeypots)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trap]:
    folder: Path = tmp_path_factory.mktemp("ssrf")
    tenants = "tenants: {acme: {home: us-east-1}, globex: {home: eu-west-1}}\n"
    async with fleet(folder, (US, EU), tenants) as regions:
        trap = Trap(regions, [await Honeypot().start()])
        try:
            trap.honeypots.append(await Honeypot().start("127.0.0.2", regions[US].application.port))
            pids = [pid for g in regions.gateways.values() for pid in [(await g.pids())["control"], *await g.serving()]]
            watcher = threading.Thread(target=trap.watch, args=(pids,))
            watcher.start()
            try:
                yield trap
            finally:
                trap.enough.set()
                await asyncio.to_thread(watcher.join)
            assert trap.seen <= trap.configured, trap.seen - trap.configured
            assert await regions.served_by(EU, "acme") == US
            trap.look(pids)  # while what this request used is pooled
            pooled = {("127.0.0.1", regions[US].application.port), ("127.0.0.1", regions[US].hop)}
            assert trap.seen >= pooled, "the watcher sees connections at all"
        finally:
            for honeypot in trap.honeypots:
                await honeypot.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def trap(shared: Trap) -> AsyncIterator[Trap]:
    shared.regions.forget()
    yield shared
    assert shared.stung() == 0, "something connected to an address that no configuration names"


def raw(start: str, *lines: str) -> str:
    return "\r\n".join([start, *lines, "", ""])


ACME = "Host: acme.demo.test"
REFUSED = {
    "absolute-form": (raw("GET http://@T/x HTTP/1.1", "Host: @T"), 400, "tenant_missing"),
    "absolute-form, other Host": (raw("GET http://@T/x HTTP/1.1", ACME), 400, "target_malformed"),
    "absolute-form, tenant in target": (
        raw("GET http://acme.demo.test/x HTTP/1.1", "Host: @T"),
        400,
        "target_malformed",
    ),
    "userinfo in target": (raw("GET http://acme.demo.test@@T/x HTTP/1.1", ACME), 400, "target_malformed"),
    "password in target": (raw("GET http://acme.demo.test:80@@T/x HTTP/1.1", ACME), 400, "target_malformed"),
    "userinfo in target and Host": (raw("GET http://a@@T/x HTTP/1.1", "Host: a@@T"), 400, "request_malformed"),
    "another scheme": (raw("GET ftp://@T/x HTTP/1.1", "Host: @T"), 400, "target_malformed"),
    "a file": (raw("GET file:///etc/passwd HTTP/1.1", ACME), 400, "target_malformed"),
    "gopher": (raw("GET gopher://@T/_x HTTP/1.1", ACME), 400, "target_malformed"),
    "authority-form": (raw("GET @T HTTP/1.1", ACME), 400, "target_malformed"),
    "@ first": (raw("GET @@T/x HTTP/1.1", ACME), 400, "target_malformed"),
    "no slash": (raw("GET .@T/x HTTP/1.1", ACME), 400, "target_malformed"),
    "fragment": (raw("GET /x#@@T/ HTTP/1.1", ACME), 400, "target_malformed"),
    "CONNECT": (raw("CONNECT @T HTTP/1.1", "Host: @T"), 501, "connect_refused"),
    "CONNECT, tenant": (raw("CONNECT @T HTTP/1.1", ACME), 501, "connect_refused"),
    "CONNECT, path": (raw("CONNECT /x HTTP/1.1", ACME), 501, "connect_refused"),
    "CONNECT, absolute": (raw("CONNECT http://@T/ HTTP/1.1", ACME), 501, "connect_refused"),
    "OPTIONS *": (raw("OPTIONS * HTTP/1.1", "Host: @T"), 400, "target_malformed"),
    "Host is an address": (raw("GET /x HTTP/1.1", "Host: @T"), 400, "tenant_missing"),
    "Host with userinfo": (raw("GET /x HTTP/1.1", "Host: acme.demo.test@@T"), 400, "request_malformed"),
    "Host with port and userinfo": (raw("GET /x HTTP/1.1", "Host: acme.demo.test:80@@T"), 400, "request_malformed"),
    "Host with a path": (raw("GET /x HTTP/1.1", "Host: @T/acme.demo.test"), 400, "request_malformed"),
    "Host with a fragment": (raw("GET /x HTTP/1.1", "Host: @T#.demo.test"), 400, "request_malformed"),
    "Host with a query": (raw("GET /x HTTP/1.1", "Host: @T?.demo.test"), 400, "request_malformed"),
    "Host with a backslash": (raw("GET /x HTTP/1.1", "Host: @T\\.demo.test"), 400, "request_malformed"),
    "Host with a tab": (raw("GET /x HTTP/1.1", "Host: acme.demo.test\t@T"), 400, "request_malformed"),
    "Host as a list": (raw("GET /x HTTP/1.1", "Host: acme.demo.test, @T"), 400, "request_malformed"),
    "two Hosts": (raw("GET /x HTTP/1.1", ACME, "Host: @T"), 400, "framing_ambiguous"),
    "two ports": (raw("GET /x HTTP/1.1", "Host: acme.demo.test:80:90"), 400, "request_malformed"),
    "an address as tenant": (raw("GET /x HTTP/1.1", "Host: 127.0.0.1.demo.test"), 400, "tenant_missing"),
    "a header as tenant": (raw("GET /x HTTP/1.1", "Host: 127.0.0.1", "X-Org: @T"), 400, "tenant_missing"),
    "a path as tenant": (raw("GET /x HTTP/1.1", "Host: 127.0.0.1", "X-Org: ../@T"), 400, "tenant_missing"),
}
"""What is refused, how, and by which flag. `@T` is the honeypot's address and port."""


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("entry", [US, EU])
async def test_refused_and_nobody_is_asked(trap: Trap, case: str, entry: str) -> None:
    text, status, flag = REFUSED[case]
    reply = await once(trap.regions[entry].http, text.replace("@T", trap.target).encode("latin-1"))
    assert (reply.status, flag_of(reply)) == (status, flag)
    assert reply.value("location") is None
    assert trap.regions.asked() == []


SERVED = {
    "absolute-form": (raw("GET http://acme.demo.test/x?y HTTP/1.1", ACME), "/x?y"),
    "absolute-form, https": (raw("GET HTTPS://acme.demo.test HTTP/1.1", ACME), "/"),
    "path like an authority": (raw("GET //@T/x HTTP/1.1", ACME), "//@T/x"),
    "path like a URL": (raw("GET /http://@T/x HTTP/1.1", ACME), "/http://@T/x"),
    "path with @": (raw("GET /@@T HTTP/1.1", ACME), "/@@T"),
    "query with a URL": (raw("GET /?url=http://@T/ HTTP/1.1", ACME), "/?url=http://@T/"),
    "dot segments": (raw("GET /..//..//@T/ HTTP/1.1", ACME), "/..//..//@T/"),
    "Host with another port": (raw("GET /x HTTP/1.1", "Host: acme.demo.test:@P"), "/x"),
    "Host in capitals, with a dot": (raw("GET /x HTTP/1.1", "Host: ACME.Demo.Test.:@P"), "/x"),
    "routing fields": (
        raw("GET /x HTTP/1.1", ACME, "X-Forwarded-Host: @T", "X-Host: @T", "Forwarded: host=@T", "X-Real-IP: @T",
            "X-Original-URL: http://@T/", "X-Rewrite-URL: http://@T/", "X-Forwarded-Server: @T", "Proxy: http://@T",
            "Destination: http://@T/", "Gateway-Hop: v=1; from=us-east-1; to=@T; tenant=acme; home=@T; sig=0"),
        "/x",
    ),
    "upgrade to h2c": (raw("GET /x HTTP/1.1", ACME, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), "/x"),  # noqa: E501
    "upgrade to another host": (raw("GET /x HTTP/1.1", ACME, "Connection: upgrade", "Upgrade: TLS/1.0, @T"), "/x"),
    "tenant by a header": (raw("GET /x HTTP/1.1", "Host: @T", "X-Org: acme"), "/x"),
}  # fmt: skip
"""What is served by the tenant's own application, and the target that it sees. `@P` is the honeypot's port."""


@pytest.mark.parametrize("case", SERVED)
@pytest.mark.parametrize("entry", [US, EU])
async def test_served_by_the_configured_application(trap: Trap, case: str, entry: str) -> None:
    text, target = (part.replace("@T", trap.target).replace("@P", trap.target[10:]) for part in SERVED[case])
    reply = await once(trap.regions[entry].http, text.encode())
    assert (reply.status, reply.value("x-region")) == (200, US), reply.body
    ((where, seen),) = trap.regions.asked()
    assert (where, seen.start.decode()) == (US, f"GET {target} HTTP/1.1")


REDIRECTED = {
    "plain": (raw("GET /x?y=z HTTP/1.1", ACME, HTML), "/x?y=z"),
    "Host with another port": (raw("GET /x HTTP/1.1", "Host: acme.demo.test:@P", HTML), "/x"),
    "Host in capitals, with a dot": (raw("GET /x HTTP/1.1", "Host: ACME.DEMO.TEST.:@P", HTML), "/x"),
    "absolute-form": (raw("GET http://acme.demo.test/x?y HTTP/1.1", ACME, HTML), "/x?y"),
    "forwarded fields": (
        raw("GET /x HTTP/1.1", ACME, HTML, "X-Forwarded-Host: @T", "X-Forwarded-Proto: https", "X-Forwarded-Port: 6",
            "Forwarded: host=@T;proto=https", "X-Original-Host: @T", "Referer: http://@T/", "Origin: http://@T"),
        "/x",
    ),
    "path like an authority": (raw("GET //@T/x HTTP/1.1", ACME, HTML), "//@T/x"),
    "path with a backslash": (raw("GET /\\@T/x HTTP/1.1", ACME, HTML), "/\\@T/x"),
    "path with @": (raw("GET /@@T HTTP/1.1", ACME, HTML), "/@@T"),
    "path with ;@": (raw("GET /;@@T HTTP/1.1", ACME, HTML), "/;@@T"),
    "path of a URL": (raw("GET /http://@T HTTP/1.1", ACME, HTML), "/http://@T"),
    "encoded CRLF": (raw("GET /%0d%0aSet-Cookie:%20a=b?%0D%0A HTTP/1.1", ACME, HTML), "/%0d%0aSet-Cookie:%20a=b?%0D%0A"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("case", REDIRECTED)
async def test_location_is_built_from_the_map(trap: Trap, case: str) -> None:
    """acme lives in us-east-1: whatever Host, fields and path say, a browser is sent to that region's public URL."""
    text, target = (part.replace("@T", trap.target).replace("@P", trap.target[10:]) for part in REDIRECTED[case])
    reply: Reply = await once(trap.regions[EU].http, text.encode())
    public = f"acme.us-east-1.demo.test:{trap.regions[US].http}"
    assert reply.status == 307, reply.body
    location = reply.value("location")
    assert location == f"http://{public}{target}"
    assert urlsplit(location).netloc == public
    assert not reply.values("set-cookie")
    assert trap.regions.asked() == []


async def test_a_hop_chooses_no_address_either(trap: Trap) -> None:
    for line in ("Gateway-Hop: v=1", f"Gateway-Hop: v=1; from=us-east-1; to={trap.target}; sig=" + "0" * 64):
        for start in ("/x", f"http://{trap.target}/x"):
            reply = await once(trap.regions[EU].hop, request(trap.target, start, lines=[line]))
            assert (reply.status, flag_of(reply)) == (403, "hop_rejected")
    assert trap.regions.asked() == []


async def test_the_admin_api_is_no_way_out(trap: Trap) -> None:
    """FAULTS 34, as far as it exists: admin paths mean nothing to clients, and other sites' names nothing to admin."""
    gateway = trap.regions[EU]
    for path in ("/metrics", "/api/v1/status", "/api/v1/explain?host=acme.demo.test", "/.landbridge/peer"):
        reply = await once(gateway.http, request("acme.demo.test", path))
        assert reply.value("x-region") == US, "a request like any other"
        assert (await once(gateway.http, request("127.0.0.1", path))).status == 400
    assert (await once(gateway.admin, request("evil.example", "/api/v1/status"))).status == 421
    for method in ("POST", "PUT", "DELETE"):
        assert (await once(gateway.admin, request("localhost", "/api/v1/status", method))).status == 405
