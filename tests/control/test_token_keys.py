"""The keeper of keys over real sockets: when it asks, what it believes, what it keeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.bus.messages import KeyWanted
from gateway.control.keys import fetch, keeper, rules
from gateway.control.keys.keeper import KeyKeeper, sources_of
from gateway.control.keys.rules import PEMS_MAX, Allowance, pause_s
from gateway.control.tasks import TaskSet
from gateway.core.jwks import TokenKeys
from gateway.settings.schema import Settings
from gateway.store.token_keys import FILE, read_kept
from tests.support.configs import SMALL, settings_of, write
from tests.support.eventually import eventually
from tests.support.key_server import KeyServer, answer
from tests.support.tokens import ARN, Signer, key_set, signer

ONE, TWO = signer("one"), signer("two")


class Worker:
    """A bus's far end."""

    def __init__(self) -> None:
        self.told: list[TokenKeys] = []

    def send(self, message: Any) -> bool:
        self.told.append(message)
        return True


@dataclass
class World:
    server: KeyServer
    keeper: KeyKeeper
    told: list[TokenKeys]
    counted: list[str]
    settings: Settings
    worker: Worker = field(default_factory=Worker)

    def want(self, kid: str, which: str = "jwks") -> None:
        source = f"{self.server.url}/jwks" if which == "jwks" else f"{self.server.url}/pem/{{kid}}"
        self.keeper.wanted(self.worker, KeyWanted(source, kid))  # type: ignore[arg-type]


def configured(folder: Path, url: str, refresh: str = "1h") -> Settings:
    text = SMALL + (
        "trusted_proxies: [10.0.0.0/24]\ntenancy:\n  resolvers:\n"
        f"    - jwt: {{claim: org, jwks: '{url}/jwks', refresh: {refresh}, "
        "algorithms: [ES256], issuer: i, audience: a}\n"
        f"    - alb: {{claim: org, alb_arn: '{ARN}', keys: '{url}/pem/{{kid}}'}}\n"
    )
    return settings_of(write(folder, text))


@asynccontextmanager
async def world(folder: Path, server: KeyServer, refresh: str = "1h") -> AsyncIterator[World]:
    tasks, told, counted = TaskSet(), [], []  # type: ignore[var-annotated]
    settings = configured(folder, server.url, refresh)
    made = KeyKeeper(folder, tasks, told.append, random.Random(1), counted.append)
    made.cover(settings)
    try:
        yield World(server, made, told, counted, settings)
    finally:
        await tasks.close()
        await made.close()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    made = KeyServer()
    async with made.application:
        yield made


def keys_of(told: list[TokenKeys]) -> list[str]:
    return [known.keys.get("", "") for known in told]


async def test_a_key_set_is_asked_for_at_once_told_and_kept(tmp_path: Path, server: KeyServer) -> None:
    async with world(tmp_path, server) as found:
        await eventually(lambda: keys_of(found.told) == [key_set(ONE)])
        assert found.told[0] == TokenKeys(f"{server.url}/jwks", {"": key_set(ONE)})
        found.keeper.greet(found.worker)  # type: ignore[arg-type]
        assert {known.source: known.keys for known in found.worker.told} == {
            f"{server.url}/jwks": {"": key_set(ONE)},
            f"{server.url}/pem/{{kid}}": {},
        }
        await eventually(lambda: list(read_kept(tmp_path)) == [f"{server.url}/jwks"])
        assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
        assert found.counted == ["applied"]
        (jwks, pem) = found.keeper.shown()
        assert (jwks.keys, jwks.failing, pem.keys, pem.age_s) == (1, "", 0, None)
        assert jwks.age_s is not None


async def test_keys_that_turn_are_told_and_those_that_stay_are_not(tmp_path: Path, server: KeyServer) -> None:
    async with world(tmp_path, server, refresh="1s") as found:
        await eventually(lambda: len(server.paths) >= 2)
        assert keys_of(found.told) == [key_set(ONE)]
        server.signers = [ONE, TWO]
        await eventually(lambda: keys_of(found.told) == [key_set(ONE), key_set(ONE, TWO)])


async def test_the_last_good_keys_stand_through_failures_and_a_new_control(
    tmp_path: Path, server: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["applied"])
        await eventually(lambda: read_kept(tmp_path))
    await server.application.stop()
    async with world(tmp_path, server) as found:
        assert keys_of(found.keeper.known()) == [key_set(ONE), ""], "known before anybody was asked"
        await eventually(lambda: [known.failing for known in found.told] == [True])
        assert keys_of(found.told) == [key_set(ONE)]
        assert "the last good ones stand" in caplog.text
        await server.application.start()
        await eventually(lambda: [known.failing for known in found.told] == [True, False])
        assert found.counted[0] == "failed"
        assert found.counted[-1] == "applied"
    assert read_kept(tmp_path)[f"{server.url}/jwks"].keys == {"": key_set(ONE)}


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (answer(b"{}"), 'what it answers is no key set: no key set: {"keys": [...]}'),
        (answer(b'{"keys": []}'), "what it answers is no key set: no public key that verifies signatures"),
        (answer(b"<html>"), "what it answers is no key set: no JSON"),
        (answer(b"", "503 Service Unavailable"), "status 503"),
        (answer(b"", "302 Found", "Location: http://127.0.0.1:9/\r\n"), "status 302"),
        (answer(b" " * 300_000), "more than 262144 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "payload"),
        (b"nonsense\r\n\r\n", ""),
    ],
    ids=["none", "empty", "html", "503", "redirect", "huge", "cut", "garbage"],
)
async def test_what_is_no_answer_changes_nothing(
    tmp_path: Path, server: KeyServer, says: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["applied"])
        server.says = says
        found.want("two")
        await eventually(lambda: found.counted == ["applied", "failed"])
        await eventually(lambda: len(found.told) == 2)
        assert (found.told[1].keys, found.told[1].failing, found.told[1].asked) == ({"": key_set(ONE)}, True, True)
        assert why.lower() in caplog.text.lower()


async def test_a_silent_server_is_given_up(
    tmp_path: Path, server: KeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetch, "FETCH_LIMIT_S", 0.2)
    server.application.reply = lambda head: None
    async with world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["failed"])
        assert "no whole answer within 0.2 s" in caplog.text


async def test_an_unknown_key_is_asked_for_once_in_an_interval(
    tmp_path: Path, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["applied"])
        server.signers = [ONE, TWO]
        for _ in range(20):
            found.want("two")
        await eventually(lambda: keys_of(found.told)[-1] == key_set(ONE, TWO))
        assert found.told[-1].asked
        for _ in range(20):
            found.want("three")
        assert len(found.worker.told) == 20, "answered at once, by what the server has just said"
        assert all(known.asked and known.keys == found.told[-1].keys for known in found.worker.told)
        assert server.paths == ["/jwks"] * 2
        monkeypatch.setattr(keeper, "ASK_EVERY_S", 0.0)
        found.keeper._sources[f"{server.url}/jwks"].allowance = Allowance(1, 0.0)
        found.want("three")
        await eventually(lambda: len(server.paths) == 3)


async def test_single_keys_are_looked_up_when_a_token_names_them(tmp_path: Path, server: KeyServer) -> None:
    async with world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["applied"])
        for _ in range(5):
            found.want("one", "pem")
        await eventually(lambda: found.told[-1].keys == {"one": ONE.pem().decode()})
        found.want("two", "pem")
        await eventually(lambda: found.told[-1].absent == ("two",))
        asked = list(server.paths)
        found.want("two", "pem")
        found.want("one", "pem")
        found.want("../../jwks", "pem")
        assert [known.absent for known in found.worker.told] == [("two",), ("two",)]
        assert server.paths == asked == ["/jwks", "/pem/one", "/pem/two"]
        server.says = answer(b"<html>")
        found.want("three", "pem")
        await eventually(lambda: found.told[-1].failing)
        assert found.told[-1].keys == {"one": ONE.pem().decode()}


async def test_made_up_kids_cost_a_few_questions(tmp_path: Path, server: KeyServer) -> None:
    async with world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["applied"])
        for number in range(200):
            found.want(f"made-up-{number}", "pem")
        await eventually(lambda: len(server.paths) == 1 + rules.LOOK_UPS_MAX)
        await asyncio.sleep(0)
        assert len(server.paths) == 1 + rules.LOOK_UPS_MAX


async def test_single_keys_are_bounded(tmp_path: Path, server: KeyServer) -> None:
    server.signers = [Signer(f"k-{number}", "ES256", ONE.key) for number in range(PEMS_MAX + 3)]
    async with world(tmp_path, server) as found:
        source = found.keeper._sources[f"{server.url}/pem/{{kid}}"]
        source.allowance = Allowance(1000, 0.0)
        for one in server.signers:
            found.want(one.kid, "pem")
        await eventually(lambda: len(server.paths) == 1 + len(server.signers) and not source.under_way)
        assert len(source.keys) == PEMS_MAX


async def test_a_reload_asks_new_sources_and_forgets_old_ones(tmp_path: Path, server: KeyServer) -> None:
    other = KeyServer([TWO])
    async with other.application, world(tmp_path, server) as found:
        await eventually(lambda: found.counted == ["applied"])
        found.keeper.cover(configured(tmp_path, other.url))
        await eventually(lambda: keys_of(found.told)[-1] == key_set(TWO))
        assert {known.source for known in found.keeper.known()} == {f"{other.url}/jwks", f"{other.url}/pem/{{kid}}"}
        found.want("x")
        assert server.paths == ["/jwks"]
        found.keeper.cover(settings_of(write(tmp_path, SMALL)))
        assert found.keeper.known() == []


@pytest.mark.parametrize("text", [b"", b"nonsense", b"[1]", b"{}", b'[{"source": "a", "keys": {"": "{}"}}]', b"\xff"])
def test_a_file_of_keys_that_cannot_be_read_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_bytes(text)
    assert read_kept(tmp_path) == {}
    assert read_kept(tmp_path / "nowhere") == {}


def test_the_sources_of_a_configuration(tmp_path: Path) -> None:
    settings = configured(tmp_path, "https://id.test", "30s")
    assert sources_of(settings) == {"https://id.test/jwks": 30.0, "https://id.test/pem/{kid}": 0.0}
    assert sources_of(settings_of(write(tmp_path, SMALL))) == {}


def test_when_a_source_is_asked() -> None:
    rng = random.Random(7)
    steady = [pause_s(300.0, 0, rng) for _ in range(500)]
    assert 240 <= min(steady) < 250
    assert 350 < max(steady) <= 360
    for failures, longest in ((1, 1.25), (2, 2.25), (4, 8.25), (50, 60.25)):
        pauses = [pause_s(300.0, failures, rng) for _ in range(500)]
        assert 0.25 <= min(pauses)
        assert 0.9 * longest < max(pauses) <= longest
    assert max(pause_s(2.0, 50, rng) for _ in range(500)) <= 2.25, "no longer than without failures"


def test_an_allowance_is_never_exceeded() -> None:
    allowance, rng, now, taken = Allowance(3, 2.0), random.Random(3), 0.0, []
    for _ in range(2000):
        now += rng.uniform(0, 1)
        if allowance.take(now):
            taken.append(now)
    for at in range(len(taken)):
        for later in range(at, len(taken)):
            assert later - at + 1 <= 3 + (taken[later] - taken[at]) / 2.0 + 1e-9
    assert len(taken) > now / 2.0 - 2
