"""Questions over real sockets to a real name server: every way in which an answer comes, or does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.control.discovery import wire
from gateway.control.discovery.wire import Wire, has_ipv6
from gateway.core.discovery import TARGETS_MAX, Answer, Found, Kind, Lacking, Record, Result, Rules, Service
from tests.support.name_server import NameServer, name_server

A, AAAA, SRV = Record.A, Record.AAAA, Record.SRV


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with name_server() as made:
        yield made


@pytest.fixture
async def asking() -> AsyncIterator[Wire]:
    made = Wire(ipv6=lambda: True)
    yield made
    made.close()


def rules(*servers: NameServer, timeout: float = 2.0) -> Rules:
    return Rules(tuple(("127.0.0.1", server.port) for server in servers), timeout=timeout)


async def hosts(asking: Wire, name: str, by: Rules) -> dict[Record, Answer]:
    return await asking(Kind.HOST, name, by)


def result(answer: Answer) -> Result:
    return Result.FOUND if isinstance(answer, Found) else answer.result


async def test_addresses_of_both_families_with_their_ttls(server: NameServer, asking: Wire) -> None:
    server.put("app.internal", "A", "10.0.0.2", "10.0.0.1", ttl=60)
    server.put("app.internal", "AAAA", "fd00::0:1", ttl=30)
    assert await hosts(asking, "app.internal", rules(server)) == {
        A: Found(("10.0.0.1", "10.0.0.2"), 60.0),
        AAAA: Found(("fd00::1",), 30.0),
    }


async def test_without_ipv6_nobody_asks_for_it(server: NameServer) -> None:
    server.put("app.internal", "A", "10.0.0.1")
    asking = Wire(ipv6=lambda: False)
    assert await hosts(asking, "app.internal", rules(server)) == {A: Found(("10.0.0.1",), 1.0)}
    assert server.count("app.internal", "AAAA") == 0
    asking.close()


async def test_services(server: NameServer, asking: Wire) -> None:
    name = "_http._tcp.app.internal"
    server.put(name, "SRV", "10 5 8080 One.internal.", "0 0 80 two.internal.", "0 0 0 two.internal.", "0 0 1 .", ttl=7)
    answers = await asking(Kind.SERVICE, name, rules(server))
    assert answers == {SRV: Found((Service(0, 0, 80, "two.internal"), Service(10, 5, 8080, "one.internal")), 7.0)}
    server.put(name, "SRV", "0 0 0 .")
    answers = await asking(Kind.SERVICE, name, rules(server))
    assert result(answers[SRV]) is Result.EMPTY


async def test_a_chain_of_names_is_followed_and_its_smallest_ttl_counts(server: NameServer, asking: Wire) -> None:
    server.put("www.internal", "CNAME", "lb.internal.", ttl=5)
    server.put("lb.internal", "CNAME", "app.internal.", ttl=60)
    server.put("app.internal", "A", "10.0.0.1", ttl=30)
    answers = await hosts(asking, "www.internal", rules(server))
    assert answers[A] == Found(("10.0.0.1",), 5.0)
    assert result(answers[AAAA]) is Result.EMPTY
    server.put("app.internal", "A")
    server.put("app.internal", "CNAME", "www.internal.")  # a loop
    answers = await hosts(asking, "www.internal", rules(server))
    assert result(answers[A]) in (Result.EMPTY, Result.FAILED, Result.SERVFAIL)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("NXDOMAIN", Result.NXDOMAIN), ("SERVFAIL", Result.SERVFAIL), ("REFUSED", Result.SERVFAIL),
     ("drop", Result.TIMEOUT), ("garbage", Result.TIMEOUT)],
)  # fmt: skip
async def test_failures_are_told_apart(server: NameServer, asking: Wire, said: str, expected: Result) -> None:
    server.put("app.internal", "A", "10.0.0.1")
    server.say["app.internal"] = said
    began = time.monotonic()
    answers = await hosts(asking, "app.internal", rules(server, timeout=0.4))
    assert time.monotonic() - began < 2
    assert {result(answer) for answer in answers.values()} == {expected}
    for answer in answers.values():
        assert isinstance(answer, Lacking)
        assert answer.why


async def test_a_datagram_that_is_lost_is_sent_again(server: NameServer, asking: Wire) -> None:
    server.put("app.internal", "A", "10.0.0.1")
    server.say["app.internal"] = "drop"
    task = asyncio.get_running_loop().create_task(hosts(asking, "app.internal", rules(server, timeout=2.0)))
    while server.count("app.internal") < 1:
        await asyncio.sleep(0.01)
    server.say.clear()
    assert (await task)[A] == Found(("10.0.0.1",), 1.0)


async def test_the_next_server_is_asked_when_the_first_is_silent_or_broken(server: NameServer, asking: Wire) -> None:
    server.put("app.internal", "A", "10.0.0.1")
    async with name_server() as silent:
        for said in ("drop", "SERVFAIL", "REFUSED"):
            silent.say["*"] = said
            answers = await hosts(asking, "app.internal", rules(silent, server))
            assert answers[A] == Found(("10.0.0.1",), 1.0)


async def test_a_cut_answer_is_asked_for_over_tcp(server: NameServer, asking: Wire) -> None:
    addresses = [f"10.1.{n // 256}.{n % 256}" for n in range(100)]
    server.put("app.internal", "A", *addresses)
    answers = await hosts(asking, "app.internal", rules(server))
    found = answers[A]
    assert isinstance(found, Found)
    assert set(found.records) == set(addresses)
    assert ("app.internal", "A", "tcp") in server.asked


async def test_the_longest_answer_does_not_stall_the_loop(server: NameServer, asking: Wire) -> None:
    server.put("small.internal", "A", "10.0.0.1")
    server.put("big.internal", "A", *(f"10.{n >> 8}.{n & 255}.9" for n in range(2000)))
    await hosts(asking, "small.internal", rules(server))
    server.say["big.internal AAAA"] = "NXDOMAIN"
    # the server answers in this very loop: let it make its answer, and only then look at the clock
    task = asyncio.get_running_loop().create_task(hosts(asking, "big.internal", rules(server, timeout=5.0)))
    while ("big.internal", "A", "tcp") not in server.asked:
        await asyncio.sleep(0)
    worst = 0.0
    while not task.done():
        before = time.monotonic()
        await asyncio.sleep(0.001)
        worst = max(worst, time.monotonic() - before)
    found = (await task)[A]
    assert isinstance(found, Found)
    assert len(found.records) == TARGETS_MAX
    assert found.records[0] == "10.0.0.9"
    assert worst < 0.05


async def test_resolv_conf_is_read_anew_and_its_search_holds(
    server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    asking = Wire(lambda: False, str(path))
    answers = await hosts(asking, "app", Rules(timeout=0.2))
    assert result(answers[A]) is Result.FAILED, "there is no file"
    path.write_text("nameserver 127.0.0.1\nsearch one.internal two.internal\noptions timeout:9\n")
    from gateway.control.discovery import speak

    made = speak._resolver(Rules(timeout=0.2), str(path))
    assert made.nameservers == ["127.0.0.1"]
    made.nameservers = [speak.dns.nameserver.Do53Nameserver("127.0.0.1", server.port)]
    monkeypatch.setattr(speak, "_resolver", lambda rules, conf: made)
    server.put("app.two.internal", "A", "10.0.0.1")
    assert (await hosts(asking, "app", Rules()))[A] == Found(("10.0.0.1",), 1.0)
    assert [name for name, _, _ in server.asked] == ["app.one.internal", "app.two.internal"]
    server.asked.clear()
    assert result((await hosts(asking, "app.two.internal.", Rules()))[A]) is Result.FOUND
    assert [name for name, _, _ in server.asked] == ["app.two.internal"]
    asking.close()


def test_whether_there_is_ipv6_is_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "if_inet6"
    monkeypatch.setattr(wire, "_INET6", file)
    loopback = "00000000000000000000000000000001 01 80 10 80       lo\n"
    link = "fe800000000000000000000000000001 02 40 20 80     eth0\n"
    own = "fd000000000000000000000000000001 02 40 00 80     eth0\n"
    for text, expected in (("", False), (loopback + link, False), (loopback + own, True)):
        file.write_text(text)
        assert has_ipv6() is expected
    file.unlink()
    assert has_ipv6() in (True, False)
