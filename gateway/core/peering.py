"""What a gateway says of itself when another region's control asks: the body of `GET /.landbridge/peer`.

A worker answers it from its View and store, so that the answer proves the data plane; control judges it. The
signatures of question and answer are in `core.hop`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.view import Ability

PEER_PATH: Final = "/.landbridge/peer"
"""Answered on `listen.hop` only."""

PEER_ANSWER_BYTES: Final = 64 * 1024
"""A thousand clusters fit; more is not an answer."""


class PeerMap(msgspec.Struct, frozen=True):
    """The peer's tenant map. `age_s` is None before it was ever written."""

    complete: bool
    records: int
    digest: str
    age_s: float | None = None


class PeerAnswer(msgspec.Struct, frozen=True):
    """JSON. Unknown keys are ignored and only these are needed: program versions differ during a rollout.

    `shares`: able clusters that do not take everybody (`core.ramp`); who does not know the key sends them all.
    """

    region: str
    wall_ms: int
    draining: bool
    clusters: dict[str, Ability]
    id: str = ""
    program: str = ""
    config: str = ""
    map: PeerMap = PeerMap(False, 0, "")
    shares: dict[str, float] = {}
    failover_mode: str = ""


def encode_answer(answer: PeerAnswer) -> bytes:
    return msgspec.json.encode(answer)


def decode_answer(body: bytes) -> PeerAnswer:
    """Raises ValueError (msgspec's errors are) for anything that is no answer."""
    return msgspec.json.decode(body, type=PeerAnswer)
