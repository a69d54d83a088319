"""Chains: compiled whole or refused, with a reason for the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gateway.core.errors import GatewayError
from gateway.core.filtering import (
    REQUIRED_INBOUND,
    Answer,
    ChainError,
    Forward,
    InboundFilter,
    Park,
    Respond,
    build_filters,
    compile_chain,
    field_line,
    without,
)


class Passes:
    """An inbound filter that goes on."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, exchange: object) -> Answer | None:
        return None


class Waits(Passes):
    async def __call__(self, exchange: object) -> Answer | None:  # type: ignore[override]
        return None


class Replies:
    name = "reply"

    def __call__(self, exchange: object) -> Answer:
        return Respond(204)


class Sees:
    def __init__(self, name: str = "headers") -> None:
        self.name = name

    def __call__(self, exchange: object) -> None:
        return None


class SeesEnd(Sees):
    def complete(self, exchange: object) -> None:
        return None


class SeesLate(Sees):
    async def __call__(self, exchange: object) -> None:  # type: ignore[override]
        return None


def required(*more: InboundFilter) -> list[InboundFilter]:
    return [*(Passes(name) for name in REQUIRED_INBOUND), *more]


def test_order_is_kept_and_names_are_found() -> None:
    steps, end, log = required(Passes("throttle")), Replies(), SeesEnd("log")
    chain = compile_chain(steps, [end], [Sees(), log])
    assert chain.inbound == tuple(steps)
    assert chain.endpoints == {"reply": end}
    assert [step.name for step in chain.outbound] == ["headers", "log"]
    assert chain.completes == (log,)
    assert chain.is_async == frozenset()


def test_own_filters_may_stand_between_the_required_ones() -> None:
    identify, tenant, region = required()
    names = [step.name for step in compile_chain([identify, Passes("mine"), tenant, region], [Replies()], []).inbound]
    assert names == ["identify", "mine", "tenant", "region"]


def test_async_filters_are_named() -> None:
    assert compile_chain(required(Waits("slow")), [Replies()], []).is_async == frozenset(("slow",))


@pytest.mark.parametrize(
    "names",
    [
        ("identify", "tenant"),
        ("tenant", "region"),
        ("tenant", "identify", "region"),
        ("identify", "region", "tenant"),
        ("identify", "tenant", "tenant", "region"),
        (),
    ],
)
def test_required_filters_are_there_once_and_in_order(names: tuple[str, ...]) -> None:
    with pytest.raises(ChainError, match="identify, tenant, region once each in this order"):
        compile_chain(map(Passes, names), [Replies()], [])


def test_a_chain_needs_an_endpoint() -> None:
    with pytest.raises(ChainError, match="endpoint filter"):
        compile_chain(required(), [], [])


def test_names_are_unique_over_all_kinds() -> None:
    with pytest.raises(ChainError, match=r"unique: reply$"):
        compile_chain(required(Passes("reply")), [Replies()], [])


def test_an_outbound_filter_cannot_wait() -> None:
    with pytest.raises(ChainError, match=r"outbound filters cannot be async.*late"):
        compile_chain(required(), [Replies()], [SeesLate("late")])


def made_with(options: Mapping[str, object]) -> Any:
    if set(options) - {"rate"}:
        raise ValueError("knows no option but rate")
    return dict(options)


def test_filters_are_made_in_order_with_their_options() -> None:
    registry = {"a": made_with, "b": made_with}
    assert build_filters(registry, {"b": {"rate": 1}, "unknown to this registry": {}}) == [{}, {"rate": 1}]


@pytest.mark.parametrize("options", [{"size": 1}, {1: 2}])
def test_options_that_a_filter_cannot_take_name_it(options: Mapping[str, object]) -> None:
    with pytest.raises(ChainError, match=r"filters\.options\.a: knows no option but rate"):
        build_filters({"a": made_with}, {"a": options})


def test_answers_are_values() -> None:
    assert Forward("app") == Forward("app", "")
    assert Respond(204) == Respond(204, (), b"")
    assert Park(1.0) != Park(2.0)


def test_a_removable_filter_is_taken_out_and_no_other():
    one, two = Passes("mine"), Passes("end")
    chain = compile_chain(
        [*map(Passes, REQUIRED_INBOUND), one], [Passes("reply"), two], [Passes("log")], frozenset({"mine", "end"})
    )
    after = without(without(chain, "mine"), "end")
    assert [step.name for step in after.inbound] == list(REQUIRED_INBOUND)
    assert after.removable == frozenset()
    with pytest.raises(GatewayError):
        after.endpoints["end"](object())  # type: ignore[arg-type]  # it looks at nothing
    with pytest.raises(ValueError, match="cannot be taken out"):
        without(chain, "identify")


def test_the_last_async_filter_that_goes_makes_the_chain_synchronous():
    chain = compile_chain([*map(Passes, REQUIRED_INBOUND), Waits("w")], [Passes("reply")], [], frozenset({"w"}))
    assert chain.is_async == {"w"}
    assert not without(chain, "w").is_async


@pytest.mark.parametrize(
    ("name", "value"), [("X A", "b"), ("", "b"), ("X", "a\r\nY: b"), ("X", "a\n"), ("X", "\0"), ("X:", "b")]
)
def test_a_field_line_that_would_be_two_is_none(name: str, value: str):
    with pytest.raises(ValueError, match="no field"):
        field_line(name, value)


def test_a_field_line():
    assert field_line("X-Team", "blau \xfc") == b"X-Team: blau \xfc"
