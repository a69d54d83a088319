"""DNS discovery, the thinking: what answers of name servers mean for endpoints, and when to ask again. Pure.

What is asked is a host (its A and AAAA records) or a service (SRV, RFC 2782, whose targets are hosts in their turn).
The last good answer stands until a better one comes: no failure of DNS takes an endpoint away, because an application
that answered a minute ago more likely lives than a name server that does not answer now. Time and chance are arguments.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.core.conditions import Target

TARGETS_MAX: Final = 256
"""Endpoints kept of one `dns://` or `srv://`: every one of them is checked, has a pool per worker and its metrics."""

JITTER: Final = 0.1
JITTER_MAX_S: Final = 2.0
"""Gateways that started together must not ask together; an answer is never used much longer than it is good for."""

AGAIN_FIRST_S: Final = 1.0
AGAIN_MAX_S: Final = 5.0
"""After a failure: a second, doubled up to five. A new address is in use 5 s after its name server is back."""

TROUBLED_S: Final = 5.0
"""How often to ask while one of the endpoints cannot be used, whatever the TTL: it may have moved."""

HURRY_EVERY_S: Final = 1.0
"""The shortest time between two questions of one name, whatever happens to its endpoints."""


class Kind(StrEnum):
    """What is asked for: the addresses of a host, or the hosts of a service."""

    HOST = "host"
    SERVICE = "service"


class Record(StrEnum):
    """Types of records that are asked for."""

    A = "A"
    AAAA = "AAAA"
    SRV = "SRV"


class Result(StrEnum):
    """How a question ended. All but `found` keep what was known."""

    FOUND = "found"
    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    TIMEOUT = "timeout"
    EMPTY = "empty"
    FAILED = "failed"


class Service(NamedTuple):
    """One SRV record: `host` in lower case without its final dot."""

    priority: int
    weight: int
    port: int
    host: str


class Found(NamedTuple):
    """Records, and for how long they are good: the smallest TTL on the way to them."""

    records: tuple[str | Service, ...]
    ttl_s: float


class Lacking(NamedTuple):
    """No records, and why, for an operator."""

    result: Result
    why: str


Answer = Found | Lacking


class Rules(NamedTuple):
    """What the configuration says of DNS. Seconds; `servers` are (address, port), empty: as resolv.conf says."""

    servers: tuple[tuple[str, int], ...] = ()
    ttl_min: float = 1.0
    ttl_max: float = 300.0
    timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one name: the last good records, and what was wrong with the last answer if something was.

    `found_at` is when records last came, None: never. `failures` counts questions in a row with something wrong.
    """

    records: Mapping[Record, tuple[str | Service, ...]] = field(default_factory=dict)
    ttl_s: float = 0.0
    found_at: float | None = None
    lacking: Lacking | None = None
    failures: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(a for kind in (Record.A, Record.AAAA) for a in self.records.get(kind, ()) if isinstance(a, str))

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(found for found in self.records.get(Record.SRV, ()) if isinstance(found, Service))


_ABSENT: Final = (Result.EMPTY, Result.NXDOMAIN)
"""Beside records of the other family these say only that this family has none (some servers say NXDOMAIN for that)."""


def take(known: Known, answers: Mapping[Record, Answer], now: float) -> Known:
    """`known` after one question, whose `answers` are by type of record.

    With records of one family the other one's absence is believed; a family whose question failed keeps what it had.
    Without any record everything stays as it was.
    """
    found = {kind: answer for kind, answer in answers.items() if isinstance(answer, Found) and answer.records}
    lacking = [a if isinstance(a, Lacking) else Lacking(Result.EMPTY, "no record")
               for kind, a in answers.items() if kind not in found]  # fmt: skip
    wrong = [a for a in lacking if a.result not in _ABSENT] or ([] if found else lacking)
    if not found:
        return replace(known, lacking=wrong[0] if wrong else None, failures=known.failures + 1)
    records: dict[Record, tuple[str | Service, ...]] = {}
    for kind, answer in answers.items():
        if kind in found:
            records[kind] = found[kind].records
        elif isinstance(answer, Lacking) and answer.result not in _ABSENT:
            records[kind] = known.records.get(kind, ())
    return Known(
        records=records,
        ttl_s=min(answer.ttl_s for answer in found.values()),
        found_at=now,
        lacking=wrong[0] if wrong else None,
        failures=known.failures + 1 if wrong else 0,
    )


def result_of(answers: Mapping[Record, Answer]) -> Result:
    """One word for a question's answers, to be counted: what is wrong before what is good."""
    after = take(Known(), answers, 0.0)
    return Result.FOUND if after.lacking is None else after.lacking.result


def again_in(known: Known, rules: Rules, troubled: bool, chance: float) -> float:
    """Seconds until the next question. `troubled`: an endpoint of it cannot be used. `chance` is in [0, 1)."""
    if known.failures:
        delay = min(AGAIN_MAX_S, AGAIN_FIRST_S * 2.0 ** min(known.failures - 1, 10))
        return delay * (0.5 + chance / 2)
    ttl_s = min(max(known.ttl_s, rules.ttl_min), rules.ttl_max)
    wait_s = ttl_s + min(JITTER * ttl_s, JITTER_MAX_S) * chance
    return min(wait_s, TROUBLED_S) if troubled else wait_s


def host_targets(host: str, port: int, known: Known) -> tuple[Target, ...]:
    """The endpoints of `dns://host:port`."""
    return _settled(Target(address, port, name=host) for address in known.addresses)


def service_targets(services: Iterable[Service], hosts: Mapping[str, Known]) -> tuple[Target, ...]:
    """The endpoints of `srv://…`: the addresses of every record's host that has some, by priority.

    An address that several records name is one endpoint, of the lowest priority value. A weight of 0 (RFC 2782: a very
    small chance) is the smallest there is.
    """
    return _settled(
        Target(address, service.port, service.priority, max(service.weight, 1), service.host)
        for service in services
        if service.host in hosts
        for address in hosts[service.host].addresses
    )


def _settled(targets: Iterable[Target]) -> tuple[Target, ...]:
    """In an order of their own, so that a shuffled answer is no change; each address once; bounded."""
    seen: dict[tuple[str, int], Target] = {}
    for target in sorted(targets, key=_order):
        seen.setdefault((target.address, target.port), target)
    return tuple(seen.values())[:TARGETS_MAX]


def _order(target: Target) -> tuple[int, int, int, int, str, int]:
    ip = ipaddress.ip_address(target.address)
    return target.priority, ip.version, int(ip), target.port, target.name, -target.weight


def can_be_dialled(address: str) -> bool:
    """Whether an answered address can be somebody's: 0.0.0.0 and :: would be this machine, a group is nobody."""
    ip = ipaddress.ip_address(address)
    return not (ip.is_unspecified or ip.is_multicast)
