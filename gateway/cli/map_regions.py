"""What `landbridge map status` says of a replicated map: our region's Redis, the peers that it follows, the gateways of
all regions, and where they run something else than the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.cli.output import print_record, print_table
from gateway.cli.regions import Regions
from gateway.control.registry import LIVE_MS, SAID_MS, behind, drift
from gateway.control.replication.region_map import GatewayRow, MapHead, MapUnavailable, PeerState
from gateway.settings.schema import Settings


@dataclass(slots=True)
class Look:
    """What our Redis said. `problem`: why it said nothing, which leaves the rest empty."""

    region: str
    place: str
    problem: str = ""
    head: MapHead | None = None
    peers: dict[str, PeerState | None] = field(default_factory=dict)
    gateways: list[GatewayRow] = field(default_factory=list)
    dead_letters: int = 0

    @property
    def log(self) -> str:
        return f"{self.head.log_id} {self.head.log.last}" if self.head is not None and self.head.log_id else ""

    @property
    def heads(self) -> dict[str, str]:
        """The end of each region's log, as far as it is known here."""
        return {peer: state.head for peer, state in self.peers.items() if state is not None} | {self.region: self.log}

    def is_old(self, state: PeerState) -> bool:
        """Whether the replicator that said it has said nothing more since."""
        return self.head is not None and self.head.clock_ms - state.at_ms > SAID_MS

    def as_json(self) -> dict[str, Any]:
        """Everything; null where Redis did not answer."""
        if self.head is None:
            return {"region": self.region, "url": self.place, "problem": self.problem}
        different = drift(self.gateways)
        return {
            "region": self.region,
            "url": self.place,
            "problem": None,
            "log": self.log or None,
            "complete": self.head.complete,
            "records": self.head.records,
            "dead_letters": self.dead_letters,
            "peers": {peer: self._peer(state) for peer, state in self.peers.items()},
            "gateways": [self._gateway(row) for row in self.gateways],
            "drift": {"program": different.program, "config": different.config},
        }

    def _peer(self, state: PeerState | None) -> dict[str, Any] | None:
        if state is None:
            return None
        assert self.head is not None
        said: dict[str, Any] = msgspec.to_builtins(state)
        return said | {"age_s": round((self.head.clock_ms - state.at_ms) / 1000, 1), "is_known": not self.is_old(state)}

    def _gateway(self, row: GatewayRow) -> dict[str, Any]:
        return {
            "region": row.region,
            "id": row.id,
            "alive": row.age_ms <= LIVE_MS,
            "seen_s": round(row.age_ms / 1000, 1),
            "behind": behind(row, self.heads),
            "program": row.program,
            "config": row.config,
            "applied": row.applied,
        }

    def show(self) -> None:
        """Print it for people."""
        if self.head is None:
            return
        different = drift(self.gateways)
        print()
        print_record(
            [
                ("redis", f"{self.region} {self.place}"),
                ("log", self.log),
                ("complete", self.head.complete),
                ("records", self.head.records),
                ("dead letters", self.dead_letters),
                ("drift", _drift(different.program, different.config)),
            ]
        )
        print()
        columns = ("peer", "state", "lag records", "lag s", "offset", "head", "retries", "conflicts", "reason")
        print_table(columns, (self._peer_row(peer, state) for peer, state in self.peers.items()))
        print()
        headings = ("gateway", "alive", "seen s ago", "behind", "program", "config")
        print_table(headings, map(self._gateway_row, self.gateways))

    def _peer_row(self, peer: str, state: PeerState | None) -> tuple[object, ...]:
        if state is None:
            return (peer, "unknown", *[None] * 6, "no replicator has said anything of it")
        if self.is_old(state):
            assert self.head is not None
            age_s = (self.head.clock_ms - state.at_ms) / 1000
            reason = f"{state.state} {age_s:.0f} s ago; no replicator has said anything since"
            return (peer, "unknown", None, None, state.offset, state.head, state.retries, state.conflicts, reason)
        lag_s = f"{state.lag_s:.1f}"
        return (
            *(peer, state.state, state.lag_records, lag_s, state.offset, state.head),
            *(state.retries, state.conflicts, state.reason),
        )

    def _gateway_row(self, row: GatewayRow) -> tuple[object, ...]:
        lacks = behind(row, self.heads)
        alive = row.age_ms <= LIVE_MS
        return (
            *(f"{row.region}/{row.id}", alive, f"{row.age_ms / 1000:.1f}"),
            *("unknown" if lacks is None else lacks, row.program, row.config),
        )


def _drift(program: int, config: int) -> str:
    """In words: how many others run beside the usual one."""
    if not program and not config:
        return "none"
    return f"{program + 1} programs and {config + 1} configurations run"


async def look(settings: Settings) -> Look:
    """Ask our region's Redis everything that `map status` shows."""
    async with Regions(settings) as regions:
        found = Look(regions.own, regions.here.place)
        try:
            found.head = await regions.here.head()
            states = await regions.here.replication()
            found.peers = {peer: states.get(peer) for peer in regions.peers}
            found.gateways = await regions.here.gateways()
            found.dead_letters = await regions.here.dead_count()
        except MapUnavailable as error:
            found.problem, found.head = str(error), None
    return found
