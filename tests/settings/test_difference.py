"""What a reload would change: every field of the settings is of exactly one kind, and no value is ever named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.settings import difference, keys
from gateway.settings.difference import Difference, compare
from gateway.settings.reference import every_key
from gateway.settings.schema import Settings
from gateway.settings.shape import Effect
from tests.support.configs import KEY, SMALL, settings_of, write


def changed(tmp_path: Path, old: str, new: str) -> Difference:
    first = settings_of(write(tmp_path, SMALL + "workers: 2\n"))
    text = SMALL.replace(old, new) if old else SMALL + new
    if "workers" not in new:
        text += "\nworkers: 2\n"
    return compare(first, settings_of(write(tmp_path, text), {"HOP_KEY": KEY, "OTHER": KEY[::-1]}))


CASES = [
    ("region: here", "region: there", "restart", ["region"]),
    ("", "fleet: x", "restart", ["fleet"]),
    ("state_dir: state", "state_dir: other", "restart", ["state_dir"]),
    ("8080", "8090", "code", ["listen.http"]),
    (", hop: 127.0.0.1:8082", ", hop: 127.0.0.1:8083, admin: 127.0.0.1:1", "code", ["listen.admin", "listen.hop"]),
    ("", "workers: 3", "code", ["workers"]),
    ("", "filters: {options: {log: {a: 1}}}", "code", ["filters.options.log"]),
    ("${HOP_KEY}", "${OTHER}", "data", ["hop_keys"]),
    ("", "drain: {grace: 1s}", "data", ["drain.grace"]),
    ("", "limits: {body_bytes: 1MiB}", "data", ["limits.body_bytes"]),
    ("", "telemetry: {tenants: 1}", "data", ["telemetry.tenants"]),
    ("", "trusted_proxies: [10.0.0.0/24]", "data", ["trusted_proxies"]),
    ("", "tenant_map: {file: other.yaml}", "data", ["tenant_map.file"]),
    ("", "tenant_map: {partition_after: 1m}", "data", ["tenant_map.partition_after"]),
    ("", "tenant_map: {redis: {url: 'redis://h'}}", "data", ["tenant_map.redis"]),
    ("127.0.0.1:9000", "127.0.0.1:9001", "data", ["clusters.app.endpoints"]),
    ("gw.there", "gw2.there", "data", ["regions.there.gateways"]),
    ("clusters: {", 'clusters: {"region:*": {timeouts: {idle: 1s}}, ', "data", ["clusters.region:there.timeouts.idle"]),
    ("clusters: {", 'clusters: {b: {endpoints: ["a:1"]}, ', "data", ["clusters.b"]),
]


@pytest.mark.parametrize(("old", "new", "kind", "keys"), CASES)
def test_a_change_is_of_its_kind(tmp_path: Path, old: str, new: str, kind: str, keys: list[str]) -> None:
    change = changed(tmp_path, old, new)
    found = {name: getattr(change, name) for name in ("restart", "code", "data")}
    if new == "region: there":  # the other region's gateways are a cluster now, this one's no longer
        assert change.data == ["clusters.region:here", "clusters.region:there"]
        found["data"] = []
    assert found == {"restart": [], "code": [], "data": []} | {kind: keys}
    assert change
    assert KEY[::-1] not in str(change)


REDIS = "tenant_map: {source: redis, redis: {url: 'rediss://:${HOP_KEY}@h', peers: {there: 'redis://i'}}}\n"


def test_another_source_needs_a_restart_and_another_redis_does_not(tmp_path: Path) -> None:
    yaml = settings_of(write(tmp_path, SMALL))
    redis = settings_of(write(tmp_path, SMALL + REDIS))
    for old, new in ((yaml, redis), (redis, yaml)):
        assert compare(old, new) == Difference(["tenant_map.source"], [], ["tenant_map.redis"])
    text = SMALL + REDIS.replace("redis://i", "redis://j").replace("@h'", "@h', tls: {ca: ca.pem}")
    other = settings_of(write(tmp_path, text), {"HOP_KEY": KEY[::-1]})
    assert compare(redis, other).data == [
        "hop_keys",
        "tenant_map.redis.peers.there",
        "tenant_map.redis.tls",
        "tenant_map.redis.url",
    ]


def test_what_the_reference_says_of_a_change_is_what_is_done(tmp_path: Path) -> None:
    said = {effect: {path for path, key, e in every_key(keys.ROOT) if e is effect} for effect in Effect}
    assert said[Effect.RESTART] == {".".join(path) for path in difference.RESTART}
    assert {path.partition(".")[0] for path in said[Effect.WORKERS]} == difference.CODE


def test_what_means_the_same_is_no_difference(tmp_path: Path) -> None:
    assert not changed(tmp_path, "", "# a comment\ndrain: {grace: 12000ms}\n")


def test_every_field_is_compared(tmp_path: Path) -> None:
    """A field that is added to the settings cannot be forgotten here: all but the derived ones count."""
    settings = settings_of(write(tmp_path, SMALL))
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        other = {str: "zz", int: 99, dict: {"x": 1}, tuple: ("x",)}.get(type(value), "other")
        change = compare(settings, msgspec.structs.replace(settings, **{field.name: other}))
        assert bool(change) is (field.name not in ("digest", "origins")), field.name
