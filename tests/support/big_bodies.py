"""Large bodies, streamed and hashed at both ends, in processes of their own so that their memory does not count.

`python -m tests.support.big_bodies origin` prints its port and serves until its standard input closes. It hashes what
it receives (`X-Received`) and streams as much back: the same bytes, made again from the number in the path.
`... client STREAMS` reads the streams as JSON, runs all of them at once, and prints what became of each.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass

PIECE = 64 * 1024
BLOCK = random.Random(64).randbytes(PIECE)
SMALL_BUFFER = 64 * 1024
"""What a slow end lets the kernel hold for it: the rest has to wait at the other end, or in the gateway's memory."""
HEAD_MAX = 64 * 1024


@dataclass(frozen=True)
class Stream:
    """One exchange: `pause_s` is how long the application leaves the request unread, and the client the response."""

    port: int
    host: str
    number: int
    size: int
    chunked: bool = False
    pause_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """`sent` and `back` are the client's hashes, `received` is the application's."""

    status: int
    sent: str
    received: str
    back: str
    size: int


def content(number: int, size: int) -> Iterator[bytes]:
    """`size` bytes that no other number and no other place in them has."""
    for at in range(0, size, PIECE):
        piece = b"%016d%016d" % (number, at) + BLOCK[32:]
        yield piece[: size - at]


async def write(writer: asyncio.StreamWriter, stream: Stream) -> str:
    """Send the body, framed; its hash."""
    digest = hashlib.sha256()
    for piece in content(stream.number, stream.size):
        digest.update(piece)
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if stream.chunked else piece)
        await writer.drain()
    if stream.chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return digest.hexdigest()


async def read(reader: asyncio.StreamReader, length: int | None) -> tuple[str, int]:
    """The hash and the size of a body; `length` None for a chunked one."""
    digest, size = hashlib.sha256(), 0
    async for piece in pieces(reader, length):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


async def pieces(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """The body as it comes. EOFError when the connection ends before it does."""
    while left := int(await reader.readuntil(b"\r\n"), 16) if length is None else length:
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise EOFError("the body is cut")
            left -= len(piece)
            yield piece
        if length is not None:
            return
        assert await reader.readexactly(2) == b"\r\n"
    if length is None:
        assert await reader.readexactly(2) == b"\r\n"


async def head(reader: asyncio.StreamReader) -> tuple[list[str], dict[str, str]]:
    """The words of a start line, and the fields by lower-case name."""
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = [line.split(":", 1) for line in lines]
    return start.split(" ", 2), {name.lower(): value.strip() for name, value in pairs}


def length_of(fields: dict[str, str]) -> int | None:
    return None if fields.get("transfer-encoding") == "chunked" else int(fields.get("content-length", 0))


def framing(stream: Stream) -> bytes:
    return b"Transfer-Encoding: chunked" if stream.chunked else b"Content-Length: %d" % stream.size


# --- the application


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            (method, target, _), fields = await head(reader)
            if method == "GET":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            _, number, size, chunked, pause_s = target.split("/")
            stream = Stream(0, "", int(number), int(size), chunked == "True", float(pause_s))
            await asyncio.sleep(stream.pause_s)
            received, _ = await read(reader, length_of(fields))
            answer = (b"HTTP/1.1 200 OK", b"X-Received: " + received.encode(), framing(stream), b"\r\n")
            writer.write(b"\r\n".join(answer))
            await write(writer, stream)
    except (OSError, EOFError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def origin() -> None:
    """Serve until nobody holds our standard input."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)  # accepted sockets have it from the listener
    sock.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(serve, sock=sock, limit=HEAD_MAX)
    print(sock.getsockname()[1], flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stopped.set)
    await stopped.wait()
    server.close()


# --- the client


async def run(stream: Stream) -> Result:
    """Send the whole request, then read the whole response."""
    sock = socket.socket()
    if stream.pause_s:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", stream.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=HEAD_MAX)
    target = f"/{stream.number}/{stream.size}/{stream.chunked}/{stream.pause_s}"
    start = (f"POST {target} HTTP/1.1".encode(), f"Host: {stream.host}".encode(), framing(stream), b"\r\n")
    writer.write(b"\r\n".join(start))
    sent = await write(writer, stream)
    (_, status, _), fields = await head(reader)
    await asyncio.sleep(stream.pause_s)
    back, size = await read(reader, length_of(fields))
    writer.close()
    return Result(int(status), sent, fields.get("x-received", ""), back, size)


async def client(streams: list[Stream]) -> None:
    results = await asyncio.gather(*map(run, streams))
    print(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    if sys.argv[1] == "origin":
        asyncio.run(origin())
    else:
        asyncio.run(client([Stream(**stream) for stream in json.load(sys.stdin)]))
