# ruff: noqa: E501  a table of messages is read line by line
"""The tenants file: every mistake with both lines where two are at odds, and never an empty map by accident."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.core.limits import TenantLimits
from gateway.core.placement import NO_VERSION, Failover, Misroute, Placement, State, Version
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.settings.tenants import load_tenants
from tests.support.configs import SMALL, settings_of, write


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("config")
    text = SMALL + 'tenancy: {resolvers: [{header: X-T}, {host: "{tenant}.example.com"}]}\n'
    found = settings_of(write(folder, text))
    return msgspec.structs.replace(found, origins={k: v.replace(f"{folder}/", "") for k, v in found.origins.items()})


def placements(text: str, settings: Settings) -> dict[str, Placement]:
    return {placement.tenant: placement for placement in load_tenants("t.yaml", text.encode(), settings)}


def problems(text: str | bytes, settings: Settings) -> list[str]:
    try:
        load_tenants("t.yaml", text if isinstance(text, bytes) else text.encode(), settings)
    except Invalid as error:
        return [str(problem) for problem in error.problems]
    return []


def test_every_key_of_a_tenant(settings: Settings) -> None:
    text = """\
tenants:
  acme:
    home: here
    standby: [there]
    failover: reads
    hosts: [Shop.Acme.com, www.acme.com]
    public: {there: "https://eu.shop.acme.com", here: "https://shop.acme.com:443"}
    misroute: internal
    state: suspended
    cluster: app
    limits: {rate: 90/m, burst: 400, concurrency: 50}
    labels: {plan: gold, seats: 12, trial: no}
    epoch: 7
  bare: {home: there}
"""
    found = placements(text, settings)
    assert found["acme"] == Placement(
        tenant="acme",
        home="here",
        standby=("there",),
        failover=Failover.READS,
        hosts=("shop.acme.com", "www.acme.com"),
        public={"there": "https://eu.shop.acme.com", "here": "https://shop.acme.com"},
        misroute=Misroute.INTERNAL,
        state=State.SUSPENDED,
        cluster="app",
        limits=TenantLimits(1.5, 400, 50),
        labels={"plan": "gold", "seats": "12", "trial": "no"},
        version=Version(7, 0, ""),
    )
    assert found["bare"] == Placement(tenant="bare", home="there")
    assert found["bare"].version == NO_VERSION


def test_ids_are_taken_as_written(settings: Settings) -> None:
    text = "tenants:\n" + "".join(
        f"  {name}: {{home: here}}\n" for name in ("no", "007", "1e3", "null", "true", "0x1f", "a_b-c")
    )
    assert list(placements(text, settings)) == ["no", "007", "1e3", "null", "true", "0x1f", "a_b-c"]


def test_an_epoch_of_zero_is_no_version(settings: Settings) -> None:
    assert placements("tenants: {a: {home: here, epoch: 0}}", settings)["a"].version == NO_VERSION


@pytest.mark.parametrize("text", ["", "# all gone\n", "tenants:\n", "tenants: ~\n", "tenants: null\n"])
def test_an_emptied_file_is_a_problem(settings: Settings, text: str) -> None:
    assert problems(text, settings) == [
        "t.yaml:1: tenants: expected a mapping ({} where there is no tenant), got nothing"
    ]


def test_no_tenant_at_all_has_to_be_said(settings: Settings) -> None:
    assert placements("tenants: {}", settings) == {}


ONE = [
    ("{}", "a.home: expected a name of 1 to 32 of a-z 0-9 -, got nothing"),
    ("", "a: expected a mapping, got nothing"),
    ("here", 'a: expected a mapping, got "here"'),
    ("{home: her}", 'a.home: expected one of regions (did you mean here?), got "her"'),
    ("{home: [here]}", "a.home: expected a name of 1 to 32 of a-z 0-9 -, got a list"),
    ("{home: here, standby: there}", 'a.standby: expected a list, got "there"'),
    ("{home: here, standby: [mars]}", 'a.standby[0]: expected one of regions, got "mars"'),
    ("{home: here, standby: [here]}", 'a.standby[0]: expected a region other than home, got "here"'),
    ("{home: here, standby: [there, there]}", 'a.standby[1]: expected each value once, got "there" again'),
    ("{home: here, failover: always}", 'a.failover: expected manual, reads or all, got "always"'),
    ("{home: here, hosts: [a_b.com:80]}", 'a.hosts[0]: expected a host name such as shop.acme.com, got "a_b.com:80"'),
    ("{home: here, hosts: [shop.acme.com.]}", 'a.hosts[0]: expected a host name such as shop.acme.com, got "shop.acme.com."'),
    ("{home: here, hosts: [10.0.0.1]}", 'a.hosts[0]: expected a host name such as shop.acme.com, got "10.0.0.1"'),
    ("{home: here, hosts: ['*.acme.com']}", 'a.hosts[0]: expected a host name such as shop.acme.com, got "*.acme.com"'),
    ("{home: here, hosts: [x.com, X.com]}", 'a.hosts[1]: expected each value once, got "X.com" again'),
    ("{home: here, public: {mars: 'https://x.y'}}", 'a.public.mars: expected one of regions, got the key "mars"'),
    ("{home: here, public: {here: 'x.y'}}", 'a.public.here: expected a URL that begins with http:// or https://, got "x.y"'),
    ("{home: here, public: {here: 'https://x.y/'}}", 'a.public.here: expected a URL without path, query or user, not even a final /, got "https://x.y/"'),
    ("{home: here, public: {here: 'https://{tenant}.y'}}", 'a.public.here: expected a URL of this tenant, without {tenant}, got "https://{tenant}.y"'),
    ("{home: here, misroute: maybe}", 'a.misroute: expected auto, internal or external, got "maybe"'),
    ("{home: here, state: held}", 'a.state: expected active or suspended (held and deleted are set by the tools only), got "held"'),
    ("{home: here, state: deleted}", 'a.state: expected active or suspended (held and deleted are set by the tools only), got "deleted"'),
    ("{home: here, cluster: ap}", 'a.cluster: expected one of clusters (did you mean app?), got "ap"'),
    ("{home: here, cluster: 'region:there'}", 'a.cluster: expected a cluster name of 1 to 63 of a-z 0-9 _ . -, got "region:there"'),
    ("{home: here, limits: {rate: fast}}", 'a.limits.rate: expected a rate such as 200/s, got "fast"'),
    ("{home: here, limits: {}}", "a.limits: expected a rate or a concurrency, got a mapping"),
    ("{home: here, limits: {concurrency: 0}}", "a.limits.concurrency: expected a whole number from 1 to 1000000, got 0"),
    ("{home: here, labels: [gold]}", "a.labels: expected a mapping, got a list"),
    ("{home: here, labels: {'a b': x}}", 'a.labels."a b": expected a label of 1 to 63 of A-Z a-z 0-9 . _ / -, got the key "a b"'),
    ("{home: here, labels: {a: }}", "a.labels.a: expected a text of at most 256 characters, got nothing"),
    ("{home: here, epoch: -1}", "a.epoch: expected a whole number up to 999999999999999999, got -1"),
    ("{home: here, epoch: '7'}", 'a.epoch: expected a whole number up to 999999999999999999, got the text "7"'),
    ("{home: here, epoch: 1.5}", "a.epoch: expected a whole number up to 999999999999999999, got 1.5"),
    ("{home: here, standbye: []}", 'a.standbye: expected a known key (did you mean standby?), got "standbye"'),
    ("{home: here, home: there}", "a.home: expected this key once, got it again (first on line 2)"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "problem"), ONE)
def test_a_mistake_in_one_tenant(settings: Settings, record: str, problem: str) -> None:
    assert problems(f"tenants:\n  a: {record}\n", settings) == [f"t.yaml:2: tenants.{problem}"]


@pytest.mark.parametrize("name", ["Acme", "a.b", "a b", "12:30", "a" * 64, "ä", '""'])
def test_no_tenant_id(settings: Settings, name: str) -> None:
    [problem] = problems(f"tenants:\n  {name}: {{home: here}}\n", settings)
    assert ": expected a tenant id in lower case: 1 to 63 of a-z 0-9 - _, got the key " in problem


def test_a_tenant_that_stands_twice_is_named_with_both_lines(settings: Settings) -> None:
    text = "tenants:\n  a: {home: here}\n  b: {home: here}\n  a: {home: there}\n"
    assert problems(text, settings) == ["t.yaml:4: tenants.a: expected this key once, got it again (first on line 2)"]


def test_a_host_that_two_tenants_claim_is_named_with_both_lines(settings: Settings) -> None:
    text = "tenants:\n  a:\n    home: here\n    hosts: [x.com]\n  b:\n    home: here\n    hosts:\n      - y.com\n      - X.com\n"
    assert problems(text, settings) == [
        't.yaml:9: tenants.b.hosts[1]: expected a host that no other tenant has (tenants.a claims it on line 4), got "X.com"'
    ]


def test_a_host_that_a_template_gives_to_another_tenant_is_named_with_both_lines(settings: Settings) -> None:
    text = "tenants:\n  a:\n    home: here\n    hosts: [b.there.example.com, b.example.com, a.here.example.com]\n"
    assert problems(text, settings) == [
        "t.yaml:4: tenants.a.hosts[0]: expected a host that names no other tenant (regions.there.public at gateway.yaml:6 makes "
        'it that of b), got "b.there.example.com"',
        "t.yaml:4: tenants.a.hosts[1]: expected a host that names no other tenant (tenancy.resolvers[1].host at gateway.yaml:9 "
        'makes it that of b), got "b.example.com"',
    ]


def test_mistakes_of_a_whole_file_come_at_once_in_the_order_of_its_lines(settings: Settings) -> None:
    text = """\
tenants:
  a: {home: mars}
  B: {home: here}
  c: {home: here, hosts: [x.com, 1], state: held}
  d: {home: here, hosts: [x.com]}
others: {}
"""
    found = problems(text, settings)
    assert [line.split(": ")[:2] for line in found] == [
        ["t.yaml:2", "tenants.a.home"],
        ["t.yaml:3", "tenants.B"],
        ["t.yaml:4", "tenants.c.hosts[1]"],
        ["t.yaml:4", "tenants.c.state"],
        ["t.yaml:5", "tenants.d.hosts[0]"],
        ["t.yaml:6", "others"],
    ]


def test_a_file_that_is_no_yaml_or_no_utf_8(settings: Settings) -> None:
    [problem] = problems("tenants:\n  a: {home: here\n  b: {}\n", settings)
    assert problem.startswith("t.yaml:3: expected valid YAML, got an error: ")
    assert problems(b"tenants:\n  \xff: {}\n", settings) == ["t.yaml:2: expected UTF-8, got the byte 0xff"]


def test_nothing_is_expanded_here(settings: Settings) -> None:
    found = placements('tenants: {a: {home: here, labels: {note: "${HOME} ${file:/etc/passwd}"}}}', settings)
    assert found["a"].labels == {"note": "${HOME} ${file:/etc/passwd}"}


def test_without_hop_keys_nothing_is_promised_that_needs_a_hop(tmp_path: Path) -> None:
    text = SMALL.replace('hop_keys: ["${HOP_KEY}"]', "misroute: external")
    settings = settings_of(write(tmp_path, text))
    tenants = "tenants:\n  a: {home: here, misroute: internal}\n  b: {home: here, failover: all}\n  c: {home: there, misroute: external}\n"
    assert problems(tenants, settings) == [
        't.yaml:2: tenants.a.misroute: expected external, since the gateway has no hop_keys, got "internal"',
        't.yaml:3: tenants.b.failover: expected manual, since the gateway has no hop_keys, got "all"',
    ]


def test_a_record_has_bounds(settings: Settings) -> None:
    hosts = ", ".join(f"h{i}.com" for i in range(1001))
    labels = ", ".join(f"l{i}: x" for i in range(65))
    text = f"tenants:\n  a: {{home: here, hosts: [{hosts}]}}\n  b: {{home: here, labels: {{{labels}}}}}\n  c: {{home: here, labels: {{x: {'y' * 257}}}}}\n"
    assert [line.partition(", got")[0] for line in problems(text, settings)] == [
        "t.yaml:2: tenants.a.hosts: expected at most 1000 hosts",
        "t.yaml:3: tenants.b.labels: expected at most 64 labels",
        "t.yaml:4: tenants.c.labels.x: expected a text of at most 256 characters",
    ]


def test_ten_thousand_tenants_load_in_a_few_seconds(settings: Settings) -> None:
    text = "tenants:\n" + "".join(
        f"  t{i}:\n    home: here\n    standby: [there]\n    failover: reads\n    hosts: [shop{i}.acme.com, www.shop{i}.com]\n"
        f"    labels: {{plan: gold}}\n    epoch: {i}\n"
        for i in range(10_000)
    )
    before = time.process_time()
    found = load_tenants("t.yaml", text.encode(), settings)
    assert time.process_time() - before < 5.0
    assert len(found) == 10_000
    assert found[-1].hosts == ("shop9999.acme.com", "www.shop9999.com")


@examples(deadline=None)
@given(st.dictionaries(st.from_regex("[a-z0-9_][a-z0-9_-]{0,62}", fullmatch=True), st.sampled_from(["here", "there"])))
def test_what_is_written_is_what_is_read(settings: Settings, homes: dict[str, str]) -> None:
    lines = "".join(f"  {name}: {{home: {home}}}\n" for name, home in homes.items())
    found = placements(f"tenants:\n{lines}" if lines else "tenants: {}", settings)
    assert {name: placement.home for name, placement in found.items()} == homes
