"""The flag table: everything that this gateway answers on its own, in one list.

A flag names one way in which a request ends without the application. Its row says the status, the error type for
`Proxy-Status` (RFC 9209, 2.3), how loudly to log it, and whether a client may send the same request again.
`docs/errors.md` is made from this table and a test holds them together; no other module invents a flag.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Level(StrEnum):
    """How loudly an operator hears of it. `debug`: the client's mistake; `error`: ours or the origin's."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Flag(NamedTuple):
    """One row. `retry_after_s` is the `Retry-After` in seconds, None for none."""

    name: str
    status: int
    proxy_error: str
    level: Level
    retryable: bool
    title: str
    retry_after_s: int | None = None


_ROWS: Final = (
    Flag("request_malformed", 400, "http_request_error", Level.DEBUG, False, "The request is not valid HTTP"),
    Flag("target_malformed", 400, "http_request_error", Level.DEBUG, False, "The request target is not acceptable"),
    Flag("framing_ambiguous", 400, "http_request_error", Level.WARNING, False, "The request's framing is ambiguous"),
    Flag("tenant_missing", 400, "http_request_error", Level.INFO, False, "The request names no tenant"),
    Flag("tenant_conflict", 400, "http_request_error", Level.INFO, False, "The request names more than one tenant"),
    Flag("token_invalid", 401, "http_request_denied", Level.INFO, False, "The token is not valid"),
    Flag("tenant_suspended", 403, "http_request_denied", Level.INFO, False, "The tenant is suspended"),
    Flag("hop_rejected", 403, "http_request_denied", Level.WARNING, False, "The hop between gateways was rejected"),
    Flag("address_denied", 403, "http_request_denied", Level.INFO, False, "The client's address is not allowed"),
    Flag("tenant_unknown", 404, "destination_not_found", Level.INFO, False, "The tenant is not known"),
    Flag("head_timeout", 408, "http_request_error", Level.DEBUG, True, "The request's head did not arrive in time"),
    Flag("body_timeout", 408, "http_request_error", Level.DEBUG, True, "The request's body did not arrive in time"),
    Flag("body_too_large", 413, "http_request_error", Level.INFO, False, "The request's body is too large"),
    Flag("target_too_long", 414, "http_request_error", Level.INFO, False, "The request target is too long"),
    Flag("misdirected", 421, "destination_not_found", Level.INFO, True, "The tenant lives in another region"),
    Flag("throttled", 429, "http_request_denied", Level.INFO, True, "Too many requests", 1),
    Flag("fields_too_large", 431, "http_request_error", Level.INFO, False, "The request's fields are too large"),
    Flag("internal_error", 500, "proxy_internal_error", Level.ERROR, False, "The gateway failed on this request"),
    Flag("coding_unknown", 501, "http_request_error", Level.INFO, False, "The transfer coding is not implemented"),
    Flag("connect_refused", 501, "http_request_denied", Level.INFO, False, "CONNECT is not implemented"),
    Flag("upstream_connect", 502, "connection_refused", Level.ERROR, True, "The application refused the connection"),
    Flag("upstream_reset", 502, "connection_terminated", Level.ERROR, False, "The application closed the connection"),
    Flag("upstream_malformed", 502, "http_protocol_error", Level.ERROR, False, "The application's answer is not HTTP"),
    Flag("peer_refused", 502, "http_request_denied", Level.ERROR, False, "Another region's gateway refused the hop"),
    Flag("cluster_unavailable", 503, "destination_unavailable", Level.ERROR, True, "The application is unavailable", 1),
    Flag("region_unreachable", 503, "destination_ip_unroutable", Level.ERROR, True, "The region cannot be reached", 1),
    Flag("region_disagrees", 503, "destination_unavailable", Level.WARNING, True, "The regions disagree", 1),
    Flag("partitioned", 503, "destination_unavailable", Level.WARNING, True, "The region is cut off from others", 1),
    Flag("map_unavailable", 503, "proxy_internal_error", Level.ERROR, True, "The tenant map is not loaded yet", 1),
    Flag("keys_unavailable", 503, "proxy_internal_error", Level.ERROR, True, "The token's key cannot be had now", 1),
    Flag("held_too_long", 503, "destination_unavailable", Level.WARNING, True, "The tenant is moving", 1),
    Flag("shed", 503, "connection_limit_reached", Level.WARNING, True, "The gateway is at its limit", 1),
    Flag("breaker_open", 503, "destination_unavailable", Level.WARNING, True, "The application's breaker is open", 1),
    Flag("upstream_timeout", 504, "http_response_timeout", Level.ERROR, False, "The application answered too late"),
    Flag("version_unsupported", 505, "http_request_error", Level.DEBUG, False, "The HTTP version is not supported"),
    Flag("loop", 508, "proxy_loop_detected", Level.ERROR, False, "The request came back to where it has been"),
)

FLAGS: Final[dict[str, Flag]] = {row.name: row for row in _ROWS}


class GatewayError(Exception):
    """The one error of the request path: a flag, and a detail that a client may read.

    `detail` never holds a secret, an internal address or a stack. `KeyError` for a flag that is not in the table.
    """

    def __init__(self, flag: str, detail: str = "") -> None:
        super().__init__(flag, detail)
        self.flag = FLAGS[flag]
        self.detail = detail or self.flag.title


_PAGE: Final = """\
# Answers of the gateway itself

Whenever a request ends without the application, the answer names one of these flags: in its problem document
(RFC 9457, member `flag`), in the access log (`flag`), and by its error type in `Proxy-Status` (RFC 9209). A response
without them is the application's own.

*Again* says whether a client may send the same request again; where there is a time, it is sent as `Retry-After`.
*Log* is how loudly the gateway speaks of it: `debug` and `info` are the client's doing, `warning` and `error` are not.

This page is made from the table in `gateway/core/errors.py`; a test holds them together. To write it anew:
`python -m gateway.core.errors > docs/errors.md`.

| flag | status | title | `Proxy-Status` error | again | log |
|---|---|---|---|---|---|
"""


def render_markdown() -> str:
    """The text of `docs/errors.md`."""
    lines = []
    for row in _ROWS:
        again = "no" if not row.retryable else "yes" if row.retry_after_s is None else f"after {row.retry_after_s} s"
        lines.append(f"| `{row.name}` | {row.status} | {row.title} | `{row.proxy_error}` | {again} | {row.level} |\n")
    return _PAGE + "".join(lines)


if __name__ == "__main__":
    print(render_markdown(), end="")
