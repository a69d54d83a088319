"""Three whole regions on this machine: one hop, redirects, what clients cannot forge, failover, and the tenants file.

The applications record what reaches them, byte for byte. The fleet is shared; a test leaves the map as it found it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.control.watch import STILL_S
from gateway.core.hop import sign
from gateway.core.placement import Placement
from tests.support.client import Reply, once
from tests.support.fleet import AP, EU, REGIONS, TENANTS, US, Fleet, flag_of, fleet, request, until
from tests.support.load import Load
from tests.support.measured import hold
from tests.support.pace import within

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOMES = {"acme": US, "globex": EU, "initech": AP, "umbrella": US}
MOVE_S = 1.0
"""Within which an edit of the tenants file has moved a tenant for every gateway."""
RECOVERY_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def regions(shared: Fleet) -> AsyncIterator[Fleet]:
    """The fleet with empty records. Whatever a test wrote into the tenants file is undone."""
    shared.forget()
    yield shared
    if shared.tenants.read_text() != TENANTS:
        shared.tenants.write_text(TENANTS)
        await all_have(shared)


async def all_have(regions: Fleet, **changed: str) -> None:
    """Wait until every gateway has exactly the tenants of TENANTS, but for `changed`, all active and up to date."""

    async def has(entry: str) -> bool:
        listed = (await regions[entry].api("tenants"))["tenants"]
        found = {row["tenant"]: row["home"] for row in listed if row["state"] == "active"}
        is_whole = found == HOMES | changed and len(listed) == len(found)
        return is_whole and not (await regions[entry].api("map"))["stale"]

    for entry in REGIONS:
        await until(partial(has, entry), f"{entry} has the map")


def browser(path: str = "/x", host: str = "acme.demo.test", *more: str) -> bytes:
    return request(host, path, lines=["Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", *more])


# --- served, carried, redirected


@pytest.mark.parametrize("entry", REGIONS)
@pytest.mark.parametrize("tenant", HOMES)
async def test_served_at_home_over_one_hop_at_most(regions: Fleet, entry: str, tenant: str) -> None:
    home = HOMES[tenant]
    reply = await regions.ask(entry, tenant, "/a%2fb?c=%20d", "POST", body=b"hello")
    hops = home if entry == home else f"{entry}>{home}"
    assert json.loads(reply.body) == {"region": home, "tenant": tenant, "hops": hops}
    ((where, seen),) = regions.asked()
    assert (where, seen.start, seen.body) == (home, b"POST /a%2fb?c=%20d HTTP/1.1", b"hello")
    assert seen.value("host") == f"{tenant}.demo.test"
    assert seen.values("via") == [f"1.1 {region}.test" for region in hops.split(">")]
    assert reply.values("via") == [f"1.1 {region}.test" for region in reversed(hops.split(">"))]
    assert seen.value("x-request-id") == reply.value("x-request-id")


async def test_a_browser_is_redirected_and_nobody_is_asked(regions: Fleet) -> None:
    reply = await once(regions[EU].http, browser("/a%20b?c=d&e"))
    assert reply.status == 307
    assert reply.value("location") == f"http://acme.us-east-1.demo.test:{regions[US].http}/a%20b?c=d&e"
    assert reply.value("cache-control") == "no-store"
    assert regions.asked() == []
    follow = f"acme.us-east-1.demo.test:{regions[US].http}"
    followed = await once(regions[US].http, browser("/a%20b?c=d&e", follow))
    assert (followed.status, followed.value("x-region")) == (200, US)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("POST", "Accept: text/html"),
        ("GET", "Accept: application/json"),
        ("GET", "Accept: text/html;q=0"),
        ("GET", "Accept: text/html\r\nAuthorization: Bearer x"),
        ("GET", "Accept: text/html\r\nSec-Fetch-Mode: cors"),
        ("OPTIONS", "Accept: text/html"),
    ],
)
async def test_who_would_not_follow_is_carried(regions: Fleet, method: str, line: str) -> None:
    reply = await regions.ask(EU, "acme", method=method, lines=[line])
    assert (reply.status, reply.value("x-region")) == (200, US)


# --- forgery


FORGED = [
    "Gateway-Hop: v=1; from=us-east-1; to=eu-west-1; tenant=FORGED; sig=00",
    "gateway_hop: FORGED",
    "GATEWAY-VERDICT: FORGED",
    "Gateway_Refused: FORGED",
    "Gateway-Anything: FORGED",
    "X-Tenant: FORGED",
    "X_Tenant: FORGED",
    "x_TENANT: FORGED",
    "X-Tenant_Epoch: FORGED",
    "X-Tenant-Epoch: FORGED",
    "X-Tenant-Home: FORGED",
    "X_Tenant_Home: FORGED",
    "X-Gateway-Region: FORGED",
    "X_Gateway-Region: FORGED",
    "X-Gateway-Hops: FORGED",
    "X_GATEWAY_HOPS: FORGED",
    "X-Forwarded-For: 203.0.113.66",
    "x_forwarded_for: 203.0.113.66",
    "X-Forwarded_For: 203.0.113.66",
    "X-Forwarded-Proto: FORGED",
    "X_Forwarded-Proto: FORGED",
    "X-Forwarded-Port: 666",
    "X_Forwarded_Port: 666",
    "X-Forwarded-Host: FORGED",
    "X_Forwarded_Host: FORGED",
    "X-Org: FORGED",
    "X_Org: FORGED",
    "X_Request_Id: FORGED",
    "X-Internal: FORGED",
    "Connection: X-Internal, X-Tenant, X_Tenant, X-Forwarded-For, Via, X-Gateway-Hops, X-Tenant-Home, Gateway-Hop",
]
"""From a client that no proxy vouches for. The last line tries to have the gateway's own fields taken out again."""


def none_forged(seen_lines: list[bytes]) -> None:
    for line in seen_lines:
        assert not any(word in line for word in (b"FORGED", b"203.0.113.66", b"666")), line


@pytest.mark.parametrize(("entry", "hops"), [(US, "us-east-1"), (EU, "eu-west-1>us-east-1")])
@pytest.mark.parametrize("one_by_one", [False, True])
async def test_forged_fields_never_reach_the_application(
    regions: Fleet, entry: str, hops: str, one_by_one: bool
) -> None:
    for lines in [[line] for line in FORGED if line != "X-Internal: FORGED"] if one_by_one else [FORGED]:
        regions.forget()
        reply = await regions.ask(entry, "acme", lines=[*lines, "X-Mine: kept", "Via: 1.0 mine"])
        assert reply.status == 200, (lines, reply.body)
        ((_, seen),) = regions.asked()
        none_forged(seen.lines)
        assert not [line for line in seen.lines if line.lower().startswith((b"gateway", b"connection"))]
        own = {
            "x-tenant": "acme",
            "x-tenant-home": US,
            "x-gateway-region": US,
            "x-gateway-hops": hops,
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-proto": "http",
            "x-forwarded-port": str(regions[entry].http),
            "x-forwarded-host": "acme.demo.test",
            "host": "acme.demo.test",
            "x-mine": "kept",
        }
        assert {name: seen.value(name) for name in own} == own
        assert seen.values("via")[-hops.count(">") - 1 :] == [f"1.1 {region}.test" for region in hops.split(">")]
        assert seen.value("x-request-id") == reply.value("x-request-id")


async def test_forged_fields_in_trailers_never_reach_the_application(regions: Fleet) -> None:
    for line in ("X-Tenant: FORGED", "X_Tenant: FORGED", "Gateway-Hop: FORGED", "X-Forwarded-For: 203.0.113.66"):
        head = request("acme.demo.test", "/x", "POST", ["Transfer-Encoding: chunked"])
        reply = await once(regions[EU].http, head + f"2\r\nhi\r\n0\r\n{line}\r\n\r\n".encode())
        assert reply.status == 400
        for _, seen in regions.asked():
            none_forged(seen.lines)


async def test_a_valid_hop_on_the_clients_listener_is_no_hop(regions: Fleet) -> None:
    """Whoever learned a signature cannot use it where clients come in: the field is gone before anything reads it."""
    reply = await once(regions[EU].http, hop_request(regions, source=AP, host="acme.demo.test"))
    assert json.loads(reply.body) == {"region": US, "tenant": "acme", "hops": f"{EU}>{US}"}


# --- hops


def hop_request(
    regions: Fleet,
    *,
    source: str = US,
    to: str = EU,
    tenant: str = "globex",
    home: str = EU,
    age_s: int = 0,
    host: str = "globex.demo.test",
    method: bytes = b"POST",
    path: str = "/x",
    change: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """A request as gateway `source` would send it, with its key. `change` falsifies what was signed."""
    field = sign(
        regions[source].view(),
        Placement(tenant=tenant, home=home),
        to=to,
        reason="misroute",
        deadline_s=10.0,
        ts=int(time.time()) - age_s,
        method=method,
        target=path.encode(),
        host=host.encode(),
        forwarded_for=b"192.0.2.7",
        request_id=b"r-1",
    )
    lines = [
        b"Gateway-Hop: " + field,
        b"X-Forwarded-For: 192.0.2.7",
        b"X-Request-Id: r-1",
        b"Via: 1.1 %b.test" % source.encode(),
    ]
    return change(request(host, path, method.decode(), lines, b"body"))


async def test_a_signed_hop_is_served(regions: Fleet) -> None:
    reply = await once(regions[EU].hop, hop_request(regions))
    assert json.loads(reply.body) == {"region": EU, "tenant": "globex", "hops": f"{US}>{EU}"}
    ((where, seen),) = regions.asked()
    assert where == EU
    assert (seen.value("x-forwarded-for"), seen.value("x-request-id")) == ("192.0.2.7", "r-1")
    assert not seen.values("gateway-hop")


REFUSED_HOPS: dict[str, tuple[str, Callable[[Fleet], bytes]]] = {
    "unsigned": ("missing", lambda f: request("globex.demo.test")),
    "unsigned twin": ("missing", lambda f: hop_request(f, change=lambda r: r.replace(b"Gateway-Hop", b"Gateway.Hop"))),
    "garbage": ("form", lambda f: request("globex.demo.test", lines=["Gateway-Hop: v=1"])),
    "other version": ("form", lambda f: hop_request(f, change=lambda r: r.replace(b" v=1;", b" v=2;"))),
    "twice": ("form", lambda f: hop_request(f, change=lambda r: r.replace(b"X-Req", b"Gateway-Hop: x\r\nX-Req"))),
    "stale": ("clock", lambda f: hop_request(f, age_s=32)),
    "from the future": ("clock", lambda f: hop_request(f, age_s=-32)),
    "re-addressed": ("destination", lambda f: hop_request(f, to=AP)),
    "re-addressed by hand": ("key", lambda f: hop_request(f, to=AP, change=lambda r: r.replace(b"to=ap-southeast-2", b"to=eu-west-1"))),  # noqa: E501
    "refreshed by hand": ("key", lambda f: hop_request(f, age_s=40, change=lambda r: r.replace(b"%d" % (int(time.time()) - 40), b"%d" % time.time()))),  # noqa: E501
    "other tenant": ("key", lambda f: hop_request(f, change=lambda r: r.replace(b"tenant=globex", b"tenant=acme"))),
    "other host": ("key", lambda f: hop_request(f, change=lambda r: r.replace(b"Host: globex", b"Host: acme"))),
    "other path": ("key", lambda f: hop_request(f, change=lambda r: r.replace(b"/x HTTP", b"/admin HTTP"))),
    "other method": ("key", lambda f: hop_request(f, change=lambda r: r.replace(b"POST", b"DELETE"))),
    "other client": ("key", lambda f: hop_request(f, change=lambda r: r.replace(b"192.0.2.7", b"127.0.0.1"))),
    "other id": ("key", lambda f: hop_request(f, change=lambda r: r.replace(b"r-1", b"r-2"))),
    "other key": ("key", lambda f: hop_request(f, change=lambda r: r[: r.index(b"sig=") + 4] + b"0" * 64 + r[r.index(b"sig=") + 68 :])),  # noqa: E501
}  # fmt: skip
"""Case to (reason in the metric, request) on the hop listener of eu-west-1."""


@pytest.mark.parametrize("case", REFUSED_HOPS)
async def test_a_hop_that_is_not_valid_is_403(regions: Fleet, case: str) -> None:
    reason, made = REFUSED_HOPS[case]
    before = await regions[EU].metric("landbridge_hop_rejected_total", reason=reason)
    reply = await once(regions[EU].hop, made(regions))
    assert (reply.status, flag_of(reply)) == (403, "hop_rejected")
    assert reply.value("gateway-refused") == "hop_rejected"
    assert regions.asked() == []
    assert await regions[EU].metric("landbridge_hop_rejected_total", reason=reason) == before + 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/api/v1/status", "/.landbridge/peer"])
async def test_the_hop_listener_has_no_unsigned_path(regions: Fleet, path: str) -> None:
    reply = await once(regions[EU].hop, request(f"127.0.0.1:{regions[EU].hop}", path))
    assert reply.status == 403


async def test_a_hop_is_never_sent_on(regions: Fleet) -> None:
    """acme lives in us-east-1, whatever a hop to eu-west-1 says: refused, not carried."""
    reply = await once(regions[EU].hop, hop_request(regions, source=AP, tenant="acme", home=US, host="acme.demo.test"))
    assert reply.status in (421, 508)
    assert regions.asked() == []


async def test_a_loop_is_508_on_both_listeners(regions: Fleet) -> None:
    for port in (regions[EU].http, regions[EU].hop):
        reply = await once(port, request("acme.demo.test", lines=["Via: 1.1 eu-west-1.test"]))
        assert (reply.status, flag_of(reply)) == (508, "loop")
    assert regions.asked() == []


# --- failover


@pytest.mark.timed
async def test_failover_from_every_entry_and_back(regions: Fleet) -> None:
    application = regions[US].application
    await application.stop()
    try:
        for entry in REGIONS:

            async def failed_over(entry: str = entry) -> bool:
                return await regions.served_by(entry, "umbrella") == EU

            await until(failed_over, f"{entry} serves umbrella by its standby", RECOVERY_S)
        for entry in REGIONS:
            for method in ("GET", "POST"):
                reply = await regions.ask(entry, "umbrella", method=method, body=b"x" if method == "POST" else b"")
                assert (reply.status, reply.value("x-region")) == (200, EU)
            refused = await regions.ask(entry, "acme")
            assert (refused.status, flag_of(refused)) == (503, "cluster_unavailable")
            assert refused.value("retry-after") == "1"
            assert await regions.served_by(entry, "globex") == EU, "others do not notice"
        for entry in (EU, AP):
            await until(partial(is_kept, regions, entry), "a browser is not sent to where nobody serves", RECOVERY_S)
    finally:
        await application.start(application.port)
    began = time.monotonic()

    async def back() -> bool:
        return {await regions.served_by(e, t) for e in REGIONS for t in ("umbrella", "acme")} == {US}

    await until(back, "umbrella and acme are served at home again, whatever the entry", within(RECOVERY_S))
    hold("11", "an application is back: served at home again", time.monotonic() - began, RECOVERY_S)


async def is_kept(regions: Fleet, entry: str) -> bool:
    """Whether a browser gets 503 there: a redirect goes by what the peers said, not by what one request met."""
    return (await once(regions[entry].http, browser())).status == 503


# --- the tenants file


def edit(regions: Fleet, old: str, new: str) -> float:
    """Change the file in one write; when that was."""
    text = regions.tenants.read_text()
    assert old in text
    regions.tenants.write_text(text.replace(old, new, 1))
    return time.monotonic()


@contextlib.asynccontextmanager
async def load_everywhere(regions: Fleet, tenant: str) -> AsyncIterator[list[Load]]:
    """100 requests a second on each gateway; at the end none may have failed."""
    async with contextlib.AsyncExitStack() as stack:
        loads = [Load(regions[entry].http, f"{tenant}.demo.test", rate=100) for entry in REGIONS]
        await asyncio.gather(*map(stack.enter_async_context, loads))
        yield loads
    for load in loads:
        assert load.failed == [], str(load)


@pytest.mark.timed
async def test_an_edit_moves_a_tenant_for_all_gateways_within_a_second_and_fails_nothing(regions: Fleet) -> None:
    async with load_everywhere(regions, "initech") as loads:
        for old, new in ((AP, US), (US, EU), (EU, AP)):
            edited = edit(regions, f"initech:\n    home: {old}", f"initech:\n    home: {new}")

            async def follow(new: str = new) -> bool:
                return all(each[-1].region == new for load in loads for each in load.answered)

            await until(follow, f"all connections to all gateways are served by {new}")
            took = max(
                min(one.at for one in each if one.at > edited and one.region == new) - edited
                for load in loads
                for each in load.answered
            )
            settled = time.monotonic()
            hold("move", f"a tenants file sends a tenant from {old} to {new}", took, MOVE_S)
            await asyncio.gather(*(load.goes_on() for load in loads))
            assert set.union(*(load.regions(settled) for load in loads)) == {new}
    print("; ".join(map(str, loads)))


async def test_tenants_are_added_renamed_and_deleted(regions: Fleet) -> None:
    async def unknown_everywhere(tenant: str) -> bool:
        replies = [await regions.ask(entry, tenant) for entry in REGIONS]
        return all(reply.status == 404 and flag_of(reply) == "tenant_unknown" for reply in replies)

    async def served_everywhere(tenant: str, home: str) -> bool:
        return [await regions.served_by(entry, tenant) for entry in REGIONS] == [home] * 3

    assert await unknown_everywhere("hooli"), "a negative answer, which every worker now remembers"
    edit(regions, "tenants:\n", "tenants:\n  hooli: {home: eu-west-1, hosts: [www.hooli.test]}\n")
    await until(lambda: served_everywhere("hooli", EU), "hooli is added")
    reply = await once(regions[AP].http, request("www.hooli.test"))
    assert json.loads(reply.body)["tenant"] == "hooli"

    edit(regions, "hooli: {home", "gavin: {home")
    await until(lambda: served_everywhere("gavin", EU), "hooli is called gavin")
    assert await unknown_everywhere("hooli")
    reply = await once(regions[AP].http, request("www.hooli.test"))
    assert json.loads(reply.body)["tenant"] == "gavin", "its host went with it"

    edit(regions, "  gavin: {home: eu-west-1, hosts: [www.hooli.test]}\n", "")
    await until(lambda: unknown_everywhere("gavin"), "gavin is deleted")
    reply = await once(regions[AP].http, request("www.hooli.test"))
    assert (reply.status, flag_of(reply)) == (400, "tenant_missing")
    for tenant, home in HOMES.items():
        assert await served_everywhere(tenant, home)


async def test_a_suspended_tenant_is_403_everywhere(regions: Fleet) -> None:
    edit(regions, "  globex:\n", "  globex:\n    state: suspended\n")

    async def refused() -> bool:
        replies: list[Reply] = [await regions.ask(entry, "globex") for entry in REGIONS]
        return [reply.status for reply in replies] == [403] * 3

    await until(refused, "globex is suspended")


BAD_EDITS = {
    "unknown region": ("home: eu-west-1", "home: mars", 5),
    "unknown key": ("home: eu-west-1", "home: eu-west-1\n    hoem: x", 6),
    "not YAML": ("home: eu-west-1", "home: [eu-west-1", 6),
    "twice": ("  initech:", "  acme:", 6),
    "wrong type": ("standby: [eu-west-1]", "standby: eu-west-1", 10),
}


@pytest.mark.parametrize("case", BAD_EDITS)
async def test_a_bad_edit_keeps_the_map_and_names_file_and_line(regions: Fleet, case: str) -> None:
    old, new, line = BAD_EDITS[case]
    labels = {"source": "tenants", "result": "refused"}
    before = {entry: await regions[entry].metric("landbridge_config_reloads_total", **labels) for entry in REGIONS}
    logs = {entry: len(regions[entry].log()) for entry in REGIONS}
    edit(regions, old, new)
    for entry in REGIONS:
        gateway = regions[entry]

        async def refused(entry: str = entry) -> bool:
            return await regions[entry].metric("landbridge_config_reloads_total", **labels) > before[entry]

        await until(refused, f"{entry} refuses the file")
        place = f"tenants.yaml:{line}:"
        last = (await gateway.api("map"))["last_error"]
        assert any(place in problem for problem in last["problems"]), last
        assert place in gateway.log()[logs[entry] :]
        assert await gateway.metric("landbridge_map_stale") == 1
        for tenant, home in HOMES.items():
            assert await regions.served_by(entry, tenant) == home


def write_slowly(path: Path, pieces: list[str]) -> None:
    """Write with a pause after each piece. AssertionError when this machine made a pause of it that is too long."""
    with path.open("w") as file:
        for piece in pieces:
            began = time.monotonic()
            file.write(piece)
            file.flush()
            time.sleep(0.05)  # a slow writer's pauses are what this is about
            assert time.monotonic() - began < STILL_S, "this machine is too busy for this test"


async def test_a_half_written_file_changes_nothing(regions: Fleet) -> None:
    """Each prefix that ends at a tenant is a valid map with tenants missing; none stands still for `STILL_S`."""
    labels = {"source": "tenants", "result": "applied"}
    before = {entry: await regions[entry].metric("landbridge_config_reloads_total", **labels) for entry in REGIONS}
    pieces = TENANTS.replace("home: us-east-1", "home: ap-southeast-2", 1).splitlines(keepends=True)
    async with load_everywhere(regions, "umbrella") as loads:
        await asyncio.to_thread(write_slowly, regions.tenants, pieces)
        await all_have(regions, acme=AP)
        await asyncio.gather(*(load.goes_on() for load in loads))
        assert set.union(*(load.regions() for load in loads)) == {US}
    for entry in REGIONS:
        assert await regions[entry].metric("landbridge_config_reloads_total", **labels) == before[entry] + 1


@pytest.mark.parametrize("text", ["", "tenants: {}\n"])
async def test_an_emptied_file_removes_nobody(regions: Fleet, text: str) -> None:
    regions.tenants.write_text(text)
    for entry in REGIONS:

        async def refused(entry: str = entry) -> bool:
            return bool((await regions[entry].api("map"))["stale"])

        await until(refused, f"{entry} does not take it in")
        for tenant, home in HOMES.items():
            assert await regions.served_by(entry, tenant) == home
