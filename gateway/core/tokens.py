"""Signed tokens (RFC 7515, 7519): how one stands in a request, what it is made of, and what its claims must say.

Pure: time is an argument, and the signature is somebody else's to verify (`gateway.identity`). What is wrong with a
token is said in words of ours alone: no byte of it ever reaches an answer, a log or a metric.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.jwks import KID_CHARS_MAX
from gateway.core.placement import TENANT_ID
from gateway.core.view import AlbResolver, JwtResolver

TOKEN_BYTES_MAX: Final = 16 * 1024
"""AWS's load balancer makes tokens of up to 11 KB, everybody else of 1 to 4; reading one costs time with its length."""
AUTHORIZATION: Final = b"authorization"
OIDC_DATA: Final = b"x-amzn-oidc-data"
OIDC_FIELDS: Final = (OIDC_DATA, b"x-amzn-oidc-identity", b"x-amzn-oidc-accesstoken")
"""What AWS's Application Load Balancer says of a user that it authenticated; nobody else may."""
_PARTS: Final = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\Z")
_PADDED: Final = re.compile(rb"([A-Za-z0-9_-]+={0,2})\.([A-Za-z0-9_-]+={0,2})\.([A-Za-z0-9_-]+={0,2})\Z")
"""RFC 7515, 2: base64url without padding; the load balancer pads all the same."""
_INTEGER_MAX: Final = 2**53


class Tokens(Protocol):
    """Who verifies: the tenant that a token names, by what its resolver asks for."""

    def tenant(self, resolver: JwtResolver | AlbResolver, token: bytes) -> str:
        """Raises GatewayError: `token_invalid`; `keys_unavailable` while nobody can say; `shed`."""
        ...


class Parts(NamedTuple):
    """A token taken apart, not verified: `header` and `payload` decoded, `signed` what `signature` is of."""

    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def refuse(why: str) -> NoReturn:
    raise GatewayError("token_invalid", why)


def find_token(values: Sequence[bytes], field: bytes) -> bytes | None:
    """The token in the values of a field, None where there is none. Raises GatewayError for two that differ.

    `Authorization` counts with the scheme Bearer (RFC 6750, 2.1; any case, RFC 9110, 11.1); other schemes are somebody
    else's. In any other field the scheme may be left out.
    """
    found: set[bytes] = set()
    for value in values:
        if value[:6].lower() == b"bearer" and value[6:7] in (b"", b" ", b"\t"):  # as the laxest of parsers reads it
            found.add(value[6:].strip(b" \t"))
        elif field != AUTHORIZATION and value:
            found.add(value)
    if not found:
        return None
    if len(found) > 1:
        refuse("the request holds more than one token")
    token = found.pop()
    if len(token) > TOKEN_BYTES_MAX:
        refuse(f"the token is longer than {TOKEN_BYTES_MAX} bytes")
    return token


def take_apart(token: bytes, padded: bool = False) -> Parts:
    """Read a compact JWS (RFC 7515, 7.1). Raises GatewayError for anything else."""
    match = (_PADDED if padded else _PARTS).match(token)
    if match is None:
        refuse("the token is no signed JWT")
    header_text, payload_text, signature_text = match.groups()
    header = _object(_decoded(header_text))
    if "crit" in header:  # RFC 7515, 4.1.11: who does not understand what it names must refuse
        refuse("the token asks for an extension that is not known here")
    signed = token[: len(header_text) + 1 + len(payload_text)]
    return Parts(header, _decoded(payload_text), signed, _decoded(signature_text))


def read_claims(payload: bytes) -> dict[str, Any]:
    """The claims of a payload. Raises GatewayError where it is no JSON object."""
    return _object(payload)


def kid_of(header: Mapping[str, Any]) -> str:
    """Which key the token says that it was signed with, "" where it does not."""
    kid = header.get("kid", "")
    if not isinstance(kid, str) or len(kid) > KID_CHARS_MAX:
        refuse("the token names its key by something that is no kid")
    return kid


def check_algorithm(header: Mapping[str, Any], algorithms: Sequence[str]) -> str:
    """The algorithm that the token was signed with, if it is accepted: the configuration decides, not the token."""
    found = header.get("alg")
    if not isinstance(found, str) or found not in algorithms:
        refuse(f"the token is not signed with {' or '.join(algorithms)}")
    return found


def check_times(claims: Mapping[str, Any], now_s: float, leeway_s: float) -> float:
    """When the token ends (Unix seconds), if it counts now (RFC 7519, 4.1.4 and 4.1.5)."""
    ends, begins = _moment(claims, "exp"), _moment(claims, "nbf")
    if ends is None:
        refuse("the token does not say when it expires")
    if now_s >= ends + leeway_s:
        refuse("the token has expired")
    if begins is not None and now_s < begins - leeway_s:
        refuse("the token is not valid yet")
    return ends


def check_parties(claims: Mapping[str, Any], issuers: Sequence[str], audiences: Sequence[str]) -> None:
    """Who made the token, and for whom (RFC 7519, 4.1.1 and 4.1.3)."""
    if claims.get("iss") not in issuers:
        refuse("the token is of another issuer")
    audience = claims.get("aud")
    found = audience if isinstance(audience, list) else [audience]
    if not any(name in audiences for name in found if isinstance(name, str)):
        refuse("the token is for another audience")


def tenant_of(claims: Mapping[str, Any], claim: str) -> str:
    """The tenant that `claim` names: a claim of that very name, else a path of names with dots between them.

    A token that is good and names no tenant is refused all the same: leaving it to the next resolver would let a
    client choose its tenant by a header, beside a token that was meant to say it.
    """
    value: object = claims.get(claim)
    if value is None:
        value = claims
        for name in claim.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    tenant = value.lower() if isinstance(value, str) and value.isascii() else ""
    if not TENANT_ID.match(tenant):
        refuse(f"the token names no tenant in {claim}")
    return tenant


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, 2)."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _INTEGER_MAX:
        refuse(f"the token's {name} is no time")
    return float(value)


def _decoded(text: bytes) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        refuse("the token is no signed JWT")


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        refuse("the token holds no JSON")
    if not isinstance(found, dict):
        refuse("the token holds no JSON object")
    return found
