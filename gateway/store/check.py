"""`python -m gateway.store.check --state-dir D`: is the map on disk sound, and if not, make it so.

The supervisor runs it before the first children, with `--start`, and after one died of SIGBUS or SIGSEGV; control runs
it in the background. It needs no network and no configuration, and it never maps a file that it has not found sound. A
map that is not is left where it is, noted as bad, and a new generation is made of the snapshot; without a sound
snapshot the new generation is empty and not complete, until control has read its source.

A start must not wait for a walk over millions of records. So `--start` takes a large map for sound when the file has
its length, every tree has its branches and its number of leaves and records, and a sample of the leaves is right. Each
record is held against its checksum when it is read; and a process that dies of another leaf has the map walked whole
(`--start --whole`).

Exit codes: 0 the map is sound, or there is none and no snapshot (a first start); 1 the map is bad and could not be
replaced (disk full, say), or could not be checked; 2 wrong usage; 3 the map was bad or gone and is rebuilt from the
snapshot; 4 it was bad, no snapshot is sound, and the map is empty now; 5 it was bad and is gone, and control makes it
anew of the snapshot, which is too large to be waited for at a start.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import lmdb

from gateway.store import generations, snapshot
from gateway.store.making import Content, make
from gateway.store.pages import Damage, Pages, Tree
from gateway.store.record import DIGEST_MODULUS, StoreError, Summary, boot_id, decode_summary, record_hash, unseal
from gateway.store.tables import COMPLETE_KEY, COMPLETE_MARK, FOLLOWING, SUMMARY_KEY

TRIES: Final = 20
"""How often a look is begun again because the map was written to meanwhile: each takes a fraction of a second."""

PIECE_LEAVES: Final = 1000
"""So many leaves are read as one commit had them; half as many when it was overtaken, and so on."""

BACKGROUND_NICE: Final = 10
"""What a routine check is content with: requests go first."""

NOTHING_YET: Final = "nothing was written to it yet"

TENANTS: Final = b"tenants"
DATABASES: Final = (TENANTS, b"hosts", b"meta")

_T = TypeVar("_T")

WHOLE_RECORDS_MAX: Final = 100_000
"""Up to here a map is walked whole at a start too: it takes less than a second."""

LEAVES_MAX: Final = 500
"""Of each tree of a larger one: where a hundredth of the pages is scribbled over, one of them is met all but surely."""


class Code(IntEnum):
    """How it ended: see the module."""

    SOUND = 0
    FAILED = 1
    REBUILT = 3
    EMPTIED = 4
    LATER = 5


class Outcome(NamedTuple):
    code: Code
    text: str


def inspect(data: Path, full: bool, outline: bool = False) -> Summary | None:
    """Hold a map file against itself; its summary, None when nothing was ever written to it. Raises Damage or OSError.

    Every page that can be reached, every record's checksum, the number of records; the digest over all of them with
    `full`, or when the machine was booted since the last commit (commits are not synced to disk). With `outline` a
    large map's outline is enough, unless the machine was booted since.

    A map that is written to meanwhile is walked piece by piece, each as some commit had it. Then pieces, and not their
    sum, are what is checked: a small map is begun again until it stood still.
    """
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        summary = None
        for _ in range(TRIES):
            transaction, head = _at_rest(fd, _head)
            if head is None:
                return None
            summary = head.summary
            compares = full or summary.boot != boot_id()
            if outline and not compares and summary.records > WHOLE_RECORDS_MAX:
                _at_rest(fd, _outline)
                break
            walk = Walk(fd, compares)
            for name in head.databases:
                walk.tree(name)
            stood_still = walk.transactions <= {transaction}
            if stood_still and compares and walk.digest % DIGEST_MODULUS != summary.digest:
                raise Damage("its records are not those that were committed: the digest differs")
            if stood_still or summary.records > WHOLE_RECORDS_MAX:
                break
        return summary
    finally:
        os.close(fd)


def _at_rest(fd: int, look: Callable[[Pages], _T]) -> tuple[int, _T]:
    """The transaction that was looked at, and what was found there. Raises Damage or OSError."""
    for _ in range(TRIES):
        pages = Pages(fd)
        try:
            found: _T | Damage = look(pages)
        except Damage as damage:
            found = damage
        if pages.is_current():
            if isinstance(found, Damage):
                raise found
            return pages.meta.transaction, found
    raise OSError("it is written to without a pause and cannot be checked")


class Head(NamedTuple):
    """What a map says of itself, and the databases that are to be walked."""

    summary: Summary
    databases: tuple[bytes, ...]


def _head(pages: Pages) -> Head | None:
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
    if meta.get(COMPLETE_KEY) not in (COMPLETE_MARK, None):
        raise Damage("the completeness mark is damaged")
    if databases[b"tenants"].entries != summary.records:
        raise Damage(f"it has {databases[b'tenants'].entries} records and says {summary.records}")
    # The map of an older program has not all of them.
    return Head(summary, tuple(name for name in (TENANTS, b"hosts", *FOLLOWING) if name in databases))


def _outline(pages: Pages) -> None:
    for name, tree in pages.databases().items():
        if name != b"meta":
            for _ in _records(pages.outline(tree, LEAVES_MAX)):
                pass


class Walk:
    """Over every record of a map: `transactions` are those that were met, `digest` the plain sum over the tenants."""

    def __init__(self, fd: int, compares: bool) -> None:
        self.transactions: set[int] = set()
        self.digest = 0
        self._fd = fd
        self._compares = compares

    def tree(self, name: bytes) -> None:
        """Walk one database. Raises Damage, and OSError when it is written to faster than a page can be read."""
        after, size, tries = b"", PIECE_LEAVES, 0
        entries = leaves = 0
        before = set(self.transactions)
        while True:
            pages = Pages(self._fd)
            found: Piece | Damage
            try:
                found = self._piece(pages, name, after, size)
            except Damage as damage:
                found = damage
            if not pages.is_current():
                size, tries = max(1, size // 2), tries + 1
                if tries > TRIES:
                    raise OSError("it is written to without a pause and cannot be checked")
                continue
            if isinstance(found, Damage):
                raise found
            tries = 0
            self.transactions.add(pages.meta.transaction)
            self.digest += found.digest
            entries, leaves, after = entries + found.entries, leaves + found.leaves, found.last
            if found.leaves < size:
                break
        tree = pages.databases()[name]
        if self.transactions - before <= {pages.meta.transaction} and (entries, leaves) != (tree.entries, tree.leaves):
            raise Damage(f"a tree of {tree.entries} entries has {entries}")

    def _piece(self, pages: Pages, name: bytes, after: bytes, size: int) -> Piece:
        tree = pages.databases().get(name)
        if tree is None:
            raise Damage(f"database {name.decode()} is missing")
        entries = leaves = digest = 0
        for leaf in islice(pages.leaves(tree, after), size):
            leaves += 1
            entries += len(leaf)
            for payload in _records(leaf):
                if self._compares and name == TENANTS:
                    digest += record_hash(payload)
            after = leaf[-1][0] if leaf else after
        return Piece(entries, leaves, digest, after)


class Piece(NamedTuple):
    """Some leaves of a tree, one after the other; `last` is the last key in them."""

    entries: int
    leaves: int
    digest: int
    last: bytes


def _values(pages: Pages, tree: Tree) -> dict[bytes, bytes]:
    """The few values of the meta database: the summary sealed, the mark unsealed."""
    found = {}
    for key, value, _ in pages.entries(tree):
        try:
            found[key] = value if key == SUMMARY_KEY else unseal(key, value)
        except StoreError as error:
            raise Damage(str(error)) from error
    return found


def _records(entries: Iterable[tuple[bytes, bytes, int]]) -> Iterator[bytes]:
    """What each of these records holds, against its checksum. Raises Damage."""
    for key, value, _ in entries:
        try:
            yield unseal(key, value)
        except StoreError as error:
            raise Damage(str(error)) from error


def mend(state_dir: Path, full: bool = False, start: bool = False, whole: bool = False) -> Outcome:
    """Check the map of `state_dir` and replace it if need be. Never raises for what is wrong with the map. Blocks.

    With `start` somebody waits: a large map's outline is enough, but for `whole`, and is made anew later.
    """
    directory = state_dir / "map"
    path = state_dir / snapshot.SNAPSHOT_FILE
    if not directory.exists() and not path.exists():
        return Outcome(Code.SOUND, "no map yet")
    try:
        with generations.locked(directory):
            return _mend(directory, path, full, start, start and not whole)
    except OSError as error:
        return Outcome(Code.FAILED, f"the map cannot be checked: {error}")


def _mend(directory: Path, path: Path, full: bool, start: bool, outline: bool) -> Outcome:
    generation = generations.current(directory)
    data = generations.path_of(directory, generation) / generations.DATA_FILE
    try:
        if generation == 0:
            raise Damage("there is none")
        summary = inspect(data, full, outline)
        if summary is not None:
            generations.remove_old(directory)
            return Outcome(Code.SOUND, f"the map is sound: {summary.records} records")
        why = NOTHING_YET
    except Damage as damage:
        why = str(damage)
    except FileNotFoundError:
        why = "its file is gone"
    content: Content | None = None
    try:
        content = snapshot.content_of(path)
        records = content.summary.records
        from_where, code = f"rebuilt from the snapshot, {records} records", Code.REBUILT
        if start and records > WHOLE_RECORDS_MAX:
            if generation:
                _drop(directory, generation, why)
            return Outcome(
                Code.LATER, f"the map is bad ({why}): control rebuilds it from the snapshot, {records} records"
            )
    except StoreError as error:
        if why == NOTHING_YET or (generation == 0 and not path.exists()):
            return Outcome(Code.SOUND, "no map yet")
        from_where, code = f"empty now, since there is no snapshot either ({error})", Code.EMPTIED
    try:
        made = make(directory, content=content)
    except (OSError, lmdb.Error, StoreError) as error:
        # Nobody may map what would be the death of him: without the link there is no map, and that is a clear answer.
        if generation:
            (directory / generations.CURRENT).unlink(missing_ok=True)
        return Outcome(Code.FAILED, f"the map is bad ({why}) and cannot be replaced: {error}")
    if generation:
        generations.set_aside(directory, generation, why)
    generations.remove_old(directory)
    return Outcome(code, f"the map was bad ({why}): {from_where}, in {generations.path_of(directory, made)}")


def _drop(directory: Path, generation: int, why: str) -> None:
    """Let a bad generation count no more, with none in its place: there is no map, and that is a clear answer."""
    generations.set_aside(directory, generation, why)
    (directory / generations.CURRENT).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Say one line of what was found, on standard error unless all is well; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gateway.store.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--full", action="store_true", help="compare the digest over all records in any case")
    parser.add_argument("--gentle", action="store_true", help="leave the processor to others")
    parser.add_argument("--start", action="store_true", help="take a large map for sound by its outline; mend it later")
    parser.add_argument("--whole", action="store_true", help="with --start: walk a large map whole all the same")
    options = parser.parse_args(arguments)
    if options.gentle:
        os.nice(BACKGROUND_NICE)
    outcome = mend(options.state_dir, options.full, options.start, options.whole)
    print(outcome.text, file=sys.stdout if outcome.code is Code.SOUND else sys.stderr)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
