"""`landbridge region` as it is typed: what is refused before anybody is asked, and what a gateway's answer becomes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from gateway.cli import region
from gateway.cli.main import app
from gateway.control.switchboard import ANSWER_FILE, WANTED_FILE, Answer, Wanted
from gateway.core.switches import Switch
from gateway.store.switches import FILE
from gateway.store.whole import write_whole
from tests.support.configs import KEY, SMALL

WHY = ("--reason", "a test")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOP_KEY", KEY)
    monkeypatch.setattr(region, "ANSWER_LIMIT_S", 0.2)
    path = tmp_path / "gateway.yaml"
    path.write_text(SMALL.replace("state_dir: state", f"state_dir: {tmp_path}/state"))
    (tmp_path / "state").mkdir(mode=0o700)
    return path


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["region", *words, "-c", str(config)])


class Control(threading.Thread):
    """Answers the next wish as control would."""

    def __init__(self, state_dir: Path, answer: Answer) -> None:
        super().__init__(daemon=True)
        self.state_dir, self.answer = state_dir, answer
        self.wanted: Wanted | None = None
        self.start()

    def run(self) -> None:
        wanted, limit = self.state_dir / WANTED_FILE, time.monotonic() + 20.0
        while not wanted.exists() and time.monotonic() < limit:
            time.sleep(0.005)
        self.wanted = msgspec.json.decode(wanted.read_bytes(), type=Wanted)
        wanted.unlink()
        answer = msgspec.structs.replace(self.answer, id=self.wanted.id)
        write_whole(self.state_dir / ANSWER_FILE, msgspec.json.encode(answer))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("drain",), "region drain needs a --reason"),
        (("undrain",), "needs a --reason"),
        (("failover-mode", "maybe", *WHY), "'maybe' is not one of 'on', 'off'"),
        (("max-traffic", "fast", *WHY), "expected a rate such as 500/s, or none, found 'fast'"),
        (("max-traffic", "0/s", *WHY), "expected a rate such as 500/s"),
        (("drain", "--for", "soon", *WHY), "--for: expected a duration such as 30m, found 'soon'"),
        (("drain", "--token-file", "x", *WHY), "--token-file and --insecure are for --admin"),
        (("status", "--admin", "ftp://x"), "expected a URL such as http://127.0.0.1:8081"),
    ],
)
def test_what_is_refused_before_anybody_is_asked(config: Path, words: tuple[str, ...], said: str) -> None:
    result = run(config, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (config.parent / "state" / WANTED_FILE).exists()


def test_where_no_gateway_runs_nothing_is_left_behind(config: Path) -> None:
    result = run(config, "drain", *WHY)
    assert result.exit_code == 1
    assert "does one run here?" in result.stderr
    assert not (config.parent / "state" / WANTED_FILE).exists(), "the next start must not find it"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (Answer(), 0, "the map is not replicated: this holds for this gateway alone"),
        (Answer(everywhere=True), 0, ""),
        (Answer(everywhere=False), 0, "the region's Redis does not answer"),
        (Answer(refused="safety", detail="acme would stay here"), 3, "acme would stay here; --force"),
        (Answer(refused="input", detail="drain: no"), 2, "drain: no"),
    ],
)
def test_an_answer_becomes_an_exit_code_and_a_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, code: int, said: str
) -> None:
    monkeypatch.setattr(region, "ANSWER_LIMIT_S", 20.0)
    control = Control(config.parent / "state", answer)
    result = run(config, "drain", "--actor", "alice", "--for", "30m", "--force", *WHY)
    control.join()
    assert result.exit_code == code, result.output
    assert said in result.stderr
    wanted = control.wanted
    assert wanted is not None
    assert (wanted.name, wanted.value, wanted.by, wanted.why) == ("drain", "on", "alice", "a test")
    assert (wanted.lasts_s, wanted.force) == (1800.0, True)
    line = (config.parent / "state" / "audit.log").read_text().splitlines()[-1]
    assert '"actor":"alice"' in line
    assert '"path":"region drain on"' in line
    assert ('"outcome":"done"' in line) is (code == 0)


def test_status_shows_what_is_on_and_until_when(config: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    known = {
        "drain": Switch(value="on", by="alice", why="new kernel", at_ms=now_ms, until_ms=now_ms + 3_600_000),
        "max-traffic": Switch(value="500", by="bob", why="x", at_ms=1, until_ms=2),
        "unheard-of": Switch(value="on", by="a later program", why="x", at_ms=1),
    }
    (config.parent / "state" / FILE).write_bytes(msgspec.json.encode(known))
    result = run(config, "status", "--json")
    rows = msgspec.json.decode(result.stdout)["switches"]
    assert {row["switch"]: row["value"] for row in rows} == {"failover-mode": None, "max-traffic": None, "drain": "on"}
    text = run(config, "status").stdout
    assert "new kernel" in text
    (config.parent / "state" / FILE).write_bytes(b"{")
    assert run(config, "status").exit_code == 1
