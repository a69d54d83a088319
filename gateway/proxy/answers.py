"""What the gateway says itself: problem documents (RFC 9457), a page for browsers, `Proxy-Status` (RFC 9209)."""

from __future__ import annotations

import html
import re
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from gateway.core.errors import Flag
from gateway.core.exchange import Exchange
from gateway.core.http1.head import Response
from gateway.core.routing import accepts_html

Fields = tuple[tuple[bytes, bytes], ...]

_TYPE: Final = "urn:landbridge:error:"
_TOKEN: Final = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*\Z")
"""sf-token, RFC 9651, 3.3.4: a region that begins with a digit has to be quoted."""
_NOT_DESCRIBABLE: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
"""RFC 6750, 3: error_description holds no quote, backslash or control character (a claim's name may)."""
_REFUSED: Final = frozenset(("hop_rejected", "loop"))

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{status} {title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:15vh auto;max-width:34em;padding:0 1em}}
small{{color:#666}}</style>
<h1>{title}</h1><p>{detail}</p><p><small>{status} {flag} &middot; request {request_id} &middot; {region}</small></p>
</html>
"""


def reason(status: int) -> str:
    """The reason phrase (RFC 9110, 15), for a status line."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


@lru_cache(maxsize=4)
def _date(unix_s: int) -> bytes:
    """RFC 9110, 6.6.1: whoever answers and has a clock says when."""
    return b"Date: " + formatdate(unix_s, usegmt=True).encode()


def response(status: int, fields: Fields, body: bytes, wall_ms: int) -> Response:
    """A response of our own as a head that outbound filters can read; its length is always known."""
    answer = Response(status, 11, b"HTTP/1.1 %d %b" % (status, reason(status).encode()))
    answer.kept = [b"%b: %b" % field for field in fields]
    answer.kept.append(_date(wall_ms // 1000))
    if status != 204 and status >= 200:
        answer.kept.append(b"Content-Length: %d" % len(body))
    answer.length = len(body)
    return answer


def problem(exchange: Exchange, flag: Flag, detail: str) -> tuple[Fields, bytes]:
    """The fields and the body that tell a client what happened, by its flag and request id, and nothing else."""
    view = exchange.view
    facts = {
        "type": _TYPE + flag.name,
        "title": flag.title,
        "status": flag.status,
        "detail": detail or flag.title,
        "flag": flag.name,
        "request_id": exchange.request_id,
        "region": view.region,
    }
    refusal = exchange.refusal
    if refusal is not None:
        facts["rule"] = refusal.rule
    if accepts_html(exchange.request):
        kind = b"text/html; charset=utf-8"
        body = _PAGE.format_map({key: html.escape(str(value)) for key, value in facts.items()}).encode()
    else:
        kind, body = b"application/problem+json", msgspec.json.encode(facts)
    fields = [
        (b"Content-Type", kind),
        (b"Cache-Control", b"no-store"),
        (b"Proxy-Status", proxy_status(view.token, flag)),
    ]
    if flag.retry_after_s is not None:
        fields.append((b"Retry-After", b"%d" % (exchange.retry_after_s or flag.retry_after_s)))
    if refusal is not None:
        fields += refusal.fields
    if flag.status == 401:
        fields.append((b"WWW-Authenticate", _challenge(detail or flag.title)))
    if exchange.listener == "hop" and flag.name in _REFUSED:
        fields.append((b"Gateway-Refused", flag.name.encode()))
    if exchange.verdict:
        fields.append((b"Gateway-Verdict", exchange.verdict))
    return tuple(fields), body


def _challenge(why: str) -> bytes:
    """RFC 6750, 3: what is asked for, and what was wrong with what came. `why` is one of our own sentences."""
    return b'Bearer error="invalid_token", error_description="%b"' % _NOT_DESCRIBABLE.sub("", why).encode("ascii")


def proxy_status(token: str, flag: Flag) -> bytes:
    """RFC 9209, 2: who intervened, the error's registered type, and our flag as details."""
    name = token if _TOKEN.match(token) else f'"{token}"'
    return f'{name}; error={flag.proxy_error}; details="{flag.name}"'.encode()
