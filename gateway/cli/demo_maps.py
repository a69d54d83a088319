"""The demo's replicated map: each region's Valkey server, the links between regions, and how far each is behind.

A server can be killed and started again, a region's links can be cut and healed; what that does is up to the gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.cli.demo_files import PAIRS, REGIONS, Layout, append
from gateway.cli.demo_links import Link
from gateway.cli.embedded_valkey import options
from gateway.control.replication.region_map import MapUnavailable, PeerState, RegionMap

START_LIMIT_S: Final = 15.0
ASK_AGAIN_S: Final = 0.02
ASK_LIMIT_S: Final = 1.0

IN_STEP: Final = "has all that the other regions wrote"


class Maps(contextlib.AsyncExitStack):
    """The servers, run by the executable `server`, and the links. Entering it listens; `start` starts a server."""

    def __init__(self, place: Layout, server: Path, environ: Mapping[str, str]) -> None:
        super().__init__()
        self.place = place
        self.servers: dict[str, Process] = {}
        self.cut_off: set[str] = set()
        self._server = server
        self._environ = environ
        self._links = {pair: Link(place.link(*pair), place.port("valkey", pair[1])) for pair in PAIRS}
        self._maps: dict[str, RegionMap] = {}

    async def listen(self) -> None:
        """Be there for the gateways to connect to. Raises OSError when a port was taken meanwhile."""
        for link in self._links.values():
            await self.enter_async_context(link)
        for region in REGIONS:
            url = f"redis://127.0.0.1:{self.place.port('valkey', region)}"
            self._maps[region] = RegionMap(url, region, timeout_s=ASK_LIMIT_S, name="landbridge-demo")
            self.push_async_callback(self._maps[region].close)

    # --- servers

    async def start(self, region: str) -> bool:
        """Start a region's server with the data that it left; whether it answers."""
        folder = self.place.valkey(region)
        folder.mkdir(exist_ok=True)
        port = self.place.port("valkey", region)
        with append(self.place.valkey_log(region)) as log:
            process = await asyncio.create_subprocess_exec(
                str(self._server),
                *options(port, folder),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                process_group=0,  # Ctrl-C is the demo's: gateways end before their servers
            )
        self.servers[region] = process
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_LIMIT_S):
                while process.returncode is None and not await _answers(port):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(ASK_AGAIN_S)
                return process.returncode is None
        return False

    def runs(self, region: str) -> bool:
        return region in self.servers and self.servers[region].returncode is None

    async def kill(self, region: str) -> None:
        """As a machine that fails: nothing is said or saved any more."""
        process = self.servers[region]
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def stop(self) -> None:
        """End all servers."""
        for region in self.servers:
            await self.kill(region)

    # --- links

    def cut(self, region: str) -> None:
        """Drop what goes between this region and the others, both ways."""
        self.cut_off.add(region)
        self._apply()

    def heal(self, region: str) -> None:
        self.cut_off.discard(region)
        self._apply()

    def _apply(self) -> None:
        for pair, link in self._links.items():
            whole = not self.cut_off & set(pair)
            if whole != link.whole:
                link.heal() if whole else link.cut()

    # --- lag

    async def behind(self, region: str) -> str:
        """How far this region is behind the others, for people; IN_STEP when it is not."""
        try:
            return behind(await self._maps[region].replication())
        except MapUnavailable:
            return "its Valkey server does not answer"


def behind(states: Mapping[str, PeerState]) -> str:
    """What a region's replicator says of the peers that it is behind."""
    late = []
    for peer, state in sorted(states.items()):
        lag = [f"{state.lag_s:.1f} s"] if state.lag_s >= 0.05 else []
        lag += [f"{state.lag_records} records"] if state.lag_records else []
        words = [peer, " and ".join(lag), "" if state.state == "following" else f"({state.state})"]
        if any(words[1:]):
            late.append(" ".join(filter(None, words)))
    return f"is behind {', '.join(late)}" if late else IN_STEP


async def _answers(port: int) -> bool:
    """Whether the server is up and its data loaded."""
    try:
        async with asyncio.timeout(ASK_LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PING\r\n")
            line = await reader.readline()
            writer.close()
            return line == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
