"""`python -m gateway.store.check --state-dir D`: is the map on disk sound, and if not, make it so.

The supervisor runs it before the first children and after one died of SIGBUS or SIGSEGV; control runs it in the
background. It needs no network and no configuration, and it never maps a file that it has not found sound. A map that
is not is left where it is, noted as bad, and a new generation is made of the snapshot; without a sound snapshot the new
generation is empty and not complete, until control has read the tenants file.

Exit codes: 0 the map is sound, or there is none and no snapshot (a first start); 1 the map is bad and could not be
replaced (disk full, say), or could not be checked; 2 wrong usage; 3 the map was bad or gone and is rebuilt from the
snapshot; 4 it was bad, no snapshot is sound, and the map is empty now.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from gateway.store import generations, snapshot
from gateway.store.pages import Damage, Pages, Tree, read_meta
from gateway.store.record import StoreError, Summary, boot_id, decode_summary, digest_of, unseal
from gateway.store.tables import COMPLETE_KEY, COMPLETE_MARK, FOLLOWING, SUMMARY_KEY
from gateway.store.writer import new_generation

TRIES: Final = 20
"""How often a look at a map is begun again because it was written to meanwhile: each takes a fraction of a second."""

NOTHING_YET: Final = "nothing was written to it yet"

DATABASES: Final = (b"tenants", b"hosts", b"meta")


class Code(IntEnum):
    """How it ended: see the module."""

    SOUND = 0
    FAILED = 1
    REBUILT = 3
    EMPTIED = 4


class Outcome(NamedTuple):
    code: Code
    text: str


def inspect(data: Path, full: bool) -> Summary | None:
    """Hold a map file against itself; its summary, None when nothing was ever written to it. Raises Damage or OSError.

    Every page that can be reached, every record's checksum, the number of records; the digest over all of them with
    `full`, or when the machine was booted since the last commit (commits are not synced to disk).
    """
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            before = read_meta(fd).transaction
            damage: Damage | None = None
            summary: Summary | None = None
            try:
                summary = _inspect(Pages(fd), full)
            except Damage as error:
                damage = error
            # Pages of a commit are used again from the next but one on: only what stood still was seen whole.
            if read_meta(fd).transaction != before:
                continue
            if damage is not None:
                raise damage
            return summary
    finally:
        os.close(fd)
    raise OSError(f"{data}: it is written to without a pause and cannot be checked")


def _inspect(pages: Pages, full: bool) -> Summary | None:
    pages.check_free_list()
    databases = pages.databases()
    if not databases:
        return None
    if missing := [name for name in DATABASES if name not in databases]:
        raise Damage(f"database {missing[0].decode()} is missing")
    meta = _values(pages, databases[b"meta"])
    if not meta:
        return None
    try:
        summary = decode_summary(SUMMARY_KEY, meta.get(SUMMARY_KEY, b""))
    except StoreError as error:
        raise Damage(str(error)) from error
    if meta.get(COMPLETE_KEY) != COMPLETE_MARK:
        raise Damage("the completeness mark is damaged")
    if databases[b"tenants"].entries != summary.records:
        raise Damage(f"it has {databases[b'tenants'].entries} records and says {summary.records}")
    for name in (b"hosts", *FOLLOWING):
        if name in databases:  # the map of an older program has not all of them
            for _ in _records(pages, databases[name]):
                pass
    records = _records(pages, databases[b"tenants"])
    if full or summary.boot != boot_id():
        if digest_of(records) != summary.digest:
            raise Damage("its records are not those that were committed: the digest differs")
    else:
        for _ in records:
            pass
    return summary


def _values(pages: Pages, tree: Tree) -> dict[bytes, bytes]:
    """The few values of the meta database: the summary sealed, the mark unsealed."""
    found = {}
    for key, value, _ in pages.entries(tree):
        try:
            found[key] = value if key == SUMMARY_KEY else unseal(key, value)
        except StoreError as error:
            raise Damage(str(error)) from error
    return found


def _records(pages: Pages, tree: Tree) -> Iterator[bytes]:
    """What every record of a tree holds, each against its checksum. Raises Damage."""
    for key, value, _ in pages.entries(tree):
        try:
            yield unseal(key, value)
        except StoreError as error:
            raise Damage(str(error)) from error


def mend(state_dir: Path, full: bool = False) -> Outcome:
    """Check the map of `state_dir` and replace it if need be. Never raises for what is wrong with the map. Blocks."""
    directory = state_dir / "map"
    path = state_dir / snapshot.SNAPSHOT_FILE
    if not directory.exists() and not path.exists():
        return Outcome(Code.SOUND, "no map yet")
    try:
        with generations.locked(directory):
            return _mend(directory, path, full)
    except OSError as error:
        return Outcome(Code.FAILED, f"the map cannot be checked: {error}")


def _mend(directory: Path, path: Path, full: bool) -> Outcome:
    generation = generations.current(directory)
    data = generations.path_of(directory, generation) / generations.DATA_FILE
    try:
        if generation == 0:
            raise Damage("there is none")
        summary = inspect(data, full)
        if summary is not None:
            generations.remove_old(directory)
            return Outcome(Code.SOUND, f"the map is sound: {summary.records} records")
        why = NOTHING_YET
    except Damage as damage:
        why = str(damage)
    except FileNotFoundError:
        why = "its file is gone"
    try:
        content, at_ms = snapshot.read(path)
        from_where, code = f"rebuilt from the snapshot, {len(content.tenants)} records", Code.REBUILT
    except StoreError as error:
        if why == NOTHING_YET or (generation == 0 and not path.exists()):
            return Outcome(Code.SOUND, "no map yet")
        content, at_ms = None, 0
        from_where, code = f"empty now, since there is no snapshot either ({error})", Code.EMPTIED
    try:
        made = new_generation(directory, content=content, at_ms=at_ms)
    except (OSError, lmdb.Error) as error:
        # Nobody may map what would be the death of him: without the link there is no map, and that is a clear answer.
        if generation:
            (directory / generations.CURRENT).unlink(missing_ok=True)
        return Outcome(Code.FAILED, f"the map is bad ({why}) and cannot be replaced: {error}")
    if generation:
        generations.set_aside(directory, generation, why)
    generations.remove_old(directory)
    return Outcome(code, f"the map was bad ({why}): {from_where}, in {generations.path_of(directory, made)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Say one line of what was found, on standard error unless all is well; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gateway.store.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--full", action="store_true", help="compare the digest over all records in any case")
    options = parser.parse_args(arguments)
    outcome = mend(options.state_dir, options.full)
    print(outcome.text, file=sys.stdout if outcome.code is Code.SOUND else sys.stderr)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
