"""The JSON Schema for editors: what the loader takes, it takes; and common mistakes it marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gateway.settings import json_schema, keys
from gateway.settings.reference import every_key, is_later
from gateway.settings.shape import Items, Kind, Named, OrNone, Record, Scalar
from tests.settings.test_reference import uncommented
from tests.support.configs import SMALL

CONFIG = Path(__file__).parents[2] / "config"
FILE = CONFIG / "gateway.schema.json"
SCHEMA = json_schema.json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def problems(text: str) -> list[str]:
    """The dotted paths at which an editor would mark something."""
    found = VALIDATOR.iter_errors(yaml.safe_load(text))
    return sorted(".".join(map(str, error.absolute_path)) for error in found)


def test_the_committed_file_is_what_the_tables_say() -> None:
    """To write it anew: `landbridge check --schema > config/gateway.schema.json`."""
    assert FILE.read_text() == json_schema.text() + "\n"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_example_refers_to_it_and_is_valid_by_it() -> None:
    text = (CONFIG / "gateway.yaml").read_text()
    first = text.splitlines()[0]
    assert first == "# yaml-language-server: $schema=./gateway.schema.json"
    assert problems(text) == problems(uncommented()) == problems(SMALL) == []


@pytest.mark.parametrize("path", sorted((CONFIG / "regions").iterdir()), ids=lambda path: path.name)
def test_overlays_refer_to_it_too(path: Path) -> None:
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=../gateway.schema.json"
    assert problems(path.read_text()) == []


def _records(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for inner in schema.values():
            yield from _records(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _records(inner)


def test_every_key_that_works_is_described_and_no_other_is_taken() -> None:
    text = json.dumps(SCHEMA)
    for path, key, _ in every_key(keys.ROOT):
        if not is_later(key) and not path.startswith("clusters."):
            assert json.dumps(key.about)[1:-1] in text, path
    records = list(_records(SCHEMA))
    assert len(records) > 20
    assert all(record["additionalProperties"] is False for record in records)
    assert all(inner["description"] for record in records for inner in record["properties"].values())


MISTAKES = [
    ("drian: {}", [""]),
    ("drain: {grace: 5}", ["drain.grace"]),
    ("drain: {grace: 5 s}", ["drain.grace"]),
    ("limits: {header_bytes: 64KB}", ["limits.header_bytes"]),
    ("limits: {headers: many}", ["limits.headers"]),
    ("limits: {headers: 7}", ["limits.headers"]),
    ("limits: {body_bytes: nothing}", ["limits.body_bytes"]),
    ("workers: 0", ["workers"]),
    ("listen: {http: 8080}", ["listen.http"]),
    ("listen: {http: 'gw:8080'}", ["listen.http"]),
    ("misroute: sometimes", ["misroute"]),
    ("access_log: {sample: 2}", ["access_log.sample"]),
    ("clusters: {app: {endpoints: [a.internal]}}", ["clusters.app.endpoints.0"]),
    ("clusters: {app: {health: {path: healthz}}}", ["clusters.app.health"]),
    ("clusters: {'region:x': {endpoints: []}}", ["clusters.region:x"]),
    ("clusters: {UPPER: {endpoints: []}}", ["clusters"]),
    ("regions: {x: {public: gw.example.com}}", ["regions.x.public"]),
    ("tenancy: {resolvers: [{hots: a}]}", ["tenancy.resolvers.0"]),
    ("tenancy: {resolvers: [{host: 'acme.example.com'}]}", ["tenancy.resolvers.0.host"]),
    ("tenancy: {resolvers: [{query: a, cookie: b}]}", ["tenancy.resolvers.0"]),
    ("throttle: {tenant: {rate: 5}}", ["throttle.tenant.rate"]),
    ("throttle: {client: {rate: 5/s, shadow: maybe}}", ["throttle.client.shadow"]),
    ("tenant_map: {source: etcd}", ["tenant_map.source"]),
    ("tenant_map: {redis: {url: http://h}}", ["tenant_map.redis.url"]),
    ("tenant_map: {redis: {url: redis://h, peers: {x: 5}}}", ["tenant_map.redis.peers.x"]),
    ("tenant_map: {partition_after: 30}", ["tenant_map.partition_after"]),
    ("trusted_proxies: 10.0.0.0/8", ["trusted_proxies"]),
    ("routes: [{prefix: /}]", ["routes.0"]),
    ("admin: {tokens: [{name: a, role: admin, token: short}]}", ["admin.tokens.0.role", "admin.tokens.0.token"]),
]


@pytest.mark.parametrize(("text", "wanted"), MISTAKES)
def test_common_mistakes_are_marked_where_they_are(text: str, wanted: list[str]) -> None:
    assert problems(text) == wanted


def _scalars(kind: Kind, path: str) -> Iterator[tuple[str, Scalar]]:
    match kind:
        case Scalar():
            yield path, kind
        case Record():
            for name, key in kind.keys.items():
                yield from _scalars(key.kind, f"{path}.{name}")
        case Named() | OrNone() | Items():
            yield from _scalars(kind.kind, path)


VALUES = [
    *("250ms", "1.5s", "0s", "2m", "1h", "24h", "5", "-5s", "1024B", "64KiB", "1GiB", "1kb", "0B"),
    *("5%", "0.5%", "200%"),
    *("127.0.0.1:0", "0.0.0.0:65535", "LocalHost:80", "[::1]:80", "a.b-c_d.e:1", "A.B:9000", "a:1:2", "10.1.0.4"),
    *("http://a.b", "https://{tenant}.a.b:8080", "https://a/b", "ftp://a", "10.20.0.0/24", "2001:db8::/48", "::1"),
    *("10.0.0.0/255.0.0.0", "name", "us-east-1", "7", "007", "true", "no", "12:30", "a b", "UPPER"),
    *("x" * 33, "alice@a.b"),
    *("/", "/a/b-%2F;x=1", "/a?b", "/a#b", "auto", "1", "256", "257", "0", "0.5", "1.0", "reject", "none"),
    *("t" * 24, "7" * 24, "dGhlIHRva2VuIHRoYXQ+Lw==dG8=", "dGhlIHRva2VuIHRoYXQ+LyB0bw=="),
    *("k" * 31, "ü" * 16, "🧱" * 8, "x" * 600),
    *("redis://h", "rediss+sentinel://u:p@h1:1,[::1]/main/2", "unix:///x?db=1", "redis+cluster://h", "unix://u:p@/x"),
    *("${NAME}", "a${NAME}b", "${file:/run/x}", "log", "tenant", "my_filter"),
    *("200/s", "0.5/m", "1/d", "address", "header:X-Key", "404", "503"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "kind"), list(_scalars(keys.ROOT, "")), ids=lambda value: str(value)[:60])
def test_what_the_loader_takes_the_schema_takes(path: str, kind: Scalar) -> None:
    validator = Draft202012Validator(json_schema._scalar(kind))
    taken = 0
    for value in VALUES:
        if "${" not in value:
            try:
                kind.parse(value)
            except ValueError:
                continue
        taken += 1
        if not value.startswith("["):  # which YAML wants in quotes
            assert validator.is_valid(yaml.safe_load(value)), value
        assert kind.is_number or validator.is_valid(value), value
    assert taken > 3, "the reference, and something that is right"
    assert not any(validator.is_valid(value) for value in ([], {}, None))
