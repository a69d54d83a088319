"""`explain`: the rules that were tried and what decided, as the deciding functions tell it themselves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.cli.explain import as_json, outcome, summary
from gateway.core.explain import Explanation, explain
from gateway.core.placement import NO_VERSION, Failover, Partition, Version
from gateway.core.tenancy import Step
from gateway.core.view import HeaderResolver, HostResolver, PathResolver, View
from tests.support.facts import HERE, THERE, knowing, record, template, world

MAP = {"acme": record(), "globex": record(THERE, tenant="globex", standby=(HERE,), failover=Failover.ALL)}
MAP["bare"] = record(tenant="bare", version=NO_VERSION)
RESOLVERS = (HostResolver(template("{tenant}.example.com")), HeaderResolver(b"x-tenant-id"))


def why(host: str, view: View | None = None, complete: bool = True, **more: Any) -> Explanation:
    view = view or world(resolvers=RESOLVERS)
    return explain(view, {"shop.acme.com": "acme"}.get, MAP.get, complete, host=host, **more)


def test_served_here() -> None:
    answer = why("ACME.example.com:8080", path="/a?b")
    assert (answer.tenant, answer.named_by, answer.decision, answer.reason) == (
        "acme", "host: {tenant}.example.com", "local", "home",
    )  # fmt: skip
    assert (answer.region, answer.cluster, answer.status, answer.flag) == (HERE, "app", None, "")
    assert outcome(answer) == "served here (us-east-1) by cluster app, reason home"
    assert answer.steps[-1] == Step("rule 3: home is here, cluster app", "serves")


def test_carried_and_sent() -> None:
    assert outcome(why("globex.example.com")) == "carried to eu-west-1 through region:eu-west-1, reason misroute"
    sent = why("globex.example.com", headers=["Accept: text/html"])
    assert (sent.status, sent.location) == (307, "https://globex.eu-west-1.example.com/")
    assert outcome(sent).startswith("sent to eu-west-1 with 307, Location: https://globex.")
    assert why("globex.example.com", headers=["Accept: text/html", "Authorization: x"]).location == ""


def test_entering_elsewhere_and_failing_over() -> None:
    assert why("globex.example.com", world(THERE, resolvers=RESOLVERS)).decision == "local"
    down = why("globex.example.com", knowing(resolvers=RESOLVERS, unable=(THERE,)), method="POST")
    assert (down.decision, down.reason, down.region) == ("local", "failover", HERE)


@pytest.mark.parametrize(
    ("question", "flag", "last"),
    [
        ({"host": "elsewhere.test"}, "tenant_missing", "refused"),
        ({"host": "nobody.example.com"}, "tenant_unknown", "rule 1: known"),
        ({"host": "nobody.example.com", "complete": False}, "map_unavailable", "rule 1: known"),
        ({"host": "x.test", "headers": ["X-Tenant-Id: a", "X_Tenant_ID: b"]}, "tenant_conflict", "refused"),
        ({"host": "acme.example.com", "headers": ["Via: 1.1 us-east-1.landbridge"]}, "loop", "refused"),
        ({"host": "acme.example.com", "headers": ["no colon"]}, "request_malformed", "refused"),
        ({"host": "acme.example.com", "headers": ["A: b\r\nHost: c"]}, "request_malformed", "refused"),
        ({"host": "acme.example.com", "headers": ["Host: globex.example.com"]}, "framing_ambiguous", "refused"),
        ({"host": "a b", "path": "/x"}, "request_malformed", "refused"),
        ({"host": "acme.example.com", "path": "x"}, "target_malformed", "refused"),
        ({"host": "acme.example.com", "method": "CONNECT", "path": "a:1"}, "connect_refused", "refused"),
    ],
)
def test_a_refusal_is_explained_too(question: dict[str, Any], flag: str, last: str) -> None:
    answer = why(**question)
    assert (answer.decision, answer.flag, answer.steps[-1].rule) == ("reject", flag, last)
    assert answer.status is not None
    assert answer.detail
    assert outcome(answer) == f"refused with {answer.status} {flag}: {answer.detail}"


WRITTEN_MS, CAME_MS = 1_790_000_000_123, 1_790_000_000_456
REPLICATED = record(THERE, tenant="moved", partition=Partition.REFUSE)
REPLICATED = msgspec.structs.replace(REPLICATED, version=Version(8, WRITTEN_MS, THERE))
FUTURE = msgspec.structs.replace(REPLICATED, tenant="future", version=Version(8, 2**53 - 1, THERE))
MAP |= {"moved": REPLICATED, "future": FUTURE}


def test_a_replicated_record_says_where_and_when_it_was_written_and_when_it_came() -> None:
    answer = why("moved.example.com", arrived={"moved": CAME_MS}.get)
    assert (answer.version, answer.written_in) == (f"8.{WRITTEN_MS}.eu-west-1", THERE)
    assert (answer.written, answer.arrived) == ("2026-09-21T14:13:20.123Z", "2026-09-21T14:13:20.456Z")
    said = dict(summary(answer))
    assert said["written"] == "in eu-west-1 at 2026-09-21T14:13:20.123Z"
    assert said["arrived"] == "in us-east-1 at 2026-09-21T14:13:20.456Z"
    assert str(said["record"]).endswith(", partition refuse")


def test_a_record_of_a_file_was_written_nowhere_and_one_that_came_unseen_says_so() -> None:
    assert {"written", "arrived"}.isdisjoint(dict(summary(why("acme.example.com", arrived={"acme": CAME_MS}.get))))
    assert why("acme.example.com", arrived={"acme": CAME_MS}.get).arrived == ""
    for arrived in (None, dict[str, int]().get):
        assert dict(summary(why("moved.example.com", arrived=arrived)))["arrived"] == "not known when"
    assert why("future.example.com").written == "9007199254740991 ms"


def test_a_region_that_is_cut_off_says_why_it_refuses() -> None:
    answer = why("moved.example.com", world(resolvers=RESOLVERS, isolated=True))
    assert (answer.status, answer.flag, answer.decision, answer.reason) == (503, "partitioned", "reject", "partition")
    assert answer.steps[-1] == Step("cut off from every other region: partition refuse", "refuses this request")
    assert outcome(answer).startswith("refused with 503 partitioned: region us-east-1 has heard from no other region")


def test_unknown_tenants_may_have_a_home() -> None:
    answer = why("nobody.example.com", world(resolvers=RESOLVERS, unknown=THERE))
    assert (answer.decision, answer.home, answer.failover) == ("internal_redirect", THERE, "manual")


def test_a_path_is_the_request_target_as_it_is_sent() -> None:
    view = world(resolvers=(PathResolver(b"/t/", b"/"),))
    assert why("x.test", view, path="/t/acme/../b").flag == "target_malformed"
    assert why("x.test", view, path="/t/acme/b").tenant == "acme"


def test_words_and_json() -> None:
    answer = why("globex.example.com")
    said = dict(summary(answer))
    assert said["tenant"] == "globex (by host: {tenant}.example.com)"
    assert said["record"] == "active, home eu-west-1, standby us-east-1, failover all"
    assert said["version"] == "7.0."
    assert dict(summary(why("bare.example.com")))["version"] == "none"
    assert [name for name, _ in summary(why("elsewhere.test"))] == ["request", "host", "enters", "decision", "outcome"]
    made = as_json(answer)
    assert made["steps"][0] == {"rule": "head", "outcome": "valid"}
    assert made["standby"] == [HERE]
    assert msgspec.json.decode(msgspec.json.encode(answer))["decision"] == "internal_redirect"
