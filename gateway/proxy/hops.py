"""What gateways say to each other about a hop, and what the entry gateway does next: it follows verdicts.

What to do is decided in `core.following`; here it is carried out: the record and the decision of the exchange change,
and its endpoint filter runs again, so that a second hop is signed anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.core.exchange import Exchange
from gateway.core.following import Event, Trail, flag_of
from gateway.core.following import follow as next_step
from gateway.core.hop import Hop, Serve, Unavailable, Verdict, judge, read_verdict, sign_verdict, unavailable
from gateway.core.http1.head import Response
from gateway.core.patience import WAY_BACK_S
from gateway.core.routing import ENDPOINTS, Kind, reads, unknown_placement
from gateway.proxy import deadlines

if TYPE_CHECKING:
    from gateway.proxy.relay import Relay


class PeerRefusal(NamedTuple):
    """`flag` and `detail` for the client, `outcome` for `landbridge_hops_total`; `verdict` where it can be followed."""

    flag: str
    detail: str
    outcome: str
    verdict: Verdict | Unavailable | None = None


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
        return PeerRefusal("region_disagrees", f"the tenant has moved to {verdict.home}", "redirected", verdict)
    if response.status == 503 and isinstance(verdict, Unavailable):
        detail = "the application is unavailable in its region"
        return PeerRefusal("cluster_unavailable", detail, "unavailable", verdict)
    if response.status == 508 and refused == b"loop":
        return PeerRefusal("region_disagrees", "the regions' maps differ", "loop")
    if response.status == 403 and refused == b"hop_rejected":
        return PeerRefusal("peer_refused", "", "refused")
    return None


def refused(relay: Relay, region: str, refusal: PeerRefusal) -> None:
    """A peer did not take this request: go by its verdict, or tell the client."""
    if refusal.verdict is None:
        relay.refuse(refusal.flag, refusal.detail)
        return
    exchange, worker = relay.exchange, relay.worker
    if isinstance(refusal.verdict, Verdict):
        worker.overrides.put(exchange.tenant, refusal.verdict, worker.now())
        worker.meters.gauge(worker.meters.overrides, len(worker.overrides.items))
    deadlines.account(relay, worker.now())
    follow(relay, refusal.verdict, region, refusal.detail)


def follow(relay: Relay, event: Event, region: str, detail: str) -> None:
    """Go on after `event`, or refuse with what it leaves: also when an application may have the request already, and
    when its body is gone and cannot be sent again."""
    exchange = relay.exchange
    resolved = exchange.resolved
    if may_have_arrived(relay) or relay.body is None or resolved is None:
        relay.refuse(flag_of(event), detail)
        return
    view, record = exchange.view, exchange.placement
    if record is None:
        record = unknown_placement(exchange.tenant, exchange.home)
        exchange.recorded = False
    trail = Trail(record, exchange.recorded, relay.sends, relay.struck)
    step = next_step(event, region, trail, exchange.request, resolved, view, exchange.scheme)
    decision, trail = step.decision, step.trail
    if decision.kind is Kind.INTERNAL_REDIRECT:
        cluster = view.clusters.get(decision.cluster)
        if cluster is None or deadlines.for_a_hop(relay, cluster, relay.worker.now()) <= WAY_BACK_S:
            relay.refuse(flag_of(event), detail)
            return
    elif decision.kind is Kind.REJECT:
        relay.refuse(decision.flag, detail)
        return
    relay.struck = trail.struck
    exchange.placement, exchange.recorded = trail.record, trail.recorded
    exchange.version, exchange.home = trail.record.version, trail.record.home
    exchange.decision, exchange.reason = decision, decision.reason
    exchange.endpoint = ENDPOINTS[decision.kind]
    relay.tried = ()
    relay.answer()


def may_have_arrived(relay: Relay) -> bool:
    """Whether an application may have the request already, and must stay the only one: what only reads may go on to
    another region when the connection under it died, as it may to another endpoint of the same one."""
    return relay.in_doubt and not reads(relay.exchange.request)


def add_unavailable(exchange: Exchange, hop: Hop) -> None:
    """The signed verdict that goes with our 503 to a hop: served here by rights, but the application is gone."""
    if exchange.verdict:
        return
    judged = judge(hop, exchange.placement, exchange.view, exchange.request)
    if isinstance(judged, Serve):
        exchange.verdict = sign_verdict(exchange.view.hop_keys, hop.sig, unavailable(judged))
