"""Who may do what on `listen.admin`: names that it answers to, bearer tokens, roles, and a bound on guessing.

On loopback reads are open to everybody on this machine, as they were before there were tokens; a change needs an
operator's. Elsewhere everything but the two probes needs a token. A request is judged by values alone, so that each
combination can be tested as a row. What was presented as a token is never kept, returned or logged.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.settings.scalars import TOKEN_CHARS_MAX
from gateway.settings.schema import AdminSettings, Role, TokenSettings

FAILURES_BURST: Final = 10
"""Bad tokens that one address may present in a row: more than an operator who looks for the right one."""
FAILURE_EVERY_S: Final = 6.0
"""Then one each so many seconds. A scraper that kept its old token after a rotation stays below it."""
ADDRESSES_MAX: Final = 10_000
"""Addresses that are remembered, about 2 MiB; the one that failed longest ago is forgotten first."""
IPV6_PREFIX: Final = 64
"""What one customer or machine commonly has to itself (RFC 6177): all its addresses count as one."""

CHALLENGE: Final = 'Bearer realm="landbridge"'

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::[0-9]*)?\Z")


class Caller(NamedTuple):
    """Who asks. Without a token there is no name and no role: everybody on this machine."""

    name: str | None = None
    role: Role | None = None


NOBODY: Final = Caller()


class Refusal(NamedTuple):
    """Why a request is answered without being carried out. `caller` is who it was, as far as that is known."""

    status: int
    title: str
    detail: str
    caller: Caller = NOBODY
    challenge: str = ""
    retry_after_s: int = 0


class Claim(NamedTuple):
    """What a request says of itself and of its connection. `here`: the address that was connected to."""

    host: str
    authorization: Sequence[str]
    address: str
    here: str


# --- names


def host_of(field: str) -> str | None:
    """The name or address in a Host field, in lower case, without port and final dot; None when it is none."""
    match = _HOST.match(field)
    return None if match is None else match[1].strip("[]").lower().rstrip(".")


def is_local_name(name: str) -> bool:
    """Whether it is this machine whatever resolves it: localhost, a name below it (RFC 6761, 6.3), or loopback."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def answers_to(field: str, hosts: Sequence[str], is_loopback: bool, here: str) -> bool:
    """Whether a request with this Host is for us, and not for a web site whose name was pointed here (rebinding).

    A request without Host (HTTP/1.0) is: no browser sends one.
    """
    if not field:
        return True
    name = host_of(field)
    if name is None:
        return False
    address = _address(name)
    if (str(address) if address else name) in hosts:
        return True
    if is_loopback:
        return is_local_name(name)
    return address is not None and address == _address(here)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address; one of IPv4 in IPv6's clothes (a dual-stack socket's peer) as what it is."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


# --- tokens


class Presented(NamedTuple):
    """What `Authorization` holds: nothing for us, or something that is to be a token (empty: it cannot be one)."""

    is_there: bool
    token: bytes = b""


def presented(fields: Sequence[str]) -> Presented:
    """Other schemes are somebody else's, such as a proxy's; two fields are a guess at which one we would read."""
    bearers = [f.partition(" ")[2].strip() for f in fields if f.partition(" ")[0].lower() == "bearer"]
    if not bearers:
        return Presented(False)
    if len(fields) > 1 or len(bearers[0]) > TOKEN_CHARS_MAX:
        return Presented(True)
    return Presented(True, bearers[0].encode("utf-8", "surrogateescape"))


def bearer_of(token: bytes, tokens: Sequence[TokenSettings]) -> Caller | None:
    """Who bears this token. Digests of equal length are compared, all of them: time tells neither how much of a token
    was right nor whose it is.
    """
    offered = hashlib.sha256(token).digest()
    found: Caller | None = None
    for known in tokens:
        if hmac.compare_digest(offered, hashlib.sha256(known.token.encode()).digest()):
            found = Caller(known.name, known.role)
    return found


class Failures:
    """A token bucket of failures per address, so that guessing is slow. Bounded; `now` is monotonic seconds.

    While an address is out of tries even a right token is not looked at: the answer would tell that it is right.
    """

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}  # when the bucket will be full again; ordered by the last failure

    def wait_s(self, address: str, now: float) -> int:
        """Whole seconds until this address may present a token again; 0: now."""
        missing_s = self._full_at.get(_counted_as(address), now) - now
        return max(0, math.ceil(missing_s - (FAILURES_BURST - 1) * FAILURE_EVERY_S))

    def count(self, address: str, now: float) -> None:
        key = _counted_as(address)
        full_at = max(now, self._full_at.pop(key, now)) + FAILURE_EVERY_S
        self._full_at[key] = full_at
        if len(self._full_at) > ADDRESSES_MAX:
            del self._full_at[next(iter(self._full_at))]


def _counted_as(address: str) -> str:
    found = _address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, IPV6_PREFIX), strict=False))
    return str(found) if found else address


# --- the judgement


def judge(
    claim: Claim, needs: Role | None, settings: AdminSettings, is_loopback: bool, failures: Failures, now: float
) -> Caller | Refusal:
    """Who asks, or why not. `needs` None: a probe, which always answers. Counts what fails.

    A token that is presented has to be right also where none is needed: who sends one believes that it counts.
    """
    if needs is None:
        return NOBODY
    if not answers_to(claim.host, settings.hosts, is_loopback, claim.here):
        detail = "this API answers to the names in admin.hosts"
        detail += ", localhost and loopback addresses only" if is_loopback else " and to its own address only"
        return Refusal(421, "Misdirected", detail)
    offer = presented(claim.authorization)
    if not offer.is_there and is_loopback and needs is Role.VIEWER:
        return NOBODY
    if wait_s := failures.wait_s(claim.address, now):
        return Refusal(429, "Too many bad tokens", f"try again in {wait_s} s", retry_after_s=wait_s)
    caller = bearer_of(offer.token, settings.tokens) if offer.is_there else None
    if caller is None:
        # a read without a token is no guess; a change without one is written down, so its number is bounded too
        if offer.is_there or needs is Role.OPERATOR:
            failures.count(claim.address, now)
        if offer.is_there:
            return Refusal(401, "Bad token", "this token is not known", challenge=f'{CHALLENGE}, error="invalid_token"')
        whose = "an operator's" if needs is Role.OPERATOR else "a"
        detail = f"{whose} token is needed, as Authorization: Bearer"
        if not settings.tokens:
            detail += "; admin.tokens has none"
        return Refusal(401, "Token needed", detail, challenge=CHALLENGE)
    if needs is Role.OPERATOR and caller.role is not Role.OPERATOR:
        return Refusal(403, "Not allowed", f"{caller.name} is a viewer; this takes an operator", caller)
    return caller
