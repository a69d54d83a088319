"""Once more, or not: what is sent again, how often an application sees it, within which time, and what ends a pause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.core.retry import Retries
from gateway.core.view import ClusterTimeouts
from tests.proxy.test_failures import closed_port, is_problem
from tests.support.client import Client, Reply, once
from tests.support.dataplane import DataPlane, cluster, data_plane, view
from tests.support.eventually import eventually
from tests.support.origin import Answer, Origin, Seen, ok, raw
from tests.support.pace import within

KEY = b'Idempotency-Key: "8e03978e"\r\n'
UNAVAILABLE = raw(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", keep=True)
LONG_UNAVAILABLE = raw(b"HTTP/1.1 503 Busy\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, keep=True)
RETRIES = Retries(budget=1.0, statuses=frozenset((502, 503)), backoff_s=0.001, backoff_max_s=0.002)


def ask(method: str = "GET", lines: bytes = b"", body: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body or method == "POST" else b""
    return b"%b / HTTP/1.1\r\nHost: acme.test\r\n%b%b\r\n%b" % (method.encode(), lines, length, body)


async def reset(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Read the whole request and answer nothing."""
    return False


async def never(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    await reader.read()
    return False


def then(*answers: Answer) -> Answer:
    """Each request gets the next answer; the last stays."""
    left = list(answers)

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        return await (left.pop(0) if len(left) > 1 else left[0])(seen, reader, writer)

    return answer


def counted(plane: DataPlane, metric: str, **labels: str) -> int:
    stats = plane.worker.stats
    return stats.values[stats.series(f"landbridge_{metric}_total", (("cluster", "app"), *labels.items()))]


def reasons(plane: DataPlane) -> dict[str, int]:
    found = plane.worker.stats.known("landbridge_not_retried_total")
    return {labels[1][1]: plane.worker.stats.values[index] for labels, index in found}


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


def app(*origins: Origin, attempts: int = 1, retry: Retries = RETRIES, **more: float) -> object:
    times = ClusterTimeouts(**more) if more else None
    return cluster("app", *(one.port for one in origins), retries=attempts, retry=retry, breaker=None, timeouts=times)


# ---- what is sent again


@pytest.mark.parametrize("failing", [UNAVAILABLE, LONG_UNAVAILABLE, reset], ids=["503", "long 503", "reset"])
@pytest.mark.parametrize(
    ("request_", "again"),
    [
        (ask(), True),
        (ask("HEAD"), True),
        (ask("OPTIONS"), True),
        (ask("POST", KEY, b"hello"), True),
        (ask("PATCH", KEY, b"hello"), True),
        (ask("PATCH", b"Transfer-Encoding: chunked\r\n" + KEY) + b"5\r\nhello\r\n0\r\n\r\n", True),
        (ask("POST", b"", b"hello"), False),
        (ask("POST", b"Idempotency-Key:\r\n", b"hello"), False),
        (ask("POST", KEY + KEY, b"hello"), False),
        (ask("POST", KEY + b"Connection: Idempotency-Key\r\n", b"hello"), False),
        (ask("POST", KEY.replace(b"-", b"_", 1), b"hello"), False),
        (ask("PUT", b"", b"hello"), False),
        (ask("DELETE"), False),
        (ask("PATCH", b"", b"hello"), False),
    ],
)  # fmt: skip
async def test_what_only_reads_or_has_a_key_is_sent_again(
    tmp_path: Path, origin: Origin, failing: Answer, request_: bytes, again: bool
):
    origin.answer = then(failing, ok)
    async with data_plane(tmp_path, view(app(origin))) as plane:
        reply = await once(plane.port, request_)
        assert (reply.status == 200) is again, reply
        assert len(origin.requests) == 1 + again
        assert len({seen.body for seen in origin.requests}) == 1, "the same body"
        assert counted(plane, "retries", outcome="retried") == counted(plane, "retries", outcome="recovered") == again
        assert reasons(plane) == ({} if again else {"method": 1})


async def test_the_last_failure_is_what_the_client_gets(tmp_path: Path, origin: Origin):
    origin.answer = UNAVAILABLE
    async with data_plane(tmp_path, view(app(origin, attempts=2))) as plane:
        reply = await once(plane.port, ask())
        assert (reply.status, reply.body) == (503, b"busy")
        assert len(origin.requests) == 3
        assert origin.connections == 1
        assert reasons(plane) == {"attempts": 1}
        assert counted(plane, "retries", outcome="recovered") == 0


async def test_another_endpoint_is_asked_where_there_is_one(tmp_path: Path, origin: Origin):
    other = await Origin().start()
    other.answer, origin.answer = ok, UNAVAILABLE
    async with data_plane(tmp_path, view(app(origin, other))) as plane:
        for _ in range(20):
            assert (await once(plane.port, ask())).status == 200
    assert len(other.requests) == 20
    assert 0 < len(origin.requests) < 20
    await other.stop()


async def test_a_status_that_is_not_named_is_the_application_s_word(tmp_path: Path, origin: Origin):
    async with data_plane(tmp_path, view(app(origin))) as plane:
        for status in (500, 404, 200):
            origin.answer = raw(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status, keep=True)
            assert (await once(plane.port, ask())).status == status
        assert len(origin.requests) == 3
        assert reasons(plane) == {"status": 1}


async def test_a_body_that_is_too_long_to_keep_is_not_sent_again(tmp_path: Path, origin: Origin):
    origin.answer = then(UNAVAILABLE, ok)
    async with data_plane(tmp_path, view(app(origin))) as plane:
        assert (await once(plane.port, ask("POST", KEY, b"x" * 65_000))).status == 200
        origin.answer = then(UNAVAILABLE, ok)
        assert (await once(plane.port, ask("POST", KEY, b"x" * 4_000_000))).status == 503
        assert reasons(plane) == {"body": 1}


async def test_nothing_is_sent_again_once_the_client_has_some_of_a_response(tmp_path: Path, origin: Origin):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with data_plane(tmp_path, view(app(origin))) as plane:
        origin.answer = raw(hints)
        client = await Client.connect(plane.port)
        assert (await client.ask(ask())).status == 103
        is_problem(await client.reply(), 502, "upstream_reset")
        await client.close()
        origin.answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await once(plane.port, ask())
        assert len(origin.requests) == 2
        assert reasons(plane) == {"started": 2}


async def test_what_is_not_http_is_not_asked_for_again(tmp_path: Path, origin: Origin):
    origin.answer = raw(b"garbage\r\n\r\n")
    async with data_plane(tmp_path, view(app(origin))) as plane:
        is_problem(await once(plane.port, ask()), 502, "upstream_malformed")
        assert reasons(plane) == {"malformed": 1}


# ---- a POST is never sent twice (FAULTS 15)


async def stale_connection(plane: DataPlane, origin: Origin) -> None:
    origin.answer = ok
    assert (await once(plane.port, ask())).status == 200


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "pooled"])
@pytest.mark.parametrize(
    "failing",
    [
        reset,
        UNAVAILABLE,
        LONG_UNAVAILABLE,
        never,
        raw(b"HTTP/1.1 2"),
        raw(b"HTTP/1.1 100 Continue\r\n\r\n"),
        raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        raw(b"nonsense\r\n\r\n"),
    ],
    ids=["reset", "503", "long", "timeout", "half a head", "100", "103", "garbage"],
)
async def test_a_post_without_a_key_is_seen_once(tmp_path: Path, origin: Origin, warm: bool, failing: Answer):
    """However it fails: attempts, time and budget for more are all there."""
    retry = Retries(1.0, frozenset((500, 502, 503, 504)), 0.2, 0.001, 0.002)
    async with data_plane(tmp_path, view(app(origin, attempts=5, retry=retry, response=0.8))) as plane:
        if warm:
            await stale_connection(plane, origin)
        origin.requests.clear()
        origin.answer = then(failing, ok)
        client = await Client.connect(plane.port)
        await client.send(ask("POST", b"", b"hello"))
        reply = await client.reply()
        if reply.status == 103:
            reply = await client.reply()
        await client.close()
        assert reply.status >= 500
        assert [seen.body for seen in origin.requests] == [b"hello"]


async def test_a_post_goes_on_to_another_endpoint_when_none_could_be_connected(tmp_path: Path, origin: Origin):
    dead = closed_port()
    config = cluster("app", dead, origin.port, retry=Retries(budget=0.0), breaker=None)
    async with data_plane(tmp_path, view(config)) as plane:
        for _ in range(20):
            assert (await once(plane.port, ask("POST", b"", b"hello"))).status == 200
        assert len(origin.requests) == 20


# ---- the budget (FAULTS 30)


@pytest.mark.parametrize("every", [1, 3], ids=["all", "a third"])
@pytest.mark.parametrize("failing", [UNAVAILABLE, reset, never], ids=["503", "reset", "slow"])
async def test_a_storm_is_a_tenth_more_and_no_more(tmp_path: Path, origin: Origin, every: int, failing: Answer):
    count = 0

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        nonlocal count
        count += 1
        return await (failing if count % every == 0 else ok)(seen, reader, writer)

    origin.answer = answer
    retry = Retries(0.1, frozenset((503,)), 0.05, 0.001, 0.002)
    async with data_plane(tmp_path, view(app(origin, attempts=3, retry=retry, response=0.2))) as plane:

        async def client(requests: int) -> None:
            for _ in range(requests):
                await once(plane.port, ask())

        await asyncio.gather(*(client(10) for _ in range(40)))
        assert (1.0 if failing is never else 1.05) * 400 < len(origin.requests) <= 1.1 * 400
        assert reasons(plane).keys() >= {"deadline" if failing is never else "budget"}


async def test_without_a_budget_nothing_that_was_sent_is_sent_again(tmp_path: Path, origin: Origin):
    origin.answer = UNAVAILABLE
    async with data_plane(tmp_path, view(app(origin, retry=Retries(0.0, frozenset((503,)))))) as plane:
        for _ in range(20):
            assert (await once(plane.port, ask())).status == 503
        assert len(origin.requests) == 20
        assert reasons(plane) == {"budget": 20}


# ---- time


@pytest.mark.parametrize(
    ("request_", "requests"), [(ask(), 2), (ask("POST", KEY, b"x"), 2), (ask("POST", b"", b"x"), 1), (ask("PUT"), 1)]
)
async def test_a_slow_try_is_made_again_where_it_may_be_and_waited_for_where_not(
    tmp_path: Path, origin: Origin, request_: bytes, requests: int
):
    slow = asyncio.Event()

    async def wait(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool | None:
        asyncio.get_running_loop().call_later(0.5, slow.set)
        await slow.wait()
        return await ok(seen, reader, writer)

    origin.answer = then(wait, ok)
    retry = Retries(1.0, frozenset(), 0.2, 0.001, 0.002)
    async with data_plane(tmp_path, view(app(origin, retry=retry, response=9))) as plane:
        assert (await once(plane.port, request_)).status == 200
        assert len(origin.requests) == requests
        assert slow.is_set() is (requests == 1)


@pytest.mark.parametrize("failing", [never, UNAVAILABLE, reset], ids=["slow", "503", "reset"])
async def test_all_tries_share_one_time(tmp_path: Path, origin: Origin, failing: Answer):
    """Ten tries of 0.3 s, or with pauses as long, in the 0.8 s that there are."""
    origin.answer = failing
    retry = Retries(1.0, frozenset((503,)), 0.3, 0.6, 0.6)
    async with data_plane(tmp_path, view(app(origin, attempts=10, retry=retry, response=0.8))) as plane:
        began = time.monotonic()
        reply = await once(plane.port, ask())
        took = time.monotonic() - began
        assert reply.status in (502, 503, 504)
        assert took < 0.8 + within(0.2)
        assert 1 <= len(origin.requests) < 10
        assert set(reasons(plane)) <= {"deadline", "budget"}


@pytest.mark.parametrize("field", [b"grpc-timeout: 300m", b"Connect-Timeout-Ms: 300"])
async def test_the_client_s_own_limit_holds_and_marks_nobody_down(tmp_path: Path, origin: Origin, field: bytes):
    origin.answer = never
    config = cluster("app", origin.port, retries=5, retry=Retries(1.0, frozenset((503,))), timeouts=ClusterTimeouts())
    async with data_plane(tmp_path, view(config)) as plane:
        for _ in range(4):
            began = time.monotonic()
            is_problem(await once(plane.port, ask("GET", field + b"\r\n")), 504, "upstream_timeout")
            assert 0.25 < time.monotonic() - began < 0.3 + within(0.3)
        assert origin.requests[0].value(field.partition(b":")[0].decode()) == field.partition(b": ")[2].decode()
        assert 0 < int(origin.requests[0].value("x-gateway-timeout-ms") or 0) <= 300
        origin.answer = ok
        assert (await once(plane.port, ask())).status == 200
        assert origin.requests[-1].values("x-gateway-timeout-ms") == []


async def test_a_longer_patience_than_ours_is_no_longer(tmp_path: Path, origin: Origin):
    origin.answer = never
    async with data_plane(tmp_path, view(app(origin, response=0.2))) as plane:
        is_problem(await once(plane.port, ask("GET", b"Prefer: wait=60\r\n")), 504, "upstream_timeout")
        assert reasons(plane) == {"deadline": 1}


async def test_what_an_application_is_told_of_time_comes_from_us_only(tmp_path: Path, origin: Origin):
    async with data_plane(tmp_path, view(app(origin))) as plane:
        for name in (b"X-Gateway-Timeout-Ms", b"x_gateway_timeout_ms"):
            assert (await once(plane.port, ask("GET", name + b": 1\r\n"))).status == 200
        assert [line for seen in origin.requests for line in seen.lines if b"timeout" in line.lower()] == []
        origin.answer = then(UNAVAILABLE, ok)
        assert (await once(plane.port, ask("GET", b"X-Gateway-Timeout-Ms: 1\r\n"))).status == 200
        assert 1000 < int(origin.requests[-1].value("x-gateway-timeout-ms") or 0) < 15_000, "less than at first"


# ---- the pause


LONG = Retries(1.0, frozenset((503,)), 0.0, 3600.0, 3600.0)


async def paused(plane: DataPlane, origin: Origin, client: Client, request_: bytes = ask()) -> None:
    """The client's request waits for its second try."""
    origin.answer = then(UNAVAILABLE, ok)
    await client.send(request_)
    await eventually(lambda: any(d.relay is not None and d.relay.pause is not None for d in plane.worker.downs))


@pytest.fixture
def half_a_second(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_(share: float) -> None:
        monkeypatch.setattr("gateway.proxy.retrying.random.random", lambda: share)

    return set_


async def test_a_client_that_leaves_ends_the_pause(
    tmp_path: Path, origin: Origin, half_a_second: Callable[[float], None]
):
    half_a_second(0.001)
    async with data_plane(tmp_path, view(app(origin, retry=LONG))) as plane:
        client = await Client.connect(plane.port)
        await paused(plane, origin, client)
        [relay] = [down.relay for down in plane.worker.downs]
        assert relay is not None
        assert relay.pause is not None
        client.writer.transport.abort()
        await eventually(lambda: not plane.worker.downs)
        assert relay.pause.cancelled()
        assert plane.log.exchanges[-1].status == 499
        assert len(origin.requests) == 1


async def test_a_pause_outlives_a_reload_and_counts_as_in_hand(
    tmp_path: Path, origin: Origin, half_a_second: Callable[[float], None]
):
    """A drain waits for what is in hand; a View that comes meanwhile changes where the request goes, not whether."""
    half_a_second(0.0001)  # of an hour: 0.36 s
    other = await Origin().start()
    async with data_plane(tmp_path, view(app(origin, retry=LONG))) as plane:
        client = await Client.connect(plane.port)
        await paused(plane, origin, client, ask("POST", KEY, b"hello"))
        assert [down.busy for down in plane.worker.downs] == [True]
        plane.worker.draining = plane.worker.leaving = True
        plane.swap(clusters={"app": app(other)})
        reply = await client.reply()
        assert (reply.status, reply.value("connection")) == (200, "close")
        assert [seen.body for seen in other.requests] == [b"hello"]
        await client.close()
    await other.stop()


async def test_a_pipelined_request_waits_its_turn(tmp_path: Path, origin: Origin):
    origin.answer = then(UNAVAILABLE, ok)
    async with data_plane(tmp_path, view(app(origin))) as plane:
        client = await Client.connect(plane.port)
        await client.send(ask() + ask("POST", b"", b"second"))
        replies: list[Reply] = [await client.reply(), await client.reply()]
        assert [reply.body for reply in replies] == [b"GET / HTTP/1.1", b"POST / HTTP/1.1"]
        assert [seen.body for seen in origin.requests] == [b"", b"", b"second"]
        await client.close()
