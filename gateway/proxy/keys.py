"""What keeps a request at one endpoint: the key that a ring is asked for, and the cookie that clients get for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.balancing import Balance, HashBy
from gateway.core.tenancy import cookie_values

if TYPE_CHECKING:
    from gateway.core.http1.head import Request
    from gateway.proxy.relay import Relay


def of(relay: Relay, balance: Balance) -> bytes | None:
    """The key of this request, or None: then it goes to whoever has least in hand.

    With `sticky`, a request without the cookie gets one of its own, which its answer tells the client.
    """
    exchange = relay.exchange
    match balance.by:
        case HashBy.TENANT:
            return exchange.tenant.encode() or None
        case HashBy.HEADER:
            return _field(exchange.request, balance.name)
        case HashBy.COOKIE:
            values = cookie_values(exchange.request, balance.name)
            if values:
                return values[0]
            if balance.sticky_s is None:
                return None
            if not relay.cookie:
                relay.sticky_key = relay.worker.random_id().encode()
                relay.cookie = _cookie(relay.sticky_key, balance)
            return relay.sticky_key


def _field(request: Request, name: bytes) -> bytes | None:
    """The value of a field, lower-case `name`: one that the gateway knows, or any that it passes on."""
    values = request.values(name) or [
        value.strip(b" \t")
        for field, _, value in (line.partition(b":") for line in request.kept)
        if field.lower() == name
    ]
    return b", ".join(values) or None


def _cookie(key: bytes, balance: Balance) -> bytes:
    """A whole line (RFC 6265, 4.1). It names nobody and opens nothing; it is for this host, and for no script."""
    age = b"; Max-Age=%d" % balance.sticky_s if balance.sticky_s else b""
    return b"Set-Cookie: %b=%b; Path=/%b; HttpOnly; SameSite=Lax" % (balance.name, key, age)
