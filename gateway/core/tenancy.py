"""Whose request is this? Placements' `hosts`, then regions' `public` templates, then the resolvers, in their order.

The first that answers wins. A resolver that is asked and finds two different tenants, or something that no tenant can
be called, refuses the request: guessing here would hand one tenant's data to another. Pure: the hosts index is a
callable, and `memo` is the caller's, so that a worker pays for a Host once per View.

A name outside the id grammar is judged by where it stands. In a Host it is no answer: wildcard DNS sends anything
here, and the later resolvers may know better. In a header, path, query or cookie somebody *named* a tenant and no
tenant is called so: 400 `tenant_missing`, never the next resolver's tenant (a `fixed:` one, say). Empty is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from gateway.core.errors import GatewayError
from gateway.core.placement import TENANT_ID
from gateway.core.tokens import OIDC_DATA, Tokens, find_token
from gateway.core.view import (
    AlbResolver,
    CookieResolver,
    FixedResolver,
    HeaderResolver,
    HostResolver,
    HostTemplate,
    JwtResolver,
    PathResolver,
    QueryResolver,
    Resolver,
    View,
)

MEMO_MAX: Final = 10_000
"""Hosts remembered per View and worker, about 2 MB; wildcard DNS lets clients invent names without end."""

_DOT_SEGMENT: Final = re.compile(rb"(?:/|\\|%2f|%5c)(?:\.|%2e){1,2}(?:/|\\|;|%2f|%5c|%3b|\Z)", re.IGNORECASE)
"""RFC 3986, 5.2.4, as anything behind us may read it: decoded late, `\\` as `/`, `..;` as Tomcat takes it."""

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Source(StrEnum):
    """What named the tenant. Some of these forbid an external redirect (DESIGN 5.3, rule 5)."""

    HOSTS = "hosts"
    PUBLIC = "public"
    HOST = "host"
    HEADER = "header"
    PATH = "path"
    QUERY = "query"
    COOKIE = "cookie"
    TOKEN = "token"
    FIXED = "fixed"
    HOP = "hop"


class Resolved(NamedTuple):
    """The tenant, and what said so. `field`: the header that answered (as compared), which alone is not removed."""

    tenant: str
    source: Source
    rule: str
    field: bytes = b""


class RequestFacts(Protocol):
    """What decisions read of a request: `http1.head.Request` has it, and so has a test's dataclass."""

    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes:
        """origin-form, raw."""
        ...

    @property
    def version(self) -> int: ...
    @property
    def host(self) -> str:
        """Lower case, without port and trailing dot; empty when there was none (HTTP/1.0)."""
        ...

    @property
    def host_field(self) -> bytes: ...
    @property
    def upgrade(self) -> bool:
        """A well-formed WebSocket handshake."""
        ...

    def values(self, name: bytes) -> list[bytes]:
        """In order; `name` lower case with `_` as `-`."""
        ...


class Step(NamedTuple):
    """One rule that was tried, and what came of it."""

    rule: str
    outcome: str


class Trace:
    """Collects the rules that were tried, for `explain`. Requests are decided with none."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, rule: str, outcome: object, *names: object) -> None:
        """`names` fill the braces of `rule`: what is only explained is only put together here."""
        self.steps.append(Step(rule.format(*names) if names else rule, str(outcome)))


class Untraced(Trace):
    """Takes every step and keeps none."""

    __slots__ = ()

    def add(self, rule: str, outcome: object, *names: object) -> None:
        pass


UNTRACED: Final = Untraced()


HostOwner = Callable[[str], str | None]
Memo = dict[str, Resolved | None]
"""`resolve_host`'s answers for one View: empty it with each View, and pop the hosts that the bus names."""


def resolve(
    request: RequestFacts,
    view: View,
    host_owner: HostOwner,
    trace: Trace | None = None,
    complete: bool = True,
    memo: Memo | None = None,
    tokens: Tokens | None = None,
) -> Resolved:
    """The tenant that a client's request names. Raises GatewayError.

    `tenant_missing`, `tenant_conflict`, `target_malformed`; and `map_unavailable` where the map is not `complete` and
    the Host names nobody: it may be a tenant's own, and no later resolver may answer in that tenant's place. Of tokens
    also what `tokens` raises: one that is not good ends the request, and never leaves it to the next resolver.
    """
    resolvers = view.resolvers
    for resolver in resolvers:
        if type(resolver) is PathResolver:
            refuse_dot_segments(request.target, trace)
            break
    host = request.host
    if memo is not None and trace is None and host in memo:
        found = memo[host]
    else:
        found = resolve_host(host, view, host_owner, trace)
        if memo is not None and (found is not None or complete):
            if len(memo) >= MEMO_MAX:
                memo.clear()
            memo[host] = found
    if found is None:
        if not complete:
            raise GatewayError("map_unavailable")
        found = _next(request, resolvers, trace, tokens)
    elif not view.agree:
        return found
    if view.agree:
        _agree(found, request, view, trace, tokens)
    if found is None:
        raise GatewayError("tenant_missing")
    return found


def _next(
    request: RequestFacts, resolvers: tuple[Resolver, ...], trace: Trace | None, tokens: Tokens | None
) -> Resolved | None:
    """What the resolvers say that `resolve_host` has not asked: the first that answers."""
    for resolver in resolvers[_leading_hosts(resolvers) :]:
        found = _ask(resolver, request, tokens, trace)
        if trace is not None:
            trace.add(describe(resolver), found.tenant if found else "no answer")
        if found is not None:
            return found
    return None


def _ask(resolver: Resolver, request: RequestFacts, tokens: Tokens | None, trace: Trace | None) -> Resolved | None:
    if type(resolver) is JwtResolver or type(resolver) is AlbResolver:
        try:
            return _from_token(resolver, request, tokens)
        except GatewayError as error:
            if trace is not None:
                trace.add(describe(resolver), f"refused: {error.detail}")
            raise
    found: Resolved | None = RESOLVE[type(resolver)](resolver, request)
    return found


def _agree(
    found: Resolved | None, request: RequestFacts, view: View, trace: Trace | None, tokens: Tokens | None
) -> None:
    """Ask everything that `tenancy.agree` names, whoever answered first: one tenant, or the request is refused.

    `found` is the first answer, which stands for Host where Host named it.
    """
    answers = {}
    if found is not None and found.source in _BY_HOST:
        answers["host"] = found.tenant
    for resolver in view.resolvers:
        kind = KINDS[type(resolver)]
        if kind in view.agree and kind not in answers:
            said = _ask(resolver, request, tokens, trace)
            if said is not None:
                answers[describe(resolver)] = said.tenant
    if "host" not in view.agree:
        answers.pop("host", None)
    differ = len(set(answers.values())) > 1
    if trace is not None:
        trace.add("agree: {}", "they name different tenants" if differ else "no contradiction", ", ".join(view.agree))
    if differ:
        raise GatewayError("tenant_conflict", f"{' and '.join(view.agree)} do not name the same tenant")


def resolve_host(host: str, view: View, host_owner: HostOwner, trace: Trace | None = None) -> Resolved | None:
    """What Host alone says: the hosts index, `public` templates, then `host:` resolvers that no other precedes.

    A function of `host`, the View and the index: its answer, None included, may be kept for as long as those stand.
    """
    owner = host_owner(host) if host else None
    if trace is not None:
        trace.add("hosts", owner or "no answer")
    if owner is not None:
        return Resolved(owner, Source.HOSTS, "hosts")
    for region in view.regions.values():
        if region.public is not None:
            tenant = _label(region.public.host, host)
            if trace is not None and region.public.host.has_tenant:
                trace.add(f"public {region.name}: {region.public.render('{tenant}')}", tenant or "no answer")
            if tenant is not None:
                return Resolved(tenant, Source.PUBLIC, f"public {region.name}")
    for resolver in view.resolvers:
        if type(resolver) is not HostResolver:
            break
        found = _by_host(resolver, host)
        if trace is not None:
            trace.add(describe(resolver), found.tenant if found else "no answer")
        if found is not None:
            return found
    return None


def refuse_dot_segments(target: bytes, trace: Trace | None = None) -> None:
    """With tenants in paths, `/t/acme/../globex/` has two readings: refuse it, however it is written."""
    bad = _DOT_SEGMENT.search(target.partition(b"?")[0]) is not None
    if trace is not None:
        trace.add("path: no dot segments", "found one" if bad else "none")
    if bad:
        raise GatewayError("target_malformed", "the path holds a dot segment")


def describe(resolver: Resolver) -> str:
    """The resolver as its line in the configuration."""
    match resolver:
        case HostResolver(template):
            return f"host: {template.render('{tenant}')}"
        case HeaderResolver(name):
            return f"header: {name.decode('latin-1')}"
        case PathResolver(prefix, suffix):
            return f"path: {prefix.decode('latin-1')}{{tenant}}{suffix.decode('latin-1')}"
        case QueryResolver(name):
            return f"query: {name.decode('latin-1')}"
        case CookieResolver(name):
            return f"cookie: {name.decode('latin-1')}"
        case JwtResolver(header, claim):
            return f"jwt: {claim} in {header.decode('latin-1')}"
        case AlbResolver(claim):
            return f"alb: {claim}"
        case FixedResolver(tenant):
            return f"fixed: {tenant}"


def _leading_hosts(resolvers: tuple[Resolver, ...]) -> int:
    """How many `host:` resolvers stand before any other kind: `resolve_host` has asked them."""
    for index, resolver in enumerate(resolvers):
        if type(resolver) is not HostResolver:
            return index
    return len(resolvers)


def _label(template: HostTemplate, host: str) -> str | None:
    """The tenant that `host` names by `template`; a label that no id can be is no answer."""
    label = template.match(host)
    return label if label is not None and TENANT_ID.match(label) else None


def _by_host(resolver: HostResolver, host: str) -> Resolved | None:
    tenant = _label(resolver.template, host)
    return None if tenant is None else Resolved(tenant, Source.HOST, describe(resolver))


def _from_host(resolver: HostResolver, request: RequestFacts) -> Resolved | None:
    return _by_host(resolver, request.host)


def _from_header(resolver: HeaderResolver, request: RequestFacts) -> Resolved | None:
    """A list is the same as repeated lines (RFC 9110, 5.3): proxies may join them."""
    values = [item.strip(b" \t") for value in request.values(resolver.name) for item in value.split(b",")]
    tenant = _agreed(values, "header", resolver.name)
    return None if tenant is None else Resolved(tenant, Source.HEADER, describe(resolver), resolver.name)


def _from_path(resolver: PathResolver, request: RequestFacts) -> Resolved | None:
    """Matches the raw target, whose segments are as the client wrote them; `%61cme` is no id."""
    path = request.target.partition(b"?")[0]
    if not path.startswith(resolver.prefix):
        return None
    segment, slash, rest = path[len(resolver.prefix) :].partition(b"/")
    after, separator, further = resolver.suffix.partition(b"/")
    if not segment.endswith(after) or not (slash + rest).startswith(separator + further):
        return None
    tenant = _agreed([segment.removesuffix(after)], "path segment after", resolver.prefix)
    return None if tenant is None else Resolved(tenant, Source.PATH, describe(resolver))


def _from_query(resolver: QueryResolver, request: RequestFacts) -> Resolved | None:
    """Names are decoded too: the application reads `t%65nant=globex` as `tenant`, so it counts as one."""
    query = request.target.partition(b"?")[2]
    if resolver.name not in query and b"%" not in query:
        return None
    values = []
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == resolver.name or (b"%" in name and unquote_to_bytes(name) == resolver.name):
            if _BAD_ESCAPE.search(value):
                raise GatewayError("target_malformed", "the tenant's query parameter is not percent-encoded")
            values.append(unquote_to_bytes(value))
    tenant = _agreed(values, "query parameter", resolver.name)
    return None if tenant is None else Resolved(tenant, Source.QUERY, describe(resolver))


def cookie_values(request: RequestFacts, wanted: bytes) -> list[bytes]:
    """cookie-pairs over all Cookie fields (RFC 6265, 4.2.1 and 5.4); quotes around a value are not part of it."""
    values = []
    for field in request.values(b"cookie"):
        for pair in field.split(b";"):
            name, equals, value = pair.partition(b"=")
            if equals and name.strip(b" \t") == wanted:
                value = value.strip(b" \t")
                values.append(value[1:-1] if len(value) > 1 and value[:1] == b'"' == value[-1:] else value)
    return values


def _from_cookie(resolver: CookieResolver, request: RequestFacts) -> Resolved | None:
    tenant = _agreed(cookie_values(request, resolver.name), "cookie", resolver.name)
    return None if tenant is None else Resolved(tenant, Source.COOKIE, describe(resolver))


def _from_fixed(resolver: FixedResolver, request: RequestFacts) -> Resolved | None:
    return Resolved(resolver.tenant, Source.FIXED, describe(resolver))


def _from_token(resolver: JwtResolver | AlbResolver, request: RequestFacts, tokens: Tokens | None) -> Resolved | None:
    """What a signed token says. The load balancer's own is only there when a trusted proxy sent it: `identify`
    takes it away from everybody else."""
    field = resolver.header if type(resolver) is JwtResolver else OIDC_DATA
    token = find_token(request.values(field), field)
    if token is None:
        return None
    if tokens is None:
        raise GatewayError("keys_unavailable")
    return Resolved(tokens.tenant(resolver, token), Source.TOKEN, describe(resolver))


RESOLVE: Final[dict[type[Resolver], Callable[..., Resolved | None]]] = {
    HostResolver: _from_host,
    HeaderResolver: _from_header,
    PathResolver: _from_path,
    QueryResolver: _from_query,
    CookieResolver: _from_cookie,
    FixedResolver: _from_fixed,
}
"""Each kind of resolver and its function of (resolver, request); those of tokens ask somebody besides."""

KINDS: Final[dict[type[Resolver], str]] = {
    HostResolver: "host",
    HeaderResolver: "header",
    PathResolver: "path",
    QueryResolver: "query",
    CookieResolver: "cookie",
    JwtResolver: "jwt",
    AlbResolver: "alb",
    FixedResolver: "fixed",
}
"""Each kind's name in the configuration."""

_BY_HOST: Final = frozenset((Source.HOSTS, Source.PUBLIC, Source.HOST))


def _agreed(values: Iterable[bytes], kind: str, name: bytes) -> str | None:
    """The one id that all `values` are, None when there is none or it is empty. Raises GatewayError.

    Lower case is taken of bytes, so only ASCII folds: the Kelvin sign is no `k`.
    """
    distinct = {value.lower() for value in values}
    if len(distinct) > 1:
        raise GatewayError("tenant_conflict", f"the {kind} {name.decode('latin-1')} names more than one tenant")
    tenant = distinct.pop().decode("latin-1") if distinct else ""
    if not tenant:
        return None
    if TENANT_ID.match(tenant) is None:
        raise GatewayError("tenant_missing", f"the {kind} {name.decode('latin-1')} holds no tenant id")
    return tenant
