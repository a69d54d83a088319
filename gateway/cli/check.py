"""`landbridge check`: the configuration, its overlay and overrides, and the tenants file, as a gateway would read them.

One line per problem on standard output, never wrapped: lines are for editors and scripts as much as for people.
Exit 0 when a gateway would start on it, 2 when not. Nothing is written, bound or resolved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from gateway.core.placement import Placement
from gateway.core.view import REGION_CLUSTER
from gateway.settings import json_schema
from gateway.settings.filter_check import check_filters
from gateway.settings.loader import load, read_sources, warnings_for
from gateway.settings.problems import Invalid, Problem
from gateway.settings.redis_url import read
from gateway.settings.schema import MapSource, Settings, TlsSettings
from gateway.settings.tenants import TENANTS_BYTES_MAX, load_tenants

VALID: Final = 0
INVALID: Final = 2


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `settings` is None when the configuration itself is not valid; `tenants` when their file is.

    There is none of a map that comes from Redis, which is not asked here.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: Settings | None = None
    tenants: list[Placement] | None = None


def examine(config: Path, environ: Mapping[str, str], region: str | None = None) -> Report:
    """Read everything. `region` goes before `LANDBRIDGE_REGION`."""
    if region is not None:
        environ = {**environ, "LANDBRIDGE_REGION": region}
    try:
        sources = read_sources(config, environ)
        settings = load(sources, environ)
    except Invalid as error:
        return Report(error.problems)
    warnings = warnings_for(settings, sources)
    problems: list[Problem] = []
    if settings.filter_files or settings.filter_options:
        found = check_filters(settings, sources.filters, environ)  # only a filter knows what it takes
        problems, warnings = list(found.problems), [*warnings, *found.warnings]
    if settings.tenant_map.source is MapSource.REDIS:
        return Report(problems, [*warnings, *_unreadable_tls(settings)], settings, [])
    try:
        file = _shown_path(settings.tenant_map.file)
        tenants = load_tenants(file, _read_tenants(file), settings)
    except Invalid as error:
        return Report([*problems, *error.problems], warnings, settings)
    return Report(problems, warnings, settings, tenants)


def _unreadable_tls(settings: Settings) -> list[str]:
    """A gateway starts without these files, but does not reach a Redis over TLS."""
    redis = settings.tenant_map.redis
    tls = TlsSettings() if redis is None or redis.tls is None else redis.tls
    files = (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key))
    return [
        f"tenant_map.redis.tls.{key}: {_shown_path(path)} cannot be read"
        for key, path in files
        if path is not None and not os.access(path, os.R_OK)
    ]


def _shown_path(path: str) -> str:
    """Relative to where the operator stands, when it is below."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _read_tenants(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            text = opened.read(TENANTS_BYTES_MAX + 1)
    except OSError as error:
        why = (error.strerror or "an error").lower()
        raise Invalid([Problem(file, 0, "", "a readable tenants file (tenant_map.file)", why)]) from None
    if len(text) > TENANTS_BYTES_MAX:
        raise Invalid([Problem(file, 0, "", f"at most {TENANTS_BYTES_MAX} bytes", "more")])
    return text


def check(config: Path, environ: Mapping[str, str], region: str | None = None, out: TextIO | None = None) -> int:
    """Print what `examine` finds; the exit code."""
    out = out or sys.stdout
    report = examine(config, environ, region)
    for problem in report.problems:
        print(problem, file=out)
    for warning in report.warnings:
        print(f"warning: {warning}", file=out)
    if report.problems or report.settings is None or report.tenants is None:
        return INVALID
    print(f"{config}: valid: {_summary(report.settings, report.tenants)}", file=out)
    return VALID


def _summary(settings: Settings, tenants: list[Placement]) -> str:
    clusters = sum(not name.startswith(REGION_CLUSTER) for name in settings.clusters)
    here = sum(tenant.home == settings.region for tenant in tenants)
    known = f"{_count(len(tenants), 'tenant')} ({here} at home here)"
    if (redis := settings.tenant_map.redis) is not None and settings.tenant_map.source is MapSource.REDIS:
        known = f"tenants from {read(redis.url).bare()}, {_count(len(redis.peers), 'peer')}"
    return (
        f"region {settings.region} of {_count(len(settings.regions), 'region')}, {_count(clusters, 'cluster')}, "
        f"{known}, digest {settings.digest}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_schema(out: TextIO | None = None) -> int:
    """Print the JSON Schema of `gateway.yaml`, for editors; the exit code."""
    print(json_schema.text(), file=out or sys.stdout)
    return VALID
