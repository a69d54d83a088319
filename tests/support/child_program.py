"""A child for the supervisor's tests: a real process that speaks the real channel and accepts on the real sockets.

It answers each connection with its own name and pid, writes what it was told to `events` in the state directory, one
JSON object a line, and reads how to misbehave from `behave-<name>` there: `die` (exit 3 at once), `fail` (when it was
started to wait: say why and exit 4), `mute` (never say serving or ready), `slow` (do so once there is a file
`go-<name>`), `deaf` (read nothing), `stay` (ignore drain, and stay when retired), `linger` (stop accepting upon drain,
never end), `cling` (stay when the supervisor is gone), `stuck` (stay when told to stop). Upon SIGTERM it says draining,
stops accepting and stays.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--state-dir", "--slot", "--channel", "--http", "--hop", "--config", "--admin"):
        parser.add_argument(name)
    parser.add_argument("--settings", default="config.last-good")
    parser.add_argument("--wait", action="store_true")
    options = parser.parse_args()
    state_dir = Path(options.state_dir)
    name = f"worker-{options.slot}" if options.slot is not None else "control" if options.config else "replicator"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def note(**what: object) -> None:
        with open(state_dir / "events", "a") as file:
            file.write(json.dumps({"who": name, "pid": os.getpid(), **what}) + "\n")

    behaviour_file = state_dir / f"behave-{name}"
    behaviour = behaviour_file.read_text() if behaviour_file.exists() else ""
    note(started=sys.argv[1:], environ=[key for key in os.environ if key.startswith(("NOTIFY", "LISTEN_", "WATCHDOG"))])
    if behaviour == "die":
        return 3
    channel = socket.socket(fileno=int(options.channel))
    channel.setblocking(True)
    if behaviour == "deaf":
        channel.sendall(b'{"state":"serving"}\n')
        signal.pause()
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    listeners = [socket.socket(fileno=int(fd)) for fd in (options.http or "").split(",") if fd]

    def accept(slot: int) -> None:
        listeners[slot].listen()
        listeners[slot].setblocking(False)
        selector.register(listeners[slot], selectors.EVENT_READ)

    def drain_by_itself(*_: object) -> None:
        channel.sendall(b'{"state":"draining"}\n')
        selector.unregister(listeners[int(options.slot)])

    signal.signal(signal.SIGTERM, drain_by_itself)
    if name == "control":  # says what the file `say-control` holds when a test signals it
        signal.signal(signal.SIGUSR1, lambda *_: channel.sendall((state_dir / "say-control").read_bytes() + b"\n"))
    if listeners and not options.wait:
        accept(int(options.slot))
    while behaviour == "slow" and not (state_dir / f"go-{name}").exists():
        time.sleep(0.01)
    if options.wait and behaviour != "mute":
        if behaviour == "fail":
            channel.sendall(b'{"failed":"filters/mine.py:3: no such name"}\n')
            return 4
        channel.sendall(b'{"state":"ready"}\n')
    elif behaviour != "mute":
        channel.sendall(b'{"state":"serving"}\n')

    pending = b""
    while True:
        for key, _ in selector.select():
            if key.fileobj is not channel:
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue
                with connection:
                    connection.sendall(f"{name} {os.getpid()}\n".encode())
                continue
            data = channel.recv(65536)
            if not data:
                note(lost=True)
                if behaviour != "cling":
                    return 0
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                selector.unregister(channel)
                continue
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                note(got=message)
                if message["cmd"] == "adopt":
                    for slot in message["slots"]:
                        accept(slot)
                elif message["cmd"] == "accept":
                    accept(int(options.slot))
                    channel.sendall(b'{"state":"serving"}\n')
                elif message["cmd"] == "retire":
                    for key in list(selector.get_map().values()):
                        if key.fileobj is not channel and "http" not in message["keep"]:
                            selector.unregister(key.fileobj)
                    channel.sendall(b'{"state":"draining"}\n')
                    if behaviour != "stay":
                        return 0
                elif message["cmd"] == "release":
                    for slot in message["slots"]:
                        selector.unregister(listeners[slot])
                elif message["cmd"] == "drain" and name != "control" and behaviour == "linger":
                    selector.unregister(listeners[int(options.slot)])
                elif message["cmd"] == "stop" and behaviour == "stuck":
                    continue
                elif message["cmd"] == "stop" or (
                    message["cmd"] == "drain" and name != "control" and behaviour != "stay"
                ):
                    return 0


if __name__ == "__main__":
    sys.exit(main())
