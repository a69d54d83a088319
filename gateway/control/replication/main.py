"""The replicator's process: its composition root.

`python -m gateway.control.replication.main --state-dir D --channel FD`

It reads `state_dir/config.last-good`, as a worker does, and is started anew when the replicated map's settings change.
It may be killed at any moment: whoever takes the lease next goes on where it ended. Nobody waits for it: gateways
serve what their map says, and without it they only hear nothing new from other regions.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from gateway.bus.channel import Channel
from gateway.control.log_lines import log_to_stderr
from gateway.control.replication.counters import Counters
from gateway.control.replication.region_map import RegionMap
from gateway.control.replication.replicator import Replicator
from gateway.settings.loader import decode_sources, load
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings

LOG = logging.getLogger("landbridge.replicator")

LAST_GOOD: Final = "config.last-good"
ID_FILE: Final = "gateway.id"
STOP_MARGIN_S: Final = 2.0
"""What it stays beyond `drain.limit`, as control does: the supervisor ends it before."""

CANNOT_START: Final = 1


class Process:
    """One replicator process, from what it starts on to its end."""

    def __init__(self, options: argparse.Namespace, settings: Settings) -> None:
        redis = settings.tenant_map.redis
        assert redis is not None, "it was looked at"
        state_dir = Path(options.state_dir)
        self.drain_limit_s = settings.drain.limit
        self.own = RegionMap(redis.url, settings.region, redis.tls, name="landbridge-replicator")
        name = f"landbridge-replicator-{settings.region}"
        self.peers = [RegionMap(url, region, redis.tls, name=name) for region, url in redis.peers.items()]
        self.counters = Counters(state_dir, tuple(redis.peers))
        token = f"{name_of_gateway(state_dir)}.{os.getpid()}.{secrets.token_hex(4)}"
        self.replicator = Replicator(self.own, self.peers, token, self.counters, random.Random())
        self.channel = Channel(options.channel, self.command, self.supervisor_lost)
        self.draining = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's to forward
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        gc.collect()
        gc.freeze()
        await self.channel.start()
        self.channel.send({"state": "serving"})
        await self.replicator.run()
        for region_map in (self.own, *self.peers):
            await region_map.close()
        self.counters.close()
        self.channel.close()
        return 0

    def command(self, message: dict[str, Any]) -> None:
        """One command of the supervisor; what is not known comes from a newer one and is ignored."""
        match message.get("cmd"):
            case "drain":
                self.drain()
            case "stop":
                self.replicator.stop()

    def drain(self) -> None:
        """Go on for the workers that still serve; the end comes by `stop` or by time."""
        if not self.draining:
            self.draining = True
            LOG.info("draining")
            self.channel.send({"state": "draining"})
            asyncio.get_running_loop().call_later(self.drain_limit_s + STOP_MARGIN_S, self.replicator.stop)

    def supervisor_lost(self) -> None:
        LOG.error("the supervisor is gone: ending")
        self.replicator.stop()


def name_of_gateway(state_dir: Path) -> str:
    """What control made, if it was here before us: the token only shows it, and is unique without it. Blocks."""
    try:
        return (state_dir / ID_FILE).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return socket.gethostname()


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.control.replication.main", description="Started by the supervisor.")
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket to the supervisor")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> int:
    path = Path(options.state_dir) / LAST_GOOD
    try:
        settings = load(decode_sources(path.read_bytes()), dict(os.environ))
    except (Invalid, OSError, ValueError) as error:
        LOG.error("the replicator cannot start: %s: %s", path, error)
        return CANNOT_START
    if settings.tenant_map.redis is None:
        LOG.error("the replicator cannot start: %s names no tenant_map.redis", path)
        return CANNOT_START
    return await Process(options, settings).run()


def main() -> int:
    log_to_stderr("replicator")
    options = parse_options(sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(options))


if __name__ == "__main__":
    sys.exit(main())
