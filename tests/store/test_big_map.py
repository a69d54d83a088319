"""Very many tenants: a worker's memory has a bound that does not grow with the map, and neither does a start's time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from bench.big_map import measure, placement, tenant
from gateway.core.bounded import Bounded
from gateway.core.placement import Placement
from gateway.proxy import worker
from gateway.store.record import decode_placement, encode_placement, key_of, seal
from tests.support.measured import hold

CACHES_MAX_MB = 32
"""Of the 64 that a worker may take; with nothing cached it takes some 20."""


def decoded(n: int) -> Placement:
    key = key_of(tenant(n))
    assert key is not None
    return decode_placement(key, seal(key, encode_placement(placement(n))))


def test_full_caches_stay_within_their_part_of_a_workers_memory() -> None:
    count = 2000
    placements: Bounded[str, Placement | None] = Bounded(count)
    owners: Bounded[str, str | None] = Bounded(count)
    decoded(0)
    tracemalloc.start()
    try:
        for n in range(count):
            placements.put("".join((tenant(n), "")), decoded(n))
        per_placement = tracemalloc.get_traced_memory()[0] / count
        for n in range(count):
            owners.put(f"shop-{n}.example.test", tenant(n))
        per_owner = tracemalloc.get_traced_memory()[0] / count - per_placement
    finally:
        tracemalloc.stop()
    assert per_placement > 300, "otherwise nothing was measured"
    full = worker.PLACEMENTS_MAX * per_placement + worker.HOSTS_MAX * per_owner
    assert full / 1e6 <= CACHES_MAX_MB, (per_placement, per_owner)


@pytest.mark.faults
def test_a_million_tenants(tmp_path: Path) -> None:
    found = measure(tmp_path, 1_000_000, 60_000)
    memory = next(value for name, value in found.items() if name.startswith("RssAnon after"))
    hold("1,000,000 tenants", "MB of RssAnon of a worker", memory, 64, "")
    for what in ("tenant", "host"):
        hold("1,000,000 tenants", f"us of a {what}'s look-up, cached, p99", found[f"{what} cached p99 us"], 1, "")
        hold("1,000,000 tenants", f"us of a {what}'s look-up, uncached, p99", found[f"{what} uncached p99 us"], 8, "")
    hold("1,000,000 tenants", "cold start to the first right answer", found["cold start median s"], 2)
