"""The loss guard: which change removes too much to be a wish, and how an operator says that it is one.

A change that waits is described in `state_dir/map.pending`; `landbridge map confirm` leaves its name in
`state_dir/map.confirmed`, which control watches. The name is a digest over what is removed and over both maps: it
confirms this change and no other. Who may write to `state_dir` (mode 0700) is the gateway's own user.
"""

from __future__ import annotations

import contextlib
from collections.abc import Set
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gateway.store.whole import write_whole

PENDING_FILE: Final = "map.pending"
CONFIRMED_FILE: Final = "map.confirmed"

LOSS_MIN: Final = 10
"""Fewer tenants than this may always go (unless they are all there are): small maps change by large fractions."""

NAMED_MAX: Final = 20
"""How many of the tenants are named to the operator: enough to see what kind of change it is."""

T = TypeVar("T", str, bytes)


class Pending(msgspec.Struct, frozen=True):
    """A change that waits: it removes `removed` of `known` tenants, `first` among them, and leaves `records`.

    `file` is where it would come from: the tenants file, or the Redis by its URL without a password.
    """

    change: str
    file: str
    removed: int
    known: int
    records: int
    first: tuple[str, ...]
    since_ms: int


class Confirmation(msgspec.Struct, frozen=True):
    """`change` is meant; with `restore` it is not, and what is missing is to be written back."""

    change: str
    restore: bool = False


def loss(before: Set[T], after: Set[T], fraction: float) -> int:
    """How many tenants the change from ids to ids removes, if that is too many; else 0.

    Too many is all of them, or more than `fraction` of them and at least `LOSS_MIN` (DESIGN 5.1, `loss_guard`).
    """
    removed = sum(one not in after for one in before)  # one at a time: a set operation on 100,000 stalls every thread
    return removed if too_many(removed, len(before), fraction) else 0


def too_many(removed: int, known: int, fraction: float) -> bool:
    """Whether the loss of `removed` out of `known` has to be confirmed."""
    return removed > 0 and (removed == known or (removed >= LOSS_MIN and removed > fraction * known))


def tell(state_dir: Path, pending: Pending) -> None:
    """Describe the change that waits. Raises OSError."""
    write_whole(state_dir / PENDING_FILE, msgspec.json.encode(pending))


def waiting(state_dir: Path) -> Pending | None:
    """The change that waits for an operator, if one does."""
    try:
        return msgspec.json.decode((state_dir / PENDING_FILE).read_bytes(), type=Pending)
    except (OSError, msgspec.MsgspecError):
        return None


def confirm(state_dir: Path, change: str, *, restore: bool = False) -> None:
    """Say that `change` is meant, or with `restore` that it is not. Raises OSError."""
    write_whole(state_dir / CONFIRMED_FILE, msgspec.json.encode(Confirmation(change, restore)))


def confirmed(state_dir: Path) -> Confirmation | None:
    """What an operator said of a change, if one did."""
    try:
        return msgspec.json.decode((state_dir / CONFIRMED_FILE).read_bytes(), type=Confirmation)
    except (OSError, msgspec.MsgspecError):
        return None


def forget(state_dir: Path) -> None:
    """Nothing waits any more, and what was confirmed is done or void."""
    for name in (PENDING_FILE, CONFIRMED_FILE):
        with contextlib.suppress(OSError):
            (state_dir / name).unlink()
