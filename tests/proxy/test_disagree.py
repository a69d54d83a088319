"""Gateways that disagree, on real sockets: verdicts followed, bodies sent again whole, what verdicts leave behind."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gateway.core.following import OVERRIDE_S
from gateway.core.hop import Unavailable, Verdict, sign_verdict, signature_of
from gateway.core.placement import Failover, Placement, Version
from gateway.core.view import ClusterTimeouts
from tests.support.client import Client, Reply, once
from tests.support.dataplane import KEY, cluster
from tests.support.facts import REGIONS, Facts, browser, record
from tests.support.model import Site, travel
from tests.support.origin import Origin, Seen, read_chunked
from tests.support.three_regions import Three, three_regions

US, EU, AP = REGIONS
GET = b"GET /x?y=z HTTP/1.1\r\nHost: acme.test\r\n\r\n"


def acme(home: str, epoch: int, *standby: str, failover: Failover = Failover.ALL) -> Placement:
    return Placement(tenant="acme", home=home, standby=standby, failover=failover, version=Version(epoch))


OLD, NEW = acme(EU, 6), acme(AP, 8)
STALE_US = {US: (OLD,), EU: (NEW,), AP: (NEW,)}
"""The entry's map is old: it sends to eu, who knows that the tenant lives in ap."""


def received(three: Three) -> dict[str, int]:
    return {name: len(app.requests) for name, app in three.apps.items() if app.requests}


def refused(reply: Reply, status: int, flag: str) -> None:
    assert reply.status == status, reply
    assert f'"flag":"{flag}"'.encode() in reply.body
    assert reply.value("retry-after") == "1"
    assert reply.value("gateway-verdict") is None


# ---- the same as the model, on a seeded sample


@pytest.fixture
def refusing() -> Iterator[Callable[[], int]]:
    """Ports that refuse connections, and that nobody else can take meanwhile: bound, and not listening."""
    held: list[socket.socket] = []

    def port() -> int:
        sock = socket.socket()
        held.append(sock)
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

    yield port
    for sock in held:
        sock.close()


class Sampled:
    """Random fleets: each tenant has a record of its own in each region's map."""

    def __init__(self, seed: int, mixes: int, tenants: int) -> None:
        self.rng = random.Random(seed)
        self.mixes = [self._sites() for _ in range(mixes)]
        self.tenants = [
            {name: self._record(f"t{mix}-{number}") for name in REGIONS}
            for mix in range(mixes)
            for number in range(tenants)
        ]
        self.per_mix = tenants

    def _sites(self) -> dict[str, Site]:
        return {name: self.rng.choice((Site.UP, Site.UP, Site.DEAD, Site.DYING, Site.CUT)) for name in REGIONS}

    def _record(self, tenant: str) -> Placement | None:
        if self.rng.random() < 0.08:
            return None
        home, *others = self.rng.sample(REGIONS, 3)
        standby = tuple(others[: self.rng.randint(0, 2)])
        return record(home, tenant=tenant, standby=standby, failover=self.rng.choice(list(Failover)),
                      epoch=self.rng.randint(1, 3))  # fmt: skip

    def maps(self) -> dict[str, list[Placement]]:
        return {name: [t[name] for t in self.tenants if t[name] is not None] for name in REGIONS}  # type: ignore[misc]


async def arrange(three: Three, sites: dict[str, Site], refusing: Callable[[], int]) -> None:
    """New applications where they live, closed ports where they do not, and what everybody knows of it."""
    for name, site in sites.items():
        app = three.apps[name]
        await app.stop()
        app.requests.clear()
        if site in (Site.UP, Site.CUT):
            await app.start()
        else:
            app.port = refusing()
    cut = {name.replace("-", "_"): refusing() for name, site in sites.items() if site is Site.CUT}
    three.know(**cut)
    three.tell_dead(frozenset(name for name, site in sites.items() if site is Site.DEAD))


async def test_three_gateways_do_what_the_model_does(tmp_path: Path, refusing: Callable[[], int]):
    sample = Sampled(seed=20261124, mixes=48, tenants=20)
    ends = set()
    async with three_regions(tmp_path, sample.maps()) as three:
        for number, sites in enumerate(sample.mixes):
            await arrange(three, sites, refusing)
            dead = frozenset(name for name, site in sites.items() if site is Site.DEAD)
            for index in range(number * sample.per_mix, (number + 1) * sample.per_mix):
                records, tenant = sample.tenants[index], f"t{number}-{index % sample.per_mix}"
                entry, method = sample.rng.choice(REGIONS), sample.rng.choice((b"GET", b"POST"))
                page = sample.rng.random() < 0.2
                facts = browser(method=method) if page else Facts(method=method)
                expected = travel(entry, facts, records.__getitem__, sites.__getitem__, dead, None)
                head = b"%b /x HTTP/1.1\r\nHost: %b.test\r\n" % (method, tenant.encode())
                lines = b"Accept: text/html\r\n" if page else b""
                body = b"Content-Length: 2\r\n\r\nok" if method == b"POST" else b"\r\n"
                reply = await once(three.planes[entry].port, head + lines + body)
                world = (entry, method, records, sites, expected, reply)
                check_end(reply, expected.end, page, world)
                ends.add(expected.end)
                arrived = [n for n, app in three.apps.items() for s in app.requests if s.value("x-tenant") == tenant]
                hops = [n for n, plane in three.planes.items() for e in plane.log.exchanges
                        if e.tenant == tenant and e.listener == "hop"]  # fmt: skip
                assert arrived == list(expected.received), world
                assert sorted(hops) == sorted(expected.sends), world
                assert len(hops) <= 2, world
    assert {"served", "redirected", "region_disagrees", "cluster_unavailable", "region_unreachable"} <= ends


def check_end(reply: Reply, end: str, page: bool, world: object) -> None:
    if end == "served":
        assert reply.status == 200, world
    elif end == "redirected":
        assert reply.status == 307, world
    else:
        assert reply.status >= 400, world
        flag = end.encode()
        if flag == b"upstream_connect":  # after three of them the worker knows by itself, and says so
            assert b"upstream_connect" in reply.body or b"cluster_unavailable" in reply.body, world
        else:
            assert flag in reply.body, world


# ---- what a verdict leads to


async def test_a_moved_tenant_is_found_by_the_verdict_and_remembered(tmp_path: Path):
    async with three_regions(tmp_path, STALE_US) as three:
        us = three.planes[US]
        assert (await once(us.port, GET)).status == 200
        assert received(three) == {AP: 1}
        seen = three.apps[AP].requests[0]
        assert (seen.value("x-tenant-epoch"), seen.value("x-tenant-home")) == ("8", AP)
        assert seen.value("x-gateway-hops") == f"{US}>{AP}"
        assert (us.log.exchanges[0].decision.region, us.log.exchanges[0].status) == (AP, 200)  # type: ignore[union-attr]
        assert (await once(us.port, GET)).status == 200
        assert len(three.planes[EU].log.exchanges) == 1, "the second request went there at once"
        assert three.count(US, "landbridge_overrides") == 1
        assert three.count(US, "landbridge_hops_total", ("peer", EU), ("outcome", "redirected")) == 1
        assert three.count(US, "landbridge_hops_total", ("peer", AP), ("outcome", "served")) == 2
        assert us.worker.placement("acme") == OLD, "an override is never written to the map"


async def test_an_override_ends_with_its_time_or_when_the_map_has_caught_up(tmp_path: Path):
    async with three_regions(tmp_path, STALE_US) as three:
        worker = three.planes[US].worker
        assert (await once(three.planes[US].port, GET)).status == 200
        start, now = worker.now, worker.now()
        assert worker.overrides.over("acme", OLD, None, now).home == AP  # type: ignore[union-attr]
        worker.now = lambda: start() + OVERRIDE_S + 1
        worker.sweep()
        assert three.count(US, "landbridge_overrides") == 0
        worker.now = start
        assert (await once(three.planes[US].port, GET)).status == 200
        assert len(three.planes[EU].log.exchanges) == 2
        caught_up = acme(US, 8)
        worker._placements.put("acme", caught_up)  # as control's MapChanged leads to
        assert (await once(three.planes[US].port, GET)).status == 200
        assert received(three) == {AP: 2, US: 1}
        assert worker.overrides.items == {}


async def test_a_hop_is_judged_by_the_map_and_never_sent_on(tmp_path: Path):
    """us holds an override to ap; eu's hop to us is still answered from the map of us."""
    maps = {US: (acme(EU, 6),), EU: (acme(AP, 8),), AP: (acme(AP, 8),)}
    async with three_regions(tmp_path, maps) as three:
        us, eu = three.planes[US], three.planes[EU]
        assert (await once(us.port, GET)).status == 200
        assert us.worker.overrides.items
        eu.worker._placements.put("acme", acme(US, 5))
        assert (await once(eu.port, GET)).status == 200
        hop = us.log.exchanges[-1]
        assert (hop.listener, hop.status, hop.placement) == ("hop", 421, OLD)
        assert received(three) == {AP: 1, EU: 1}, "the map of us says eu, and eu believes it: its own is older"


async def test_an_application_that_is_gone_is_replaced_by_a_standby_without_an_override(tmp_path: Path):
    both = acme(EU, 7, AP, US)
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, (both,))) as three:
        await three.apps[EU].stop()
        assert (await once(three.planes[US].port, GET)).status == 200
        assert received(three) == {AP: 1}
        await three.apps[AP].stop()
        assert (await once(three.planes[US].port, GET)).status == 200
        assert received(three) == {AP: 1, US: 1}
        await three.apps[US].stop()
        refused(await once(three.planes[US].port, GET), 503, "cluster_unavailable")
        assert three.planes[US].worker.overrides.items == {}
        assert three.count(US, "landbridge_hops_total", ("peer", EU), ("outcome", "unavailable")) == 3


async def test_a_region_that_cannot_be_connected_is_struck_out(tmp_path: Path, refusing: Callable[[], int]):
    covered, manual = acme(EU, 7, AP), acme(EU, 7, AP, failover=Failover.MANUAL)
    other = Placement(tenant="globex", home=EU, standby=(AP,), version=manual.version)
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, (covered, other))) as three:
        three.know(eu_west_1=refusing())
        assert (await once(three.planes[US].port, GET)).status == 200
        assert received(three) == {AP: 1}
        refused(await once(three.planes[US].port, GET.replace(b"acme", b"globex")), 503, "region_unreachable")
        assert three.planes[US].worker.overrides.items == {}
        assert three.count(US, "landbridge_hops_total", ("peer", EU), ("outcome", "error")) == 2


async def test_the_home_regions_own_dead_application_is_struck_out_too(tmp_path: Path):
    here = acme(US, 7, EU)
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, (here,))) as three:
        await three.apps[US].stop()
        assert (await once(three.planes[US].port, GET)).status == 200
        assert received(three) == {EU: 1}


async def test_a_verdict_may_send_a_browser_on(tmp_path: Path):
    """Its own host cannot be redirected to eu, which has no public URL for it; to ap, where it lives, it can."""
    more = {"hosts": ("shop.example",), "public": {AP: "https://ap.shop.example"}}
    maps = {US: (Placement(tenant="acme", home=EU, version=Version(6), **more),), EU: (NEW,)}
    async with three_regions(tmp_path, maps) as three:
        page = b"GET /x?y=z HTTP/1.1\r\nHost: shop.example\r\nAccept: text/html\r\n\r\n"
        reply = await once(three.planes[US].port, page)
        assert (reply.status, reply.value("location")) == (307, "https://ap.shop.example/x?y=z")
        assert len(three.planes[EU].log.exchanges) == 1
        assert received(three) == {}


# ---- peers that a test plays


Act = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool | None]]


def verdict_of(seen: Seen, verdict: Verdict | Unavailable, key: bytes = KEY) -> bytes:
    hop = (seen.value("gateway-hop") or "").encode()
    status = b"421 Misdirected" if isinstance(verdict, Verdict) else b"503 Unavailable"
    signed = sign_verdict((key,), signature_of(hop), verdict)
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nGateway-Verdict: " + signed + b"\r\n\r\n"


def saying(verdict: Verdict | Unavailable, key: bytes = KEY, after_s: float = 0.0) -> Act:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(after_s)
        writer.write(verdict_of(seen, verdict, key))
        return False

    return answer


def moved(home: str, epoch: int) -> Verdict:
    return Verdict(Version(epoch), home, (), Failover.MANUAL)


def pairs(seen: Seen) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in (seen.value("gateway-hop") or "").split("; "))


async def test_two_sends_and_no_third_each_signed_anew(tmp_path: Path):
    eu, ap = Origin(), Origin()
    await eu.start()
    await ap.start()
    eu.answer, ap.answer = saying(moved(AP, 8), after_s=0.3), saying(moved(EU, 9))
    async with three_regions(tmp_path, {US: (OLD,)}) as three:
        three.know(eu_west_1=eu.port, ap_southeast_2=ap.port)
        refused(await once(three.planes[US].port, GET), 503, "region_disagrees")
        assert (len(eu.requests), len(ap.requests)) == (1, 1)
        first, second = pairs(eu.requests[0]), pairs(ap.requests[0])
        assert (first["to"], first["ver"], first["home"], first["deadline"]) == (EU, "6.0.", EU, "15.0")
        assert (second["to"], second["ver"], second["home"]) == (AP, "8.0.", AP)
        assert 14.0 < float(second["deadline"]) <= 14.7
        assert first["sig"] != second["sig"]
        assert three.planes[US].worker.overrides.over("acme", OLD, None, time.monotonic()).home == EU  # type: ignore[union-attr]
    await eu.stop()
    await ap.stop()


@pytest.mark.parametrize(
    "answer",
    [
        saying(moved(AP, 8), key=b"f" * 32),
        saying(moved(AP, 6)),
        saying(moved(AP, 5)),
    ],
    ids=["foreign key", "no newer", "older"],
)
async def test_what_no_peer_signed_or_knew_better_is_not_followed(tmp_path: Path, answer: Act):
    eu = await Origin().start()
    eu.answer = answer
    async with three_regions(tmp_path, {US: (OLD,), AP: (NEW,)}) as three:
        three.know(eu_west_1=eu.port)
        reply = await once(three.planes[US].port, GET)
        assert reply.status in (421, 503)
        assert received(three) == {}
        worker = three.planes[US].worker
        assert worker.overrides.over("acme", OLD, None, worker.now()) is OLD
    await eu.stop()


async def test_an_applications_own_words_set_no_override(tmp_path: Path):
    """FAULTS 41: 421, 503, 508 and Gateway-* fields of an application pass as its own, near and far."""
    here = Placement(tenant="globex", home=US, version=Version(1))
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, (acme(EU, 6), here))) as three:
        for status in (421, 403, 503, 508):

            async def answer(seen, reader, writer, status=status):
                verdict = b"ver=9.0.; home=ap-southeast-2; standby=; failover=all; sig=" + b"0" * 64
                fields = b"Content-Length: 3\r\nGateway-Refused: loop\r\nGateway-Verdict: " + verdict
                writer.write(b"HTTP/1.1 %d Own\r\n%b\r\n\r\nown" % (status, fields))
                return True

            for name in (US, EU):
                three.apps[name].answer = answer
            for host in (b"acme", b"globex"):
                reply = await once(three.planes[US].port, GET.replace(b"acme", host))
                assert (reply.status, reply.body) == (status, b"own")
                assert reply.value("gateway-verdict") is None
                assert reply.value("gateway-refused") is None
        assert three.planes[US].worker.overrides.items == {}
        assert received(three) == {US: 4, EU: 4}


async def test_a_loop_is_not_followed(tmp_path: Path):
    """508 says only that somebody is wrong, not who serves."""
    async with three_regions(
        tmp_path, {US: (acme(EU, 6, AP),), EU: (acme(EU, 6, AP),), AP: (acme(EU, 6, AP),)}
    ) as three:
        seen_before = GET.replace(b"\r\n\r\n", b"\r\nVia: 1.1 eu-west-1.landbridge\r\n\r\n")
        refused(await once(three.planes[US].port, seen_before), 503, "region_disagrees")
        assert received(three) == {}
        assert three.count(US, "landbridge_hops_total", ("peer", EU), ("outcome", "loop")) == 1


# ---- bodies


def post(length: int, *lines: bytes) -> bytes:
    return b"\r\n".join((b"POST / HTTP/1.1", b"Host: acme.test", b"Content-Length: %d" % length, *lines, b"\r\n"))


@pytest.mark.parametrize("size", [1, 65536, 65537, 1 << 20])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_arrives_whole_after_a_verdict(tmp_path: Path, size: int, chunked: bool):
    body = random.Random(size).randbytes(size)
    async with three_regions(tmp_path, STALE_US) as three:
        head, data = post(size), body
        if chunked:
            head = head.replace(b"Content-Length: %d" % size, b"Transfer-Encoding: chunked")
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        reply = await once(three.planes[US].port, head + data)
        assert reply.status == 200
        assert [seen.body for seen in three.apps[AP].requests] == [body]
        assert received(three) == {AP: 1}
        if chunked or size > 65536:
            assert three.planes[EU].log.exchanges[0].bytes_in == 0, "the peer that refused never saw the body"


async def test_a_body_arrives_whole_here_after_a_verdict(tmp_path: Path):
    body = random.Random(1).randbytes(300_000)
    async with three_regions(tmp_path, {US: (OLD,), EU: (acme(US, 8),)}) as three:
        client = await Client.connect(three.planes[US].port)
        for _ in range(2):
            await client.send(post(len(body)) + body)
            assert (await client.reply()).status == 200
        await client.close()
        assert [seen.body for seen in three.apps[US].requests] == [body, body]
        first = three.apps[US].requests[0]
        assert (first.value("x-tenant-epoch"), first.value("x-tenant-home")) == ("8", US)
        assert first.value("x-gateway-hops") == US


async def test_a_client_that_expects_is_told_to_go_on_by_who_serves(tmp_path: Path):
    async with three_regions(tmp_path, STALE_US) as three:
        client = await Client.connect(three.planes[US].port)
        await client.send(post(2, b"Expect: 100-continue"))
        assert (await client.reply()).status == 100
        assert len(three.planes[EU].log.exchanges) == 1, "eu has refused before the client was told"
        await client.send(b"ok")
        assert (await client.reply()).status == 200
        await client.close()
        assert three.apps[AP].requests[0].body == b"ok"


async def test_a_peer_that_answers_without_100_gets_no_body(tmp_path: Path):
    got = bytearray()
    done = asyncio.Event()

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 413 Too much\r\nContent-Length: 3\r\n\r\nno!")
        got.extend(await reader.read())
        writer.close()
        done.set()

    server = await asyncio.start_server(early, "127.0.0.1", 0)
    async with three_regions(tmp_path, {US: (OLD,)}) as three:
        three.know(eu_west_1=server.sockets[0].getsockname()[1])
        chunked = post(1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n"
        for data in (post(100_000) + b"x" * 1000, chunked):
            done.clear()
            reply = await once(three.planes[US].port, data)
            assert (reply.status, reply.body) == (413, b"no!")
            assert reply.value("connection") == (None if data is chunked else "close")
            await asyncio.wait_for(done.wait(), 2)  # well before an idle connection would be closed
            assert got == b""
    server.close()


async def test_what_went_out_after_the_100_is_not_sent_again(tmp_path: Path):
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen = Seen(head.split(b"\r\n")[0], head[:-4].split(b"\r\n")[1:], b"", 1)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await read_chunked(reader) == b"x"
        writer.write(verdict_of(seen, moved(AP, 8)))
        writer.close()

    server = await asyncio.start_server(late, "127.0.0.1", 0)
    async with three_regions(tmp_path, {US: (OLD,), AP: (NEW,)}) as three:
        three.know(eu_west_1=server.sockets[0].getsockname()[1])
        data = post(1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n"
        refused(await once(three.planes[US].port, data), 503, "region_disagrees")
        assert received(three) == {}
        assert (await once(three.planes[US].port, data)).status == 200, "the verdict itself was remembered"
        assert received(three) == {AP: 1}
    server.close()


async def test_a_websocket_handshake_is_followed_until_the_101(tmp_path: Path):
    async def echo(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        writer.write(await reader.readexactly(4))
        return False

    async with three_regions(tmp_path, STALE_US) as three:
        three.apps[AP].answer = echo
        client = await Client.connect(three.planes[US].port)
        upgrade = b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
        assert (await client.ask(GET.replace(b"\r\n\r\n", upgrade))).status == 101
        await client.send(b"ping")
        assert await client.at_end() == b"ping"
        await client.close()
        assert three.count(US, "landbridge_hops_total", ("peer", AP), ("outcome", "served")) == 1


@pytest.mark.parametrize("method", [b"PUT", b"GET"])
async def test_a_write_that_may_have_reached_somebody_is_not_followed(tmp_path: Path, method: bytes):
    """A pooled hop connection dies under a PUT; sent once more to the same region, the verdict there comes too late:
    not even our own application, which is no send, may have the request now. What only reads may go on."""
    eu = await Origin().start()
    async with three_regions(tmp_path, {US: (acme(EU, 6, US),)}) as three:
        three.know(eu_west_1=eu.port)
        assert (await once(three.planes[US].port, GET)).status == 200

        async def dies(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            eu.answer = saying(Unavailable((US,), Failover.ALL))
            return False

        eu.answer = dies
        reply = await once(three.planes[US].port, GET.replace(b"GET", method))
        assert len(eu.requests) == 3
        if method == b"PUT":
            refused(reply, 503, "cluster_unavailable")
            assert received(three) == {}
        else:
            assert reply.status == 200
            assert received(three) == {US: 1}
    await eu.stop()


@pytest.mark.parametrize("method", [b"PUT", b"GET"])
async def test_an_application_that_may_have_a_hops_write_gives_no_verdict(tmp_path: Path, method: bytes):
    """It died under a PUT on a pooled connection and cannot be connected any more: no standby may have that PUT. A GET
    may be had by two, and is answered."""
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, (acme(EU, 7, AP),))) as three:
        assert (await once(three.planes[US].port, GET)).status == 200
        app = three.apps[EU]

        async def dies(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            assert app._server is not None
            app._server.close()
            return False

        app.answer = dies
        reply = await once(three.planes[US].port, GET.replace(b"GET", method))
        if method == b"PUT":
            assert reply.status == 502
            assert b"upstream_connect" in reply.body
            assert received(three) == {EU: 2}
        else:
            assert reply.status == 200
            assert received(three) == {EU: 2, AP: 1}


async def test_a_hop_for_which_no_time_is_left_is_not_made(tmp_path: Path):
    eu = await Origin().start()
    eu.answer = saying(moved(AP, 8), after_s=0.2)
    async with three_regions(tmp_path, {US: (OLD,), AP: (NEW,)}) as three:
        three.know(eu_west_1=eu.port)
        us, brief = three.planes[US], ClusterTimeouts(response=0.6)
        known = dict(us.worker.view.clusters)
        for name, port in ((EU, eu.port), (AP, three.planes[AP].hop_port)):
            known[f"region:{name}"] = cluster(f"region:{name}", port, region=name, timeouts=brief)
        us.swap(clusters=known)
        refused(await once(us.port, GET), 503, "region_disagrees")
        assert received(three) == {}
    await eu.stop()


async def test_a_stale_connection_is_no_third_send(tmp_path: Path):
    """The second hop meets a pooled connection that dies: once more would be the third send."""
    globex = Placement(tenant="globex", home=AP, version=Version(1))
    ap = await Origin().start()
    async with three_regions(tmp_path, {US: (OLD, globex), EU: (NEW,)}) as three:
        three.know(ap_southeast_2=ap.port)
        assert (await once(three.planes[US].port, GET.replace(b"acme", b"globex"))).status == 200

        async def dies(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            return False

        ap.answer = dies
        reply = await once(three.planes[US].port, GET)
        assert reply.status == 502
        assert b"upstream_reset" in reply.body
        assert (len(ap.requests), ap.connections) == (2, 1)
        assert len(three.planes[EU].log.exchanges) == 1
    await ap.stop()


async def test_a_peer_that_never_says_100_is_waited_for_as_long_as_for_an_answer(tmp_path: Path):
    head = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head.set()
        assert await reader.read() == b""
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with three_regions(tmp_path, {US: (OLD,)}) as three:
        port = server.sockets[0].getsockname()[1]
        us = three.planes[US]
        brief = cluster(f"region:{EU}", port, region=EU, timeouts=ClusterTimeouts(response=0.2))
        us.swap(clusters={**us.worker.view.clusters, f"region:{EU}": brief})
        reply = await once(us.port, post(100_000) + b"x" * 100)
        assert reply.status == 504
        assert head.is_set()
    server.close()


@pytest.mark.parametrize("covered", [True, False])
@pytest.mark.parametrize("entry", [EU, US])
async def test_a_read_of_an_application_that_dies_again_and_again_goes_to_a_standby(
    tmp_path: Path, entry: str, covered: bool
):
    """As it does while it dies: a new connection is still accepted, and reset. Where nobody stands by, it is 502."""
    record = acme(EU, 7, AP) if covered else acme(EU, 7)
    async with three_regions(tmp_path, dict.fromkeys(REGIONS, (record,))) as three:

        async def dies(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            return False

        three.apps[EU].answer = dies
        reply = await once(three.planes[entry].port, GET)
        if covered:
            assert reply.status == 200
            assert received(three) == {EU: 2, AP: 1}
        else:
            assert reply.status == 502
            assert b"upstream_reset" in reply.body
            assert received(three) == {EU: 2}
        posted = await once(three.planes[entry].port, post(3) + b"abc")
        assert posted.status == 502, "what may have been carried out is sent to nobody else"
