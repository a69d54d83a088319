"""Every metric's name, kind, help and labels in one table.

`docs/metrics.md` is made from it, and a test holds them together. `scrape` renders values by it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One row. `labels` are in the order in which they are shown."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_ROWS: Final = (
    Metric(
        "landbridge_requests_total",
        Kind.COUNTER,
        "Requests that were answered, by where they came from (client, hop), decision and class of status",
        ("from", "decision", "code_class"),
    ),
    Metric(
        "landbridge_request_seconds",
        Kind.HISTOGRAM,
        "From a request's first byte to its response's last, by decision",
        ("decision",),
    ),
    Metric(
        "landbridge_upstream_seconds",
        Kind.HISTOGRAM,
        "From a request sent upstream to the head of its response, by cluster",
        ("cluster",),
    ),
    Metric(
        "landbridge_upstream_requests_total",
        Kind.COUNTER,
        "Requests sent upstream, by cluster and outcome (a class of status, or how it failed)",
        ("cluster", "outcome"),
    ),
    Metric(
        "landbridge_retries_total",
        Kind.COUNTER,
        "Tries after a failed one (outcome retried), and requests that such a try got an answer for (recovered)",
        ("cluster", "outcome"),
    ),
    Metric(
        "landbridge_not_retried_total",
        Kind.COUNTER,
        "Failed tries that no other followed, by cluster and reason (layer, method, body, attempts, deadline, budget, "
        "started, status, breaker, malformed)",
        ("cluster", "reason"),
    ),
    Metric(
        "landbridge_breaker_state",
        Kind.GAUGE,
        "Of a cluster's breaker (no endpoint), the worst of all workers: 0 closed, 1 open, 2 half open, 3 ramping, "
        "4 forced open, 5 forced closed; of an endpoint, 1 while some worker leaves it out",
        ("cluster", "endpoint"),
    ),
    Metric(
        "landbridge_breaker_tenants",
        Kind.GAUGE,
        "Tenants with a breaker of their own that is not closed in some worker, by cluster",
        ("cluster",),
    ),
    Metric(
        "landbridge_breaker_turns_total",
        Kind.COUNTER,
        "Changes of breakers in workers, by cluster, scope (cluster, tenant) and the state that they came to",
        ("cluster", "scope", "state"),
    ),
    Metric(
        "landbridge_breaker_refused_total",
        Kind.COUNTER,
        "Tries that a breaker refused, by cluster and scope (cluster, tenant)",
        ("cluster", "scope"),
    ),
    Metric(
        "landbridge_ejections_total",
        Kind.COUNTER,
        "Endpoints that a worker left out for their errors, by cluster",
        ("cluster",),
    ),
    Metric(
        "landbridge_endpoint_up",
        Kind.GAUGE,
        "1 while an endpoint may get new requests",
        ("cluster", "endpoint"),
    ),
    Metric(
        "landbridge_dns_lookups_total",
        Kind.COUNTER,
        "Questions to name servers for `dns://` and `srv://` endpoints, by result (found, nxdomain, servfail, timeout, "
        "empty, failed): all but found leave the last good answer in place",
        ("result",),
    ),
    Metric(
        "landbridge_dns_failing",
        Kind.GAUGE,
        "1 while a `dns://` or `srv://` endpoint lives on its last good answer, or has none",
        ("endpoint",),
    ),
    Metric(
        "landbridge_dns_age_seconds",
        Kind.GAUGE,
        "Time since name servers last knew a `dns://` or `srv://` endpoint; no series before they did once",
        ("endpoint",),
    ),
    Metric("landbridge_cluster_able", Kind.GAUGE, "1 while a cluster can serve", ("cluster",)),
    Metric(
        "landbridge_cluster_share",
        Kind.GAUGE,
        "Share of the clients with another region to go to that a cluster takes: below 1 coming back, 0 while drained",
        ("cluster",),
    ),
    Metric(
        "landbridge_region_switch",
        Kind.GAUGE,
        "Region-wide switches: 1 while failover-mode or drain is on, the limit of max-traffic (0 without one)",
        ("switch",),
    ),
    Metric(
        "landbridge_max_traffic_refused_total",
        Kind.COUNTER,
        "Requests refused by max-traffic, of tenants at home here or of those that this region stands by for",
        ("of",),
    ),
    Metric(
        "landbridge_gateways_seen",
        Kind.GAUGE,
        "Gateways that this one shares its region's limits with, itself among them",
    ),
    Metric(
        "landbridge_shares_age_seconds",
        Kind.GAUGE,
        "Time since the region's Redis last said how limits are shared out; beyond 30 s shares drift to equal ones",
    ),
    Metric(
        "landbridge_throttled_total",
        Kind.COUNTER,
        "Requests that a limit had no room for, by scope (client, tenant, route, gateway), limit (rate, concurrency) "
        "and outcome (refused; shadow: let through all the same)",
        ("scope", "limit", "outcome"),
    ),
    Metric(
        "landbridge_hops_total",
        Kind.COUNTER,
        "Requests carried to another region, by region and outcome (served, redirected, unavailable, refused, loop, "
        "error)",
        ("peer", "outcome"),
    ),
    Metric(
        "landbridge_address_denied_total",
        Kind.COUNTER,
        "Requests refused by an address list, by whose it is (route, tenant)",
        ("scope",),
    ),
    Metric(
        "landbridge_tokens_total",
        Kind.COUNTER,
        "Tokens that named a tenant, by outcome: cached (verified before), valid, refused (401), unavailable (503: no "
        "key to judge by), shed (503: too many at once that were not seen before)",
        ("outcome",),
    ),
    Metric(
        "landbridge_token_keys_fetches_total",
        Kind.COUNTER,
        "Questions to where tokens' keys are, by result: applied, failed, absent (there is no such key)",
        ("result",),
    ),
    Metric(
        "landbridge_token_keys_failing",
        Kind.GAUGE,
        "1 while a source of tokens' keys cannot be asked: its last good answer stands",
        ("source",),
    ),
    Metric(
        "landbridge_token_keys_age_seconds",
        Kind.GAUGE,
        "Time since a source of tokens' keys gave a good answer; no series before it did once",
        ("source",),
    ),
    Metric(
        "landbridge_hop_rejected_total",
        Kind.COUNTER,
        "Requests on listen.hop without a valid hop, by reason (missing, form, key, clock, destination)",
        ("reason",),
    ),
    Metric(
        "landbridge_peer_able",
        Kind.GAUGE,
        "1 while another region's cluster is known to be able to serve",
        ("peer", "cluster"),
    ),
    Metric(
        "landbridge_peer_share",
        Kind.GAUGE,
        "As landbridge_cluster_share, of another region's cluster that is able",
        ("peer", "cluster"),
    ),
    Metric(
        "landbridge_peer_skew_seconds",
        Kind.GAUGE,
        "How far another region's clock is ahead of ours",
        ("peer",),
    ),
    Metric(
        "landbridge_shed_total",
        Kind.COUNTER,
        "Requests answered 503 `shed`, by class (critical, default, bulk; none: a connection whose request was not "
        "read) and reason (limit: the application's, share: above the tenant's, worker: no time left, connections: "
        "too many)",
        ("class", "reason"),
    ),
    Metric(
        "landbridge_shed_shadow_total",
        Kind.COUNTER,
        "Requests that would have been shed but for `shedding.shadow`",
        ("class", "reason"),
    ),
    Metric(
        "landbridge_concurrency",
        Kind.GAUGE,
        "Requests that a cluster has in hand, while shedding is on: whole requests that wait for an answer's head",
        ("cluster",),
    ),
    Metric(
        "landbridge_concurrency_limit",
        Kind.GAUGE,
        "Requests that a cluster may have in hand, over all workers: follows its latency",
        ("cluster",),
    ),
    Metric(
        "landbridge_worker_lag_seconds",
        Kind.HISTOGRAM,
        "How late workers' event loops come to a tick, while shedding is on: a steady 25 ms is a worker's overload",
    ),
    Metric("landbridge_overrides", Kind.GAUGE, "Tenants for which another region's word stands above the map"),
    Metric(
        "landbridge_tenant_requests_total",
        Kind.COUNTER,
        "Requests by tenant: the first telemetry.tenants of each worker have a series, the rest are `other`",
        ("tenant",),
    ),
    Metric("landbridge_map_records", Kind.GAUGE, "Records in the tenant map"),
    Metric("landbridge_map_age_seconds", Kind.GAUGE, "Time since the tenant map was last known to be current"),
    Metric("landbridge_map_stale", Kind.GAUGE, "1 while the tenant map's source cannot be read"),
    Metric(
        "landbridge_map_behind_total",
        Kind.COUNTER,
        "Hops that were served by a newer record than ours: this region's map is behind",
    ),
    Metric(
        "landbridge_map_differs_total",
        Kind.COUNTER,
        "Hops whose record has our version and other content: two regions' maps differ",
    ),
    Metric(
        "landbridge_map_loss_guard_pending",
        Kind.GAUGE,
        "1 while a change that removes too many tenants waits for `landbridge map confirm`",
    ),
    Metric(
        "landbridge_map_retries_total",
        Kind.COUNTER,
        "Tries of the replicator that failed, at its own Redis or a peer's, and were made again",
    ),
    Metric(
        "landbridge_map_applied_total",
        Kind.COUNTER,
        "Records of a peer that became the current ones here",
        ("peer",),
    ),
    Metric(
        "landbridge_map_conflicts_total",
        Kind.COUNTER,
        "Records of a peer that knew nothing of ours, nor ours of them: the greater version won, history has the other",
    ),
    Metric(
        "landbridge_map_resyncs_total",
        Kind.COUNTER,
        "Whole comparisons of our map with a peer's, because its log could not be followed from where we were",
        ("peer",),
    ),
    Metric(
        "landbridge_map_bad_values_total",
        Kind.COUNTER,
        "Values of a peer that are no records: not taken in, kept as dead letters",
        ("peer",),
    ),
    Metric(
        "landbridge_map_repaired_total",
        Kind.COUNTER,
        "Records that differed from a peer's, or were damaged here, without a log that told so, and were set right",
    ),
    Metric(
        "landbridge_map_far_ahead_total",
        Kind.COUNTER,
        "Records of a peer that are over a minute ahead of the clock here, and not by their number: taken in anyhow",
    ),
    Metric(
        "landbridge_map_lease_taken_total",
        Kind.COUNTER,
        "Times that this gateway's replicator took the lease, and so the work for its region",
    ),
    Metric(
        "landbridge_map_lag_seconds",
        Kind.GAUGE,
        "How long ago this region's map last held all that another region had written; no series while it is not known",
        ("peer",),
    ),
    Metric(
        "landbridge_map_lag_records",
        Kind.GAUGE,
        "Writes of another region that are known and are not in this region's map; no series while it is not known",
        ("peer",),
    ),
    Metric(
        "landbridge_map_offset",
        Kind.GAUGE,
        "How far another region's log is followed: the number of the last write that is here",
        ("peer",),
    ),
    Metric(
        "landbridge_map_dead_letters",
        Kind.GAUGE,
        "Values that could not be taken into this region's map and wait for an operator",
    ),
    Metric(
        "landbridge_drift",
        Kind.GAUGE,
        "Programs and configurations (kind program, config) that live gateways of all regions run besides one",
        ("kind",),
    ),
    Metric(
        "landbridge_isolated",
        Kind.GAUGE,
        "1 while no other region was heard of for longer than tenant_map.partition_after",
    ),
    Metric(
        "landbridge_map_rejected_total",
        Kind.COUNTER,
        "Records from Redis that were not taken in, by reason (oversized, malformed, invalid, unknown_region, older): "
        "their tenants keep their routes",
        ("reason",),
    ),
    Metric(
        "landbridge_map_generation",
        Kind.GAUGE,
        "The map's generation: one more each time that a damaged map was rebuilt",
    ),
    Metric(
        "landbridge_map_snapshot_behind",
        Kind.GAUGE,
        "1 while the map's snapshot on disk is not what the map is",
    ),
    Metric(
        "landbridge_map_read_errors_total",
        Kind.COUNTER,
        "Lookups in the tenant map on disk that failed: each is a request answered map_unavailable",
    ),
    Metric(
        "landbridge_filter_errors_total",
        Kind.COUNTER,
        "Exceptions that a filter raised and was not meant to",
        ("filter",),
    ),
    Metric(
        "landbridge_filter_removed",
        Kind.GAUGE,
        "Workers that took this filter of the operator's out of their chain, because it kept failing",
        ("filter",),
    ),
    Metric("landbridge_worker_connections", Kind.GAUGE, "Clients' connections that are open, by worker", ("worker",)),
    Metric("landbridge_worker_restarts_total", Kind.COUNTER, "Workers that ended unasked and were started again"),
    Metric("landbridge_replicator_restarts_total", Kind.COUNTER, "Lives of the replicator that ended unasked"),
    Metric(
        "landbridge_worker_replacements_total",
        Kind.COUNTER,
        "Replacements of all workers, by result: done, or failed, which changes nothing",
        ("result",),
    ),
    Metric(
        "landbridge_config_reloads_total",
        Kind.COUNTER,
        "Changes of configuration or tenants file, by source (config, tenants) and result (applied, refused)",
        ("source", "result"),
    ),
    Metric("landbridge_draining", Kind.GAUGE, "1 while this gateway drains"),
    Metric(
        "landbridge_log_dropped_total",
        Kind.COUNTER,
        "Access-log lines that were dropped because their reader was too slow or gone",
    ),
    Metric(
        "landbridge_stats_overflow_total",
        Kind.COUNTER,
        "Series that could not be counted because a process's stats file is full",
    ),
    Metric(
        "landbridge_stats_set_aside_total",
        Kind.COUNTER,
        "Stats files that were damaged and had to be started anew: counters fell",
    ),
)

METRICS: Final[dict[str, Metric]] = {row.name: row for row in _ROWS}


def render_markdown() -> str:
    """The content of `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "What `GET /metrics` on `listen.admin` shows, in the Prometheus text format. This page is made from the table",
        "in `gateway/telemetry/metrics.py` (`python -m gateway.telemetry.metrics > docs/metrics.md`).",
        "",
        "Counters belong to mapped files in `state_dir/stats`, not to processes: a worker or control process that is",
        "killed and restarted loses no count. Labels are bounded. A histogram `x` is the series `x_bucket`, `x_sum`",
        "(seconds) and `x_count`.",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_markdown(), end="")
