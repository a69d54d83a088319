"""Whatever an operator types: settings that travel and make a View, or problems on single lines without the key."""

from __future__ import annotations

import msgspec
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.core.conditions import Conditions
from gateway.settings.loader import Sources, load, masked, warnings_for
from gateway.settings.problems import Invalid
from gateway.settings.schema import Settings
from gateway.settings.tenants import load_tenants
from gateway.settings.view import build_view
from tests.support.configs import ENVIRON, KEY, SMALL

TEXT = (
    SMALL
    + """\
routes: [{prefix: /, cluster: app}]
tenancy: {unknown: there, resolvers: [{host: "{tenant}.x.y"}, {path: "/t/{tenant}"}, {fixed: a}]}
limits: {connections: 1, body_bytes: none}
drain: {grace: 1s, limit: 2s}
filters: {paths: [], options: {log: {a: [1, {b: c}]}}}
admin: {hosts: [], tokens: []}
"""
)
TENANTS = """\
tenants:
  a: {home: here, standby: [there], failover: all, hosts: [x.com], public: {here: "https://x.y"}, labels: {a: b}}
  b: {home: there, misroute: auto, state: active, cluster: app, epoch: 7}
"""
PIECES = st.sampled_from(
    ["", "~", "{", "}", "[", "]", ": ", ", ", "\n", "\n  ", "'", '"', "&a ", "*a", "!x ", "#", "- ", "none", "no", "0",
     "-1", "${HOP_KEY}", "${", "{tenant}", "region:*", "\x00", "\u2028", "é", "9" * 400, "http://", "[::1]:0", "<<: "]
)  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, text: str) -> str:
    """`text` after one to three slips: a stretch replaced by a piece of YAML."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(PIECES) + text[start + draw(st.integers(0, 20)) :]
    return text


@examples(deadline=None)
@given(edited(TEXT), st.sampled_from(["", "region: here\nclusters: {app: {endpoints: []}}\n"]))
@example(TEXT, "")
def test_a_configuration_is_taken_or_refused(text: str, overlay: str) -> None:
    sources = Sources(
        "g.yaml", text.encode("utf-8", "replace"), "/f", "here", False, "o.yaml", overlay.encode() or None, "/f/regions"
    )
    try:
        settings = load(sources, ENVIRON)
    except Invalid as error:
        lines = [str(problem) for problem in error.problems]
        assert lines
        assert all(line.isprintable() and ": expected " in line and ", got " in line for line in lines)
        assert not any(KEY in line for line in lines)
        return
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings
    assert build_view(settings, Conditions(), 1).region == settings.region
    assert KEY not in str(masked(settings)["hop_keys"])
    assert all(line.isprintable() for line in warnings_for(settings, sources))


@examples(deadline=None)
@given(edited(TENANTS))
@example(TENANTS)
def test_a_tenants_file_is_taken_whole_or_refused(text: str) -> None:
    settings = load(Sources("g.yaml", TEXT.encode(), "/f", "here"), ENVIRON)
    try:
        found = load_tenants("t.yaml", text.encode("utf-8", "replace"), settings)
    except Invalid as error:
        assert error.problems
        assert all(str(problem).startswith("t.yaml:") and str(problem).isprintable() for problem in error.problems)
        return
    assert all(placement.home in settings.regions for placement in found)
    assert {region for placement in found for region in placement.standby} <= set(settings.regions)
