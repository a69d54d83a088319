"""Names change their addresses, name servers lie, fail and fall silent, under load: no request notices. FAULTS 16.

A whole gateway before two applications on two addresses of loopback, which a real name server tells about. Where the
durations matter they are scaled: names have a TTL of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.client import Client
from tests.support.fleet import US, Fleet, Gateway, flag_of, request, says, until
from tests.support.load_process import LoadProcess, Target
from tests.support.measured import hold
from tests.support.name_server import NameServer, name_server
from tests.support.origin import Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP, LOST = "app.internal", "lost.internal"
SRV = "_http._tcp.app.internal"
ONE, TWO = "127.0.0.2", "127.0.0.3"
TTL_S = 1
NEW_S = TTL_S + 5.0
STALL_S = 0.05


class DnsFleet(Fleet):
    """One gateway of two workers, whose cluster's endpoints are `endpoints`."""

    def __init__(self, folder: Path, server: NameServer) -> None:
        super().__init__(folder, (US,), "tenants:\n  acme:\n    home: us-east-1\n")
        self.server = server
        self.endpoints = ""
        self.two = Origin(says(US))
        self.gateway = self[US]
        self.gateway.workers = 2
        self.gateway.more = (
            f"dns: {{servers: ['127.0.0.1:{server.port}'], ttl_min: 100ms, ttl_max: 300s, timeout: 300ms}}\n"
        )

    @property
    def one(self) -> Origin:
        return self.gateway.application

    def configuration(self, gateway: Gateway) -> str:
        return super().configuration(gateway).replace(f'["127.0.0.1:{self.one.port}"]', f"[{self.endpoints}]")

    async def begin(self) -> None:
        await self.one.start(0, ONE)
        await self.two.start(self.one.port, TWO)
        self.server.put(APP, "A", ONE, ttl=TTL_S)
        self.endpoints = f'"dns://{APP}:{self.one.port}"'
        await self.start()

    async def use(self, endpoints: str) -> None:
        """Another list of endpoints, in place."""
        self.endpoints = endpoints
        before = (await self.gateway.api("status"))["config"]["generation"]
        self.gateway.config.write_text(self.configuration(self.gateway))
        self.gateway.signal(signal.SIGHUP)

        async def applied() -> bool:
            config = (await self.gateway.api("status"))["config"]
            return config["generation"] > before and set(config["applied"].values()) == {config["generation"]}

        await until(applied, "both workers have the new endpoints")

    async def endpoints_are(self, *addresses: str) -> None:
        async def so() -> bool:
            return [e["address"] for e in (await self.app())["endpoints"]] == [
                f"{a}:{self.one.port}" for a in addresses
            ]

        await until(so, f"the cluster has the endpoints {addresses}")

    async def app(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = (await self.gateway.api("clusters"))["clusters"]
        return found[0]

    async def name(self) -> dict[str, Any]:
        """What is known of the one name."""
        [found] = (await self.app())["discovered"]
        return dict(found)

    async def failing(self, word: str) -> None:
        async def so() -> bool:
            return bool((await self.name())["failing"] == word)

        await until(so, f"control says {word}")

    def load(self) -> LoadProcess:
        return LoadProcess([Target(self.gateway.http, "acme.demo.test", US, 200.0, 10)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DnsFleet]:
    async with name_server() as server:
        made = DnsFleet(tmp_path_factory.mktemp("dns"), server)
        try:
            await made.begin()
            yield made
        finally:
            await made.two.stop()
            await made.stop()


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def as_at_first(fleet: DnsFleet) -> AsyncIterator[None]:
    """Each test begins with the first application under its name, and both alive."""
    yield
    fleet.server.say.clear()
    fleet.server.put(APP, "A", ONE, ttl=TTL_S)
    plain = f'"dns://{APP}:{fleet.one.port}"'
    if fleet.endpoints != plain:
        await fleet.use(plain)
    await fleet.endpoints_are(ONE)


def requests(origin: Origin) -> int:
    return sum(1 for seen in origin.requests if not seen.start.startswith(b"GET /healthz "))


async def asked_more(origin: Origin, count: int = 20) -> None:
    """Wait until the application got `count` more requests."""
    before = requests(origin)

    async def more() -> bool:
        return requests(origin) >= before + count

    await until(more, "the application is asked")


class Answering:
    """Asks control over and over on one connection: its longest answer bounds the longest stall of its loop."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.seconds: list[float] = []
        self._enough = False

    async def __aenter__(self) -> Answering:
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough = True
        await self._task

    async def _run(self) -> None:
        client = await Client.connect(self.gateway.admin)
        while not self._enough:
            began = time.monotonic()
            reply = await client.ask(request("localhost", "/healthz"))
            assert reply.status == 200
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.005)
        await client.close()


async def test_a_changed_address_is_used_within_its_ttl_and_no_request_fails(fleet: DnsFleet) -> None:
    slowest = 0.0
    async with fleet.load() as load:
        for address, new, old in ((TWO, fleet.two, fleet.one), (ONE, fleet.one, fleet.two)) * 2:
            fleet.server.put(APP, "A", address, ttl=TTL_S)
            began = time.monotonic()
            await asked_more(new, 1)
            slowest = max(slowest, time.monotonic() - began)
            await fleet.endpoints_are(address)
            await load.goes_on(4)  # what was in hand ends
            before = requests(old)
            await load.goes_on(10)
            assert requests(old) == before, "no new request goes to the old address"
    hold("16", f"a changed address is in use, TTL {TTL_S} s", slowest, NEW_S)
    hold("16", f"a changed address, {load.ok} requests: failed or wrong", len(load.wrong()), 0, "")


async def test_both_addresses_of_a_name_are_used_and_one_may_leave(fleet: DnsFleet) -> None:
    async with fleet.load() as load:
        fleet.server.put(APP, "A", TWO, ONE, ttl=TTL_S)
        await asked_more(fleet.two)
        await asked_more(fleet.one)
        fleet.server.put(APP, "A", ONE, ttl=TTL_S)
        await fleet.endpoints_are(ONE)
        await load.goes_on()
    assert load.wrong() == []


async def test_whatever_the_name_server_says_the_last_good_answer_serves(fleet: DnsFleet) -> None:
    gateway, server = fleet.gateway, fleet.server

    async with fleet.load() as load, Answering(gateway) as control:
        for said, word in (("NXDOMAIN", "nxdomain"), ("SERVFAIL", "servfail"), ("drop", "timeout"), ("", "empty")):
            if said:
                server.say[APP] = said
            else:
                server.say.clear()
                server.put(APP, "A", ttl=TTL_S)
            await fleet.failing(word)
            await load.goes_on(20)
            name = await fleet.name()
            assert (name["name"], name["endpoints"]) == (f"dns://{APP}:{fleet.one.port}", 1)
            assert name["age_s"] > 0
            assert name["reason"]
            assert await gateway.metric("landbridge_dns_failing", endpoint=name["name"]) == 1
            assert await gateway.metric("landbridge_dns_lookups_total", result=word) >= 1
    hold("16", f"failing name servers, {load.ok} requests: failed or wrong", len(load.wrong()), 0, "")
    hold("16", "failing name servers: control's slowest answer of its loop", max(control.seconds), STALL_S, "ms")
    # the slowest of all would be the application's or the client's, which share this machine
    hold("16", "failing name servers: p99 of the workers' answers", load.p99_s(0.0, float("inf")), STALL_S, "ms")
    complaints = [line for line in gateway.log().splitlines() if f"cannot resolve {APP}" in line]
    assert len(complaints) == 4, "one line for each turn"
    server.put(APP, "A", TWO, ttl=TTL_S)
    began = time.monotonic()
    await fleet.endpoints_are(TWO)
    hold("16", "a name server is back with a changed address", time.monotonic() - began, NEW_S)


async def test_a_killed_control_and_worker_know_the_addresses_without_a_name_server(fleet: DnsFleet) -> None:
    gateway = fleet.gateway
    kept = gateway.folder / "state" / "names.last-good"

    async def written() -> bool:
        return f'"{ONE}"' in kept.read_text() and f'"{TWO}"' not in kept.read_text()

    await until(written, "what is known is on disk, too")
    fleet.server.say["*"] = "drop"
    pids = await gateway.pids()
    workers = [worker["pid"] for worker in pids["workers"]]
    os.kill(pids["control"], signal.SIGSTOP)  # a worker that is started now hears nothing from control
    try:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)

        async def served() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return await fleet.served_by(US, "acme") == US
            return False

        await until(served, "new workers serve by what is on disk")
    finally:
        os.kill(pids["control"], signal.SIGKILL)

    async def another() -> bool:
        with contextlib.suppress(OSError, EOFError):
            now = await gateway.pids()
            return now["control"] not in (0, pids["control"]) and len(await gateway.serving()) == 2
        return False

    await until(another, "another control serves")
    await fleet.endpoints_are(ONE)
    await fleet.failing("timeout")
    name = await fleet.name()
    assert (name["endpoints"], name["age_s"]) == (1, None)
    for _ in range(20):
        assert await fleet.served_by(US, "acme") == US


async def test_the_first_request_of_a_first_start_finds_the_name(fleet: DnsFleet) -> None:
    """Nothing is on disk, the name server is slow, and the client waits at the door."""
    gateway, server = fleet.gateway, fleet.server
    await gateway.stop()
    (gateway.folder / "state" / "names.last-good").unlink()
    server.say[f"{APP} A"] = "drop once"
    server.asked.clear()
    gateway.start()

    async def first() -> int:
        with contextlib.suppress(OSError, EOFError):
            return (await fleet.ask(US, "acme")).status
        return 0

    assert await until(first, "the first request is answered") == 200
    assert server.count(APP) >= 2, "the first question was lost"
    await until(gateway.ready, "everything is as before")


async def test_an_address_that_refuses_has_its_name_asked_at_once(fleet: DnsFleet) -> None:
    """The TTL is five minutes; the application has died, and the name server knows where the new one is."""
    fleet.server.put(APP, "A", ONE, ttl=300)
    await asyncio.sleep(TTL_S)

    async def known() -> bool:
        return bool((await fleet.name())["ttl_s"] == 300.0)

    await until(known, "the long TTL is known")
    fleet.server.put(APP, "A", TWO, ttl=300)
    await fleet.one.stop()
    began = time.monotonic()
    try:

        async def served() -> bool:
            return await fleet.served_by(US, "acme") == US

        await until(served, "the new address serves")
        hold("16", "an application moved, its name's TTL is 300 s: served again", time.monotonic() - began, 5.0)
    finally:
        await fleet.one.start(fleet.one.port, ONE)
        fleet.server.put(APP, "A", ONE, ttl=TTL_S)
        await fleet.use('"127.0.0.2:9"')  # forget the long TTL


async def test_services_give_ports_and_priorities(fleet: DnsFleet) -> None:
    port, server = fleet.one.port, fleet.server
    server.put("one.internal", "A", ONE, ttl=TTL_S)
    server.put("two.internal", "A", TWO, ttl=TTL_S)
    server.put(SRV, "SRV", f"0 5 {port} one.internal.", f"10 3 {port} two.internal.", ttl=TTL_S)
    await fleet.use(f'"srv://{SRV}"')
    await fleet.endpoints_are(ONE, TWO)
    shown = [(e["name"], e["priority"], e["weight"]) for e in (await fleet.app())["endpoints"]]
    assert shown == [(f"one.internal:{port}", 0, 5), (f"two.internal:{port}", 10, 3)]
    before = requests(fleet.two)
    for _ in range(30):
        assert await fleet.served_by(US, "acme") == US
    assert requests(fleet.two) == before, "a greater priority value waits"
    await fleet.one.stop()

    async def by_two() -> bool:
        return await fleet.served_by(US, "acme") == US and requests(fleet.two) > before

    await until(by_two, "the next priority serves")
    await fleet.one.start(port, ONE)

    async def by_one() -> bool:
        [first, _] = (await fleet.app())["endpoints"]
        return bool(first["up"])

    await until(by_one, "the first endpoint is back")
    seen = requests(fleet.one)

    async def again() -> bool:
        return await fleet.served_by(US, "acme") == US and requests(fleet.one) > seen

    await until(again, "the first priority serves again")
    server.put(SRV, "SRV", f"0 5 {port} two.internal.", ttl=TTL_S)
    await fleet.endpoints_are(TWO)


async def test_a_reload_that_names_other_endpoints_costs_no_request(fleet: DnsFleet) -> None:
    """The new name answers late: until it does, the old endpoints serve."""
    server = fleet.server
    server.put("two.internal", "A", TWO, ttl=TTL_S)
    server.say["two.internal"] = "drop"
    async with fleet.load() as load:
        using = asyncio.get_running_loop().create_task(fleet.use(f'"dns://two.internal:{fleet.one.port}"'))

        async def asked() -> bool:
            return server.count("two.internal") > 0

        await until(asked, "the new name is asked for")
        server.say.clear()
        await using
        await fleet.endpoints_are(TWO)
        await load.goes_on()
    assert load.wrong() == []


async def test_a_name_that_never_resolved_says_why_and_is_used_once_it_does(fleet: DnsFleet) -> None:
    fleet.server.drop(LOST)
    began = time.monotonic()
    await fleet.use(f'"dns://{LOST}:{fleet.one.port}"')
    hold("16", "a name that nobody knows holds a reload up", time.monotonic() - began, 3.0)
    reply = await fleet.ask(US, "acme")
    assert (reply.status, flag_of(reply)) == (503, "cluster_unavailable")
    app = await fleet.app()
    assert (app["able"], app["endpoints"]) == (False, [])
    name = await fleet.name()
    assert (name["failing"], name["age_s"], name["reason"]) == ("nxdomain", None, "there is no such name (NXDOMAIN)")
    fleet.server.put(LOST, "A", TWO, ttl=TTL_S)

    async def served() -> bool:
        return await fleet.served_by(US, "acme") == US

    began = time.monotonic()
    await until(served, "the name is there, and serves")
    hold("16", "a name that comes to be: served", time.monotonic() - began, NEW_S)
