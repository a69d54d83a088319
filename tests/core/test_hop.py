"""Between gateways: grammar, signatures, the judging table of DESIGN 5.4 row by row, loops and verdicts."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.hop import (
    Hop,
    HopDecision,
    HopRejected,
    Loop,
    Reason,
    Refusal,
    Serve,
    Unavailable,
    Verdict,
    decide_hop,
    judge,
    loops,
    read_verdict,
    sign,
    sign_answer,
    sign_question,
    sign_verdict,
    signature_of,
    unavailable,
    verify,
    verify_answer,
)
from gateway.core.http1.fields import FieldTable
from gateway.core.http1.head import parse_request
from gateway.core.placement import NO_VERSION, Failover, Partition, Placement, State, Version
from gateway.core.routing import Decision, Kind, decide
from gateway.core.tenancy import Resolved, Source
from gateway.core.view import Limits, View
from tests.support.facts import (
    FOREIGN_KEY,
    HERE,
    KEY,
    OLD_KEY,
    REGIONS,
    THERE,
    THIRD,
    Facts,
    cluster,
    knowing,
    record,
    world,
)

NOW_S = 1_790_000_000
NOW_MS = NOW_S * 1000
PEER_TARGET = b"/.landbridge/peer"
HOST, CLIENT, REQUEST_ID = b"acme.example.com", b"203.0.113.9", b"req-1"
SENDER, RECEIVER = world(HERE), world(THERE)


def signed(view: View = SENDER, placement: Placement | None = None, request: Facts | None = None, **more: Any) -> bytes:
    request = request or Facts()
    parts: dict[str, Any] = {
        "to": THERE,
        "reason": Reason.MISROUTE,
        "deadline_s": 19.7,
        "ts": NOW_S,
        "method": request.method,
        "target": request.target,
        "host": HOST,
        "forwarded_for": CLIENT,
        "request_id": REQUEST_ID,
    }
    return sign(view, placement or record(THERE, standby=(HERE, THIRD)), **{**parts, **more})


def carrying(*values: bytes, **more: Any) -> Facts:
    """The request as it arrives, with these `Gateway-Hop` values."""
    fields = {b"gateway-hop": list(values), b"x-forwarded-for": [CLIENT], b"x-request-id": [REQUEST_ID]}
    return Facts(**{"host_field": HOST, **more, "fields": {**fields, **more.get("fields", {})}})


def refusal(request: Facts, view: View = RECEIVER, wall_ms: int = NOW_MS) -> Refusal:
    with pytest.raises(HopRejected) as caught:
        verify(request, view, wall_ms)
    return caught.value.reason


def resign(body: bytes, key: bytes = KEY, request: Facts | None = None) -> bytes:
    """`body` signed by the letter of DESIGN 5.4, without the code that is tested."""
    request = request or Facts()
    digests = [hashlib.sha256(value).digest() for value in (HOST, CLIENT, REQUEST_ID)]
    parts = [request.method, request.target, body, *digests]
    text = b"".join(str(len(part)).encode() + b":" + part for part in parts)
    return body + b"; sig=" + hmac.new(key, text, "sha256").hexdigest().encode()


BODY = (
    b"v=1; from=us-east-1; to=eu-west-1; tenant=acme; ver=7.0.; home=eu-west-1; standby=us-east-1,ap-southeast-2; "
    b"failover=manual; reason=misroute; deadline=19.7; ts=1790000000"
)


class TestGrammar:
    def test_the_field_is_as_in_the_design(self) -> None:
        assert signed() == resign(BODY)

    def test_what_is_signed_is_read(self) -> None:
        version = Version(7, 1732460000000, HERE)
        placement = Placement(tenant="acme", home=THERE, standby=(HERE,), failover=Failover.ALL, version=version)
        value = signed(placement=placement, reason="failover", deadline_s=0.449)
        hop = verify(carrying(value), RECEIVER, NOW_MS)
        assert (hop.source, hop.to, hop.tenant, hop.version, hop.home) == (HERE, THERE, "acme", version, THERE)
        assert (hop.standby, hop.failover, hop.reason) == ((HERE,), Failover.ALL, Reason.FAILOVER)
        assert (hop.deadline_s, hop.ts, hop.sig) == (0.4, NOW_S, signature_of(value))

    def test_no_record_and_no_version_are_two_things(self) -> None:
        bare = Placement(tenant="acme", home=THERE)
        assert b"; ver=-; home=eu-west-1; standby=; " in signed(placement=bare, recorded=False)
        assert verify(carrying(signed(placement=bare, recorded=False)), RECEIVER, NOW_MS).version is None
        assert b"; ver=0.0.; " in signed(placement=bare)
        assert verify(carrying(signed(placement=bare)), RECEIVER, NOW_MS).version == NO_VERSION

    def test_a_deadline_that_has_passed_is_zero(self) -> None:
        assert b"; deadline=0.0; " in signed(deadline_s=-3.0)

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(BODY.replace(b"; tenant", b"; later=x%20y; tenant"), id="between"),
            pytest.param(BODY + b"; later=1; more=", id="before sig"),
            pytest.param(b"early=1; " + BODY, id="first"),
        ],
    )
    def test_unknown_keys_are_signed_and_ignored(self, body: bytes) -> None:
        hop = verify(carrying(resign(body)), RECEIVER, NOW_MS)
        assert hop.tenant == "acme"
        assert {"later", "more", "early"} & set(hop.fields)
        tampered = resign(body).replace(b"later=", b"later=0").replace(b"early=", b"early=0")
        assert refusal(carrying(tampered)) is Refusal.KEY

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(BODY.replace(b"v=1", b"v=2"), id="another v"),
            pytest.param(BODY.replace(b"v=1; ", b""), id="no v"),
            pytest.param(BODY.replace(b"from=us-east-1; to=eu-west-1", b"to=eu-west-1; from=us-east-1"), id="order"),
            pytest.param(BODY.replace(b"; home=eu-west-1", b""), id="a key is missing"),
            pytest.param(BODY + b"; tenant=acme", id="a key twice"),
            pytest.param(BODY + b"; x=1; x=1", id="an unknown key twice"),
            pytest.param(BODY.replace(b"; ", b";"), id="no blank"),
            pytest.param(BODY.replace(b"; ", b";  ", 1), id="two blanks"),
            pytest.param(BODY.replace(b"acme", b'"acme"'), id="quotes"),
            pytest.param(BODY.replace(b"acme", b"ac me"), id="a blank in a value"),
            pytest.param(BODY.replace(b"acme", b"ACME"), id="tenant"),
            pytest.param(BODY.replace(b"tenant=acme", b"tenant="), id="tenant empty"),
            pytest.param(BODY.replace(b"7.0.", b"7"), id="ver"),
            pytest.param(BODY.replace(b"7.0.", b"-1.0."), id="ver negative"),
            pytest.param(BODY.replace(b"home=eu-west-1", b"home="), id="home empty"),
            pytest.param(BODY.replace(b"us-east-1,", b"us-east-1,,"), id="standby"),
            pytest.param(BODY.replace(b"manual", b"always"), id="failover"),
            pytest.param(BODY.replace(b"misroute", b"because"), id="reason"),
            pytest.param(BODY.replace(b"misroute", b"peer"), id="a peer question with a tenant"),
            pytest.param(BODY.replace(b"19.7", b"1e3"), id="deadline"),
            pytest.param(BODY.replace(b"19.7", b"nan"), id="deadline nan"),
            pytest.param(BODY.replace(b"ts=1790000000", b"ts=1790000000.5"), id="ts"),
            pytest.param(BODY.replace(b"ts=1790000000", b"ts=-1"), id="ts negative"),
            pytest.param(BODY + b"; x=" + b"y" * 8192, id="too long"),
            pytest.param(BODY + b"; x=\xe9", id="not ASCII"),
            pytest.param(BODY + b"; X=1", id="a key in capitals"),
            pytest.param(BODY + b"; alone", id="no pair"),
            pytest.param(b"", id="empty"),
        ],
    )
    def test_form(self, body: bytes) -> None:
        assert refusal(carrying(resign(body))) is Refusal.FORM

    @pytest.mark.parametrize("value", [b"", b"v=1", BODY, BODY + b"; sig=", resign(BODY).upper(), resign(BODY) + b" ",
                                       resign(BODY) + b"; x=1", resign(BODY)[:-1]])  # fmt: skip
    def test_form_of_the_signature(self, value: bytes) -> None:
        assert refusal(carrying(value)) is Refusal.FORM

    def test_missing_and_repeated(self) -> None:
        assert refusal(carrying()) is Refusal.MISSING
        assert refusal(carrying(signed(), signed())) is Refusal.FORM


class TestSignature:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"method": b"POST"}, id="method"),
            pytest.param({"target": b"/x?a=2"}, id="target"),
            pytest.param({"host_field": b"globex.example.com"}, id="Host"),
            pytest.param({"fields": {b"x-forwarded-for": [b"203.0.113.8"]}}, id="X-Forwarded-For"),
            pytest.param({"fields": {b"x-forwarded-for": [CLIENT, b"10.0.0.1"]}}, id="another X-Forwarded-For"),
            pytest.param({"fields": {b"x-forwarded-for": []}}, id="no X-Forwarded-For"),
            pytest.param({"fields": {b"x-request-id": [b"req-2"]}}, id="X-Request-Id"),
        ],
    )
    def test_covers_what_the_receiver_acts_on(self, change: dict[str, Any]) -> None:
        assert verify(carrying(signed()), RECEIVER, NOW_MS).tenant == "acme"
        assert refusal(carrying(signed(), **change)) is Refusal.KEY

    def test_moving_bytes_between_parts_is_noticed(self) -> None:
        value = signed(method=b"GE", target=b"T/x")
        assert refusal(carrying(value, method=b"GET", target=b"/x")) is Refusal.KEY

    def test_all_keys_verify_and_the_first_signs(self) -> None:
        rotated = world(HERE, hop_keys=(OLD_KEY, KEY))
        assert verify(carrying(signed(rotated)), RECEIVER, NOW_MS).source == HERE
        only_new = world(THERE, hop_keys=(KEY,))
        assert refusal(carrying(signed(rotated)), only_new) is Refusal.KEY
        assert verify(carrying(signed()), only_new, NOW_MS).source == HERE

    @pytest.mark.parametrize("keys", [(FOREIGN_KEY,), ()])
    def test_a_foreign_key(self, keys: tuple[bytes, ...]) -> None:
        assert refusal(carrying(signed()), world(THERE, hop_keys=keys)) is Refusal.KEY

    @pytest.mark.parametrize(
        ("off_ms", "expected"),
        [(30_000, None), (-30_000, None), (30_001, Refusal.CLOCK), (-30_001, Refusal.CLOCK), (10**9, Refusal.CLOCK)],
    )
    def test_clock(self, off_ms: int, expected: Refusal | None) -> None:
        request = carrying(signed())
        if expected is None:
            assert verify(request, RECEIVER, NOW_MS + off_ms).ts == NOW_S
        else:
            assert refusal(request, wall_ms=NOW_MS + off_ms) is expected

    def test_destination(self) -> None:
        assert refusal(carrying(signed(to=THIRD))) is Refusal.DESTINATION

    def test_whoever_has_no_key_learns_nothing_else(self) -> None:
        forged = resign(BODY.replace(b"to=eu-west-1", b"to=mars").replace(b"ts=179", b"ts=100"), FOREIGN_KEY)
        assert refusal(carrying(forged)) is Refusal.KEY

    def test_the_parsers_request_has_these_facts(self) -> None:
        head = b"GET /x?a=1 HTTP/1.1\r\nHost: %b\r\nX-Forwarded-For: %b\r\nX-Request-Id: %b\r\nGateway-Hop: %b"
        request = parse_request(head % (HOST, CLIENT, REQUEST_ID, signed()), FieldTable(), Limits())
        assert verify(request, RECEIVER, NOW_MS).tenant == "acme"

    @given(st.data())
    def test_any_changed_byte_is_refused(self, data: st.DataObject) -> None:
        value = bytearray(signed())
        at = data.draw(st.integers(0, len(value) - 1))
        value[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != value[at]))
        assert refusal(carrying(bytes(value))) in (Refusal.FORM, Refusal.KEY)

    @given(
        tenant=st.from_regex(r"[a-z0-9_-]{1,63}", fullmatch=True),
        version=st.none()
        | st.builds(Version, st.integers(0, 10**18), st.integers(0, 10**18), st.sampled_from(("", HERE))),
        standby=st.lists(st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True), max_size=5).map(tuple),
        failover=st.sampled_from(Failover),
        reason=st.sampled_from((Reason.MISROUTE, Reason.FAILOVER)),
        deadline_s=st.floats(0, 3600),
        target=st.binary(min_size=1, max_size=40),
    )
    def test_round_trip(
        self,
        tenant: str,
        version: Version | None,
        standby: tuple[str, ...],
        failover: Failover,
        reason: Reason,
        deadline_s: float,
        target: bytes,
    ) -> None:
        placement = Placement(
            tenant=tenant, home=THERE, standby=standby, failover=failover, version=version or NO_VERSION
        )
        value = signed(placement=placement, target=target, reason=reason, deadline_s=deadline_s,
                       recorded=version is not None)  # fmt: skip
        hop = verify(carrying(value, target=target), RECEIVER, NOW_MS)
        assert (hop.tenant, hop.version, hop.standby) == (tenant, version, standby)
        assert (hop.failover, hop.reason) == (failover, reason)
        assert abs(hop.deadline_s - deadline_s) <= 0.051


class TestPeerQuestion:
    @staticmethod
    def asking(value: bytes, **more: Any) -> Facts:
        return Facts(**{"target": PEER_TARGET, "host_field": b"gw:8082", "fields": {b"gateway-hop": [value]}, **more})

    def test_question(self) -> None:
        value = sign_question(SENDER, to=THERE, ts=NOW_S, host=b"gw:8082")
        assert value.startswith(b"v=1; from=us-east-1; to=eu-west-1; reason=peer; ts=1790000000; sig=")
        hop = verify(self.asking(value), RECEIVER, NOW_MS)
        assert (hop.reason, hop.source, hop.tenant, hop.version) == (Reason.PEER, HERE, "", None)

    def test_it_is_no_key_to_anything_else(self) -> None:
        value = sign_question(SENDER, to=THERE, ts=NOW_S, host=b"gw:8082")
        assert refusal(self.asking(value, target=b"/x")) is Refusal.FORM
        assert refusal(self.asking(value, method=b"POST")) is Refusal.FORM
        assert refusal(self.asking(value, host_field=b"other:8082")) is Refusal.KEY
        assert refusal(self.asking(value), world(THIRD)) is Refusal.DESTINATION

    def test_a_clients_request_for_that_path_is_a_request_like_any_other(self) -> None:
        request = Facts(target=PEER_TARGET)
        hop = verify(carrying(signed(request=request), target=PEER_TARGET), RECEIVER, NOW_MS)
        assert hop.reason is Reason.MISROUTE

    def test_answer(self) -> None:
        question = signature_of(sign_question(SENDER, to=THERE, ts=NOW_S, host=b"gw:8082"))
        value = sign_answer((KEY,), question, b"{}")
        assert verify_answer((OLD_KEY, KEY), question, b"{}", value)
        assert not verify_answer((KEY,), question, b"{ }", value), "another body"
        assert not verify_answer((KEY,), "0" * 64, b"{}", value), "another question"
        assert not verify_answer((FOREIGN_KEY,), question, b"{}", value)
        for bad in (b"", b"sig=", value[4:], value.upper(), value + b"0", value[:-1]):
            assert not verify_answer((KEY,), question, b"{}", bad)

    @given(st.integers(0, 67), st.integers(1, 255))
    def test_any_changed_byte_of_an_answer_is_refused(self, at: int, change: int) -> None:
        value = bytearray(sign_answer((KEY,), "1" * 64, b"{}"))
        value[at] ^= change
        assert not verify_answer((KEY,), "1" * 64, b"{}", bytes(value))


class TestLoops:
    @pytest.mark.parametrize(
        ("values", "loop"),
        [
            ((), False),
            ((b"1.1 eu-west-1.landbridge",), True),
            ((b"1.1 us-east-1.landbridge, 1.1 eu-west-1.landbridge",), True),
            ((b"1.1 us-east-1.landbridge", b"1.1 alb,1.0\teu-west-1.landbridge (x)"), True),
            ((b"HTTP/1.1 EU-West-1.Landbridge",), True),
            ((b"1.1 us-east-1.landbridge",), False),
            ((b"1.1 eu-west-1.landbridge-staging",), False),
            ((b"1.1 xeu-west-1.landbridge",), False),
            ((b"1.1 eu-west-1.landbridge.example.com",), False),
            ((b"1.1 eu-west-1",), False),
        ],
    )
    def test_our_own_token(self, values: tuple[bytes, ...], loop: bool) -> None:
        assert loops(values, RECEIVER.token) is loop


def hop(reason: Reason = Reason.MISROUTE, home: str = HERE, epoch: int | None = 7, *, standby: tuple[str, ...] = (),
        failover: Failover = Failover.MANUAL, source: str = THERE) -> Hop:  # fmt: skip
    """A valid hop to HERE. `epoch` None is `ver=-`."""
    version = None if epoch is None else Version(epoch, 0, "")
    return Hop(source, HERE, "acme", version, home, standby, failover, reason, 19.7, NOW_S, "1" * 64, {})


MIS, OVER, ALL, READS = Reason.MISROUTE, Reason.FAILOVER, Failover.ALL, Failover.READS
GET, POST = Facts(), Facts(method=b"POST")
LOOP = "loop"
V7 = Version(7, 0, "")

ROWS = [
    # row 1: our record has home here
    pytest.param(hop(MIS), record(HERE), GET, "", id="1 equal"),
    pytest.param(hop(MIS, THERE, 9), record(HERE), GET, "", id="1 the hop is newer and says elsewhere"),
    pytest.param(hop(MIS, HERE, 5), record(HERE), GET, "", id="1 the hop is older"),
    pytest.param(hop(OVER, THERE, 7), record(HERE), POST, "", id="1 failover, though home is here"),
    pytest.param(hop(MIS, HERE, None), record(HERE), GET, "", id="1 the sender has no record"),
    # row 2: misroute, home= names us, the hop not older
    pytest.param(hop(MIS, HERE, 8), record(THERE), GET, "map_behind", id="2 newer"),
    pytest.param(hop(MIS, HERE, 7), record(THERE), GET, "map_differs", id="2 equal"),
    pytest.param(hop(MIS, HERE, 0), None, GET, "map_behind", id="2 we have no record"),
    pytest.param(hop(MIS, HERE, None), None, GET, "", id="2 nobody has a record"),
    pytest.param(hop(MIS, HERE, 8), record(THERE, state=State.DELETED), GET, "map_behind", id="2 ours is deleted"),
    pytest.param(hop(MIS, HERE, 6), record(THERE), GET, "verdict", id="2 older: row 4"),
    pytest.param(hop(MIS, HERE, None), record(THERE), GET, "verdict", id="2 no record is older: row 4"),
    pytest.param(hop(MIS, HERE, None), record(THERE, version=NO_VERSION), GET, "verdict", id="2 also than no version"),
    pytest.param(hop(MIS, THIRD, 7), record(THERE), GET, LOOP, id="2 home= is another: row 5"),
    # row 3: failover, by a record not older than the other
    pytest.param(hop(OVER, THERE, 7), record(THERE, standby=(HERE,), failover=ALL), POST, "", id="3 ours, equal"),
    pytest.param(hop(OVER, THERE, 6), record(THERE, standby=(HERE,), failover=ALL), POST, "", id="3 ours, newer"),
    pytest.param(hop(OVER, THERE, 8), record(THERE, standby=(HERE,), failover=ALL), POST, LOOP, id="3 ours is older"),
    pytest.param(hop(OVER, THERE, 8, standby=(HERE,), failover=ALL), record(THERE), POST, "", id="3 the hop's, newer"),
    pytest.param(hop(OVER, THERE, 7, standby=(HERE,), failover=ALL), record(THERE), POST, "", id="3 the hop's, equal"),
    pytest.param(
        hop(OVER, THERE, 6, standby=(HERE,), failover=ALL), record(THERE), POST, "verdict", id="3 the hop's is older"
    ),
    pytest.param(hop(OVER, THERE, 7, standby=(HERE,), failover=ALL), None, POST, "", id="3 the hop's, we have none"),
    pytest.param(hop(OVER, THERE, None, standby=(HERE,), failover=ALL), None, GET, LOOP, id="3 ver=- is no record"),
    pytest.param(hop(OVER, THERE, 7), record(THERE, standby=(HERE,), failover=READS), GET, "", id="3 reads, a read"),
    pytest.param(hop(OVER, THERE, 7), record(THERE, standby=(HERE,), failover=READS), POST, LOOP, id="3 not covered"),
    pytest.param(hop(OVER, THERE, 7), record(THERE, standby=(HERE,)), GET, LOOP, id="3 manual covers nothing"),
    pytest.param(hop(OVER, THERE, 7), record(THERE, standby=(THIRD,), failover=ALL), GET, LOOP, id="3 another standby"),
    pytest.param(
        hop(MIS, THERE, 7, standby=(HERE,), failover=ALL),
        record(THERE, standby=(HERE,), failover=ALL),
        GET,
        LOOP,
        id="3 a misroute is no failover",
    ),
    pytest.param(hop(OVER, HERE, 7), record(THERE), GET, LOOP, id="3 home= counts for misroute only"),
    # row 4: ours is newer
    pytest.param(hop(MIS, THIRD, 6), record(THERE), GET, "verdict", id="4 misroute"),
    pytest.param(hop(OVER, THIRD, 6), record(THERE), GET, "verdict", id="4 failover"),
    # row 5: anything else
    pytest.param(hop(MIS, THERE, 8), record(THERE), GET, LOOP, id="5 the hop is newer"),
    pytest.param(hop(MIS, THERE, 7), record(THERE), GET, LOOP, id="5 equal"),
    pytest.param(hop(MIS, THERE, 7), None, GET, LOOP, id="5 no record here"),
    pytest.param(hop(MIS, THERE, None), None, GET, LOOP, id="5 no record anywhere"),
]


class TestJudge:
    @pytest.mark.parametrize(("asked", "ours", "request_", "expected"), ROWS)
    def test_first_row_that_fits(self, asked: Hop, ours: Placement | None, request_: Facts, expected: str) -> None:
        outcome = judge(asked, ours, world(HERE), request_)
        if expected == LOOP:
            assert outcome == Loop(ours and ours.version, asked.version)
        elif expected == "verdict":
            assert ours is not None
            assert outcome == Verdict(ours.version, ours.home, ours.standby, ours.failover)
        else:
            assert isinstance(outcome, Serve)
            assert outcome.count == expected

    @pytest.mark.parametrize(
        ("asked", "ours", "version", "home"),
        [
            pytest.param(hop(MIS, HERE, 8), record(THERE), Version(8, 0, ""), HERE, id="the hop's"),
            pytest.param(hop(MIS, HERE, 5), record(HERE), V7, HERE, id="ours"),
            pytest.param(hop(MIS, HERE, 7), record(THERE), V7, THERE, id="equal: ours"),
            pytest.param(hop(MIS, HERE, 3), None, Version(3, 0, ""), HERE, id="we have none"),
            pytest.param(hop(MIS, HERE, None), None, NO_VERSION, HERE, id="nobody has one"),
        ],
    )
    def test_epoch_and_home_are_the_newer_records(
        self, asked: Hop, ours: Placement | None, version: Version, home: str
    ) -> None:
        decided = decide_hop(asked, ours, world(HERE), GET)
        assert decided.decision == Decision(Kind.LOCAL, "misroute", HERE, "app")
        assert (decided.version, decided.home) == (version, home)

    def test_a_loop_names_both_versions(self) -> None:
        decided = decide_hop(hop(MIS, THERE, 8), record(THERE), world(HERE), GET)
        assert decided.decision.flag == "loop"
        assert decided.detail == "our record is 7.0., the sender's 8.0."
        assert decide_hop(hop(MIS, THERE, None), None, world(HERE), GET).detail.count("absent") == 2

    def test_a_verdict_goes_with_421(self) -> None:
        ours = record(THERE, standby=(THIRD,), failover=ALL)
        decided = decide_hop(hop(MIS, HERE, 6), ours, world(HERE), GET)
        assert decided.decision.flag == "misdirected"
        assert decided.verdict == Verdict(V7, THERE, (THIRD,), ALL)

    @pytest.mark.parametrize(
        ("state", "flag"),
        [(State.DELETED, "tenant_unknown"), (State.SUSPENDED, "tenant_suspended"), (State.HELD, "held_too_long")],
    )
    def test_rule_2_by_our_record_unless_the_hops_is_newer(self, state: State, flag: str) -> None:
        ours = record(HERE, state=state)
        for epoch in (None, 6, 7):
            decided = decide_hop(hop(MIS, HERE, epoch), ours, world(HERE), GET)
            assert (decided.decision.kind, decided.decision.flag, decided.verdict) == (Kind.REJECT, flag, None)
        assert decide_hop(hop(MIS, HERE, 8), ours, world(HERE), GET).decision.kind is Kind.LOCAL

    @pytest.mark.parametrize(("policy", "post", "get"), [("serve", "", ""), ("read_only", "partitioned", ""),
                                                         ("refuse", "partitioned", "partitioned")])  # fmt: skip
    def test_a_region_that_is_cut_off_by_our_records_policy_unless_the_hops_is_newer(
        self, policy: str, post: str, get: str
    ) -> None:
        ours = record(HERE, partition=Partition(policy))
        cut_off = world(HERE, isolated=True)
        for request, flag in ((Facts(method=b"POST"), post), (GET, get)):
            for epoch in (None, 6, 7):
                decided = decide_hop(hop(MIS, HERE, epoch), ours, cut_off, request)
                assert (decided.decision.flag, decided.verdict, decided.detail) == (flag, None, "")
                assert bool(decided.decision.detail) is bool(flag)
            assert decide_hop(hop(MIS, HERE, 8), ours, cut_off, request).decision.kind is Kind.LOCAL
            assert decide_hop(hop(MIS, HERE, 7), ours, world(HERE), request).decision.kind is Kind.LOCAL
        elsewhere = record(THERE, partition=Partition(policy))
        decided = decide_hop(hop(MIS, HERE, 6), elsewhere, cut_off, GET)
        assert decided.decision.flag == "misdirected", "what is not served here is no matter of our policy"

    @pytest.mark.parametrize(
        ("asked", "ours", "expected"),
        [
            pytest.param(hop(MIS, HERE, 7), record(standby=(THIRD,), failover=ALL), ((THIRD,), ALL), id="ours"),
            pytest.param(hop(MIS, HERE, 8, standby=(THERE,), failover=READS), record(), ((THERE,), READS), id="hop's"),
            pytest.param(hop(MIS, HERE, None), None, ((), Failover.MANUAL), id="nobody's"),
        ],
    )
    def test_unavailable_says_who_may_instead(
        self, asked: Hop, ours: Placement | None, expected: tuple[tuple[str, ...], Failover]
    ) -> None:
        decided = decide_hop(asked, ours, world(HERE, app=False), GET)
        assert decided.decision == Decision(Kind.REJECT, "misroute", HERE, flag="cluster_unavailable")
        assert decided.verdict == Unavailable(*expected)
        assert not decided.detail

    def test_unavailable_after_the_fact(self) -> None:
        outcome = judge(hop(MIS, HERE, 7), record(standby=(THIRD,), failover=ALL), world(HERE), GET)
        assert isinstance(outcome, Serve)
        assert unavailable(outcome) == Unavailable((THIRD,), ALL)

    def test_the_cluster_is_our_records_or_our_routes(self) -> None:
        clusters = {"app": cluster("app"), "batch": cluster("batch", False)}
        view = world(HERE, clusters=clusters)
        assert decide_hop(hop(), record(cluster="batch"), view, GET).decision.flag == "cluster_unavailable"
        assert decide_hop(hop(), record(), view, GET).decision.cluster == "app"


class TestVerdictField:
    MOVED = Verdict(Version(8, 5, THIRD), THERE, (HERE, THIRD), ALL)
    DOWN = Unavailable((), READS)

    def test_fields_are_as_in_the_design(self) -> None:
        moved = sign_verdict((KEY,), "1" * 64, self.MOVED)
        assert moved.startswith(
            b"ver=8.5.ap-southeast-2; home=eu-west-1; standby=us-east-1,ap-southeast-2; failover=all; sig="
        )
        assert sign_verdict((KEY,), "1" * 64, self.DOWN).startswith(b"unavailable; standby=; failover=reads; sig=")

    @pytest.mark.parametrize("verdict", [MOVED, DOWN])
    def test_read_back_for_this_hop_and_by_any_key(self, verdict: Verdict | Unavailable) -> None:
        value = sign_verdict((KEY,), "1" * 64, verdict)
        assert read_verdict((OLD_KEY, KEY), "1" * 64, value) == verdict
        assert read_verdict((KEY,), "2" * 64, value) is None, "another hop's"
        assert read_verdict((FOREIGN_KEY,), "1" * 64, value) is None

    @pytest.mark.parametrize("verdict", [MOVED, DOWN])
    @given(data=st.data())
    def test_any_changed_byte_is_refused(self, verdict: Verdict | Unavailable, data: st.DataObject) -> None:
        value = bytearray(sign_verdict((KEY,), "1" * 64, verdict))
        at = data.draw(st.integers(0, len(value) - 1))
        value[at] ^= data.draw(st.integers(1, 255))
        assert read_verdict((KEY,), "1" * 64, bytes(value)) is None

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"unavailable",
            b"unavailable; standby=; failover=all; ver=1.0.",
            b"home=eu-west-1; ver=1.0.; standby=; failover=all",
            b"ver=-; home=eu-west-1; standby=; failover=all",
            b"ver=1.0.; home=EU; standby=; failover=all",
            b"ver=1.0.; home=eu; standby=; failover=some",
            b"unavailable; ver=1.0.; home=eu; standby=; failover=all",
        ],
    )
    def test_what_is_signed_but_no_verdict(self, text: bytes) -> None:
        parts = b"64:%b%d:%b" % (b"1" * 64, len(text), text)
        value = text + b"; sig=" + hmac.new(KEY, parts, "sha256").hexdigest().encode()
        assert read_verdict((KEY,), "1" * 64, value) is None

    def test_keys_of_a_later_program_are_ignored(self) -> None:
        text = b"ver=1.0.; home=eu; standby=; failover=all; later=1"
        parts = b"64:%b%d:%b" % (b"1" * 64, len(text), text)
        value = text + b"; sig=" + hmac.new(KEY, parts, "sha256").hexdigest().encode()
        assert read_verdict((KEY,), "1" * 64, value) == Verdict(Version(1, 0, ""), "eu", (), ALL)

    def test_an_answer_to_a_question_is_no_verdict(self) -> None:
        assert read_verdict((KEY,), "1" * 64, sign_answer((KEY,), "1" * 64, b"{}")) is None


records = st.none() | st.builds(
    record,
    st.sampled_from(REGIONS),
    epoch=st.integers(1, 3),
    standby=st.lists(st.sampled_from(REGIONS), unique=True, max_size=2).map(tuple),
    failover=st.sampled_from(Failover),
)
BY_HOST = Resolved("acme", Source.HOST, "host")


def carry(entry: View, map_: dict[str, Placement | None], request: Facts, apps: dict[str, bool]
          ) -> tuple[Decision, HopDecision | None]:  # fmt: skip
    """A request through the entry gateway, and over a real signed hop where it is carried."""
    decision = decide(request, BY_HOST, map_[entry.region], entry, True)
    if decision.kind is not Kind.INTERNAL_REDIRECT:
        return decision, None
    placement = map_[entry.region] or Placement(tenant="acme", home=decision.region)
    value = signed(entry, placement, request, to=decision.region, reason=decision.reason,
                   recorded=map_[entry.region] is not None)  # fmt: skip
    receiver = world(decision.region, app=apps[decision.region], unknown=entry.unknown)
    arrived = carrying(value, method=request.method, target=request.target)
    return decision, decide_hop(verify(arrived, receiver, NOW_MS), map_[decision.region], receiver, arrived)


@given(
    st.sampled_from(REGIONS),
    st.tuples(records, records, records),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.none() | st.sampled_from(REGIONS),
    st.sampled_from((b"GET", b"POST")),
)
def test_one_hop_settles_it(
    entry: str, maps: tuple[Placement | None, ...], up: tuple[bool, ...], unknown: str | None, method: bytes
) -> None:
    """Whatever the maps hold: one hop at most, no loop of it, and where maps agree nobody disagrees."""
    map_ = dict(zip(REGIONS, maps, strict=True))
    apps = dict(zip(REGIONS, up, strict=True))
    unable = tuple(name for name in REGIONS if name != entry and not apps[name])
    request = Facts(method=method)
    decision, judged = carry(knowing(entry, apps[entry], unable=unable, unknown=unknown), map_, request, apps)
    if judged is None:
        return
    assert judged.decision.kind in (Kind.LOCAL, Kind.REJECT), "a hop is never sent on, nor redirected"
    if judged.decision.kind is Kind.LOCAL:
        assert apps[decision.region]
        assert judged.decision.region == decision.region
    if judged.decision.flag == "misdirected":
        ours, theirs = map_[decision.region], map_[entry]
        assert ours is not None
        assert theirs is None or ours.version > theirs.version, "only who knows better says so"
        assert judged.verdict is not None
    sent_by, here = map_[entry], map_[decision.region]
    if sent_by == here:
        assert judged.decision.kind is Kind.LOCAL, "the peers were asked, and the records agree"
        assert not judged.count
