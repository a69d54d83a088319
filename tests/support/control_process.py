"""Control as a process of its own, between a supervisor's channel, workers on the bus and a client of its admin API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from gateway.bus.client import BusClient
from gateway.bus.messages import Configured, FromControl, Hello, MapChanged
from gateway.control.reload import write_last_good
from gateway.core.conditions import Conditions
from gateway.settings.loader import read_sources
from tests.support.eventually import LIMIT_S, eventually

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A worker as control sees one: the real bus client, and all that it was told."""

    def __init__(self, state_dir: Path, slot: int = 0) -> None:
        self.slot = slot
        self.told: list[FromControl] = []
        self._arrived = asyncio.Event()
        self.bus = BusClient(state_dir / "bus.sock", self._hear, self._hello)

    def _hello(self) -> None:
        self.bus.send(Hello(self.slot, os.getpid()))

    def _hear(self, message: FromControl) -> None:
        self.told.append(message)
        self._arrived.set()

    async def wait_for(self, holds: Any) -> FromControl:
        """The first message, past or to come, for which `holds(message)`."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                for message in self.told:
                    if holds(message):
                        return message
                self._arrived.clear()
                await self._arrived.wait()

    async def conditions(self, holds: Any) -> Conditions:
        found = await self.wait_for(lambda m: isinstance(m, Conditions) and holds(m))
        assert isinstance(found, Conditions)
        return found

    async def configured(self, holds: Any = lambda m: True) -> Configured:
        found = await self.wait_for(lambda m: isinstance(m, Configured) and holds(m))
        assert isinstance(found, Configured)
        return found

    async def map_changed(self, holds: Any = lambda m: True) -> MapChanged:
        found = await self.wait_for(lambda m: isinstance(m, MapChanged) and holds(m))
        assert isinstance(found, MapChanged)
        return found


class ControlProcess:
    """See the module. The listening admin socket and `state_dir` outlive the process, as the supervisor's would."""

    def __init__(self, folder: Path, config: str, tenants: str | None, admin_host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.file = folder / "gateway.yaml"
        self.tenants = folder / "tenants.yaml"
        self.state_dir = folder / "state"
        self.state_dir.mkdir(mode=0o700)
        self.file.write_text(config)
        if tenants is not None:
            self.tenants.write_text(tenants)
        self.log_file = folder / "control.log"
        self.admin = socket.create_server((admin_host, 0))
        self.port = self.admin.getsockname()[1]
        self.process: asyncio.subprocess.Process | None = None
        self.said: list[dict[str, Any]] = []
        self._channel: socket.socket | None = None
        self._workers: list[Worker] = []
        self.client = aiohttp.ClientSession(f"http://127.0.0.1:{self.port}")
        write_last_good(self.state_dir, read_sources(self.file, {}))

    async def start(self) -> None:
        """Start it and wait until it says that it serves."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._channel = ours
        self.said = []
        with theirs, self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-X",
                "dev",
                *("-m", "gateway.control.main", "--state-dir", str(self.state_dir), "--config", str(self.file)),
                *("--channel", str(theirs.fileno()), "--admin", str(self.admin.fileno())),
                pass_fds=(theirs.fileno(), self.admin.fileno()),
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            )
        await self.wait_said("serving")

    async def wait_said(self, state: str) -> None:
        """Read the channel until control says that it is `state`."""
        await self.wait_for({"state": state})

    async def wait_for(self, message: dict[str, Any]) -> None:
        """Read the channel until control has said this."""
        assert self._channel is not None
        async with asyncio.timeout(LIMIT_S):
            while message not in self.said:
                data = await asyncio.get_running_loop().sock_recv(self._channel, 65536)
                assert data, f"control ended: {self.log()}"
                self.said += [json.loads(line) for line in data.splitlines()]

    def tell(self, **command: Any) -> None:
        assert self._channel is not None
        self._channel.sendall(json.dumps(command).encode() + b"\n")

    def hang_up(self) -> None:
        """What the kernel does when the supervisor is killed."""
        assert self._channel is not None
        self._channel.close()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self, limit_s: float = LIMIT_S) -> int:
        assert self.process is not None
        async with asyncio.timeout(limit_s):
            code = await self.process.wait()
        self.process = None
        return code

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()
        self.hang_up()

    def log(self) -> str:
        return self.log_file.read_text()

    async def logged(self, text: str) -> None:
        await eventually(lambda: text in self.log())

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        """The JSON (or, for another type, the text) of one GET, which must have this status."""
        async with self.client.get(path, headers=headers) as response:
            body = await response.text()
            assert response.status == status, f"{path}: {response.status} {body}"
            return json.loads(body) if "json" in response.content_type else body

    async def post(self, path: str, status: int, body: bytes | None = None, **headers: str) -> Any:
        """(JSON, fields) of one POST, which must have this status."""
        async with self.client.post(path, headers=headers, data=body) as response:
            text = await response.text()
            assert response.status == status, f"{path}: {response.status} {text}"
            return json.loads(text), response.headers

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one series. KeyError when it is not there."""
        for family in text_string_to_metric_families(await self.get("/metrics")):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        raise KeyError((name, labels))

    async def worker(self, slot: int = 0) -> Worker:
        """One more worker, connected."""
        made = Worker(self.state_dir, slot)
        self._workers.append(made)
        made.bus.start()
        await made.map_changed()
        return made

    async def close(self) -> None:
        for worker in self._workers:
            await worker.bus.close()
        await self.client.close()
        if self.process is not None:
            self.tell(cmd="stop")
            try:
                assert await self.ended() == 0, self.log()
            except TimeoutError:
                await self.kill()
                raise AssertionError(f"control did not stop: {self.log()}") from None
        if self._channel is not None:
            self._channel.close()
        self.admin.close()


@asynccontextmanager
async def control_process(
    folder: Path, config: str, tenants: str | None = None, admin_host: str = "127.0.0.1"
) -> AsyncIterator[ControlProcess]:
    """Control, started; stopped at the end, when it must not have logged a traceback."""
    made = ControlProcess(folder, config.replace("STATE_DIR", str(folder / "state")), tenants, admin_host)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
    assert "Traceback" not in made.log(), made.log()
