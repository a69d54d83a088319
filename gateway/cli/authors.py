"""Who makes a change and why, and the audit log's line about it."""

from __future__ import annotations

import os
import pwd
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.cli.output import Exit, fail, note
from gateway.control.admin_audit import AuditLog, Entry
from gateway.core.planning import Author
from gateway.settings.schema import Settings

REASON_CHARS_MAX: Final = 256
"""As for the admin API: it stands in every record that the change makes."""
ACTOR_CHARS_MAX: Final = 64


def author_of(actor: str | None, reason: str | None, needed_for: str | None = None) -> Author:
    """Who and why. `needed_for`: the option or command that is not done without a reason."""
    by, why = (_user() if actor is None else actor).strip(), (reason or "").strip()
    if not by or len(by) > ACTOR_CHARS_MAX or not by.isprintable():
        fail(f"--actor: expected 1 to {ACTOR_CHARS_MAX} printable characters", Exit.BAD_INPUT)
    if len(why) > REASON_CHARS_MAX or not why.isprintable():
        fail(f"--reason: expected at most {REASON_CHARS_MAX} printable characters", Exit.BAD_INPUT)
    if needed_for and not why:
        fail(f"{needed_for} needs a --reason: it is kept in the records and in the audit log", Exit.BAD_INPUT)
    return Author(by, why)


def _user() -> str:
    """`alice@host`; behind sudo whoever called it."""
    try:
        name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    host = socket.gethostname().partition(".")[0]
    return f"{name}@{host}"[:ACTOR_CHARS_MAX]


class Audit:
    """The audit log of this machine's gateway, where there is one that is ours to write.

    A file that we made as another user would keep the gateway from its own log, so then the records alone say it.
    """

    def __init__(self, settings: Settings, command: str, author: Author) -> None:
        self._command = command
        self._author = author
        state_dir = Path(settings.state_dir)
        try:
            is_ours = state_dir.stat().st_uid == os.geteuid()
        except OSError:
            self._log = None
            return
        if not is_ours:
            note(f"{state_dir} belongs to another user: not written to its audit log (the records say who and why)")
        self._log = AuditLog(state_dir) if is_ours else None

    def prepare(self) -> None:
        """What cannot be written down is not done: exit 1 then."""
        try:
            if self._log is not None:
                self._log.prepare()
        except OSError as error:
            fail(f"nothing was done, since the audit log cannot be written: {error}")

    def write(self, outcome: str) -> None:
        """One line about all of it."""
        if self._log is None:
            return
        entry = Entry(
            time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            actor=self._author.by,
            role=None,
            address=socket.gethostname(),
            method="cli",
            path=self._command,
            reason=self._author.why or None,
            outcome=outcome,
        )
        try:
            self._log.write(entry)
        except OSError as error:
            note(f"done, but the audit log could not be written: {error}")
        finally:
            self._log.close()
