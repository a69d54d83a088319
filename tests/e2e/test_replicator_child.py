"""The supervisor's third kind of child, with tiny real children: the replicator lives with a map from Redis only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.supervised import Gateway, alive, until

REDIS = "tenant_map: {source: redis, redis: {url: 'redis://127.0.0.1:1'}}\n"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    gateway.config.write_text(gateway.config.read_text().replace("tenant_map: {file: tenants.yaml}\n", REDIS))
    yield gateway
    gateway.end()


def lives(gateway: Gateway, count: int) -> int:
    """Wait for so many starts of the replicator, and until control was told of the last one; its pid."""
    until(lambda: len(gateway.starts("replicator")) >= count, f"{count} replicators were started")
    pid: int = gateway.starts("replicator")[-1]["pid"]
    until(lambda: gateway.told("control", "processes")[-1]["replicator"] == pid, "control was told of it")
    return pid


def ask_for_a_restart(gateway: Gateway, then: str = "") -> None:
    (gateway.state / "say-control").write_text('{"ask": "restart-replicator"}' + (then and f"\n{then}"))
    os.kill(gateway.starts("control")[-1]["pid"], signal.SIGUSR1)


def restarts(gateway: Gateway) -> int:
    count: int = gateway.told("control", "processes")[-1]["restarts"]["replicator"]
    return count


def test_it_is_started_shown_and_stopped_after_the_workers(gateway: Gateway) -> None:
    gateway.start()
    gateway.serving()
    pid = lives(gateway, 1)
    arguments = gateway.starts("replicator")[0]["started"]
    assert arguments[:-1] == ["--state-dir", str(gateway.state), "--channel"]
    assert int(arguments[-1]) > 2
    assert gateway.stop() == 0
    assert not alive(pid)
    assert not gateway.told("replicator", "drain")
    ends = [e["who"] for e in gateway.events() if e.get("got", {}).get("cmd") in ("drain", "stop")]
    assert sorted(ends[-2:]) == ["control", "replicator"]


def test_the_yaml_source_has_none_and_a_wish_for_one_comes_to_nothing(gateway: Gateway) -> None:
    gateway.config.write_text(gateway.config.read_text().replace(REDIS, ""))
    gateway.start()
    assert gateway.serving()["replicator"] is None
    ask_for_a_restart(gateway, then='{"state": "draining"}')
    until(lambda: "is draining" in gateway.log(), "what control said next is heard")
    assert "no message" not in gateway.log()
    assert not gateway.starts("replicator")


def test_its_death_is_counted_and_costs_nobody_else_anything(gateway: Gateway) -> None:
    gateway.start()
    before = gateway.serving()
    os.kill(lives(gateway, 1), signal.SIGKILL)
    lives(gateway, 2)
    after = gateway.told("control", "processes")[-1]
    assert after["restarts"] == {"worker": 0, "control": 0, "replicator": 1}
    assert {**after, "replicator": 0, "restarts": 0} == {**before, "replicator": 0, "restarts": 0}
    assert "replicator (pid " in gateway.log()
    assert "was killed by SIGKILL; it is started again at once" in gateway.log()


def test_one_that_keeps_dying_is_started_less_and_less_often_and_the_gateway_serves(gateway: Gateway) -> None:
    gateway.behave("replicator", "die")
    gateway.start()
    gateway.serving()
    until(lambda: "exited with 3; it is started again in 0.5 s" in gateway.log(), "it backs off")
    assert gateway.answer().startswith("worker-")
    gateway.behave("replicator", "")
    lives(gateway, restarts(gateway) + 1)
    assert gateway.told("replicator", "stop") == []


def test_control_has_it_started_again_with_other_settings(gateway: Gateway) -> None:
    gateway.start()
    gateway.serving()
    first = lives(gateway, 1)
    ask_for_a_restart(gateway)
    second = lives(gateway, 2)
    assert gateway.told("replicator", "stop") == [{"cmd": "stop"}]
    assert not alive(first)
    assert restarts(gateway) == 0, "it was asked for"
    os.kill(second, signal.SIGKILL)
    lives(gateway, 3)
    assert restarts(gateway) == 1


def test_one_in_back_off_is_started_at_once_when_control_asks(gateway: Gateway) -> None:
    gateway.behave("replicator", "die")
    gateway.start()
    until(lambda: "exited with 3; it is started again in 2 s" in gateway.log(), "it is in back-off")
    gateway.behave("replicator", "")
    began, before = time.monotonic(), len(gateway.starts("replicator"))
    ask_for_a_restart(gateway)
    lives(gateway, before + 1)
    assert time.monotonic() - began < 1.9


@pytest.mark.parametrize("end", [lambda gateway: ask_for_a_restart(gateway), lambda gateway: gateway.stop()])
def test_one_that_does_not_stop_is_killed(gateway: Gateway, end: Callable[[Gateway], object]) -> None:
    gateway.behave("replicator", "stuck")
    gateway.start()
    gateway.serving()
    first = lives(gateway, 1)
    end(gateway)
    until(lambda: not alive(first), "it is gone")
    assert f"replicator (pid {first}) is still there 2 s after" in gateway.log()


def test_a_killed_supervisor_takes_it_along(gateway: Gateway) -> None:
    process = gateway.start()
    gateway.serving()
    pid = lives(gateway, 1)
    process.kill()
    process.wait()
    until(lambda: not alive(pid), "it has seen its channel close")
