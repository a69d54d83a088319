"""What the demonstration writes and prints: three regions' configurations, one tenants file, commands to try.

Values in, text out; `demo` writes and runs it. The files are meant to be read and edited by a newcomer.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REGIONS: Final = ("us-east-1", "eu-west-1", "ap-southeast-2")

OFFSETS: Final = {"gateway": 101, "hop": 111, "admin": 201, "application": 301}
"""Base port + offset + the region's place in REGIONS: 8101-8103, 8111-8113, 8201-8203, 8301-8303."""

DRAIN_LIMIT_S: Final = 5.0

TENANTS: Final = """\
# Who lives where. The demo's three gateways watch this file: save a change, and within a second all of them follow.
# A mistake changes nothing: the old map stays, and the gateways' logs name this file and the line.
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
    """Where one demo lives: its ports follow from `base_port`, its files are under `directory` (absolute)."""

    base_port: int
    directory: Path

    def port(self, what: str, region: str) -> int:
        return self.base_port + OFFSETS[what] + REGIONS.index(region)

    @property
    def ports(self) -> dict[int, str]:
        """Every port of this demo, and whose it is."""
        return {self.port(what, region): f"{region} {what}" for what in OFFSETS for region in REGIONS}

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
tenant_map: {{file: {json.dumps(str(place.tenants))}}}
drain: {{grace: 1s, limit: {DRAIN_LIMIT_S:g}s}}
access_log: {{path: {json.dumps(str(place.access_log(region)))}}}
"""


def program() -> str:
    """How this command is called from here, to be printed and pasted."""
    called = Path(sys.argv[0])
    if called.name != "landbridge":
        return f"{_near(Path(sys.executable))} -m gateway"
    found = shutil.which("landbridge")
    if found and Path(found).resolve() == called.resolve():
        return "landbridge"
    return _near(called)


def _near(path: Path) -> str:
    """A path as one would type it here, quoted for the shell: relative below the current directory.

    Symbolic links stay as they are: a virtual environment's `python` is one.
    """
    absolute, here = path.absolute(), Path.cwd()
    return shlex.quote(str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute))


def to_try(place: Layout, own_directory: bool) -> str:
    """Commands that show everything once. `own_directory`: the demo was given a `--dir`."""
    us, eu, ap = (place.port("gateway", region) for region in REGIONS)
    call = program()
    options = "" if place.base_port == 8000 else f" --base-port {place.base_port}"
    options += f" --dir {_near(place.directory)}" if own_directory else ""
    tenants, config = _near(place.tenants), _near(place.config("eu-west-1"))
    show = "curl -s -H 'Host: {}.demo.localhost'"
    return f"""\
Served where the client entered (acme lives in us-east-1):
  {show.format("acme")} http://127.0.0.1:{us}/x
Internal redirect: eu-west-1 carries the request to us-east-1, see "hops":
  {show.format("acme")} http://127.0.0.1:{eu}/x
External redirect: a browser is sent there instead (307):
  {show.format("acme")} -H 'Accept: text/html' -i http://127.0.0.1:{eu}/x
Unknown tenant (404, with a flag that says why):
  {show.format("nobody")} -i http://127.0.0.1:{us}/x
A WebSocket through a hop (101, then the application's first message):
  {show.format("acme")} -i -N --http1.1 -m 2 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \\
    -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: bGFuZGJyaWRnZSBkZW1vIQ==' --output - http://127.0.0.1:{eu}/ws
Failover: umbrella goes on in eu-west-1 (after about 2 s), acme has no standby and gets 503:
  {call} demo stop-app us-east-1{options}
  {show.format("umbrella")} http://127.0.0.1:{ap}/x
  {show.format("acme")} -i http://127.0.0.1:{ap}/x
  {call} demo start-app us-east-1{options}
Move acme to eu-west-1, for all three gateways within a second, and ask again:
  sed -i '/^  acme:/,/home:/s/home: .*/home: eu-west-1/' {tenants}
  {show.format("acme")} http://127.0.0.1:{us}/x
Why a request goes where it goes, and what a gateway knows:
  {call} explain -c {config} --host acme.demo.localhost
  {call} tenants list -c {config}
  curl -s http://127.0.0.1:{place.port("admin", "eu-west-1")}/api/v1/status
"""


def inside(path: Path) -> str:
    """`path` as printed in messages."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
