"""The admin API (`listen.admin`): probes, /metrics, and what control knows as JSON. It only reads.

It is for operators and their tools on this machine: until tokens exist it listens on loopback only, and a request
whose Host is the name of some web site is refused, because a browser may be made to send one (DNS rebinding). It never
shows a secret, and every error is a problem document (RFC 9457).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.control import shown
from gateway.control.facts import Facts
from gateway.control.metrics import gauges, scrape
from gateway.core.errors import FLAGS, GatewayError
from gateway.core.explain import explain
from gateway.store.record import StoreError
from gateway.telemetry.metrics import CONTENT_TYPE

LOG = logging.getLogger("landbridge.control")

PAGE: Final = 100
PAGE_MAX: Final = 1000
"""Tenants in one answer: encoded within a few milliseconds."""

SCAN_MAX: Final = 10_000
"""Records that one filtered request reads; its `next` goes on from there, also when nothing fitted."""

REQUEST_BYTES_MAX: Final = 64 * 1024
EXPLAIN_HEADERS_MAX: Final = 64

FACTS: Final = web.AppKey("facts", Facts)
LOOPBACK: Final = web.AppKey("loopback", bool)

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::[0-9]*)?\Z")
_TENANT_FILTER: Final = re.compile(r"(?:(id|home|state)[:=])?(.*)\Z", re.DOTALL)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem(status: int, title: str, detail: str, region: str, flag: str | None = None) -> web.Response:
    """An RFC 9457 problem document."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if flag is not None:
        body["flag"] = flag
    body["region"] = region
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/problem+json", headers=_NO_STORE
    )


def answer(value: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=_NO_STORE
    )


_NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def is_local_name(host: str) -> bool:
    """Whether a Host field (with or without a port) names this machine: localhost, a name below it, or loopback."""
    match = _HOST.match(host)
    if match is None:
        return False
    name = match[1].strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as problem documents; no other site's names on loopback; nothing but GET and HEAD."""
    region = request.app[FACTS].settings.region
    host = request.headers.get("Host", "")
    if request.app[LOOPBACK] and host and not is_local_name(host):
        return problem(421, "Misdirected", "this API answers to localhost and loopback addresses only", region)
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        refused = problem(405, "Method not allowed", "this API only reads: GET and HEAD", region)
        refused.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return refused
    except web.HTTPNotFound:
        return problem(404, "Not found", "there is nothing at this path; see /api/v1/status", region)
    except web.HTTPException as error:
        return problem(error.status, error.reason, error.reason, region)
    except GatewayError as error:
        return problem(error.flag.status, error.flag.title, error.detail, region, error.flag.name)
    except StoreError as error:
        LOG.error("admin: %s", error)
        return problem(503, FLAGS["map_unavailable"].title, str(error), region, "map_unavailable")
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        LOG.exception("admin: %s failed", request.path)
        return problem(500, "Internal error", "the log of the gateway says what happened", region)


def bad(detail: str, region: str) -> web.Response:
    return problem(400, "Bad request", detail, region)


# --- probes and metrics


async def live(request: web.Request) -> web.Response:
    """The process lives."""
    return web.Response(text="ok\n", headers=_NO_STORE)


async def ready(request: web.Request) -> web.Response:
    """The gateway can serve: its map is complete and it is not draining. Nothing else counts (DESIGN 5.6)."""
    facts = request.app[FACTS]
    if facts.draining:
        return web.Response(status=503, text="draining\n", headers=_NO_STORE)
    try:
        complete = facts.writer.complete()
    except StoreError as error:
        return web.Response(status=503, text=f"{error}\n", headers=_NO_STORE)
    if not complete:
        return web.Response(status=503, text="the tenant map is not complete\n", headers=_NO_STORE)
    return web.Response(text="ready\n", headers=_NO_STORE)


async def metrics(request: web.Request) -> web.Response:
    facts = request.app[FACTS]
    body = await asyncio.to_thread(scrape, facts.state_dir, gauges(facts))
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, **_NO_STORE})


# --- api


async def status(request: web.Request) -> web.Response:
    return answer(shown.status(request.app[FACTS], asyncio.get_running_loop().time()))


async def regions(request: web.Request) -> web.Response:
    return answer({"regions": shown.regions(request.app[FACTS], asyncio.get_running_loop().time())})


async def clusters(request: web.Request) -> web.Response:
    return answer({"clusters": shown.clusters(request.app[FACTS])})


async def the_map(request: web.Request) -> web.Response:
    return answer(shown.map_status(request.app[FACTS]))


async def config(request: web.Request) -> web.Response:
    facts = request.app[FACTS]
    return answer({"generation": facts.generation, "config": shown.config(facts.settings)})


async def tenants(request: web.Request) -> web.Response:
    """A page of the map in order of id; `next` is the `after` of the following page, null on the last."""
    facts = request.app[FACTS]
    text = request.query.get("limit", str(PAGE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= PAGE_MAX:
        return bad(f"limit: expected 1 to {PAGE_MAX}", facts.settings.region)
    limit = int(text)
    fits = tenant_filter(request.query.get("filter", ""))
    found: list[dict[str, Any]] = []
    after, scanned = request.query.get("after", "").lower(), 0
    while len(found) < limit and scanned < SCAN_MAX:
        page = await asyncio.to_thread(facts.writer.page, after, min(PAGE_MAX, limit if fits is None else PAGE_MAX))
        for placement in page:
            scanned, after = scanned + 1, placement.tenant
            if fits is None or fits(placement):
                found.append(shown.tenant(placement))
                if len(found) == limit:
                    break
        if not page:
            break
    is_last = not await asyncio.to_thread(facts.writer.page, after, 1)
    return answer({"tenants": found, "next": None if is_last else after})


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
    facts = request.app[FACTS]
    name = request.match_info["id"].lower()
    placement = facts.writer.placement(name)
    if placement is None:
        raise GatewayError("tenant_unknown" if facts.writer.complete() else "map_unavailable")
    return answer(shown.tenant(placement))


async def explanation(request: web.Request) -> web.Response:
    """What would be decided for a request, and by which rule; a refusal is an explanation like any other."""
    facts = request.app[FACTS]
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
    )
    return answer(shown.explanation(answered))


def make_app(facts: Facts, is_loopback: bool) -> web.Application:
    """The application; `is_loopback`: it listens on a loopback address."""
    app = web.Application(middlewares=[guard], client_max_size=REQUEST_BYTES_MAX)
    app[FACTS] = facts
    app[LOOPBACK] = is_loopback
    for path, handler in ROUTES.items():
        app.router.add_get(path, handler)
    return app


ROUTES: Final[dict[str, Callable[[web.Request], Awaitable[web.Response]]]] = {
    "/healthz": live,
    "/readyz": ready,
    "/metrics": metrics,
    "/api/v1/status": status,
    "/api/v1/regions": regions,
    "/api/v1/clusters": clusters,
    "/api/v1/tenants": tenants,
    "/api/v1/tenants/{id}": tenant,
    "/api/v1/map": the_map,
    "/api/v1/explain": explanation,
    "/api/v1/config": config,
}
