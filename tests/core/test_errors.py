"""The flag table against the design's list, and the page that is made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.core.errors import FLAGS, GatewayError, Level, render_markdown

ROOT = Path(__file__).resolve().parents[2]

DESIGNED = {
    400: "request_malformed target_malformed framing_ambiguous tenant_missing tenant_conflict",
    401: "token_invalid",
    403: "tenant_suspended hop_rejected address_denied",
    404: "tenant_unknown",
    408: "head_timeout body_timeout",
    413: "body_too_large",
    414: "target_too_long",
    421: "misdirected",
    429: "throttled",
    431: "fields_too_large",
    501: "coding_unknown connect_refused",
    502: "upstream_connect upstream_reset upstream_malformed peer_refused",
    503: "cluster_unavailable region_unreachable region_disagrees map_unavailable held_too_long shed breaker_open",
    504: "upstream_timeout",
    505: "version_unsupported",
    508: "loop",
}

ADDED = {"internal_error": 500, "keys_unavailable": 503, "partitioned": 503}
"""Not in the design's list: an exception of our own, or of an operator's filter, needs an answer too; a
token that nobody can judge is no bad token; and what a tenant's `partition` refuses is nobody's outage."""

PROXY_ERRORS = frozenset(
    "dns_timeout dns_error destination_not_found destination_unavailable destination_ip_prohibited "
    "destination_ip_unroutable connection_refused connection_terminated connection_timeout connection_read_timeout "
    "connection_write_timeout connection_limit_reached tls_protocol_error tls_certificate_error tls_alert_received "
    "http_request_error http_request_denied http_response_incomplete http_response_timeout http_upgrade_failed "
    "http_protocol_error proxy_internal_response proxy_internal_error proxy_configuration_error "
    "proxy_loop_detected".split()
)
"""RFC 9209, 2.3, those that a gateway like ours can mean."""


def test_every_flag_of_the_design_and_no_other() -> None:
    designed = {name: status for status, names in DESIGNED.items() for name in names.split()}
    assert {name: row.status for name, row in FLAGS.items()} == designed | ADDED


@pytest.mark.parametrize("name", FLAGS)
def test_a_row_is_whole(name: str) -> None:
    row = FLAGS[name]
    assert row.name == name
    assert row.proxy_error in PROXY_ERRORS
    assert row.level in Level
    assert re.fullmatch(r"[A-Z][^.\n|]+", row.title), "a title is a phrase that fits a table"
    assert (row.retry_after_s is not None) is (row.status in (429, 503)), "503 and 429 always say when"
    assert row.retryable or row.retry_after_s is None


@pytest.mark.parametrize("name", FLAGS)
def test_how_loud(name: str) -> None:
    """5xx that a client cannot cause are ours to hear of; what any client can cause never shouts."""
    row = FLAGS[name]
    quiet = row.level in (Level.DEBUG, Level.INFO)
    if row.status >= 500 and row.status not in (501, 505):
        assert not quiet
    else:
        assert quiet or name in ("framing_ambiguous", "hop_rejected"), "those two are attacks"


def test_the_error() -> None:
    error = GatewayError("loop")
    assert (error.flag, error.detail) == (FLAGS["loop"], FLAGS["loop"].title)
    assert GatewayError("loop", "why").detail == "why"
    with pytest.raises(KeyError):
        GatewayError("no_such_flag")


def test_the_page_is_made_from_the_table() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert page == render_markdown(), "python -m gateway.core.errors > docs/errors.md"
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == list(FLAGS)


def test_every_flag_that_is_raised_is_in_the_table() -> None:
    raised = set()
    for folder in ("gateway", "filters"):
        for path in (ROOT / folder).rglob("*.py"):
            raised |= set(re.findall(r'GatewayError\(\s*"([a-z_]+)"', path.read_text(encoding="utf-8")))
    assert {"tenant_missing", "loop"} <= raised
    assert raised <= set(FLAGS)
