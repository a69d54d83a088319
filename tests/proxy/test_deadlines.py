"""Over a hop: one layer retries, and nobody works longer for a request than its client waits."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.core.placement import Placement, Version
from gateway.core.retry import Retries
from tests.proxy.test_failures import is_problem
from tests.proxy.test_retries import UNAVAILABLE, never, reset
from tests.support.client import Client, once
from tests.support.facts import REGIONS
from tests.support.origin import Answer, Origin, Seen, ok
from tests.support.pace import within
from tests.support.three_regions import Three, three_regions

US, EU, AP = REGIONS
IN_EU = (Placement(tenant="acme", home=EU, version=Version(1)),)
EAGER = Retries(1.0, frozenset((502, 503, 504)), 0.0, 0.001, 0.002)


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    peer = await Origin().start()
    yield peer
    await peer.stop()


def get(lines: bytes = b"") -> bytes:
    return b"GET /x HTTP/1.1\r\nHost: acme.test\r\n%b\r\n" % lines


def all_eager(three: Three, attempts: int) -> None:
    """Every gateway would retry everything at every cluster, other regions' gateways among them."""
    for plane in three.planes.values():
        clusters = plane.worker.view.clusters.items()
        eager = {
            name: dataclasses.replace(known, retries=attempts, retry=EAGER, breaker=None) for name, known in clusters
        }
        plane.swap(clusters=eager)


@pytest.mark.parametrize("failing", [UNAVAILABLE, reset], ids=["503", "reset"])
async def test_only_the_gateway_that_talks_to_the_application_retries(tmp_path: Path, failing: Answer):
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, IN_EU)) as three:
        all_eager(three, 2)
        three.apps[EU].answer = failing
        reply = await once(three.planes[US].port, get())
        assert reply.status == (503 if failing is UNAVAILABLE else 502)
        assert len(three.apps[EU].requests) == 3
        assert len(three.planes[EU].log.exchanges) == 1, "it was carried once"
        assert not three.planes[US].worker.stats.known("landbridge_retries_total")


async def test_a_post_over_a_hop_is_seen_once(tmp_path: Path):
    post = b"POST /x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 5\r\n\r\nhello"
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, IN_EU)) as three:
        all_eager(three, 3)
        app = three.apps[EU]
        for failing in (UNAVAILABLE, reset, ok, reset):  # the last finds pooled connections on both legs
            app.requests.clear()
            app.answer = failing
            assert (await once(three.planes[US].port, post)).status == (200 if failing is ok else 503 if failing is UNAVAILABLE else 502)  # fmt: skip # noqa: E501
            assert [seen.body for seen in app.requests] == [b"hello"]


@pytest.mark.parametrize("failing", [never, UNAVAILABLE, reset], ids=["slow", "503", "reset"])
async def test_nobody_works_longer_than_the_client_waits(tmp_path: Path, failing: Answer):
    """The home region's gateway has the sender's time less the way back, for all its tries and pauses."""
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, IN_EU)) as three:
        all_eager(three, 100)
        slow = dataclasses.replace(EAGER, per_try_s=0.25, backoff_s=0.2, backoff_max_s=0.2)
        home = three.planes[EU]
        known = home.worker.view.clusters
        home.swap(clusters={**known, "app": dataclasses.replace(known["app"], retry=slow)})
        app = three.apps[EU]
        app.answer = failing
        began = time.monotonic()
        reply = await once(three.planes[US].port, get(b"Connect-Timeout-Ms: 1000\r\n"))
        took = time.monotonic() - began
        assert reply.status >= 502
        assert took < 1.0 + within(0.1)
        told = [int(seen.value("x-gateway-timeout-ms") or 0) for seen in app.requests]
        assert 0 < told[0] <= 500
        assert all(0 < later < earlier for earlier, later in pairwise(told))
        seen = len(app.requests)
        [exchange] = home.log.exchanges
        assert exchange.flag is None or exchange.flag.name in (
            "upstream_timeout",
            "upstream_reset",
            "cluster_unavailable",
        )
        await asyncio.sleep(0.3)  # more than a try and its pause: this wait is the test
        assert len(app.requests) == seen
        assert not home.worker.ups or failing is UNAVAILABLE


async def test_a_client_s_limit_ends_a_wait_for_a_connection(tmp_path: Path):
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, IN_EU)) as three:
        us = three.planes[US]
        known = us.worker.view.clusters
        name = f"region:{EU}"
        us.swap(clusters={**known, name: dataclasses.replace(known[name], connections_max=1, breaker=None)})
        three.apps[EU].answer = never
        first = await Client.connect(us.port)
        await first.send(get())
        while not three.apps[EU].requests:
            await asyncio.sleep(0.001)
        is_problem(await once(us.port, get(b"grpc-timeout: 200m\r\n")), 504, "upstream_timeout")
        await first.close()


async def test_a_hop_that_is_sent_again_says_what_is_left(tmp_path: Path, origin: Origin):
    """The peer dies on a pooled connection half a second after it took the request: the next has that much less."""
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, IN_EU)) as three:
        three.know(eu_west_1=origin.port)
        us = three.planes[US]
        assert (await once(us.port, get())).status == 200

        async def dies(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            origin.answer = ok
            await asyncio.sleep(0.5)  # this time is what is measured
            return False

        origin.answer = dies
        assert (await once(us.port, get())).status == 200
        fields = [seen.value("gateway-hop") or "" for seen in origin.requests]
        deadlines = [float(re.findall(r"deadline=([0-9.]+)", field)[0]) for field in fields]
        assert deadlines[:2] == [15.0, 15.0]
        assert deadlines[2] <= 14.5
        assert len(origin.requests) == 3


async def test_the_entry_carries_its_client_s_limit(tmp_path: Path, origin: Origin):
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, IN_EU)) as three:
        three.know(eu_west_1=origin.port)
        for lines in (b"", b"Prefer: wait=7\r\n", b"Prefer: wait=70\r\n", b"grpc-timeout: 1500m\r\n"):
            assert (await once(three.planes[US].port, get(lines))).status == 200
        found = [re.findall(r"deadline=([0-9.]+)", seen.value("gateway-hop") or "")[0] for seen in origin.requests]
        assert found == ["15.0", "7.0", "15.0", "1.5"]
