"""What the demonstration prints once it runs: commands that show everything once, to paste into another terminal."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from gateway.cli.demo_files import BASE_PORT, REGIONS, Layout


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
    return _requests(place, own_directory) + (
        _replicated(place, own_directory) if place.replicated else _watched(place)
    )


SHOW: Final = "curl -s -H 'Host: {}.demo.localhost'"


def _ports(place: Layout) -> tuple[int, int, int]:
    us, eu, ap = (place.port("gateway", region) for region in REGIONS)
    return us, eu, ap


def _options(place: Layout, own_directory: bool) -> str:
    """What `landbridge demo VERB` needs to find this demo."""
    options = "" if place.base_port == BASE_PORT else f" --base-port {place.base_port}"
    return options + (f" --dir {_near(place.directory)}" if own_directory else "")


def _requests(place: Layout, own_directory: bool) -> str:
    """What happens to a request."""
    us, eu, ap = _ports(place)
    call, options = program(), _options(place, own_directory)
    return f"""\
Served where the client entered (acme lives in us-east-1):
  {SHOW.format("acme")} http://127.0.0.1:{us}/x
Internal redirect: eu-west-1 carries the request to us-east-1, see "hops":
  {SHOW.format("acme")} http://127.0.0.1:{eu}/x
External redirect: a browser is sent there instead (307):
  {SHOW.format("acme")} -H 'Accept: text/html' -i http://127.0.0.1:{eu}/x
Unknown tenant (404, with a flag that says why):
  {SHOW.format("nobody")} -i http://127.0.0.1:{us}/x
A WebSocket through a hop (101, then the application's first message):
  {SHOW.format("acme")} -i -N --http1.1 -m 2 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \\
    -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: bGFuZGJyaWRnZSBkZW1vIQ==' --output - http://127.0.0.1:{eu}/ws
Failover: umbrella goes on in eu-west-1 at once, acme has no standby and gets 503:
  {call} demo stop-app us-east-1{options}
  {SHOW.format("umbrella")} http://127.0.0.1:{ap}/x
  {SHOW.format("acme")} -i http://127.0.0.1:{ap}/x
  {call} demo start-app us-east-1{options}
An evacuation: umbrella is served in eu-west-1, acme where it is, since it has no standby (so this needs --force):
  {call} region drain --force --reason "to try it" -c {_near(place.config("us-east-1"))}
  {SHOW.format("umbrella")} http://127.0.0.1:{us}/x
  {call} region undrain --reason "tried" -c {_near(place.config("us-east-1"))}
Why a request goes where it goes, and what a gateway knows:
  {call} explain -c {_near(place.config("eu-west-1"))} --host acme.demo.localhost
  {call} tenants list -c {_near(place.config("eu-west-1"))}
  curl -s http://127.0.0.1:{place.port("admin", "eu-west-1")}/api/v1/status
"""


def _watched(place: Layout) -> str:
    """How the map changes where it is a file."""
    return f"""\
Move acme to eu-west-1, for all three gateways within a second, and ask again:
  sed -i '/^  acme:/,/home:/s/home: .*/home: eu-west-1/' {_near(place.tenants)}
  {SHOW.format("acme")} http://127.0.0.1:{_ports(place)[0]}/x
"""


def _replicated(place: Layout, own_directory: bool) -> str:
    """How the map changes where it is replicated, and what happens to it when something breaks."""
    us = _ports(place)[0]
    call, options = program(), _options(place, own_directory)
    tenants, here, there = (_near(path) for path in (place.tenants, *map(place.config, REGIONS[:2])))
    label = "echo 'tenants: {{globex: {{home: eu-west-1, labels: {{plan: {}}}}}}}' |"
    forced = "--force --reason 'to see a conflict'"
    return f"""\
Move acme to eu-west-1: edit the file, see what that means, make it so, and wait until every gateway uses it:
  sed -i '/^  acme:/,/home:/s/home: .*/home: eu-west-1/' {tenants}
  {call} tenants plan -f {tenants} -c {here}
  {call} tenants apply -f {tenants} -c {here} --yes --wait
  {SHOW.format("acme")} http://127.0.0.1:{us}/x
  {call} tenants history acme -c {here}
Cut the replication of eu-west-1. Requests go on; after some seconds this console and `map status` tell the lag:
  {call} demo cut eu-west-1{options}
  {SHOW.format("acme")} http://127.0.0.1:{us}/x
  {call} map status -c {here}
  curl -s http://127.0.0.1:{place.port("admin", "eu-west-1")}/metrics | grep ^landbridge_map_lag
Write on both sides meanwhile (forced, for with a lag of over 10 s `apply` refuses), and heal: one of the two wins
everywhere, the conflict is counted, the other is history:
  {label.format("gold")} {call} tenants apply -f - -c {here} --yes {forced}
  {label.format("free")} {call} tenants apply -f - -c {there} --yes {forced}
  {call} demo heal{options}
  {call} map status -c {here}
  {call} tenants history globex -c {here}
Kill a region's Valkey server: its requests go on by the map on disk, and it catches up once the server is back:
  {call} demo stop-valkey us-east-1{options}
  {SHOW.format("globex")} http://127.0.0.1:{us}/x
  {call} demo start-valkey us-east-1{options}
"""
