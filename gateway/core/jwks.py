"""JSON Web Key Sets (RFC 7517): which keys of a text may verify which algorithm; the rest is left out or refused.

Pure, without a library for cryptography: the supervisor, control and `landbridge check` judge key sets by it, and only
a worker that verifies has to load one. A set may hold keys that are not for us (encryption, an unknown kind): they are
passed over.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

SET_BYTES_MAX: Final = 256 * 1024
"""Google and Azure publish 2 to 16 KiB; a larger text is no key set."""
KEYS_MAX: Final = 64
KID_CHARS_MAX: Final = 256
RSA_BITS_MIN: Final = 2048
"""NIST SP 800-131A: less is not to be verified any more."""
RSA_BITS_MAX: Final = 8192
"""Verifying takes time with the square of it: 0.6 ms here. Whoever can choose a key can thus not choose our time."""

ALGORITHMS: Final[Mapping[str, tuple[str, str]]] = {
    **{name: ("RSA", "") for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Every algorithm that is ever accepted, and its keys' (kty, crv) (RFC 7518, 3.1; RFC 8037, 3.1).

All are asymmetric. HMAC is not among them: with it, whoever may verify may also sign, and a public key taken for a
secret is the oldest way to forge a token (RFC 8725, 2.1). `none` is no algorithm.
"""

_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+\Z")

# y^2 = x^3 - 3x + b over the field of p elements (FIPS 186-4, D.1.2): a point that is not on its curve is no key.
_CURVES: Final = {
    "P-256": (
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    "P-384": (
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    "P-521": (
        2**521 - 1,
        int(
            "051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF8"
            "83D2C34F1EF451FD46B503F00",
            16,
        ),
    ),
}


class BadKeys(ValueError):
    """The text is no key set that can be used; the message says why and shows nothing of it."""


class PublicKey(msgspec.Struct, frozen=True):
    """One key: `kid` "" where it has none, `alg` "" where it does not say; `jwk` holds its public members only."""

    kid: str
    kty: str
    crv: str
    alg: str
    jwk: dict[str, str]

    def fits(self, algorithm: str) -> bool:
        """Whether it may verify what is signed with `algorithm`."""
        return ALGORITHMS.get(algorithm) == (self.kty, self.crv) and self.alg in ("", algorithm)


class TokenKeys(msgspec.Struct, tag=True, frozen=True):
    """Control: what is known of one source of keys, whole.

    `keys`: a key set's text under "", or PEM texts by kid where the source tells keys one by one; then `absent` are
    kids that it was asked for and lacks. `failing`: it could not be asked the last time; what is here stands.
    `asked`: this is its answer of just now, or of so lately that it is not asked again, whatever key a token names.
    """

    source: str
    keys: dict[str, str] = {}
    absent: tuple[str, ...] = ()
    failing: bool = False
    asked: bool = False


def read_keys(text: bytes | str, left_out: list[str] | None = None) -> tuple[PublicKey, ...]:
    """The keys of a set that may verify signatures, in its order: at least one. Raises BadKeys.

    A key that is not what it claims to be refuses the set of an operator's own file. A set that somebody else publishes
    is read with a list for `left_out`: what is wrong with each such key goes there, and the others count.
    """
    if len(text) > SET_BYTES_MAX:
        raise BadKeys(f"more than {SET_BYTES_MAX} bytes")
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadKeys("no JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise BadKeys('no key set: {"keys": [...]}')
    if len(entries) > KEYS_MAX:
        raise BadKeys(f"more than {KEYS_MAX} keys")
    keys: dict[object, PublicKey] = {}
    for index, entry in enumerate(entries):
        try:
            key = _read(index, entry)
            if key is None:
                continue
            name = (key.kid, key.kty, key.crv, key.alg) if key.kid else index
            if name in keys:
                raise BadKeys(f"keys[{index}] has the kid of another key of its kind")
            keys[name] = key
        except BadKeys as error:
            if left_out is None:
                raise
            left_out.append(str(error))
    if not keys:
        raise BadKeys("no public key that verifies signatures")
    return tuple(keys.values())


def _read(index: int, entry: object) -> PublicKey | None:
    """The key, None for one that is not ours to use. Raises BadKeys."""
    if not isinstance(entry, dict):
        raise BadKeys(f"keys[{index}] is no key")
    if any(name in entry for name in _PRIVATE):
        raise BadKeys(f"keys[{index}] holds a secret: a set for verifying has public keys only")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kty, crv, alg, kid = (entry.get(name, "") for name in ("kty", "crv", "alg", "kid"))
    if not all(isinstance(value, str) for value in (kty, crv, alg)):
        return None
    if kty == "RSA":
        crv = ""
    if (kty, crv) not in ALGORITHMS.values() or (alg and ALGORITHMS.get(alg) != (kty, crv)):
        return None
    if not isinstance(kid, str) or len(kid) > KID_CHARS_MAX:
        raise BadKeys(f"keys[{index}] has a kid that is no text of at most {KID_CHARS_MAX} characters")
    names = {"RSA": ("n", "e"), "EC": ("x", "y"), "OKP": ("x",)}[kty]
    members = {name: entry.get(name) for name in names}
    numbers = [_decoded(index, name, value) for name, value in members.items()]
    why = _WRONG[kty](crv, *numbers)
    if why:
        raise BadKeys(f"keys[{index}] {why}")
    jwk: dict[str, Any] = {"kty": kty, **members, **({"crv": crv} if crv else {})}
    return PublicKey(kid, kty, crv, alg, jwk)


def _decoded(index: int, name: str, value: object) -> bytes:
    if not isinstance(value, str) or not _BASE64URL.match(value):
        raise BadKeys(f"keys[{index}].{name} is no base64url")
    try:
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except binascii.Error:
        raise BadKeys(f"keys[{index}].{name} is no base64url") from None


def _wrong_rsa(crv: str, n: bytes, e: bytes) -> str:
    modulus, exponent = int.from_bytes(n, "big"), int.from_bytes(e, "big")
    if not RSA_BITS_MIN <= modulus.bit_length() <= RSA_BITS_MAX:
        return f"is an RSA key of {modulus.bit_length()} bits: {RSA_BITS_MIN} to {RSA_BITS_MAX} are accepted"
    if modulus % 2 == 0 or exponent < 3 or exponent % 2 == 0 or exponent.bit_length() > 32:
        return "is no RSA key"
    return ""


def _wrong_ec(crv: str, x: bytes, y: bytes) -> str:
    p, b = _CURVES[crv]
    at_x, at_y = int.from_bytes(x, "big"), int.from_bytes(y, "big")
    on_curve = at_x < p and at_y < p and (at_y * at_y - (at_x**3 - 3 * at_x + b)) % p == 0
    return "" if on_curve and (at_x or at_y) else f"is no point of the curve {crv}"


def _wrong_okp(crv: str, x: bytes) -> str:
    return "" if len(x) == 32 else f"is no key of {crv}"


_WRONG: Final[dict[str, Callable[..., str]]] = {"RSA": _wrong_rsa, "EC": _wrong_ec, "OKP": _wrong_okp}
"""By kty: what is wrong with a key's numbers, "" where nothing is."""
