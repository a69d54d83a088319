"""Parsing a large tenants file in a child process, so that the event loop keeps its interpreter to itself.

`python -m gateway.control.sources.parse` reads one job from standard input and writes one answer to standard output.
It ends with its parent: without a job to read there is nothing it does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.settings.tenants import load_tenants
from gateway.store.wanted import Wanted

LIMIT_S: Final = 300.0
"""A quarter of a million tenants take half a minute; beyond this something hangs."""

CHUNK: Final = 1000
"""Records decoded in one go: below a millisecond, in which no other thread runs."""


PROBLEMS_MAX: Final = 100
"""What is kept and logged of a file's problems: one mistake may be in each of a hundred thousand lines."""


class Job(msgspec.Struct, frozen=True):
    file: str
    text: bytes
    settings: Settings


class Answer(NamedTuple):
    """The map that the file holds, or what is wrong with the file, a line each."""

    wanted: Wanted = Wanted({}, {}, 0)
    problems: tuple[str, ...] = ()


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of an answer: keys and sealed values in turn. Bytes only, which a garbage collector need not look at."""

    tenants: list[bytes] = []
    hosts: list[bytes] = []
    digest: int = 0
    problems: tuple[str, ...] = ()


def run(python: str, job: Job) -> Answer:
    """Have a child do the job. A child that fails is a problem of the file. Blocks."""
    command = [python, "-P", "-m", "gateway.control.sources.parse"]
    try:
        done = subprocess.run(
            command, input=msgspec.msgpack.encode(job), capture_output=True, timeout=LIMIT_S, env=environ()
        )
    except subprocess.TimeoutExpired:
        return Answer(problems=(f"{job.file}: not parsed within {LIMIT_S:g} s",))
    except OSError as error:
        return Answer(problems=(f"{job.file}: a process to parse it cannot be started: {error}",))
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return Answer(problems=(f"{job.file}: the parser ended with {done.returncode}: {''.join(last)}",))
    return join(done.stdout)


def split(answer: Answer) -> Iterator[bytes]:
    """An answer in pieces, each with its length: one `CHUNK` after the other, then digest and problems."""
    wanted = answer.wanted
    pieces = [Piece(tenants=flat) for flat in _flat(wanted.tenants)] + [
        Piece(hosts=flat) for flat in _flat(wanted.hosts)
    ]
    for piece in [*pieces, Piece(digest=wanted.digest, problems=answer.problems)]:
        data = msgspec.msgpack.encode(piece)
        yield len(data).to_bytes(4, "big") + data


def _flat(rows: dict[bytes, bytes]) -> Iterator[list[bytes]]:
    items = iter(rows.items())
    while chunk := list(chain.from_iterable(islice(items, CHUNK))):
        yield chunk


def join(data: bytes) -> Answer:
    """The answer that was split, decoded piece by piece so that other threads get their turn."""
    decoder = msgspec.msgpack.Decoder(Piece)
    tenants: dict[bytes, bytes] = {}
    hosts: dict[bytes, bytes] = {}
    digest = 0
    problems: tuple[str, ...] = ()
    view, at = memoryview(data), 0
    while at < len(data):
        end = at + 4 + int.from_bytes(view[at : at + 4], "big")
        piece = decoder.decode(view[at + 4 : end])
        for rows, into in ((piece.tenants, tenants), (piece.hosts, hosts)):
            into.update(zip(rows[::2], rows[1::2], strict=True))
        digest += piece.digest
        problems += piece.problems
        at = end
        time.sleep(0)  # gives the interpreter to a thread that waits for it
    return Answer(Wanted(tenants, hosts, digest), problems)


def environ() -> dict[str, str]:
    """Ours, in which the child finds the very package that runs here: a checkout is on nobody's path."""
    root = str(Path(__file__).resolve().parents[3])
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def bounded(problems: tuple[str, ...]) -> tuple[str, ...]:
    """The first of them, and how many more there are."""
    more = len(problems) - PROBLEMS_MAX
    return problems if more <= 0 else (*problems[:PROBLEMS_MAX], f"and {more} more problems")


def work(job: Job) -> Answer:
    try:
        return Answer(Wanted.of(load_tenants(job.file, job.text, job.settings)))
    except Invalid as error:
        return Answer(problems=bounded(tuple(map(str, error.problems))))
    except ValueError as error:
        return Answer(problems=(f"{job.file}: {error}",))


if __name__ == "__main__":
    answer = work(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job))
    sys.stdout.buffer.writelines(split(answer))
