"""A request as decisions see it, and a small world of three regions to decide in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.core.placement import Placement, Version
from gateway.core.view import Ability, Cluster, Endpoint, HostTemplate, PublicUrl, Region, View, region_cluster

HERE, THERE, THIRD = "us-east-1", "eu-west-1", "ap-southeast-2"
REGIONS = (HERE, THERE, THIRD)
KEY, OLD_KEY, FOREIGN_KEY = b"k" * 32, b"o" * 32, b"f" * 32


@dataclass(frozen=True)
class Facts:
    """`fields`: compared name to values."""

    method: bytes = b"GET"
    target: bytes = b"/x?a=1"
    version: int = 11
    host: str = "acme.example.com"
    host_field: bytes = b""
    upgrade: bool = False
    fields: Mapping[bytes, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.host_field:
            object.__setattr__(self, "host_field", self.host.encode())

    def values(self, name: bytes) -> list[bytes]:
        return list(self.fields.get(name, ()))


def browser(**more: Any) -> Facts:
    """A page load by a browser; `fields` adds to its own."""
    fields = {b"accept": [b"text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"], b"sec-fetch-mode": [b"navigate"]}
    return Facts(**{**more, "fields": {**fields, **more.get("fields", {})}})


def template(text: str) -> HostTemplate:
    prefix, tenant, suffix = text.partition("{tenant}")
    return HostTemplate(prefix, suffix, bool(tenant))


def public(host: str, scheme: str = "https", port: int | None = None) -> PublicUrl:
    return PublicUrl(scheme, template(host), port)


def cluster(name: str, can_serve: bool = True) -> Cluster:
    return Cluster(name, (Endpoint(name, "127.0.0.1", 9000),), can_serve=can_serve)


def world(here: str = HERE, app: bool = True, **more: Any) -> View:
    """Region `here` of a fleet of three, whose others were never probed. `app`: whether our cluster can serve."""
    clusters = {"app": cluster("app", app)}
    clusters |= {region_cluster(name): cluster(region_cluster(name)) for name in REGIONS if name != here}
    regions = {name: Region(name, public(f"{{tenant}}.{name}.example.com")) for name in REGIONS}
    known: dict[str, Any] = {"regions": regions, "clusters": clusters, "hop_keys": (KEY, OLD_KEY)}
    return View(region=here, **{**known, **more})


def knowing(here: str = HERE, app: bool = True, *, unable: tuple[str, ...] = (), unreachable: tuple[str, ...] = (),
            **more: Any) -> View:  # fmt: skip
    """A world whose peers were asked: able, but for those named."""
    others = [name for name in REGIONS if name != here]
    abilities = {(name, "app"): Ability.UNABLE if name in unable else Ability.ABLE for name in others}
    return world(here, app, abilities=abilities, probed=frozenset(others), unreachable=frozenset(unreachable), **more)


def record(home: str = HERE, *, epoch: int = 7, **more: Any) -> Placement:
    return Placement(**{"tenant": "acme", "home": home, "version": Version(epoch, 0, ""), **more})
