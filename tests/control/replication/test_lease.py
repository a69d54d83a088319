"""Who is at work: what a replicator believes of its lease, without a server."""

from __future__ import annotations

import random

from gateway.control.replication.lease import LOOK_S, RENEW_S, TTL_MS, Lease


def test_it_is_ours_from_when_we_asked_not_from_when_we_heard() -> None:
    lease = Lease("me")
    assert not lease.holds(0.0)
    lease.answered(100.0, granted=True)
    assert lease.holds(100.0 + TTL_MS / 1000 - 0.001)
    assert not lease.holds(100.0 + TTL_MS / 1000)
    assert lease.left_s(101.0) == TTL_MS / 1000 - 1


def test_a_refusal_and_a_write_that_was_not_taken_end_it_at_once() -> None:
    lease = Lease("me")
    lease.answered(100.0, granted=True)
    lease.answered(100.5, granted=False)
    assert not lease.holds(100.5)
    lease.answered(101.0, granted=True)
    lease.lost()
    assert not lease.holds(101.0)


def test_a_holder_renews_well_before_the_end_and_a_standby_looks_often() -> None:
    lease, rng = Lease("me"), random.Random(1)
    looks = [lease.pause_s(0.0, rng) for _ in range(100)]
    assert all(LOOK_S * 0.8 <= pause <= LOOK_S * 1.2 for pause in looks)
    assert len(set(looks)) > 50
    lease.answered(100.0, granted=True)
    assert lease.pause_s(100.0, rng) == RENEW_S
    assert lease.pause_s(102.0, rng) == 0.5  # late already: half of what is left


def test_a_holder_that_dies_is_replaced_within_five_seconds() -> None:
    assert TTL_MS / 1000 + LOOK_S * 1.2 < 5.0
    assert RENEW_S * 2 < TTL_MS / 1000, "two renewals may be late"
