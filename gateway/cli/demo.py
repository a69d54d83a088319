"""`landbridge demo`: three whole regions on this machine, each a real gateway and an application, until Ctrl-C.

The demo only starts processes and watches them: gateways are `landbridge serve` with the configurations written by
`demo_files`, applications are `demo_app`. `demo stop-app` and `start-app` speak to it over a socket in its directory.
It leaves no process behind: applications end with its standard pipe, gateways are drained and waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from gateway.cli.demo_files import DRAIN_LIMIT_S, REGIONS, TENANTS, Layout, gateway_yaml, inside, to_try
from gateway.cli.output import Exit
from gateway.supervisor import child_environ, python_module

BASE_PORT: Final = 8000
MARK: Final = ".landbridge-demo"
"""Stands in a demo's directory, so that no other directory is ever taken for one and overwritten."""

READY_LIMIT_S: Final = 60.0
APP_LIMIT_S: Final = 15.0
PEER_PATHS: Final = "/.landbridge/"
"""What gateways ask each other each second: in the log, not on the console."""

TAIL_S: Final = 0.1
TAIL_LINES_MAX: Final = 20
"""Of one region in one tenth of a second: what is more (a load test) is counted, for a terminal cannot follow it."""

ASK_AGAIN_S: Final = 0.05
LINE_MAX_BYTES: Final = 1024
KILL_AFTER_S: Final = DRAIN_LIMIT_S + 5.0
"""A supervisor ends within its drain limit; only one that is stuck is still there by then."""


class Refused(Exception):
    """Why there is no demo; for the person at the terminal."""


def layout(base_port: int | None, directory: Path | None) -> Layout:
    """The demo that these options mean: `.demo/BASE-PORT` here, unless said otherwise."""
    port = base_port or BASE_PORT
    return Layout(port, (directory or Path(".demo") / str(port)).absolute())


def demo(place: Layout) -> int:
    """Run the demo until Ctrl-C or SIGTERM: 0; 1 when something of it failed; 2 when it cannot start here."""
    try:
        check_free(place)
        write_files(place)
        return asyncio.run(_Demo(place).run())
    except Refused as refusal:
        print(f"landbridge: {refusal}", file=sys.stderr)
        return Exit.BAD_INPUT


def tell(place: Layout, verb: str, region: str) -> int:
    """Ask the running demo to stop or start a region's application; prints its answer."""
    if region not in REGIONS:
        print(f"landbridge: no such region: {region} (there are {', '.join(REGIONS)})", file=sys.stderr)
        return Exit.BAD_INPUT
    answer = _ask(place, f"{verb} {region}")
    if answer is None:
        where = inside(place.directory)
        print(
            f"landbridge: no demo is running in {where} (other ports or directory? --base-port, --dir)", file=sys.stderr
        )
        return Exit.FAILED
    verdict, _, text = answer.partition(" ")
    print(text, file=sys.stdout if verdict == "ok" else sys.stderr)
    return Exit.DONE if verdict == "ok" else Exit.FAILED


def _ask(place: Layout, line: str) -> str | None:
    """One line to the demo's socket and its answer; None when no demo answers."""
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(place.directory, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(APP_LIMIT_S + 5.0)
            sock.connect(_socket_path(folder))
            sock.sendall(line.encode() + b"\n")
            with sock.makefile("r") as file:
                return file.readline().strip() or None
        except OSError:
            return None


def _socket_path(folder: int) -> str:
    """Through the directory's descriptor: a socket's path may have 107 bytes only (unix(7))."""
    return f"/proc/self/fd/{folder}/demo.sock"


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
        raise Refused(f"ports that the demo needs are taken (--base-port moves all of them):\n{lines}")


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
        place.tenants.write_text(TENANTS)
        for region in REGIONS:
            shutil.rmtree(place.config(region).parent, ignore_errors=True)
            place.config(region).parent.mkdir()
            place.config(region).write_text(gateway_yaml(place, region))
    except OSError as error:
        raise Refused(f"{error.filename or directory}: {error.strerror}") from None


class _Demo:
    """The running demo: its processes, its socket, its console."""

    def __init__(self, place: Layout) -> None:
        self.place = place
        self.environ = child_environ(os.environ)
        for name in [name for name in self.environ if name.startswith("LANDBRIDGE")]:
            del self.environ[name]  # the demo's configurations are whole: nobody's overrides belong in them
        self.gateways: dict[str, Process] = {}
        self.apps: dict[str, Process] = {}
        self.stopping = asyncio.Event()
        self.code = Exit.DONE

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stopping.set)
        folder = os.open(self.place.directory, os.O_PATH | os.O_DIRECTORY)
        try:
            server = await asyncio.start_unix_server(self._answer, _socket_path(folder))
            async with server, asyncio.TaskGroup() as tasks:
                try:
                    await self._start(tasks)
                    if not self.stopping.is_set():
                        self._greet()
                        tail = tasks.create_task(self._tail())
                        await self.stopping.wait()
                        tail.cancel()
                finally:
                    self.stopping.set()
                    await self._stop()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_socket_path(folder))
            os.close(folder)
        return self.code

    # --- processes

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        print("starting three regions ...", flush=True)
        for region in REGIONS:
            await self._start_app(region)
            with _append(self.place.gateway_log(region)) as file:
                self.gateways[region] = await asyncio.create_subprocess_exec(
                    *python_module("gateway"),
                    *("serve", "-c", str(self.place.config(region))),
                    stdin=DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=self.environ,
                    process_group=0,  # Ctrl-C is the demo's: it drains them in order
                )
            tasks.create_task(self._watch(region))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LIMIT_S):
                for region in REGIONS:
                    await self._until_ok(self.place.port("gateway", region), "/readyz", self.stopping.is_set)
                return
        self._failed("the gateways did not get ready", REGIONS)

    async def _watch(self, region: str) -> None:
        """A gateway that ends by itself ends the demo, and shows its last words."""
        code = await self.gateways[region].wait()
        if not self.stopping.is_set():
            self._failed(f"the gateway of {region} ended with {code}", (region,))

    def _failed(self, what: str, regions: tuple[str, ...]) -> None:
        print(f"landbridge: {what}", file=sys.stderr)
        for region in regions:
            log = self.place.gateway_log(region)
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
        """Drain the gateways, then end the applications; whatever is stuck is killed."""
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
        print("stopped", flush=True)

    # --- stop-app, start-app

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError, TimeoutError):
            async with asyncio.timeout(APP_LIMIT_S + 5.0):
                line = (await reader.readline()).decode(errors="replace").strip()
                writer.write((await self._obey(line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _obey(self, line: str) -> str:
        verb, _, region = line.partition(" ")
        if region not in self.apps or self.stopping.is_set():
            return "error the demo is starting or stopping: try again"
        process = self.apps[region]
        if verb == "stop-app":
            if process.returncode is not None:
                return f"ok the application of {region} is stopped already"
            process.kill()
            await process.wait()
            return self._say(f"ok the application of {region} is stopped")
        if verb == "start-app":
            if process.returncode is None:
                return f"ok the application of {region} runs already"
            await self._start_app(region)
            started = self.apps[region]
            port = self.place.port("application", region)
            await self._until_ok(port, "/healthz", lambda: started.returncode is not None)
            if started.returncode is not None:
                return self._say(f"error the application of {region} ended with {started.returncode}")
            return self._say(f"ok the application of {region} runs again")
        return f"error unknown command: {verb}"

    def _say(self, answer: str) -> str:
        print(f"{'':15} {answer.partition(' ')[2]}", flush=True)
        return answer

    # --- console

    def _greet(self) -> None:
        place = self.place
        print(f"\nthree regions run; their files are in {inside(place.directory)}\n")
        for region in REGIONS:
            ports = " ".join(
                f"{what} {place.port(what, region)}" for what in ("gateway", "hop", "admin", "application")
            )
            print(f"  {region:15} {ports}")
        own = place.directory != layout(place.base_port, None).directory
        print(f"\nIn another terminal, from this directory:\n\n{to_try(place, own)}")
        print("Ctrl-C stops everything. What the gateways decide:\n", flush=True)

    async def _tail(self) -> None:
        """Show each decision and each word of the gateways from now on, as they are logged."""
        with contextlib.ExitStack() as stack:
            files: list[tuple[str, BinaryIO, bool]] = []
            for region in REGIONS:
                for path, access in ((self.place.gateway_log(region), False), (self.place.access_log(region), True)):
                    files.append((region, stack.enter_context(_read_on(path)), access))
            while True:
                for region, file, access in files:
                    lines = [decision(line) if access else said(line) for line in _whole_lines(file)]
                    shown = [line for line in lines if line]
                    for line in shown[:TAIL_LINES_MAX]:
                        print(f"{region:15} {line}")
                    if len(shown) > TAIL_LINES_MAX:
                        print(f"{region:15} ... and {len(shown) - TAIL_LINES_MAX} more")
                sys.stdout.flush()
                await asyncio.sleep(TAIL_S)


def _append(path: Path) -> BinaryIO:
    return open(path, "ab")


def _read_on(path: Path) -> BinaryIO:
    """Open a log behind what it already says."""
    path.touch()
    file = open(path, "rb")
    file.seek(0, os.SEEK_END)
    return file


def _whole_lines(file: BinaryIO) -> list[bytes]:
    """What was appended since, without a last line that is still being written."""
    start = file.tell()
    data = file.read(256 * 1024)
    end = data.rfind(b"\n") + 1
    file.seek(start + end)
    return data[:end].splitlines()


def said(line: bytes) -> str:
    """A line of a gateway's own log, as it is."""
    return line.decode(errors="replace")


def decision(line: bytes) -> str:
    """An access-log line in short: who asked for what, what was decided, how it ended. "" for gateways' own talk."""
    try:
        entry: dict[str, Any] = json.loads(line)
        if str(entry["path"]).startswith(PEER_PATHS):
            return ""
        what = entry["decision"] or "-"
        if entry["reason"]:
            what += f" ({entry['reason']})"
        millis = float(entry["seconds"]) * 1000
        flag = f" {entry['flag']}" if entry["flag"] else ""
        words = f"{entry['from']:6} {entry['method']:4} {entry['path']:20} {entry['tenant'] or '-':10} {what:28}"
        return f"{words} {entry['status']}{flag} {millis:.1f} ms"
    except (ValueError, KeyError, TypeError):
        return line[:LINE_MAX_BYTES].decode(errors="replace")


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
