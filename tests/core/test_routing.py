"""Where a client's request goes: DESIGN 5.3, a row per rule and per ban, then what must hold in any world."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import FLAGS
from gateway.core.http1.fields import FieldTable
from gateway.core.http1.head import parse_request
from gateway.core.placement import Failover, Misroute, Partition, Placement, State
from gateway.core.routing import Decision, Kind, accepts_html, covers, decide
from gateway.core.tenancy import Resolved, Source, Step, Trace
from gateway.core.view import Ability, Cluster, Limits, Region, Route, View, region_cluster
from tests.support.facts import HERE, REGIONS, THERE, THIRD, Facts, browser, cluster, knowing, public, record, world

BY_HOST = Resolved("acme", Source.HOST, "host: {tenant}.example.com")
GET, POST = Facts(), Facts(method=b"POST")

LOCAL = Decision(Kind.LOCAL, "home", HERE, "app")
FAILOVER_HERE = Decision(Kind.LOCAL, "failover", HERE, "app")
CARRIED = Decision(Kind.INTERNAL_REDIRECT, "misroute", THERE, "region:eu-west-1")
SENT = Decision(Kind.EXTERNAL_REDIRECT, "misroute", THERE, location=b"https://acme.eu-west-1.example.com/x?a=1")


def failover_to(region: str) -> Decision:
    return Decision(Kind.INTERNAL_REDIRECT, "failover", region, region_cluster(region))


def refused(flag: str, reason: str, region: str = "") -> Decision:
    assert flag in FLAGS
    return Decision(Kind.REJECT, reason, region, flag=flag)


def go(placement: Placement | None, view: View, request: Facts = GET, complete: bool = True,
       resolved: Resolved = BY_HOST, **more: Any) -> Decision:  # fmt: skip
    return decide(request, resolved, placement, view, complete, **more)


@pytest.mark.parametrize(
    ("placement", "view", "complete", "expected"),
    [
        pytest.param(None, world(), True, refused("tenant_unknown", "unknown"), id="not in a complete map"),
        pytest.param(None, world(), False, refused("map_unavailable", "map"), id="map not complete"),
        pytest.param(None, world(unknown=HERE), False, refused("map_unavailable", "map"), id="unknown, incomplete"),
        pytest.param(None, world(unknown=HERE), True, LOCAL, id="unknown lives here"),
        pytest.param(None, world(unknown=THERE), True, CARRIED, id="unknown lives elsewhere"),
        pytest.param(
            None,
            knowing(unknown=THERE, unable=(THERE,)),
            True,
            refused("cluster_unavailable", "home", THERE),
            id="unknown has failover manual",
        ),
        pytest.param(record(), world(), False, LOCAL, id="a known tenant of an incomplete map is served"),
    ],
)
def test_rule_1(placement: Placement | None, view: View, complete: bool, expected: Decision) -> None:
    assert go(placement, view, complete=complete) == expected


@pytest.mark.parametrize("home", [HERE, THERE])
@pytest.mark.parametrize("app", [True, False])
@pytest.mark.parametrize("request_", [GET, POST, browser()])
@pytest.mark.parametrize(
    ("state", "flag", "reason"),
    [
        (State.DELETED, "tenant_unknown", "deleted"),
        (State.SUSPENDED, "tenant_suspended", "suspended"),
        (State.HELD, "held_too_long", "held"),
    ],
)
def test_rule_2_comes_before_home_and_failover(
    state: State, flag: str, reason: str, request_: Facts, app: bool, home: str
) -> None:
    placement = record(home, state=state, standby=(THERE, THIRD, HERE), failover=Failover.ALL)
    assert go(placement, knowing(app=app, unable=(THERE,)), request_) == refused(flag, reason, home)


OPTIONS, HEAD = Facts(method=b"OPTIONS"), Facts(method=b"HEAD")
SOCKET = Facts(upgrade=True, fields={b"upgrade": [b"websocket"]})
OTHER_UPGRADE = Facts(fields={b"upgrade": [b"h2c"]})


@pytest.mark.parametrize(
    ("request_", "reads"),
    [
        (GET, True),
        (HEAD, True),
        (OPTIONS, True),
        (POST, False),
        (Facts(method=b"DELETE"), False),
        (Facts(method=b"get"), False),
        (SOCKET, False),
        (OTHER_UPGRADE, False),
    ],
)
def test_covers(request_: Facts, reads: bool) -> None:
    assert covers(Failover.READS, request_) is reads
    assert covers(Failover.ALL, request_)
    assert not covers(Failover.MANUAL, request_)


SERVE, READ_ONLY, REFUSE = Partition.SERVE, Partition.READ_ONLY, Partition.REFUSE


@pytest.mark.parametrize(
    ("policy", "request_", "is_refused"),
    [
        (SERVE, GET, False),
        (SERVE, POST, False),
        (SERVE, SOCKET, False),
        (READ_ONLY, GET, False),
        (READ_ONLY, HEAD, False),
        (READ_ONLY, OPTIONS, False),
        (READ_ONLY, browser(), False),
        (READ_ONLY, POST, True),
        (READ_ONLY, Facts(method=b"DELETE"), True),
        (READ_ONLY, Facts(method=b"get"), True),
        (READ_ONLY, SOCKET, True),
        (READ_ONLY, OTHER_UPGRADE, True),
        (REFUSE, GET, True),
        (REFUSE, HEAD, True),
        (REFUSE, OPTIONS, True),
        (REFUSE, POST, True),
    ],
)
@pytest.mark.parametrize("home", [HERE, THERE])
@pytest.mark.parametrize("app", [True, False])
def test_a_region_that_is_cut_off_does_what_the_tenants_policy_says(
    policy: Partition, request_: Facts, is_refused: bool, home: str, app: bool
) -> None:
    """Between rules 2 and 3, and in nothing else: who is not refused goes on as ever."""
    placement = record(home, partition=policy, standby=(THERE, THIRD), failover=Failover.ALL)
    cut_off = knowing(app=app, unable=(THERE,), isolated=True)
    decision = go(placement, cut_off, request_)
    assert go(placement, cut_off, request_, trace=Trace()) == decision
    otherwise = go(placement, knowing(app=app, unable=(THERE,)), request_)
    assert otherwise.flag != "partitioned"
    if not is_refused:
        assert decision == otherwise
        return
    assert (decision.kind, decision.flag, decision.reason, decision.region) == (
        Kind.REJECT,
        "partitioned",
        "partition",
        home,
    )
    assert decision.detail == (
        "region us-east-1 has heard from no other region for longer than tenant_map.partition_after, and meanwhile, by "
        f"this tenant's policy (partition: {policy}), "
        + ("no request is served" if policy is REFUSE else "only reads are served")
    )


def test_a_region_that_is_cut_off_says_what_a_tenant_is_before_its_policy() -> None:
    suspended = record(state=State.SUSPENDED, partition=REFUSE)
    assert go(suspended, world(isolated=True)) == refused("tenant_suspended", "suspended", HERE)
    assert go(None, world(isolated=True)) == refused("tenant_unknown", "unknown")
    assert go(None, world(isolated=True, unknown=HERE)) == LOCAL, "who has no record has no policy"


@pytest.mark.parametrize(("policy", "outcome"), [(SERVE, "serves"), (READ_ONLY, "refuses")])
def test_the_policy_of_a_region_that_is_cut_off_is_a_step_of_the_trace(policy: Partition, outcome: str) -> None:
    trace = Trace()
    go(record(partition=policy), world(isolated=True), POST, trace=trace)
    assert Step(f"cut off from every other region: partition {policy}", f"{outcome} this request") in trace.steps
    assert [step.rule for step in trace.steps][:2] == ["rule 1: known, version", "rule 2: state"]


DOWN = refused("cluster_unavailable", "home", HERE)
ALL = Failover.ALL


@pytest.mark.parametrize(
    ("placement", "view", "request_", "expected"),
    [
        pytest.param(record(), world(), POST, LOCAL, id="serves"),
        pytest.param(record(), world(app=False), GET, DOWN, id="manual"),
        pytest.param(record(standby=(THERE,)), world(app=False), GET, DOWN, id="manual with standby"),
        pytest.param(record(failover=ALL), world(app=False), GET, DOWN, id="all without standby"),
        pytest.param(record(standby=(THERE,), failover=ALL), world(app=False), POST, failover_to(THERE), id="all"),
        pytest.param(
            record(standby=(THERE,), failover=Failover.READS), world(app=False), GET, failover_to(THERE), id="reads"
        ),
        pytest.param(
            record(standby=(THERE,), failover=Failover.READS), world(app=False), POST, DOWN, id="reads, a write"
        ),
        pytest.param(
            record(standby=(THERE, THIRD), failover=ALL), knowing(app=False), GET, failover_to(THERE), id="in order"
        ),
        pytest.param(
            record(standby=(THERE, THIRD), failover=ALL),
            knowing(app=False, unable=(THERE,)),
            GET,
            failover_to(THIRD),
            id="first is unable",
        ),
        pytest.param(
            record(standby=(THERE, THIRD), failover=ALL),
            knowing(app=False, unreachable=(THERE,)),
            GET,
            failover_to(THIRD),
            id="first is unreachable",
        ),
        pytest.param(
            record(standby=(THERE, THIRD), failover=ALL),
            knowing(app=False, unable=(THERE,), unreachable=(THIRD,)),
            GET,
            DOWN,
            id="none is able",
        ),
        pytest.param(record(standby=(HERE,), failover=ALL), world(app=False), GET, DOWN, id="home is no standby"),
        pytest.param(
            record(standby=("mars", THIRD), failover=ALL),
            world(app=False),
            GET,
            failover_to(THIRD),
            id="a standby that nobody knows",
        ),
        pytest.param(
            record(standby=(THERE,), failover=ALL), world(app=False, hop_keys=()), GET, DOWN, id="no key to sign with"
        ),
        pytest.param(
            record(standby=(THERE,), failover=ALL),
            world(app=False),
            browser(),
            failover_to(THERE),
            id="a browser is carried, never sent, to a standby",
        ),
    ],
)
def test_rule_3_home_is_here(placement: Placement, view: View, request_: Facts, expected: Decision) -> None:
    assert go(placement, view, request_) == expected


UNABLE, GONE = knowing(unable=(THERE,)), knowing(unreachable=(THERE,))


@pytest.mark.parametrize(
    ("placement", "view", "request_", "expected"),
    [
        pytest.param(record(THERE), UNABLE, GET, refused("cluster_unavailable", "home", THERE), id="unable"),
        pytest.param(record(THERE), GONE, GET, refused("region_unreachable", "home", THERE), id="unreachable"),
        pytest.param(
            record(THERE), GONE, browser(), refused("region_unreachable", "home", THERE), id="no 307 to the unreachable"
        ),
        pytest.param(
            record(THERE, misroute=Misroute.EXTERNAL),
            GONE,
            GET,
            refused("region_unreachable", "home", THERE),
            id="nor where external",
        ),
        pytest.param(record(THERE, standby=(HERE,), failover=ALL), UNABLE, POST, FAILOVER_HERE, id="standby is here"),
        pytest.param(record(THERE, standby=(HERE,), failover=ALL), GONE, POST, FAILOVER_HERE, id="here, unreachable"),
        pytest.param(
            record(THERE, standby=(HERE,), failover=Failover.READS),
            UNABLE,
            POST,
            refused("cluster_unavailable", "home", THERE),
            id="not covered",
        ),
        pytest.param(
            record(THERE, standby=(HERE, THIRD), failover=ALL),
            knowing(app=False, unable=(THERE,)),
            POST,
            failover_to(THIRD),
            id="our cluster cannot serve either",
        ),
        pytest.param(
            record(THERE, standby=(THIRD, HERE), failover=ALL), UNABLE, POST, failover_to(THIRD), id="third is first"
        ),
        pytest.param(
            record(THERE, standby=(HERE,), failover=ALL),
            knowing(app=False, unreachable=(THERE,)),
            POST,
            refused("region_unreachable", "home", THERE),
            id="nobody left",
        ),
        pytest.param(record(THERE, standby=(HERE,), failover=ALL), knowing(), GET, CARRIED, id="home is able: home"),
        pytest.param(record("mars"), world(), GET, refused("region_unreachable", "home", "mars"), id="unknown region"),
        pytest.param(
            record("mars", misroute=Misroute.EXTERNAL, public={"mars": "https://mars.test"}),
            world(),
            browser(),
            refused("region_unreachable", "home", "mars"),
            id="unknown region with a public URL",
        ),
        pytest.param(
            record(THERE, cluster="batch"),
            knowing(),
            GET,
            refused("cluster_unavailable", "home", THERE),
            id="a cluster that a probed region lacks is unable",
        ),
    ],
)
def test_rule_4_home_is_elsewhere_and_down(
    placement: Placement, view: View, request_: Facts, expected: Decision
) -> None:
    assert go(placement, view, request_) == expected


AUTO, INTERNAL, EXTERNAL = Misroute.AUTO, Misroute.INTERNAL, Misroute.EXTERNAL


@pytest.mark.parametrize(
    ("gateway", "tenant", "request_", "expected"),
    [
        pytest.param(AUTO, None, GET, CARRIED, id="auto, an API call"),
        pytest.param(AUTO, None, browser(), SENT, id="auto, a browser"),
        pytest.param(AUTO, None, browser(method=b"HEAD"), SENT, id="auto, HEAD"),
        pytest.param(AUTO, None, browser(method=b"POST"), CARRIED, id="auto, a form"),
        pytest.param(AUTO, None, browser(method=b"OPTIONS"), CARRIED, id="auto, a preflight"),
        pytest.param(INTERNAL, None, browser(), CARRIED, id="internal"),
        pytest.param(EXTERNAL, None, GET, SENT, id="external, an API call"),
        pytest.param(EXTERNAL, None, POST, SENT, id="external, a POST"),
        pytest.param(EXTERNAL, INTERNAL, browser(), CARRIED, id="the tenant's internal wins"),
        pytest.param(INTERNAL, EXTERNAL, POST, SENT, id="the tenant's external wins"),
        pytest.param(INTERNAL, AUTO, browser(), SENT, id="the tenant's auto wins"),
    ],
)
def test_rule_5_misroute(gateway: Misroute, tenant: Misroute | None, request_: Facts, expected: Decision) -> None:
    assert go(record(THERE, misroute=tenant), world(misroute=gateway), request_) == expected
    assert go(record(THERE, misroute=tenant), knowing(misroute=gateway), request_) == expected


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        pytest.param({b"accept": [b"text/html"], b"sec-fetch-mode": []}, True, id="Accept alone"),
        pytest.param({b"accept": [b"*/*"]}, False, id="wildcard"),
        pytest.param({b"accept": [b"text/*"]}, False, id="text wildcard"),
        pytest.param({b"accept": []}, False, id="no Accept"),
        pytest.param({b"accept": [b"text/html;q=0"]}, False, id="q=0"),
        pytest.param({b"accept": [b"text/html;q=0.000"]}, False, id="q=0.000"),
        pytest.param({b"accept": [b"text/html ; q=0.001"]}, True, id="q small"),
        pytest.param({b"accept": [b"text/html;level=1;Q=0"]}, False, id="Q=0 after a parameter"),
        pytest.param({b"accept": [b"text/html;q=high"]}, False, id="q is no weight"),
        pytest.param({b"accept": [b"text/html;q=-1"]}, False, id="q negative"),
        pytest.param({b"accept": [b"text/htmlx, application/json"]}, False, id="a longer type"),
        pytest.param({b"accept": [b"application/json, TEXT/HTML"]}, True, id="case, second"),
        pytest.param({b"accept": [b"application/json", b"text/html"]}, True, id="second field"),
        pytest.param({b"accept": [b"text/html"], b"sec-fetch-mode": [b"cors"]}, False, id="fetch()"),
        pytest.param({b"accept": [b"text/html"], b"sec-fetch-mode": [b"navigate"]}, True, id="navigate"),
        pytest.param({b"accept": [b"text/html"], b"sec-fetch-mode": [b"navigate", b"cors"]}, False, id="both"),
    ],
)
def test_rule_5_auto_knows_a_browser(fields: dict[bytes, list[bytes]], sent: bool) -> None:
    assert go(record(THERE), world(), browser(fields=fields)) == (SENT if sent else CARRIED)
    if b"sec-fetch-mode" not in fields:
        assert accepts_html(Facts(fields=fields)) is sent


def named_by(source: Source) -> Resolved:
    return Resolved("acme", source, str(source))


REGION_ONLY = {**world().regions, THERE: Region(THERE, public("eu.example.com"))}
NO_PUBLIC = {**world().regions, THERE: Region(THERE, None)}
OWN_URL = {THERE: "https://eu.shop.acme.com"}
OWN = Decision(Kind.EXTERNAL_REDIRECT, "misroute", THERE, location=b"https://eu.shop.acme.com/x?a=1")


@pytest.mark.parametrize("misroute", [AUTO, EXTERNAL])
@pytest.mark.parametrize(
    ("change", "by_template", "by_own_url"),
    [
        pytest.param({}, SENT, OWN, id="no ban"),
        pytest.param({"fields": {b"authorization": [b"Bearer x"]}}, CARRIED, CARRIED, id="Authorization"),
        pytest.param({"fields": {b"authorization": [b""]}}, CARRIED, CARRIED, id="Authorization, empty"),
        pytest.param({"upgrade": True}, CARRIED, CARRIED, id="WebSocket"),
        pytest.param({"fields": {b"upgrade": [b"h2c"]}}, CARRIED, CARRIED, id="any Upgrade"),
        pytest.param({"host": "acme.us-east-1.example.com"}, CARRIED, CARRIED, id="Host is our public name"),
        pytest.param({"host": "acme.eu-west-1.example.com"}, CARRIED, CARRIED, id="Host is home's public name"),
        pytest.param(
            {"host": "x.ap-southeast-2.example.com", "host_field": b"x.ap-southeast-2.example.com:8443"},
            CARRIED,
            CARRIED,
            id="Host is a third region's, with a port",
        ),
        pytest.param({"resolved": named_by(Source.HOSTS)}, CARRIED, OWN, id="named by hosts"),
        pytest.param({"resolved": named_by(Source.HEADER)}, CARRIED, CARRIED, id="named by a header"),
        pytest.param({"resolved": named_by(Source.COOKIE)}, CARRIED, CARRIED, id="named by a cookie"),
        pytest.param({"resolved": named_by(Source.QUERY)}, CARRIED, CARRIED, id="named by the query"),
        pytest.param({"resolved": named_by(Source.PATH)}, SENT, OWN, id="named by the path"),
        pytest.param({"resolved": named_by(Source.FIXED)}, SENT, OWN, id="fixed"),
        pytest.param({"regions": REGION_ONLY}, CARRIED, OWN, id="public without {tenant}"),
        pytest.param({"regions": NO_PUBLIC}, CARRIED, OWN, id="no public"),
    ],
)
def test_rule_5_never_external(
    change: dict[str, Any], by_template: Decision, by_own_url: Decision, misroute: Misroute
) -> None:
    resolved = change.get("resolved", BY_HOST)
    view = world(misroute=misroute, **{key: change[key] for key in change if key == "regions"})
    request = browser(**{key: change[key] for key in change if key in ("host", "host_field", "upgrade", "fields")})
    assert go(record(THERE), view, request, resolved=resolved) == by_template
    assert go(record(THERE, public=OWN_URL), view, request, resolved=resolved) == by_own_url


@pytest.mark.parametrize("tenant", ["a_b", "-a", "a-", "_"])
@pytest.mark.parametrize("own", [{}, OWN_URL])
def test_rule_5_an_id_that_is_no_dns_label_is_carried(tenant: str, own: dict[str, str]) -> None:
    resolved = Resolved(tenant, Source.PATH, "path")
    assert go(record(THERE, tenant=tenant, public=own), world(misroute=EXTERNAL), resolved=resolved) == CARRIED


@pytest.mark.parametrize(
    ("host", "host_field", "scheme", "own", "sent"),
    [
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", "https", "https://eu.shop.acme.com", False, id="same"),
        pytest.param("eu.shop.acme.com", b"EU.shop.acme.com:443", "https", "https://eu.shop.acme.com", False, id="443"),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", "https", "https://eu.shop.acme.com:443/", False, id="/"),
        pytest.param(
            "eu.shop.acme.com", b"eu.shop.acme.com:8443", "https", "https://eu.shop.acme.com", True, id="port"
        ),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", "http", "https://eu.shop.acme.com", True, id="scheme"),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", None, "https://eu.shop.acme.com", False, id="no scheme"),
        pytest.param(
            "eu.shop.acme.com", b"eu.shop.acme.com:80", None, "https://eu.shop.acme.com", True, id="80 is not"
        ),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com:443", None, "https://eu.shop.acme.com", False, id="443 is"),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com:81", "http", "http://eu.shop.acme.com:81", False, id="81"),
        pytest.param(
            "eu.shop.acme.com", b"eu.shop.acme.com:81", None, "http://eu.shop.acme.com:81", False, id="81, no"
        ),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", None, "http://eu.shop.acme.com:81", True, id="to 81"),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", None, "https://eu.shop.acme.com:80", False, id="odd, no"),
        pytest.param("[::1]", b"[::1]:443", "https", "https://[::1]", False, id="IPv6"),
        pytest.param("[::1]", b"[::1]", "https", "https://[::1]:444", True, id="IPv6, port"),
        pytest.param("shop.acme.com", b"shop.acme.com", "https", "https://eu.shop.acme.com", True, id="another host"),
        pytest.param("eu.shop.acme.com", b"eu.shop.acme.com", "https", "HTTPS://EU.shop.acme.com", False, id="case"),
    ],
)
def test_rule_5_never_to_the_requests_own_url(
    host: str, host_field: bytes, scheme: str | None, own: str, sent: bool
) -> None:
    request = browser(host=host, host_field=host_field)
    placement = record(THERE, public={THERE: own})
    decision = go(placement, world(), request, resolved=named_by(Source.HOSTS), scheme=scheme)
    assert (decision.kind is Kind.EXTERNAL_REDIRECT) is sent
    assert sent or decision == CARRIED


@pytest.mark.parametrize(
    "url",
    [
        "", "eu.acme.com", "ftp://a.com", "https://a.com/x", "https://a b", "https://a\r\nX: y", "https://u@a.com",
        "https://a.com?x", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_a_record_whose_public_url_is_no_origin_redirects_nobody(url: str) -> None:
    assert go(record(THERE, public={THERE: url}), world(misroute=EXTERNAL)) == CARRIED


def test_public_of_another_region_than_home_says_nothing() -> None:
    placement = record(THERE, public={HERE: "https://us.shop.acme.com"})
    assert go(placement, world(), browser()) == SENT
    assert go(placement, world(), browser(), resolved=named_by(Source.HOSTS)) == CARRIED


@pytest.mark.parametrize("target", [b"/", b"//evil.test/x", b"/%0d%0aX:y?a=%20&b", b"/a/../b", b"/\\evil.test"])
def test_location_repeats_the_target_byte_for_byte(target: bytes) -> None:
    assert go(record(THERE), world(), browser(target=target)).location == b"https://acme.eu-west-1.example.com" + target


def test_location_has_the_templates_scheme_and_port() -> None:
    regions = {**world().regions, THERE: Region(THERE, public("{tenant}.eu.localhost", "http", 8102))}
    decision = go(record(THERE), world(regions=regions), browser())
    assert decision.location == b"http://acme.eu.localhost:8102/x?a=1"


def test_without_keys_or_gateways_nobody_can_be_carried() -> None:
    assert go(record(THERE), world(hop_keys=())) == refused("misdirected", "misroute", THERE)
    bare = {"app": cluster("app"), "region:eu-west-1": Cluster("region:eu-west-1", ())}
    assert go(record(THERE), world(clusters=bare)) == refused("region_unreachable", "misroute", THERE)
    assert go(record(THERE), world(hop_keys=()), browser()) == SENT


def test_the_cluster_comes_from_the_record_else_from_the_route() -> None:
    clusters = {"app": cluster("app"), "api": cluster("api"), "batch": cluster("batch", can_serve=False)}
    view = world(clusters=clusters, routes=(Route(b"/api", "api"), Route(b"/", "app")))
    assert go(record(), view, Facts(target=b"/apiary")).cluster == "api", "prefixes are bytes, not segments"
    assert go(record(), view, Facts(target=b"/Api")).cluster == "app"
    assert go(record(cluster="app"), view, Facts(target=b"/api")).cluster == "app"
    assert go(record(cluster="batch"), view) == DOWN
    assert go(record(cluster="none such"), view) == DOWN


def test_home_elsewhere_is_asked_for_the_cluster_of_this_request() -> None:
    abilities = {(THERE, "app"): Ability.ABLE, (THERE, "api"): Ability.UNABLE}
    routes = (Route(b"/api", "api"), Route(b"/", "app"))
    view = world(abilities=abilities, probed=frozenset((THERE,)), routes=routes)
    assert go(record(THERE), view) == CARRIED
    assert go(record(THERE), view, Facts(target=b"/api")) == refused("cluster_unavailable", "home", THERE)


def test_the_usual_decision_is_made_once() -> None:
    assert go(record(), world()) is go(record(), world(), POST)
    assert go(record(THERE), world()) is go(record(THERE), world(), POST)


def test_trace_tells_of_the_usual_decision_too() -> None:
    trace = Trace()
    assert go(record(), world(), trace=trace) is go(record(), world())
    assert trace.steps[-1] == Step("rule 3: home is here, cluster app", "serves")


def test_trace_tells_the_rules_and_changes_nothing() -> None:
    trace = Trace()
    placement = record(THERE, standby=(THIRD, HERE), failover=ALL)
    view = knowing(unable=(THERE, THIRD))
    assert go(placement, view, trace=trace) == go(placement, view) == FAILOVER_HERE
    assert trace.steps == [
        Step("rule 1: known, version", "7.0."),
        Step("rule 2: state", "active"),
        Step("rule 4: home is eu-west-1, its cluster app", "unable"),
        Step("standby ap-southeast-2", "cannot serve"),
        Step("standby us-east-1", "serves, here"),
    ]


def test_the_parsers_request_has_these_facts() -> None:
    head = b"GET /x?a=1 HTTP/1.1\r\nHost: acme.example.com\r\nAccept: text/html\r\nSec-Fetch-Mode: navigate"
    request = parse_request(head, FieldTable(), Limits())
    assert decide(request, BY_HOST, record(THERE), world(), True) == SENT
    request = parse_request(head + b"\r\nAuthorization: Basic x", FieldTable(), Limits())
    assert decide(request, BY_HOST, record(THERE), world(), True) == CARRIED
    request = parse_request(head + b"\r\nConnection: Upgrade\r\nUpgrade: h2c", FieldTable(), Limits())
    assert decide(request, BY_HOST, record(THERE), world(), True) == CARRIED


some_regions = st.lists(st.sampled_from(REGIONS), unique=True, max_size=3).map(tuple)
placements = st.builds(
    record,
    st.sampled_from((*REGIONS, "mars")),
    standby=some_regions,
    failover=st.sampled_from(Failover),
    state=st.sampled_from(State),
    misroute=st.none() | st.sampled_from(Misroute),
    public=st.just({}) | st.sampled_from(REGIONS).map(lambda name: {name: f"https://{name}.shop.test"}),
)
views = st.builds(
    knowing,
    st.just(HERE),
    st.booleans(),
    unable=some_regions,
    unreachable=some_regions.map(lambda names: tuple(name for name in names if name != HERE)),
    misroute=st.sampled_from(Misroute),
    unknown=st.none() | st.sampled_from(REGIONS),
    hop_keys=st.sampled_from(((b"k" * 32,), ())),
)
requests = st.builds(
    browser,
    method=st.sampled_from((b"GET", b"HEAD", b"POST", b"OPTIONS")),
    upgrade=st.booleans(),
    fields=st.sampled_from(({}, {b"authorization": [b"x"]}, {b"accept": [b"*/*"]})),
)
answers = st.sampled_from(Source).map(named_by)


@given(st.none() | placements, views, requests, answers, st.booleans())
def test_in_any_world(
    placement: Placement | None, view: View, request_: Facts, resolved: Resolved, complete: bool
) -> None:
    decision = go(placement, view, request_, complete, resolved)
    assert decision == go(placement, view, request_, complete, resolved, trace=Trace())
    match decision.kind:
        case Kind.EXTERNAL_REDIRECT:
            assert decision.region not in view.unreachable
            assert decision.region == (placement.home if placement else view.unknown)
            assert not request_.upgrade
            assert b"authorization" not in request_.fields
        case Kind.INTERNAL_REDIRECT:
            assert decision.region != HERE
            assert view.hop_keys
            assert decision.cluster in view.clusters
            assert view.ability(decision.region, "app") is Ability.ABLE
        case Kind.LOCAL:
            assert decision.region == HERE
            assert view.clusters[decision.cluster].can_serve
            assert placement is None or HERE in (placement.home, *placement.standby)
        case _:
            assert decision.flag in FLAGS
    assert bool(decision.flag) is (decision.kind is Kind.REJECT)
    assert bool(decision.location) is (decision.kind is Kind.EXTERNAL_REDIRECT)
    if decision.kind in (Kind.LOCAL, Kind.INTERNAL_REDIRECT) and placement is not None:
        assert placement.state is State.ACTIVE
        if decision.reason == "failover":
            assert covers(placement.failover, request_)
            assert decision.region in placement.standby


@given(placements, views, answers, st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True), st.sampled_from((b"", b":8443")))
def test_location_never_depends_on_host(
    placement: Placement, view: View, resolved: Resolved, host: str, port: bytes
) -> None:
    decision = go(placement, view, browser(host=host, host_field=host.encode() + port), resolved=resolved)
    usual = go(placement, view, browser(host="x.test"), resolved=resolved)
    if decision.kind is Kind.EXTERNAL_REDIRECT:
        assert decision == usual, "a Host may forbid a redirect, never shape it"


def test_a_cluster_that_only_its_breaker_stops_is_left_to_it_where_nobody_else_serves() -> None:
    """The breaker knows when it is worth to ask again, and needs requests to find that out."""
    for broken in (True, False):
        app = Cluster("app", (), can_serve=False, broken=broken)
        here = View("us", clusters={"app": app}, regions={"us": Region("us", None)})
        found = go(Placement(tenant="acme", home="us"), here)
        assert found == (
            Decision(Kind.LOCAL, "home", "us", "app") if broken else refused("cluster_unavailable", "home", "us")
        )
