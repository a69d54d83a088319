"""The verifier: real signatures, every way in which a token fails, what is remembered, what it may cost."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field

import jwt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.core.errors import GatewayError
from gateway.core.jwks import ALGORITHMS, TokenKeys
from gateway.core.view import AlbResolver, JwtResolver, Resolver
from gateway.identity import verifier as verifying
from gateway.identity.rings import ABSENT_S, ASK_AGAIN_S, ASK_EVERY_S, ASKED_MAX, Ring
from gateway.identity.verifier import DEPTH_S, REFUSED_MAX, SHARE, Verifier
from tests.support.tokens import ARN, AUDIENCE, ISSUER, Signer, alb_token, bare, key_set, signer

URL = "https://id.test/jwks.json"
ALB_URL = "https://keys.test/{kid}"


def resolver(
    keys: str = "", source: str = "", algorithms: tuple[str, ...] = ("ES256",), leeway: float = 0.0
) -> JwtResolver:
    place = source or ("/jwks.json" if keys else URL)
    return JwtResolver(b"authorization", "org", place, keys, algorithms, (ISSUER,), (AUDIENCE,), leeway)


@dataclass
class World:
    """A verifier with clocks that a test moves, and what it said."""

    wall_s: float = field(default_factory=time.time)
    now_s: float = 1000.0
    spent_s: float = 0.0
    cost_s: float = 0.0
    wanted: list[tuple[str, str]] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.verifier = Verifier(
            lambda: int(self.wall_s * 1000),
            lambda: self.now_s,
            self.spend,
            lambda source, kid: self.wanted.append((source, kid)),
            self.counted.append,
        )

    def spend(self) -> float:
        self.spent_s += self.cost_s
        return self.spent_s

    def use(self, *resolvers: Resolver) -> None:
        self.verifier.use(resolvers)
        self.resolvers = resolvers

    def says(self, token: str | bytes, which: int = 0) -> str:
        """The tenant, or the flag and why."""
        text = token.encode() if isinstance(token, str) else token
        try:
            return self.verifier.tenant(self.resolvers[which], text)  # type: ignore[arg-type]
        except GatewayError as error:
            return f"{error.flag.name}: {error.detail}"


def at_file(*signers: Signer, algorithms: tuple[str, ...] = ("ES256",)) -> World:
    world = World()
    world.use(resolver(key_set(*signers), algorithms=algorithms))
    return world


SIGNATURE = "token_invalid: the token's signature is not right"
UNKNOWN = "token_invalid: the token is signed with a key that is not known"
UNAVAILABLE = "keys_unavailable: The token's key cannot be had now"
SHED = "shed: too many tokens at once that were not seen before"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_verifies_and_forgeries_do_not(algorithm: str) -> None:
    ours, other = signer("k", algorithm), signer("other", algorithm)
    world = at_file(ours, algorithms=(algorithm,))
    good = ours.token()
    assert world.says(good) == "acme"
    head, body, signature = good.split(".")
    forged = bare(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "exp": 2**40, "org": "globex"}).encode()).decode()
    assert world.says(f"{head}.{forged}.{signature}") == SIGNATURE
    assert world.says(f"{head}.{body}.{bare(b'x' * 64).decode()}") == SIGNATURE
    assert world.says(f"{head}.{body}.AA") == SIGNATURE
    assert world.says(other._replace(kid="k").token()) == SIGNATURE
    assert world.counted.count("valid") == 1


def test_the_claims_are_held() -> None:
    ours = signer()
    world = at_file(ours)
    ends = int(world.wall_s)
    for claims, said in [
        ({"exp": ends}, "the token has expired"),
        ({"exp": None}, "the token does not say when it expires"),
        ({"nbf": ends + 60}, "the token is not valid yet"),
        ({"iss": "https://id.test"}, "the token is of another issuer"),
        ({"aud": "other"}, "the token is for another audience"),
        ({"org": None}, "the token names no tenant in org"),
    ]:
        assert world.says(ours.token(**claims)) == f"token_invalid: {said}"  # type: ignore[arg-type]


def test_a_token_cannot_choose_how_it_is_verified() -> None:
    """RFC 8725, 2.1: neither none, nor HMAC with the public key as its secret, nor a key that it brings along."""
    ours, rsa = signer(), signer("r", "RS256")
    world = at_file(ours, rsa, algorithms=("ES256", "RS256"))
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": 2**33, "org": "acme"}
    wrong = "token_invalid: the token is not signed with ES256 or RS256"
    assert world.says(jwt.encode(claims, None, "none")) == "token_invalid: the token is no signed JWT"
    body = bare(json.dumps(claims).encode())
    for name in ("HS256", "none", "None", "NONE"):
        head = bare(json.dumps({"alg": name, "kid": "one"}).encode())
        assert world.says(head + b"." + body + b".AA") == wrong
    head = bare(json.dumps({"alg": "HS256", "kid": "r"}).encode())
    mac = hmac.new(rsa.pem(), head + b"." + body, hashlib.sha256).digest()
    assert world.says(head + b"." + body + b"." + bare(mac)) == wrong
    thief = signer("thief")
    assert world.says(thief.token(header={"jwk": thief.jwk(), "kid": "thief"})) == UNKNOWN
    assert world.says(thief.token(header={"jku": "https://thief.test/", "kid": "one"})) == SIGNATURE
    assert world.says(ours.token(header={"crit": ["x"], "x": 1})) == (
        "token_invalid: the token asks for an extension that is not known here"
    )
    assert world.says(ours._replace(kid="r").token()) == UNKNOWN, "a key of another kind under that kid"


def test_keys_are_chosen_by_kid() -> None:
    one, two = signer("one"), signer("two")
    world = at_file(one, two)
    assert (world.says(one.token()), world.says(two.token(org="globex"))) == ("acme", "globex")
    assert world.says(one._replace(kid="two").token(org="x")) == SIGNATURE
    assert world.says(signer("three").token()) == UNKNOWN
    assert world.says(one.token(header={"kid": 7})) == (
        "token_invalid: the token names its key by something that is no kid"
    )
    nameless = two.token(header={"kid": None})
    assert world.says(nameless) == "acme", "without a kid each key that fits is tried"
    bare_set = World()
    bare_set.use(resolver(json.dumps({"keys": [{k: v for k, v in one.jwk().items() if k != "kid"}]})))
    assert bare_set.says(one.token()) == "acme", "a key without a kid may be any"


def test_verified_tokens_are_remembered_until_they_expire() -> None:
    ours = signer()
    world = at_file(ours)
    token = ours.token(exp=int(world.wall_s) + 60)
    assert [world.says(token) for _ in range(3)] == ["acme"] * 3
    assert world.counted == ["valid", "cached", "cached"]
    world.wall_s += 61
    assert world.says(token) == "token_invalid: the token has expired"
    again = ours.token(exp=int(world.wall_s) + 60)
    world.use(resolver(key_set(ours), leeway=30))
    assert world.says(again) == "acme"
    world.wall_s += 80
    assert world.says(again) == "acme"
    world.wall_s += 20
    assert world.says(again) == "token_invalid: the token has expired"


def test_a_refused_token_costs_one_verification_and_other_keys_are_other_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    real = verifying._any_verifies
    monkeypatch.setattr(verifying, "_any_verifies", lambda keys, parts: calls.append(1) or real(keys, parts))
    old, new = signer("one"), Signer("one", "ES256", signer("secret").key)
    world = at_file(old)
    good, bad = old.token(), new.token()
    assert [world.says(bad), world.says(bad), world.says(good), world.says(good)] == [
        SIGNATURE,
        SIGNATURE,
        "acme",
        "acme",
    ]
    assert len(calls) == 2
    world.use(resolver(key_set(new)))  # the file changed
    assert [world.says(bad), world.says(good)] == ["acme", SIGNATURE]
    assert len(calls) == 4
    world.use(resolver(key_set(new)), resolver(key_set(new), algorithms=("RS256",)))
    assert world.says(bad) == "acme"
    assert len(calls) == 4, "a View with the same resolver keeps what is known"


def test_memory_is_bounded_and_garbage_pushes_out_no_good_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "VALID_MAX", 16)
    monkeypatch.setattr(verifying, "REFUSED_MAX", 16)
    ours = signer()
    world = at_file(ours)
    good = ours.token()
    assert world.says(good) == "acme"
    head, body, _ = good.split(".")
    for number in range(40):
        assert world.says(f"{head}.{body}.{bare(number.to_bytes(64, 'big')).decode()}") == SIGNATURE
    assert world.says(good) == "acme"
    assert world.counted[-1] == "cached"
    for number in range(40):
        assert world.says(ours.token(jti=number)) == "acme"
    (memory,) = world.verifier._memories.values()
    assert len(memory.valid.items) <= 16
    assert len(memory.refused.items) <= 16
    assert REFUSED_MAX > 0


def test_all_verifying_together_takes_half_of_the_time_at_most() -> None:
    ours = signer()
    world = at_file(ours)
    good = ours.token()
    assert world.says(good) == "acme"
    world.cost_s = 0.001
    taken = 0
    for number in range(2000):
        answer = world.says(ours.token(jti=number))
        if answer == SHED:
            break
        taken += 1
    assert DEPTH_S / world.cost_s - 2 <= taken <= DEPTH_S / world.cost_s + 2
    assert world.says(good) == "acme", "who was seen goes on"
    before = world.counted.count("valid")
    for step in range(1000):
        world.now_s += 0.001
        world.says(ours.token(jti=f"later {step}"))
    admitted = world.counted.count("valid") - before
    assert 0.95 * SHARE * 1.0 <= admitted * world.cost_s <= 1.05 * SHARE * 1.0
    assert "shed" in world.counted


def test_an_expired_token_costs_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_any_verifies", lambda keys, parts: pytest.fail("it was verified"))
    ours = signer()
    world = at_file(ours)
    assert world.says(ours.token(exp=1)) == "token_invalid: the token has expired"


def told(text: str = "", failing: bool = False, asked: bool = False) -> TokenKeys:
    return TokenKeys(URL, {"": text} if text else {}, failing=failing, asked=asked)


def test_an_unknown_kid_asks_control_once_and_waits_for_its_word() -> None:
    old, new = signer("old"), signer("new")
    world = World()
    world.use(resolver())
    assert world.verifier.lacking()
    assert world.says(old.token()) == UNAVAILABLE, "nothing is known yet: it is not the token's fault"
    assert world.wanted == [(URL, "old")]
    world.verifier.learn(told(key_set(old)))
    assert not world.verifier.lacking()
    assert world.says(old.token()) == "acme"
    assert world.says(new.token()) == UNAVAILABLE
    assert world.says(new.token()) == UNAVAILABLE
    assert world.says(signer("made up").token()) == UNAVAILABLE
    assert world.wanted == [(URL, "old"), (URL, "new")], "one question for all of them"
    world.now_s += ASK_AGAIN_S
    assert world.says(new.token()) == UNAVAILABLE
    assert len(world.wanted) == 3, "an answer that does not come is missed"
    world.verifier.learn(told(key_set(old), asked=True))
    assert world.says(new.token()) == UNKNOWN, "the source has just said that there is none"
    world.now_s += ASK_EVERY_S - 0.1
    assert world.says(new.token()) == UNKNOWN
    assert len(world.wanted) == 3
    world.now_s += 0.2
    assert world.says(new.token()) == UNAVAILABLE
    assert len(world.wanted) == 4
    world.verifier.learn(told(key_set(old, new), asked=True))
    assert (world.says(new.token()), world.says(old.token())) == ("acme", "acme")
    world.verifier.learn(told(key_set(new)))
    assert world.says(old.token()) == UNKNOWN, "a key that was withdrawn verifies nothing, remembered or not"


def test_with_the_key_server_down_known_keys_go_on_and_unknown_ones_cannot_be_judged() -> None:
    old, new = signer("old"), signer("new")
    world = World()
    world.use(resolver())
    world.verifier.learn(told(key_set(old)))
    world.verifier.learn(told(key_set(old), failing=True, asked=True))
    assert world.says(old.token()) == "acme"
    assert [world.says(new.token()) for _ in range(3)] == [UNAVAILABLE] * 3
    assert world.wanted == [], "it was asked just now"
    world.now_s += ASK_EVERY_S
    assert world.says(new.token()) == UNAVAILABLE
    assert len(world.wanted) == 1


def test_a_first_start_waits_for_what_may_still_come_only() -> None:
    world = World()
    world.use(resolver(), AlbResolver("org", ARN, ALB_URL))
    assert world.verifier.lacking()
    world.verifier.learn(told(failing=True))
    assert not world.verifier.lacking()
    kept = Verifier(lambda: 0, lambda: 0.0, lambda: 0.0, kept={URL: told(key_set(signer()))})
    kept.use([resolver()])
    assert not kept.lacking()


def alb_world() -> World:
    world = World()
    world.use(AlbResolver("org", ARN, ALB_URL, 0.0))
    return world


def pems(*signers: Signer, absent: tuple[str, ...] = (), failing: bool = False) -> TokenKeys:
    return TokenKeys(ALB_URL, {one.kid: one.pem().decode() for one in signers}, absent, failing)


@pytest.mark.parametrize("exp_in", ["header", "payload"])
def test_the_load_balancers_tokens(exp_in: str) -> None:
    ours = signer("12345678-1234")
    world = alb_world()
    good = alb_token(ours, exp_in=exp_in)
    assert world.says(good) == UNAVAILABLE
    assert world.wanted == [(ALB_URL, "12345678-1234")]
    world.verifier.learn(pems(ours))
    assert world.says(good) == "acme"
    assert world.says(alb_token(ours, ARN.replace("my-alb", "thiefs"), exp_in=exp_in)) == (
        "token_invalid: the token was signed for another load balancer"
    )
    assert world.says(alb_token(ours, exp_in=exp_in, exp=1)) == "token_invalid: the token has expired"
    head, body, signature = good.split(".")
    assert world.says(alb_token(ours, exp_in=exp_in, org="x").rpartition(".")[0] + "." + signature) == SIGNATURE
    assert world.says(signer("one", "RS256").token(header={"signer": ARN})) == (
        "token_invalid: the token is not signed with ES256"
    )
    assert world.says(ours._replace(kid="../../x").token(header={"signer": ARN})) == (
        "token_invalid: the token names its key by something that is no kid"
    )
    assert (head, body) != ("", "")


def test_a_load_balancers_key_of_another_kind_is_none() -> None:
    other = Signer("k", "ES384", signer("k384", "ES384").key)
    world = alb_world()
    world.verifier.learn(pems(other))
    assert world.says(alb_token(signer("k"))) == UNAVAILABLE
    world.verifier.learn(TokenKeys(ALB_URL, {"k": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}))
    assert world.says(alb_token(signer("k"))) == UNAVAILABLE


def test_one_missing_key_says_nothing_of_another() -> None:
    one, two = signer("k-1"), signer("k-2")
    world = alb_world()
    world.verifier.learn(pems(absent=("k-1",)))
    assert world.says(alb_token(one)) == UNKNOWN
    assert world.says(alb_token(two)) == UNAVAILABLE
    assert world.wanted == [(ALB_URL, "k-2")]
    world.now_s += ABSENT_S
    assert world.says(alb_token(one)) == UNAVAILABLE
    for number in range(2 * ASKED_MAX):
        world.says(alb_token(signer(f"x-{number}")))
    assert len(world.wanted) <= ASKED_MAX + 3


def test_a_request_of_an_older_view_is_judged_as_it_began() -> None:
    ours = signer()
    world = at_file(ours)
    before = world.resolvers
    world.use(resolver(key_set(ours), leeway=5))
    world.resolvers = before
    assert world.says(ours.token()) == UNAVAILABLE
    world.use(resolver(key_set(ours)))
    world.resolvers = before
    assert world.says(ours.token()) == "acme"


def test_nothing_is_loaded_without_a_token() -> None:
    """A gateway that has no such resolver runs without the library (whose bare name Redis's client looks for)."""
    program = (
        "import sys, gateway.proxy.main, gateway.control.main, gateway.supervisor\n"
        "from gateway.identity.verifier import Verifier\n"
        "Verifier(lambda: 0, lambda: 0.0, lambda: 0.0).use([])\n"
        "sys.exit('jwt' in sys.modules or 'cryptography.hazmat.bindings' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_a_process_that_ends_while_the_library_loads_ends_well() -> None:
    """An interpreter that goes while a thread of its loads C code aborts."""
    program = (
        "from gateway.core.view import AlbResolver\nfrom gateway.identity.verifier import Verifier\n"
        "Verifier(lambda: 0, lambda: 0.0, lambda: 0.0).use([AlbResolver('org', 'arn', 'https://k/{kid}')])"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


class Model(RuleBasedStateMachine):
    """A source over time against a plain model: which keys it has, when it spoke last, whether it can be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.ring = Ring(URL)
        self.kids: frozenset[str] = frozenset()
        self.failing = False
        self.settled_until = 0.0
        self.silent_until = 0.0

    @rule(kids=st.frozensets(st.sampled_from(["a", "b", "c"])), failing=st.booleans(), asked=st.booleans())
    def hears(self, kids: frozenset[str], failing: bool, asked: bool) -> None:
        kids = self.kids if failing else kids
        text = key_set(*map(signer, sorted(kids)))
        is_new = self.ring.learn(TokenKeys(URL, {"": text} if kids else {}, (), failing, asked), self.now)
        assert is_new == (kids != self.kids)
        self.kids, self.failing, self.silent_until = kids, failing, 0.0
        if asked:
            self.settled_until = self.now + ASK_EVERY_S

    @rule(kid=st.sampled_from(["a", "b", "c"]))
    def is_asked(self, kid: str) -> None:
        assert bool(self.ring.candidates(kid, "ES256")) == (kid in self.kids)
        assert self.ring.candidates(kid, "RS256") == []
        if kid in self.kids:
            return
        certain = not self.failing and self.now < self.settled_until
        assert self.ring.lacks(kid, self.now) == certain
        if not certain:
            asks = self.now >= self.settled_until and self.now >= self.silent_until
            assert self.ring.should_ask(kid, self.now) == asks
            if asks:
                self.silent_until = self.now + ASK_AGAIN_S

    @rule(seconds=st.floats(0.01, 2 * ASK_EVERY_S))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.kids)
    @invariant()
    def what_is_known_is_not_awaited(self) -> None:
        assert not self.ring.awaited


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
