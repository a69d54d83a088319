"""The keys of one source, ready to verify with: a file's or a URL's key set, or PEM keys that come one by one.

What a token asks for and is not here leads to one of three answers: there is no such key; nobody can say now; or nobody
can say now, and control should ask. A source is asked seldom, however many keys tokens make up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.core.jwks import ALGORITHMS, BadKeys, PublicKey, TokenKeys, read_keys

if TYPE_CHECKING:
    from jwt.algorithms import Algorithm

LOG = logging.getLogger("landbridge.keys")

TRIES_MAX: Final = 4
"""Keys that one token may cost, where it or the set names none by a kid."""
ASK_EVERY_S: Final = 10.0
"""How often a source is asked because of a key that is not known; until then its last word stands."""
ASK_AGAIN_S: Final = 1.0
"""When an answer that did not come is missed."""
ASKED_MAX: Final = 32
ABSENT_S: Final = 60.0
CURVE: Final = "secp256r1"
SINGLE_KID: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
"""It becomes a part of a URL."""
KID: Final = "{kid}"
"""In a source's URL: it tells its keys one by one."""


class Key(NamedTuple):
    """A key and who verifies with it."""

    algorithm: Algorithm
    key: Any

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        try:
            return bool(self.algorithm.verify(signed, self.key, signature))
        except (ValueError, TypeError):  # a signature of a length that there is not
            return False


class Ring:
    """One source's keys. `failing` and `settled` are control's last word; a file's is always settled."""

    def __init__(self, source: str, is_file: bool = False) -> None:
        self.source = source
        self.known = TokenKeys(source)
        self._is_file = is_file
        self._one_by_one = KID in source
        self._set: tuple[PublicKey, ...] = ()
        self._made: dict[tuple[str, int], Key | None] = {}
        self._settled_until = 0.0
        self._asked: dict[str, float] = {}
        self._absent: dict[str, float] = {}

    @property
    def awaited(self) -> bool:
        return not (self._one_by_one or self.known.keys or self.known.failing)

    def learn(self, known: TokenKeys, now: float) -> bool:
        """Take control's word; whether the keys are others than before."""
        if known.asked:
            self._settled_until = now + ASK_EVERY_S
        self._asked.clear()
        self._absent = {kid: now + ABSENT_S for kid in known.absent}
        is_new = known.keys != self.known.keys
        self.known = known
        if is_new:
            self._made.clear()
            try:
                self._set = read_keys(known.keys[""], []) if "" in known.keys else ()
            except BadKeys as error:  # whoever sent it has judged it: a newer program, perhaps
                LOG.error("keys of %s: %s", self.source, error)
                self._set = ()
        return is_new

    def candidates(self, kid: str, algorithm: str) -> list[Key]:
        """The keys that may have signed a token that says so; empty where none is known."""
        if kid and kid in self.known.keys:
            found = [self._key(algorithm, 0, kid)]
        else:
            fitting = [
                index
                for index, key in enumerate(self._set)
                if key.fits(algorithm) and (not kid or not key.kid or key.kid == kid)
            ]
            found = [self._key(algorithm, index, "") for index in fitting[:TRIES_MAX]]
        return [key for key in found if key is not None]

    def lacks(self, kid: str, now: float) -> bool:
        """Whether it is certain that there is no key `kid`: as certain as a word of the last seconds."""
        if self._is_file:
            return True
        if self._one_by_one:
            return self._absent.get(kid, 0.0) > now
        return not self.known.failing and self._settled_until > now

    def should_ask(self, kid: str, now: float) -> bool:
        """Whether control is to be told that `kid` is not known; it was, if so."""
        if not self._one_by_one:
            if self._settled_until > now:
                return False  # it cannot be asked, and that was found out just now
            kid = ""  # the whole set comes, whichever key is missing
        if self._asked.get(kid, 0.0) > now:
            return False
        if len(self._asked) >= ASKED_MAX:
            self._asked = {name: until for name, until in self._asked.items() if until > now}
            if len(self._asked) >= ASKED_MAX:
                return False
        self._asked[kid] = now + ASK_AGAIN_S
        return True

    def _key(self, algorithm: str, index: int, pem_kid: str) -> Key | None:
        """Made once: reading a key costs as much as verifying with it."""
        which = (f"{algorithm} {pem_kid}", index)
        if which not in self._made:
            make: Callable[[], Key] = (
                (lambda: _from_pem(algorithm, self.known.keys[pem_kid]))
                if pem_kid
                else (lambda: _from_set(algorithm, self._set[index]))
            )
            try:
                self._made[which] = make()
            except Exception as error:
                LOG.error("a key of %s cannot be used: %s", self.source, type(error).__name__)
                self._made[which] = None
        return self._made[which]


def _from_set(algorithm: str, key: PublicKey) -> Key:
    import jwt

    made = jwt.PyJWK(dict(key.jwk), algorithm)
    return Key(made.Algorithm, made.key)


def _from_pem(algorithm: str, text: str) -> Key:
    """The load balancer's keys. ValueError for one of another kind."""
    from jwt.algorithms import get_default_algorithms

    assert ALGORITHMS[algorithm] == ("EC", "P-256")
    verifier: Any = get_default_algorithms()[algorithm]
    key = verifier.prepare_key(text)
    if hasattr(key, "private_numbers") or key.curve.name != CURVE:
        raise ValueError("another kind of key")
    return Key(verifier, key)
