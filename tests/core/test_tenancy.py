"""Whose request is it: one row per rule of DESIGN 5.1 and 5.2, then what must hold for any request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError
from gateway.core.http1.fields import FieldTable
from gateway.core.http1.head import parse_request
from gateway.core.placement import TENANT_ID
from gateway.core.tenancy import (
    MEMO_MAX,
    Memo,
    Resolved,
    Source,
    Step,
    Trace,
    refuse_dot_segments,
    resolve,
    resolve_host,
)
from gateway.core.view import (
    CookieResolver,
    FixedResolver,
    HeaderResolver,
    HostResolver,
    Limits,
    PathResolver,
    QueryResolver,
    Region,
    Resolver,
    View,
)
from tests.support.facts import HERE, Facts, public, template, world

HOST = HostResolver(template("{tenant}.example.com"))
HEADER = HeaderResolver(b"x-tenant-id")
PATH = PathResolver(b"/t/", b"/")
QUERY = QueryResolver(b"tenant")
COOKIE = CookieResolver(b"tenant")
FIXED = FixedResolver("fixed")
ALL = (HOST, HEADER, PATH, QUERY, COOKIE, FIXED)
NOWHERE = "elsewhere.test"


def nobody(host: str) -> str | None:
    return None


def ask(request: Facts, *resolvers: Resolver, **more: object) -> Resolved:
    owner = {"shop.acme.com": "acme"}.get
    return resolve(request, world(resolvers=resolvers), owner, **more)  # type: ignore[arg-type]


def flag(request: Facts, *resolvers: Resolver, **more: object) -> tuple[str, str]:
    with pytest.raises(GatewayError) as caught:
        ask(request, *resolvers, **more)
    return caught.value.flag.name, caught.value.detail


def header(*values: bytes, host: str = NOWHERE) -> Facts:
    return Facts(host=host, fields={b"x-tenant-id": list(values)})


def cookie(*values: bytes) -> Facts:
    return Facts(host=NOWHERE, fields={b"cookie": list(values)})


def at(target: bytes, host: str = NOWHERE) -> Facts:
    return Facts(host=host, target=target)


@pytest.mark.parametrize(
    ("request_", "tenant", "source"),
    [
        pytest.param(Facts(host="shop.acme.com"), "acme", Source.HOSTS, id="hosts"),
        pytest.param(Facts(host="globex.eu-west-1.example.com"), "globex", Source.PUBLIC, id="public of any region"),
        pytest.param(Facts(host="globex.example.com"), "globex", Source.HOST, id="host template"),
        pytest.param(header(b"globex", host="initech.example.com"), "initech", Source.HOST, id="host before header"),
        pytest.param(header(b"globex", host="shop.acme.com"), "acme", Source.HOSTS, id="hosts before all"),
        pytest.param(header(b"globex"), "globex", Source.HEADER, id="header"),
        pytest.param(at(b"/t/globex/x"), "globex", Source.PATH, id="path"),
        pytest.param(at(b"/x?tenant=globex"), "globex", Source.QUERY, id="query"),
        pytest.param(cookie(b"a=b; tenant=globex"), "globex", Source.COOKIE, id="cookie"),
        pytest.param(at(b"/t/globex/?tenant=initech"), "globex", Source.PATH, id="path before query"),
        pytest.param(Facts(host=NOWHERE), "fixed", Source.FIXED, id="fixed last"),
        pytest.param(Facts(host="", version=10), "fixed", Source.FIXED, id="no Host at all"),
    ],
)
def test_first_that_answers_wins(request_: Facts, tenant: str, source: Source) -> None:
    answer = ask(request_, *ALL)
    assert (answer.tenant, answer.source) == (tenant, source)
    assert answer.field == (b"x-tenant-id" if source is Source.HEADER else b"")


def test_resolvers_are_asked_in_their_own_order() -> None:
    asked = header(b"globex", host="initech.example.com")
    assert ask(asked, HEADER, HOST).tenant == "globex"
    assert ask(asked, HOST, HEADER).tenant == "initech"


def test_header_names_the_field_that_answered_among_several() -> None:
    other = HeaderResolver(b"x-org")
    request = Facts(host=NOWHERE, fields={b"x-org": [b"acme"]})
    assert ask(request, HEADER, other).field == b"x-org"


@pytest.mark.parametrize(
    ("host", "tenant"),
    [
        ("acme.example.com", "acme"),
        ("a_b.example.com", "a_b"),
        ("a" * 63 + ".example.com", "a" * 63),
        ("a" * 64 + ".example.com", None),
        ("a.b.example.com", None),
        ("example.com", None),
        (".example.com", None),
        ("acme.example.com.evil.test", None),
        ("acmeexample.com", None),
        ("a~b.example.com", None),
        ("127.0.0.1", None),
        ("[::1]", None),
    ],
)
def test_host_template_takes_one_label_that_is_an_id(host: str, tenant: str | None) -> None:
    answer = resolve_host(host, world(resolvers=(HOST,)), nobody)
    assert (answer and answer.tenant) == tenant


def test_template_with_text_around_the_tenant() -> None:
    view = world(resolvers=(HostResolver(template("app-{tenant}-eu.example.com")),))
    assert resolve_host("app-acme-eu.example.com", view, nobody) is not None
    assert resolve_host("app--eu.example.com", view, nobody) is None
    assert resolve_host("app-eu.example.com", view, nobody) is None


def test_a_public_without_tenant_names_nobody() -> None:
    view = world(regions={"hidden": Region("hidden", None), HERE: Region(HERE, public("www.example.com"))})
    trace = Trace()
    assert resolve_host("www.example.com", view, nobody, trace) is None
    assert trace.steps == [Step("hosts", "no answer")]
    assert resolve_host("www.example.com", view, nobody) is None


@pytest.mark.parametrize(
    ("target", "tenant"),
    [
        (b"/t/acme/", "acme"),
        (b"/t/ACME/x?y", "acme"),
        (b"/t/acme", None),
        (b"/t/acme?x=/", None),
        (b"/T/acme/", None),
        (b"/x/t/acme/", None),
        (b"//t/acme/", None),
        (b"/t//acme/", None),
        (b"/?/t/acme/", None),
        (b"/t/", None),
    ],
)
def test_path_matches_the_raw_target(target: bytes, tenant: str | None) -> None:
    if tenant is None:
        assert flag(at(target), PATH)[0] == "tenant_missing"
    else:
        assert ask(at(target), PATH).tenant == tenant


@pytest.mark.parametrize(
    ("suffix", "target", "answers"),
    [
        (b"", b"/t/acme", True),
        (b"", b"/t/acme/x", True),
        (b"", b"/t/acme?x", True),
        (b"/app/", b"/t/acme/app/", True),
        (b"/app/", b"/t/acme/app", False),
        (b"/app/", b"/t/acme/ap/", False),
        (b"-eu/", b"/t/acme-eu/x", True),
        (b"-eu/", b"/t/acme-us/x", False),
    ],
)
def test_path_suffixes(suffix: bytes, target: bytes, answers: bool) -> None:
    resolvers = (PathResolver(b"/t/", suffix), FIXED)
    assert ask(at(target), *resolvers).tenant == ("acme" if answers else "fixed")


DOTS = [
    b"/t/acme/../globex/",
    b"/t/acme/./",
    b"/..",
    b"/.",
    b"/a/..?x",
    b"/%2e%2e/t/acme/",
    b"/%2E./x",
    b"/.%2e/x",
    b"/t/acme/%2e",
    b"/t/acme/..%2fglobex/",
    b"/t/acme%2F..%2Fglobex/",
    b"/t/acme/..\\globex/",
    b"/t/acme/..%5Cglobex/",
    b"/t/acme/..;x/globex/",
    b"/t/acme/..%3b/globex/",
]


@pytest.mark.parametrize("target", DOTS)
def test_a_dot_segment_is_refused_where_tenants_are_in_paths(target: bytes) -> None:
    assert flag(at(target, "acme.example.com"), HOST, PATH)[0] == "target_malformed", "also when the Host answers"
    assert ask(at(target, "acme.example.com"), HOST).tenant == "acme", "without path resolvers it is not our affair"


@pytest.mark.parametrize(
    "target", [b"/...", b"/a.b/", b"/.well-known/x", b"/..a", b"/a../", b"/x?y=/../", b"/%252e%252e/"]
)
def test_what_is_no_dot_segment(target: bytes) -> None:
    refuse_dot_segments(target)


@pytest.mark.parametrize(
    ("request_", "resolver", "tenant"),
    [
        pytest.param(header(b"acme", b"ACME"), HEADER, "acme", id="header twice, equal"),
        pytest.param(header(b"acme, Acme"), HEADER, "acme", id="header list, equal"),
        pytest.param(at(b"/?tenant=acme&tenant=ACME"), QUERY, "acme", id="query twice, equal"),
        pytest.param(at(b"/?x&tenant=%61cme"), QUERY, "acme", id="query, value encoded"),
        pytest.param(at(b"/?t%65nant=acme"), QUERY, "acme", id="query, name encoded"),
        pytest.param(at(b"/?%zz=1&tenant=acme"), QUERY, "acme", id="query, somebody else's bad escape"),
        pytest.param(at(b"/?tenants=x&tenant=acme"), QUERY, "acme", id="query, a longer name"),
        pytest.param(cookie(b"tenant=acme", b"x=1;tenant=ACME"), COOKIE, "acme", id="cookie twice, equal"),
        pytest.param(cookie(b'tenant="acme"'), COOKIE, "acme", id="cookie, quoted"),
        pytest.param(cookie(b"TENANT=x; tenant=acme"), COOKIE, "acme", id="cookie, names keep case"),
        pytest.param(cookie(b" tenant = acme ; tenant"), COOKIE, "acme", id="cookie, blanks, and one without value"),
    ],
)
def test_equal_values_count_once(request_: Facts, resolver: Resolver, tenant: str) -> None:
    assert ask(request_, resolver).tenant == tenant


@pytest.mark.parametrize(
    ("request_", "resolver"),
    [
        pytest.param(header(b"acme", b"globex"), HEADER, id="header twice"),
        pytest.param(header(b"acme, globex"), HEADER, id="header list"),
        pytest.param(header(b"", b"acme"), HEADER, id="header, one empty"),
        pytest.param(at(b"/?tenant=acme&tenant=globex"), QUERY, id="query"),
        pytest.param(at(b"/?tenant=acme&t%65nant=globex"), QUERY, id="query, name encoded"),
        pytest.param(at(b"/?tenant=acme&tenant"), QUERY, id="query, one empty"),
        pytest.param(cookie(b"tenant=acme; tenant=globex"), COOKIE, id="cookie"),
        pytest.param(cookie(b"tenant=acme", b"tenant=globex"), COOKIE, id="cookie fields"),
    ],
)
def test_differing_values_are_a_conflict(request_: Facts, resolver: Resolver) -> None:
    assert flag(request_, resolver, FIXED)[0] == "tenant_conflict"


@pytest.mark.parametrize(
    ("request_", "resolver", "where"),
    [
        pytest.param(header(b"no such"), HEADER, "header x-tenant-id", id="header"),
        pytest.param(header(b"a" * 64), HEADER, "header x-tenant-id", id="too long"),
        pytest.param(header(b"\xe2\x84\xaa"), HEADER, "header x-tenant-id", id="Kelvin sign is no k"),
        pytest.param(at(b"/t/%61cme/"), PATH, "path segment after /t/", id="path, encoded"),
        pytest.param(at(b"/?tenant=a+b"), QUERY, "query parameter tenant", id="query"),
        pytest.param(at(b"/?tenant=%00"), QUERY, "query parameter tenant", id="query, NUL"),
        pytest.param(cookie(b"tenant=a.b"), COOKIE, "cookie tenant", id="cookie"),
        pytest.param(cookie(b'tenant="'), COOKIE, "cookie tenant", id="cookie, one quote"),
    ],
)
def test_a_name_that_no_tenant_has_is_not_passed_to_the_next_resolver(
    request_: Facts, resolver: Resolver, where: str
) -> None:
    assert flag(request_, resolver, FIXED) == ("tenant_missing", f"the {where} holds no tenant id")


@pytest.mark.parametrize(
    ("request_", "resolver"),
    [
        (header(b""), HEADER),
        (at(b"/?tenant="), QUERY),
        (at(b"/?x"), QUERY),
        (at(b"/"), QUERY),
        (cookie(b"tenant="), COOKIE),
        (cookie(b"tenant"), COOKIE),
    ],
)
def test_empty_is_no_answer(request_: Facts, resolver: Resolver) -> None:
    assert ask(request_, resolver, FIXED).tenant == "fixed"


@pytest.mark.parametrize("value", [b"%", b"%4", b"acme%zz", b"%%61"])
def test_a_broken_escape_in_the_tenant_is_refused(value: bytes) -> None:
    assert flag(at(b"/?tenant=" + value), QUERY, FIXED)[0] == "target_malformed"


def test_nobody_answers() -> None:
    assert flag(Facts(host=NOWHERE), HOST, HEADER, PATH, QUERY, COOKIE)[0] == "tenant_missing"
    assert flag(Facts(host=NOWHERE))[0] == "tenant_missing"


def test_while_the_map_is_incomplete_an_unknown_host_may_be_anybodys() -> None:
    assert flag(header(b"globex"), HEADER, FIXED, complete=False)[0] == "map_unavailable"
    assert ask(Facts(host="acme.example.com"), HOST, complete=False).tenant == "acme"


def test_memo_keeps_what_the_host_said_and_only_that() -> None:
    memo: Memo = {}
    first = ask(Facts(host="acme.example.com"), HOST, FIXED, memo=memo)
    assert ask(Facts(host="acme.example.com"), HOST, FIXED, memo=memo) is first
    assert ask(Facts(host=NOWHERE), HOST, FIXED, memo=memo).tenant == "fixed"
    assert memo == {"acme.example.com": first, NOWHERE: None}
    assert ask(header(b"globex"), HOST, HEADER, memo=memo).tenant == "globex", "None says: go on with the others"


def test_memo_does_not_keep_a_guess_of_an_incomplete_map() -> None:
    memo: Memo = {}
    assert flag(Facts(host="new.acme.com"), FIXED, complete=False, memo=memo)[0] == "map_unavailable"
    assert memo == {}


def test_memo_does_not_spare_the_path_check() -> None:
    memo: Memo = {}
    assert ask(at(b"/x", "acme.example.com"), HOST, PATH, memo=memo).tenant == "acme"
    assert flag(at(b"/../x", "acme.example.com"), HOST, PATH, memo=memo)[0] == "target_malformed"


def test_memo_is_bounded() -> None:
    memo: Memo = {f"h{n}.test": None for n in range(MEMO_MAX)}
    ask(Facts(host="acme.example.com"), HOST, memo=memo)
    assert list(memo) == ["acme.example.com"]


def test_trace_tells_each_rule_in_the_configurations_words() -> None:
    trace = Trace()
    ask(at(b"/?tenant=globex"), *ALL, trace=trace)
    assert trace.steps == [
        Step("path: no dot segments", "none"),
        Step("hosts", "no answer"),
        Step("public us-east-1: https://{tenant}.us-east-1.example.com", "no answer"),
        Step("public eu-west-1: https://{tenant}.eu-west-1.example.com", "no answer"),
        Step("public ap-southeast-2: https://{tenant}.ap-southeast-2.example.com", "no answer"),
        Step("host: {tenant}.example.com", "no answer"),
        Step("header: x-tenant-id", "no answer"),
        Step("path: /t/{tenant}/", "no answer"),
        Step("query: tenant", "globex"),
    ]


def test_the_parsers_request_has_these_facts() -> None:
    head = b"GET /x HTTP/1.1\r\nHost: Other.test:80\r\nX_Tenant_ID: Acme\r\nCookie: a=b"
    request = parse_request(head, FieldTable([b"x-tenant-id"]), Limits())
    answer = resolve(request, world(resolvers=(HEADER,)), nobody)
    assert answer == Resolved("acme", Source.HEADER, "header: x-tenant-id", b"x-tenant-id")


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=70)
WORD = st.one_of(TEXT, st.sampled_from(["acme", "ACME", "globex", "a b", "", "%61cme", "a,b", "..", "%2e", "a_b"]))
RAW = WORD.map(lambda text: text.encode("latin-1"))


@st.composite
def requests(draw: st.DrawFn) -> Facts:
    path = b"/" + b"/".join(draw(st.lists(st.one_of(RAW, st.just(b"t")), max_size=4))).replace(b"?", b"")
    query = draw(st.lists(RAW.map(lambda value: b"tenant=" + value), max_size=2))
    fields = {
        b"x-tenant-id": draw(st.lists(RAW, max_size=2)),
        b"cookie": [b"tenant=" + value for value in draw(st.lists(RAW, max_size=2))],
    }
    label, name = draw(WORD), draw(st.sampled_from(["example.com", f"{HERE}.example.com", "test"]))
    return Facts(host=f"{label}.{name}".lower(), target=path + b"?" + b"&".join(query), fields=fields)


@given(requests(), st.permutations(ALL[:-1]), st.integers(0, 5))
def test_whatever_is_sent_the_answer_is_an_id_or_a_refusal(
    request_: Facts, resolvers: list[Resolver], count: int
) -> None:
    view: View = world(resolvers=tuple(resolvers[:count]))
    memo: Memo = {}
    outcomes = []
    for _ in range(2):
        try:
            answer = resolve(request_, view, nobody, None, True, memo)
            assert TENANT_ID.match(answer.tenant)
            outcomes.append(answer.tenant)
        except GatewayError as error:
            assert error.flag.name in ("tenant_missing", "tenant_conflict", "target_malformed")
            outcomes.append(error.flag.name)
    assert outcomes[0] == outcomes[1], "what was remembered changes nothing"
