"""The limits that are shared out by demand, as the admin API shows them."""

from __future__ import annotations

from typing import Final

from gateway.control import admin_answers as answers
from gateway.control.facts import Facts
from gateway.control.shares.keeper import HotKey
from gateway.core.limits import PREFIXES, SLOTS

SHOWN_MAX: Final = 500
_SCOPES: Final = {prefix: scope.value for scope, prefix in PREFIXES.items()}


def throttles(facts: Facts) -> answers.Throttles:
    """Most refused first."""
    shares, redis = facts.shares, facts.settings.tenant_map.redis
    return answers.Throttles(
        gateways=shares.gateways,
        workers=len(shares.split.members),
        shared_by="workers" if redis is None else "region",
        age_s=None if redis is None else shares.age_s(),
        problem=shares.problem or None,
        hot=[_row(key) for key in shares.hot()[:SHOWN_MAX]],
    )


def _row(hot: HotKey) -> answers.HotLimit:
    name = hot.key.removesuffix(SLOTS)
    return answers.HotLimit(
        scope=_SCOPES[name[:2]],
        name=name[2:] or None,
        limit="concurrency" if hot.key.endswith(SLOTS) else "rate",
        demand=round(hot.demand, 4),
        share=round(hot.share, 4),
        refused=hot.refused,
    )
