"""Every source that the tenant map can come from: a new one is one class like `source.Source`, and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from gateway.control.sources.redis_feed import RedisFeed
from gateway.control.sources.source import Ground, Source
from gateway.control.sources.yaml_file import YamlFile
from gateway.settings.schema import MapSource

SOURCES: Final[Mapping[MapSource, Callable[[Ground], Source]]] = {
    MapSource.YAML: YamlFile,
    MapSource.REDIS: RedisFeed,
}
