"""`{tenant}` in hosts, URLs and paths: from the text in a file to the frozen values of the View.

Used twice with the same result: by the loader, to refuse what it does not understand, and by `view`, which builds the
values that decide.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.core.placement import TENANT_ID
from gateway.core.view import (
    CookieResolver,
    FixedResolver,
    HeaderResolver,
    HostResolver,
    HostTemplate,
    PathResolver,
    PublicUrl,
    QueryResolver,
    Resolver,
)
from gateway.settings import units
from gateway.settings.units import Wanted

TENANT: Final = "{tenant}"
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}\Z")
"""token, RFC 9110, 5.6.2."""
_PARAMETER: Final = re.compile(r"[A-Za-z0-9._~-]{1,128}\Z")
"""Unreserved characters only (RFC 3986, 2.3): compared as bytes, so a name that can be written in two ways is out."""
_PATH: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*\Z")
"""An absolute path of pchar (RFC 3986, 3.3) without percent-encoding, for the same reason."""

OWN_FIELDS: Final = frozenset(
    {
        *("x-tenant", "x-tenant-epoch", "x-tenant-home", "x-request-id", "via"),
        *("host", "cookie", "authorization", "proxy-authorization"),
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "http2-settings", "expect"),
        *("content-length", "transfer-encoding", "accept", "sec-fetch-mode", "x-amzn-trace-id"),
        *("prefer", "grpc-timeout", "connect-timeout-ms", "idempotency-key"),
    }
)
"""Fields that no client may use to name its tenant: ours, the message's own, and those that hold credentials."""
OWN_PREFIXES: Final = ("gateway-", "x-gateway-", "x-forwarded-")


def host_template(text: str) -> HostTemplate:
    """`{tenant}.example.com`, or a plain host name."""
    if text.count(TENANT) > 1:
        raise Wanted("a host with at most one {tenant}")
    before, found, after = text.partition(TENANT)
    if not found:
        return HostTemplate(_host(text), "", False)
    if (before and not before.endswith(".")) or not after.startswith("."):
        raise Wanted("a host in which {tenant} is one whole label, not the last")
    # a tenant id is one label: any will do to check the rest of the name
    whole = _host(f"{before}t{after}")
    return HostTemplate(whole[: len(before)], whole[len(before) + 1 :], True)


def _host(text: str) -> str:
    try:
        return units.host_name(text)
    except ValueError:
        if units.is_ip(text):
            return text
        raise Wanted("a host name, without port or final dot") from None


def public_url(text: str) -> PublicUrl:
    """`https://{tenant}.example.com` or `http://app.example.com:8101`: scheme, host, port; never a path."""
    scheme, found, authority = text.partition("://")
    if not found or scheme not in ("http", "https"):
        raise Wanted("a URL that begins with http:// or https://")
    if re.search(r"[/?#@\\]", authority):
        raise Wanted("a URL without path, query or user, not even a final /")
    host, colon, digits = authority.partition(":")
    if not colon:
        return PublicUrl(scheme, host_template(host), None)
    try:
        port = units.port(digits)
    except ValueError:
        port = 0
    if port == 0:
        raise Wanted("a URL with a port from 1 to 65535, or without one")
    # the default port is left out, so that a Location equals what a browser shows (RFC 3986, 6.2.3)
    return PublicUrl(scheme, host_template(host), None if port == {"http": 80, "https": 443}[scheme] else port)


def _host_resolver(text: str) -> Resolver:
    template = host_template(text)
    if not template.has_tenant:
        raise Wanted("a host with {tenant} in it, such as {tenant}.example.com")
    return HostResolver(template)


def _header_resolver(text: str) -> Resolver:
    if not _TOKEN.match(text):
        raise Wanted("a field name such as X-Tenant-ID")
    name = text.lower().replace("_", "-")
    if name in OWN_FIELDS or name.startswith(OWN_PREFIXES):
        raise Wanted("a field that is neither the gateway's own nor HTTP's, such as X-Tenant-ID")
    return HeaderResolver(name.encode("ascii"))


def _path_resolver(text: str) -> Resolver:
    before, _, after = text.partition(TENANT)
    if text.count(TENANT) != 1 or not before.endswith("/") or (after and not after.startswith("/")):
        raise Wanted("a path with {tenant} as one whole segment, such as /t/{tenant}/")
    if not _PATH.match(before) or not _PATH.match(after or "/"):
        raise Wanted("a path without query, spaces and percent-encoding, such as /t/{tenant}/")
    if {".", ".."} & {*before.split("/"), *after.split("/")}:
        raise Wanted("a path without dot segments, such as /t/{tenant}/")
    return PathResolver(before.encode("ascii"), after.encode("ascii"))


def _query_resolver(text: str) -> Resolver:
    if not _PARAMETER.match(text):
        raise Wanted("a parameter name of A-Z a-z 0-9 . _ ~ -, such as tenant")
    return QueryResolver(text.encode("ascii"))


def _cookie_resolver(text: str) -> Resolver:
    if not _TOKEN.match(text):
        raise Wanted("a cookie name such as tenant")
    return CookieResolver(text.encode("ascii"))


def _fixed_resolver(text: str) -> Resolver:
    if not TENANT_ID.match(text):
        raise Wanted("a tenant id: 1 to 63 of a-z 0-9 - _")
    return FixedResolver(text)


RESOLVERS: Final = {
    "host": _host_resolver,
    "header": _header_resolver,
    "path": _path_resolver,
    "query": _query_resolver,
    "cookie": _cookie_resolver,
    "fixed": _fixed_resolver,
}
"""Every way in which a request can name its tenant, besides placements' `hosts` and regions' `public` templates."""


def resolver(kind: str, value: str) -> Resolver:
    """One resolver. KeyError for a kind that is not in `RESOLVERS`, Wanted for a value."""
    return RESOLVERS[kind](value)
