"""`/api/v1/openapi.json` (OpenAPI 3.1), made from the very table that makes the routes.

So an endpoint cannot be served without being described, nor described without being served; the schemas of answers
are made from the types that are answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.control.admin_answers import Problem
from gateway.settings.schema import Role

OPENAPI: Final = "3.1.0"
REASON_CHARS_MAX: Final = 256
"""A sentence; the supervisor takes lines of 4 KiB, in which a character may need twelve."""

_SCHEMAS: Final = "#/components/schemas/{name}"
_REFUSALS: Final = {
    "401": "A token is needed, or the one that was presented is not known.",
    "403": "The role of this token is too small.",
    "421": "The API does not answer to this Host.",
    "429": "Too many bad tokens from this address; `Retry-After` says when to try again.",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of the query or, where the path has `{name}`, of the path. `many`: it may repeat."""

    name: str
    about: str
    required: bool = False
    many: bool = False
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change that is admitted and written down: who wants it, and why."""

    actor: str
    role: Role
    reason: str


Read = Callable[[web.Request], Awaitable[web.Response]]
Write = Callable[[web.Request, Change], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. Exactly one of `read` (GET) and `change` (POST, by an operator, audited) is there.

    `answers` is the type of the JSON that it answers with, or the media type of what has no type. `open`: it answers
    without a token wherever it listens. `refusals` are statuses of its own.
    """

    path: str
    summary: str
    answers: type | str
    read: Read | None = None
    change: Write | None = None
    status: int = 200
    open: bool = False
    parameters: tuple[Parameter, ...] = ()
    refusals: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        assert (self.read is None) is not (self.change is None), self.path
        assert not (self.open and self.change), "a change is never open"

    @property
    def method(self) -> str:
        return "GET" if self.change is None else "POST"

    @property
    def needs(self) -> Role | None:
        """The least role; None: whoever asks."""
        return None if self.open else Role.VIEWER if self.change is None else Role.OPERATOR


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole description."""
    routes = list(routes)
    types = [Problem, *(route.answers for route in routes if isinstance(route.answers, type))]
    schemas, components = msgspec.json.schema_components(dict.fromkeys(types), ref_template=_SCHEMAS)
    schema_of = dict(zip(dict.fromkeys(types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Landbridge admin API",
            "version": version,
            "description": "On a loopback listener reads need no token. Changes need an operator's, and a reason.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "admin.tokens"}},
        },
    }


def _operation(route: Route, schema_of: Mapping[type, Mapping[str, Any]]) -> dict[str, Any]:
    if isinstance(route.answers, type):
        content = {"application/json": {"schema": schema_of[route.answers]}}
    else:
        content = {route.answers: {"schema": {"type": "string" if route.answers.startswith("text/") else "object"}}}
    problem = {"application/problem+json": {"schema": schema_of[Problem]}}
    refusals = {str(status): about for status, about in (route.refusals or {}).items()}
    if not route.open:
        refusals |= {status: about for status, about in _REFUSALS.items() if status != "403" or route.change}
    plain = {"text/plain": {"schema": {"type": "string"}}}
    answers = {str(route.status): {"description": route.summary, "content": content}}
    answers |= {s: {"description": about, "content": plain if route.open else problem} for s, about in refusals.items()}
    made: dict[str, Any] = {
        "operationId": _name(route),
        "summary": route.summary,
        "parameters": [_parameter(route, parameter) for parameter in route.parameters],
        "responses": dict(sorted(answers.items())),
        # an empty requirement: also without, which on loopback is enough to read
        "security": [] if route.open else [{"token": []}] if route.change else [{}, {"token": []}],
    }
    if route.change:
        made["parameters"].append(
            {
                "name": "X-Reason",
                "in": "header",
                "required": False,
                "description": "Why, for the audit log. Needed here or in the body.",
                "schema": _REASON,
            }
        )
        body = {"type": "object", "properties": {"reason": _REASON}}
        made["requestBody"] = {"required": False, "content": {"application/json": {"schema": body}}}
    return made


_REASON: Final = {"type": "string", "minLength": 1, "maxLength": REASON_CHARS_MAX}


def _name(route: Route) -> str:
    """An operationId: `get_tenants_id`."""
    words = route.path.removeprefix("/api/v1").replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([route.method.lower(), *filter(None, words)])


def _parameter(route: Route, parameter: Parameter) -> dict[str, Any]:
    in_path = f"{{{parameter.name}}}" in route.path
    schema = dict(parameter.schema or {"type": "string"})
    return {
        "name": parameter.name,
        "in": "path" if in_path else "query",
        "required": in_path or parameter.required,
        "description": parameter.about,
        "schema": {"type": "array", "items": schema} if parameter.many else schema,
    }
