"""A filter that keeps failing in a running worker: what each error costs, when it ends, and who is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.bus.messages import FilterRemoved
from gateway.proxy.added import load_filters
from gateway.proxy.chain import build_chain
from gateway.proxy.worker import Worker
from gateway.settings.filter_files import FilterText
from tests.support.client import Client, once
from tests.support.dataplane import DataPlane, Lines, cluster, data_plane, view
from tests.support.origin import Origin

GET = b"GET /x HTTP/1.1\r\nHost: acme.test\r\n\r\n"
BAD = GET.replace(b"/x", b"/bad")

FAILS = """\
from gateway.core.filtering import Respond

class Fails:
    name = "fails"
    kind = "KIND"

    DEFINE __call__(self, exchange):
        if exchange.request.target == b"/bad":
            BODY
"""
SENDS_TO_END = """\
class Sends:
    name = "sends"
    kind = "inbound"

    def __call__(self, exchange):
        if exchange.request.target == b"/bad":
            exchange.endpoint = "fails"
"""
FORMS = [
    ("inbound", "def", "1 / 0", "ZeroDivisionError: division by zero (f.py:9)"),
    ("inbound", "async def", "1 / 0", "ZeroDivisionError: division by zero (f.py:9)"),
    ("outbound", "def", "1 / 0", "ZeroDivisionError: division by zero (f.py:9)"),
    ("inbound", "def", "return True", "TypeError: the filter returned True, which is no answer and not None"),
    ("inbound", "def", "return Respond(200, body='text')", "body and fields are bytes"),
    ("inbound", "def", "exchange.forwarded.append('X-A: b')", "TypeError: exchange.forwarded holds 'X-A: b'"),
    ("outbound", "def", "exchange.response.added.append('X-A: b')", "TypeError: response.added holds 'X-A: b'"),
]


@asynccontextmanager
async def plane_with(tmp_path: Path, origin: Origin, *sources: str, **options: object) -> AsyncIterator[DataPlane]:
    """A worker with filters from these texts; `options` are those of the filter `fails`."""
    added = load_filters(FilterText(f"/f{n or ''}.py", text.encode()) for n, text in enumerate(sources))
    snapshot = view(cluster("app", origin.port), filter_options={"fails": options})
    async with data_plane(tmp_path, snapshot, chain_for=lambda view: build_chain(view, added)) as running:
        yield running


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    server = await Origin().start()
    yield server
    await server.stop()


def counted(plane: DataPlane, name: str) -> int:
    stats = plane.worker.stats
    return int(stats.values[stats.series(name, (("filter", "fails"),))])


def source(kind: str, define: str, body: str) -> str:
    return FAILS.replace("KIND", kind).replace("DEFINE", define).replace("BODY", body)


@pytest.mark.parametrize(("kind", "define", "body", "error"), FORMS)
async def test_ten_errors_are_ten_requests_and_then_it_is_out(
    tmp_path: Path, origin: Origin, caplog: pytest.LogCaptureFixture, kind: str, define: str, body: str, error: str
) -> None:
    async with plane_with(tmp_path, origin, source(kind, define, body)) as plane:
        client = await Client.connect(plane.port)
        statuses = []
        for _ in range(15):
            statuses.append((await client.ask(BAD)).status)
            assert (await client.ask(GET)).status == 200, "other requests pass, before and after"
        assert statuses == [500] * 10 + [200] * 5
        await client.close()
        assert counted(plane, "landbridge_filter_errors_total") == 10
        assert counted(plane, "landbridge_filter_removed") == 1
        [told] = [message for message in plane.said if isinstance(message, FilterRemoved)]
        assert told.name == "fails"
        assert error in told.error
        assert plane.worker.removed == {"fails": told.error}
        [last] = [record for record in caplog.records if "is taken out: 10 errors in 10 s" in record.message]
        assert last.exc_info is not None
        assert sum(record.levelno == logging.ERROR for record in caplog.records) <= 4, "one traceback a second"


async def test_an_endpoint_filter_that_is_out_runs_no_more_but_answers(tmp_path: Path, origin: Origin) -> None:
    failing = source("endpoint", "def", "raise OSError('at the end')")
    async with plane_with(tmp_path, origin, failing, SENDS_TO_END) as plane:
        for _ in range(12):
            assert (await once(plane.port, BAD)).status == 500
        assert counted(plane, "landbridge_filter_errors_total") == 10
        assert (await once(plane.port, GET)).status == 200
        assert plane.worker.removed == {"fails": "OSError: at the end (f.py:9)"}
        assert "sends" in plane.worker.chain.removable, "who sent them there did not fail"


async def test_an_endpoint_that_there_is_not_is_no_filters_fault(tmp_path: Path, origin: Origin) -> None:
    last = source("inbound", "def", "pass")
    async with plane_with(tmp_path, origin, SENDS_TO_END.replace('"fails"', '"typo"'), last) as plane:
        for _ in range(12):
            assert (await once(plane.port, BAD)).status == 500
        assert not plane.worker.removed


async def test_on_error_refuse_keeps_a_filter_that_protects(tmp_path: Path, origin: Origin) -> None:
    async with plane_with(tmp_path, origin, source("inbound", "def", "1 / 0"), on_error="refuse") as plane:
        for _ in range(25):
            assert (await once(plane.port, BAD)).status == 500
        assert (await once(plane.port, GET)).status == 200
        assert origin.requests[0].start.startswith(b"GET /x")
        assert len(origin.requests) == 1, "no request that it did not pass reached the application"
        assert counted(plane, "landbridge_filter_errors_total") == 25
        assert not plane.worker.removed


async def test_errors_that_are_far_apart_are_forgiven(tmp_path: Path, origin: Origin) -> None:
    async with plane_with(tmp_path, origin, source("inbound", "def", "1 / 0")) as plane:
        real, ahead = plane.worker.now, 0.0
        plane.worker.now = lambda: real() + ahead
        for _ in range(30):
            ahead += 1.3
            assert (await once(plane.port, BAD)).status == 500
        assert not plane.worker.removed


async def test_a_flag_is_an_answer_and_no_error(tmp_path: Path, origin: Origin) -> None:
    raises = source("inbound", "def", "raise GatewayError('address_denied', 'no')")
    async with plane_with(tmp_path, origin, "from gateway.core.errors import GatewayError\n" + raises) as plane:
        for _ in range(15):
            assert (await once(plane.port, BAD)).status == 403
        assert not plane.worker.removed
        assert counted(plane, "landbridge_filter_errors_total") == 0


async def test_a_filter_that_hears_the_end_and_fails_there_is_taken_out_too(tmp_path: Path, origin: Origin) -> None:
    text = source("outbound", "def", "pass") + "\n    def complete(self, exchange):\n        raise KeyError('end')\n"
    async with plane_with(tmp_path, origin, text) as plane:
        for _ in range(12):
            assert (await once(plane.port, GET)).status == 200, "the response was out before"
        assert counted(plane, "landbridge_filter_errors_total") == 10
        assert plane.worker.removed == {"fails": "KeyError: 'end' (f.py:12)"}


async def test_at_full_load_only_the_requests_that_it_touched_are_lost(tmp_path: Path, origin: Origin) -> None:
    """Forty connections at once, an async filter: those in it when it goes out fail, none that comes after."""
    async with plane_with(tmp_path, origin, source("inbound", "async def", "1 / 0")) as plane:
        statuses: list[int] = []

        async def ask() -> None:
            client = await Client.connect(plane.port)
            for number in range(25):
                bad = number % 2 == 0
                status = (await client.ask(BAD if bad else GET)).status
                statuses.append(status)
                assert status == 200 or bad
            await client.close()

        await asyncio.gather(*(ask() for _ in range(40)))
        assert statuses.count(500) == counted(plane, "landbridge_filter_errors_total")
        assert 10 <= statuses.count(500) <= 50
        assert len(statuses) == 1000


async def test_a_new_worker_begins_with_everything_in(tmp_path: Path, origin: Origin) -> None:
    text = source("inbound", "def", "1 / 0")
    added = load_filters([FilterText("/f.py", text.encode())])
    snapshot = view(cluster("app", origin.port))
    async with plane_with(tmp_path, origin, text) as plane:
        for _ in range(10):
            await once(plane.port, BAD)
        assert counted(plane, "landbridge_filter_removed") == 1
    loop = asyncio.get_running_loop()
    worker = Worker(loop, snapshot, lambda view: build_chain(view, added), tmp_path, 0, lambda message: None, Lines())
    index = worker.stats.series("landbridge_filter_removed", (("filter", "fails"),))
    assert worker.stats.values[index] == 0
    assert worker.chain.removable == {"fails"}
    worker.stats_close()
