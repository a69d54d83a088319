"""LMDB's file as data: read with plain reads, believed in nothing, never mapped.

A library that maps a truncated or scribbled file dies of SIGBUS or SIGSEGV, and so would whoever checks it that way.
This walks every page that the last commit can reach (LMDB 0.9's format on a 64-bit little-endian machine: `mdb.c`,
"Page headers", "Nodes", "Meta pages") and holds each offset against its bounds first. Whatever it meets, it raises
Damage or returns; it never writes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

MAGIC: Final = 0xBEEFC0DE
VERSION: Final = 1
NO_PAGE: Final = (1 << 64) - 1
PAGE_SIZES: Final = (4096, 8192, 16384, 32768, 65536)

HEADER: Final = struct.Struct("<QHHHH")
"""Number, padding, flags, end of the pointers, start of the nodes; of an overflow page the last two are its length."""
META: Final = struct.Struct("<IIQQ")
TREE: Final = struct.Struct("<IHHQQQQQ")
"""Padding (of the free list: the page size), flags, depth, branch, leaf and overflow pages, entries, root."""
TAIL: Final = struct.Struct("<QQ")
NODE: Final = struct.Struct("<HHHH")

BRANCH: Final = 0x01
LEAF: Final = 0x02
OVERFLOW: Final = 0x04
IS_META: Final = 0x08

BIG: Final = 0x01
SUBTREE: Final = 0x02

DEPTH_MAX: Final = 32
"""LMDB's own bound of a cursor's stack."""

KEY_MAX: Final = 511


class Damage(Exception):
    """The file is not what LMDB left there; the message says where."""


class Tree(NamedTuple):
    """One database's root: what it says of its own size."""

    padding: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


@dataclass(frozen=True, slots=True)
class Meta:
    """One of the two meta pages."""

    page_bytes: int
    free: Tree
    main: Tree
    last_page: int
    transaction: int


def read_meta(fd: int) -> Meta:
    """The newer meta page of an LMDB file. Both have to be sound: LMDB opens no file otherwise. Raises Damage."""
    first = _meta(os.pread(fd, PAGE_SIZES[0], 0), 0)
    second = _meta(os.pread(fd, PAGE_SIZES[0], first.page_bytes), 1)
    if first.page_bytes != second.page_bytes:
        raise Damage("the two meta pages differ in page size")
    return second if second.transaction > first.transaction else first


def _meta(data: bytes, number: int) -> Meta:
    end = HEADER.size + META.size + 2 * TREE.size + TAIL.size
    if len(data) < end:
        raise Damage(f"the file ends within meta page {number}")
    _, _, flags, _, _ = HEADER.unpack_from(data)
    magic, version, _, _ = META.unpack_from(data, HEADER.size)
    if not flags & IS_META or magic != MAGIC or version & 0xFFFF != VERSION:
        raise Damage(f"meta page {number} is none")
    free = Tree(*TREE.unpack_from(data, HEADER.size + META.size))
    main = Tree(*TREE.unpack_from(data, HEADER.size + META.size + TREE.size))
    last_page, transaction = TAIL.unpack_from(data, end - TAIL.size)
    if free.padding not in PAGE_SIZES or last_page < 1:
        raise Damage(f"meta page {number} makes no sense")
    return Meta(free.padding, free, main, last_page, transaction)


def is_whole(fd: int) -> bool:
    """Whether the meta pages are sound and every page they count is in the file: opening it cannot end in SIGBUS."""
    try:
        meta = read_meta(fd)
        return os.fstat(fd).st_size >= (meta.last_page + 1) * meta.page_bytes
    except (Damage, OSError):
        return False


class Pages:
    """The pages of one commit. Iterating over a tree checks everything on the way to its entries."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.meta = read_meta(fd)
        self.page_bytes = self.meta.page_bytes
        self._bytes = os.fstat(fd).st_size  # of a file that only grows: what this commit reaches was written before it

    def databases(self) -> dict[bytes, Tree]:
        """The named databases. Raises Damage."""
        found = {}
        for key, value, flags in self.entries(self.meta.main):
            if not flags & SUBTREE or len(value) != TREE.size:
                raise Damage(f"database {key!r} has no root")
            found[key] = Tree(*TREE.unpack(value))
        return found

    def check_free_list(self) -> None:
        """Hold the list of free pages against its bounds: the next commit will write to those pages. Raises Damage."""
        for key, value, _ in self.entries(self.meta.free, numbers=True):
            count = int.from_bytes(value[:8], "little")
            if len(key) != 8 or len(value) % 8 or (count + 1) * 8 > len(value):
                raise Damage("the list of free pages makes no sense")
            pages = struct.unpack_from(f"<{count}Q", value, 8)
            if pages and (max(pages) > self.meta.last_page or min(pages) < 2):
                raise Damage("the list of free pages names pages that are none")

    def entries(self, tree: Tree, *, numbers: bool = False) -> Iterator[tuple[bytes, bytes, int]]:
        """(key, value, node flags) in order. `numbers`: keys are integers of this machine. Raises Damage."""
        if tree.root == NO_PAGE:
            if tree.entries:
                raise Damage(f"a tree of {tree.entries} entries has no root")
            return
        if not 1 <= tree.depth <= DEPTH_MAX:
            raise Damage(f"a tree {tree.depth} levels deep")
        branches = leaves = entries = 0
        last: bytes | int | None = None
        stack = [(tree.root, 1)]
        while stack:
            number, level = stack.pop()
            page = self._page(number)
            if level < tree.depth:
                branches += 1
                children = self._branch(page, number)
                if len(stack) + len(children) > tree.branches + tree.leaves:
                    raise Damage(f"page {number} has more children than its tree has pages")
                stack.extend((child, level + 1) for child in reversed(children))
            else:
                leaves += 1
                for key, value, flags in self._leaf(page, number):
                    order = int.from_bytes(key, "little") if numbers else key
                    if last is not None and order <= last:  # type: ignore[operator]
                        raise Damage(f"page {number}: keys out of order")
                    last = order
                    entries += 1
                    yield key, value, flags
            if branches > tree.branches or leaves > tree.leaves:
                raise Damage(f"page {number}: the tree has more pages than it says")
        if (branches, leaves, entries) != (tree.branches, tree.leaves, tree.entries):
            raise Damage(f"a tree of {tree.entries} entries has {entries}")

    def is_current(self) -> bool:
        """Whether what was read of this commit was its own: pages that the next commit frees the one after may use."""
        return read_meta(self.fd).transaction <= self.meta.transaction + 1

    def leaves(self, tree: Tree, after: bytes) -> Iterator[list[tuple[bytes, bytes, int]]]:
        """The entries of each leaf with keys above `after`, in order. Raises Damage; what a tree counts is not held."""
        if tree.root == NO_PAGE:
            return
        if not 1 <= tree.depth <= DEPTH_MAX:
            raise Damage(f"a tree {tree.depth} levels deep")
        last, reached = b"", False
        stack = [(tree.root, 1)]
        while stack:
            number, level = stack.pop()
            page = self._page(number)
            if level < tree.depth:
                children = self._branch(page, number)
                if not reached:
                    children = children[self._way_to(page, number, after) :]
                if len(stack) + len(children) > tree.branches + tree.leaves:
                    raise Damage(f"page {number} has more children than its tree has pages")
                stack.extend((child, level + 1) for child in reversed(children))
                continue
            entries = list(self._leaf(page, number))
            for key, _, _ in entries:
                if key <= last:
                    raise Damage(f"page {number}: keys out of order")
                last = key
            if not reached:
                reached = True
                entries = [entry for entry in entries if entry[0] > after]
            if entries:
                yield entries

    def _way_to(self, page: bytes, number: int, key: bytes) -> int:
        """Which child of a branch holds `key`, or would. The first one's own key means nothing."""
        found = 0
        for index, at in enumerate(self._nodes(page, number, BRANCH)):
            key_bytes = NODE.unpack_from(page, at)[3]
            if index and page[at + NODE.size : at + NODE.size + key_bytes] > key:
                break
            found = index
        return found

    def outline(self, tree: Tree, leaves_max: int) -> Iterator[tuple[bytes, bytes, int]]:
        """All branches of a tree and, evenly spread, at most `leaves_max` of its leaves: their entries. Raises Damage.

        For a tree that is too large to be walked whole: every leaf is at least counted, and is a page of the file.
        """
        if tree.root == NO_PAGE or tree.leaves <= leaves_max:
            yield from self.entries(tree)
            return
        if not 1 <= tree.depth <= DEPTH_MAX:
            raise Damage(f"a tree {tree.depth} levels deep")
        branches, level = 0, [tree.root]
        for _ in range(tree.depth - 1):
            below: list[int] = []
            for number in level:
                below += self._branch(self._page(number), number)
                branches += 1
                if branches > tree.branches or len(below) > tree.branches + tree.leaves:
                    raise Damage(f"page {number}: the tree has more pages than it says")
            level = below
        if (branches, len(level)) != (tree.branches, tree.leaves):
            raise Damage(f"a tree of {tree.branches} and {tree.leaves} pages has {branches} and {len(level)}")
        if min(level) < 2 or max(level) > self.meta.last_page:
            raise Damage("a leaf is none of the pages that there are")
        step = -(-len(level) // leaves_max)
        for number in level[::step]:
            yield from self._leaf(self._page(number), number)

    def _read(self, number: int, pages: int = 1) -> bytes:
        if not 2 <= number <= self.meta.last_page or pages > self.meta.last_page + 1 - number:
            raise Damage(f"page {number} is none of the {self.meta.last_page + 1} that there are")
        if (number + pages) * self.page_bytes > self._bytes:
            raise Damage(f"the file ends before page {number + pages - 1} of {self.meta.last_page + 1}")
        data = os.pread(self.fd, pages * self.page_bytes, number * self.page_bytes)
        if len(data) < pages * self.page_bytes or int.from_bytes(data[:8], "little") != number:
            raise Damage(f"page {number} is not where it belongs")
        return data

    def _page(self, number: int) -> bytes:
        return self._read(number)

    def _nodes(self, page: bytes, number: int, kind: int) -> tuple[int, ...]:
        """Where the nodes of a page begin, each within bounds."""
        _, _, flags, lower, upper = HEADER.unpack_from(page)
        if flags & 0xFF != kind or not HEADER.size <= lower <= upper <= len(page) or lower % 2:
            raise Damage(f"page {number}: a header that makes no sense")
        nodes = struct.unpack_from(f"<{(lower - HEADER.size) // 2}H", page, HEADER.size)
        if not nodes or min(nodes) < upper or max(nodes) > len(page) - NODE.size:
            raise Damage(f"page {number}: a node out of bounds")
        return nodes

    def _branch(self, page: bytes, number: int) -> list[int]:
        children = []
        for at in self._nodes(page, number, BRANCH):
            low, high, top, key_bytes = NODE.unpack_from(page, at)
            if key_bytes > KEY_MAX or at + NODE.size + key_bytes > len(page):
                raise Damage(f"page {number}: a key out of bounds")
            children.append(low | high << 16 | top << 32)
        return children

    def _leaf(self, page: bytes, number: int) -> Iterator[tuple[bytes, bytes, int]]:
        for at in self._nodes(page, number, LEAF):
            low, high, flags, key_bytes = NODE.unpack_from(page, at)
            begin = at + NODE.size + key_bytes
            value_bytes = low | high << 16
            end = begin + (8 if flags & BIG else value_bytes)
            if not 1 <= key_bytes <= KEY_MAX or end > len(page) or flags & ~(BIG | SUBTREE):
                raise Damage(f"page {number}: a node out of bounds")
            key = page[at + NODE.size : begin]
            value = page[begin:end]
            yield key, self._big(int.from_bytes(value, "little"), value_bytes) if flags & BIG else value, flags

    def _big(self, number: int, value_bytes: int) -> bytes:
        """A value that has pages of its own."""
        pages = (HEADER.size + value_bytes + self.page_bytes - 1) // self.page_bytes
        data = self._read(number, pages)
        _, _, flags, low, high = HEADER.unpack_from(data)
        if flags & 0xFF != OVERFLOW or low | high << 16 != pages:
            raise Damage(f"page {number}: a long value that makes no sense")
        return data[HEADER.size : HEADER.size + value_bytes]
