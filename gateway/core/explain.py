"""Why does this request go where it goes? The rules that were tried, in order, and the one that decided.

It asks the very functions that decide requests, with a Trace: there is no second description of the rules to go
stale. The request's head is built from words and read by the parser that reads everybody's. Pure; used by
`landbridge explain` and by the admin API.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gateway.core.errors import FLAGS, GatewayError
from gateway.core.hop import loops
from gateway.core.http1.fields import FieldTable
from gateway.core.http1.head import Request, parse_request
from gateway.core.placement import NO_VERSION, Placement
from gateway.core.routing import Decision, Kind, decide, unknown_placement
from gateway.core.tenancy import HostOwner, Resolved, Step, Trace, resolve
from gateway.core.view import HeaderResolver, View

REDIRECT_STATUS = 307


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen to a request that enters `entry`. None and "" stand for what was not reached.

    `decision`, `reason`, `region` and `cluster` as in the access log; `status` where the gateway answers itself,
    None where the application does.
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
    version: str = ""
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
) -> Explanation:
    """Decide a client's request to the gateway whose View this is. A refusal is an Explanation too, never an error.

    `headers` are lines, `Name: value`. `path` is the request target, with its query.
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
        resolved = resolve(request, view, host_owner, trace, complete)
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
        version="" if placement is None or placement.version == NO_VERSION else str(placement.version),
        decision=decision.kind,
        reason=decision.reason,
        region=decision.region,
        cluster=decision.cluster,
        location=decision.location.decode("latin-1"),
        status=status,
        flag=flag,
        detail=detail,
    )


def build_request(view: View, host: str, method: str, path: str, headers: Sequence[str]) -> Request:
    """The request that a client would send, read as from the wire. Raises GatewayError as the parser does."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise GatewayError("request_malformed", "a line holds CR or LF")
    names = [resolver.name for resolver in view.resolvers if isinstance(resolver, HeaderResolver)]
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    return parse_request(head, FieldTable(names), view.limits)
