"""What control has found out about the world: a plain value that control sends and `settings.view` reads."""

from __future__ import annotations

import msgspec

from gateway.core.view import Ability


class PeerCondition(msgspec.Struct, frozen=True):
    """What is known of one other region. `probed` false: nothing yet, counts as able.

    `shares`: clusters that are able, but not for all requests that have another region to go to (`core.ramp`).
    `takes_over`: its operators put it into failover mode.
    """

    probed: bool
    reachable: bool
    clusters: dict[str, Ability]
    shares: dict[str, float] = {}
    takes_over: bool = False


class Target(msgspec.Struct, frozen=True, array_like=True):
    """One address that a `dns://` or `srv://` endpoint stands for; `name` is the host that it belongs to.

    Only the lowest `priority` value that can be used gets requests; weights are compared within it (RFC 2782).
    """

    address: str
    port: int
    priority: int = 0
    weight: int = 1
    name: str = ""


class Conditions(msgspec.Struct, tag=True, frozen=True):
    """Control: what it has found out. Everything that is not named here is up, able and not draining.

    `addresses`: bare host name to the addresses it resolved to (last good answer).
    `discovered`: endpoint as written (`dns://app.internal:9000`) to what it stands for; absent: nothing known yet.
    `down` and `draining`: cluster name to endpoint keys (`address:port`). `unable`: clusters that cannot serve,
    `broken` those of them that only their breakers keep from it.
    `isolated`: no other region was heard of for longer than `tenant_map.partition_after`. `shares`: own clusters that
    are coming back, or drained (`core.ramp`). `failover_mode` ("" is off) and `max_traffic` (requests a second of this
    gateway, None: no limit) are what operators switched for the region (`core.switches`).
    """

    generation: int = 0
    addresses: dict[str, tuple[str, ...]] = {}
    discovered: dict[str, tuple[Target, ...]] = {}
    down: dict[str, tuple[str, ...]] = {}
    draining: dict[str, tuple[str, ...]] = {}
    unable: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    peers: dict[str, PeerCondition] = {}
    isolated: bool = False
    shares: dict[str, float] = {}
    failover_mode: str = ""
    max_traffic: float | None = None
