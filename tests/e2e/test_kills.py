"""Under 200 requests a second: kills, reloads and a drain cost what the design says they cost, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.client import Client, Reply, once
from tests.support.counters import Counters
from tests.support.fleet import US, Fleet, Gateway, fleet, request, says, until
from tests.support.load import Load
from tests.support.measured import hold
from tests.support.origin import Origin, Seen
from tests.support.pace import within
from tests.support.processes import alive, client_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "acme.demo.test"
NOTICED_S = 0.05
"""How long our own loop may take to read that a connection was closed: until then the next request goes out on it."""
BACK_S = 1.0
TENANTS = "tenants: {acme: {home: us-east-1}}\n"


class Latch:
    """`async with Latch(gateway) as latch:` holds up answers to `ask()` until `release()`, or the end."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.application = gateway.application
        self.clients: list[Client] = []
        self.waiting = 0
        self._answer = self.application.answer
        self._released = asyncio.Event()

    async def __aenter__(self) -> Latch:
        self.application.answer = self._hold
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
        self.application.answer = self._answer
        for client in self.clients:
            await client.close()

    def release(self) -> None:
        self._released.set()

    async def ask(self) -> Client:
        """A connection with a request that the application has, and does not answer yet."""
        client = await Client.connect(self.gateway.http)
        self.clients.append(client)
        await client.send(request(HOST, "/slow"))

        async def arrived() -> bool:
            return self.waiting == len(self.clients)

        await until(arrived, "the application has the request")
        return client

    async def _hold(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        if seen.start.startswith(b"GET /slow "):
            self.waiting += 1
            await self._released.wait()
        return await self._answer(seen, reader, writer)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("kills"), (US,), TENANTS, workers=2) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Fleet) -> AsyncIterator[Gateway]:
    """One region's gateway with two workers. Its configuration is put back after a test that changed it."""
    gateway = shared[US]
    yield gateway
    text = shared.configuration(gateway)
    if gateway.config.read_text() != text:
        gateway.config.write_text(text)
        gateway.signal(signal.SIGHUP)

        async def back() -> bool:
            config = (await gateway.api("status"))["config"]
            return bool(config["running"] == "file" and config["last_reload"]["result"] == "applied")

        await until(back, "the first configuration runs again")


async def replaced(gateway: Gateway, victim: int) -> float:
    """Wait until everything serves again and `victim` is nowhere; when that was."""

    async def whole() -> bool:
        with contextlib.suppress(OSError, EOFError):
            pids = await gateway.pids()
            serving = await gateway.serving()
            return len(serving) == gateway.workers and pids["control"] and victim not in {pids["control"], *serving}
        return False

    await until(whole, f"{victim} is replaced")
    return time.monotonic()


async def requests_total(gateway: Gateway) -> float:
    return sum(value for (name, _), value in (await gateway.metrics()).items() if name == "landbridge_requests_total")


# --- kills


@pytest.mark.timed
async def test_a_killed_worker_costs_only_what_it_had_in_hand(gateway: Gateway) -> None:
    """FAULTS 17. Each worker is killed once; the time is the better of two: one may be a busy machine's."""
    backs = []
    for slot in (0, 1):
        before = await gateway.serving()
        backs.append(await kill_one(gateway, before[slot], before[1 - slot]))
    hold("17", "a worker killed: two serve again", min(backs), BACK_S)


async def kill_one(gateway: Gateway, victim: int, survivor: int) -> float:
    """Kill `victim` under load, with requests in hand in both workers; seconds until two serve again."""
    restarts = await gateway.metric("landbridge_worker_restarts_total")
    before = await requests_total(gateway)
    async with Latch(gateway) as latch, Counters(gateway), Load(gateway.http, HOST) as load:
        while not all(mine := [held(latch.clients, pid) for pid in (victim, survivor)]):
            await latch.ask()
        ports = client_ports(victim)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        await until(partial(ended, victim), "it is gone, and its sockets with it")
        gone = time.monotonic()
        back = await replaced(gateway, victim) - killed
        await load.goes_on()
        lost, kept = mine
        for client in lost:
            with pytest.raises((EOFError, OSError)):
                await client.reply()
        latch.release()
        for client in kept:
            assert (await client.reply()).status == 200, "the sibling's requests in hand did not notice"
    for failure in load.failed:
        assert failure.port in ports, f"a connection of another worker: {failure}"
        assert failure.sent <= gone + within(NOTICED_S), f"sent when the connection was known to be closed: {failure}"
    assert len({failure.port for failure in load.failed}) == len(load.failed), "a connection fails once"
    assert survivor in await gateway.serving()
    assert await gateway.metric("landbridge_worker_restarts_total") == restarts + 1
    assert await requests_total(gateway) >= before + load.ok + len(kept)
    print(f"worker killed: two serve after {back:.2f} s, slowest answer {load.slowest_s:.2f} s; {load}")
    return back


def held(clients: list[Client], pid: int) -> list[Client]:
    """Those of `clients` whose connections the process `pid` has."""
    ports = client_ports(pid)
    return [client for client in clients if client.writer.get_extra_info("sockname")[1] in ports]


async def ended(pid: int) -> bool:
    return not alive(pid)


async def test_a_killed_control_costs_nothing(gateway: Gateway) -> None:
    pids = await gateway.pids()
    workers = await gateway.serving()
    before = await requests_total(gateway)
    async with Counters(gateway), Load(gateway.http, HOST) as load:
        for _ in range(2):
            victim = (await gateway.pids())["control"]
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            back = await replaced(gateway, victim) - killed
            await load.goes_on()
            print(f"control killed: back after {back:.2f} s")
    assert load.failed == [], str(load)
    assert load.connects == len(load.answered), "no connection was closed"
    assert await gateway.serving() == workers
    assert (await gateway.pids())["control"] != pids["control"]
    assert await requests_total(gateway) >= before + load.ok
    print(f"control killed: {load}")


async def test_worker_and_control_killed_at_once(gateway: Gateway) -> None:
    """FAULTS 17, both: the newcomer starts without control, from the last good configuration and the map on disk."""
    control, (victim, survivor) = (await gateway.pids())["control"], await gateway.serving()
    before = await requests_total(gateway)
    async with Counters(gateway), Load(gateway.http, HOST) as load:
        ports = client_ports(victim)
        for pid in (control, victim):
            os.kill(pid, signal.SIGKILL)
        await until(partial(ended, victim), "it is gone, and its sockets with it")
        gone = time.monotonic()
        await replaced(gateway, victim)
        await replaced(gateway, control)
        await load.goes_on()
    for failure in load.failed:
        assert failure.port in ports, f"a connection of another worker: {failure}"
        assert failure.sent <= gone + within(NOTICED_S), f"sent when the connection was known to be closed: {failure}"
    assert survivor in await gateway.serving()
    assert await requests_total(gateway) >= before + load.ok
    print(f"worker and control killed: {load}")


# --- reloads


BAD_CONFIGS = {
    "type": ("timeouts: {response: 10s}", "timeouts: {response: fast}", "clusters.app.timeouts.response"),
    "unknown key": ("timeouts: {response: 10s}", "timeouts: {respnose: 10s}", "clusters.app.timeouts.respnose"),
    "against another key": ("timeouts: {response: 10s}", "breaker: {open: 2m}", "clusters.app.breaker.open"),
    "not YAML": ("timeouts: {response: 10s}", "timeouts: @{response: 10s}", ""),
    "restart": ("fleet: test", "fleet: other", "fleet"),
    "dangling": ("tenancy:", "routes: [{prefix: /, cluster: nope}]\ntenancy:", "routes"),
}
"""What is replaced, by what, and the path that the problem names."""


async def test_a_bad_configuration_changes_nothing_and_is_named(gateway: Gateway) -> None:
    """FAULTS 20. Neither the request that is running nor what decides the next one notices."""
    good = gateway.config.read_text()
    pids = await gateway.pids()
    shown = (await gateway.api("config"))["config"]
    labels = {"source": "config", "result": "refused"}
    async with Load(gateway.http, HOST) as load:
        for case, (old, new, path) in BAD_CONFIGS.items():
            bad = good.replace(old, new, 1)
            assert bad != good, case
            line = first_difference(good, bad)
            refused = await gateway.metric("landbridge_config_reloads_total", **labels)
            seen = len(gateway.log())
            gateway.config.write_text(bad)
            gateway.signal(signal.SIGHUP)

            async def counted(refused: float = refused) -> bool:
                return await gateway.metric("landbridge_config_reloads_total", **labels) > refused

            await until(counted, f"{case}: the refusal is counted")
            config = (await gateway.api("status"))["config"]
            assert config["running"] == "last-good"
            assert config["last_reload"]["result"] == "refused"
            problems = config["last_reload"]["problems"]
            assert path in problems[0], problems
            if case != "restart":
                assert f"gateway.yaml:{line}:" in problems[0], problems
            assert problems[0] in gateway.log()[seen:]
            assert (await gateway.api("config"))["config"] == shown
            await load.goes_on(2)
    assert load.failed == [], str(load)
    assert await gateway.pids() == pids, "nobody was restarted"
    print(f"bad configurations: {load}")


async def test_a_good_reload_applies_in_place_and_fails_nothing(gateway: Gateway) -> None:
    pids = await gateway.pids()
    text = gateway.config.read_text()
    second = await Origin(says("second")).start()
    app = f'["127.0.0.1:{gateway.application.port}"]'
    try:
        async with Latch(gateway) as latch, Counters(gateway), Load(gateway.http, HOST) as load:
            slow = await latch.ask()

            await reload(gateway, text.replace("response: 10s", "response: 9s"))
            assert (await gateway.api("config"))["config"]["clusters"]["app"]["timeouts"]["response"] == 9.0
            await load.goes_on(2)

            other = f'  other:\n    endpoints: ["127.0.0.1:{second.port}"]\n'
            routes = "routes:\n  - {prefix: /, cluster: app}\n  - {prefix: /other, cluster: other}\n"
            await reload(gateway, text.replace("tenancy:\n", f"{other}{routes}tenancy:\n"))
            assert (await once(gateway.http, request(HOST, "/other/x"))).value("x-region") == "second"
            assert (await once(gateway.http, request(HOST, "/x"))).value("x-region") == US
            await load.goes_on(2)

            await reload(gateway, text.replace(app, f'["127.0.0.1:{second.port}"]'))
            moved = time.monotonic()
            await load.goes_on(2)
            assert load.regions(moved) == {"second"}

            latch.release()
            assert (await slow.reply()).value("x-region") == US, "what was in hand ended where it had begun"
            for seconds in range(20, 40):
                await reload(gateway, text.replace("response: 10s", f"response: {seconds}s"))
            await load.goes_on(2)
    finally:
        await second.stop()
    assert load.failed == [], str(load)
    assert load.connects == len(load.answered), "no connection was closed"
    assert await gateway.pids() == pids, "nobody was restarted"
    print(f"23 reloads: {load}")


def first_difference(good: str, bad: str) -> int:
    """The number of the first line that differs."""
    pairs = zip(good.splitlines(), bad.splitlines(), strict=False)
    return next(number for number, (old, new) in enumerate(pairs, 1) if old != new)


async def reload(gateway: Gateway, text: str) -> None:
    """Write a configuration, signal, and wait until every worker said that it has it."""
    assert text != gateway.config.read_text()
    generation = (await gateway.api("status"))["config"]["generation"]
    gateway.config.write_text(text)
    gateway.signal(signal.SIGHUP)

    async def applied() -> bool:
        config = (await gateway.api("status"))["config"]
        workers = list(config["applied"].values())
        return config["generation"] > generation and workers == [config["generation"]] * gateway.workers

    await until(applied, "the new configuration is applied")


# --- the drain

GRACE_S = 1.5
LIMIT_S = 6.0


async def test_a_drain_fails_nothing_and_ends_in_time(tmp_path: Path) -> None:
    """FAULTS 18: not ready first, while everything is still served; then no new connections; then the end, by 0."""
    settings = {"workers": 2, "drain": f"{{grace: {GRACE_S}s, limit: {LIMIT_S}s}}"}
    async with fleet(tmp_path, (US,), TENANTS, **settings) as made, Latch(made[US]) as latch:
        gateway = made[US]
        slow = await latch.ask()
        async with Load(gateway.http, HOST, idle_s=GRACE_S) as load:
            signalled = time.monotonic()
            gateway.signal(signal.SIGTERM)
            for port, host in ((gateway.admin, "localhost"), (gateway.http, "127.0.0.1")):
                await until(partial(answers, port, host, "/readyz", 503), "it is not ready any more")
            unready = time.monotonic()
            assert await answers(gateway.admin, "localhost", "/healthz", 200), "it lives"
            assert await answers(gateway.http, "127.0.0.1", "/healthz", 200)
            await load.goes_on(3)  # as long as the load balancer sends: it notices within the grace
            reply = await once(gateway.http, request(HOST))
            assert (reply.status, reply.value("connection")) == (200, "close")
        heard = time.monotonic()
        assert heard - signalled < GRACE_S, "this machine is too busy for this test"
        late = [one for each in load.answered for one in each if one.at - one.seconds > unready]
        assert load.failed == [], str(load)
        assert len(late) >= 3 * len(load.answered) / 2, "serving goes on while it is not ready"
        assert all(one.closes for one in late), "and tells everybody to come again elsewhere"

        await until(partial(refuses, gateway.http), "new connections are refused")
        refused = time.monotonic() - signalled
        assert GRACE_S <= refused < LIMIT_S
        assert gateway.process is not None
        assert gateway.process.poll() is None, "a request is in hand"
        latch.release()
        last: Reply = await slow.reply()
        assert (last.status, last.value("connection"), last.value("x-region")) == (200, "close", US)
        await slow.close()
        assert await gateway.ended() == 0
        took = time.monotonic() - signalled
        assert took < LIMIT_S
    hold("18", "SIGTERM under load: exit 0", took, LIMIT_S)
    print(f"drain: unready {unready - signalled:.2f} s, refused {refused:.2f} s; {load}")


async def answers(port: int, host: str, path: str, status: int) -> bool:
    return (await once(port, request(host, path))).status == status


async def refuses(port: int) -> bool:
    """Whether a connect is refused. One that the kernel had taken before is reset then, which is not it."""
    try:
        await (await Client.connect(port)).close()
    except ConnectionRefusedError:
        return True
    return False
