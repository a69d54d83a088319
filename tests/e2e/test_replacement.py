"""Workers are replaced, added, removed and drained, and nobody's request is lost.

The numbers are scaled here; `make faults` runs them in full and prints what was measured beside its limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.application_process import application_process
from tests.support.client import Client, once
from tests.support.counters import Counters
from tests.support.fleet import US, Fleet, Gateway, fleet, request, says, until
from tests.support.load import Load
from tests.support.measured import hold
from tests.support.newcomers import Newcomers
from tests.support.origin import Origin, Seen
from tests.support.processes import alive, free_ports, rss_anon_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "acme.demo.test"
TENANTS = "tenants: {acme: {home: us-east-1}}\n"
GRACE_S = 1.2
LIMIT_S = 4.0
DRAIN = f"{{grace: {GRACE_S}s, limit: {LIMIT_S}s}}"
BACK_LIMIT_S = 1.0
MEMORY_LIMIT = 0.05


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Its application is a process of its own: in ours it would fall behind whenever this machine is busy."""
    async with application_process(US) as ports:
        folder = tmp_path_factory.mktemp("replacement")
        async with fleet(folder, (US,), TENANTS, ports, workers=2, drain=DRAIN) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: Fleet) -> AsyncIterator[Gateway]:
    """A gateway with two workers; what a test changed of its configuration is changed back."""
    gateway = shared[US]
    yield gateway
    gateway.workers = 2
    text = shared.configuration(gateway)
    if gateway.config.read_text() != text:
        assert (await reload(gateway, text))["result"] == "applied"
    await until(partial(settled, gateway), "nobody drains any more")


async def settled(gateway: Gateway) -> bool:
    """Whether the processes are control and the workers, all serving."""
    states = [worker["state"] for worker in (await gateway.pids())["workers"]]
    return states == ["serving"] * gateway.workers


async def reload(gateway: Gateway, text: str) -> dict[str, Any]:
    """Write a configuration, signal, and wait for the end of the attempt."""
    before = await reloads(gateway)
    gateway.config.write_text(text)
    gateway.signal(signal.SIGHUP)

    async def ended() -> bool:
        with contextlib.suppress(OSError, EOFError):
            return await reloads(gateway) > before
        return False

    await until(ended, "the reload has ended")
    outcome: dict[str, Any] = (await gateway.api("status"))["config"]["last_reload"]
    return outcome


async def reloads(gateway: Gateway) -> float:
    return sum(
        [
            await gateway.metric("landbridge_config_reloads_total", source="config", result=result)
            for result in ("applied", "refused")
        ]
    )


async def replace(gateway: Gateway) -> list[int]:
    """Have all workers replaced; the pids of those that were."""
    old = await gateway.serving()
    done = (await gateway.api("status"))["replacements"]["done"]
    gateway.signal(signal.SIGUSR2)

    async def replaced() -> bool:
        return bool((await gateway.api("status"))["replacements"]["done"] > done)

    await until(replaced, "all workers are replaced")
    assert not set(old) & set(await gateway.serving())
    return old


# --- replacements


async def replacements(gateway: Gateway, rate: float, times: int) -> str:
    """FAULTS 18: replace all workers again and again under new connections; no counter falls, nothing fails."""
    async with (
        Counters(gateway),
        Newcomers(gateway.http, HOST, rate) as load,
        Load(gateway.http, HOST, rate=50) as kept,
    ):
        for _ in range(times):
            await replace(gateway)
            await load.goes_on(rate / 4)
    failed = len(load.failed) + len(kept.failed)
    hold("18", f"{times} replacements of all workers, {load.ok + kept.ok} requests: failed", failed, 0, "")
    files = list((gateway.folder / "state" / "stats").glob("worker-*.stats"))
    assert len(files) <= 8 * gateway.workers, files
    counted = await gateway.metric(
        "landbridge_requests_total", **{"from": "client", "decision": "local", "code_class": "2xx"}
    )
    assert counted >= load.ok + kept.ok
    return f"{times} replacements: {load}; kept alive: {kept}; {len(files)} files of counters"


async def test_replacements_lose_no_connection(gateway: Gateway) -> None:
    print(await replacements(gateway, 200.0, 3))


@pytest.mark.faults
async def test_twenty_replacements_under_a_thousand_connections_a_second(gateway: Gateway) -> None:
    print(await replacements(gateway, 1000.0, 20))


async def test_a_replaced_worker_finishes_what_it_has(gateway: Gateway) -> None:
    """Idle connections stay for the grace, one in use hears `close`, a request in hand is answered, a tunnel lives."""
    answer, release = says(US), asyncio.Event()
    waiting = asyncio.Event()

    async def tunnels(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        if seen.start.startswith(b"GET /slow "):
            waiting.set()
            await release.wait()
        if seen.value("upgrade") is None:
            return await answer(seen, reader, writer)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(4096):
            writer.write(data)
        return False

    scripted = await Origin(tunnels).start()
    ours = gateway.config.read_text().replace(f":{gateway.application.port}", f":{scripted.port}")
    assert (await reload(gateway, ours))["result"] == "applied"
    clients = [await Client.connect(gateway.http) for _ in range(4)]
    idle, used, slow, tunnel = clients
    try:
        for client in (idle, used):
            assert (await client.ask(request(HOST))).status == 200
        upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"]
        assert (await tunnel.ask(request(HOST, "/ws", lines=upgrade))).status == 101
        await slow.send(request(HOST, "/slow"))
        await waiting.wait()
        asked = time.monotonic()
        old = await replace(gateway)
        replaced = time.monotonic()
        listed = {worker["pid"]: worker["state"] for worker in (await gateway.pids())["workers"]}
        assert {listed.get(pid) for pid in old} <= {"draining", None}
        assert "draining" in listed.values(), "a replaced worker stays listed while it drains"
        assert (await once(gateway.http, request("127.0.0.1", "/readyz"))).status == 200
        assert (await used.ask(request("127.0.0.1", "/readyz"))).status == 200, "the gateway is ready, whoever says so"
        assert used.reader.at_eof() or await used.at_end() == b"", "and was told to close"
        assert await idle.at_end() == b""
        assert time.monotonic() - asked >= GRACE_S
        release.set()
        last = await slow.reply()
        assert (last.status, last.value("connection")) == (200, "close")
        await tunnel.send(b"still there")
        assert await tunnel.reader.readexactly(11) == b"still there"
        assert await tunnel.at_end() == b"", "FIN, not RST, at the limit"
        assert time.monotonic() - asked >= LIMIT_S * 0.9
        assert time.monotonic() - replaced <= LIMIT_S + 0.5
        await until(partial(gone, old), "the replaced workers have ended")
    finally:
        release.set()
        for client in clients:
            await client.close()
        await scripted.stop()


async def gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


# --- other workers by configuration


async def test_workers_and_listeners_change_under_load(gateway: Gateway, shared: Fleet) -> None:
    """Nobody who uses what stays notices; a listener that goes is served for the grace."""
    text = gateway.config.read_text()
    (other,) = free_ports(1)
    async with Counters(gateway), Newcomers(gateway.http, HOST, 150.0) as load:
        for workers in (3, 1):
            gateway.workers = workers
            outcome = await reload(gateway, text.replace("workers: 2", f"workers: {workers}"))
            assert outcome["result"] == "applied", outcome
            await until(partial(settled, gateway), f"{workers} serve")
            assert (await gateway.api("config"))["config"]["workers"] == workers
            await load.goes_on(50)
    assert load.failed == [], str(load)
    gateway.workers = 2
    moved = text.replace(f"127.0.0.1:{gateway.http}", f"127.0.0.1:{other}")
    idle = await Client.connect(gateway.http)
    outcome = await reload(gateway, moved)
    assert outcome["result"] == "applied", outcome
    assert (await once(other, request(HOST))).status == 200
    assert (await once(gateway.http, request(HOST))).status == 200, "for the grace"
    await idle.close()
    await until(partial(refuses, gateway.http), "the old address is closed")
    assert (await once(other, request(HOST))).status == 200


async def refuses(port: int) -> bool:
    try:
        await (await Client.connect(port)).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


async def test_the_admin_address_moves(gateway: Gateway) -> None:
    text, before = gateway.config.read_text(), gateway.admin
    (gateway.admin,) = free_ports(1)
    try:
        gateway.config.write_text(text.replace(f"127.0.0.1:{before}", f"127.0.0.1:{gateway.admin}"))
        gateway.signal(signal.SIGHUP)

        async def answers() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return await settled(gateway)
            return False

        await until(answers, "control answers at its new address")
    finally:
        moved, gateway.admin = gateway.admin, before
        gateway.config.write_text(text)
        gateway.signal(signal.SIGHUP)

    async def is_back() -> bool:
        with contextlib.suppress(OSError, EOFError):
            return await settled(gateway)
        return False

    await until(is_back, "and at the old one again")
    await until(partial(refuses, moved), "the address that it left is closed")


async def test_newcomers_that_fail_change_nothing(gateway: Gateway) -> None:
    """An address that is taken: why is said in log, status and metric. (Workers that fail: test_supervisor.py.)"""
    text, pids = gateway.config.read_text(), await gateway.pids()
    good = (gateway.folder / "state" / "config.last-good").read_bytes()
    taken = gateway.application.port
    refused = await gateway.metric("landbridge_config_reloads_total", source="config", result="refused")
    async with Newcomers(gateway.http, HOST, 100.0) as load:
        outcome = await reload(gateway, text.replace(f"127.0.0.1:{gateway.http}", f"127.0.0.1:{taken}"))
        assert outcome["result"] == "refused"
        assert f"listen.http: cannot listen on 127.0.0.1:{taken}: Address already in use" in outcome["problems"][0]
        assert outcome["problems"][0] in gateway.log()
        await load.goes_on(20)
    assert load.failed == [], str(load)
    status = await gateway.api("status")
    assert status["pids"] == pids
    assert status["replacements"]["result"] == "failed"
    assert "Address already in use" in status["replacements"]["why"]
    assert await gateway.metric("landbridge_config_reloads_total", source="config", result="refused") == refused + 1
    assert (gateway.folder / "state" / "config.last-good").read_bytes() == good
    assert not list((gateway.folder / "state").glob("config.[cn]*")), "no candidate is left"


# --- kills


async def kills(gateway: Gateway, times: int) -> float:
    """Seconds from a worker's kill -9 until a new process serves its slot, the median of `times`."""
    took = []
    for count in range(times):
        victims = {w["slot"]: w["pid"] for w in (await gateway.pids())["workers"]}
        slot = count % len(victims)
        killed = time.monotonic()
        os.kill(victims[slot], signal.SIGKILL)

        async def back(slot: int = slot, victim: int = victims[slot]) -> bool:
            workers = (await gateway.pids())["workers"]
            return any((w["slot"], w["state"]) == (slot, "serving") and w["pid"] != victim for w in workers)

        await until(back, f"slot {slot} is served again")
        took.append(time.monotonic() - killed)
    return statistics.median(took)


async def test_a_killed_worker_is_back_within_a_second(gateway: Gateway) -> None:
    took = await kills(gateway, 3)
    hold("17", "kill -9 of a worker: a new one accepts (median of 3)", took, BACK_LIMIT_S)


@pytest.mark.faults
async def test_a_killed_worker_is_back_within_a_second_of_five(gateway: Gateway) -> None:
    took = await kills(gateway, 5)
    hold("17", "kill -9 of a worker: a new one accepts (median of 5)", took, BACK_LIMIT_S)


# --- reloads


async def reload_often(gateway: Gateway, times: int, rate: float) -> tuple[Load, float, float]:
    """FAULTS 19: (the load, memory after 10 reloads, memory after `times` more), bytes."""
    text = gateway.config.read_text()
    async with Load(gateway.http, HOST, rate=rate) as load:
        for count in range(times + 10):
            outcome = await reload(gateway, text.replace("response: 10s", f"response: {11 + count % 7}s"))
            assert outcome["result"] == "applied"
            if count == 9:
                await load.goes_on(4)
                pids = await gateway.pids()
                members = [pids["control"], *(worker["pid"] for worker in pids["workers"])]
                before = rss_anon_bytes(members)
        await load.goes_on(4)
        after = rss_anon_bytes(members)
    assert load.failed == [], str(load)
    assert await gateway.pids() == pids, "nobody was replaced for data"
    return load, before, after


async def test_reloads_fail_nothing(gateway: Gateway) -> None:
    load, before, after = await reload_often(gateway, 10, 200.0)
    print(f"20 reloads: {load}; RssAnon {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB")


@pytest.mark.faults
async def test_a_hundred_reloads_leave_memory_flat(gateway: Gateway) -> None:
    load, before, after = await reload_often(gateway, 100, 200.0)
    print(f"100 reloads: RssAnon {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB; {load}")
    hold("19", "100 reloads: RssAnon changed by", abs(after / before - 1), MEMORY_LIMIT, "%")


# --- SIGTERM behind a load balancer


async def drain_behind_a_balancer(
    folder: Path, total: int, rate: float, probe_s: float, grace_s: float, connections: int = 10
) -> str:
    """A balancer that probes /readyz and stops sending after two failures loses nothing to a SIGTERM."""
    drain = f"{{grace: {grace_s}s, limit: {2 * grace_s + 2}s}}"
    async with (
        application_process(US) as ports,
        fleet(folder, (US,), TENANTS, ports, workers=2, drain=drain) as made,
    ):
        gateway = made[US]
        async with Load(gateway.http, HOST, rate=rate, connections=connections, idle_s=grace_s) as load:
            while load.ok < total:
                assert load.failed == [], str(load)
                await load.goes_on(2)
            signalled = time.monotonic()
            gateway.signal(signal.SIGTERM)
            failures = 0
            while failures < 2:
                await asyncio.sleep(probe_s)
                reply = await once(gateway.http, request("127.0.0.1", "/readyz"))
                failures = failures + 1 if reply.status == 503 else 0
            unhealthy = time.monotonic() - signalled
        assert unhealthy < grace_s, "this machine is too busy for this test"
        assert load.failed == [], str(load)
        assert await gateway.ended() == 0
        hold(
            "18",
            f"SIGTERM behind a balancer, {load.ok} requests: exit 0",
            time.monotonic() - signalled,
            2 * grace_s + 2,
        )
    return f"SIGTERM behind a balancer: {load}; it stopped sending after {unhealthy:.2f} s of {grace_s:g} s of grace"


async def test_a_balancer_loses_nothing_to_sigterm(tmp_path: Path) -> None:
    print(await drain_behind_a_balancer(tmp_path, 200, 200.0, 0.25, 1.5))


@pytest.mark.faults
async def test_a_balancer_loses_none_of_a_hundred_thousand(tmp_path: Path) -> None:
    print(await drain_behind_a_balancer(tmp_path, 100_000, 1200.0, 1.0, 4.0, connections=40))
