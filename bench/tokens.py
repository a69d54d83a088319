"""What a token costs a worker: the first time that it is seen, by algorithm, and every time after that.

CPU time of this process, the median of seven rounds. `python bench/tokens.py`
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.core.errors import GatewayError
from gateway.core.jwks import ALGORITHMS
from gateway.core.view import JwtResolver
from gateway.identity import verifier as verifying
from gateway.identity.verifier import Verifier
from tests.support.tokens import AUDIENCE, ISSUER, Signer, bare, key_set, signer

ROUNDS = 7
TOKENS = 200
CACHED = 20_000


def verifier(resolver: JwtResolver) -> Verifier:
    made = Verifier(lambda: time.time_ns() // 1_000_000, time.monotonic, lambda: 0.0)  # nothing is shed here
    made.use([resolver])
    return made


def cpu_us(work: Callable[[], int]) -> float:
    """The median CPU time of one of the things that `work` says it did."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        count = work()
        taken.append((time.process_time() - began) / count * 1e6)
    return statistics.median(taken)


def measured(by: Signer, padding: int) -> tuple[float, float, float, int]:
    """(first sight, seen before, refused the first time) in us, and the token's size."""
    resolver = JwtResolver(b"authorization", "org", "/jwks", key_set(by), (by.algorithm,), (ISSUER,), (AUDIENCE,), 0.0)
    tokens = [by.token(jti=number, more="x" * padding).encode() for number in range(TOKENS)]
    verifier(resolver).tenant(resolver, tokens[0])  # the library is loaded, the key is made

    def first() -> int:
        fresh = verifier(resolver)
        for token in tokens:
            fresh.tenant(resolver, token)
        return len(tokens)

    known = verifier(resolver)

    def again() -> int:
        for _ in range(CACHED):
            known.tenant(resolver, tokens[0])
        return CACHED

    forged = [token.rpartition(b".")[0] + b"." + bare(b"x" * 64) for token in tokens]

    def refused() -> int:
        fresh = verifier(resolver)
        for token in forged:
            try:
                fresh.tenant(resolver, token)
            except GatewayError:
                continue
        return len(forged)

    return cpu_us(first), cpu_us(again), cpu_us(refused), len(tokens[0])


def main() -> None:
    print(f"{'algorithm':10} {'bytes':>6} {'first us':>9} {'again us':>9} {'forged us':>9} {'per s at the bound':>19}")
    for name in ALGORITHMS:
        first, again, forged, size = measured(signer("k", name), 300)
        most = verifying.SHARE / (first / 1e6)
        print(f"{name:10} {size:6} {first:9.0f} {again:9.1f} {forged:9.0f} {most:19,.0f}")
    first, again, forged, size = measured(signer("k", "ES256"), 4000)
    print(f"{'ES256':10} {size:6} {first:9.0f} {again:9.1f} {forged:9.0f} {verifying.SHARE / (first / 1e6):19,.0f}")
    print(json.dumps({"share": verifying.SHARE, "at once s": verifying.DEPTH_S}))


if __name__ == "__main__":
    main()
