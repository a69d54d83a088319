"""Verifies tokens, and remembers those that it has verified: one verifier per process.

A signature costs the event loop 0.1 to 0.2 ms (0.7 for the large curves); a token that was seen costs a digest and a
look-up. So verified ones are remembered by their SHA-256 until they expire, and refused ones for as long as the keys
stay, each in a bounded memory of its own: garbage never pushes out a good token. All verifying together takes at most
half of the process's time; beyond it tokens that were not seen before are shed, and those that were go on.

Everything that needs no key is looked at first. That may be read from a token that nobody signed: it only ever refuses.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from gateway.core.bounded import Bounded
from gateway.core.errors import GatewayError
from gateway.core.jwks import TokenKeys
from gateway.core.tokens import (
    Parts,
    check_algorithm,
    check_parties,
    check_times,
    kid_of,
    read_claims,
    refuse,
    take_apart,
    tenant_of,
)
from gateway.core.view import AlbResolver, JwtResolver, Resolver, TokenResolver, View
from gateway.identity.rings import SINGLE_KID, Key, Ring

VALID_MAX: Final = 20_000
"""Tokens remembered per resolver and process, some 200 bytes each; what falls out costs one verification more."""
REFUSED_MAX: Final = 2_000
SHARE: Final = 0.5
"""The part of the process's time that verifying may take."""
DEPTH_S: Final = 0.5
"""What may be taken at once: after a failover all clients come with tokens that this process has not seen."""
ALB_ALGORITHMS: Final = ("ES256",)


class _Memory:
    """What is remembered for one resolver."""

    def __init__(self, resolver: TokenResolver) -> None:
        self.resolver = resolver
        self.valid: Bounded[bytes, tuple[float, str]] = Bounded(VALID_MAX)
        self.refused: Bounded[bytes, str] = Bounded(REFUSED_MAX)

    def clear(self) -> None:
        self.valid.clear()
        self.refused.clear()


class Verifier:
    """`wall_ms` is Unix time, `now` monotonic seconds, `spent_s` a clock for what verifying costs.

    `kept` are keys by source that were known in an earlier life. `wanted(source, kid)` hears of a key that control
    should ask for; `count(outcome)` of every token: cached, valid, refused, unavailable, shed.
    """

    def __init__(
        self,
        wall_ms: Callable[[], int],
        now: Callable[[], float],
        spent_s: Callable[[], float],
        wanted: Callable[[str, str], object] = lambda source, kid: None,
        count: Callable[[str], object] = lambda outcome: None,
        kept: Mapping[str, TokenKeys] = MappingProxyType({}),
    ) -> None:
        self._wall_ms = wall_ms
        self._now = now
        self._spent_s = spent_s
        self._wanted = wanted
        self._count = count
        self._kept = kept
        self._memories: dict[int, _Memory] = {}
        self._held: list[TokenResolver] = []
        self._rings: dict[str, Ring] = {}
        self._credit_s = DEPTH_S
        self._credited_at = now()

    def use(self, resolvers: Iterable[Resolver], ahead: bool = True) -> None:
        """Verify for these from now on. What is known of those that stay is kept. `ahead`: load the library by now."""
        wanted = [resolver for resolver in resolvers if isinstance(resolver, JwtResolver | AlbResolver)]
        if ahead and wanted and not self._memories:
            # it takes a sixth of a second: not in the middle of requests. A process that ends waits for it: an
            # interpreter that goes while a thread of its loads C code aborts
            threading.Thread(target=_load, name="load cryptography").start()
        before = {memory.resolver: memory for memory in self._memories.values()}
        self._memories = {id(r): before.get(r) or _Memory(r) for r in wanted}
        self._held = wanted  # an id is another object's once its own is gone
        rings: dict[str, Ring] = {}
        for resolver in wanted:
            text = resolver.keys if isinstance(resolver, JwtResolver) else ""
            ring = rings.get(resolver.source) or self._rings.get(resolver.source)
            if ring is None:
                ring = Ring(resolver.source, is_file=bool(text))
                ring.learn(self._kept.get(resolver.source, TokenKeys(resolver.source)), self._now())
            if text and ring.learn(TokenKeys(resolver.source, {"": text}), self._now()):
                self._forget()
            rings[resolver.source] = ring
        self._rings = rings

    def learn(self, known: TokenKeys) -> None:
        """Control's word on one source. Other keys are other answers: nothing is remembered that old ones gave."""
        ring = self._rings.get(known.source)
        if ring is not None and ring.learn(known, self._now()):
            self._forget()

    def lacking(self) -> bool:
        """Whether there is a key set that may still come: nothing is known of it, not even that it cannot be had."""
        return any(ring.awaited for ring in self._rings.values())

    def tenant(self, resolver: TokenResolver, token: bytes) -> str:
        """The tenant that a token names. Raises GatewayError: token_invalid, keys_unavailable, shed."""
        memory = self._memories.get(id(resolver)) or self._memory_of(resolver)
        digest = hashlib.sha256(token).digest()
        known = memory.valid.items.get(digest)
        now_s = self._wall_ms() / 1000
        if known is not None and now_s < known[0]:
            self._count("cached")
            return known[1]
        try:
            why = memory.refused.items.get(digest)
            if why is not None:
                refuse(why)
            ends_s, tenant = self._verify(memory, digest, token, now_s)
        except GatewayError as error:
            self._count(_OUTCOMES[error.flag.name])
            raise
        memory.valid.put(digest, (ends_s, tenant))
        self._count("valid")
        return tenant

    def _memory_of(self, resolver: TokenResolver) -> _Memory:
        """Of a resolver of an older View: a request that began before a reload is judged as it began."""
        for memory in self._memories.values():
            if memory.resolver == resolver:
                return memory
        raise GatewayError("keys_unavailable")

    def _verify(self, memory: _Memory, digest: bytes, token: bytes, now_s: float) -> tuple[float, str]:
        """(until when it counts, its tenant)."""
        resolver = memory.resolver
        parts = take_apart(token, padded=isinstance(resolver, AlbResolver))
        claims = read_claims(parts.payload)
        if isinstance(resolver, JwtResolver):
            algorithm = check_algorithm(parts.header, resolver.algorithms)
            ends_s = check_times(claims, now_s, resolver.leeway_s)
            check_parties(claims, resolver.issuers, resolver.audiences)
        else:
            algorithm = check_algorithm(parts.header, ALB_ALGORITHMS)
            ends_s = _check_alb(parts, claims, resolver, now_s)
        try:
            self._check_signature(resolver, algorithm, parts)
            return ends_s + resolver.leeway_s, tenant_of(claims, resolver.claim)
        except GatewayError as error:
            if error.flag.name == "token_invalid" and not isinstance(error, _NoSuchKey):
                memory.refused.put(digest, error.detail)
            raise

    def _check_signature(self, resolver: TokenResolver, algorithm: str, parts: Parts) -> None:
        ring, kid, now = self._rings[resolver.source], kid_of(parts.header), self._now()
        keys = ring.candidates(kid, algorithm)
        if not keys:
            if ring.lacks(kid, now):
                raise _NoSuchKey("token_invalid", "the token is signed with a key that is not known")
            if ring.should_ask(kid, now):
                self._wanted(resolver.source, kid)
            raise GatewayError("keys_unavailable")
        self._credit_s = min(DEPTH_S, self._credit_s + SHARE * (now - self._credited_at))
        self._credited_at = now
        if self._credit_s <= 0:
            raise GatewayError("shed", "too many tokens at once that were not seen before")
        began = self._spent_s()
        is_signed = _any_verifies(keys, parts)
        self._credit_s -= self._spent_s() - began
        if not is_signed:
            refuse("the token's signature is not right")

    def _forget(self) -> None:
        for memory in self._memories.values():
            memory.clear()


def verifier_for(view: View, known: Iterable[TokenKeys]) -> Verifier:
    """One to explain by: with the keys of a View's files and those that are known, at this moment."""
    verifier = Verifier(lambda: time.time_ns() // 1_000_000, time.monotonic, time.thread_time)
    verifier.use(view.resolvers, ahead=False)
    for keys in known:
        verifier.learn(keys)
    return verifier


class _NoSuchKey(GatewayError):
    """Not remembered: the key may come."""


_OUTCOMES: Final = {"token_invalid": "refused", "keys_unavailable": "unavailable", "shed": "shed"}


def _any_verifies(keys: list[Key], parts: Parts) -> bool:
    return any(key.verifies(parts.signed, parts.signature) for key in keys)


def _check_alb(parts: Parts, claims: dict[str, object], resolver: AlbResolver, now_s: float) -> float:
    """Whose the token is, and when it ends: the load balancer says it in the header, besides or instead.

    Every load balancer of a region has its keys at the same place: who does not compare `signer` believes anybody who
    rents one.
    """
    if parts.header.get("signer") != resolver.arn:
        refuse("the token was signed for another load balancer")
    if not SINGLE_KID.match(kid_of(parts.header)):
        refuse("the token names its key by something that is no kid")
    said = [part for part in (parts.header, claims) if "exp" in part] or [claims]
    return min(check_times(part, now_s, resolver.leeway_s) for part in said)


def _load() -> None:
    importlib.import_module("jwt.algorithms")
