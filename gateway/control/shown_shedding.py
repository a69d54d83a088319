"""What load is shed, as the admin API shows it: read from workers' mapped files, as a scrape is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.bus.stats import read_series
from gateway.control import admin_answers as answers
from gateway.control.facts import Facts
from gateway.control.metrics import STATS_FILES

SHED: Final = "landbridge_shed_total"
SHADOW: Final = "landbridge_shed_shadow_total"
STATE: Final = "shedding"
"""What workers write for this alone: by cluster, worker and what."""


def shedding(facts: Facts) -> answers.Shedding:
    """Blocks for some milliseconds: a thread is its place."""
    rules = facts.settings.shedding
    series = read_series(sorted((Path(facts.state_dir) / "stats").glob(STATS_FILES)))
    states: dict[tuple[str, str], dict[str, int]] = {}
    counts: list[answers.Shed] = []
    for (name, labels), value in series.items():
        by = dict(labels)
        if name == STATE:
            states.setdefault((by["cluster"], by["worker"]), {})[by["what"]] = value
        elif name in (SHED, SHADOW) and value:
            counts.append(
                answers.Shed(priority=by["class"], reason=by["reason"], requests=value, shadow=name == SHADOW)
            )
    return answers.Shedding(
        on=rules is not None,
        shadow=rules is not None and rules.shadow,
        clusters=[
            answers.Concurrency(
                cluster=cluster,
                worker=int(worker),
                limit=state.get("limit", 0),
                in_hand=state.get("in_hand", 0),
                latency_ms=state.get("latency_us", 0) / 1000,
                unqueued_ms=state.get("unqueued_us", 0) / 1000,
            )
            for (cluster, worker), state in sorted(states.items())
            if state.get("limit")
        ],
        shed=sorted(counts, key=lambda one: (one.shadow, -one.requests)),
    )
