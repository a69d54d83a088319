"""What control has found out about the world: a plain value that control sends and `settings.view` reads."""

from __future__ import annotations

import msgspec

from gateway.core.view import Ability


class PeerCondition(msgspec.Struct, frozen=True):
    """What is known of one other region. `probed` false: nothing yet, counts as able."""

    probed: bool
    reachable: bool
    clusters: dict[str, Ability]


class Conditions(msgspec.Struct, tag=True, frozen=True):
    """Control: what it has found out. Everything that is not named here is up, able and not draining.

    `addresses`: bare host name to the addresses it resolved to (last good answer).
    `down` and `draining`: cluster name to endpoint keys (`address:port`). `unable`: clusters that cannot serve.
    `isolated`: no other region was heard of for longer than `tenant_map.partition_after`.
    """

    generation: int = 0
    addresses: dict[str, tuple[str, ...]] = {}
    down: dict[str, tuple[str, ...]] = {}
    draining: dict[str, tuple[str, ...]] = {}
    unable: tuple[str, ...] = ()
    peers: dict[str, PeerCondition] = {}
    isolated: bool = False
