"""The admin API (`listen.admin`): probes, /metrics, what control knows as JSON, and the few things one may ask for.

It is for operators and their tools. `admin_access` says who may do what, `ROUTES` what there is; every change is
admitted, given a reason, carried out and written down in one place (`carry_out`). It never shows a secret, and every
error is a problem document (RFC 9457).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.control import admin_answers as answers
from gateway.control import (
    shown,
    shown_breakers,
    shown_replication,
    shown_shedding,
    shown_switches,
    shown_throttles,
)
from gateway.control.admin_access import Caller, Claim, Failures, Refusal, judge
from gateway.control.admin_audit import AuditLog, Entry
from gateway.control.admin_openapi import REASON_CHARS_MAX, Change, Parameter, Route, document
from gateway.control.admin_responses import (
    GATE,
    NO_STORE,
    Ask,
    Gate,
    answer,
    answered,
    bad,
    facts_of,
    problem,
    refusal,
    region_of,
)
from gateway.control.facts import Facts
from gateway.control.metrics import gauges, scrape
from gateway.core.errors import GatewayError
from gateway.core.explain import explain
from gateway.identity.verifier import verifier_for
from gateway.settings.schema import Role
from gateway.store.record import StoreError
from gateway.telemetry.scrape import CONTENT_TYPE

LOG = logging.getLogger("landbridge.control")

PAGE: Final = 100
PAGE_MAX: Final = 1000
"""Tenants in one answer: encoded within a few milliseconds."""

SCAN_MAX: Final = 10_000
"""Records that one filtered request reads; its `next` goes on from there, also when nothing fitted."""

REQUEST_BYTES_MAX: Final = 64 * 1024
EXPLAIN_HEADERS_MAX: Final = 64

_TENANT_FILTER: Final = re.compile(r"(?:(id|home|state)[:=])?(.*)\Z", re.DOTALL)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPENAPI: Final = web.AppKey("openapi", bytes)


# --- who may do what


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Admit the request or refuse it; nothing of a path that is not open is said before."""
    gate = request.app[GATE]
    route = route_of(request)
    transport = request.transport
    here = transport.get_extra_info("sockname") if transport is not None else None
    gate.silent.discard(request.protocol)
    claim = Claim(
        host=request.headers.get("Host", ""),
        authorization=request.headers.getall("Authorization", []),
        address=request.remote or "",
        here=here[0] if here else "",
    )
    needs = Role.VIEWER if route is None else route.needs
    now = asyncio.get_running_loop().time()
    verdict = judge(claim, needs, gate.facts.settings.admin, gate.is_loopback, gate.failures, now)
    if isinstance(verdict, Refusal) and verdict.status in (401, 403) and claim.authorization:
        LOG.warning("admin: refused %s from %s: %s", request.method, claim.address, verdict.detail)
    if route is not None and route.change is not None:
        return await carry_out(request, route.change, verdict)
    if isinstance(verdict, Refusal):
        return refusal(verdict, region_of(request))
    return await answered(handler(request), request)


def route_of(request: web.Request) -> Route | None:
    """The row of ROUTES that this request asks for; None where there is nothing, or not by this method."""
    if request.match_info.http_exception is not None or request.match_info.route.resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return _ROUTE_OF.get((method, request.match_info.route.resource.canonical))


async def carry_out(
    request: web.Request, change: Callable[[web.Request, Change], Awaitable[web.Response]], verdict: Caller | Refusal
) -> web.StreamResponse:
    """One change from its admission to its line in the audit log. What cannot be written down is not begun."""
    gate, region = request.app[GATE], region_of(request)
    response: web.StreamResponse
    reason = None
    if isinstance(verdict, Refusal):
        caller, response = verdict.caller, refusal(verdict, region)
        if verdict.status == 429:
            return response  # the tries that led here are written down; more lines would only push them out
    else:
        caller = verdict
        assert caller.name is not None, "an operator has a name"
        assert caller.role is not None, "and a role"
        try:
            reason = await reason_of(request)
            await asyncio.to_thread(gate.audit.prepare)
        except Unreasoned as error:
            response = problem(400, "Bad request", str(error), region)
        except web.HTTPException as error:
            response = problem(error.status, error.reason, error.reason, region)
        except OSError as error:
            LOG.error("admin: the audit log cannot be written, changes are refused: %s", error)
            return problem(503, "No audit log", "changes are refused while the audit log cannot be written", region)
        else:
            wanted = Change(caller.name, caller.role, reason)
            response = await answered(change(request, wanted), request)
    await write_down(gate, request, caller, reason, response)
    return response


async def write_down(
    gate: Gate, request: web.Request, caller: Caller, reason: str | None, response: web.StreamResponse
) -> None:
    entry = Entry(
        time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        actor=caller.name,
        role=caller.role,
        address=request.remote or "",
        method=request.method,
        path=request.path,
        reason=reason,
        outcome=f"{response.status} {response.reason}",
    )
    LOG.info("admin: change: %s", msgspec.json.encode(entry).decode())
    try:
        await asyncio.to_thread(gate.audit.write, entry)
    except OSError as error:
        LOG.error("admin: the line above could not be added to the audit log: %s", error)


class Unreasoned(Exception):
    """A change without a reason, or with one that cannot be written down."""


class _Reason(msgspec.Struct):
    reason: str | None = None


async def reason_of(request: web.Request) -> str:
    """Why, as the field or the body says. Raises Unreasoned, or HTTPException for a body that is too large."""
    text = request.headers.get("X-Reason")
    if text is None and (body := await request.read()):
        try:
            text = msgspec.json.decode(body, type=_Reason).reason
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unreasoned('the body is no JSON object with a text as its "reason"') from None
    text = (text or "").strip()
    if not text:
        raise Unreasoned('a change needs a reason: the field X-Reason, or {"reason": "..."} as the body')
    if len(text) > REASON_CHARS_MAX or not text.isprintable():
        raise Unreasoned(f"reason: expected at most {REASON_CHARS_MAX} printable characters")
    return text


# --- probes and metrics


async def live(request: web.Request) -> web.Response:
    """The process lives."""
    return web.Response(text="ok\n", headers=NO_STORE)


async def ready(request: web.Request) -> web.Response:
    """The gateway can serve: its map is complete and it is not draining. Nothing else counts (DESIGN 5.6)."""
    facts = facts_of(request)
    if facts.draining:
        return web.Response(status=503, text="draining\n", headers=NO_STORE)
    try:
        complete = facts.writer.complete()
    except StoreError as error:
        return web.Response(status=503, text=f"{error}\n", headers=NO_STORE)
    if not complete:
        return web.Response(status=503, text="the tenant map is not complete\n", headers=NO_STORE)
    return web.Response(text="ready\n", headers=NO_STORE)


async def metrics(request: web.Request) -> web.Response:
    facts = facts_of(request)
    body = await asyncio.to_thread(scrape, facts.state_dir, gauges(facts))
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, **NO_STORE})


# --- api


async def status(request: web.Request) -> web.Response:
    return answer(shown.status(facts_of(request), asyncio.get_running_loop().time()))


async def regions(request: web.Request) -> web.Response:
    return answer(shown.regions(facts_of(request), asyncio.get_running_loop().time()))


async def clusters(request: web.Request) -> web.Response:
    return answer(shown.clusters(facts_of(request)))


async def the_map(request: web.Request) -> web.Response:
    return answer(shown.map_status(facts_of(request), asyncio.get_running_loop().time()))


async def gateways(request: web.Request) -> web.Response:
    return answer(shown_replication.gateways(facts_of(request)))


async def switches(request: web.Request) -> web.Response:
    return answer(shown_switches.switches(facts_of(request)))


async def throttles(request: web.Request) -> web.Response:
    return answer(shown_throttles.throttles(facts_of(request)))


async def shedding(request: web.Request) -> web.Response:
    return answer(await asyncio.to_thread(shown_shedding.shedding, facts_of(request)))


async def breakers(request: web.Request) -> web.Response:
    return answer(shown_breakers.breakers(facts_of(request), asyncio.get_running_loop().time()))


async def config(request: web.Request) -> web.Response:
    facts = facts_of(request)
    return answer(answers.Config(generation=facts.generation, config=shown.config(facts.settings)))


async def tenants(request: web.Request) -> web.Response:
    """A page of the map in order of id; `next` is the `after` of the following page, null on the last."""
    facts = facts_of(request)
    text = request.query.get("limit", str(PAGE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= PAGE_MAX:
        return bad(f"limit: expected 1 to {PAGE_MAX}", facts.settings.region)
    limit = int(text)
    fits = tenant_filter(request.query.get("filter", ""))
    found: list[answers.Tenant] = []
    after, scanned = request.query.get("after", "").lower(), 0
    while len(found) < limit and scanned < SCAN_MAX:
        page = await asyncio.to_thread(facts.writer.page, after, min(PAGE_MAX, limit if fits is None else PAGE_MAX))
        for placement in page:
            scanned, after = scanned + 1, placement.tenant
            if fits is None or fits(placement):
                found.append(shown.stored(facts, placement))
                if len(found) == limit:
                    break
        if not page:
            break
    is_last = not await asyncio.to_thread(facts.writer.page, after, 1)
    return answer(answers.Tenants(tenants=found, next=None if is_last else after))


def tenant_filter(text: str) -> Callable[[Any], bool] | None:
    """`home:eu-west-1`, `state:suspended`, `id:acm`; without a key any of the three. An id fits by a part of it."""
    match = _TENANT_FILTER.match(text.strip().lower())
    assert match is not None, "the pattern takes everything"
    key, wanted = match.groups()
    if not wanted:
        return None

    def fits(placement: Any) -> bool:
        return (
            (key in (None, "id") and wanted in placement.tenant)
            or (key in (None, "home") and wanted == placement.home)
            or (key in (None, "state") and wanted == placement.state)
        )

    return fits


async def tenant(request: web.Request) -> web.Response:
    facts = facts_of(request)
    name = request.match_info["id"].lower()
    placement = facts.writer.placement(name)
    if placement is None:
        raise GatewayError("tenant_unknown" if facts.writer.complete() else "map_unavailable")
    return answer(shown.stored(facts, placement))


async def explanation(request: web.Request) -> web.Response:
    """What would be decided for a request, and by which rule; a refusal is an explanation like any other."""
    facts = facts_of(request)
    query = request.query
    if not query.get("host"):
        return bad("host: expected the Host of the request to explain", facts.settings.region)
    headers = query.getall("header", [])
    if len(headers) > EXPLAIN_HEADERS_MAX or any(":" not in header for header in headers):
        return bad(f"header: expected at most {EXPLAIN_HEADERS_MAX} of `Name: value`", facts.settings.region)
    answered = explain(
        facts.view,
        facts.writer.host,
        facts.writer.placement,
        facts.writer.complete(),
        host=query["host"],
        method=query.get("method", "GET"),
        path=query.get("path", "/"),
        headers=headers,
        arrived=facts.writer.arrived,
        tokens=verifier_for(facts.view, facts.keys.known()),
    )
    return answer(shown.explanation(answered))


async def openapi(request: web.Request) -> web.Response:
    return web.Response(body=request.app[OPENAPI], content_type="application/json", headers=NO_STORE)


# --- changes


async def replace_workers(request: web.Request, change: Change) -> web.Response:
    """Ask the supervisor for new workers on the same sockets, one slot at a time."""
    gate = request.app[GATE]
    facts = gate.facts
    if facts.draining:
        return problem(409, "Draining", "the gateway is about to end", facts.settings.region)
    if not gate.ask({"ask": "replace", "actor": change.actor, "reason": change.reason}):
        return problem(503, "Not heard", "the supervisor does not answer; nothing was done", facts.settings.region)
    made = answers.Asked(asked="replace", actor=change.actor, reason=change.reason, workers=facts.processes.workers)
    return answer(made, 202)


async def set_switch(request: web.Request, change: Change) -> web.Response:
    """Set a region-wide switch, by a body such as {"value": "on", "for": "30m", "force": false, "reason": "..."}."""
    facts = facts_of(request)
    region, name = facts.settings.region, request.match_info["name"]
    try:
        wanted = shown_switches.wanted(name, await request.read(), change.actor, change.reason)
    except ValueError as error:
        return bad(str(error), region)
    done = await facts.board.set(wanted)
    match done.refused:
        case "input":
            return bad(done.detail, region)
        case "safety":
            return problem(409, "Refused by a rule of safety", f"{done.detail}; `force` does it all the same", region)
    return answer(shown_switches.switches(facts, done.everywhere))


async def force_breaker(request: web.Request, change: Change) -> web.Response:
    """Hold a breaker open or closed for a time, by a body such as {"for": "10m", "reason": "..."}; auto ends that."""
    facts, at = facts_of(request), request.match_info
    try:
        wanted = shown_breakers.wanted(at["cluster"], at.get("tenant", ""), at["state"], await request.read(), facts)
    except ValueError as error:
        return bad(str(error), facts.settings.region)
    if wanted.state == "auto":
        facts.breakers.release(wanted.cluster, wanted.tenant)
    else:
        reason = f"{change.reason} ({change.actor})"
        facts.breakers.force(wanted.cluster, wanted.tenant, wanted.state == "open", wanted.lasts_s, reason)
    return answer(shown_breakers.breakers(facts, asyncio.get_running_loop().time()))


# --- the table

_SWITCH: Final = Parameter("name", "`failover-mode`, `max-traffic` or `drain`.")
_BREAKER: Final = (
    Parameter("cluster", "A cluster that has a breaker."),
    Parameter("state", "`open`, `closed` or `auto`: its own judgement again."),
)
_TENANT_ID: Final = Parameter("id", "A tenant's id, in any case.")
_PAGING: Final = (
    Parameter("filter", "`home:NAME`, `state:NAME`, `id:PART`; without a key, any of the three."),
    Parameter("after", "The `next` of the page before."),
    Parameter("limit", "Tenants in one page.",
              schema={"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE}),
)  # fmt: skip
_REQUEST: Final = (
    Parameter("host", "The request's Host.", required=True),
    Parameter("method", "Its method: GET when absent."),
    Parameter("path", "Its path and query: / when absent."),
    Parameter("header", "One of its fields, `Name: value`.", many=True),
)
_BAD: Final = {400: "A parameter is not acceptable."}
_NO_MAP: Final = {503: "The tenant map is not complete, or cannot be read."}

ROUTES: Final = (
    Route("/healthz", "The process lives.", "text/plain", live, open=True),
    Route("/readyz", "The gateway can serve.", "text/plain", ready, open=True, refusals={503: "It cannot, and why."}),
    Route("/metrics", "Everything that is counted, as Prometheus reads it.", "text/plain", metrics),
    Route("/api/v1/openapi.json", "This description.", "application/json", openapi),
    Route("/api/v1/status", "The gateway at a glance.", answers.Status, status, refusals=_NO_MAP),
    Route("/api/v1/regions", "All regions; of the others, what their gateways said.", answers.Regions, regions),
    Route("/api/v1/clusters", "All clusters, with their endpoints.", answers.Clusters, clusters),
    Route("/api/v1/tenants", "The tenant map, by pages.", answers.Tenants, tenants, parameters=_PAGING,
          refusals=_BAD | _NO_MAP),
    Route("/api/v1/tenants/{id}", "One tenant.", answers.Tenant, tenant, parameters=(_TENANT_ID,),
          refusals={404: "No such tenant."} | _NO_MAP),
    Route("/api/v1/map", "The map's state, and its source's.", answers.MapState, the_map, refusals=_NO_MAP),
    Route("/api/v1/gateways", "All gateways of all regions.", answers.Gateways, gateways),
    Route("/api/v1/explain", "What would happen to a request, and why.", answers.Explained, explanation,
          parameters=_REQUEST, refusals=_BAD | _NO_MAP),
    Route("/api/v1/config", "The configuration that runs.", answers.Config, config),
    Route("/api/v1/shedding", "Limits of requests in hand, and what was refused.", answers.Shedding, shedding),
    Route("/api/v1/throttles", "Limits that refuse, or are about to.", answers.Throttles, throttles),
    Route("/api/v1/breakers", "Breakers: every cluster's, and tenants' that are not closed.", answers.Breakers,
          breakers),
    Route("/api/v1/breakers/{cluster}/{state}", "Force a cluster's breaker.", answers.Breakers, change=force_breaker,
          parameters=_BREAKER, refusals=_BAD),
    Route("/api/v1/breakers/{cluster}/{tenant}/{state}", "Force the breaker of one tenant at a cluster.",
          answers.Breakers, change=force_breaker, refusals=_BAD,
          parameters=(*_BREAKER, Parameter("tenant", "A tenant's id."))),
    Route("/api/v1/switches", "The region-wide switches.", answers.RegionSwitches, switches),
    Route("/api/v1/switches/{name}", "Set a region-wide switch.", answers.RegionSwitches, change=set_switch,
          parameters=(_SWITCH,), refusals=_BAD | {409: "A rule of safety forbids it, and it was not forced."}),
    Route("/api/v1/workers/replace", "Replace all workers.", answers.Asked, change=replace_workers, status=202,
          refusals={400: "There is no reason.", 409: "The gateway drains.", 503: "Nothing was done."}),
)  # fmt: skip
_ROUTE_OF: Final = {(route.method, route.path): route for route in ROUTES}


async def _carried_out_by_guard(request: web.Request) -> web.StreamResponse:
    """Where a change's path leads the router; `guard` never comes here without having carried it out."""
    raise AssertionError(request.path)


def make_app(facts: Facts, is_loopback: bool, ask: Ask) -> web.Application:
    """The application; `is_loopback`: it listens on a loopback address; `ask` speaks to the supervisor."""
    app = web.Application(middlewares=[guard], client_max_size=REQUEST_BYTES_MAX)
    app[GATE] = Gate(facts, is_loopback, ask, AuditLog(facts.state_dir), Failures())
    app[OPENAPI] = msgspec.json.encode(document(ROUTES, __version__))
    add_routes(app.router)
    return app


def add_routes(router: web.UrlDispatcher) -> None:
    for route in ROUTES:
        if route.read is not None:
            router.add_get(route.path, route.read)
        else:
            router.add_post(route.path, _carried_out_by_guard)
