"""The rendering of one scrape, by the table of metrics.

A series that the table does not know, or that has other labels than it says, is left out: a file written by an older
program must not spoil a scrape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway.telemetry.metrics import METRICS, Kind, Metric

Labels = tuple[tuple[str, str], ...]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What `render` returns, for the response's Content-Type."""

MICROSECONDS: Final = 1e6
"""Histograms' sums are kept in microseconds and shown in seconds."""


def render(series: Mapping[tuple[str, Labels], int], gauges: Mapping[tuple[str, Labels], float]) -> bytes:
    """One scrape in the Prometheus text format.

    `series` are sums over the mapped files: a histogram is one `<name>_bucket` per bound (label `le`, not cumulative)
    and `<name>_sum` in microseconds. `gauges` are what the caller knows now, counters among them; where both have a
    series they are added. Counters without labels are always shown, so that their first increase is one.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(series, gauges))
    return generate_latest(registry)


class _Scrape(Collector):
    """One scrape's values, grouped by metric, as prometheus-client wants them."""

    def __init__(self, series: Mapping[tuple[str, Labels], int], gauges: Mapping[tuple[str, Labels], float]) -> None:
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        self._buckets: dict[str, dict[tuple[str, ...], dict[str, int]]] = {}
        for (name, labels), count in series.items():
            if not self._take_histogram(name, labels, count):
                self._take(name, labels, count)
        for (name, labels), value in gauges.items():
            self._take(name, labels, value)

    def collect(self) -> Iterator[Family]:
        for metric in METRICS.values():
            if metric.kind is Kind.HISTOGRAM:
                yield self._histogram(metric)
            else:
                yield self._plain(metric)

    def _take(self, name: str, labels: Labels, value: float) -> None:
        metric = METRICS.get(name)
        if metric is None or metric.kind is Kind.HISTOGRAM:
            return
        key = _in_order(metric, labels)
        if key is not None:
            values = self._values.setdefault(name, {})
            values[key] = values.get(key, 0) + value

    def _take_histogram(self, name: str, labels: Labels, count: int) -> bool:
        """Whether this was part of a histogram."""
        stem, _, part = name.rpartition("_")
        metric = METRICS.get(stem)
        if metric is None or metric.kind is not Kind.HISTOGRAM or part not in ("bucket", "sum"):
            return False
        bound = dict(labels).get("le", "") if part == "bucket" else "sum"
        key = _in_order(metric, tuple(label for label in labels if label[0] != "le"))
        if key is not None and bound:
            self._buckets.setdefault(stem, {}).setdefault(key, {})[bound] = count
        return True

    def _plain(self, metric: Metric) -> Family:
        family: CounterMetricFamily | GaugeMetricFamily
        if metric.kind is Kind.COUNTER:
            family = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
        else:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        values = self._values.get(metric.name, {})
        if metric.kind is Kind.COUNTER and not metric.labels:
            values = {(): 0.0} | values
        for key in sorted(values):
            family.add_metric(key, values[key])
        return family

    def _histogram(self, metric: Metric) -> Family:
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for key, counts in sorted(self._buckets.get(metric.name, {}).items()):
            cumulative = 0
            buckets: list[tuple[str, float]] = []
            for bound in sorted((b for b in counts if b != "sum"), key=float):  # float("+Inf") is the last
                cumulative += counts[bound]
                buckets.append((bound, cumulative))
            family.add_metric(key, buckets, counts.get("sum", 0) / MICROSECONDS)
        return family


def _in_order(metric: Metric, labels: Labels) -> tuple[str, ...] | None:
    """The labels' values in the table's order, or None when they are not the table's labels."""
    values = dict(labels)
    if len(values) != len(metric.labels) or len(labels) != len(values):
        return None
    try:
        return tuple(values[name] for name in metric.labels)
    except KeyError:
        return None
