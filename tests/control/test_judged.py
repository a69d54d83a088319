"""Values of the replicated map, held against this gateway's configuration."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.control.replication.region_map import FeedEntry
from gateway.control.sources.judged import Rules, judge_entries, quick
from gateway.core.placement import Failover, Misroute, Partition, Placement, State, Version
from gateway.core.replication import BadValue, Offset, decode_value, encode_body, encode_value
from gateway.settings.schema import Address, Listen, RegionSettings, Settings, TenantMapSettings
from tests.support.feed import EU, US, placement, value_of

SETTINGS = Settings(
    region=US,
    listen=Listen(Address("127.0.0.1", 0)),
    state_dir="/nowhere",
    regions={US: RegionSettings("http://{tenant}.us.test"), EU: RegionSettings()},
    tenant_map=TenantMapSettings("/nowhere/tenants.yaml"),
)
RULES = Rules(SETTINGS)

regions = st.sampled_from([US, EU, "mars", "A", ""])
texts = st.text(max_size=8)
bodies = st.builds(
    Placement,
    tenant=st.just("acme"),
    home=regions,
    standby=st.lists(regions, max_size=2).map(tuple),
    failover=st.sampled_from(Failover),
    hosts=st.lists(texts, max_size=2).map(tuple),
    public=st.dictionaries(texts, texts, max_size=2),
    misroute=st.none() | st.sampled_from(Misroute),
    state=st.sampled_from(State),
    cluster=st.none() | texts,
    labels=st.dictionaries(texts, texts, max_size=2),
    partition=st.sampled_from(Partition),
    claims=st.dictionaries(texts, st.integers(0, 2**53), max_size=2),
    by=texts,
    why=texts,
    takeover=st.booleans(),
).map(encode_body)
odd_bodies = st.sampled_from(
    [
        b"",
        b"{}",
        b"[]",
        b'{"home":"us-east-1"}}',
        b'{"home":"us-east-1"} ',
        b'{"home":"us-east-1"} {}',
        b'{"home":"us-east-1","tenant":"other"}',
        b'{"home":"us-east-1","tenant":5}',
        b'{"home":"us-east-1","version":[9,9,"x"]}',
        b'{"home":"us-east-1","home":"eu-west-1"}',
        b'{"home":"us-east-1","new":{"a":[1]}}',
        b'{"home":"us-east-1","failover":"never"}',
        b'{"home":"us-east-1"\xff}',
    ]
)
versions = st.builds(Version, st.integers(0, 10**19), st.integers(0, 2**55), regions)
tenants = st.sampled_from(["acme", "Acme", "", "a" * 64, "ä", 'a"b'])


@given(st.data())
def test_the_quick_reading_is_the_thorough_one(data: st.DataObject) -> None:
    tenant = data.draw(tenants)
    value = encode_value(
        tenant, data.draw(versions), data.draw(st.lists(versions, max_size=9)), data.draw(bodies | odd_bodies)
    )
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value)))
        value = value[:at] + data.draw(st.binary(max_size=2)) + value[at + data.draw(st.integers(0, 2)) :]
    found = quick(tenant, value)
    if found is None:
        return
    try:
        assert decode_value(tenant, value) == found
    except BadValue as error:
        assert "region" in str(error), "the names of regions are looked at by the rules"
        assert not RULES.routable(found) or found.state is State.DELETED


def test_most_are_read_quickly() -> None:
    made = placement("acme", standby=(EU,), hosts=("a.test",), labels={"a": "ü"}, by="alice", why='"', takeover=True)
    value = encode_value("acme", Version(3, 7, US), (Version(2, 5, EU),), encode_body(made))
    assert quick("acme", value) == decode_value("acme", value)


def test_entries_in_their_order() -> None:
    origin = (US, Offset("log", 7))
    judged = judge_entries(
        RULES,
        [
            FeedEntry(1, "a", value_of("a", Version(1, 1, US)), (US, Offset("log", 5))),
            FeedEntry(2, "b", b"", None),
            FeedEntry(3, "", b"", (EU, Offset("other", 2))),
            FeedEntry(4, "a", value_of("a", Version(1, 2, US), home="mars"), origin),
            FeedEntry(5, "a", b"nonsense", None),
        ],
    )
    assert [(c.tenant, c.placement and c.placement.home, c.routable) for c in judged.changes] == [
        ("a", US, True),
        ("b", None, True),
        ("a", "mars", False),
    ]
    assert [(r.tenant, r.reason) for r in judged.rejected] == [("a", "unknown_region"), ("a", "malformed")]
    assert judged.origins == {US: Offset("log", 7), EU: Offset("other", 2)}


def test_what_is_deleted_counts_wherever_it_pointed() -> None:
    value = value_of("a", Version(2, 1, US), home="mars", state=State.DELETED, hosts=("not a host",))
    [change] = judge_entries(RULES, [FeedEntry(1, "a", value, None)]).changes
    assert change.routable
