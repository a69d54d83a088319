"""Key sets: which keys of them verify what, and which texts are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.core.jwks import ALGORITHMS, KEYS_MAX, BadKeys, read_keys
from tests.support.tokens import Signer, key_set, signer

ONE = signer().jwk()


def refused(text: str | bytes) -> str:
    with pytest.raises(BadKeys) as caught:
        read_keys(text)
    return str(caught.value)


def of(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": keys})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_fits_its_own_algorithm_and_no_other_kind(algorithm: str) -> None:
    jwk = signer("k", algorithm).jwk()
    (key,) = read_keys(of(jwk))
    assert [name for name in ALGORITHMS if key.fits(name)] == [algorithm]
    del jwk["alg"]
    (open_to_its_kind,) = read_keys(of(jwk))
    assert {name for name in ALGORITHMS if open_to_its_kind.fits(name)} == {
        name for name, kind in ALGORITHMS.items() if kind == ALGORITHMS[algorithm]
    }
    assert not key.fits("HS256")
    assert not key.fits("none")


def test_keys_that_are_not_for_verifying_are_passed_over() -> None:
    others = [
        ONE | {"kid": "a", "use": "enc"},
        ONE | {"kid": "b", "key_ops": ["sign"]},
        {"kty": "EC", "crv": "secp256k1", "kid": "c", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "kid": "d", "x": "AA"},
        {"kty": "new", "kid": "e"},
        ONE | {"kid": "f", "alg": "ECDH-ES"},
        ONE | {"kid": "g", "alg": "RS256"},
        ONE | {"kid": "h", "alg": ["ES256"]},
        ONE | {"kid": "i", "crv": {}},
        ONE | {"kid": "j", "key_ops": "verify"},
        {"kid": "k"},
    ]
    assert [key.kid for key in read_keys(of(*others, ONE))] == ["one"]
    assert refused(of(*others)) == "no public key that verifies signatures"


def test_only_public_members_are_kept() -> None:
    (key,) = read_keys(of(ONE | {"x5c": ["MII"], "nbf": 1}))
    assert set(key.jwk) == {"kty", "crv", "x", "y"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        (b"\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", 'no key set: {"keys": [...]}'),
        ("[]", 'no key set: {"keys": [...]}'),
        ('{"keys": {}}', 'no key set: {"keys": [...]}'),
        ('{"keys": []}', "no public key that verifies signatures"),
        ('{"keys": [1]}', "keys[0] is no key"),
        (of(*[ONE] * (KEYS_MAX + 1)), f"more than {KEYS_MAX} keys"),
        (of(ONE, ONE), "keys[1] has the kid of another key of its kind"),
        (of(ONE | {"d": "AA"}), "keys[0] holds a secret: a set for verifying has public keys only"),
        (of({"kty": "oct", "k": "AAAA"}), "keys[0] holds a secret: a set for verifying has public keys only"),
        (of(ONE | {"kid": 7}), "keys[0] has a kid that is no text of at most 256 characters"),
        (of(ONE | {"x": "a+b"}), "keys[0].x is no base64url"),
        (of(ONE | {"x": "A"}), "keys[0].x is no base64url"),
        (of(ONE | {"x": None}), "keys[0].x is no base64url"),
        (of(ONE | {"x": "AQ"}), "keys[0] is no point of the curve P-256"),
        (of(ONE | {"x": "AA", "y": "AA"}), "keys[0] is no point of the curve P-256"),
        (of(signer("p", "EdDSA").jwk() | {"x": "AA"}), "keys[0] is no key of Ed25519"),
        (of(signer("p", "RS256").jwk() | {"e": "Ag"}), "keys[0] is no RSA key"),
        (" " * 300_000, "more than 262144 bytes"),
    ],
)
def test_what_is_no_key_set_says_why(text: str | bytes, why: str) -> None:
    assert refused(text) == why


def test_of_a_set_that_others_publish_the_good_keys_count() -> None:
    left_out: list[str] = []
    bad = [ONE | {"kid": "a", "x": "AQ"}, ONE | {"kid": "b", "d": "AA"}, 7, ONE]
    assert [key.kid for key in read_keys(of(ONE, *bad), left_out)] == ["one"]  # type: ignore[arg-type]
    assert left_out == [
        "keys[1] is no point of the curve P-256",
        "keys[2] holds a secret: a set for verifying has public keys only",
        "keys[3] is no key",
        "keys[4] has the kid of another key of its kind",
    ]
    with pytest.raises(BadKeys):
        read_keys(of(*bad[:3]), [])  # type: ignore[arg-type]


def test_a_short_rsa_key_is_refused() -> None:
    short = Signer("s", "RS256", rsa.generate_private_key(65537, 1024))
    assert refused(key_set(short)) == "keys[0] is an RSA key of 1024 bits: 2048 to 8192 are accepted"


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
def test_every_curve_knows_its_points(algorithm: str) -> None:
    jwk = signer("c", algorithm).jwk()
    assert read_keys(of(jwk))
    assert "is no point of the curve" in refused(of(jwk | {"x": jwk["y"]}))
