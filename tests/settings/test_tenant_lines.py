# ruff: noqa: E501  a table of messages is read line by line
"""Tenants as JSON Lines: the same records and the same refusals as in a tenants file, whatever the line."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.core.limits import TenantLimits
from gateway.core.placement import Failover, Misroute, Partition, Placement, State, Version
from gateway.settings import tenant_lines
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.settings.tenant_lines import LINE_BYTES_MAX, PROBLEMS_MAX, TenantLines
from gateway.settings.tenants import load_tenants
from tests.support.configs import SMALL, settings_of, write


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("config")
    found = settings_of(write(folder, SMALL + 'tenancy: {resolvers: [{host: "{tenant}.example.com"}]}\n'))
    return msgspec.structs.replace(found, origins={k: v.replace(f"{folder}/", "") for k, v in found.origins.items()})


def lines_of(text: str | bytes, settings: Settings) -> TenantLines:
    return TenantLines("t.jsonl", io.BytesIO(text if isinstance(text, bytes) else text.encode()), settings)


def problems(text: str | bytes, settings: Settings) -> list[str]:
    try:
        lines_of(text, settings).check()
    except Invalid as error:
        return [str(problem) for problem in error.problems]
    return []


def test_every_key_of_a_tenant(settings: Settings) -> None:
    acme = {
        "tenant": "acme",
        "home": "here",
        "standby": ["there"],
        "failover": "reads",
        "hosts": ["Shop.Acme.com", "www.acme.com"],
        "public": {"there": "https://eu.shop.acme.com", "here": "https://shop.acme.com:443"},
        "misroute": "internal",
        "state": "suspended",
        "cluster": "app",
        "partition": "read_only",
        "limits": {"rate": "200/s", "concurrency": 50},
        "labels": {"plan": "a:b", "seats": "12"},
        "epoch": 7,
    }
    text = f"\ufeff{json.dumps(acme)}\n\n  {json.dumps({'tenant': 'bare', 'home': 'there'})}  \r\n"
    lines = lines_of(text, settings)
    assert lines.check() == 2
    assert list(lines.read()) == [
        Placement(
            tenant="acme",
            home="here",
            standby=("there",),
            failover=Failover.READS,
            hosts=("shop.acme.com", "www.acme.com"),
            public={"there": "https://eu.shop.acme.com", "here": "https://shop.acme.com"},
            misroute=Misroute.INTERNAL,
            state=State.SUSPENDED,
            cluster="app",
            partition=Partition.READ_ONLY,
            limits=TenantLimits(200.0, None, 50),
            labels={"plan": "a:b", "seats": "12"},
            version=Version(7, 0, ""),
        ),
        Placement(tenant="bare", home="there"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.jsonl: expected at least one tenant, got nothing"),
        ("\n \n", "t.jsonl: expected at least one tenant, got nothing"),
        ("home: here", 't.jsonl:1: expected a JSON object such as {"tenant": "acme", "home": "us-east-1"}, got an error at column 1: Expecting value'),
        ("[1]", 't.jsonl:1: expected a JSON object such as {"tenant": "acme", "home": "us-east-1"}, got a list'),
        ('{"tenant": "a", "home": NaN}', 't.jsonl:1: expected a JSON object such as {"tenant": "acme", "home": "us-east-1"}, got a line that is no JSON'),
        ("[" * 50_000, 't.jsonl:1: expected a JSON object such as {"tenant": "acme", "home": "us-east-1"}, got a line that is no JSON'),
        (b'{"tenant": "a\xff"}', "t.jsonl:1: expected UTF-8, got the byte 0xff"),
        ('{"home": "here"}', "t.jsonl:1: tenant: expected a tenant id: 1 to 63 of a-z 0-9 - _, got nothing"),
        ('{"tenant": {}, "home": "here"}', "t.jsonl:1: tenant: expected a tenant id: 1 to 63 of a-z 0-9 - _, got a mapping"),
        ('\n{"tenant": "Acme", "home": "here"}', 't.jsonl:2: tenants.Acme: expected a tenant id in lower case: 1 to 63 of a-z 0-9 - _, got the key "Acme"'),
        ('{"tenant": "a"}', "t.jsonl:1: tenants.a.home: expected a name of 1 to 32 of a-z 0-9 -, got nothing"),
        ('{"tenant": "a", "home": "hre"}', 't.jsonl:1: tenants.a.home: expected one of regions (did you mean here?), got "hre"'),
        ('{"tenant": "a", "home": "here", "home": "there"}', "t.jsonl:1: tenants.a.home: expected this key once, got it again"),
        ('{"tenant": "a", "home": "here", "h\\u006fme" : "\\u003a"}', "t.jsonl:1: tenants.a.home: expected this key once, got it again"),
        ('{"tenant": "a", "home": "here", "limits": {}}', "t.jsonl:1: tenants.a.limits: expected a rate or a concurrency, got a mapping"),
        ('{"tenant": "a", "home": "here", "hoem": 1}', 't.jsonl:1: tenants.a.hoem: expected a known key (did you mean home?), got "hoem"'),
        ('{"tenant": "a", "home": "here", "epoch": "7"}', 't.jsonl:1: tenants.a.epoch: expected a whole number up to 999999999999999999, got the text "7"'),
        ('{"tenant": "a", "home": "here", "hosts": ["b.example.com"]}', 't.jsonl:1: tenants.a.hosts[0]: expected a host that names no other tenant (tenancy.resolvers[0].host at gateway.yaml:9 makes it that of b), got "b.example.com"'),
        ('{"tenant": "a", "home": "here"}\n{"tenant": "b", "home": "here"}\n{"tenant": "a", "home": "there"}', "t.jsonl:3: tenants.a: expected each tenant once, got it again (first on line 1)"),
        ('{"tenant": "a", "home": "here", "hosts": ["x.test"]}\n{"tenant": "b", "home": "here", "hosts": ["y.test", "X.test"]}', 't.jsonl:2: tenants.b.hosts[1]: expected a host that no other tenant has (tenants.a claims it on line 1), got "x.test"'),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong(text: str | bytes, expected: str, settings: Settings) -> None:
    assert problems(text, settings) == [expected]


def test_what_json_writes_otherwise_is_taken_as_written(settings: Settings) -> None:
    text = '{"tenant": 7, "home": "h\\u0065re", "labels": {"seats": 1.10, "trial": true, "url": "a\\u003ab"}}'
    (found,) = lines_of(text, settings).read()
    assert found.tenant == "7"
    assert found.labels == {"seats": "1.10", "trial": "true", "url": "a:b"}


def test_a_line_without_end(settings: Settings) -> None:
    text = b'{"tenant": "a", "home": "here"}\n' + b" " * (LINE_BYTES_MAX + 1)
    assert problems(text, settings) == [f"t.jsonl:2: expected a line of at most {LINE_BYTES_MAX} bytes, got more"]


def test_a_hundred_problems_are_enough(settings: Settings) -> None:
    found = problems('{"tenant": "a", "home": "x"}\n' * 1000, settings)
    assert len(found) == PROBLEMS_MAX
    assert found[-1].startswith("t.jsonl:100:")


def test_a_file_that_changed_after_it_was_checked(settings: Settings) -> None:
    lines = lines_of('{"tenant": "a", "home": "here"}', settings)
    assert lines.check() == 1
    lines.file = io.BytesIO(b'{"tenant": "a", "home": "gone"}')
    with pytest.raises(Invalid, match="one of regions"):
        list(lines.read())


def test_hashes_that_agree_by_chance_are_no_repetition(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_lines, "_hash", lambda text: 7)
    text = "".join(f'{{"tenant": "t{n}", "home": "here", "hosts": ["h{n}.test"]}}\n' for n in range(50))
    assert problems(text, settings) == []


words = st.sampled_from(
    ["here", "there", "nowhere", "", "A", "app", "reads", "all", "held", "x:y", "\u00e9", "\\", "7"]
)
hosts = st.sampled_from(["x.test", "X.Test", "acme.example.com", "b.example.com", "10.0.0.1", "-", "a.test."])
urls = st.sampled_from(["https://x.test", "http://x.test:80", "https://{tenant}.x", "x.test", "https://x.test/"])
odd = st.sampled_from([None, True, 1, -1, 1.5, [], {}, "text", [1], {"a": 1}, 10**18])
values: dict[str, st.SearchStrategy[Any]] = {
    "home": st.sampled_from(["here", "there"]) | words,
    "standby": st.lists(words, max_size=3),
    "failover": st.sampled_from(Failover) | words,
    "hosts": st.lists(hosts, max_size=3),
    "public": st.dictionaries(words, urls, max_size=2),
    "misroute": st.sampled_from(Misroute) | words,
    "state": st.sampled_from(State),
    "cluster": words,
    "partition": st.sampled_from(Partition) | words,
    "labels": st.dictionaries(words, words | odd, max_size=3),
    "epoch": st.integers(-1, 10),
    "limits": st.dictionaries(
        st.sampled_from(["rate", "burst", "concurrency", "shadow"]), st.sampled_from(["5/s", "1:2", 5, 0, None, 1.5])
    )
    | odd,
}
fitting: dict[str, st.SearchStrategy[Any]] = {
    "home": st.just("here"),
    "standby": st.just(["there"]),
    "hosts": st.lists(st.sampled_from(["x.test", "Y.test", "acme.example.com"]), unique=True),
    "public": st.dictionaries(st.sampled_from(["here", "there"]), st.just("https://x.test:443")),
    "labels": st.dictionaries(
        st.sampled_from(["a", "b/c"]), st.text(st.sampled_from('aZ:"\\ ,{\n\u00e9\u4e2d'), max_size=5)
    ),
    "epoch": st.integers(0, 10**18),
    "limits": st.fixed_dictionaries(
        {"rate": st.sampled_from(["5/s", "0.5/m"])}, optional={"burst": st.integers(0, 3), "concurrency": st.just(7)}
    ),
}
records = st.fixed_dictionaries(
    {}, optional={name: value | odd for name, value in values.items()}
) | st.fixed_dictionaries({"home": fitting["home"]}, optional={k: v for k, v in fitting.items() if k != "home"})


@given(records, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]), st.booleans())
@examples(max_examples=300)
def test_the_same_as_in_a_tenants_file(
    settings: Settings, record: dict[str, Any], escaped: bool, separators: tuple[str, str], twice: bool
) -> None:
    """JSON is YAML, so one text can be read as both: records and complaints have to be the same."""
    body = json.dumps(record, ensure_ascii=escaped, separators=separators)[1:]
    if twice and record:
        body = json.dumps(dict([next(iter(record.items()))]), separators=separators)[1:-1] + "," + body
    line = '{"tenant": "acme"' + (", " if record else "") + body
    document = '{"tenants": {"acme": {' + body + "}}"
    try:
        expected: Any = load_tenants("t.jsonl", document.encode(), settings)
    except Invalid as error:
        expected = sorted(str(problem).replace(" (first on line 1)", "") for problem in error.problems)
    try:
        found: Any = list(lines_of(line, settings).read())
    except Invalid as error:
        found = sorted(str(problem) for problem in error.problems)
    assert found == expected


@pytest.mark.timed
def test_thirty_thousand_lines_a_second(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("w") as file:
        for n in range(15_000):
            record = {"tenant": f"tenant-{n}", "home": "here", "standby": ["there"], "hosts": [f"shop.t{n}.test"]}
            print(json.dumps(record | {"labels": {"plan": "gold"}}), file=file)
    began = time.process_time()
    with path.open("rb") as opened:
        assert TenantLines("t", opened, settings).check() == 15_000
    assert time.process_time() - began < 1.5, "three times what is asked for"
