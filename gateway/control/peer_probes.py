"""Asking the other regions' gateways each second: `GET /.landbridge/peer` on their hop listeners, signed both ways.

One task and one kept connection per gateway. An answer counts when a gateway of this fleet signed it for this very
question and it is the region that was asked; anything else is a failure, with its reason for the operator. What the
answers amount to is judged in `peers`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final

import aiohttp

from gateway.control.health_checks import NOT_RESOLVED
from gateway.control.peers import Peers
from gateway.control.resolve import is_address
from gateway.control.tasks import TaskSet
from gateway.core.hop import sign_question, signature_of, verify_answer
from gateway.core.hop_fields import CLOCK_MS
from gateway.core.peering import PEER_ANSWER_BYTES, PEER_PATH, PeerAnswer, decode_answer
from gateway.core.view import Endpoint, View

EVERY_S: Final = 1.0
JITTER: Final = 0.2
"""±20 %: gateways that started together must not ask together (DESIGN 5.4)."""

ANSWER_MAX_S: Final = 1.0
"""A worker answers from memory: one that needs longer, on whatever path, is not one to send requests to."""


CLOCK_S: Final = CLOCK_MS / 1000
"""Beyond this a hop's `ts` is refused: a gateway that is this far off cannot be asked, and its clock is why."""


class ProbeFailed(Exception):
    """No valid answer; the message says why, for the operator. `skew_s`: what a refusal's `Date` gives away."""

    def __init__(self, why: str, skew_s: float | None = None) -> None:
        super().__init__(why)
        self.skew_s = skew_s


class PeerProbes:
    """Keeps one task per gateway of every other region. `changed` is called after every answer and failure."""

    def __init__(
        self,
        peers: Peers,
        tasks: TaskSet,
        changed: Callable[[], None],
        rng: random.Random,
        wall_ms: Callable[[], int],
    ) -> None:
        self._peers = peers
        self._tasks = tasks
        self._changed = changed
        self._rng = rng
        self._wall_ms = wall_ms
        self._view: View | None = None
        self._session: aiohttp.ClientSession | None = None
        self._running: dict[tuple[str, Endpoint], asyncio.Task[None]] = {}

    def cover(self, view: View) -> None:
        """Ask exactly the gateways that `view` names, with its keys; nobody while there is no key to sign with."""
        self._view = view
        wanted = {
            (cluster.region, endpoint)
            for cluster in view.clusters.values()
            if cluster.region not in (None, view.region) and view.hop_keys
            for endpoint in cluster.endpoints
        }
        for key in self._running.keys() - wanted:
            self._running.pop(key).cancel()
        for region, endpoint in wanted:
            task = self._running.get((region, endpoint))
            if region is not None and (task is None or task.done()):
                work = partial(self._probe, region, endpoint)
                self._running[region, endpoint] = self._tasks.keep(work, f"ask {region} {endpoint.key}")

    async def close(self) -> None:
        """Close the kept connections; the tasks are the task set's to cancel."""
        if self._session is not None:
            await self._session.close()

    async def _probe(self, region: str, endpoint: Endpoint) -> None:
        await asyncio.sleep(EVERY_S * self._rng.uniform(0, JITTER))
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            gateway = self._peers.find(region, endpoint.key)
            if gateway is not None:
                try:
                    answer, skew_s = await self._ask(region, endpoint)
                    gateway.answered(answer, skew_s, loop.time())
                except ProbeFailed as failed:
                    gateway.failed(str(failed))
                    if failed.skew_s is not None:
                        gateway.skew_s = failed.skew_s
                self._changed()
            pause = EVERY_S * self._rng.uniform(1 - JITTER, 1 + JITTER)
            await asyncio.sleep(max(0.0, started + pause - loop.time()))

    async def _ask(self, region: str, endpoint: Endpoint) -> tuple[PeerAnswer, float]:
        """One question: (the answer, how far the peer's clock is ahead in seconds). Raises ProbeFailed."""
        view = self._view
        assert view is not None, "cover() came first"
        if not is_address(endpoint.address):
            raise ProbeFailed(NOT_RESOLVED)
        asked_ms = self._wall_ms()
        host = endpoint.key.encode("ascii")
        question = sign_question(view, to=region, ts=asked_ms // 1000, host=host)
        try:
            status, body, headers = await self._get(endpoint, question)
        except TimeoutError as error:
            raise ProbeFailed(f"no answer within {ANSWER_MAX_S:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProbeFailed(str(error) or type(error).__name__) from error
        middle_ms = (asked_ms + self._wall_ms()) / 2
        if status != 200:
            raise _refused(status, headers.get("Date", ""), middle_ms)
        verdict = headers.get("Gateway-Verdict", "").encode("latin-1", "replace")
        if not verify_answer(view.hop_keys, signature_of(question), body, verdict):
            raise ProbeFailed("the answer is not signed by a gateway of this fleet")
        try:
            answer = decode_answer(body)
        except ValueError as error:
            raise ProbeFailed(f"the answer cannot be read: {error}") from error
        if answer.region != region:
            raise ProbeFailed(f"a gateway of {answer.region} answers there")
        return answer, (answer.wall_ms - middle_ms) / 1000

    async def _get(self, endpoint: Endpoint, question: bytes) -> tuple[int, bytes, Mapping[str, str]]:
        """(status, body, fields) of one GET over the kept connection."""
        if self._session is None:
            # Per endpoint one connection is enough, and it is the same worker that speaks as long as it lives.
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=1, keepalive_timeout=30.0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=ANSWER_MAX_S),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            )
        headers = {"Host": endpoint.key, "Gateway-Hop": question.decode("ascii")}
        url = f"http://{endpoint.key}{PEER_PATH}"
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            body = b""
            async for chunk in response.content.iter_chunked(PEER_ANSWER_BYTES):
                body += chunk
                if len(body) > PEER_ANSWER_BYTES:
                    raise ValueError(f"the answer is longer than {PEER_ANSWER_BYTES} bytes")
            return response.status, body, response.headers


def _refused(status: int, date: str, middle_ms: float) -> ProbeFailed:
    """Why a gateway that does answer does not answer this: its clock, if its `Date` (in whole seconds) says so."""
    try:
        skew_s = parsedate_to_datetime(date).timestamp() + 0.5 - middle_ms / 1000
    except ValueError:
        skew_s = 0.0
    if abs(skew_s) < CLOCK_S:
        return ProbeFailed(f"status {status}: are keys and regions the same on both sides?")
    ahead = "ahead of" if skew_s > 0 else "behind"
    return ProbeFailed(f"its clock is {abs(skew_s):.0f} s {ahead} ours: hops allow {CLOCK_S:.0f} s", skew_s)
