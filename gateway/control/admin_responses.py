"""What the admin API's handlers have in common: what they stand on (`Gate`), and how they answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.control import admin_answers as answers
from gateway.control.admin_access import Failures, Refusal
from gateway.control.admin_audit import AuditLog
from gateway.control.facts import Facts
from gateway.core.errors import FLAGS, GatewayError
from gateway.store.record import StoreError

LOG = logging.getLogger("landbridge.control")

NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Ask = Callable[[dict[str, Any]], bool]
"""Says something to the supervisor; False when it does not hear."""


@dataclass(slots=True)
class Gate:
    """What requests have in common. `is_loopback`: the API listens on a loopback address. `silent`: connections whose
    first request has not come.
    """

    facts: Facts
    is_loopback: bool
    ask: Ask
    audit: AuditLog
    failures: Failures
    silent: set[object] = field(default_factory=set)


GATE: Final = web.AppKey("gate", Gate)


def facts_of(request: web.Request) -> Facts:
    return request.app[GATE].facts


def region_of(request: web.Request) -> str:
    return request.app[GATE].facts.settings.region


def answer(value: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=NO_STORE
    )


def problem(status: int, title: str, detail: str, region: str, flag: str | None = None) -> web.Response:
    """An RFC 9457 problem document."""
    made = answers.Problem(title=title, status=status, detail=detail, flag=flag, region=region)
    return web.Response(
        status=status, body=msgspec.json.encode(made), content_type="application/problem+json", headers=NO_STORE
    )


def refusal(refused: Refusal, region: str) -> web.Response:
    made = problem(refused.status, refused.title, refused.detail, region)
    if refused.challenge:
        made.headers["WWW-Authenticate"] = refused.challenge
    if refused.retry_after_s:
        made.headers["Retry-After"] = str(refused.retry_after_s)
    return made


async def answered(work: Awaitable[web.StreamResponse], request: web.Request) -> web.StreamResponse:
    """Its response; what it raises, as a problem document."""
    region = region_of(request)
    try:
        return await work
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        refused = problem(405, "Method not allowed", f"this path takes {allowed}", region)
        refused.headers["Allow"] = allowed
        return refused
    except web.HTTPNotFound:
        return problem(404, "Not found", "there is nothing at this path; see /api/v1/openapi.json", region)
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
        LOG.exception("admin: %s %r failed", request.method, request.path)  # a decoded path may hold line breaks
        return problem(500, "Internal error", "the log of the gateway says what happened", region)


def bad(detail: str, region: str) -> web.Response:
    return problem(400, "Bad request", detail, region)
