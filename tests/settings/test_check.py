"""`landbridge check`: what it prints and how it exits."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from filters import ENDPOINT, INBOUND, OUTBOUND
from gateway.cli.check import INVALID, VALID, check, examine, print_schema
from gateway.settings import json_schema, keys, scalars
from gateway.settings.reference import every_key
from gateway.settings.shape import Later
from tests.support.configs import ENVIRON, KEY, SMALL, write


def checked(path: Path, environ: Mapping[str, str] = ENVIRON, region: str | None = None) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = check(path, environ, region, out)
    return code, out.getvalue().replace(f"{path.parent}/", "").splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "tenants.yaml").write_text("tenants: {a: {home: here}, b: {home: there}}\n")
    return write(tmp_path, SMALL)


def test_a_valid_configuration_is_summed_up(path: Path) -> None:
    code, [line] = checked(path)
    assert code == VALID
    assert line.startswith(
        "gateway.yaml: valid: region here of 2 regions, 1 cluster, 2 tenants (1 at home here), digest "
    )
    assert KEY not in line


def test_a_region_can_be_named(path: Path) -> None:
    assert "region there of 2 regions" in checked(path, region="there")[1][0]
    code, [line] = checked(path, region="mars")
    assert (code, line) == (INVALID, 'LANDBRIDGE_REGION: region: expected one of regions, got "mars"')


def test_five_mistakes_are_five_lines_and_nothing_else(path: Path) -> None:
    text = SMALL.replace("127.0.0.1:9000", "dns://app").replace("here: {", "heere: {").replace("8082}", "99999}")
    write(path.parent, text + "timeouts: {body: soon}\nlimitz: {}\n")
    assert checked(path) == (
        INVALID,
        [
            'gateway.yaml:1: region: expected one of regions (did you mean heere?), got "here"',
            'gateway.yaml:2: listen.hop: expected an address such as 0.0.0.0:8080, got "127.0.0.1:99999"',
            'gateway.yaml:8: clusters.app.endpoints[0]: expected dns://host:port such as dns://app.internal:9000, got "dns://app"',
            'gateway.yaml:9: timeouts.body: expected a duration such as 250ms, got "soon"',
            'gateway.yaml:10: limitz: expected a known key (did you mean limits?), got "limitz"',
        ],
    )


def test_a_long_line_is_not_wrapped(path: Path) -> None:
    write(path.parent, SMALL + f"fleet: {'x' * 60}_{'y' * 60}\n{'z' * 500}: 1\n")
    code, lines = checked(path)
    assert code == INVALID
    assert len(lines) == 2
    assert len(lines[1]) > 500


def test_problems_of_the_tenants_file_and_warnings_are_told(path: Path) -> None:
    write(path.parent, SMALL + "timeouts: {keepalive: 5s}\n")
    (path.parent / "tenants.yaml").write_text("tenants:\n  a: {home: mars}\n")
    code, lines = checked(path)
    assert code == INVALID
    assert lines == [
        'tenants.yaml:2: tenants.a.home: expected one of regions, got "mars"',
        "warning: gateway.yaml:9: timeouts.keepalive: 5s is below the 60s of AWS's load balancer, which may send a "
        "request into the close",
    ]


def test_a_warning_alone_is_valid(path: Path) -> None:
    write(path.parent, SMALL + "timeouts: {keepalive: 5s}\n")
    code, lines = checked(path)
    assert code == VALID
    assert [line.partition(":")[0] for line in lines] == ["warning", "gateway.yaml"]


def test_a_tenants_file_that_is_not_there_is_a_problem(path: Path) -> None:
    (path.parent / "tenants.yaml").unlink()
    code, lines = checked(path)
    assert code == INVALID
    assert lines == ["tenants.yaml: expected a readable tenants file (tenant_map.file), got no such file or directory"]


def test_a_replicated_map_needs_no_tenants_file(path: Path) -> None:
    (path.parent / "tenants.yaml").unlink()
    redis = "tenant_map: {source: redis, redis: {url: 'redis://u:hunter2@valkey', peers: {there: 'redis://i'}}}\n"
    write(path.parent, SMALL + redis)
    code, lines = checked(path)
    assert code == VALID
    assert lines[0].startswith("warning: gateway.yaml:9: tenant_map.redis.url: the password stands in the file")
    assert "1 cluster, tenants from redis://valkey:6379/0, 1 peer, digest " in lines[1]
    write(path.parent, SMALL + redis.replace("valkey", "val key"))
    code, [line] = checked(path)
    assert code == INVALID
    assert line == (
        "gateway.yaml:9: tenant_map.redis.url: expected a URL without blanks and control characters, got a value that "
        "is not shown"
    )


def test_files_for_tls_that_cannot_be_read_are_warned_of(path: Path) -> None:
    (path.parent / "ca.pem").write_text("x")
    redis = "tenant_map: {source: redis, redis: {url: 'rediss://valkey', peers: {there: 'rediss://i'}, tls: TLS}}\n"
    write(path.parent, SMALL + redis.replace("TLS", "{ca: ca.pem, cert: a.pem, key: a.key}"))
    code, lines = checked(path)
    assert code == VALID
    assert lines[:-1] == [f"warning: tenant_map.redis.tls.{key}: a.{end} cannot be read"
                          for key, end in (("cert", "pem"), ("key", "key"))]  # fmt: skip
    write(path.parent, SMALL + redis.replace("TLS", "{ca: ca.pem}"))
    assert len(checked(path)[1]) == 1


def test_a_configuration_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert checked(tmp_path / "gateway.yaml") == (
        INVALID,
        ["gateway.yaml: expected a readable file, got no such file or directory"],
    )


def test_variables_are_checked_too(path: Path) -> None:
    code, lines = checked(path, ENVIRON | {"LANDBRIDGE__drain__grace": "x"})
    assert code == INVALID
    assert lines == ['LANDBRIDGE__drain__grace: drain.grace: expected a duration such as 250ms, got "x"']


def test_options_that_no_filter_takes_are_a_problem_at_their_line(path: Path) -> None:
    write(path.parent, SMALL + "filters:\n  options:\n    log: {level: 1}\n    region: {}\n")
    code, lines = checked(path)
    assert code == INVALID
    assert lines == [
        "gateway.yaml:11: filters.options.log: expected options that this filter takes, got a refusal: takes no options"
    ]


def test_every_filter_can_be_named_in_the_options() -> None:
    assert set(scalars.FILTERS) == {*INBOUND, *ENDPOINT, *OUTBOUND}


def test_examine_gives_what_was_read(path: Path) -> None:
    report = examine(path, ENVIRON)
    assert report.settings is not None
    assert report.tenants is not None
    assert [tenant.tenant for tenant in report.tenants] == ["a", "b"]
    assert report.problems == report.warnings == []


def test_the_json_schema_knows_every_key_that_works() -> None:
    out = io.StringIO()
    assert print_schema(out) == VALID
    document = json.loads(out.getvalue())
    assert document == json_schema.json_schema()
    for path, key, _ in every_key(keys.ROOT):
        if "<" in path or "[]" in path:
            continue
        node = document
        for step in path.split("."):
            node = node["properties"].get(step, {})
        assert bool(node) is (not isinstance(key.kind, Later) or key.kind.empty_is_fine), path
    assert "region:" in str(document["properties"]["clusters"]["patternProperties"])
    assert document["additionalProperties"] is False
