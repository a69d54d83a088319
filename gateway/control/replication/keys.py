"""The names of everything that the replicated map keeps in a region's Redis: one hash tag, so one slot of a cluster."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "{landbridge}:"

TENANTS: Final = PREFIX + "tenants"
"""Hash: tenant to value (core/replication.py)."""
LOG: Final = PREFIX + "log"
"""Stream of what was written in this region, ids `<seq>-0`; peers follow it. Fields i (tenant) and v (value)."""
FEED: Final = PREFIX + "feed"
"""Stream of what was applied in this region, ids `<seq>-0`; its gateways follow it. Fields i, v and o (origin)."""
META: Final = PREFIX + "meta"
"""Hash: region, run, log_id, log_seq, feed_seq, hlc, complete."""
OFFSETS: Final = PREFIX + "offsets"
"""Hash: peer to `log_id seq`."""
DIGEST: Final = PREFIX + "digest"
"""Hash: first two hex digits of a sum to the exclusive or of all sums that begin so."""
DEAD: Final = PREFIX + "dead"
"""Hash: tenant to a dead letter, as JSON."""
GATEWAYS: Final = PREFIX + "gateways"
"""Hash: `region/id` to `<seen ms> <JSON>`."""
REPLICATION: Final = PREFIX + "replication"
"""Hash: peer to the replicator's state for it, as JSON."""
LEASE: Final = PREFIX + "lease"
"""String that expires: the token of the replicator that may write."""
SWITCHES: Final = PREFIX + "switches"
"""Hash: name of a region-wide switch to `<when it was set in ms> <JSON>`."""
HISTORY: Final = PREFIX + "history:"
"""With a tenant's id behind it: a list of values that were replaced or lost, newest first."""
