"""The whole control process: files, bus, channel, admin, on real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.bus.messages import Applied, ConnectFailures, Hello
from gateway.settings.loader import load, read_sources
from gateway.store.reader import Reader
from tests.support.application import Application, ok, status
from tests.support.control_process import ControlProcess, control_process
from tests.support.eventually import eventually

CONFIG = """\
region: us-east-1
listen: {http: "127.0.0.1:0", hop: "127.0.0.1:0"}
state_dir: STATE_DIR
workers: 2
hop_keys: ["0123456789abcdef0123456789abcdef"]
regions:
  us-east-1: {public: "http://{tenant}.us.test"}
  eu-west-1: {public: "http://{tenant}.eu.test", gateways: ["127.0.0.1:9"]}
clusters:
  app: {endpoints: ["127.0.0.1:9000"]}
tenancy: {resolvers: [{host: "{tenant}.test"}]}
drain: {grace: 1s, limit: 2s}
"""
TENANTS = """\
tenants:
  acme: {home: us-east-1}
  globex: {home: eu-west-1, state: suspended}
"""


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlProcess]:
    async with control_process(tmp_path, CONFIG, TENANTS) as made:
        yield made


async def complete(control: ControlProcess) -> None:
    """Wait until the tenants file is in the store."""
    async with asyncio.timeout(15):
        while not (await control.get("/api/v1/map"))["complete"]:
            pass


# --- the map


async def test_the_tenants_file_reaches_the_store_and_its_edits_the_workers(control: ControlProcess) -> None:
    await complete(control)
    reader = Reader(control.state_dir / "map")
    try:
        assert reader.complete()
        worker = await control.worker()
        control.tenants.write_text(TENANTS.replace("acme: {home: us-east-1}", "acme: {home: eu-west-1}"))
        change = await worker.map_changed(lambda m: m.tenants)
        assert change.tenants == ("acme",)
        moved = reader.placement("acme")
        assert moved is not None
        assert moved.home == "eu-west-1"
    finally:
        reader.close()
    assert await control.metric("landbridge_config_reloads_total", source="tenants", result="applied") == 2


async def test_a_bad_tenants_edit_keeps_the_map_and_is_named_everywhere(control: ControlProcess) -> None:
    await complete(control)
    control.tenants.write_text(TENANTS + "  hooli: {home: mars}\n")
    await control.logged(f"{control.tenants}:4:")
    shown = await control.get("/api/v1/map")
    assert shown["records"] == 2
    assert shown["stale"] is True
    assert shown["last_error"]["problems"][0].startswith(f"{control.tenants}:4:")
    assert await control.metric("landbridge_map_stale") == 1
    assert await control.metric("landbridge_config_reloads_total", source="tenants", result="refused") == 1
    assert await control.get("/readyz") == "ready\n"


async def test_the_loss_guard_is_a_metric(control: ControlProcess) -> None:
    await complete(control)
    control.tenants.write_text("tenants: {}\n")
    await control.logged("loss_guard")
    assert await control.metric("landbridge_map_loss_guard_pending") == 1
    assert await control.metric("landbridge_map_records") == 2


async def test_without_a_tenants_file_the_gateway_is_not_ready_until_it_comes(tmp_path: Path) -> None:
    async with control_process(tmp_path, CONFIG) as control:
        assert "not complete" in await control.get("/readyz", 503)
        assert await control.get("/healthz") == "ok\n"
        await control.get("/api/v1/tenants/acme", 503)
        control.tenants.write_text(TENANTS)
        await complete(control)
        assert await control.get("/readyz") == "ready\n"


# --- the configuration


async def test_a_valid_edit_reaches_the_workers_as_a_new_generation(control: ControlProcess) -> None:
    worker = await control.worker()
    first = await worker.configured()
    control.file.write_text(control.file.read_text().replace("grace: 1s", "grace: 1500ms"))
    second = await worker.configured(lambda m: m.settings.drain.grace == 1.5)
    assert second.generation > first.generation
    worker.bus.send(Applied(second.generation))
    async with asyncio.timeout(15):
        while (await control.get("/api/v1/status"))["config"]["applied"].get("0") != second.generation:
            pass
    assert await control.metric("landbridge_config_reloads_total", source="config", result="applied") == 1


async def test_a_bad_edit_changes_nothing_and_a_restart_runs_on_last_good(control: ControlProcess) -> None:
    good = control.file.read_text()
    control.file.write_text(good + "drian: {}\n")
    line = len(good.splitlines()) + 1
    await control.logged(f"{control.file}:{line}: drian: ")
    shown = (await control.get("/api/v1/status"))["config"]
    assert shown["running"] == "last-good"
    assert shown["last_reload"]["result"] == "refused"
    assert f"{control.file}:{line}: drian" in shown["last_reload"]["problems"][0]
    await control.kill()
    await control.start()
    worker = await control.worker()
    assert (await worker.configured()).settings.drain.grace == 1.0
    async with asyncio.timeout(15):
        while (await control.get("/api/v1/status"))["config"]["last_reload"] is None:
            pass
    assert (await control.get("/api/v1/status"))["config"]["running"] == "last-good"
    refused = await control.metric("landbridge_config_reloads_total", source="config", result="refused")
    assert refused == 2, "counted by both lives of control"


async def test_a_reload_asks_for_the_workers_that_it_needs(control: ControlProcess) -> None:
    control.file.write_text(control.file.read_text().replace("workers: 2", "workers: 3"))
    control.tell(cmd="reload")
    await control.wait_for({"ask": "replace", "ticket": 1, "configuration": True})
    newcomer, old = await control.worker(0), await control.worker(1)
    newcomer.bus.send(Hello(0, 1, load(read_sources(control.file, {}), {}).digest))
    await newcomer.configured(lambda m: m.settings.workers == 3)
    assert (await old.configured()).settings.workers == 2
    control.tell(cmd="replaced", ticket=1, why="worker 2 exited with 1: no such module")
    await control.logged("workers: the new workers do not serve: worker 2 exited with 1: no such module")
    await control.wait_for({"done": "reload"})
    assert (await control.get("/api/v1/config"))["config"]["workers"] == 2
    control.tell(cmd="reload")
    await control.wait_for({"ask": "replace", "ticket": 2, "configuration": True})
    control.tell(cmd="replaced", ticket=2, why="")
    await old.configured(lambda m: m.settings.workers == 3)
    assert (await control.get("/api/v1/config"))["config"]["workers"] == 3


async def test_a_region_that_goes_judges_the_tenants_again(control: ControlProcess) -> None:
    await complete(control)
    text = control.file.read_text().replace("eu-west-1:", "ap-southeast-2:")
    control.file.write_text(text)
    await control.logged("tenants refused (configuration changed)")
    assert (await control.get("/api/v1/map"))["records"] == 2
    assert [r["name"] for r in (await control.get("/api/v1/regions"))["regions"]] == ["us-east-1", "ap-southeast-2"]


# --- conditions


async def test_a_report_is_judged_at_once_and_the_endpoint_returns_by_a_connect(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        application = await stack.enter_async_context(Application(ok))
        key = f"127.0.0.1:{application.port}"
        config = CONFIG.replace("127.0.0.1:9000", key)
        control = await stack.enter_async_context(control_process(tmp_path, config, TENANTS))
        one, two = await control.worker(0), await control.worker(1)
        await application.stop()
        one.bus.send(ConnectFailures("app", key, 3))
        down = await two.conditions(lambda m: "app" in m.down)
        assert down.down["app"] == (key,)
        assert "app" in down.unable
        await eventually(lambda: f"endpoint {key} of app is down" in control.log())
        shown = (await control.get("/api/v1/clusters"))["clusters"]
        app = next(c for c in shown if c["name"] == "app")
        assert (app["able"], app["endpoints"][0]["up"]) == (False, False)
        assert await control.metric("landbridge_cluster_able", cluster="app") == 0
        await application.start()
        up = await two.conditions(lambda m: m.generation > down.generation and "app" not in m.down)
        assert "app" in up.unable, "it rests first"
        able = await two.conditions(lambda m: m.generation > up.generation and "app" not in m.unable)
        assert "app" not in able.down
        assert application.heads.empty(), "a connect probe sends nothing"


async def test_health_checks_decide_for_all_workers(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        application = await stack.enter_async_context(Application(ok))
        health = "], health: {path: /up, interval: 100ms, healthy: 2, unhealthy: 2}"
        config = CONFIG.replace('127.0.0.1:9000"]', f'127.0.0.1:{application.port}"{health}')
        control = await stack.enter_async_context(control_process(tmp_path, config, TENANTS))
        worker = await control.worker()
        assert (await application.heads.get()).startswith(b"GET /up HTTP/1.1\r\n")
        application.reply = status(503)
        unable = await worker.conditions(lambda m: "app" in m.unable)
        application.reply = ok
        able = await worker.conditions(lambda m: m.generation > unable.generation and "app" not in m.unable)
        assert "app" not in able.down


async def test_a_region_that_does_not_answer_is_unreachable(control: ControlProcess) -> None:
    worker = await control.worker()
    found = await worker.conditions(lambda m: m.peers["eu-west-1"].probed)
    assert not found.peers["eu-west-1"].reachable
    shown = (await control.get("/api/v1/regions"))["regions"][1]
    assert (shown["name"], shown["reachable"], shown["gateways"][0]["up"]) == ("eu-west-1", False, False)
    assert await control.metric("landbridge_peer_able", peer="eu-west-1", cluster="app") == 0


async def test_names_are_resolved_before_workers_hear_of_them(control: ControlProcess) -> None:
    worker = await control.worker()
    control.file.write_text(control.file.read_text().replace("127.0.0.1:9000", "localhost:9000"))
    named = await worker.conditions(lambda m: "localhost" in m.addresses)
    assert "127.0.0.1" in named.addresses["localhost"]
    configured = await worker.configured(lambda m: m.settings.clusters["app"].endpoints[0].host == "localhost")
    assert configured.generation > named.generation
    app = next(c for c in (await control.get("/api/v1/clusters"))["clusters"] if c["name"] == "app")
    assert {"localhost:9000"} == {endpoint["name"] for endpoint in app["endpoints"]}
    assert "127.0.0.1:9000" in {endpoint["address"] for endpoint in app["endpoints"]}


async def test_a_restarted_control_tells_workers_everything_again(control: ControlProcess) -> None:
    worker = await control.worker()
    await control.kill()
    worker.told.clear()
    await control.start()
    await worker.configured()
    await worker.conditions(lambda m: True)
    assert (await worker.map_changed()).from_txn == 0


# --- the end


async def test_drain_says_not_ready_and_goes_on_until_stop(control: ControlProcess) -> None:
    await complete(control)
    control.tell(cmd="drain")
    await control.wait_said("draining")
    assert await control.get("/readyz", 503) == "draining\n"
    assert await control.get("/healthz") == "ok\n"
    assert (await control.get("/api/v1/status"))["draining"] is True
    assert await control.metric("landbridge_draining") == 1
    control.tell(cmd="stop")
    assert await control.ended() == 0


async def test_sigterm_is_drain_and_sigint_is_nothing(control: ControlProcess) -> None:
    control.signal(signal.SIGINT)
    control.signal(signal.SIGTERM)
    await control.wait_said("draining")
    assert await control.get("/healthz") == "ok\n"
    assert await control.ended() == 0, "drain.limit and its margin are over"


async def test_without_a_supervisor_it_drains_and_ends(control: ControlProcess) -> None:
    started = asyncio.get_running_loop().time()
    control.hang_up()
    assert await control.ended() == 0
    assert 1.8 < asyncio.get_running_loop().time() - started < 10
    assert "the supervisor is gone" in control.log()


# --- admin


async def test_status_shows_the_processes(control: ControlProcess) -> None:
    workers = [{"slot": 0, "pid": 11, "state": "serving"}, {"slot": 1, "pid": 12, "state": "starting"}]
    restarts = {"worker": 4, "control": 1, "replicator": 2}
    control.tell(cmd="processes", supervisor=7, control=8, replicator=9, workers=workers, restarts=restarts)
    async with asyncio.timeout(15):
        while (shown := await control.get("/api/v1/status"))["pids"]["supervisor"] != 7:
            pass
    assert shown["pids"] == {"supervisor": 7, "control": 8, "replicator": 9, "workers": workers}
    assert shown["region"] == "us-east-1"
    assert shown["fleet"] == "landbridge"
    assert shown["version"]
    assert shown["restarts"] == restarts
    assert await control.metric("landbridge_worker_restarts_total") == 4
    assert await control.metric("landbridge_replicator_restarts_total") == 2


async def test_tenants_are_paged_and_filtered(control: ControlProcess) -> None:
    await complete(control)
    names = [f"t{n:03d}" for n in range(250)]
    rows = [f"  {name}: {{home: {'eu-west-1' if name.endswith('7') else 'us-east-1'}}}\n" for name in names]
    control.tenants.write_text(TENANTS + "".join(rows))
    await control.logged("250 tenants")
    names = ["acme", "globex", *names]
    found: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        page = await control.get(f"/api/v1/tenants?limit=100&after={after}")
        found += [tenant["tenant"] for tenant in page["tenants"]]
        after, pages = page["next"], pages + 1
    assert (found, pages) == (names, 3)
    there = await control.get("/api/v1/tenants?filter=home:eu-west-1&limit=1000")
    assert [t["tenant"] for t in there["tenants"]] == ["globex", *(n for n in names if n.endswith("7"))]
    part = await control.get("/api/v1/tenants?filter=t24&limit=3")
    assert ([t["tenant"] for t in part["tenants"]], part["next"]) == (["t240", "t241", "t242"], "t242")
    held = await control.get("/api/v1/tenants?filter=suspended")
    assert ([t["tenant"] for t in held["tenants"]], held["next"]) == (["globex"], None)
    one = await control.get("/api/v1/tenants/T007")
    assert (one["tenant"], one["home"], one["state"]) == ("t007", "eu-west-1", "active")
    assert (await control.get("/api/v1/tenants/none", 404))["flag"] == "tenant_unknown"
    for limit in ("0", "1001", "x", "-1", "%C2%B2"):
        await control.get(f"/api/v1/tenants?limit={limit}", 400)


async def test_explain_is_decided_by_the_live_view(control: ControlProcess) -> None:
    await complete(control)
    local = await control.get("/api/v1/explain?host=acme.test&path=/x")
    assert (local["decision"], local["tenant"], local["cluster"]) == ("local", "acme", "app")
    assert {"rule", "outcome"} == set(local["steps"][0])
    suspended = await control.get("/api/v1/explain?host=globex.test&header=Accept:%20text/html&header=X-A:%20b")
    assert (suspended["decision"], suspended["flag"]) == ("reject", "tenant_suspended")
    unknown = await control.get("/api/v1/explain?host=nobody.test&method=POST")
    assert (unknown["status"], unknown["flag"]) == (404, "tenant_unknown")
    await control.get("/api/v1/explain", 400)
    await control.get("/api/v1/explain?host=a.test&header=nocolon", 400)
    split = await control.get("/api/v1/explain?host=a.test&header=X:%20b%0d%0aY:%20c")
    assert split["flag"] == "request_malformed"


async def test_no_secret_is_shown(control: ControlProcess) -> None:
    key = "0123456789abcdef0123456789abcdef"
    for path in ("config", "status", "regions", "clusters", "map", "tenants"):
        assert key not in str(await control.get(f"/api/v1/{path}"))
    assert (await control.get("/api/v1/config"))["config"]["hop_keys"] == ["***"]
    assert key not in await control.get("/metrics")
    assert key not in control.log()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1:80"])
async def test_another_sites_name_is_refused(control: ControlProcess, host: str) -> None:
    for path in ("/api/v1/status", "/metrics", "/nowhere"):
        refused = await control.get(path, 421, Host=host)
        assert refused["status"] == 421


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8081", "a.demo.localhost:1", "127.0.0.1", "127.9.9.9:1", "[::1]:8"]
)
async def test_names_of_this_machine_are_not(control: ControlProcess, host: str) -> None:
    await control.get("/healthz", Host=host)


async def test_errors_are_problem_documents(control: ControlProcess) -> None:
    missing = await control.get("/api/v1/nothing", 404)
    assert (missing["status"], missing["region"]) == (404, "us-east-1")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        async with control.client.request(method, "/api/v1/status") as response:
            assert response.status == 405
            assert response.content_type == "application/problem+json"
            assert response.headers["Allow"] == "GET, HEAD"
    async with control.client.head("/api/v1/status") as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_garbage_is_refused_in_silence(control: ControlProcess) -> None:
    for garbage in (b"BREW / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", control.port)
        writer.write(garbage + b"\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
    assert await control.get("/healthz") == "ok\n"


async def test_the_socket_of_a_killed_control_goes_to_the_next(control: ControlProcess) -> None:
    await control.kill()
    waiting = asyncio.get_running_loop().create_task(control.get("/healthz"))
    await control.start()
    assert await waiting == "ok\n", "a connection made meanwhile is queued, not refused"


async def test_state_files_are_private(control: ControlProcess) -> None:
    await complete(control)
    for path in control.state_dir.rglob("*"):
        assert os.stat(path).st_mode & 0o077 == 0, path
