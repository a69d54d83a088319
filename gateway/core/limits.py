"""Limits of rate and of concurrency: what they say, the bucket that keeps one, and what a client is told of it.

The bucket is the generic cell rate algorithm (ITU-T I.371): one time per key. A process spends a *share* of a limit,
a fraction from 0 to 1 of its rate, burst and concurrency; `core.shares` says which. Changing a share never refills a
bucket: what it holds stays, or is cut down to what it may hold from now on. Pure; time is an argument.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from gateway.core.exchange import Exchange

RETRY_AFTER_MAX_S: Final = 60
"""What a client is told to wait at most: by then its share may be another one."""
ROUNDING: Final = 1e-6
"""Sums of fractions fall a little short of the whole numbers they stand for."""


class Scope(StrEnum):
    """What a limit counts together. The name stands in problem documents, `RateLimit-Policy`, metrics and logs."""

    CLIENT = "client"
    TENANT = "tenant"
    ROUTE = "route"
    GATEWAY = "gateway"


PREFIXES: Final = {Scope.TENANT: "t:", Scope.CLIENT: "c:", Scope.ROUTE: "r:", Scope.GATEWAY: "g:"}
SLOTS: Final = "#"
"""A limit's key, where its shares are spoken of: prefix and name; the key of its slots ends in `#`."""


class TenantLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tenant's own limits, as its record has them; what is None is the gateway's default for tenants."""

    rate: float | None = None
    burst: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """What one rule allows. `rate` is requests a second, None for no limit; `burst` goes with it and is at least 1.

    `concurrency`: requests at once, None for no limit. `shadow`: it counts what it would refuse, and refuses nothing.
    """

    rate: float | None = None
    burst: float = 1.0
    concurrency: int | None = None
    shadow: bool = False


def limit_of(rate: float | None, burst: float | None, concurrency: int | None, shadow: bool = False) -> Limit | None:
    """A rule as it is written; without `burst` a bucket holds one second's worth. None when nothing is limited."""
    if rate is None and concurrency is None:
        return None
    return Limit(rate, max(1.0, burst if burst is not None else rate or 0.0), concurrency, shadow)


def limit_for(own: TenantLimits | None, default: Limit | None) -> Limit | None:
    """What holds for a tenant: its own limits, and the default for what it does not name. A burst is its rate's."""
    if own is None:
        return default
    base = default or Limit()
    rate, burst = own.rate, own.burst
    if rate is None:
        rate = base.rate
        burst = math.ceil(base.burst) if burst is None else burst
    concurrency = base.concurrency if own.concurrency is None else own.concurrency
    return limit_of(rate, burst, concurrency, base.shadow)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Throttle:
    """The limits of a View. `client_header` None: a client is its address; else this field, in lower case, names it.

    `routes` has one entry per route of the View, in its order; it is empty when no route has a limit.
    """

    tenant: Limit | None = None
    client: Limit | None = None
    client_header: bytes | None = None
    gateway: Limit | None = None
    routes: tuple[tuple[bytes, Limit | None], ...] = ()
    exempt_networks: tuple[Network, ...] = ()
    exempt_tenants: frozenset[str] = frozenset()

    def route(self, target: bytes) -> tuple[bytes, Limit | None] | None:
        """Prefix and limit of the route of a raw target; None when no route matches."""
        for entry in self.routes:
            if target.startswith(entry[0]):
                return entry
        return None


class Refusal(NamedTuple):
    """Why a limit refused. `rule` is `<scope>.rate` or `<scope>.concurrency`; `fields` go with the 429."""

    scope: Scope
    rule: str
    detail: str
    retry_after_s: int
    fields: tuple[tuple[bytes, bytes], ...]


class Bucket:
    """One key's tokens and slots in this process: `share` of a limit.

    `zero` is the time at which the bucket was, or would have been, empty: it holds `(now - zero) / interval` tokens, at
    most `window / interval`. `inflight` are the slots taken of `slots`. Since the last report: `offered`, `refused` for
    want of a token and `refused_slots` of a slot, and `peak`, the most slots taken. `is_hot`: it refuses, or is about
    to, so clients are told where they stand. `is_plain`: there are only tokens to be taken.
    """

    __slots__ = (
        "equal",
        "inflight",
        "interval",
        "is_hot",
        "is_plain",
        "key",
        "limit",
        "offered",
        "peak",
        "refused",
        "refused_slots",
        "scope",
        "share",
        "slots",
        "slots_share",
        "window",
        "zero",
    )

    def __init__(
        self,
        key: str,
        limit: Limit,
        share: float,
        slots_share: float,
        now: float,
        scope: Scope = Scope.TENANT,
        equal: float = 0.0,
    ) -> None:
        self.key = key
        self.scope = scope
        self.zero = -math.inf
        self.offered = self.refused = self.refused_slots = self.peak = self.inflight = 0
        self.is_hot = False
        self.slots_share = slots_share
        self._set(limit, share, equal or share)
        self.zero = now - self.window

    def _set(self, limit: Limit, share: float, equal: float) -> None:
        self.limit = limit
        self.share = share
        self.equal = equal
        self.is_plain = limit.rate is not None and limit.concurrency is None
        self.interval, self.window = pace(limit, share, (share + equal) / 2)
        self.slots = slots_of(limit, self.slots_share)

    def take(self, now: float) -> float:
        """Take a token. 0.0: it was there; otherwise nothing was taken, and there is one in so many seconds."""
        zero = self.zero
        floor = now - self.window
        if zero < floor:
            zero = floor
        zero += self.interval
        if zero > now:
            return zero - now
        self.zero = zero
        return 0.0

    def tokens(self, now: float) -> float:
        """What it holds; 0 without a rate, where nothing is counted."""
        return min(now - self.zero, self.window) / self.interval if self.interval else 0.0

    def retune(self, limit: Limit, share: float, now: float, equal: float = 0.0) -> None:
        """Another limit or share: what it holds stays, or is cut down to the new burst; it is never refilled.

        `equal` is what the share would be if it were everybody's; without it, it is.
        """
        held = self.tokens(now) if self.interval else math.inf
        self._set(limit, share, equal or share)
        self.zero = now - min(held * self.interval, self.window) if self.interval else now

    def reslot(self, share: float) -> None:
        """Another share of the slots. Those that are taken beyond it are waited for, never cut."""
        self.slots_share = share
        self.slots = slots_of(self.limit, share)

    def release(self, exchange: Exchange, now: float) -> None:
        """A request that took a slot is over."""
        self.inflight -= 1


def pace(limit: Limit, share: float, burst_share: float) -> tuple[float, float]:
    """Seconds between two tokens, and seconds in which a bucket fills, for shares of a limit; 0 and 0 without a rate.

    Of a burst half is shared out as the rate is, and half equally: whoever has a small part of the rate would otherwise
    have no room for two requests that come close together. The whole is the burst; a share is one token at least, since
    with less no request would ever pass.
    """
    if limit.rate is None:
        return 0.0, 0.0
    interval = 1.0 / (limit.rate * share)
    return interval, max(1.0, limit.burst * burst_share) * interval


def slots_of(limit: Limit, share: float) -> int:
    """Requests at once for a share of a limit: one at least; a great many without a limit."""
    if limit.concurrency is None:
        return 1 << 62
    return max(1, int(limit.concurrency * share + ROUNDING))


# --- how operators write them


def written_rate(rate: float) -> str:
    """A rate as a file has it, in the unit in which it is a whole number where there is one."""
    for factor, unit in ((1, "s"), (60, "m"), (3600, "h")):
        count = rate * factor
        if abs(count - round(count)) < 1e-6 and round(count):
            return f"{round(count)}/{unit}"
    return f"{round(rate, 6):g}/s"


def written_limits(limits: TenantLimits) -> Mapping[str, object]:
    """A tenant's limits as its file has them."""
    said: dict[str, object] = {} if limits.rate is None else {"rate": written_rate(limits.rate)}
    if limits.burst is not None:
        said["burst"] = limits.burst
    if limits.concurrency is not None:
        said["concurrency"] = limits.concurrency
    return said


# --- what clients are told (draft-ietf-httpapi-ratelimit-headers-10)


def policy_field(scope: Scope, limit: Limit) -> bytes:
    """The value of `RateLimit-Policy`: `q` requests in `w` seconds, the whole seconds in which a bucket fills."""
    if limit.rate is None:
        return b""
    window = max(1, math.ceil(limit.burst / limit.rate), math.ceil(1 / limit.rate))
    return f'"{scope.value}";q={int(limit.rate * window)};w={window}'.encode("ascii")


def state_field(scope: Scope, bucket: Bucket, now: float) -> bytes:
    """The value of `RateLimit`: `r` requests are left, and in `t` seconds all are, as far as this process can tell.

    It sees its share, so what is left is that share's part counted up to the whole.
    """
    left = max(0, int(bucket.tokens(now) / bucket.share + ROUNDING))
    full_s = max(0.0, bucket.window - (now - bucket.zero) - ROUNDING)
    return f'"{scope.value}";r={left};t={math.ceil(full_s)}'.encode("ascii")


def shown_fields(bucket: Bucket, now: float) -> bytes:
    """Both fields, as lines without the last CRLF, for a response to a request that was let through."""
    scope = bucket.scope
    return b"RateLimit-Policy: %b\r\nRateLimit: %b" % (
        policy_field(scope, bucket.limit),
        state_field(scope, bucket, now),
    )


def rate_refusal(scope: Scope, bucket: Bucket, wait_s: float, now: float) -> Refusal:
    """A 429 for want of a token. The wait is rounded up, so that whoever keeps to it is served."""
    retry = min(RETRY_AFTER_MAX_S, max(1, math.ceil(wait_s)))
    limit = bucket.limit
    fields = (
        (b"RateLimit-Policy", policy_field(scope, limit)),
        (b"RateLimit", f'"{scope.value}";r=0;t={retry}'.encode("ascii")),
    )
    detail = f"the {scope.value}'s limit is {limit.rate:g} requests a second"
    return Refusal(scope, f"{scope.value}.rate", detail, retry, fields)


def slots_refusal(scope: Scope, limit: Limit) -> Refusal:
    """A 429 for want of a slot: nobody knows when one becomes free, so a client is told a second."""
    detail = f"the {scope.value}'s limit is {limit.concurrency} requests at once"
    return Refusal(scope, f"{scope.value}.concurrency", detail, 1, ())


def client_key(address: str) -> str:
    """What a client is known by: an IPv4 address, or the /64 of an IPv6 one, whose owner has all of it (RFC 4291).

    An IPv4-mapped address is the IPv4 one. What is no address is taken as it stands.
    """
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64)) + "/64"
