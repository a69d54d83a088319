"""Peer questions over real sockets: asked, signed, answered, believed or not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.control import peer_probes
from gateway.control.peer_probes import PeerProbes
from gateway.control.peers import Peers
from gateway.control.tasks import TaskSet
from gateway.core.hop import Reason, sign_answer, verify
from gateway.core.http1.fields import FieldTable
from gateway.core.http1.head import parse_request
from gateway.core.peering import PeerAnswer, encode_answer
from gateway.core.view import Ability, Cluster, Endpoint, Limits, Region, View
from tests.support.application import Application, status
from tests.support.dataplane import cluster, data_plane, view
from tests.support.eventually import eventually

KEY = b"k" * 32
OTHER_KEY = b"o" * 32


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Gateway:
    """The hop listener of region eu: checks the question as a worker does and answers as one."""

    def __init__(self) -> None:
        self.view = View(region="eu", hop_keys=(KEY,), regions={"eu": Region("eu", None)})
        self.draining = False
        self.says_region = "eu"
        self.ahead_ms = 0
        self.answer_key = KEY
        self.spoil: Callable[[bytes], bytes] = lambda body: body
        self.sources: list[str] = []
        self.server = Application(self.reply)

    def reply(self, head: bytes) -> bytes:
        request = parse_request(head.removesuffix(b"\r\n\r\n"), FieldTable(), Limits())
        hop = verify(request, self.view, wall_ms())
        assert hop.reason is Reason.PEER
        self.sources.append(hop.source)
        answer = PeerAnswer(
            region=self.says_region,
            wall_ms=wall_ms() + self.ahead_ms,
            draining=self.draining,
            clusters={"app": Ability.ABLE},
        )
        body = encode_answer(answer)
        sig = sign_answer((self.answer_key,), hop.sig, body)
        body = self.spoil(body)
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n"
            b"Gateway-Verdict: %b\r\nContent-Length: %d\r\n\r\n%b" % (sig, len(body), body)
        )


class Asking:
    """Region us, asking."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.peers = Peers()
        self.tasks = TaskSet()
        self.changed = 0
        self.probes = PeerProbes(self.peers, self.tasks, self.count, random.Random(1), wall_ms)

    def count(self) -> None:
        self.changed += 1

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("gw.eu.internal:8082", "127.0.0.1", self.gateway.server.port)

    def cover(self, keys: tuple[bytes, ...] = (KEY,)) -> None:
        cluster = Cluster("region:eu", (self.endpoint,), region="eu")
        self.peers.cover({"eu": [self.endpoint.key]})
        self.probes.cover(View(region="us", hop_keys=keys, clusters={"region:eu": cluster, "app": Cluster("app", ())}))

    def condition(self) -> tuple[bool, bool, dict[str, Ability]]:
        judged = self.peers.judge(asyncio.get_running_loop().time())["eu"]
        return judged.probed, judged.reachable, judged.clusters

    def reason(self) -> str:
        found = self.peers.find("eu", self.endpoint.key)
        return "" if found is None else found.reason


@pytest.fixture
async def asking(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    monkeypatch.setattr(peer_probes, "EVERY_S", 0.05)
    gateway = Gateway()
    await gateway.server.start()
    made = Asking(gateway)
    yield made
    await made.tasks.close()
    await made.probes.close()
    await gateway.server.stop()
    assert made.tasks.failures == 0


ABLE = (True, True, {"app": Ability.ABLE})
UNREACHABLE = (True, False, dict[str, Ability]())


async def test_an_answer_makes_a_region_able_over_one_kept_connection(asking: Asking) -> None:
    asking.cover()
    assert asking.condition() == (False, True, {})
    await eventually(lambda: len(asking.gateway.sources) >= 5)
    assert asking.condition() == ABLE
    assert set(asking.gateway.sources) == {"us"}
    assert asking.gateway.server.connections.qsize() == 1
    assert asking.changed >= 4


async def test_a_region_that_is_gone_is_unreachable_and_comes_back(asking: Asking) -> None:
    asking.cover()
    await eventually(lambda: asking.condition() == ABLE)
    await asking.gateway.server.stop()
    await eventually(lambda: asking.condition() == UNREACHABLE)
    await asking.gateway.server.start()
    await eventually(lambda: asking.condition() == ABLE)


async def test_draining_is_heard(asking: Asking) -> None:
    asking.gateway.draining = True
    asking.cover()
    await eventually(lambda: asking.condition() == UNREACHABLE)
    found = asking.peers.find("eu", asking.endpoint.key)
    assert found is not None
    assert found.up
    assert found.draining


async def test_skew_is_measured(asking: Asking) -> None:
    asking.gateway.ahead_ms = 7_000
    asking.cover()
    await eventually(lambda: asking.peers.skew_s("eu") is not None)
    assert asking.peers.skew_s("eu") == pytest.approx(7.0, abs=0.9)


@pytest.mark.parametrize("hour_s", [3600, -3600])
async def test_a_clock_an_hour_off_is_named_with_its_skew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hour_s: int
) -> None:
    """FAULTS 22: the real worker refuses the question for its `ts`; its answer still says how late it is there."""
    monkeypatch.setattr(peer_probes, "EVERY_S", 0.05)
    peers, tasks = Peers(), TaskSet()
    probes = PeerProbes(peers, tasks, lambda: None, random.Random(1), lambda: wall_ms() - hour_s * 1000)
    async with data_plane(tmp_path, view(cluster("app", 9), region="eu-west-1")) as plane:
        endpoint = Endpoint("gw", "127.0.0.1", plane.hop_port)
        peers.cover({"eu-west-1": [endpoint.key]})
        region = Cluster("region:eu-west-1", (endpoint,), region="eu-west-1")
        probes.cover(View(region="us-east-1", hop_keys=(KEY,), clusters={region.name: region}))
        await eventually(lambda: not peers.judge(asyncio.get_running_loop().time())["eu-west-1"].reachable)
        found = peers.find("eu-west-1", endpoint.key)
        assert found is not None
        assert found.reason.startswith("its clock is 3")
        assert peers.skew_s("eu-west-1") == pytest.approx(hour_s, abs=2)
        await tasks.close()
        await probes.close()
        assert plane.log.exchanges[0].flag is not None
        assert plane.log.exchanges[0].flag.name == "hop_rejected"


@pytest.mark.parametrize("fault", ["key", "region", "body", "status", "silent", "long", "json"])
async def test_what_is_no_valid_answer_counts_as_none(
    asking: Asking, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = asking.gateway
    expected = "not signed"
    match fault:
        case "key":
            gateway.answer_key = OTHER_KEY
        case "region":
            gateway.says_region, expected = "ap", "a gateway of ap answers there"
        case "body":
            gateway.spoil = lambda body: body.replace(b"able", b"unab")
        case "status":
            gateway.server.reply, expected = status(403), "status 403"
        case "silent":
            monkeypatch.setattr(peer_probes, "ANSWER_MAX_S", 0.05)
            gateway.server.reply, expected = (lambda head: None), "no answer within"
        case "long":
            gateway.spoil, expected = (lambda body: b" " * 100_000 + body), "longer than"
        case "json":
            gateway.spoil = lambda body: b"{}"
    asking.cover()
    await eventually(lambda: asking.condition() == UNREACHABLE)
    assert expected in asking.reason()


async def test_a_rotated_key_is_used_at_once_and_without_keys_nobody_is_asked(asking: Asking) -> None:
    asking.cover((OTHER_KEY,))
    asking.gateway.view = View(region="eu", hop_keys=(OTHER_KEY, KEY))
    asking.gateway.answer_key = OTHER_KEY
    await eventually(lambda: asking.condition() == ABLE)
    asking.gateway.answer_key = KEY
    asking.cover((KEY, OTHER_KEY))
    await eventually(lambda: asking.condition() == ABLE)
    asking.cover(())
    await asyncio.gather(*asking.tasks, return_exceptions=True)
    assert len(asking.tasks) == 0
