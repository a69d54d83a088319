"""What the demonstration writes: three regions' configurations and one tenants file. Which port is whose.

Values in, text out; `demo` writes and runs it. The files are meant to be read and edited by a newcomer.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

REGIONS: Final = ("us-east-1", "eu-west-1", "ap-southeast-2")

BASE_PORT: Final = 8000

OFFSETS: Final = {"gateway": 101, "hop": 111, "admin": 201, "application": 301, "valkey": 401}
"""Base port + offset + the region's place in REGIONS: 8101-8103, 8111-8113, 8201-8203, 8301-8303, 8401-8403."""

LINK_OFFSET: Final = 411
PAIRS: Final = tuple((follower, peer) for follower in REGIONS for peer in REGIONS if follower != peer)
"""Who follows whom: 8411-8416 lead a region to the Valkey servers of the others."""

DRAIN_LIMIT_S: Final = 5.0

REPLICATED: Final = """\
# Who lives where, as the demo began: written into the regions' Valkey servers, which replicate it. An edit here changes
# nothing by itself: `landbridge tenants plan` shows what it means, and `landbridge tenants apply` makes it so.
"""

WATCHED: Final = """\
# Who lives where. The demo's three gateways watch this file: save a change, and within a second all of them follow.
# A mistake changes nothing: the old map stays, and the gateways' logs name this file and the line.
"""

TENANTS: Final = """\
tenants:
  acme:
    home: us-east-1
  globex:
    home: eu-west-1
  initech:
    home: ap-southeast-2
  umbrella:
    home: us-east-1
    standby: [eu-west-1]
    failover: all          # the application is active-active: while home cannot serve, eu-west-1 serves everything
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one demo lives: its ports follow from `base_port`, its files are under `directory` (absolute).

    `replicated`: each region has a Valkey server, and the map is replicated between them; otherwise it is a file.
    """

    base_port: int
    directory: Path
    replicated: bool = True

    def port(self, what: str, region: str) -> int:
        return self.base_port + OFFSETS[what] + REGIONS.index(region)

    def link(self, follower: str, peer: str) -> int:
        """The port on which `follower` reaches the Valkey server of `peer`."""
        return self.base_port + LINK_OFFSET + PAIRS.index((follower, peer))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What has a port in each region."""
        return tuple(what for what in OFFSETS if self.replicated or what != "valkey")

    @property
    def ports(self) -> dict[int, str]:
        """Every port of this demo, and whose it is."""
        ports = {self.port(what, region): f"{region} {what}" for what in self.kinds for region in REGIONS}
        links = PAIRS if self.replicated else ()
        return ports | {self.link(*pair): "{} link to {}".format(*pair) for pair in links}

    @property
    def tenants(self) -> Path:
        return self.directory / "tenants.yaml"

    @property
    def hop_key(self) -> Path:
        return self.directory / "hop_key"

    def config(self, region: str) -> Path:
        return self.directory / region / "gateway.yaml"

    def gateway_log(self, region: str) -> Path:
        return self.directory / region / "gateway.log"

    def access_log(self, region: str) -> Path:
        return self.directory / region / "access.log"

    def state(self, region: str) -> Path:
        return self.directory / region / "state"

    def valkey(self, region: str) -> Path:
        """Its data."""
        return self.directory / region / "valkey"

    def valkey_log(self, region: str) -> Path:
        return self.directory / region / "valkey.log"


def tenants_yaml(place: Layout) -> str:
    """The tenants that the demo begins with."""
    return (REPLICATED if place.replicated else WATCHED) + TENANTS


def layout(base_port: int | None, directory: Path | None) -> Layout:
    """The demo that these options mean: `.demo/BASE-PORT` here, unless said otherwise."""
    port = base_port or BASE_PORT
    return Layout(port, (directory or Path(".demo") / str(port)).absolute())


def gateway_yaml(place: Layout, region: str) -> str:
    """One region's whole configuration; paths are absolute and quoted as JSON, which is YAML."""
    others = "\n".join(
        f'  {name}: {{public: "http://{{tenant}}.{name}.demo.localhost:{place.port("gateway", name)}",'
        f' gateways: ["127.0.0.1:{place.port("hop", name)}"]}}'
        for name in REGIONS
    )
    return f"""\
# The demo's gateway of {region}. Written at the demo's start; edit it and `kill -HUP` the supervisor to reload.
region: {region}
fleet: demo
listen:
  http: 127.0.0.1:{place.port("gateway", region)}      # clients
  hop: 127.0.0.1:{place.port("hop", region)}       # the other regions' gateways
  admin: 127.0.0.1:{place.port("admin", region)}     # /metrics, /api/v1/status
workers: 1
state_dir: {json.dumps(str(place.state(region)))}
regions:
{others}
hop_keys: [{json.dumps(f"${{file:{place.hop_key}}}")}]
clusters:
  app:
    endpoints: ["127.0.0.1:{place.port("application", region)}"]
    health: {{path: /healthz, interval: 1s, healthy: 2, unhealthy: 2}}
tenancy:
  resolvers:
    - host: "{{tenant}}.demo.localhost"
{_tenant_map(place, region)}drain: {{grace: 1s, limit: {DRAIN_LIMIT_S:g}s}}
access_log: {{path: {json.dumps(str(place.access_log(region)))}}}
"""


def _tenant_map(place: Layout, region: str) -> str:
    """Where this region's placements come from."""
    if not place.replicated:
        return f"tenant_map: {{file: {json.dumps(str(place.tenants))}}}\n"
    peers = "\n".join(
        f"      {name}: redis://127.0.0.1:{place.link(region, name)}" for name in REGIONS if name != region
    )
    return f"""\
tenant_map:
  source: redis
  redis:
    url: redis://127.0.0.1:{place.port("valkey", region)}      # this region's own Valkey server
    peers:                         # the other regions' ones, through the links that `landbridge demo cut` cuts
{peers}
"""


def append(path: Path) -> BinaryIO:
    """A log to be written on."""
    return open(path, "ab")


def inside(path: Path) -> str:
    """`path` as printed in messages."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
