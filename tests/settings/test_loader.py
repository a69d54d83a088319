# ruff: noqa: E501  a table of messages is read line by line
"""From files and environment to settings: every kind of mistake with its text, all at once, and nothing secret."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from gateway.core.placement import Misroute
from gateway.settings import cluster_keys, keys
from gateway.settings.document import Leaf, Source, parse_value
from gateway.settings.loader import decode_sources, digest, encode_sources, load, masked, read_sources, warnings_for
from gateway.settings.machine import usable_cores
from gateway.settings.problems import Invalid
from gateway.settings.reference import every_key
from gateway.settings.schema import (
    REGION_TIMEOUTS,
    AccessLogSettings,
    Address,
    BackoffSettings,
    ClusterTimeoutSettings,
    DnsSettings,
    HealthSettings,
    MapSource,
    RedisSettings,
    ResolverSettings,
    RetrySettings,
    RouteSettings,
    Scheme,
    Settings,
    TenantMapSettings,
    TlsSettings,
)
from gateway.settings.shape import BAD, Later, Walk
from tests.support.configs import ENVIRON, KEY, SMALL, problems_of, settings_of, write


def test_a_small_configuration_is_whole(tmp_path: Path) -> None:
    settings = settings_of(write(tmp_path, SMALL))
    assert settings.region == "here"
    assert settings.listen.http == Address("127.0.0.1", 8080)
    assert settings.listen.admin == Address("127.0.0.1", 8081)
    assert settings.state_dir == str(tmp_path / "state")
    assert settings.tenant_map.file == str(tmp_path / "tenants.yaml")
    assert settings.hop_keys == (KEY,)
    assert settings.workers == usable_cores()
    assert settings.clusters["region:there"].timeouts == REGION_TIMEOUTS
    assert "region:here" not in settings.clusters
    assert settings.origins == {
        "regions.here.public": f"{tmp_path}/gateway.yaml:5",
        "regions.there.public": f"{tmp_path}/gateway.yaml:6",
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings


def test_five_mistakes_in_one_file_are_five_lines(tmp_path: Path) -> None:
    text = """\
region: here
listen: {http: 127.0.0.1:8080, hop: 127.0.0.1:8082}
state_dir: state
regions:
  here: {gateways: ["gw.here:8082"]}
  there: {gateways: ["gw.there:8082"]}
hop_keys: ["${NOT_SET}"]
clusters:
  app:
    endpoints: ["127.0.0.1:9000"]
    timeouts:
      connect: fast
routes: [{prefix: /, cluster: ap}]
drian: {}
workers: 2
workers: 3
"""
    assert problems_of(write(tmp_path, text)) == [
        "gateway.yaml:7: hop_keys[0]: expected the environment variable NOT_SET to be set, got nothing",
        'gateway.yaml:12: clusters.app.timeouts.connect: expected a duration such as 250ms, got "fast"',
        'gateway.yaml:13: routes[0].cluster: expected one of clusters (did you mean app?), got "ap"',
        'gateway.yaml:14: drian: expected a known key (did you mean drain?), got "drian"',
        "gateway.yaml:16: workers: expected this key once, got it again (first on line 15)",
    ]


MISTAKES = [
    ("fleet: Prod", 'fleet: expected a name of 1 to 32 of a-z 0-9 -, got "Prod"'),
    ("fleet: [a]", "fleet: expected a name of 1 to 32 of a-z 0-9 -, got a list"),
    ("fleet:", "fleet: expected a name of 1 to 32 of a-z 0-9 -, got nothing"),
    ("workers: 0", "workers: expected auto or a whole number from 1 to 256, got 0"),
    ("workers: many", 'workers: expected auto or a whole number from 1 to 256, got "many"'),
    ("trusted_proxies: 10.0.0.0/24", 'trusted_proxies: expected a list, got "10.0.0.0/24"'),
    ("trusted_proxies: [10.0.0.1/24]", 'trusted_proxies[0]: expected a network such as 10.20.0.0/24, got "10.0.0.1/24"'),
    ("trusted_proxies: [10.0.0.0/24, 10.0.0.0/24]", 'trusted_proxies[1]: expected each value once, got "10.0.0.0/24" again'),
    ("misroute: inside", 'misroute: expected auto, internal or external, got "inside"'),
    ("misroute: intern", 'misroute: expected auto, internal or external (did you mean internal?), got "intern"'),
    ("limits: {headers: '128'}", 'limits.headers: expected a whole number from 8 to 10000, got the text "128"'),
    ("limits: {headers: 7}", "limits.headers: expected a whole number from 8 to 10000, got 7"),
    ("limits: {header_bytes: 65536}", "limits.header_bytes: expected a size such as 64KiB, got 65536"),
    ("limits: {header_bytes: 1B}", 'limits.header_bytes: expected a size from 1KiB to 1MiB, got "1B"'),
    ("limits: {body_bytes: all}", 'limits.body_bytes: expected none or a size such as 64KiB, got "all"'),
    ("limits: 5", "limits: expected a mapping, got 5"),
    ("limits:", "limits: expected a mapping, got nothing"),
    ("timeouts: {header: 0s}", 'timeouts.header: expected a duration from 1ms to 24h, got "0s"'),
    ("timeouts: {header: 10}", "timeouts.header: expected a duration such as 250ms, got 10"),
    ("timeouts: {idle: 4s}", 'timeouts.idle: expected a known key (header, body, keepalive), got "idle"'),
    ("timeouts: {keepalife: 4s}", 'timeouts.keepalife: expected a known key (did you mean keepalive?), got "keepalife"'),
    ("drain: {grace: true}", "drain.grace: expected a duration such as 250ms, got true"),
    ("probes: {live: healthz}", 'probes.live: expected a path such as /healthz, without query, got "healthz"'),
    ("probes: {live: /a?b}", 'probes.live: expected a path such as /healthz, without query, got "/a?b"'),
    ("access_log: {sample: 2}", "access_log.sample: expected a number from 0 to 1, got 2"),
    ("access_log: {path: ''}", 'access_log.path: expected a path, got ""'),
    ("telemetry: {tenants: -1}", "telemetry.tenants: expected a whole number from 0 to 100000, got -1"),
    ("tenant_map: {source: etcd}", 'tenant_map.source: expected yaml or redis, got "etcd"'),
    ("tenant_map: {partition_after: 30}", "tenant_map.partition_after: expected a duration such as 250ms, got 30"),
    ("tenant_map: {partition_after: 10ms}", 'tenant_map.partition_after: expected a duration from 1s to 24h, got "10ms"'),
    ("tenant_map: {loss_guard: 5}", "tenant_map.loss_guard: expected a percentage such as 5%, got 5"),
    ("tenancy: {resolvers: [host]}", "tenancy.resolvers[0]: expected one of host, header, path, query, cookie, fixed, "
     'jwt, alb, with its value, got "host"'),
    ("tenancy: {resolvers: [{host: a, path: b}]}", "tenancy.resolvers[0]: expected one of host, header, path, query, cookie, "
     "fixed, jwt, alb, with its value, got 2 keys"),
    ("tenancy: {resolvers: [{hots: a}]}", "tenancy.resolvers[0].hots: expected one of host, header, path, query, cookie, "
     'fixed, jwt, alb (did you mean host?), got "hots"'),
    ("tenancy: {resolvers: [{host: {tenant}.x}]}", None),
    ("tenancy: {resolvers: [{host: {tenant: }}]}", "tenancy.resolvers[0].host: expected a text, in quotes, got a mapping"),
    ("tenancy: {resolvers: [{header: X-Tenant}]}", "tenancy.resolvers[0].header: expected a field that is neither the "
     'gateway\'s own nor HTTP\'s, such as X-Tenant-ID, got "X-Tenant"'),
    ("filters: {options: {region: 5}}", "filters.options.region: expected a mapping, got 5"),
    ("filters: {options: {Region: {}}}", 'filters.options.Region: expected a filter: one of identify, tenant, region, access, throttle, shed, forward, redirect, reply, headers, log, got the key "Region"'),
    ("<<: {}", '"<<": expected a known key'),
    ("routes: [/]", 'routes[0]: expected a mapping, got "/"'),
    ("routes: [{prefix: /x}]", "routes[0].cluster: expected a cluster name of 1 to 63 of a-z 0-9 _ . -, got nothing"),
    ("routes: [{prefix: x, cluster: app}]", 'routes[0].prefix: expected a path prefix such as /api/, without query, got "x"'),
    ("routes: [{prefix: /, cluster: 'region:there'}]", "routes[0].cluster: expected a cluster name of 1 to 63 of a-z 0-9 _ . "
     '-, got "region:there"'),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), MISTAKES)
def test_a_mistake_is_named_with_file_line_path_expected_and_found(
    tmp_path: Path, line: str, problem: str | None
) -> None:
    found = problems_of(write(tmp_path, SMALL + line + "\n"))
    assert len(found) == 1
    assert found[0].startswith(f"gateway.yaml:9: {problem or 'expected valid YAML'}")


CLUSTERS = [
    ("{}", "clusters.app.endpoints: expected a list, got nothing"),
    ("{endpoints: [app]}", 'clusters.app.endpoints[0]: expected host:port such as 10.1.0.4:9000, got "app"'),
    ("{endpoints: ['app:0']}", 'clusters.app.endpoints[0]: expected host:port such as 10.1.0.4:9000, got "app:0"'),
    ("{endpoints: ['http://app:80']}", 'clusters.app.endpoints[0]: expected host:port, dns://host:port or srv://_service._proto.name, got "http://app:80"'),
    ("{endpoints: ['dns://app']}",
     'clusters.app.endpoints[0]: expected dns://host:port such as dns://app.internal:9000, got "dns://app"'),
    ("{endpoints: ['dns://10.0.0.1:80']}", "clusters.app.endpoints[0]: expected a name behind dns:// (an address needs no "
     'dns://), got "dns://10.0.0.1:80"'),
    ("{endpoints: ['srv://_http._tcp.app:80']}", "clusters.app.endpoints[0]: expected srv://_service._proto.name such as "
     'srv://_http._tcp.app.internal, without a port (its records name one), got "srv://_http._tcp.app:80"'),
    ("{endpoints: ['srv://app.internal']}", "clusters.app.endpoints[0]: expected srv://_service._proto.name such as "
     'srv://_http._tcp.app.internal, got "srv://app.internal"'),
    ("{endpoints: ['dns://a:1', 'dns://A:1']}", 'clusters.app.endpoints[1]: expected each value once, got "dns://A:1" again'),
    ("{endpoints: ['a:1', 'A:1']}", 'clusters.app.endpoints[1]: expected each value once, got "A:1" again'),
    ("{endpoints: ['a:1'], health: tcp}", 'clusters.app.health: expected none or a mapping, got "tcp"'),
    ("{endpoints: ['a:1'], health: {}}", "clusters.app.health.path: expected a path such as /healthz, got nothing"),
    ("{endpoints: ['a:1'], health: {path: /h, interval: 1ms}}",
     'clusters.app.health.interval: expected a duration from 10ms to 1h, got "1ms"'),
    ("{endpoints: ['a:1'], limits: {connections: 0}}",
     "clusters.app.limits.connections: expected a whole number from 1 to 1000000, got 0"),
    ("{endpoints: ['a:1'], balance: fastest}",
     'clusters.app.balance: expected least_request, round_robin, weighted or hash (did you mean least_request?), got "fastest"'),
    ("{endpoints: ['a:1'], balance: hash}", "clusters.app.hash: expected what to hash by, since balance is hash, got nothing"),
    ("{endpoints: ['a:1'], hash: {by: tenant}}", "clusters.app.hash: expected no such key unless balance is hash, got a mapping"),
    ("{endpoints: ['a:1'], balance: hash, hash: {by: cookie}}", "clusters.app.hash.name: expected the cookie's name, got nothing"),
    ("{endpoints: ['a:1'], balance: hash, hash: {name: x}}",
     'clusters.app.hash.name: expected no such key, since by is tenant, got "x"'),
    ("{endpoints: ['a:1'], balance: hash, hash: {by: header, name: X-U, sticky: 1h}}",
     'clusters.app.hash.sticky: expected no such key, unless by is cookie, got "1h"'),
    ("{endpoints: ['a:1'], balance: hash, hash: {by: cookie, name: s, sticky: 1ms}}",
     'clusters.app.hash.sticky: expected session or a duration from 1s to 366d, got "1ms"'),
    ("{endpoints: ['a:1 weight=0']}", 'clusters.app.endpoints[0]: expected weight=1 to weight=1000, such as 10.1.0.4:9000 weight=3, '
     'got "a:1 weight=0"'),
    ("{endpoints: ['srv://_http._tcp.a weight=2']}", 'clusters.app.endpoints[0]: expected srv:// without a weight (its records have '
     'weights), got "srv://_http._tcp.a weight=2"'),
    ("{endpoints: ['a:1'], breaker: on}", 'clusters.app.breaker: expected none or a mapping, got "on"'),
    ("{endpoints: ['a:1'], breaker: {error_rate: 0}}",
     "clusters.app.breaker.error_rate: expected a number from 0.01 to 1, got 0"),
    ("{endpoints: ['a:1'], breaker: {open: 2m}}", 'clusters.app.breaker.open: expected at most open_max (60s), got "2m"'),
    ("{endpoints: ['a:1'], breaker: {fallback: app}}",
     'clusters.app.breaker.fallback: expected another one of clusters, got "app"'),
    ("{endpoints: ['a:1'], outliers: {eject_max: 10s}}", 'clusters.app.outliers.eject_max: expected at least eject (30s), got "10s"'),
    ("{endpoints: ['a:1'], outliers: {eject_max_percent: 101}}",
     "clusters.app.outliers.eject_max_percent: expected a whole number from 0 to 100, got 101"),
    ("{endpoints: ['a:1'], health: {path: /, status: [2x]}}",
     'clusters.app.health.status[0]: expected a status such as 200, or a class such as 2xx, got "2x"'),
]  # fmt: skip


@pytest.mark.parametrize(("cluster", "problem"), CLUSTERS)
def test_mistakes_in_a_cluster(tmp_path: Path, cluster: str, problem: str) -> None:
    text = SMALL.replace('{app: {endpoints: ["127.0.0.1:9000"]}}', f"{{app: {cluster}}}")
    assert problems_of(write(tmp_path, text)) == [f"gateway.yaml:8: {problem}"]


LATER = [
    ("throttle: {tenant: {rate: 1000}}", "throttle.tenant.rate: expected a rate such as 200/s, got 1000"),
    ("throttle: {tenant: {rate: 0/s}}", 'throttle.tenant.rate: expected a rate from 1/h to 10000000/s, got "0/s"'),
    ("throttle: {tenant: {}}", "throttle.tenant: expected a rate or a concurrency, got a mapping"),
    ("throttle: {tenant: {burst: 5}}", "throttle.tenant.burst: expected a rate beside it: a burst is how many of its requests may come at once, got 5"),
    ("throttle: {client: {rate: 1/s, by: cookie}}", 'throttle.client.by: expected address or header:NAME, got "cookie"'),
    ("throttle: {gateway: {rate: 1/s, shadow: yes}}", 'throttle.gateway.shadow: expected true or false, got "yes"'),
    ("throttle: {gateway: {rate: 1/s, concurency: 1}}", 'throttle.gateway.concurency: expected a known key (did you mean concurrency?), got "concurency"'),
    ("throttle: {exempt: {addresses: [10.0.0.1/8]}}", 'throttle.exempt.addresses[0]: expected a network such as 10.20.0.0/24, got "10.0.0.1/8"'),
    ("throttle: {exempt: {tenants: [ACME]}}", 'throttle.exempt.tenants[0]: expected a tenant id: 1 to 63 of a-z 0-9 - _, got "ACME"'),
    ("shedding: {min: 0}", "shedding.min: expected a whole number from 1 to 1000000, got 0"),
    ("shedding: {min: 20, max: 10}", "shedding.min: expected at most shedding.max (10), got 20"),
    ("shedding: on", 'shedding: expected a mapping, got "on"'),
    ("shedding: {label: a b}", "shedding.label: expected a label's name: 1 to 63 of A-Z a-z 0-9 . _ / -, got \"a b\""),
    ("trusted_proxies: [10.0.0.0/8]\nshedding: {header: Host}", 'shedding.header: expected a field that is neither the gateway\'s own nor HTTP\'s, such as X-Priority, got "Host"'),
    ("shedding: {header: X-Class}", 'shedding.header: expected trusted_proxies that may set it, of which there are none, got "X-Class"'),
    ("routes: [{prefix: /, cluster: app, priority: high}]\nshedding: {}", 'routes[0].priority: expected critical, default or bulk, got "high"'),
    ("routes: [{prefix: /, cluster: app, priority: bulk}]", 'routes[0].priority: expected shedding beside it: without that, no class has a meaning, got "bulk"'),
    ("routes: [{prefix: /, cluster: app, throttle: {burst: 1}}]", "routes[0].throttle.burst: expected a rate beside it: a burst is how many of its requests may come at once, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), LATER)
def test_what_does_not_work_yet_is_refused_by_name(tmp_path: Path, line: str, problem: str) -> None:
    text = SMALL + line + "\n"
    if line.startswith("clusters"):
        text = SMALL.replace(SMALL.splitlines()[-1], line)
    [found] = problems_of(write(tmp_path, text))
    assert found.split(": ", 1)[1] == problem
    assert "secret" not in found


def test_what_asks_for_nothing_of_a_later_version_is_fine(tmp_path: Path) -> None:
    empty = "tenancy: {agree: []}\nfilters: {paths: [], options: {}}\nadmin: {hosts: [], tokens: []}\n"
    assert problems_of(write(tmp_path, SMALL + empty)) == []


def test_what_is_required_is_named_when_the_file_is_empty(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, "")) == [
        "gateway.yaml:1: region: expected a name of 1 to 32 of a-z 0-9 -, got nothing",
        "gateway.yaml:1: listen: expected a mapping, got nothing",
        "gateway.yaml:1: state_dir: expected a path, got nothing",
        "gateway.yaml:1: regions: expected a mapping, got nothing",
        "gateway.yaml:1: clusters.app: expected the cluster app, to which everything goes that no route matches, got nothing",
    ]


def test_a_missing_key_is_placed_at_its_mapping(tmp_path: Path) -> None:
    text = SMALL.replace("listen: {http: 127.0.0.1:8080, hop: 127.0.0.1:8082}", "listen:\n  hop: 127.0.0.1:8082")
    assert problems_of(write(tmp_path, text)) == [
        "gateway.yaml:2: listen.http: expected an address such as 0.0.0.0:8080, got nothing"
    ]


def test_every_option_of_every_kind_is_read(tmp_path: Path) -> None:
    text = SMALL.replace(
        '{app: {endpoints: ["127.0.0.1:9000"]}}',
        """
  app:
    endpoints: ["127.0.0.1:9000", "app.internal:9000", "[::1]:9000"]
    balance: least_request
    timeouts: {connect: 250ms, response: 2m}
    health: {path: /up?x=1, interval: 1s}
    retries: {attempts: 0, budget: 0.2, statuses: [503], per_try_timeout: 1s, backoff: {base: 5ms, max: 1s}}
    limits: {connections: 10, pending: 0}
  "region:*": {timeouts: {response: 9s, idle: 8s}, limits: {pending: 7}}
  "region:there": {timeouts: {idle: 7s}, retries: {attempts: 3}}""",
    )
    text += """
workers: 3
fleet: staging
misroute: internal
trusted_proxies: [10.0.0.0/24, "2001:DB8::/64"]
routes: [{prefix: /, cluster: app}, {prefix: /api, cluster: app}]
tenancy:
  unknown: there
  resolvers: [{host: "{tenant}.example.com"}, {header: X-T}, {path: "/t/{tenant}"}, {query: t}, {cookie: t}, {fixed: no}]
limits: {connections: 5, header_bytes: 2KiB, headers: 9, target_bytes: 1KiB, body_bytes: 1GiB}
timeouts: {header: 1s, body: 2s, keepalive: 3s}
drain: {grace: 0s, limit: 1s}
probes: {live: /l, ready: /r}
tenant_map: {source: yaml, file: sub/t.yaml, loss_guard: 12.5%}
filters: {options: {region: {a: 1, b: [true, x, {c: 1.5}], d: "${HOP_KEY}"}}}
access_log: {path: none, sample: 0.25}
telemetry: {tenants: 0}
"""
    settings = settings_of(write(tmp_path, text))
    app = settings.clusters["app"]
    assert app.endpoints == (Address("127.0.0.1", 9000), Address("app.internal", 9000), Address("::1", 9000))
    assert app.timeouts == ClusterTimeoutSettings(connect=0.25, response=120.0)
    assert app.health == HealthSettings("/up?x=1", interval=1.0)
    assert app.retries == RetrySettings(0, 0.2, (503,), 1.0, BackoffSettings(0.005, 1.0))
    assert (app.retries.attempts, app.limits.connections, app.limits.pending) == (0, 10, 0)
    there = settings.clusters["region:there"]
    assert there.timeouts == ClusterTimeoutSettings(response=9.0, idle=7.0)
    assert (there.retries.attempts, there.limits.pending, there.limits.connections) == (3, 7, 1024)
    assert (settings.workers, settings.fleet, settings.misroute) == (3, "staging", Misroute.INTERNAL)
    assert settings.trusted_proxies == ("10.0.0.0/24", "2001:db8::/64")
    assert settings.routes == (RouteSettings("/", "app"), RouteSettings("/api", "app"))
    assert settings.tenancy.unknown == "there"
    assert settings.tenancy.resolvers[0] == ResolverSettings("host", "{tenant}.example.com")
    assert settings.tenancy.resolvers[-1] == ResolverSettings("fixed", "no")
    assert (settings.limits.header_bytes, settings.limits.body_bytes) == (2048, 1 << 30)
    assert (settings.drain.grace, settings.drain.limit, settings.probes.ready) == (0.0, 1.0, "/r")
    assert (settings.tenant_map.file, settings.tenant_map.loss_guard) == (str(tmp_path / "sub/t.yaml"), 0.125)
    assert settings.filter_options == {"region": {"a": 1, "b": [True, "x", {"c": 1.5}], "d": KEY}}
    assert settings.access_log == AccessLogSettings(None, 0.25)
    assert settings.tenant_series == 0


def test_endpoints_that_name_servers_know_and_how_they_are_asked(tmp_path: Path) -> None:
    text = SMALL.replace('"127.0.0.1:9000"', '"dns://App.internal:9000", "srv://_http._TCP.app.internal", "app:1"')
    text += 'dns: {servers: [10.0.0.2, "10.0.0.3:5353", "::1", "[::1]:54"], ttl_min: 500ms, ttl_max: 1m, timeout: 1s}\n'
    settings = settings_of(write(tmp_path, text))
    assert settings.clusters["app"].endpoints == (
        Address("app.internal", 9000, Scheme.DNS),
        Address("_http._tcp.app.internal", 0, Scheme.SRV),
        Address("app", 1),
    )
    assert [str(endpoint) for endpoint in settings.clusters["app"].endpoints] == [
        "dns://app.internal:9000",
        "srv://_http._tcp.app.internal",
        "app:1",
    ]
    servers = (Address("10.0.0.2", 53), Address("10.0.0.3", 5353), Address("::1", 53), Address("::1", 54))
    assert settings.dns == DnsSettings(servers, 0.5, 60.0, 1.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings


REDIS = """\
tenant_map:
  source: redis
  partition_after: 30s
  redis:
    url: rediss://landbridge:${file:password}@valkey.here
    peers: {there: "${THERE}"}
    tls: {ca: ca.pem, cert: a.pem, key: a.key}
"""


def test_a_replicated_map_is_read_and_its_passwords_are_nowhere(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2/with@all:of?it\n")
    environ = ENVIRON | {"THERE": "redis+sentinel://:hunter2@s1,s2/main"}
    path = write(tmp_path, SMALL + REDIS)
    settings = settings_of(path, environ)
    assert settings.tenant_map == TenantMapSettings(
        str(tmp_path / "tenants.yaml"),
        MapSource.REDIS,
        redis=RedisSettings(
            "rediss://landbridge:hunter2%2Fwith%40all%3Aof%3Fit@valkey.here:6379/0",
            {"there": "redis+sentinel://:hunter2@s1:26379,s2:26379/main/0"},
            TlsSettings(str(tmp_path / "ca.pem"), str(tmp_path / "a.pem"), str(tmp_path / "a.key")),
        ),
        partition_after=30.0,
    )
    plain = masked(settings)
    assert plain["tenant_map"]["redis"]["url"] == "rediss://***@valkey.here:6379/0"
    assert plain["tenant_map"]["redis"]["peers"] == {"there": "redis+sentinel://***@s1:26379,s2:26379/main/0"}
    sources = read_sources(path, environ)
    assert warnings_for(settings, sources) == []
    assert "hunter2" not in f"{settings!r} {plain} {encode_sources(sources)!r}"
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings)
    assert again == settings


def test_an_overlay_merges_and_its_problems_name_its_own_lines(tmp_path: Path) -> None:
    overlay = 'region: here\n\nclusters:\n  app:\n    endpoints: ["10.0.0.1:9000"]\n    timeouts: {connect: 2s}\n'
    path = write(tmp_path, SMALL, ("here", overlay))
    settings = settings_of(path)
    assert settings.clusters["app"].endpoints == (Address("10.0.0.1", 9000),)
    assert settings.clusters["app"].timeouts.connect == 2.0
    write(tmp_path, SMALL + "fleet: X\n", ("here", overlay.replace("2s", "2") + "drian: 1\n"))
    assert problems_of(path) == [
        'gateway.yaml:9: fleet: expected a name of 1 to 32 of a-z 0-9 -, got "X"',
        "regions/here.yaml:6: clusters.app.timeouts.connect: expected a duration such as 250ms, got 2",
        'regions/here.yaml:7: drian: expected a known key (did you mean drain?), got "drian"',
    ]


def test_syntax_errors_of_both_files_are_told_at_once(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, "region: here\na: [\n", ("here", "b: {\n")), {"LANDBRIDGE_REGION": "here"})
    assert [line.split(":")[0] for line in found] == ["gateway.yaml", "regions/here.yaml"]


def test_the_region_is_chosen_by_environment_then_override_then_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL, ("there", "fleet: other\n"))
    assert settings_of(path).region == "here"
    for environ in ({"LANDBRIDGE_REGION": "there"}, {"LANDBRIDGE__region": "there"}):
        settings = settings_of(path, ENVIRON | environ)
        assert (settings.region, settings.fleet) == ("there", "other")
        assert "region:here" in settings.clusters
    both = ENVIRON | {"LANDBRIDGE_REGION": "there", "LANDBRIDGE__region": "here"}
    assert settings_of(path, both).fleet == "other"


def test_a_region_that_is_written_as_a_reference_still_chooses_its_overlay(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("region: here", "region: ${WHERE}"), ("there", "fleet: other\n"))
    assert settings_of(path, ENVIRON | {"WHERE": "there"}).fleet == "other"
    [problem] = problems_of(path)
    assert problem == "gateway.yaml:1: region: expected the environment variable WHERE to be set, got nothing"


@pytest.mark.parametrize("region", ["../x", "no such", ""])
def test_a_region_that_is_no_name_reads_no_file_and_is_a_problem(tmp_path: Path, region: str) -> None:
    (tmp_path / "x.yaml").write_text("fleet: stolen\n")
    [problem] = problems_of(write(tmp_path, SMALL), ENVIRON | {"LANDBRIDGE_REGION": region})
    assert problem.startswith("LANDBRIDGE_REGION: region: expected a name of 1 to 32 of a-z 0-9 -, got ")


def test_an_overlay_cannot_rename_its_region(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, SMALL, ("here", "region: there\n"))) == [
        'regions/here.yaml:1: region: expected here, the region whose overlay this is, got "there"'
    ]


OVERRIDES = [
    ("drain__grace", "5s", lambda s: s.drain.grace == 5.0),
    ("workers", "7", lambda s: s.workers == 7),
    ("hop_keys", f'["{KEY}", "{KEY[::-1]}"]', lambda s: s.hop_keys == (KEY, KEY[::-1])),
    ("listen__admin", "[::1]:9", lambda s: s.listen.admin == Address("::1", 9)),
    ("listen", '{"http": "127.0.0.1:1"}', lambda s: s.listen.http.port == 1 and s.listen.hop is not None),
    ("clusters__app__health", '{"path": "/h"}', lambda s: s.clusters["app"].health.path == "/h"),
    ("clusters__app__health", "none", lambda s: s.clusters["app"].health is None),
    ("tenancy__resolvers", '[{"host": "{tenant}.x.y"}]', lambda s: s.tenancy.resolvers[0].value == "{tenant}.x.y"),
    ("fleet", '"quoted"', lambda s: s.fleet == "quoted"),
    ("fleet", "no", lambda s: s.fleet == "no"),
    ("state_dir", "rel", lambda s: s.state_dir.endswith("/rel")),
    ("filters__options__log__x", "1", lambda s: s.filter_options == {"log": {"x": 1}}),
]


@pytest.mark.parametrize(("name", "value", "holds"), OVERRIDES)
def test_an_override_sets_its_key(tmp_path: Path, name: str, value: str, holds: object) -> None:
    settings = settings_of(write(tmp_path, SMALL), ENVIRON | {f"LANDBRIDGE__{name}": value})
    assert callable(holds)
    assert holds(settings)


BAD_OVERRIDES = [
    ("drain__grace", "5", "drain.grace: expected a duration such as 250ms, got 5"),
    ("drain__grase", "5s", 'drain.grase: expected a known key (did you mean grace?), got "grase"'),
    ("nothing", "1", "nothing: expected a known key"),
    ("hop_keys__0", KEY, "hop_keys: expected a mapping to set a key in, got a list (give it whole, as JSON)"),
    ("region__x", "1", "region: expected a mapping to set a key in, got a value (give it whole, as JSON)"),
    ("a____b", "1", "expected a name such as LANDBRIDGE__drain__grace, got an empty key"),
    ("trusted_proxies", '["10.0.0.0/24"', 'trusted_proxies: expected a list, got "["10.0.0.0/24""'),
    ("limits", '{"headers": 9, "headers": 10}', "headers: expected this key once, got it again"),
    ("limits__headers", '"9"', 'limits.headers: expected a whole number from 8 to 10000, got the text "9"'),
    ("hop_keys", KEY, "hop_keys: expected a list, got a value that is not shown"),
]


@pytest.mark.parametrize(("name", "value", "problem"), BAD_OVERRIDES)
def test_a_bad_override_is_named_by_its_variable(tmp_path: Path, name: str, value: str, problem: str) -> None:
    [found] = problems_of(write(tmp_path, SMALL), ENVIRON | {f"LANDBRIDGE__{name}": value})
    assert found.startswith(f"LANDBRIDGE__{name}: {problem}")
    assert KEY not in found


def test_references_are_expanded_in_values_and_files_are_read_at_each_load(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text(KEY + "\n")
    text = SMALL.replace("${HOP_KEY}", "${file:key}") + "fleet: a${X}b\naccess_log: {path: '$${X}'}\n"
    path = write(tmp_path, text)
    environ = {"X": "-1-"}
    sources = read_sources(path, environ)
    settings = load(sources, environ)
    assert (settings.hop_keys, settings.fleet) == ((KEY,), "a-1-b")
    assert settings.access_log.path == str(tmp_path / "${X}")
    secret.write_text(KEY[::-1])
    assert load(sources, environ).hop_keys == (KEY[::-1],)


def test_a_relative_file_starts_at_the_folder_of_the_file_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL, ("here", 'hop_keys: ["${file:key}"]\ntenant_map: {file: t.yaml}\n'))
    (tmp_path / "regions" / "key").write_text(KEY)
    settings = settings_of(path)
    assert settings.hop_keys == (KEY,)
    assert settings.tenant_map.file == str(tmp_path / "regions" / "t.yaml")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("${file:absent}", "expected to read {folder}/absent, got no such file or directory"),
        ("${file:.}", "expected to read {folder}/., got is a directory"),
        ("${file:big}", "expected at most 65536 bytes in {folder}/big, got more"),
        ("${file:latin}", "expected UTF-8 in {folder}/latin, got other bytes"),
        ("${NOT_SET}", "expected the environment variable NOT_SET to be set, got nothing"),
        ("${A:-b}", "expected ${NAME} or ${file:path}, got another use of ${"),
        ("${A", "expected ${NAME} or ${file:path}, got another use of ${"),
        ("${}", "expected ${NAME} or ${file:path}, got another use of ${"),
        ("${SHORT}", "expected a key of at least 32 bytes, got a value that is not shown"),
        ("hunter2", "expected a key of at least 32 bytes, got a value that is not shown"),
        ("", "expected a key of at least 32 bytes, got a value that is not shown"),
    ],
)
def test_a_secret_that_cannot_be_had_or_used_is_a_problem_and_never_shown(
    tmp_path: Path, written: str, problem: str
) -> None:
    (tmp_path / "big").write_text("x" * 70_000)
    (tmp_path / "latin").write_bytes(b"\xe9" * 40)
    path = write(tmp_path, SMALL.replace("${HOP_KEY}", written))
    with pytest.raises(Invalid) as caught:
        settings_of(path, {"SHORT": "hunter2"})
    assert str(caught.value) == f"{path}:7: hop_keys[0]: " + problem.replace("{folder}", str(tmp_path))


def test_a_value_that_came_from_a_reference_is_shown_as_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "fleet: ${X}\nrouteS: {}\n")
    found = problems_of(path, ENVIRON | {"X": "S3cret!"})
    assert found[0] == 'gateway.yaml:9: fleet: expected a name of 1 to 32 of a-z 0-9 -, got "${X}"'


@pytest.mark.parametrize(
    "text",
    [
        "hop_keys: [{k}]",
        "hop_keys: {k}",
        "hop_keys: ['{k}', '{k}']",
        "hop_keyes: ['{k}']",
        "hop_keys: [[{k}]]",
        "admin: {{tokens: {k}}}",
        "admin: {{tokens: [{k}]}}",
        "admin: {{tokens: [{{name: a, role: viewer, token: '{k}!'}}]}}",
        "admin: {{tokens: [{{name: a, role: viewer, token: [{k}]}}]}}",
        "tenant_map: {{redis: {{url: 'redis://u:{k}'}}}}",
        "tenant_map: {{redis: {{url: 'http://u:{k}@h'}}}}",
        "tenant_map: {{redis: {{url: ['redis://u:{k}@h']}}}}",
        "tenant_map: {{redis: {{urls: 'redis://u:{k}@h'}}}}",
        "tenant_map: {{redis: 'redis://u:{k}@h'}}",
        "tenant_map: {{redis: {{'redis://u:{k}@h': x}}}}",
        "tenant_map: {{redis: {{url: 'redis://h', peers: 'redis://u:{k}@h'}}}}",
        "tenant_map: {{redis: {{url: 'redis://h', peers: {{'redis://u:{k}@h': x}}}}}}",
        "tenant_map: {{redis: {{url: 'redis://h', peers: {{there: 'u:{k}@h'}}}}}}",
        "tenant_map: {{redis: {{url: 'redis://h', peers: {{mars: 'redis://u:{k}@h'}}}}}}",
        "tenant_map: {{source: 'redis://u:{k}@h'}}",
        "tenant_map: {{file: [], source: 'redis://u:{k}@h'}}",
        "regions: {{here: {{public: 'redis://u:{k}@h'}}}}",
    ],
)
def test_no_problem_holds_a_secret(tmp_path: Path, text: str) -> None:
    secret = "hunter2-" * 3
    path = write(tmp_path, SMALL.replace('hop_keys: ["${HOP_KEY}"]', text.format(k=secret)))
    assert not any("hunter2" in line for line in problems_of(path))
    assert problems_of(path)


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "gateway.yaml") == [
        "gateway.yaml: expected a readable file, got no such file or directory"
    ]
    path = write(tmp_path, "#" * (1 << 20) + "\n")
    assert problems_of(path) == ["gateway.yaml: expected at most 1048576 bytes, got more"]
    path = write(tmp_path, SMALL)
    (tmp_path / "regions" / "here.yaml").mkdir(parents=True)
    assert problems_of(path) == ["regions/here.yaml: expected a readable file, got is a directory"]


def test_sources_travel_whole_and_hold_no_expanded_secret(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL, ("here", "fleet: other\n"))
    environ = ENVIRON | {"LANDBRIDGE__drain__grace": "5s"}
    sources = read_sources(path, environ)
    data = encode_sources(sources)
    assert decode_sources(data) == sources
    assert KEY.encode() not in data
    path.unlink()
    (tmp_path / "regions" / "here.yaml").unlink()
    settings = load(decode_sources(data), ENVIRON)
    assert (settings.fleet, settings.drain.grace) == ("other", 5.0)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00", b"[]"])
def test_what_is_no_sources_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_sources(data)


def test_the_digest_follows_the_meaning_and_not_the_writing(tmp_path: Path) -> None:
    first = settings_of(write(tmp_path, SMALL))
    again = settings_of(write(tmp_path, "# moved\n" + SMALL + "drain: {grace: 12000ms}\n"))
    assert first.digest == again.digest == digest(first)
    assert re.fullmatch("[0-9a-f]{16}", first.digest)
    assert settings_of(write(tmp_path, SMALL + "drain: {grace: 13s}\n")).digest != first.digest
    assert settings_of(write(tmp_path, SMALL), {"HOP_KEY": KEY[::-1]}).digest != first.digest


def test_masked_settings_hold_no_secret(tmp_path: Path) -> None:
    options = "filters: {options: {log: {api_token: hunter2, deep: [{password: hunter2}], plain: 1}}}\n"
    options += "admin: {tokens: [{name: a, role: viewer, token: hunter2-hunter2-hunter2-}]}\n"
    plain = masked(settings_of(write(tmp_path, SMALL + options)))
    assert plain["hop_keys"] == ["***"]
    assert [*plain["admin"]["tokens"]] == [{"name": "a", "role": "viewer", "token": "***"}]
    assert plain["filter_options"] == {"log": {"api_token": "***", "deep": [{"password": "***"}], "plain": 1}}
    assert plain["clusters"]["app"]["endpoints"] == ({"host": "127.0.0.1", "port": 9000},)
    assert KEY not in str(plain)
    assert "hunter2" not in str(plain)
    msgspec.json.encode(plain)


def test_aliases_cannot_multiply_a_filters_options(tmp_path: Path) -> None:
    wide = "filters:\n  options:\n    log:\n      a: &a [" + "x, " * 200 + "x]\n"
    wide += "      b: [" + "*a, " * 200 + "*a]\n"
    assert problems_of(write(tmp_path, SMALL + wide)) == [
        "gateway.yaml:11: filters.options.log: expected at most 10000 values, got more"
    ]


def _struct_default(settings: Settings, path: str) -> object:
    written = {"filters.options": "filter_options", "telemetry.tenants": "tenant_series"}
    value: object = settings
    for step in written.get(path, path.replace("clusters.<cluster>", "clusters.app")).split("."):
        value = value[step] if isinstance(value, dict) else getattr(value, step)
    return value


def test_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    """Each default that the table of keys writes, read by its own kind, is what a file without the key gets."""
    settings = settings_of(write(tmp_path, SMALL))
    elsewhere = {"clusters", "routes", "filters.paths", "tenant_map.redis.peers"}
    checked = 0
    for path, key, _ in every_key(keys.ROOT):
        if not key.default or isinstance(key.kind, Later) or path in elsewhere or "[]." in path:
            continue
        if (
            path.startswith(("throttle.", "shedding.")) or ".health." in path or ".hash." in path
        ):  # without the key there is no rule to have defaults
            continue
        if path in ("regions.<region>.gateways", "clusters.<cluster>.balance", "trusted_proxies", "hop_keys"):
            continue
        node, _ = parse_value(Source("default", str(tmp_path)), key.default)
        value = key.kind.read(Walk({}), node or Leaf(Source("default"), 0, "none"), (path,))
        assert value is not BAD
        if path == "workers":
            value = value or usable_cores()
        if path == "tenancy.unknown":
            value = None if value == keys.UNKNOWN_REJECT else value
        assert value == _struct_default(settings, path), path
        checked += 1
    assert checked > 25
    health = {key.rpartition(".")[2]: k.default for key, k, _ in every_key(cluster_keys.HEALTH) if k.default}
    assert health == {
        "interval": "5s", "healthy": "2", "unhealthy": "3", "timeout": "5s", "jitter": "10%", "status": "[2xx]"
    }  # fmt: skip
    assert HealthSettings("/h") == HealthSettings("/h", 5.0, 2, 3, 5.0, 0.1, ("2xx",), None)


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("", None), ("x y", None), ("100000 0", None)],
)
def test_usable_cores_follow_the_containers_limit(tmp_path: Path, content: str, cores: int | None) -> None:
    unlimited = usable_cores(tmp_path / "absent")
    limit = tmp_path / "cpu.max"
    limit.write_text(content)
    assert usable_cores(limit) == (unlimited if cores is None else min(cores, unlimited))


def test_warnings(tmp_path: Path) -> None:
    text = SMALL.replace("${HOP_KEY}", KEY) + (
        "trusted_proxies: [10.0.0.0/8, 10.1.0.0/16, '2001:db8::/32', '2001:db8::/48', 0.0.0.0/0]\n"
        "timeouts: {keepalive: 59s}\n"
        "clusters: {app: {endpoints: [], timeouts: {idle: 5s}}}\n"
    ).replace("clusters", "#")
    text = text.replace('{app: {endpoints: ["127.0.0.1:9000"]}}', "{app: {endpoints: [], timeouts: {idle: 5s}}}")
    path = write(tmp_path, text)
    sources = read_sources(path, {})
    lines = [line.replace(f"{tmp_path}/", "") for line in warnings_for(load(sources, {}), sources)]
    assert lines == [
        "gateway.yaml:9: trusted_proxies[0]: 10.0.0.0/8 is wide: each of its hosts can forge a client's address",
        "gateway.yaml:9: trusted_proxies[2]: 2001:db8::/32 is wide: each of its hosts can forge a client's address",
        "gateway.yaml:9: trusted_proxies[4]: 0.0.0.0/0 is wide: each of its hosts can forge a client's address",
        "gateway.yaml:10: timeouts.keepalive: 59s is below the 60s of AWS's load balancer, which may send a request into "
        "the close",
        "gateway.yaml:8: clusters.app.timeouts.idle: 5s is not below the 5s after which Node and uvicorn close a connection",
        "gateway.yaml:8: clusters.app.endpoints: no endpoint: this region cannot serve this cluster",
        "gateway.yaml:7: hop_keys[0]: the key stands in the file: ${NAME} or ${file:path} keeps it out",
    ]


def test_a_plain_configuration_warns_of_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    sources = read_sources(path, ENVIRON)
    assert warnings_for(load(sources, ENVIRON), sources) == []
