"""`Gateway-Hop` and `Gateway-Verdict`: their grammar and their signatures. What they mean is judged in `core.hop`.

A field is `key=value` pairs, `; ` between them, known keys in one fixed order. Keys that this program does not know
are signed and ignored, so that two program versions understand each other; another `v` is refused. HMAC-SHA256 runs
over netstrings (`<decimal length>:<bytes>`), so that no two different lists of parts are the same bytes. Any key of
the configuration verifies, the first signs. Comparisons take constant time. Clock and keys are arguments.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Final

from gateway.core.peering import PEER_PATH
from gateway.core.placement import REGION_NAME, TENANT_ID, Failover, Placement, Version, parse_version
from gateway.core.shedding import HOP_KEY
from gateway.core.tenancy import RequestFacts
from gateway.core.view import View

CLOCK_MS: Final = 30_000
"""How far `ts` may be off: NTP keeps clocks far closer; what is captured on the wire ages out."""

FIELD_BYTES_MAX: Final = 8192
"""Two hundred standby regions fit; a longer field is not ours."""

HOP_FIELD: Final = b"gateway-hop"
VERDICT_FIELD: Final = b"gateway-verdict"

_HOP_KEYS: Final = (
    "v", "from", "to", "tenant", "ver", "home", "standby", "failover", "reason", "deadline", "ts", "sig",
)  # fmt: skip
_QUESTION_KEYS: Final = ("v", "from", "to", "reason", "ts", "sig")
_VERDICT_KEYS: Final = ("ver", "home", "standby", "failover", "sig")
_UNAVAILABLE_KEYS: Final = ("standby", "failover", "sig")
_UNAVAILABLE: Final = "unavailable"

_PAIR: Final = re.compile(r"([a-z][a-z0-9_-]{0,31})=([\x21\x23-\x26\x28-\x3a\x3c-\x7e]*)\Z")
"""A value is visible ASCII but for quotes and `;`."""
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}\Z")
_SECONDS: Final = re.compile(r"[0-9]{1,12}\Z")
_DEADLINE: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?\Z")


class Refusal(StrEnum):
    """Why a hop was not valid: the label of `landbridge_hop_rejected_total`."""

    MISSING = "missing"
    FORM = "form"
    KEY = "key"
    CLOCK = "clock"
    DESTINATION = "destination"


class HopRejected(Exception):
    """No valid hop: 403 `hop_rejected`. `reason` is for metrics and log; the client learns no more than the flag."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Reason(StrEnum):
    """Why the request was sent here. `peer` is control's question, which is answered, not judged."""

    MISROUTE = "misroute"
    FAILOVER = "failover"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Hop:
    """A verified hop. `version` None is `ver=-`: the sender has no record of the tenant.

    `fields` are all pairs as sent, those included that this program does not know. A peer question has no tenant,
    home, standby, failover (`manual`) or deadline (0).
    """

    source: str
    to: str
    tenant: str
    version: Version | None
    home: str
    standby: tuple[str, ...]
    failover: Failover
    reason: Reason
    deadline_s: float
    ts: int
    sig: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """421: this gateway's record is newer than the hop's, and the tenant is not served here."""

    version: Version
    home: str
    standby: tuple[str, ...]
    failover: Failover


@dataclass(frozen=True, slots=True)
class Unavailable:
    """503: the tenant is served here, but the application cannot serve. Who may instead, by the newer record."""

    standby: tuple[str, ...]
    failover: Failover


def sign(
    view: View,
    placement: Placement,
    *,
    to: str,
    reason: Reason | str,
    deadline_s: float,
    ts: int,
    method: bytes,
    target: bytes,
    host: bytes,
    forwarded_for: bytes,
    request_id: bytes,
    recorded: bool = True,
    priority: str = "",
) -> bytes:
    """The value of `Gateway-Hop` for a request to region `to`.

    `placement` is what we decided by; `recorded` false where that came from `tenancy.unknown`, not from the map
    (`ver=-`). `ts` is Unix seconds, `deadline_s` what is left of our `response` timeout. `host`, `forwarded_for` and
    `request_id` are the values as they will be on the wire (`host` as the client sent it). `priority` is the request's
    class where load is shed here; who does not know the key ignores it.
    """
    version = str(placement.version) if recorded else "-"
    body = (
        f"v=1; from={view.region}; to={to}; tenant={placement.tenant}; ver={version}; home={placement.home}; "
        f"standby={','.join(placement.standby)}; failover={placement.failover}; reason={reason}; "
        f"deadline={max(deadline_s, 0.0):.1f}; ts={ts}{f'; {HOP_KEY}={priority}' if priority else ''}"
    ).encode("ascii")
    return _signed(view.hop_keys, body, (method, target, body, *_digests(host, forwarded_for, request_id)))


def sign_question(view: View, *, to: str, ts: int, host: bytes) -> bytes:
    """The value of `Gateway-Hop` for `GET /.landbridge/peer`, sent with this Host and without the other two fields."""
    body = f"v=1; from={view.region}; to={to}; reason=peer; ts={ts}".encode("ascii")
    return _signed(view.hop_keys, body, (b"GET", PEER_PATH.encode(), body, *_digests(host, b"", b"")))


def verify(request: RequestFacts, view: View, wall_ms: int) -> Hop:
    """The hop that `request` carries, a peer question included. Raises HopRejected.

    Checked in this order: missing, form, key, clock, destination; so nothing is said to whoever has no key.
    """
    values = request.values(HOP_FIELD)
    if not values:
        raise HopRejected(Refusal.MISSING)
    if len(values) > 1:
        raise HopRejected(Refusal.FORM)
    body, fields = _split(values[0])
    hop = _read_hop(fields, request)
    digests = _digests(
        request.host_field, b", ".join(request.values(b"x-forwarded-for")), b", ".join(request.values(b"x-request-id"))
    )
    if not _holds(view.hop_keys, hop.sig, (request.method, request.target, body, *digests)):
        raise HopRejected(Refusal.KEY)
    if abs(wall_ms - hop.ts * 1000) > CLOCK_MS:
        raise HopRejected(Refusal.CLOCK)
    if hop.to != view.region:
        raise HopRejected(Refusal.DESTINATION)
    return hop


def signature_of(value: bytes) -> str:
    """The `sig` of a field that we signed: what a verdict or an answer to it is checked against."""
    return value[-64:].decode("ascii")


def sign_verdict(keys: Sequence[bytes], hop_sig: str, verdict: Verdict | Unavailable) -> bytes:
    """The value of `Gateway-Verdict` to the hop with this signature."""
    shared = f"standby={','.join(verdict.standby)}; failover={verdict.failover}"
    if isinstance(verdict, Verdict):
        text = f"ver={verdict.version}; home={verdict.home}; {shared}"
    else:
        text = f"{_UNAVAILABLE}; {shared}"
    body = text.encode("ascii")
    return _signed(keys, body, (hop_sig.encode("ascii"), body))


def read_verdict(keys: Sequence[bytes], hop_sig: str, value: bytes) -> Verdict | Unavailable | None:
    """The verdict on our hop, None for anything that no peer signed for this very hop."""
    try:
        body, fields = _split(value.removeprefix(b"unavailable; "))
        if value.startswith(b"unavailable; "):
            body = b"unavailable; " + body
            _in_order(fields, _UNAVAILABLE_KEYS, _VERDICT_KEYS)
            verdict: Verdict | Unavailable = Unavailable(_regions(fields["standby"]), Failover(fields["failover"]))
        else:
            _in_order(fields, _VERDICT_KEYS, _VERDICT_KEYS)
            verdict = Verdict(
                parse_version(fields["ver"]),
                _region(fields["home"]),
                _regions(fields["standby"]),
                Failover(fields["failover"]),
            )
    except (HopRejected, ValueError):
        return None
    return verdict if _holds(keys, fields["sig"], (hop_sig.encode("ascii"), body)) else None


def sign_answer(keys: Sequence[bytes], question_sig: str, body: bytes) -> bytes:
    """The value of `Gateway-Verdict` that goes with the answer to a peer question."""
    return b"sig=" + _mac(keys[0], (question_sig.encode("ascii"), sha256(body).digest())).encode("ascii")


def verify_answer(keys: Sequence[bytes], question_sig: str, body: bytes, value: bytes) -> bool:
    """Whether a gateway of this fleet answered this very question with this body."""
    sig = value.removeprefix(b"sig=").decode("latin-1")
    if not value.startswith(b"sig=") or _SIGNATURE.match(sig) is None:
        return False
    return _holds(keys, sig, (question_sig.encode("ascii"), sha256(body).digest()))


def _read_hop(fields: dict[str, str], request: RequestFacts) -> Hop:
    """The pairs as a Hop. Raises HopRejected(form)."""
    try:
        if fields.get("v") != "1":
            raise ValueError("v")
        asks = fields.get("reason") == Reason.PEER
        _in_order(fields, _QUESTION_KEYS if asks else _HOP_KEYS, _HOP_KEYS)
        if asks and (request.method != b"GET" or request.target != PEER_PATH.encode()):
            raise ValueError("reason")
        if not _SECONDS.match(fields["ts"]) or not (asks or _DEADLINE.match(fields["deadline"])):
            raise ValueError("ts")
        if not asks and not TENANT_ID.match(fields["tenant"]):
            raise ValueError("tenant")
        return Hop(
            source=_region(fields["from"]),
            to=_region(fields["to"]),
            tenant=fields.get("tenant", ""),
            version=None if fields.get("ver", "-") == "-" else parse_version(fields["ver"]),
            home="" if asks else _region(fields["home"]),
            standby=_regions(fields.get("standby", "")),
            failover=Failover.MANUAL if asks else Failover(fields["failover"]),
            reason=Reason(fields["reason"]),
            deadline_s=float(fields.get("deadline", 0)),
            ts=int(fields["ts"]),
            sig=fields["sig"],
            fields=fields,
        )
    except ValueError:
        raise HopRejected(Refusal.FORM) from None


def _split(value: bytes) -> tuple[bytes, dict[str, str]]:
    """What was signed, and the pairs. `sig` is the last. Raises HopRejected(form)."""
    body, separator, sig = value.rpartition(b"; sig=")
    if not separator or len(value) > FIELD_BYTES_MAX:
        raise HopRejected(Refusal.FORM)
    fields: dict[str, str] = {}
    for pair in value.decode("latin-1").split("; "):
        match = _PAIR.match(pair)
        if match is None or match[1] in fields:
            raise HopRejected(Refusal.FORM)
        fields[match[1]] = match[2]
    if _SIGNATURE.match(fields["sig"]) is None or len(sig) != 64:
        raise HopRejected(Refusal.FORM)
    return body, fields


def _in_order(fields: dict[str, str], keys: tuple[str, ...], reserved: tuple[str, ...]) -> None:
    """ValueError unless exactly `keys` of all `reserved` ones are there, in this order, whatever is between them."""
    if tuple(fields) != keys and tuple(key for key in fields if key in reserved) != keys:
        raise ValueError("keys")


def _region(text: str) -> str:
    if not REGION_NAME.match(text):
        raise ValueError(text)
    return text


def _regions(text: str) -> tuple[str, ...]:
    return tuple(_region(name) for name in text.split(",")) if text else ()


def _digests(*values: bytes) -> tuple[bytes, ...]:
    return tuple(sha256(value).digest() for value in values)


@lru_cache(maxsize=16)
def _keyed(key: bytes) -> hmac.HMAC:
    """The key taken in once; a signature copies this and goes on. A rotation has two keys, a test a few."""
    return hmac.new(key, digestmod="sha256")


def _mac(key: bytes, parts: Iterable[bytes]) -> str:
    mac = _keyed(key).copy()
    mac.update(b"".join(b"%d:%b" % (len(part), part) for part in parts))
    return mac.hexdigest()


def _signed(keys: Sequence[bytes], body: bytes, parts: Iterable[bytes]) -> bytes:
    """`body` with its signature by the first key."""
    return b"%b; sig=%b" % (body, _mac(keys[0], parts).encode("ascii"))


def _holds(keys: Sequence[bytes], sig: str, parts: tuple[bytes, ...]) -> bool:
    """Whether any of `keys` made `sig` over `parts`. Takes the same time whichever it is."""
    held = False
    for key in keys:
        held |= hmac.compare_digest(_mac(key, parts), sig)
    return held
