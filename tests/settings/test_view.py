"""The View: a worker's share, resolved addresses, what is down, and what is known of other regions."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from gateway.core.conditions import Conditions, PeerCondition, Target
from gateway.core.placement import Misroute
from gateway.core.view import (
    Ability,
    ClusterTimeouts,
    Drain,
    Endpoint,
    HeaderResolver,
    HostResolver,
    HostTemplate,
    Limits,
    Probes,
    Route,
    Timeouts,
    View,
)
from gateway.settings.schema import Address, ClusterSettings, Listen, RegionSettings, Settings, TenantMapSettings
from gateway.settings.view import assumed, build_view, undiscovered
from tests.support.configs import KEY, SMALL, settings_of, write

TEXT = (
    SMALL.replace('["127.0.0.1:9000"]', '["app.internal:9000", "10.0.0.9:9000"]')
    + """\
workers: 3
misroute: internal
trusted_proxies: [10.0.0.0/24, "2001:db8::/64"]
routes: [{prefix: /, cluster: app}, {prefix: /api/v1, cluster: app}, {prefix: /api, cluster: app}]
tenancy: {unknown: there, resolvers: [{host: "{tenant}.Example.com"}, {header: X_Id}]}
limits: {connections: 100, header_bytes: 2KiB, headers: 9, target_bytes: 1KiB, body_bytes: 1MiB}
timeouts: {header: 1s, body: 2s, keepalive: 3s}
drain: {grace: 1s, limit: 2s}
probes: {live: /l, ready: /r}
filters: {options: {region: {a: 1}}}
access_log: {path: none, sample: 0.5}
telemetry: {tenants: 7}
"""
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(write(tmp_path, TEXT))


def view_of(settings: Settings, **conditions: object) -> View:
    return build_view(settings, Conditions(**conditions), 5)  # type: ignore[arg-type]


def test_every_setting_arrives(settings: Settings) -> None:
    view = view_of(settings)
    assert (view.region, view.fleet, view.generation, view.config_digest) == ("here", "landbridge", 5, settings.digest)
    assert view.token == "here.landbridge"
    there = view.regions["there"].public
    assert there is not None
    assert there.render("acme") == "https://acme.there.example.com"
    assert [route.prefix for route in view.routes] == [b"/api/v1", b"/api", b"/"]
    assert view.resolvers == (HostResolver(HostTemplate("", ".example.com", True)), HeaderResolver(b"x-id"))
    assert (view.unknown, view.misroute) == ("there", Misroute.INTERNAL)
    assert view.limits == Limits(34, 2048, 9, 1024, 1 << 20), "connections are shared by three workers, rounded up"
    assert view.timeouts == Timeouts(1.0, 2.0, 3.0)
    assert view.drain == Drain(1.0, 2.0)
    assert view.probes == Probes(b"/l", b"/r")
    assert view.trusted_proxies == (ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("2001:db8::/64"))
    assert view.hop_keys == (KEY.encode(),)
    assert view.filter_options == {"region": {"a": 1}}
    assert (view.access_log_path, view.access_log_sample, view.tenant_series) == (None, 0.5, 7)


def test_clusters_of_applications_and_of_other_regions(settings: Settings) -> None:
    view = view_of(settings)
    assert set(view.clusters) == {"app", "region:there"}
    app, there = view.clusters["app"], view.clusters["region:there"]
    assert (app.region, app.timeouts, app.retries) == (None, ClusterTimeouts(), 1)
    assert (app.connections_max, app.pending_max) == (342, 342)
    assert (there.region, there.timeouts) == ("there", ClusterTimeouts(response=20.0, idle=60.0))
    assert there.endpoints == (Endpoint("gw.there:8082", "gw.there", 8082),)


def test_a_name_stands_for_itself_until_it_is_resolved_then_for_each_address(settings: Settings) -> None:
    assert [e.address for e in view_of(settings).clusters["app"].endpoints] == ["app.internal", "10.0.0.9"]
    addresses = {"app.internal": ("10.0.0.1", "2001:db8::1"), "gw.there": ("192.0.2.1",), "10.0.0.9": ("10.9.9.9",)}
    view = view_of(settings, addresses=addresses)
    assert view.clusters["app"].endpoints == (
        Endpoint("app.internal:9000", "10.0.0.1", 9000),
        Endpoint("app.internal:9000", "2001:db8::1", 9000),
        Endpoint("10.0.0.9:9000", "10.0.0.9", 9000),
    )
    assert view.clusters["app"].endpoints[1].key == "[2001:db8::1]:9000"
    assert [e.key for e in view.clusters["region:there"].endpoints] == ["192.0.2.1:8082"]


def test_an_address_that_two_names_share_is_one_endpoint(settings: Settings) -> None:
    view = view_of(settings, addresses={"app.internal": ("10.0.0.9", "10.0.0.9")})
    assert [e.key for e in view.clusters["app"].endpoints] == ["10.0.0.9:9000"]


DISCOVERED = {
    "dns://app.internal:9000": (Target("10.0.0.1", 9000, name="app.internal"), Target("2001:db8::1", 9000, name="a")),
    "srv://_http._tcp.app.internal": (
        Target("10.0.0.1", 9000, 5, 9, "one.internal"),
        Target("10.0.0.2", 81, 0, 3, "two.internal"),
        Target("10.0.0.3", 82, 5, 1, "three.internal"),
    ),
}


def discovering(folder: Path, endpoints: str) -> Settings:
    return settings_of(write(folder, SMALL.replace('["127.0.0.1:9000"]', endpoints)))


def test_what_is_discovered_becomes_endpoints_with_priorities_and_weights(tmp_path: Path) -> None:
    settings = discovering(tmp_path, '["srv://_http._tcp.app.internal", "dns://app.internal:9000"]')
    assert view_of(settings).clusters["app"].endpoints == (), "nothing is known: nothing can be dialled"
    assert not view_of(settings).clusters["app"].can_serve
    app = view_of(settings, discovered=DISCOVERED).clusters["app"]
    assert app.endpoints == (
        Endpoint("app.internal:9000", "10.0.0.1", 9000),  # named twice: once, of the lower priority value
        Endpoint("two.internal:81", "10.0.0.2", 81, weight=3),
        Endpoint("three.internal:82", "10.0.0.3", 82, priority=5),
        Endpoint("a:9000", "2001:db8::1", 9000),
    )
    assert app.can_serve


def test_the_first_priority_that_has_a_usable_endpoint_takes_all(tmp_path: Path) -> None:
    settings = discovering(tmp_path, '["srv://_http._tcp.app.internal"]')

    def usable(down: tuple[str, ...] = (), draining: tuple[str, ...] = ()) -> list[str]:
        found = view_of(settings, discovered=DISCOVERED, down={"app": down}, draining={"app": draining})
        return [endpoint.key for endpoint in found.clusters["app"].usable]

    assert usable() == ["10.0.0.2:81"]
    assert usable(down=("10.0.0.2:81",)) == ["10.0.0.1:9000", "10.0.0.3:82"]
    assert usable(draining=("10.0.0.2:81",)) == ["10.0.0.1:9000", "10.0.0.3:82"]
    assert usable(("10.0.0.2:81", "10.0.0.1:9000")) == ["10.0.0.3:82"]
    assert usable(("10.0.0.2:81", "10.0.0.1:9000", "10.0.0.3:82")) == []


def test_an_assumed_world_has_every_endpoint(tmp_path: Path) -> None:
    settings = discovering(tmp_path, '["srv://_http._tcp.app.internal", "dns://app.internal:9000"]')
    assert undiscovered(settings, Conditions())
    assert not undiscovered(settings, assumed(settings))
    app = build_view(settings, assumed(settings), 0).clusters["app"]
    assert len(app.usable) == 2
    assert app.can_serve


def test_down_and_draining_endpoints_are_not_usable(settings: Settings) -> None:
    addresses = {"app.internal": ("10.0.0.1",)}
    down = {"app": ("10.0.0.1:9000",), "region:there": ("gw.there:8082",)}
    view = view_of(settings, addresses=addresses, down=down)
    assert [(e.key, e.up) for e in view.clusters["app"].endpoints] == [
        ("10.0.0.1:9000", False),
        ("10.0.0.9:9000", True),
    ]
    assert view.clusters["app"].can_serve
    assert view.clusters["region:there"].can_serve, "what another region can serve is said by its abilities"
    view = view_of(settings, addresses=addresses, down=down, draining={"app": ("10.0.0.9:9000",)})
    assert view.clusters["app"].usable == ()
    assert not view.clusters["app"].can_serve


def test_control_may_say_that_a_cluster_cannot_serve(settings: Settings) -> None:
    view = view_of(settings, unable=("app",))
    assert view.clusters["app"].usable
    assert not view.clusters["app"].can_serve


def test_what_is_known_of_other_regions(settings: Settings) -> None:
    peers = {
        "there": PeerCondition(True, True, {"app": Ability.ABLE, "api": Ability.UNABLE}),
        "silent": PeerCondition(True, False, {}),
        "new": PeerCondition(False, False, {}),
    }
    view = view_of(settings, peers=peers)
    assert view.ability("there", "app") is Ability.ABLE
    assert view.ability("there", "api") is Ability.UNABLE
    assert view.ability("there", "nothing") is Ability.UNABLE
    assert view.ability("silent", "app") is Ability.UNREACHABLE
    assert view.ability("new", "app") is Ability.ABLE, "never yet probed counts as able"


def test_a_region_that_is_cut_off_knows_it(settings: Settings) -> None:
    assert not view_of(settings).isolated
    assert view_of(settings, isolated=True).isolated


def test_settings_made_by_hand_have_gateways_with_their_defaults() -> None:
    settings = Settings(
        region="a",
        listen=Listen(Address("127.0.0.1", 0)),
        state_dir="/x",
        tenant_map=TenantMapSettings("/x/t"),
        regions={"a": RegionSettings(), "b": RegionSettings(gateways=(Address("::1", 1),))},
        clusters={"app": ClusterSettings()},
    )
    view = view_of(settings)
    assert view.clusters["region:b"].timeouts.response == 20.0
    assert view.clusters["region:b"].endpoints == (Endpoint("[::1]:1", "::1", 1),)
    assert not view.clusters["app"].can_serve, "no endpoint is usable"
    assert view.regions["a"].public is None
    assert view.routes == (Route(b"/", "app"),)
