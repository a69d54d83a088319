"""Compiles a View's filter chain from the registries in `filters`: their order there is the order of the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from filters import ENDPOINT, INBOUND, OUTBOUND
from gateway.core.filtering import (
    Chain,
    ChainError,
    EndpointFilter,
    InboundFilter,
    OutboundFilter,
    build_filters,
    compile_chain,
)
from gateway.core.view import View


def build_chain(view: View) -> Chain:
    """Raises ChainError for options that no filter takes, or that one cannot take."""
    return chain_of(view.filter_options)


def chain_of(options: Mapping[str, Mapping[str, object]]) -> Chain:
    """The chain for these `filters.options`."""
    known = {**INBOUND, **ENDPOINT, **OUTBOUND}
    if strangers := sorted(set(options) - set(known)):
        raise ChainError(f"filters.options: no filter is called {', '.join(strangers)}")
    return compile_chain(
        cast("list[InboundFilter]", build_filters(INBOUND, options)),
        cast("list[EndpointFilter]", build_filters(ENDPOINT, options)),
        cast("list[OutboundFilter]", build_filters(OUTBOUND, options)),
    )
