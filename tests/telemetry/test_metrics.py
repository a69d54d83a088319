"""The metrics table, its page, and what a scrape shows, read back by prometheus-client's own parser."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.bus.stats import BUCKETS, OVERFLOW, SET_ASIDE, StatsFile, read_series
from gateway.telemetry.metrics import METRICS, Kind, render_markdown
from gateway.telemetry.scrape import Labels, render

ROOT = Path(__file__).parent.parent.parent

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(scrape: bytes) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(scrape.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == render_markdown()


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda m: m.name)
def test_names_follow_prometheus_conventions(metric: object) -> None:
    row = METRICS[getattr(metric, "name", "")]
    assert re.fullmatch(r"landbridge_[a-z_]+", row.name)
    assert (row.kind is Kind.COUNTER) == row.name.endswith("_total")
    assert (row.kind is Kind.HISTOGRAM) <= row.name.endswith("_seconds")
    assert "le" not in row.labels
    assert row.help
    assert "|" not in row.help


def test_whatever_the_program_counts_is_in_the_table() -> None:
    """Every metric's name that stands in the source is a row: none can be counted and never shown."""
    for path in (ROOT / "gateway").rglob("*.py"):
        for name in re.findall(r'"(landbridge_[a-z_]+)"', path.read_text()):
            assert name in METRICS, f"{path}: {name}"


def test_a_counter_a_gauge_and_a_histogram() -> None:
    scrape = render(
        {
            ("landbridge_requests_total", (("code_class", "2xx"), ("from", "client"), ("decision", "local"))): 7,
            ("landbridge_request_seconds_bucket", (("decision", "local"), ("le", "0.1"))): 2,
            ("landbridge_request_seconds_bucket", (("decision", "local"), ("le", "0.01"))): 3,
            ("landbridge_request_seconds_bucket", (("decision", "local"), ("le", "+Inf"))): 1,
            ("landbridge_request_seconds_sum", (("decision", "local"),)): 1_500_000,
        },
        {("landbridge_endpoint_up", (("cluster", "app"), ("endpoint", "10.0.0.1:80"))): True},
    )
    assert b"# TYPE landbridge_requests_total counter\n" in scrape
    assert b"# TYPE landbridge_request_seconds histogram\n" in scrape
    found = samples(scrape)
    assert found[key("landbridge_requests_total", **{"from": "client"}, decision="local", code_class="2xx")] == 7
    assert found[key("landbridge_endpoint_up", cluster="app", endpoint="10.0.0.1:80")] == 1
    for bound, count in (("0.01", 3), ("0.1", 5), ("+Inf", 6)):
        assert found[key("landbridge_request_seconds_bucket", decision="local", le=bound)] == count
    assert found[key("landbridge_request_seconds_count", decision="local")] == 6
    assert found[key("landbridge_request_seconds_sum", decision="local")] == 1.5
    assert not [name for name, _ in found if name.endswith("_created")]


def test_counters_without_labels_start_at_nought() -> None:
    found = samples(render({}, {}))
    assert found == {key(m.name): 0 for m in METRICS.values() if m.kind is Kind.COUNTER and not m.labels}


def test_what_files_and_caller_know_of_one_series_is_added() -> None:
    name = "landbridge_worker_restarts_total"
    assert samples(render({(name, ()): 2}, {(name, ()): 3}))[key(name)] == 5


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("landbridge_unknown_total", ()),
        ("landbridge_requests_total", ()),
        ("landbridge_requests_total", (("from", "client"), ("decision", "local"), ("status", "200"))),
        ("landbridge_requests_total", (("from", "a"), ("from", "b"), ("decision", "c"))),
        ("landbridge_request_seconds_bucket", (("le", "1.0"),)),
        ("landbridge_request_seconds_bucket", (("decision", "local"),)),
        ("landbridge_request_seconds_bucket", (("decision", "local"), ("tenant", "x"), ("le", "1.0"))),
        ("landbridge_request_seconds", (("decision", "local"),)),
    ],
)
def test_what_the_table_does_not_know_is_left_out(name: str, labels: Labels) -> None:
    assert render({(name, labels): 5}, {}) == render({}, {})


@given(st.text(max_size=30))
def test_any_label_comes_back_as_it_was(value: str) -> None:
    if re.search("[\r\ud800-\udfff]", value):
        value = "other"  # the parser reads universal newlines; surrogates are no characters
    lines = render({("landbridge_tenant_requests_total", (("tenant", value),)): 1}, {}).decode()
    assert samples(lines.encode())[key("landbridge_tenant_requests_total", tenant=value)] == 1


def test_from_the_mapped_file_to_the_scrape(tmp_path: Path) -> None:
    paths = [tmp_path / "a.stats", tmp_path / "b.stats"]
    for path in paths:
        with closing(StatsFile(path)) as stats:
            stats.values[stats.series("landbridge_hop_rejected_total", (("reason", "key"),))] += 2
            base = stats.histogram("landbridge_upstream_seconds", (("cluster", "app"),))
            for seconds in (0.0002, 0.3, 45.0):
                stats.observe(base, seconds)
    found = samples(render(read_series(paths), {}))
    assert found[key("landbridge_hop_rejected_total", reason="key")] == 4
    assert found[key("landbridge_upstream_seconds_count", cluster="app")] == 6
    assert found[key("landbridge_upstream_seconds_sum", cluster="app")] == pytest.approx(90.6004)
    assert found[key("landbridge_upstream_seconds_bucket", cluster="app", le="0.25")] == 2
    assert found[key("landbridge_upstream_seconds_bucket", cluster="app", le="0.5")] == 4
    assert found[key("landbridge_upstream_seconds_bucket", cluster="app", le="+Inf")] == 6
    assert sum(name == "landbridge_upstream_seconds_bucket" for name, _ in found) == len(BUCKETS) + 1
    assert found[key(OVERFLOW)] == found[key(SET_ASIDE)] == 0
