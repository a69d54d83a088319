"""The child process that tries operators' filters out: `python -m gateway.proxy.check_filters`, started by
`settings.filter_check`.

It reads a Question, builds the chain as a worker would, and answers on its first standard output, which no filter can
reach: what files print goes to standard error. It ends with whatever a file may have started, and waits for none of it.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import msgspec

from gateway.core.filtering import REQUIRED_INBOUND
from gateway.proxy.added import Added, load_files, on_error
from gateway.proxy.chain import Assembled, assemble
from gateway.settings.filter_check import FilterFact, Finding, Loading, Question


class TooSlow(Exception):
    """The limit is over; raised into whatever the main thread does."""


def find(question: Question, say_loading: int) -> Finding:
    """Load, build, and tell everything."""

    def begins(path: str) -> None:
        os.write(say_loading, msgspec.json.encode(Loading(path)) + b"\n")

    loaded = load_files(question.files, begins)
    assembled = assemble(question.options, loaded.filters, question.origins)
    # with files that could not be read, every option of theirs would be a stranger's
    problems = loaded.problems or assembled.problems
    return Finding(tuple(problems), tuple(loaded.warnings), facts(question, loaded.filters, assembled))


def facts(question: Question, added: list[Added], assembled: Assembled) -> tuple[FilterFact, ...]:
    """The chain's filters, in the order of a request."""
    own = {one.name: one for one in added}
    rows = []
    for kind, names in assembled.order.items():
        for place, name in enumerate(names, 1):
            one = own.get(name)
            rows.append(
                FilterFact(
                    name,
                    kind,
                    place,
                    required=name in REQUIRED_INBOUND or one is None,
                    is_async=assembled.chain is not None and name in assembled.chain.is_async,
                    file=one.file if one else "",
                    line=one.line if one else 0,
                    on_error=str(on_error(question.options.get(name, {}))) if one else "",
                )
            )
    return tuple(rows)


def main() -> NoReturn:
    answer = os.dup(1)
    os.dup2(2, 1)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)

    def too_slow(number: int, frame: FrameType | None) -> NoReturn:
        raise TooSlow(f"not done within {question.limit_s:g} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, question.limit_s)
    finding = find(question, answer)
    signal.setitimer(signal.ITIMER_REAL, 0)
    data = msgspec.json.encode(finding) + b"\n"
    while data:
        data = data[os.write(answer, data) :]
    if os.getpgrp() == os.getpid():  # what a file has started would keep our end of the pipe open
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
