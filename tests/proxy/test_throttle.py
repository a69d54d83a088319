"""What limits do to requests, on a real worker: who is charged where, what a refusal says, what is let through."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.bus.messages import Demands, Shares
from gateway.core.limits import Bucket, Limit, TenantLimits, Throttle
from gateway.core.placement import Placement
from gateway.proxy.clients import Clients
from gateway.proxy.limiter import TENANTS_MAX
from tests.proxy.test_hops import two_regions
from tests.support.client import Client, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.eventually import eventually
from tests.support.origin import Origin

GET = b"GET /x HTTP/1.1\r\nHost: acme.test\r\n\r\n"
OTHER = GET.replace(b"acme", b"globex")
ONE = Limit(0.01, 1.0)
"""One request, and another one after a hundred seconds."""
MAP = (Placement(tenant="acme", home="us-east-1"), Placement(tenant="globex", home="us-east-1"))


@asynccontextmanager
async def plane(
    tmp_path: Path, throttle: Throttle | None, placements: tuple[Placement, ...] = MAP, **more: Any
) -> AsyncIterator[tuple[DataPlane, Origin]]:
    app = await Origin().start()
    try:
        async with data_plane(tmp_path, view(cluster("app", app.port), throttle=throttle, **more), placements) as made:
            yield made, app
    finally:
        await app.stop()


async def statuses(port: int, *requests: bytes) -> list[int]:
    return [(await once(port, request)).status for request in requests]


def counted(made: DataPlane, scope: str, limit: str = "rate", outcome: str = "refused") -> int:
    labels = (("scope", scope), ("limit", limit), ("outcome", outcome))
    found = dict(made.worker.stats.known("landbridge_throttled_total"))
    return made.worker.stats.values[found[labels]] if labels in found else 0


async def test_a_refusal_says_which_limit_and_when_to_come_back(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=Limit(0.2, 2.0))) as (made, app):
        replies = [await once(made.port, GET) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        refused = replies[-1]
        document = json.loads(refused.body)
        assert (document["flag"], document["rule"], document["status"]) == ("throttled", "tenant.rate", 429)
        assert document["detail"] == "the tenant's limit is 0.2 requests a second"
        assert refused.value("content-type") == "application/problem+json"
        assert refused.value("retry-after") in ("4", "5")
        assert refused.value("ratelimit-policy") == '"tenant";q=2;w=10'
        assert refused.value("ratelimit") == f'"tenant";r=0;t={refused.value("retry-after")}'
        assert len(app.requests) == 2
        assert counted(made, "tenant") == 1
        assert (made.log.exchanges[-1].reason, made.log.exchanges[-1].status) == ("tenant.rate", 429)
        assert await statuses(made.port, OTHER) == [200], "another tenant has a bucket of its own"


async def test_a_browser_sees_a_page(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=ONE)) as (made, _):
        page = GET.replace(b"\r\n\r\n", b"\r\nAccept: text/html\r\n\r\n")
        assert await statuses(made.port, page) == [200]
        reply = await once(made.port, page)
        assert (reply.status, reply.value("content-type")) == (429, "text/html; charset=utf-8")
        assert reply.value("ratelimit") is not None


async def test_shadow_counts_and_lets_through(tmp_path: Path):
    throttle = Throttle(tenant=Limit(0.01, 1.0, 1, shadow=True))
    async with plane(tmp_path, throttle) as (made, app):
        assert await statuses(made.port, GET, GET, GET) == [200] * 3
        assert counted(made, "tenant", outcome="shadow") == 2
        assert counted(made, "tenant") == 0
        assert len(app.requests) == 3


async def test_who_is_exempt(tmp_path: Path):
    throttle = Throttle(tenant=ONE, gateway=ONE, exempt_tenants=frozenset({"acme"}))
    async with plane(tmp_path, throttle) as (made, _):
        assert await statuses(made.port, GET, GET, OTHER, OTHER) == [200, 200, 200, 429]
        network = ipaddress.ip_network("127.0.0.0/8")
        made.swap(throttle=Throttle(client=ONE, exempt_networks=(network,)))
        assert await statuses(made.port, OTHER, OTHER) == [200, 200]
        made.swap(throttle=Throttle(client=ONE))
        assert await statuses(made.port, OTHER, OTHER) == [200, 429]


async def test_probes_are_never_throttled(tmp_path: Path):
    async with plane(tmp_path, Throttle(client=ONE, gateway=ONE)) as (made, _):
        probe = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        assert await statuses(made.port, *[probe] * 5) == [200] * 5
        assert await statuses(made.port, GET, GET, probe) == [200, 429, 200]


async def test_a_tenants_own_limits_need_no_configuration(tmp_path: Path):
    own = Placement(tenant="acme", home="us-east-1", limits=TenantLimits(0.01, 2))
    async with plane(tmp_path, None, (own, MAP[1])) as (made, _):
        assert await statuses(made.port, GET, GET, GET) == [200, 200, 429]
        assert await statuses(made.port, *[OTHER] * 4) == [200] * 4


async def test_a_route_counts_all_its_requests(tmp_path: Path):
    routes = ((b"/api/open", None), (b"/api", ONE), (b"/", None))
    async with plane(tmp_path, Throttle(routes=routes)) as (made, _):
        api, open_ = GET.replace(b"/x", b"/api/y"), GET.replace(b"/x", b"/api/open")
        assert await statuses(made.port, api, OTHER.replace(b"/x", b"/api"), open_, GET) == [200, 429, 200, 200]
        assert counted(made, "route") == 1


async def test_the_first_limit_that_refuses_is_named(tmp_path: Path):
    async with plane(tmp_path, Throttle(client=Limit(0.01, 3.0), tenant=Limit(0.01, 2.0), gateway=ONE)) as (made, _):
        replies = [await once(made.port, GET) for _ in range(4)]
        rules = [json.loads(reply.body)["rule"] for reply in replies[1:]]
        assert rules == ["gateway.rate", "tenant.rate", "client.rate"]


async def test_a_client_is_an_address_or_a_field(tmp_path: Path):
    throttle = Throttle(client=ONE, client_header=b"x-api-key")
    async with plane(tmp_path, throttle) as (made, _):
        keyed = [GET.replace(b"\r\n\r\n", b"\r\nX-Api-Key: %d\r\n\r\n" % n) for n in (1, 2, 1)]
        assert await statuses(made.port, *keyed) == [200, 200, 429]
        assert await statuses(made.port, GET, GET) == [200, 429]
        await eventually(lambda: _demands(made))
        keys = {row.key for said in _demands(made) for row in said.keys}
        assert all(key.startswith(("c:=", "c:127.0.0.1")) and "1\r" not in key for key in keys)
        assert "c:=1" not in keys, "what clients are named by may be a credential"


def _demands(made: DataPlane) -> list[Demands]:
    return [said for said in made.said if isinstance(said, Demands) and said.keys]


async def test_hops_are_exempt_from_client_limits_and_charged_where_they_are_served(tmp_path: Path):
    """Two requests enter in eu-west-1 for a tenant of us-east-1: the client is charged there, the tenant here."""
    async with two_regions(tmp_path) as (us, eu, us_app, _):
        eu.swap(throttle=Throttle(tenant=ONE, client=Limit(0.01, 2.0)))
        us.swap(throttle=Throttle(tenant=Limit(0.01, 3.0), client=ONE))
        assert await statuses(eu.port, *[GET] * 2) == [200, 200]
        reply = await once(eu.port, GET)
        assert json.loads(reply.body)["rule"] == "client.rate"
        eu.swap(throttle=None)
        assert await statuses(eu.port, GET) == [200]
        reply = await once(eu.port, GET)
        assert (reply.status, json.loads(reply.body)["rule"]) == (429, "tenant.rate")
        assert json.loads(reply.body)["region"] == "us-east-1"
        assert len(us_app.requests) == 3


async def test_slots_are_taken_and_come_back_however_a_request_ends(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=Limit(None, 1.0, 2))) as (made, app):
        go = asyncio.Event()

        async def later(seen: Any, reader: Any, writer: asyncio.StreamWriter) -> bool:
            await go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return True

        app.answer = later
        first, second = await Client.connect(made.port), await Client.connect(made.port)
        await first.send(GET)
        await second.send(GET)
        await eventually(lambda: len(app.requests) == 2)
        refused = await once(made.port, GET)
        assert (refused.status, json.loads(refused.body)["rule"]) == (429, "tenant.concurrency")
        assert refused.value("retry-after") == "1"
        assert refused.value("ratelimit") is None
        assert await statuses(made.port) == []
        second.writer.close()  # it leaves without its answer
        await eventually(lambda: _bucket(made, "acme").inflight == 1)
        go.set()
        assert (await first.reply()).status == 200
        assert await statuses(made.port, GET) == [200]
        await eventually(lambda: _bucket(made, "acme").inflight == 0)
        first.writer.close()


def _bucket(made: DataPlane, tenant: str) -> Bucket:
    return made.worker.limiter._young[tenant]


async def test_who_is_near_its_limit_is_told_where_it_stands(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=Limit(1.0, 100.0))) as (made, _):
        client = await Client.connect(made.port)
        assert (await client.ask(GET)).value("ratelimit") is None
        for _ in range(20):
            await client.ask(GET)
        made.worker.limiter.report(made.worker.now())
        reply = await client.ask(GET)
        assert reply.status == 200
        assert reply.value("ratelimit-policy") == '"tenant";q=100;w=100'
        assert (reply.value("ratelimit") or "").startswith('"tenant";r=7')
        client.writer.close()


# --- the limiter by itself


async def test_shares_change_what_passes_and_never_refill(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=Limit(0.01, 100.0))) as (made, _):
        own = made.worker.limiter
        now = made.worker.now()
        own.told(Shares(1, 0.1, 1.0), now)
        assert await statuses(made.port, *[GET] * 11) == [200] * 10 + [429]
        own.told(Shares(2, 0.1, 1.0, {"t:acme": 0.9}), now)
        assert await statuses(made.port, GET) == [429]
        assert own.report(now + 1) is not None
        own.told(Shares(3, 1.0, 1.0, cold=("t:acme",)), now)
        assert await statuses(made.port, GET, OTHER) == [429, 200]


async def test_a_report_names_what_is_hot_and_what_is_shared_out(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=Limit(10.0, 2.0))) as (made, _):
        own = made.worker.limiter
        now = made.worker.now()
        own.report(now)
        assert await statuses(made.port, OTHER, GET, GET, GET) == [200, 200, 200, 429]
        made.said.clear()
        await eventually(lambda: _demands(made))
        (row,) = _demands(made)[0].keys
        assert (row.key, row.share, row.refused) == ("t:acme", 1.0, 1)
        assert row.demand > 1.0


async def test_without_control_shares_drift_to_equal_ones(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=Limit(10.0, 2.0))) as (made, _):
        own = made.worker.limiter
        now = made.worker.now()
        own.told(Shares(1, 0.125, 0.5, {"t:acme": 0.9}), now)
        for silent_s, share in ((29.0, 0.9), (45.0, 0.5125), (61.0, 0.125)):
            own.report(now + silent_s)
            assert own._share("t:acme", Bucket("t:acme", ONE, 1.0, 1.0, 0.0).scope) == pytest.approx(share)


async def test_a_client_that_is_quiet_again_goes_back_to_the_many(tmp_path: Path):
    async with plane(tmp_path, Throttle(client=ONE)) as (made, _):
        own = made.worker.limiter
        assert await statuses(made.port, GET, GET) == [200, 429]
        assert list(own._hot_clients) == ["127.0.0.1"]
        for n in range(1, 5):
            own.report(made.worker.now() + n)
        assert own._hot_clients == {}
        assert await statuses(made.port, GET) == [429], "and its tokens with it"


def test_no_request_can_ask_redis():
    """A worker's program knows of no Redis: what is on a request's way cannot wait for one."""
    code = "import gateway.proxy.main, sys; sys.exit(any(name.partition('.')[0] == 'redis' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_million_clients_in_a_stated_size():
    """32 MiB; each keeps its own bucket, but for the one in fifty that finds its set full."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clients = Clients()
    keys = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(1_000_000)]
    for key in keys:
        assert clients.take(key, 100.0, 10.0, 10.0) == 0.0
    forgotten = sum(clients.take(key, 100.5, 10.0, 10.0) == 0.0 for key in keys[::50])
    assert forgotten < 0.05 * len(keys[::50])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 32 + 110, "the keys of this test are the rest"


def test_of_a_full_set_the_least_recently_used_goes():
    clients = Clients(4)
    for n in range(4):
        assert clients.take(f"c{n}", float(n), 100.0, 100.0) == 0.0
    assert clients.take("c4", 4.0, 100.0, 100.0) == 0.0
    assert [clients.take(f"c{n}", 5.0, 100.0, 100.0) > 0 for n in (1, 2, 3, 4)] == [True] * 4


async def test_tenants_buckets_are_bounded_and_the_used_ones_stay(tmp_path: Path):
    async with plane(tmp_path, Throttle(tenant=ONE)) as (made, _):
        own = made.worker.limiter
        assert await statuses(made.port, GET, GET) == [200, 429]
        for n in range(3 * TENANTS_MAX // 2):
            own._young.get(f"t{n}") or own._tenant(f"t{n}", ONE, 0.0)
            if n % 20_000 == 0:
                own._young.get("acme") or own._tenant("acme", ONE, 0.0)
        assert len(own._young) + len(own._old) <= TENANTS_MAX
        assert await statuses(made.port, GET) == [429]
