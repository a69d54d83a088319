"""The relay: one exchange on its way. It runs the filter chain, executes the answer, and joins the two connections.

On the plain path (warm connection, synchronous filters) everything from the parsed head to the last byte happens in
callbacks of the two transports: no task, no future, no timer. Whatever goes wrong ends in `refuse`, in one place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from gateway.core.errors import FLAGS, GatewayError
from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Forward, Park, Respond, name_of
from gateway.core.http1.body import chunk, last_chunk
from gateway.core.http1.head import Request, Response
from gateway.core.retry import Failure, NotRetried
from gateway.proxy import answers, deadlines, forwarding, hops, retrying

if TYPE_CHECKING:
    from gateway.proxy.downstream import Downstream
    from gateway.proxy.pool import ClusterPool, EndpointPool
    from gateway.proxy.upstream import Upstream
    from gateway.proxy.worker import Worker

_log = logging.getLogger("landbridge.relay")
_UNAVAILABLE: Final = frozenset(("cluster_unavailable", "breaker_open"))
"""What a peer may follow to a standby: nothing was sent."""
CLIENT_GONE: Final = 499
"""In log and metrics only, after nginx: the client left before there was an answer."""


class Relay:
    """`over` once the client has its answer or is gone. `deadline` is for connecting, waiting and parking.

    `body` are the request's body bytes as they go out (re-framed when chunked), None once too many to send again.
    `request_sent`: the body has ended, whether or not a connection exists yet; until a peer's 100 comes (`awaits_100`)
    that is `withheld` instead.
    `sends` are the hops written, `struck` the regions that cannot serve; `in_doubt`: a try may have reached somebody
    without an answer; `asked_at` (monotonic seconds): since when the peer owes one, 0 while it does not.
    """

    up: Upstream | None = None
    cluster: ClusterPool | None = None
    head = b""
    tried: tuple[str, ...] = ()
    connecting: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None
    deadline = 0.0
    connects_by = 0.0
    cookie = b""
    sticky_key = b""
    sent_at = 0.0
    asked_at = 0.0
    received_at = 0.0
    response_s = 0.0
    request_sent = False
    awaits_100 = False
    withheld = False
    in_doubt = False
    sends = 0
    struck: frozenset[str] = frozenset()
    tries_left = 0
    retried = 0
    pause: asyncio.TimerHandle | None = None
    informed = False
    fell_back = False
    started = False
    continued = False
    keep_after = False
    over = False
    parked = False
    timed_out = False
    broken: tuple[str, ...] = ()

    def __init__(self, worker: Worker, down: Downstream, exchange: Exchange) -> None:
        self.worker = worker
        self.down = down
        self.exchange = exchange
        self.body: list[bytes] | None = []

    # ---- the chain

    def run(self) -> None:
        """Run the chain and execute its answer."""
        exchange, chain = self.exchange, self.worker.chain
        step: Any = None
        try:
            if chain.is_async:
                self.hold_body()
                self.task = self.worker.spawn(self._run_async())
                return
            answer: Any = None
            for step in chain.steps:
                answer = step(exchange)
                if answer is not None:
                    break
            else:
                step = None  # a filter named an endpoint that there is not: no step at hand is to blame
                step = chain.ends[exchange.endpoint]
                answer = step(exchange)
            self._execute(answer)
        except GatewayError as error:
            self.refuse(error.flag.name, error.detail)
        except Exception:
            self._broken(step)
            self.refuse("internal_error", "")

    async def _run_async(self) -> None:
        """The same walk for a chain that holds an `async def` filter."""
        exchange, chain = self.exchange, self.worker.chain
        step: Any = None
        try:
            answer: Any = None
            for step in chain.steps:
                answer = step(exchange)
                if isinstance(answer, Awaitable):
                    answer = await answer
                if answer is not None:
                    break
            else:
                step = None  # a filter named an endpoint that there is not: no step at hand is to blame
                step = chain.ends[exchange.endpoint]
                answer = step(exchange)
                if isinstance(answer, Awaitable):
                    answer = await answer
            self.task = None
            if not self.over:
                self._execute(answer)
        except GatewayError as error:
            self.refuse(error.flag.name, error.detail)
        except Exception:
            self._broken(step)
            self.refuse("internal_error", "")

    def answer(self) -> None:
        """Run the endpoint filter again: a peer's verdict changed where the request goes."""
        step: Any = self.worker.chain.ends[self.exchange.endpoint]
        forwarding.withhold_no_more(self)
        try:
            self._execute(step(self.exchange))
        except GatewayError as error:
            self.refuse(error.flag.name, error.detail)
        except Exception:
            self._broken(step)
            self.refuse("internal_error", "")

    def _broken(self, step: Any) -> None:
        """A filter (or this relay) has a bug: this request pays for it, no other one does."""
        name = name_of(step)
        if name not in self.broken:  # an outbound filter also sees our answer to its own failure
            self.broken += (name,)
            self.worker.filter_failed(name, self.exchange.request_id)

    def _outbound(self) -> bool:
        """Show the response's head to the outbound filters. False when one of them failed."""
        whole = True
        for step in self.worker.chain.outs:
            try:
                step(self.exchange)
            except Exception:
                self._broken(step)
                whole = False
        return whole

    def _execute(self, answer: Answer) -> None:
        if isinstance(answer, Forward):
            forwarding.forward(self, answer)
        elif isinstance(answer, Respond):
            self.respond(answer.status, answer.fields, answer.body)
        else:
            self._park(answer)

    def _park(self, answer: Park) -> None:
        self.parked = True
        self.deadline = answer.until
        self.hold_body()

    def hold_body(self) -> None:
        """Nothing takes the body yet: leave it in the kernel."""
        if not self.request_sent:
            self.down.hold_reading(True)

    def request_data(self, data: bytes) -> None:
        """More body from the client, framed as it goes out."""
        forwarding.request_data(self, data)

    def request_end(self, data: bytes) -> None:
        """The body's last bytes, framed."""
        forwarding.request_end(self, data)

    # ---- from the application

    def interim(self, response: Response) -> None:
        """100 lets the body go; other 1xx pass on to clients that know them."""
        if response.status == 100:
            forwarding.continued(self)
        elif self.exchange.request.version == 11:
            self.informed = True
            self.down.write(b"\r\n".join([response.start, *response.kept, b"\r\n"]))

    def response(self, up: Upstream, response: Response, body: bytes, complete: bool) -> None:
        """A final head, with what came of its body. When `complete`, `up` is already somebody else's."""
        exchange, worker = self.exchange, self.worker
        region = up.pool.cluster.config.region
        now = worker.now()
        worker.meters.upstream_done(up.pool.cluster.name, response.status, now - self.sent_at)
        if complete:
            self.up = None
        refusal = None if region is None else hops.read_refusal(response, exchange)
        watch = up.pool.cluster.watch
        if watch is not None:  # a peer that answers is well: what it says of its application is no failure of its own
            if watch.calm and (response.status < 500 or region is not None):
                up.pool.good += 1
            else:
                ok = response.status < 500 or region is not None
                watch.note(up.pool, exchange.tenant, ok, now - self.sent_at, now)
        if region is not None:
            worker.meters.hop(region, "served" if refusal is None else refusal.outcome)
            if refusal is not None:
                self.let_go()
                hops.refused(self, region, refusal)
                return
            if self.awaits_100 and not self.withheld:  # answered without the body, which nobody will take now
                self.down.keep_alive = False
        if response.status >= 400 and retrying.by_status(self, up, response):
            return
        if self.retried and response.status not in up.pool.cluster.config.retry.statuses:
            worker.meters.retry(up.pool.cluster.name, "recovered")
        request, down = exchange.request, self.down
        exchange.response = response
        exchange.status = response.status
        if not self._outbound():
            self.let_go()
            self.refuse("internal_error", "")
            return
        lines = [response.start, *response.kept, *response.added]
        if self.cookie:
            lines.append(self.cookie)
        if response.length < 0:
            self._frame(request, response, lines)
        if not (request.keep_alive and down.keep_alive) or worker.leaving:
            down.keep_alive = False
            lines.append(b"Connection: close")
        elif request.version == 10:
            lines.append(b"Connection: keep-alive")
        lines.append(b"\r\n")
        self.started = True
        head = b"\r\n".join(lines)
        if body and response.chunked:
            body = chunk(body)
        exchange.bytes_out += len(body)
        down.write(head + body if body else head)
        if complete:
            self.finish()
        elif exchange.counted_by is not None:
            exchange.counted_by.release(exchange, now)

    def _frame(self, request: Request, response: Response, lines: list[bytes]) -> None:
        """Framing for the client of a body whose size is not known: chunked, or for HTTP/1.0 the connection's end."""
        response.chunked = request.version == 11
        if response.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        else:
            self.down.keep_alive = False

    def response_data(self, data: bytes) -> None:
        """Body bytes."""
        self.exchange.bytes_out += len(data)
        response = self.exchange.response
        assert response is not None
        self.down.write(chunk(data) if response.chunked else data)

    def response_end(self, data: bytes, trailers: list[bytes]) -> None:
        """The body's last bytes; the connection is already released."""
        response = self.exchange.response
        assert response is not None
        self.up = None
        self.exchange.bytes_out += len(data)
        if response.chunked:
            data = (chunk(data) if data else b"") + last_chunk(trailers)
        if data:
            self.down.write(data)
        self.finish()

    def switched(self, up: Upstream, response: Response, rest: bytes) -> None:
        """101: from here on bytes are carried both ways, unread."""
        exchange = self.exchange
        exchange.response = response
        exchange.status = 101
        self._outbound()
        lines = [
            response.start,
            *response.kept,
            *response.added,
            b"Connection: upgrade",
            b"Upgrade: websocket",
            b"\r\n",
        ]
        self.started = True
        self.worker.meters.upstream_done(up.pool.cluster.name, 101, self.worker.now() - self.sent_at)
        self.note(up, True)
        if up.pool.cluster.config.region is not None:
            self.worker.meters.hop(up.pool.cluster.config.region, "served")
        if exchange.counted_by is not None:
            exchange.counted_by.release(exchange, self.worker.now())
        self.down.write(b"\r\n".join(lines) + rest)
        exchange.bytes_out += len(rest)
        self.down.tunnel()

    def tunnel_down(self, data: bytes) -> None:
        self.exchange.bytes_out += len(data)
        self.down.write(data)

    def tunnel_up(self, data: bytes) -> None:
        self.exchange.bytes_in += len(data)
        if self.up is not None and self.up.transport is not None:
            self.up.transport.write(data)

    # ---- ends

    def upstream_lost(self, up: Upstream, complete: bool) -> None:
        """The connection died. `complete`: it delimited the body by closing (RFC 9112, 6.3, rule 8)."""
        if self.over:
            return
        self.up = None
        if complete:
            self.response_end(b"", [])
        elif self.started:
            if self.exchange.status == 101:
                self.finish()
                self.down.close()
                return
            self.worker.meters.upstream(up.pool.cluster.name, "truncated")
            self.worker.meters.not_retried(up.pool.cluster.name, NotRetried.STARTED)
            self._cut("upstream_reset")
        else:
            self.worker.meters.upstream(up.pool.cluster.name, "reset")
            if not up.reused:
                self.note(up, False)
            if self.retry(Failure.STALE if up.reused else Failure.RESET, up.pool):
                return
            if up.reused:  # one that was found closed says nothing, as long as another try follows
                self.note(up, False)
            self._hop_error(up)
            self.refuse("upstream_reset", "")

    def retry(self, failure: Failure, pool: EndpointPool) -> bool:
        """Once more, where that may be; False: the failure stands."""
        return retrying.retry(self, failure, pool.cluster, pool.endpoint.key)

    def try_expired(self, up: Upstream) -> None:
        """The sweep found the deadline of this exchange's connection past."""
        if not retrying.by_time(self, up):
            self.upstream_failed("upstream_timeout", "")

    def upstream_failed(self, flag: str, detail: str) -> None:
        """What came is not HTTP, or nothing came in time."""
        up = self.up
        if up is not None:
            self.worker.meters.upstream(up.pool.cluster.name, "timeout" if flag == "upstream_timeout" else "malformed")
            retrying.give_up(self, up, flag)
            if not (self.started or deadlines.cut_short(self, up, self.worker.now())):
                self.note(up, False)
            self._hop_error(up)
        if self.started:
            self.let_go()
            self._cut(flag)
        else:
            self.refuse(flag, detail)

    def note(self, up: Upstream, ok: bool) -> None:
        """How this try ended, for breaker and outliers."""
        cluster = up.pool.cluster
        if cluster.watch is not None:
            now = self.worker.now()
            cluster.watch.note(up.pool, self.exchange.tenant, ok, now - self.sent_at, now)

    def _hop_error(self, up: Upstream) -> None:
        region = up.pool.cluster.config.region
        if region is not None:
            self.worker.meters.hop(region, "error")

    def _cut(self, flag: str) -> None:
        """The head is out and the body cannot be finished: the client must see a truncated message (RFC 9112, 8)."""
        self.exchange.flag = FLAGS[flag]
        self.finish(close=False)
        self.down.abort()

    def let_go(self) -> None:
        """Drop the connection of an exchange that ends before its response did."""
        up, self.up = self.up, None
        if up is None or up.relay is not self:
            return
        if self.exchange.status == 101:
            up.close()  # what the client sent before it left still goes out
        else:
            up.abort()

    def expired(self) -> None:
        """The sweep found `deadline` past: connecting, waiting for a connection, or parked."""
        self.deadline = 0.0
        if self.parked:
            self.parked = False
            self.exchange.forwarded.clear()
            self.exchange.charged = True
            self.run()
        elif self.connecting is not None:
            self.timed_out = True
            self.connecting.cancel()
        elif self.cluster is not None and self.up is None:
            self.cluster.forget(self)
            late = deadlines.is_late(self, self.worker.now())
            detail = "no connection to the application became free in time"
            self.refuse("upstream_timeout" if late else "shed", detail)

    def refuse(self, flag: str, detail: str) -> None:
        """Answer with the flag's problem document, or cut a response that has begun."""
        if self.over:
            return
        self.let_go()
        if self.pause is not None:
            self.pause.cancel()
        if self.started:
            self._cut(flag)
            return
        row = FLAGS[flag]
        self.exchange.flag = row
        if flag in _UNAVAILABLE and self.exchange.hop is not None and not hops.may_have_arrived(self):
            hops.add_unavailable(self.exchange, self.exchange.hop)
        if not self.exchange.request_id:
            self.exchange.request_id = self.worker.random_id()
        fields, body = answers.problem(self.exchange, row, detail)
        self.respond(row.status, fields, body)

    def respond(self, status: int, fields: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        """Answer by ourselves. The outbound filters see it like any response."""
        if self.over:
            return
        exchange, down = self.exchange, self.down
        response = answers.response(status, fields, body, exchange.wall_ms())
        exchange.response = response
        exchange.status = status
        self._outbound()
        lines = [response.start, *response.kept, *response.added]
        if (
            not (exchange.request.keep_alive and down.keep_alive and (self.request_sent or self.withheld))
            or self.worker.leaving
        ):
            down.keep_alive = False
            lines.append(b"Connection: close")
        elif exchange.request.version == 10:
            lines.append(b"Connection: keep-alive")
        lines.append(b"\r\n")
        self.started = True
        if exchange.request.method == b"HEAD":
            body = b""
        exchange.bytes_out += len(body)
        down.write(b"\r\n".join(lines) + body)
        self.finish()

    def finish(self, close: bool = True) -> None:
        """The exchange is over: tell meters and log, and give the connection its next request."""
        if self.over:
            return
        self.over = True
        if self.up is not None:
            self.let_go()
        exchange = self.exchange
        now = self.worker.now()
        self.worker.meters.exchange(exchange, now - exchange.started)
        if exchange.counted_by is not None:
            exchange.counted_by.release(exchange, now)
        if exchange.held is not None:
            for one in exchange.held:
                one.release(exchange, now)
        for step in self.worker.chain.completes:
            try:
                step.complete(exchange)
            except Exception:
                self._broken(step)
        if close:
            self.down.exchange_done()

    def client_gone(self) -> None:
        """The client closed: what is in hand is dropped, and logged with what was known."""
        if self.over:
            return
        if self.task is not None:
            self.task.cancel()
        if self.pause is not None:
            self.pause.cancel()
        if self.cluster is not None:
            self.cluster.forget(self)
        if not self.started:
            self.exchange.status = CLIENT_GONE
        self.finish(close=False)
