"""Between gateways: whether a hop is served here, answered with what we know better, or stopped as a loop.

`judge` is DESIGN 5.4's table, row by row. With it a request takes one hop and no second: a hop is never sent on, and
of two gateways that disagree the one with the newer record is right. `decide_hop` adds what follows a *serve*. Pure.
Grammar and signatures are in `core.hop_fields`, and are offered here too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.hop_fields import (
    Hop,
    HopRejected,
    Reason,
    Refusal,
    Unavailable,
    Verdict,
    read_verdict,
    sign,
    sign_answer,
    sign_question,
    sign_verdict,
    signature_of,
    verify,
    verify_answer,
)
from gateway.core.placement import NO_VERSION, Failover, Placement, Version, newer
from gateway.core.routing import Decision, Kind, can_serve, cluster_of, covers, refuse_cut_off, refuse_state
from gateway.core.tenancy import RequestFacts
from gateway.core.view import View

__all__ = [
    "Hop",
    "HopDecision",
    "HopRejected",
    "Loop",
    "Reason",
    "Refusal",
    "Serve",
    "Unavailable",
    "Verdict",
    "decide_hop",
    "judge",
    "loops",
    "read_verdict",
    "sign",
    "sign_answer",
    "sign_question",
    "sign_verdict",
    "signature_of",
    "unavailable",
    "verify",
    "verify_answer",
]

_WORDS: Final = re.compile(rb"[, \t]+")


@dataclass(frozen=True, slots=True)
class Serve:
    """Served here. `count` is `map_behind`, `map_differs` or empty; `ours_newest` false: the hop's record is newer.

    `version` (None: nobody has a record), `home`, `standby` and `failover` are the newer record's.
    """

    count: str
    ours_newest: bool
    version: Version | None
    home: str
    standby: tuple[str, ...]
    failover: Failover


@dataclass(frozen=True, slots=True)
class Loop:
    """508: neither record settles where this request belongs."""

    ours: Version | None
    theirs: Version | None

    @property
    def detail(self) -> str:
        """Names both versions, for the problem document and the log."""
        return f"our record is {self.ours or 'absent'}, the sender's {self.theirs or 'absent'}"


@dataclass(frozen=True, slots=True)
class HopDecision:
    """All that follows from a hop: the decision, and what goes with it.

    `verdict` is to be signed into `Gateway-Verdict` of a 421 or 503; `count` a metric of the map, or empty;
    `version` and `home` are for `X-Tenant-Epoch` and `X-Tenant-Home`; `detail` is for a refusal's reader.
    """

    decision: Decision
    verdict: Verdict | Unavailable | None = None
    count: str = ""
    version: Version = NO_VERSION
    home: str = ""
    detail: str = ""


def loops(via_values: Sequence[bytes], token: str) -> bool:
    """Whether a `Via` (RFC 9110, 7.6.3) names us. Checked before anything that a key or a clock could spoil."""
    ours = token.encode("ascii").lower()
    for value in via_values:
        lower = value.lower()
        if ours in lower and ours in _WORDS.split(lower):
            return True
    return False


def judge(hop: Hop, placement: Placement | None, view: View, request: RequestFacts) -> Serve | Verdict | Loop:
    """The first row of DESIGN 5.4's table that fits a valid hop. `placement` is our own record."""
    ours = None if placement is None else placement.version
    order = _order(ours, hop.version)
    if placement is not None and placement.home == view.region:
        return _serve(hop, placement, order, "")
    if hop.reason is Reason.MISROUTE and hop.home == view.region and order <= 0:
        count = "map_behind" if order < 0 else "map_differs"
        return _serve(hop, placement, order, "" if ours is None and hop.version is None else count)
    if hop.reason is Reason.FAILOVER:
        by_ours = placement is not None and order >= 0 and _stands_by(placement, view, request)
        by_hop = hop.version is not None and order <= 0 and _stands_by(hop, view, request)
        if by_ours or by_hop:
            return _serve(hop, placement, order, "")
    if placement is not None and order > 0:
        return Verdict(placement.version, placement.home, placement.standby, placement.failover)
    return Loop(ours, hop.version)


def decide_hop(hop: Hop, placement: Placement | None, view: View, request: RequestFacts) -> HopDecision:
    """`judge`, then what follows: by our record, unless the hop's is newer, rule 2 and what its `partition` says of a
    region that is cut off; and whether our cluster serves."""
    match judge(hop, placement, view, request):
        case Verdict() as verdict:
            refused = Decision(Kind.REJECT, "misdirected", verdict.home, flag="misdirected")
            return HopDecision(refused, verdict, "", verdict.version, verdict.home)
        case Loop() as loop:
            return HopDecision(Decision(Kind.REJECT, "disagreement", flag="loop"), detail=loop.detail)
        case Serve() as serve:
            version = serve.version or NO_VERSION
            refusal = None
            if placement is not None and serve.ours_newest:
                # a hop proves only that its sender is there; what control concluded holds for the whole gateway
                refusal = refuse_state(placement) or refuse_cut_off(placement, request, view)
            if refusal is not None:
                return HopDecision(refusal, None, serve.count, version, serve.home)
            cluster = cluster_of(placement, request, view)
            if not can_serve(view, cluster):
                refusal = Decision(Kind.REJECT, hop.reason, view.region, flag="cluster_unavailable")
                return HopDecision(refusal, unavailable(serve), serve.count, version, serve.home)
            decision = Decision(Kind.LOCAL, hop.reason, view.region, cluster)
            return HopDecision(decision, None, serve.count, version, serve.home)


def unavailable(serve: Serve | Hop) -> Unavailable:
    """The verdict that goes with 503 `cluster_unavailable`, also when no endpoint could be connected later."""
    return Unavailable(serve.standby, serve.failover)


def _order(ours: Version | None, theirs: Version | None) -> int:
    """1: ours is newer, -1: theirs is, 0: equal. No record is lower than a record without a version."""
    if ours is None or theirs is None:
        return (ours is not None) - (theirs is not None)
    return newer(ours, theirs) - newer(theirs, ours)


def _stands_by(record: Placement | Hop, view: View, request: RequestFacts) -> bool:
    """In failover mode we stand by for every request of who names us, by our operators' word."""
    return view.region in record.standby and (covers(record.failover, request) or view.region in view.takes_over)


def _serve(hop: Hop, placement: Placement | None, order: int, count: str) -> Serve:
    """Serve, by the newer record; ours where they are equal and we have one."""
    if placement is None or order < 0:
        return Serve(count, False, hop.version, hop.home, hop.standby, hop.failover)
    return Serve(count, True, placement.version, placement.home, placement.standby, placement.failover)
