"""Why does this request go where it goes? The rules that were tried, in order, and the one that decided.

It asks the very functions that decide requests, with a Trace: there is no second description of the rules to go
stale. The request's head is built from words and read by the parser that reads everybody's. Pure; used by
`landbridge explain` and by the admin API.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from gateway.core.errors import FLAGS, GatewayError
from gateway.core.hop import loops
from gateway.core.http1.fields import FieldTable
from gateway.core.http1.head import Request, parse_request
from gateway.core.placement import NO_VERSION, Placement
from gateway.core.routing import Decision, Kind, decide, unknown_placement
from gateway.core.tenancy import HostOwner, Resolved, Step, Trace, resolve
from gateway.core.tokens import Tokens
from gateway.core.view import HeaderResolver, JwtResolver, View

REDIRECT_STATUS = 307
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen to a request that enters `entry`. None and "" stand for what was not reached.

    `decision`, `reason`, `region` and `cluster` as in the access log; `status` where the gateway answers itself,
    None where the application does. Of a replicated record `written_in` is the region where its version was written,
    `written` when that was by its hybrid clock, `arrived` when it came here, where that is known.
    """

    entry: str
    method: str
    host: str
    path: str
    steps: tuple[Step, ...]
    tenant: str | None = None
    named_by: str = ""
    home: str = ""
    standby: tuple[str, ...] = ()
    failover: str = ""
    state: str = ""
    partition: str = ""
    version: str = ""
    written_in: str = ""
    written: str = ""
    arrived: str = ""
    decision: str = Kind.REJECT
    reason: str = ""
    region: str = ""
    cluster: str = ""
    location: str = ""
    status: int | None = None
    flag: str = ""
    detail: str = ""


def explain(
    view: View,
    host_owner: HostOwner,
    placement_of: Callable[[str], Placement | None],
    complete: bool,
    *,
    host: str,
    method: str = "GET",
    path: str = "/",
    headers: Sequence[str] = (),
    scheme: str | None = None,
    arrived: Callable[[str], int | None] | None = None,
    tokens: Tokens | None = None,
) -> Explanation:
    """Decide a client's request to the gateway whose View this is. A refusal is an Explanation too, never an error.

    `headers` are lines, `Name: value`. `path` is the request target, with its query. `arrived` tells the Unix ms at
    which a tenant's record came here. `tokens` verifies; of a token it is told why it is refused, and nothing of it.
    What only a trusted proxy may say is taken to come from one.
    """
    trace = Trace()
    resolved: Resolved | None = None
    placement: Placement | None = None
    decision, status, flag, detail = Decision(Kind.REJECT, ""), None, "", ""
    try:
        request = build_request(view, host, method, path, headers)
        trace.add("head", "valid")
        if loops(request.values(b"via"), view.token):
            trace.add("loop", f"Via holds {view.token}")
            raise GatewayError("loop")
        resolved = resolve(request, view, host_owner, trace, complete, tokens=tokens)
        placement = placement_of(resolved.tenant)
        decision = decide(request, resolved, placement, view, complete, trace, scheme)
        flag, detail = decision.flag, decision.detail
    except GatewayError as error:
        flag, detail = error.flag.name, error.detail
        trace.add("refused", detail)
    if flag:
        status = FLAGS[flag].status
        detail = detail or FLAGS[flag].title
    elif decision.kind is Kind.EXTERNAL_REDIRECT:
        status = REDIRECT_STATUS
    if placement is None and resolved is not None and complete and view.unknown is not None:
        placement = unknown_placement(resolved.tenant, view.unknown)
    version = NO_VERSION if placement is None else placement.version
    came = arrived(placement.tenant) if arrived is not None and placement is not None and version.region else None
    return Explanation(
        entry=view.region,
        method=method,
        host=host,
        path=path,
        steps=tuple(trace.steps),
        tenant=None if resolved is None else resolved.tenant,
        named_by="" if resolved is None else resolved.rule,
        home="" if placement is None else placement.home,
        standby=() if placement is None else placement.standby,
        failover="" if placement is None else placement.failover,
        state="" if placement is None else placement.state,
        partition="" if placement is None else placement.partition,
        version="" if version == NO_VERSION else str(version),
        written_in=version.region,
        written=_moment(version.hlc) if version.hlc else "",
        arrived="" if came is None else _moment(came),
        decision=decision.kind,
        reason=decision.reason,
        region=decision.region,
        cluster=decision.cluster,
        location=decision.location.decode("latin-1"),
        status=status,
        flag=flag,
        detail=detail,
    )


def _moment(ms: int) -> str:
    """Unix milliseconds as ISO 8601, in UTC; the number itself where no calendar has that day."""
    try:
        moment = _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return f"{ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def build_request(view: View, host: str, method: str, path: str, headers: Sequence[str]) -> Request:
    """The request that a client would send, read as from the wire. Raises GatewayError as the parser does."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise GatewayError("request_malformed", "a line holds CR or LF")
    names = [resolver.name for resolver in view.resolvers if isinstance(resolver, HeaderResolver)]
    secrets = [resolver.header for resolver in view.resolvers if isinstance(resolver, JwtResolver)]
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    return parse_request(head, FieldTable(names, secret_names=secrets), view.limits)
