"""Two regions' workers on real sockets: hops signed, judged, refused; what a client gets of a peer's refusal."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.hop import sign, sign_question, verify_answer
from gateway.core.peering import PEER_PATH, decode_answer
from gateway.core.placement import Failover, Placement, Version
from gateway.core.view import Ability, View
from tests.support.client import Client, Reply, once
from tests.support.dataplane import KEY, DataPlane, cluster, data_plane, view
from tests.support.origin import Origin

ACME = Placement(tenant="acme", home="us-east-1", version=Version(7))
GLOBEX = Placement(tenant="globex", home="eu-west-1", version=Version(3))
GET = b"GET /x?y=z HTTP/1.1\r\nHost: acme.test\r\n\r\n"


@asynccontextmanager
async def two_regions(
    tmp_path: Path, us_map: tuple[Placement, ...] = (ACME, GLOBEX), eu_map: tuple[Placement, ...] = (ACME, GLOBEX)
) -> AsyncIterator[tuple[DataPlane, DataPlane, Origin, Origin]]:
    """us-east-1 and eu-west-1, each with an application, each the other's peer."""
    us_app, eu_app = await Origin().start(), await Origin().start()
    try:
        async with data_plane(tmp_path / "us", view(cluster("app", us_app.port)), us_map) as us:
            snapshot = view(
                cluster("app", eu_app.port),
                cluster("region:us-east-1", us.hop_port, region="us-east-1"),
                region="eu-west-1",
            )
            async with data_plane(tmp_path / "eu", snapshot, eu_map) as eu:
                us.swap(
                    clusters={
                        **us.worker.view.clusters,
                        "region:eu-west-1": cluster("region:eu-west-1", eu.hop_port, region="eu-west-1"),
                    }
                )
                yield us, eu, us_app, eu_app
    finally:
        await us_app.stop()
        await eu_app.stop()


async def test_a_misrouted_request_is_carried_home(tmp_path: Path):
    async with two_regions(tmp_path) as (us, eu, us_app, eu_app):
        reply = await once(eu.port, GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 6.6.6.6\r\nVia: 1.1 cdn\r\n\r\n"))
        assert reply.status == 200
        assert reply.values("via") == ["1.1 us-east-1.landbridge", "1.1 eu-west-1.landbridge"]
        (seen,) = us_app.requests
        assert eu_app.requests == []
        assert seen.start == b"GET /x?y=z HTTP/1.1"
        assert seen.value("host") == "acme.test"
        assert seen.value("x-tenant") == "acme"
        assert seen.value("x-tenant-epoch") == "7"
        assert seen.value("x-gateway-hops") == "eu-west-1>us-east-1"
        assert seen.value("x-gateway-region") == "us-east-1"
        assert seen.value("x-forwarded-for") == "127.0.0.1"
        assert seen.value("x-forwarded-port") == str(eu.port)
        assert seen.value("x-forwarded-host") == "acme.test"
        assert seen.value("x-request-id") == reply.value("x-request-id")
        assert seen.values("via") == ["1.1 cdn", "1.1 eu-west-1.landbridge", "1.1 us-east-1.landbridge"]
        assert seen.value("gateway-hop") is None
        assert us.log.exchanges[0].client == "127.0.0.1"


async def test_a_browser_is_sent_home(tmp_path: Path):
    async with two_regions(tmp_path) as (_, eu, us_app, _):
        reply = await once(eu.port, GET.replace(b"\r\n\r\n", b"\r\nAccept: text/html\r\n\r\n"))
        assert reply.status == 307
        assert reply.value("location") == "https://acme.us-east-1.test/x?y=z"
        assert reply.value("cache-control") == "no-store"
        assert us_app.requests == []


async def test_a_post_with_expect_is_carried_home(tmp_path: Path):
    async with two_regions(tmp_path) as (_, eu, us_app, _):
        client = await Client.connect(eu.port)
        await client.send(b"POST / HTTP/1.1\r\nHost: acme.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await client.reply()).status == 100
        await client.send(b"ok")
        assert (await client.reply()).status == 200
        await client.close()
        assert us_app.requests[0].body == b"ok"


def hop(sender: View, placement: Placement = ACME, *, to: str = "us-east-1", ts: int | None = None, **more: bytes):
    """A hop as its gateway would sign it, with what the wire says."""
    wire = {"method": b"GET", "target": b"/x", "host": b"acme.test", "forwarded_for": b"9.9.9.9", "request_id": b"r1"}
    now = int(time.time())
    return sign(sender, placement, to=to, reason="misroute", deadline_s=5, ts=ts or now, **(wire | more))


def carry(field: bytes, *lines: bytes, method: bytes = b"GET", target: bytes = b"/x") -> bytes:
    return b"\r\n".join(
        (
            method + b" " + target + b" HTTP/1.1",
            b"Host: acme.test",
            b"X-Forwarded-For: 9.9.9.9",
            b"X-Request-Id: r1",
            *lines,
            b"Gateway-Hop: " + field,
            b"\r\n",
        )
    )


def rejected(reply: Reply, flag: str = "hop_rejected", status: int = 403) -> None:
    assert reply.status == status
    assert f'"flag":"{flag}"'.encode() in reply.body
    assert reply.value("gateway-refused") == flag


async def test_only_a_signed_fresh_hop_to_this_region_is_served(tmp_path: Path):
    async with two_regions(tmp_path) as (us, eu, us_app, _):
        sender = eu.worker.view
        good = hop(sender)
        assert (await once(us.hop_port, carry(good))).status == 200
        assert len(us_app.requests) == 1
        now = int(time.time())
        bad = {
            "missing": GET,
            "form": carry(b"v=1; nonsense"),
            "key": carry(good[:-1] + (b"0" if good[-1:] != b"0" else b"1")),
            "clock": carry(hop(sender, ts=now - 31)),
            "destination": carry(hop(sender, to="eu-west-1")),
        }
        for reason, data in bad.items():
            before = us.worker.stats.values[
                us.worker.stats.series("landbridge_hop_rejected_total", (("reason", reason),))
            ]
            rejected(await once(us.hop_port, data))
            index = us.worker.stats.series("landbridge_hop_rejected_total", (("reason", reason),))
            assert us.worker.stats.values[index] == before + 1, reason
        for changed in (
            carry(good, target=b"/y"),
            carry(good, method=b"POST").replace(b"X-Request-Id", b"Content-Length: 0\r\nX-Request-Id"),
            carry(good).replace(b"9.9.9.9", b"9.9.9.8"),
            carry(good).replace(b"acme.test", b"acme.tesu"),
            carry(good).replace(b"r1", b"r2"),
        ):
            rejected(await once(us.hop_port, changed))
        assert len(us_app.requests) == 1


async def test_a_hop_on_the_public_listener_is_just_a_field_to_remove(tmp_path: Path):
    async with two_regions(tmp_path) as (us, eu, us_app, _):
        reply = await once(us.port, carry(hop(eu.worker.view), b"Gateway_Verdict: x", b"X_Tenant: evil"))
        assert reply.status == 200
        (seen,) = us_app.requests
        assert seen.value("gateway-hop") is None
        assert seen.value("gateway_verdict") is None
        assert seen.value("x_tenant") is None
        assert seen.value("x-tenant") == "acme"
        assert seen.value("x-gateway-hops") == "us-east-1"


async def test_our_own_via_is_a_loop_on_both_listeners(tmp_path: Path):
    async with two_regions(tmp_path) as (us, _eu, us_app, _):
        looped = b"Via: 1.1 x, 1.1 US-EAST-1.landbridge"
        reply = await once(us.port, GET.replace(b"\r\n\r\n", b"\r\n" + looped + b"\r\n\r\n"))
        assert reply.status == 508
        rejected(await once(us.hop_port, carry(b"unsigned", looped)), "loop", 508)
        assert us_app.requests == []


async def test_an_older_map_serves_what_a_newer_one_sends(tmp_path: Path):
    older = Placement(tenant="acme", home="eu-west-1", version=Version(6))
    async with two_regions(tmp_path, us_map=(older,)) as (us, eu, us_app, _):
        assert (await once(eu.port, GET)).status == 200
        assert us_app.requests[0].value("x-tenant-epoch") == "7"
        assert us.worker.stats.values[us.worker.stats.series("landbridge_map_behind_total")] == 1


@pytest.mark.parametrize("failover", [Failover.MANUAL, Failover.ALL])
async def test_a_hop_to_a_dead_application_comes_back_with_a_verdict(tmp_path: Path, failover: Failover):
    acme = Placement(tenant="acme", home="us-east-1", standby=("eu-west-1",), failover=failover, version=Version(7))
    async with two_regions(tmp_path, us_map=(acme,), eu_map=(acme,)) as (us, eu, us_app, eu_app):
        await us_app.stop()
        reply = await once(eu.port, GET)
        if failover is Failover.ALL:
            assert reply.status == 200
            assert eu_app.requests[0].value("x-gateway-hops") == "eu-west-1"
        else:
            assert reply.status == 503
            assert b"cluster_unavailable" in reply.body
        raw = await once(us.hop_port, carry(hop(eu.worker.view, acme)))
        assert (raw.value("gateway-verdict") or "").startswith(
            f"unavailable; standby=eu-west-1; failover={failover}; sig="
        )


async def test_an_applications_own_refusals_pass_through(tmp_path: Path):
    async with two_regions(tmp_path) as (us, eu, us_app, _):
        for status in (421, 403, 503, 508):

            async def answer(seen, reader, writer, status=status):
                writer.write(
                    b"HTTP/1.1 %d Mine\r\nContent-Length: 4\r\nGateway-Refused: loop\r\nGateway-Verdict: x\r\n\r\nmine"
                    % status
                )
                return True

            us_app.answer = answer
            for port in (us.port, eu.port):
                reply = await once(port, GET)
                assert (reply.status, reply.body) == (status, b"mine")
                assert reply.value("gateway-refused") is None
                assert reply.value("gateway-verdict") is None


async def test_a_peer_is_answered_from_the_view_and_the_store(tmp_path: Path):
    async with two_regions(tmp_path) as (us, eu, us_app, _):
        question = sign_question(eu.worker.view, to="us-east-1", ts=int(time.time()), host=b"peer")
        head = b"GET " + PEER_PATH.encode() + b" HTTP/1.1\r\nHost: peer\r\nGateway-Hop: " + question + b"\r\n\r\n"
        reply = await once(us.hop_port, head)
        assert reply.status == 200
        verdict = (reply.value("gateway-verdict") or "").encode()
        assert verify_answer((KEY,), question[-64:].decode(), reply.body, verdict)
        answer = decode_answer(reply.body)
        assert answer.region == "us-east-1"
        assert answer.clusters == {"app": Ability.ABLE}
        assert answer.map.complete
        assert answer.map.records == 2
        assert not answer.draining
        rejected(await once(us.hop_port, head.replace(b"to=us-east-1", b"to=eu-west-1")))
        assert us_app.requests == []
        reply = await once(us.port, head.replace(b"Host: peer", b"Host: acme.test"))
        assert reply.body.startswith(b"GET /.landbridge/peer")


async def test_failover_by_what_is_known_of_the_region(tmp_path: Path):
    acme = Placement(tenant="acme", home="us-east-1", standby=("eu-west-1",), failover=Failover.ALL, version=Version(7))
    async with two_regions(tmp_path, us_map=(acme, GLOBEX), eu_map=(acme, GLOBEX)) as (us, eu, us_app, eu_app):
        eu.swap(probed=frozenset(("us-east-1",)), abilities={("us-east-1", "app"): Ability.UNABLE})
        assert (await once(eu.port, GET)).status == 200
        assert eu_app.requests[-1].value("x-gateway-hops") == "eu-west-1"
        us.swap(clusters={**us.worker.view.clusters, "app": cluster("app", us_app.port, can_serve=False)})
        assert (await once(us.port, GET)).status == 200
        assert eu_app.requests[-1].value("x-gateway-hops") == "us-east-1>eu-west-1"
        eu.swap(unreachable=frozenset(("us-east-1",)), probed=frozenset(("us-east-1",)))
        us.swap(unreachable=frozenset(("eu-west-1",)))
        reply = await once(us.port, GET.replace(b"acme", b"globex"))
        assert reply.status == 503
        assert b"region_unreachable" in reply.body
