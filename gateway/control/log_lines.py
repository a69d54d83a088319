"""How control and the replicator write their log: one event, one line, in the supervisor's form."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime


class LogLines(logging.Formatter):
    """`name` is the process's part. A traceback follows its line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{at} {self._name}[{record.process}]: {level}{record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def log_to_stderr(name: str) -> None:
    """Have this process write its log, from INFO on, to standard error."""
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(LogLines(name))
    logging.basicConfig(level=logging.INFO, handlers=[log])
    logging.raiseExceptions = False  # a reader of the log that is gone must not end its writer
