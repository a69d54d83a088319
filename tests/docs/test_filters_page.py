"""`docs/filters.md`, word for word: its files are written, its commands are run, their output is what it says.

Only ports are other ones, so that two runs do not meet; workers drain for a shorter time; and processes that the page
starts with `&` are ended by their ids instead of its last block, which would find those of others by name.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.supervisor import child_environ
from tests.support.processes import alive, children, free_ports

PAGE = Path(__file__).resolve().parents[2] / "docs" / "filters.md"
FENCE = re.compile(r"(?:^\*\*(?P<file>[^*\n]+)\*\*\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LAST = "## Clean up"
LIMIT_S = 30


class Block(NamedTuple):
    """A file to write (`file`), or a console session."""

    file: str | None
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(m["file"], m["kind"], m["text"]) for m in FENCE.finditer(page.partition(LAST)[0])]


def session(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, with the lines that the page shows below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, shown


def shows(line: str, output: str) -> bool:
    """Whether a line of the page is in the output: `...` stands for anything, columns may be wider."""
    pattern = ".*".join(r"\s+".join(map(re.escape, part.split(" "))) for part in re.sub(" +", " ", line).split("..."))
    return re.search(pattern, output) is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with a PATH on which `landbridge` is this tree's."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "landbridge"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m gateway "$@"\n')
    script.chmod(0o755)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    return tmp_path


class Reader:
    """Somebody who does what the page says, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "empty"
        self.folder.mkdir()
        self.ports = dict(zip(("8080", "8081", "9000"), map(str, free_ports(3)), strict=True))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LANDBRIDGE")}
        self.environ = child_environ(environ) | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "200"}
        self.environ["LANDBRIDGE__drain__grace"] = "100ms"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def on_our_ports(self, text: str) -> str:
        return re.sub(r"\b(8080|8081|9000)\b", lambda match: self.ports[match[0]], text)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.on_our_ports(text))

    def run(self, command: str) -> str:
        """What one command prints. One with `&` goes on; `pgrep` finds it by what was started, not by name."""
        command = self.on_our_ports(command)
        if command.endswith("&"):
            exec_it = f"exec {command.removesuffix('&')}"
            self.running[command] = subprocess.Popen(exec_it, shell=True, cwd=self.folder, env=self.environ)
            return ""
        if match := re.search(r"\$\(pgrep -f '([^']+)'\)", command):
            [gateway] = [process for started, process in self.running.items() if started.startswith(match[1])]
            command = command.replace(match[0], str(gateway.pid))
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder, env=self.environ, timeout=LIMIT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout.decode()

    def log(self) -> str:
        path = self.folder / "gateway.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End what was started, by its id; nothing may be left."""
        below = [child for process in self.running.values() for child in children(process.pid)]
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # a gateway drains for its grace; a second signal cuts it short
                process.wait(LIMIT_S)
        for pid in below:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_the_page_does_what_it_says(folder: Path) -> None:
    reader = Reader(folder)
    ran = 0
    try:
        for block in blocks(PAGE.read_text()):
            if block.file is not None:
                reader.write(block.file, block.text)
                continue
            assert block.kind == "console"
            for command, shown in session(block.text):
                output = reader.run(command)
                ran += 1
                for line in map(reader.on_our_ports, shown):
                    assert shows(line, output), f"$ {command}\n{output}\n--- not shown: {line}\n{reader.log()[-3000:]}"
    finally:
        reader.close()
    assert ran > 20


def test_a_page_that_lies_is_found_out() -> None:
    assert shows("inbound  1  mine ...", "kind\ninbound    1       mine   built in")
    assert not shows("inbound 2 mine", "inbound    1       mine")
    [(command, lines)] = session("$ echo a\na\n...\n")
    assert (command, lines) == ("echo a", ["a", "..."])
    assert len([block for block in blocks(PAGE.read_text()) if block.file]) == 8
