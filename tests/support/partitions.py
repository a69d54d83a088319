"""Links between regions that drop packets, and a fleet whose gateways reach each other through them.

Where `links.Link` swallows what it has acknowledged, these lose packets as a broken network does: while one is cut, the
kernel itself drops whatever comes for the link's sockets (an empty socket filter, which takes no privilege), so nothing
is acknowledged, no SYN is answered, and no end is heard. Healed, TCP sends again what was lost.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.fleet import Fleet, Gateway
from tests.support.links import Link

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
_DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0, keep nothing of any packet
_PROGRAM = struct.pack("HP", 1, ctypes.addressof(_DROP))


class LossyLink(Link):
    """`cut` loses every packet of those who connect here, from now on."""

    def cut(self) -> None:
        if not self.is_cut:
            self._open.clear()
            for sock in self._sockets():
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM)

    def heal(self) -> None:
        if self.is_cut:
            for sock in self._sockets():
                sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            self._open.set()

    def _sockets(self) -> list[Any]:
        ends = (transport.get_extra_info("socket") for transport in self._transports if not transport.is_closing())
        return [self._listener, *(sock for sock in ends if sock.getsockname()[1] == self.port)]


class ParteableFleet(Fleet):
    """`links[(from, to)]`, by regions; one gateway in each."""

    def __init__(self, folder: Path, names: Iterable[str], tenants: str) -> None:
        super().__init__(folder, names, tenants)
        self.links: dict[tuple[str, str], LossyLink] = {}

    def hop_port(self, gateway: Gateway, other: Gateway) -> int:
        if gateway is other:
            return other.hop
        key = (gateway.region, other.region)
        if key not in self.links:
            self.links[key] = LossyLink(other.hop)
        return self.links[key].port

    def part(self, region: str) -> None:
        """No packet passes between this region and the others."""
        for key, link in self.links.items():
            if region in key:
                link.cut()

    def heal(self) -> None:
        for link in self.links.values():
            link.heal()


@asynccontextmanager
async def parteable_fleet(
    folder: Path, regions: Iterable[str], tenants: str, **settings: Any
) -> AsyncIterator[ParteableFleet]:
    """A started fleet; `settings` are fields of every `Gateway`."""
    made = ParteableFleet(folder, regions, tenants)
    for gateway in made.gateways.values():
        for name, value in settings.items():
            setattr(gateway, name, value)
    try:
        yield await made.start()
    finally:
        made.heal()
        await made.stop()
        for link in made.links.values():
            await link.stop()
