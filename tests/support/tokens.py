"""Keys and tokens for tests: made here, signed here; nothing of the gateway's helps to make what it is to judge."""

from __future__ import annotations

import base64
import json
import time
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms

ISSUER = "https://id.test/"
AUDIENCE = "api"
ARN = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/my-alb/0123456789abcdef"
FAMILIES = {"R": RSAAlgorithm, "P": RSAAlgorithm, "E": ECAlgorithm}
CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


class Signer(NamedTuple):
    """A private key under a kid, for one algorithm."""

    kid: str
    algorithm: str
    key: Any

    def jwk(self, **more: object) -> dict[str, Any]:
        """Its public half."""
        family = OKPAlgorithm if self.algorithm == "EdDSA" else FAMILIES[self.algorithm[0]]
        made = json.loads(family.to_jwk(self.key.public_key()))
        made.pop("key_ops", None)
        return {**made, "kid": self.kid, "alg": self.algorithm, "use": "sig", **more}

    def pem(self) -> bytes:
        shape = serialization.PublicFormat.SubjectPublicKeyInfo
        return bytes(self.key.public_key().public_bytes(serialization.Encoding.PEM, shape))

    def token(self, header: dict[str, object] | None = None, **claims: object) -> str:
        """A good token, but for what `claims` (None: without it) and `header` say."""
        body = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "org": "acme", **claims}
        body = {name: value for name, value in body.items() if value is not None}
        head = {"typ": "JWT", "alg": self.algorithm, "kid": self.kid, **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        signed = bare(json.dumps(head).encode()) + b"." + bare(json.dumps(body).encode())
        signature = get_default_algorithms()[self.algorithm].sign(signed, self.key)  # whatever the header says
        return (signed + b"." + bare(signature)).decode()


@lru_cache
def signer(kid: str = "one", algorithm: str = "ES256") -> Signer:
    """The same key for the same words, for as long as the tests run."""
    if algorithm[0] in "RP":
        return Signer(kid, algorithm, rsa.generate_private_key(65537, 2048))
    if algorithm == "EdDSA":
        return Signer(kid, algorithm, ed25519.Ed25519PrivateKey.generate())
    return Signer(kid, algorithm, ec.generate_private_key(CURVES[algorithm]()))


def key_set(*signers: Signer) -> str:
    return json.dumps({"keys": [one.jwk() for one in signers]})


def padded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part)


def bare(part: bytes) -> bytes:
    return padded(part).rstrip(b"=")


def alb_token(by: Signer, arn: str = ARN, *, exp_in: str = "header", **claims: object) -> str:
    """As AWS's load balancer makes it: padded base64, and its own fields in the header."""
    ends = int(claims.pop("exp", time.time() + 120))  # type: ignore[call-overload]
    header: dict[str, object] = {
        "typ": "JWT",
        "kid": by.kid,
        "alg": "ES256",
        "iss": ISSUER,
        "client": "c",
        "signer": arn,
    }
    body: dict[str, object] = {"sub": "u", "org": "acme", "iss": ISSUER, **claims}
    (header if exp_in == "header" else body)["exp"] = ends
    signed = padded(json.dumps(header).encode()) + b"." + padded(json.dumps(body).encode())
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signed, by.key)
    return (signed + b"." + padded(signature)).decode()
