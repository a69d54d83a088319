"""One question to name servers, by dnspython: the only place that knows it. Foreign errors end here.

Importing it costs a tenth of a second and reading an answer of thousands of records more, so only `wire`'s thread does.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver

from gateway.core.discovery import (
    TARGETS_MAX,
    Answer,
    Found,
    Lacking,
    Record,
    Result,
    Rules,
    Service,
    can_be_dialled,
)

TRIES_MIN: Final = 2
"""A datagram may be lost: a single server is asked twice within the time limit, several are asked once each."""

WHY_CHARS_MAX: Final = 200
"""What stands in a log line and on the admin API; dnspython names every server and try."""


async def ask(name: str, records: Sequence[Record], rules: Rules, resolv_conf: str) -> dict[Record, Answer]:
    """The answers by type of record, within `rules.timeout`. A name with a final dot is not completed by any search."""
    try:
        # made anew each time: it costs little, and a changed resolv.conf counts at once
        resolver = _resolver(rules, resolv_conf)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        return dict.fromkeys(records, Lacking(Result.FAILED, _said(error)))
    answers = await asyncio.gather(*(_one(resolver, name, record, rules.timeout) for record in records))
    return dict(zip(records, answers, strict=True))


def _resolver(rules: Rules, resolv_conf: str) -> dns.asyncresolver.Resolver:
    if rules.servers:
        made = dns.asyncresolver.Resolver(configure=False)
        made.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in rules.servers]
    else:
        made = dns.asyncresolver.Resolver(resolv_conf)
    made.lifetime = rules.timeout
    made.timeout = rules.timeout / max(TRIES_MIN, len(made.nameservers))
    return made


async def _one(resolver: dns.asyncresolver.Resolver, name: str, record: Record, timeout_s: float) -> Answer:
    try:
        # dnspython counts its lifetime by the wall clock, which may step
        async with asyncio.timeout(timeout_s + 0.1):
            answer = await resolver.resolve(name, record.value, search=not name.endswith("."))
    except dns.resolver.NXDOMAIN:
        return Lacking(Result.NXDOMAIN, "there is no such name (NXDOMAIN)")
    except dns.resolver.NoAnswer:
        return Lacking(Result.EMPTY, f"the name has no {record} record")
    except (TimeoutError, dns.exception.Timeout):
        return Lacking(Result.TIMEOUT, f"no answer within {timeout_s:g} s")
    except dns.resolver.NoNameservers as error:
        return Lacking(Result.SERVFAIL, _said(error))
    except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
        return Lacking(Result.FAILED, _said(error))
    return _records(answer, record)


def _records(answer: dns.resolver.Answer, record: Record) -> Answer:
    found: set[str | Service] = set()
    for data in answer:
        if record is Record.SRV:
            host = data.target.to_text(omit_final_dot=True).lower()
            # a target of `.` says that the service is not there (RFC 2782); an answer without any keeps the last one
            if host not in ("", ".", "@") and data.port:
                found.add(Service(data.priority, data.weight, data.port, host))
        else:
            address = str(ipaddress.ip_address(data.address))
            if can_be_dialled(address):
                found.add(address)
    if not found:
        return Lacking(Result.EMPTY, f"no {record} record that can be used")
    kept = sorted(found, key=_order)[:TARGETS_MAX]
    return Found(tuple(kept), float(answer.chaining_result.minimum_ttl))


def _order(record: str | Service) -> tuple[object, ...]:
    """The best services first, addresses by number: what is beyond the bound is the same at each answer."""
    return tuple(record) if isinstance(record, Service) else (int(ipaddress.ip_address(record)),)


def _said(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:WHY_CHARS_MAX]
