"""A thin wall around operators' filters: what they leave behind is looked at while it is known who left it.

A line that is text instead of bytes, or an answer that is none, would otherwise fail later, in code that is not to
blame: the error would be counted against another filter, and the one at fault would never be taken out.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import cast

from gateway.core.exchange import Exchange
from gateway.core.filtering import Answer, Completes, Forward, Park, Respond

Call = Callable[[Exchange], object]


def guarded(name: str, inner: object) -> object:
    """`inner` as a step of the chain. It stays synchronous or async, and hears the exchange's end if it wanted to."""
    is_async = inspect.iscoroutinefunction(type(inner).__call__)
    step = _Async(name, inner) if is_async else _Guarded(name, inner)
    if isinstance(inner, Completes):
        step.complete = inner.complete  # type: ignore[attr-defined]  # only those that have it shall be Completes
    return step


class _Guarded:
    def __init__(self, name: str, inner: object) -> None:
        self.name = name
        self.inner = cast(Call, inner)

    def __call__(self, exchange: Exchange) -> Answer | None:
        return _checked(exchange, self.inner(exchange))


class _Async(_Guarded):
    async def __call__(self, exchange: Exchange) -> Answer | None:  # type: ignore[override]  # the chain tells apart
        return _checked(exchange, await cast(Awaitable[object], self.inner(exchange)))


def _checked(exchange: Exchange, answer: object) -> Answer | None:
    """`answer`, or TypeError for anything that cannot be sent."""
    for line in exchange.forwarded:
        if type(line) is not bytes:
            raise TypeError(f"exchange.forwarded holds {line!r}: its lines are bytes, see field_line()")
    if exchange.response is not None:
        for line in exchange.response.added:
            if type(line) is not bytes:
                exchange.response.added.remove(line)
                raise TypeError(f"response.added holds {line!r}: its lines are bytes, see field_line()")
    if answer is None or isinstance(answer, Forward):
        return answer
    if isinstance(answer, Respond):
        if type(answer.body) is not bytes or not all(type(part) is bytes for pair in answer.fields for part in pair):
            raise TypeError(f"{answer!r}: body and fields are bytes")
        return answer
    if isinstance(answer, Park):
        return answer
    raise TypeError(f"the filter returned {answer!r}, which is no answer and not None")
