"""The demonstration's application: says in JSON which request reached it, where, for whom and over which hops.

`python -m gateway.cli.demo_app --region us-east-1 --listen 127.0.0.1:8301`. It believes the gateway's fields and
checks nothing: it stands behind a gateway. `/ws` echoes WebSocket messages, `/healthz` is for health checks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import WSMsgType, web

REGION: Final = web.AppKey("region", str)
SHOWN: Final = ("host", "via", "forwarded", "traceparent")
"""Fields that are shown besides all `X-…` and `Gateway-…` ones (of which none should ever arrive)."""


def seen_fields(request: web.Request) -> dict[str, str]:
    """The fields that tell of the way here, names as they came, values of a repeated one joined."""
    fields: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower().replace("_", "-")
        if lower in SHOWN or lower.startswith(("x-", "gateway-")):
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


async def answer(request: web.Request) -> web.Response:
    """What this application saw of the request; a body is counted and hashed, never kept."""
    region = request.app[REGION]
    seen: dict[str, Any] = {
        "region": region,
        "tenant": request.headers.get("X-Tenant", ""),
        "hops": request.headers.get("X-Gateway-Hops", ""),
        "method": request.method,
        "path": request.raw_path,
        "fields": seen_fields(request),
    }
    if request.body_exists:
        size, digest = 0, hashlib.sha256()
        async for chunk in request.content.iter_chunked(64 * 1024):
            size += len(chunk)
            digest.update(chunk)
        seen["body"] = {"bytes": size, "sha256": digest.hexdigest()}
    return web.json_response(seen, headers={"X-Demo-Region": region}, dumps=dumps)


def dumps(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send back every message, after a first one that names region, tenant and hops."""
    socket = web.WebSocketResponse(heartbeat=20.0)
    await socket.prepare(request)
    headers = request.headers
    hello = {"region": request.app[REGION], "tenant": headers.get("X-Tenant"), "hops": headers.get("X-Gateway-Hops")}
    await socket.send_json(hello)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def healthy(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def application(region: str) -> web.Application:
    """The application, not yet listening."""
    app = web.Application()
    app[REGION] = region
    app.router.add_get("/healthz", healthy)
    app.router.add_get("/ws", echo)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def serve(region: str, host: str, port: int, until_stdin_closes: bool) -> None:
    """Serve until SIGTERM, SIGINT, or (asked to) until nobody holds our standard input any more."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if until_stdin_closes:
        loop.add_reader(0, stopped.set)
    runner = web.AppRunner(application(region), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        await stopped.wait()
    finally:
        if until_stdin_closes:
            loop.remove_reader(0)
        await runner.cleanup()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.cli.demo_app", description="The demo's application.")
    parser.add_argument("--region", required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started it")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(options.region, host.strip("[]"), int(port), options.until_stdin_closes))
    except OSError as error:
        print(f"demo application of {options.region}: {options.listen}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
