"""Everything that control knows of the whole gateway, in one place: what admin shows and metrics say.

Made and changed by the composition root only; admin and metrics read. Times without a unit in their name are
monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.control.breakers import Breakers
from gateway.control.conditions import Judge
from gateway.control.discovery.names import Names
from gateway.control.keys.keeper import KeyKeeper
from gateway.control.map_file import MapFile
from gateway.control.reload import Configuration
from gateway.control.shares.keeper import ShareKeeper
from gateway.control.sources.source import Source
from gateway.control.switchboard import Switchboard
from gateway.core.conditions import Conditions
from gateway.core.view import View
from gateway.settings.schema import Settings
from gateway.store.writer import Writer


class WorkerProcess(msgspec.Struct, frozen=True):
    """`state` is starting, serving or draining."""

    slot: int
    pid: int
    state: str


class Restarts(msgspec.Struct, frozen=True):
    worker: int = 0
    control: int = 0
    replicator: int = 0


class Replacements(msgspec.Struct, frozen=True):
    """Replacing all workers: whether one is under way, how the last one ended (done, failed) and how often each."""

    running: bool = False
    cause: str = ""
    result: str = ""
    why: str = ""
    done: int = 0
    failed: int = 0


class Processes(msgspec.Struct, frozen=True):
    """What the supervisor last said of its children. `replicator` is None where there is none, 0 between two lives."""

    supervisor: int
    control: int
    replicator: int | None = None
    workers: tuple[WorkerProcess, ...] = ()
    restarts: Restarts = Restarts()
    replacements: Replacements = Replacements()


@dataclass(slots=True)
class Facts:
    """`generation` numbers the last Configured or Conditions sent; `applied` is what each worker slot said it runs.

    `removed_filters` has (worker slot, filter) for each filter that a worker took out, and the error that it died of.
    """

    program: str
    state_dir: Path
    started: float
    processes: Processes
    view: View
    conditions: Conditions
    configuration: Configuration
    tenants: Source
    writer: Writer
    map_file: MapFile
    judge: Judge
    names: Names
    keys: KeyKeeper
    board: Switchboard
    breakers: Breakers
    shares: ShareKeeper
    generation: int = 0
    draining: bool = False
    applied: dict[int, int] = field(default_factory=dict)
    removed_filters: dict[tuple[int, str], str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.configuration.current.settings
