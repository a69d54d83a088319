"""A real name server for tests: UDP and TCP on one free port of loopback, whose answers a test scripts and counts.

server.put("app.internal", "A", "127.0.0.2", "127.0.0.3", ttl=1)
server.put("www.internal", "CNAME", "app.internal.")
server.say["app.internal"] = "SERVFAIL"      # or NXDOMAIN, REFUSED, drop, garbage, slow; for all its types
server.say["app.internal A"] = "drop once"   # the first question of that type is lost
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

UDP_BYTES: Final = 512
"""What a datagram may hold when the question has no EDNS (RFC 1035, 4.2.1): a longer answer is cut, for TCP."""
CHAIN_MAX: Final = 8


class NameServer(asyncio.DatagramProtocol):
    """`asked` has (name, type, protocol) of each question, in order. A name that it lacks is NXDOMAIN."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, str, str]] = []
        self.say: dict[str, str] = {}
        self._sets: dict[tuple[str, str], dns.rrset.RRset] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.AbstractServer | None = None

    def put(self, name: str, kind: str, *records: str, ttl: int = 1) -> None:
        """Records of this type, in place of those that were; none: the name is there, the type is not."""
        made = dns.rrset.from_text_list(f"{name}.", ttl, "IN", kind, records) if records else None
        self._sets[name, kind] = made or dns.rrset.RRset(dns.name.from_text(name), 1, dns.rdatatype.from_text(kind))

    def drop(self, name: str) -> None:
        """Forget a name: NXDOMAIN from now on."""
        self._sets = {key: records for key, records in self._sets.items() if key[0] != name}

    def count(self, name: str, kind: str = "A") -> int:
        return sum(1 for asked in self.asked if asked[:2] == (name, kind))

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        while True:  # both protocols on one port: the second may be taken
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", port))
            self.port = udp.getsockname()[1]
            try:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
                break
            except OSError:
                udp.close()
                if port:
                    raise
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=udp)

    async def stop(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._answer(data, "udp")
        if answer is None or self._transport is None:
            return
        wire = answer.to_wire(max_size=65535) if isinstance(answer, dns.message.Message) else answer
        if isinstance(answer, dns.message.Message) and len(wire) > UDP_BYTES:
            cut = dns.message.make_response(dns.message.from_wire(data))
            cut.flags |= dns.flags.TC
            wire = cut.to_wire()
        self._transport.sendto(wire, addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self._answer(await reader.readexactly(size), "tcp")
                if answer is None:
                    continue
                wire = answer.to_wire(max_size=65535) if isinstance(answer, dns.message.Message) else answer
                writer.write(struct.pack("!H", len(wire)) + wire)
                await writer.drain()
        writer.close()

    def _answer(self, wire: bytes, protocol: str) -> dns.message.Message | bytes | None:
        query = dns.message.from_wire(wire)
        [question] = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, protocol))
        match self.say.get(f"{name} {kind}", self.say.get(name, self.say.get("*", ""))):
            case "drop":
                return None
            case "drop once":
                del self.say[f"{name} {kind}"]
                return None
            case "garbage":
                return wire[:2] + b"\x81\x80" + b"\xff" * 40
            case "":
                return self._found(query, name, kind)
            case rcode:
                response = dns.message.make_response(query)
                response.set_rcode(dns.rcode.from_text(rcode))
                return response

    def _found(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        for _ in range(CHAIN_MAX):
            if (alias := self._sets.get((name, "CNAME"))) is None:
                break
            response.answer.append(alias)
            name = alias[0].target.to_text(omit_final_dot=True)
        found = self._sets.get((name, kind))
        if found is not None and len(found):
            response.answer.append(found)
        elif not any(known == name for known, _ in self._sets):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    server = NameServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
