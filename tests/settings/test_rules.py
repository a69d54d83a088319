# ruff: noqa: E501  a table of messages is read line by line
"""What one key says of another: references, requirements and clashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.settings.loader import load, read_sources, warnings_for
from tests.support.configs import ENVIRON, SMALL, problems_of, settings_of, write

SINGLE = """\
region: only
listen: {http: 127.0.0.1:8080}
state_dir: state
regions: {only: {}}
clusters: {app: {endpoints: ["127.0.0.1:9000"]}}
"""
"""One region: nothing between gateways is needed."""


def test_one_region_needs_no_hops(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, SINGLE)) == []


REPLACED = [
    ("region: here", "region: her", ['1: region: expected one of regions (did you mean here?), got "her"']),
    ("region: here", "region: mars", ['1: region: expected one of regions, got "mars"']),
    ('hop_keys: ["${HOP_KEY}"]', "", ["1: hop_keys: expected a key, since misroute is auto and there is more than one region, got nothing"]),
    ('["${HOP_KEY}"]', "[]", ["7: hop_keys: expected a key, since misroute is auto and there is more than one region, got an empty list"]),
    (", hop: 127.0.0.1:8082", "", ["2: listen.hop: expected an address, since misroute is auto and there is more than one region, got nothing"]),
    (', gateways: ["gw.there:8082"]', "", ["6: regions.there.gateways: expected at least one gateway, since misroute is auto, got nothing"]),
    ('"gw.there:8082"', "", ["6: regions.there.gateways: expected at least one gateway, since misroute is auto, got an empty list"]),
    (', gateways: ["gw.here:8082"]', "", []),
    ("clusters: {app:", "clusters: {api:", ["8: clusters.app: expected the cluster app, to which everything goes that no route matches, got nothing"]),
    ("hop: 127.0.0.1:8082", "hop: 127.0.0.1:8080", ["2: listen.hop: expected an address that listen.http (127.0.0.1:8080) leaves free, got \"127.0.0.1:8080\""]),
    ("hop: 127.0.0.1:8082", "hop: 0.0.0.0:8080", ["2: listen.hop: expected an address that listen.http (127.0.0.1:8080) leaves free, got \"0.0.0.0:8080\""]),
    ("hop: 127.0.0.1:8082", 'hop: "[::]:8080"', ["2: listen.hop: expected an address that listen.http (127.0.0.1:8080) leaves free, got \"[::]:8080\""]),
    ("hop: 127.0.0.1:8082", "hop: localhost:8081", ["2: listen.hop: expected an address that listen.admin (127.0.0.1:8081) leaves free, got \"localhost:8081\""]),
    ("hop: 127.0.0.1:8082", "hop: 127.0.0.2:8080", []),
    ("hop: 127.0.0.1:8082", "hop: 127.0.0.1:0", []),
    ("http: 127.0.0.1:8080, hop: 127.0.0.1:8082", "http: 127.0.0.1:0, hop: 127.0.0.1:0, admin: 127.0.0.1:0", []),
    ("hop: 127.0.0.1:8082", "hop: 127.0.0.1:8082, admin: 0.0.0.0:8081", ["2: listen.admin: expected a loopback address, since admin.tokens has none, got \"0.0.0.0:8081\""]),
    ("hop: 127.0.0.1:8082", 'hop: 127.0.0.1:8082, admin: "[::1]:8081"', []),
    ("hop: 127.0.0.1:8082", "hop: gw.here:8082", ["2: listen.hop: expected an address such as 0.0.0.0:8080, got \"gw.here:8082\""]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "lines"), REPLACED)
def test_changed(tmp_path: Path, old: str, new: str, lines: list[str]) -> None:
    assert old in SMALL
    assert problems_of(write(tmp_path, SMALL.replace(old, new))) == [f"gateway.yaml:{line}" for line in lines]


ADDED = [
    (f"admin: {{tokens: [{{name: a, role: viewer, token: {'t' * 24}}}, {{name: a, role: operator, token: {'u' * 24}}}]}}", ['9: admin.tokens[1].name: expected each name once, got "a" again']),
    (f"admin: {{tokens: [{{name: a, role: viewer, token: {'t' * 24}}}, {{name: b, role: operator, token: {'t' * 24}}}]}}", ["9: admin.tokens[1].token: expected a token for each, got another's again"]),
    (f"admin: {{tokens: [{{name: a, role: viewer}}, {{name: a, role: admin, token: {'t' * 23}}}]}}", [
        "9: admin.tokens[0].token: expected a token of at least 24 of A-Z a-z 0-9 - . _ ~ + /, got nothing",
        '9: admin.tokens[1].role: expected viewer or operator, got "admin"',
        "9: admin.tokens[1].token: expected a token of at least 24 of A-Z a-z 0-9 - . _ ~ + /, got a value that is not shown",
        '9: admin.tokens[1].name: expected each name once, got "a" again',
    ]),
    (f"admin: {{hosts: [gw.internal, GW.internal, 'a:1', '::1', 10.0.0.9], tokens: [5, {'t' * 24}]}}", [
        '9: admin.hosts[1]: expected each value once, got "GW.internal" again',
        '9: admin.hosts[2]: expected a host name or an address, without port, got "a:1"',
        "9: admin.tokens[0]: expected a mapping, got a value that is not shown",
        "9: admin.tokens[1]: expected a mapping, got a value that is not shown",
    ]),
    ("tenancy: {unknown: ther}", ['9: tenancy.unknown: expected reject or one of regions (did you mean there?), got "ther"']),
    ("tenancy: {unknown: there}", []),
    ("tenancy: {unknown: reject}", []),
    ("routes: [{prefix: /a, cluster: apq}]", ['9: routes[0].cluster: expected one of clusters (did you mean app?), got "apq"']),
    ("routes: [{prefix: /, cluster: app}, {prefix: /, cluster: app}]", ["9: routes[1].prefix: expected each prefix once, got that of routes[0] again"]),
    ("routes: []", []),
    ("routes: [5, {prefix: /a, cluster: x}]", ["9: routes[0]: expected a mapping, got 5", '9: routes[1].cluster: expected one of clusters, got "x"']),
    ("routes: [{prefix: 5, cluster: app}, {prefix: 6, cluster: app}]", ["9: routes[0].prefix: expected a path prefix such as /api/, without query, got 5", "9: routes[1].prefix: expected a path prefix such as /api/, without query, got 6"]),
    ("dns: {ttl_min: 10m}", ['9: dns.ttl_min: expected at most dns.ttl_max (300s), got "10m"']),
    ("dns: {ttl_max: 500ms}", ['9: dns.ttl_max: expected at least dns.ttl_min (1s), got "500ms"']),
    ("dns: {servers: [ns.internal]}", ['9: dns.servers[0]: expected an address such as 10.0.0.2 or 10.0.0.2:53, got "ns.internal"']),
    ("drain: {grace: 25s}", ['9: drain.grace: expected less than drain.limit (25s), got "25s"']),
    ("drain: {limit: 12s}", ['9: drain.limit: expected more than drain.grace (12s), got "12s"']),
    ("drain: {grace: 5s, limit: 5s}", ['9: drain.grace: expected less than drain.limit (5s), got "5s"']),
    ("drain: {grace: x, limit: 1s}", ['9: drain.grace: expected a duration such as 250ms, got "x"']),
    ("probes: {live: /readyz}", ['9: probes.live: expected a path other than that of probes.ready, got "/readyz"']),
    ("probes: {live: /a, ready: /a}", ['9: probes.ready: expected a path other than that of probes.live, got "/a"']),
    ("misroute: external", []),
    ("tenant_map: {source: redis}", ["9: tenant_map.redis.url: expected a URL such as redis://127.0.0.1:6379/0, since tenant_map.source is redis, got nothing"]),
    ("tenant_map: {source: redis, redis: {}}", ["9: tenant_map.redis.url: expected a URL such as redis://127.0.0.1:6379/0, got nothing"]),
    ("tenant_map: {source: redis, redis: {url: x}}", ["9: tenant_map.redis.url: expected a URL such as redis://127.0.0.1:6379/0 (schemes: redis, redis+sentinel, redis+cluster, rediss, rediss+sentinel, rediss+cluster, unix), got a value that is not shown"]),
    ("tenant_map: {source: redis, redis: {url: 'redis://h', peers: {there: 'redis://i', mars: 'redis://j'}}}", ['9: tenant_map.redis.peers.mars: expected one of regions, got the key "mars"']),
    ("tenant_map: {source: redis, redis: {url: 'redis://h', peers: {here: 'redis://i', ther: 'redis://j'}}}", ['9: tenant_map.redis.peers.here: expected other regions only (this region\'s own is tenant_map.redis.url), got the key "here"', '9: tenant_map.redis.peers.ther: expected one of regions (did you mean there?), got the key "ther"']),
    ("tenant_map: {redis: {url: 'redis://h', peers: {Mars: 'redis://j'}}}", ['9: tenant_map.redis.peers.Mars: expected a name of 1 to 32 of a-z 0-9 -, got the key "Mars"']),
    ("tenant_map: {redis: {url: 'redis://h', tls: {ca: x}}}", ["9: tenant_map.redis.tls: expected no such key, since no URL begins with rediss, got a mapping"]),
    ("tenant_map: {redis: {url: 'unix:///x', peers: {there: 'rediss://h'}, tls: {ca: x}}}", []),
    ("tenant_map: {redis: {url: 'rediss+cluster://h', tls: {key: x}}}", ["9: tenant_map.redis.tls.cert: expected a path, since tls.key is set, got nothing"]),
    ("tenant_map: {redis: {url: 'rediss://h', tls: {cert: x}}}", ["9: tenant_map.redis.tls.key: expected a path, since tls.cert is set, got nothing"]),
    ("tenant_map: {redis: {url: 'redis://h', tls: {cart: x}}}", ['9: tenant_map.redis.tls.cart: expected a known key (did you mean cert?), got "cart"']),
]  # fmt: skip


@pytest.mark.parametrize(("line", "lines"), ADDED)
def test_added(tmp_path: Path, line: str, lines: list[str]) -> None:
    assert problems_of(write(tmp_path, SMALL + line + "\n")) == [f"gateway.yaml:{line}" for line in lines]


REGION_CLUSTERS = [
    ('"region:*": {timeouts: {idle: 9s}}', []),
    ('"region:there": {limits: {pending: 1}}', []),
    ('"region:here": {limits: {pending: 1}}', []),
    ('"region:ther": {}', ['8: clusters.region:ther: expected region:* or the name of one of regions (did you mean there?), got the key "region:ther"']),
    ('"region:": {}', ['8: clusters.region:: expected region:* or region:NAME, got the key "region:"']),
    ('"zone:x": {endpoints: []}', ['8: clusters.zone:x: expected region:* or region:NAME, got the key "zone:x"']),
    ('"region:*": {endpoints: ["a:1"]}', ['8: clusters.region:*.endpoints: expected a known key (timeouts, retries, limits, breaker, outliers), got "endpoints"']),
    ('"region:*": {health: none}', ['8: clusters.region:*.health: expected a known key (timeouts, retries, limits, breaker, outliers), got "health"']),
    ('"region:*": {retries: {statuses: [503]}}', ['8: clusters.region:*.retries.statuses: expected a known key (attempts, budget), got "statuses"']),
    ('b: {endpoints: [], retries: {budget: 2, statuses: [503, 200, 503]}}', ["8: clusters.b.retries.budget: expected a number from 0 to 1, got 2", "8: clusters.b.retries.statuses[1]: expected a whole number from 400 to 599, got 200", "8: clusters.b.retries.statuses[2]: expected each value once, got 503 again"]),
    ('b: {endpoints: [], retries: {per_try_timeout: 15s}}', ['8: clusters.b.retries.per_try_timeout: expected less than timeouts.response (15s), got "15s"']),
    ('b: {endpoints: [], retries: {per_try_timeout: 2s}, timeouts: {response: 1s}}', ['8: clusters.b.retries.per_try_timeout: expected less than timeouts.response (1s), got "2s"']),
    ('b: {endpoints: [], retries: {backoff: {base: 1s}}}', ['8: clusters.b.retries.backoff.base: expected at most backoff.max (0.25s), got "1s"']),
    ('b: {endpoints: [], retries: {backoff: {max: 1ms}}}', ['8: clusters.b.retries.backoff.max: expected at least 0.025s, got "1ms"']),
    ('"region:*": {timeouts: {idle: 9}}', ["8: clusters.region:*.timeouts.idle: expected a duration such as 250ms, got 9"]),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "lines"), REGION_CLUSTERS)
def test_settings_for_other_regions_gateways(tmp_path: Path, entry: str, lines: list[str]) -> None:
    text = SMALL.replace("clusters: {app:", f"clusters: {{{entry}, app:")
    found = problems_of(write(tmp_path, text))
    assert found == [f"gateway.yaml:{line}" for line in lines]


TOKENS = f"admin: {{tokens: [{{name: a, role: operator, token: {'t' * 24}}}]}}\n"


def test_off_loopback_is_open_to_who_has_a_token_and_warns_of_what_is_easily_forgotten(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("hop: 127.0.0.1:8082", "hop: 127.0.0.1:8082, admin: 0.0.0.0:8081") + TOKENS)
    sources = read_sources(path, ENVIRON)
    settings = load(sources, ENVIRON)
    assert warnings_for(settings, sources) == [
        f"{path}:9: admin.tokens[0].token: the token stands in the file: ${{NAME}} or ${{file:path}} keeps it out",
        f"{path}:2: listen.admin: admin.hosts is empty: the API answers only to the address that was connected to",
    ]
    assert "t" * 24 not in repr(settings)


def _warnings(path: Path) -> list[str]:
    sources = read_sources(path, ENVIRON)
    return [line.replace(f"{path.parent}/", "") for line in warnings_for(load(sources, ENVIRON), sources)]


SOURCES = [
    ("{source: redis, partition_after: 30s, redis: {url: 'redis://u:${HOP_KEY}@h', peers: {there: 'unix:///x'}}}", []),
    ("{source: redis, redis: {url: 'redis://h'}}", ["redis.peers: there is not named: what is written there does not come here"]),
    ("{redis: {url: 'redis://h', peers: {there: 'redis://i'}}}", ["redis: not used, since tenant_map.source is yaml"]),
    ("{source: redis, redis: {url: 'redis://u:pw@h', peers: {there: 'redis://:pw@i'}}}", [
        "redis.url: the password stands in the file: ${NAME} or ${file:path} keeps it out",
        "redis.peers.there: the password stands in the file: ${NAME} or ${file:path} keeps it out",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("written", "lines"), SOURCES)
def test_a_replicated_map_that_is_probably_not_meant_is_warned_of(
    tmp_path: Path, written: str, lines: list[str]
) -> None:
    path = write(tmp_path, SMALL + f"tenant_map: {written}\n")
    assert _warnings(path) == [f"gateway.yaml:9: tenant_map.{line}" for line in lines]


def test_who_has_no_other_region_is_never_cut_off(tmp_path: Path) -> None:
    text = SINGLE + "tenant_map: {partition_after: 30s}\n"
    assert _warnings(write(tmp_path, text)) == [
        "gateway.yaml:6: tenant_map.partition_after: there is no other region to hear from: it has no effect"
    ]


def test_app_is_not_needed_when_a_route_takes_everything(tmp_path: Path) -> None:
    text = SMALL.replace("{app:", "{api:") + "routes: [{prefix: /, cluster: api}]\n"
    assert settings_of(write(tmp_path, text)).clusters.keys() == {"api", "region:there"}


def test_external_without_keys_needs_somewhere_to_send_clients(tmp_path: Path) -> None:
    text = SMALL.replace('hop_keys: ["${HOP_KEY}"]', "misroute: external").replace(", hop: 127.0.0.1:8082", "")
    path = write(tmp_path, text)
    assert problems_of(path) == []
    sources = read_sources(path, ENVIRON)
    [warning] = warnings_for(load(sources, ENVIRON), sources)
    assert warning == (
        f"{path}:1: hop_keys: no key: what no redirect can answer (API calls, uploads, failover) cannot be carried"
    )
    text = text.replace('public: "https://{tenant}.there.example.com", ', "")
    assert problems_of(write(tmp_path, text)) == [
        "gateway.yaml:6: regions.there.public: expected a URL, since misroute is external, got nothing"
    ]


def test_a_dangling_reference_from_an_overlay_or_a_variable_is_named_there(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL, ("here", "\nroutes: [{prefix: /, cluster: x}]\n"))
    assert problems_of(path, ENVIRON | {"LANDBRIDGE__tenancy__unknown": "mars"}) == [
        'regions/here.yaml:2: routes[0].cluster: expected one of clusters, got "x"',
        'LANDBRIDGE__tenancy__unknown: tenancy.unknown: expected reject or one of regions, got "mars"',
    ]


@pytest.mark.parametrize(
    "text",
    [
        "regions: 5",
        "regions: {here: 5, there: {gateways: [a]}}",
        "clusters: 5",
        "listen: 5",
        "routes: 5",
        "hop_keys: 5",
    ],
)
def test_what_could_not_be_read_provokes_no_further_problem(tmp_path: Path, text: str) -> None:
    key = text.partition(":")[0]
    keys = re.split(r"^(?=\w)", SMALL, flags=re.MULTILINE)  # each top-level key with the lines below it
    kept = [part for part in keys if not part.startswith(f"{key}:")]
    found = problems_of(write(tmp_path, "".join(kept) + text + "\n"))
    assert found
    assert all(f" {key}" in line for line in found)
