"""What gateways say to each other about a hop: signed verdicts, and refusals.

Verdicts are read and reported, not followed yet: the client gets 503 `region_disagrees`.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.core.exchange import Exchange
from gateway.core.hop import Hop, Serve, Unavailable, Verdict, judge, read_verdict, sign_verdict, unavailable
from gateway.core.http1.head import Response


class PeerRefusal(NamedTuple):
    """`flag` and `detail` for the client, `outcome` for `landbridge_hops_total`."""

    flag: str
    detail: str
    outcome: str


def read_refusal(response: Response, exchange: Exchange) -> PeerRefusal | None:
    """The peer's own refusal of this hop; None when the response is an application's, whatever its status."""
    if not response.own:
        return None
    fields = {field.name: field.value for field in response.own}
    verdict = None
    if b"gateway-verdict" in fields:
        verdict = read_verdict(exchange.view.hop_keys, exchange.hop_signature, fields[b"gateway-verdict"])
    refused = fields.get(b"gateway-refused", b"")
    if response.status == 421 and isinstance(verdict, Verdict):
        return PeerRefusal("region_disagrees", f"the tenant has moved to {verdict.home}", "redirected")
    if response.status == 503 and isinstance(verdict, Unavailable):
        return PeerRefusal("cluster_unavailable", "the application is unavailable in its region", "unavailable")
    if response.status == 508 and refused == b"loop":
        return PeerRefusal("region_disagrees", "the regions' maps differ", "loop")
    if response.status == 403 and refused == b"hop_rejected":
        return PeerRefusal("peer_refused", "", "refused")
    return None


def add_unavailable(exchange: Exchange, hop: Hop) -> None:
    """The signed verdict that goes with our 503 to a hop: served here by rights, but the application is gone."""
    if exchange.verdict:
        return
    judged = judge(hop, exchange.placement, exchange.view, exchange.request)
    if isinstance(judged, Serve):
        exchange.verdict = sign_verdict(exchange.view.hop_keys, hop.sig, unavailable(judged))
