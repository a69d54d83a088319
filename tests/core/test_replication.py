"""The replicated map's rules: whole tables, every kind of damage, and what holds whatever comes in whatever order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.placement import Failover, Misroute, Partition, Placement, State, Version, parse_version
from gateway.core.replication import (
    CONFLICTS,
    EPOCH_DIGITS_MAX,
    HLC_MAX,
    LINEAGE_MAX,
    SUM_DIGITS,
    TAKES,
    VALUE_BYTES_MAX,
    BadValue,
    Head,
    Offset,
    Outcome,
    Stamp,
    Step,
    can_follow,
    check_value,
    decode_value,
    descends,
    encode_body,
    encode_value,
    goes_forward,
    judge,
    lag_records,
    lineage,
    next_hlc,
    parse_offset,
    stamp_of,
    step,
    sum_of,
)

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Fifty of these are worth a hundred of others, and a machine that does other things is slow."""

A, D, S, W, L = (
    Outcome.APPLIED,
    Outcome.DUPLICATE,
    Outcome.STALE,
    Outcome.CONFLICT_WON,
    Outcome.CONFLICT_LOST,
)


def stamp(text: str) -> Stamp:
    """`2.7.eu < 2.5.us 1.3.us # b`: a version, those it replaces, its sum (`a` where none is named)."""
    text, _, total = text.partition("#")
    version, _, replaces = text.partition("<")
    return Stamp(parse_version(version.strip()), tuple(map(parse_version, replaces.split())), total.strip() or "a")


def line(newest: int, count: int, epoch: int = 1) -> str:
    """`newest`, which replaces the `count` before it, all of region us."""
    return f"{epoch}.{newest}.us < " + " ".join(f"{epoch}.{newest - n}.us" for n in range(1, count + 1))


FULL = line(20, LINEAGE_MAX)
"""Replaces 19 down to 12: what is below 12 is forgotten."""

NEARLY = line(20, LINEAGE_MAX - 1)

TABLE = [
    # nothing was here
    (None, "1.1.us", (), A),
    (None, "7.9.eu < 6.2.us", (), A),
    # the same again, or somebody's hand under an old version
    ("1.5.us", "1.5.us", (), D),
    ("1.5.us < 1.4.us", "1.5.us", (), D),
    ("1.5.us # a", "1.5.us # b", (), W),
    ("1.5.us # b", "1.5.us # a", (), L),
    # newer, and knows ours
    ("1.5.us", "1.6.us < 1.5.us", (), A),
    ("1.5.us", "2.1.eu < 1.5.us", (), A),
    ("1.5.us", "1.9.eu < 1.8.eu 1.7.us 1.5.us", (), A),
    # newer, and does not know ours, by each of the three parts of a version
    ("1.5.us", "2.1.us < 1.4.us", (), W),
    ("1.5.us", "1.6.us < 1.4.us", (), W),
    ("1.5.eu", "1.5.us < 1.4.us", (), W),
    ("1.5.us", "1.6.us", (), W),
    # newer; its lineage is full, so what is below it is forgotten, what is within it is not
    ("1.11.us", FULL, (), A),
    ("1.12.us", FULL, (), A),
    ("1.13.eu", FULL, (), W),
    ("1.11.us", NEARLY, (), W),
    # older, and ours descends from it
    ("1.6.us < 1.5.us", "1.5.us", (), S),
    ("2.1.eu < 1.7.us 1.5.us", "1.5.us < 1.4.us", (), S),
    (FULL, "1.11.us", (), S),
    (FULL, "1.1.eu", (), S),
    # older, and ours does not, but it was here before
    ("1.6.us < 1.4.us", "1.5.eu", ("1.5.eu",), S),
    ("1.6.us", "1.5.eu", ("1.4.us", "1.5.eu"), S),
    # older, and nothing is known of it
    ("1.6.us < 1.4.us", "1.5.eu", (), L),
    ("1.6.us < 1.4.us", "1.5.eu", ("1.5.us",), L),
    ("2.1.us < 1.4.us", "1.9.eu", (), L),
    ("1.5.us", "1.5.eu", (), L),
    (FULL, "1.13.eu", (), L),
    (NEARLY, "1.11.us", (), L),
    # a deletion (epoch + 1) beside a change of labels: whatever the clocks say
    ("2.1.us < 1.5.us", "1.999.eu < 1.5.us", (), L),
    ("1.999.eu < 1.5.us", "2.1.us < 1.5.us", (), W),
]


@pytest.mark.parametrize(("current", "incoming", "history", "expected"), TABLE)
def test_judge(current: str | None, incoming: str, history: Sequence[str], expected: Outcome):
    known = [parse_version(text) for text in history]
    assert judge(None if current is None else stamp(current), stamp(incoming), known) is expected


def test_every_outcome_is_in_the_table_and_says_who_is_current():
    assert {row[-1] for row in TABLE} == set(Outcome)
    assert TAKES == {A, W}
    assert CONFLICTS == {W, L}


@pytest.mark.parametrize(
    ("text", "ancestor", "expected"),
    [
        ("1.6.us < 1.5.us", "1.5.us", True),
        ("1.6.us < 1.5.us", "1.4.us", False),
        ("1.6.us", "1.5.us", False),
        ("1.6.us < 1.5.us", "1.6.us", False),
        (FULL, "1.12.us", True),
        (FULL, "1.12.eu", True),
        (FULL, "1.12.zz", False),
        (FULL, "1.11.zz", True),
        (FULL, "0.999.us", True),
        (NEARLY, "1.13.us", True),
        (NEARLY, "1.12.us", False),
    ],
)
def test_descends(text: str, ancestor: str, expected: bool):
    assert descends(stamp(text), parse_version(ancestor)) is expected


def test_a_lineage_is_newest_first_and_never_longer_than_its_limit():
    assert lineage(None) == ()
    assert lineage(stamp("1.5.us")) == (Version(1, 5, "us"),)
    assert lineage(stamp("1.5.us < 1.4.eu 1.3.us")) == tuple(map(parse_version, ("1.5.us", "1.4.eu", "1.3.us")))
    kept = lineage(stamp(FULL))
    assert len(kept) == LINEAGE_MAX
    assert kept[0] == Version(1, 20, "us")
    assert kept[-1] == Version(1, 13, "us")


@pytest.mark.parametrize(
    ("clock", "hlc", "expected"), [(100, 0, 100), (100, 99, 100), (100, 100, 101), (100, 3_600_100, 3_600_101)]
)
def test_the_clock_never_reads_the_same_twice(clock: int, hlc: int, expected: int):
    assert next_hlc(clock, hlc) == expected


# --- values

FULL_RECORD = Placement(
    tenant="acme",
    home="us-east-1",
    standby=("eu-west-1", "ap-southeast-2"),
    failover=Failover.READS,
    hosts=("shop.acme.com", "b\u00fccher.example"),
    public={"eu-west-1": "https://eu.shop.acme.com"},
    misroute=Misroute.INTERNAL,
    state=State.SUSPENDED,
    cluster="app",
    labels={"plan": "gold", "note": 'a "quoted"\nline \N{SNOWMAN}'},
    version=Version(7, 1_732_460_000_000, "us-east-1"),
    partition=Partition.READ_ONLY,
    claims={"shop.acme.com": 12},
    by="alice",
    why="because",
    takeover=True,
)
PLAIN = Placement(tenant="t-1", home="eu", version=Version(1, 1, "eu"))


def value_of(record: Placement, *replaces: str) -> bytes:
    return encode_value(record.tenant, record.version, tuple(map(parse_version, replaces)), encode_body(record))


@pytest.mark.parametrize("record", [FULL_RECORD, PLAIN])
@pytest.mark.parametrize("replaces", [(), ("6.1.us-east-1",), tuple(f"1.{n}.eu" for n in range(LINEAGE_MAX, 0, -1))])
def test_a_value_is_read_as_it_was_written(record: Placement, replaces: tuple[str, ...]):
    value = value_of(record, *replaces)
    assert decode_value(record.tenant, value) == record
    assert check_value(record.tenant, value) == stamp_of(value)
    assert stamp_of(value) == Stamp(
        record.version,
        tuple(map(parse_version, replaces)),
        sum_of(record.tenant, str(record.version), encode_body(record)),
    )


def test_a_value_looks_as_its_page_says():
    assert value_of(PLAIN) == b'1 1.1.eu - %b\n{"home":"eu"}' % sum_of("t-1", "1.1.eu", b'{"home":"eu"}').encode()
    assert value_of(PLAIN, "1.0.eu", "0.9.us").startswith(b"1 1.1.eu 1.0.eu,0.9.us ")
    assert value_of(PLAIN, *(f"0.{n}.eu" for n in range(20))).split()[2].count(b",") == LINEAGE_MAX - 1
    assert len(stamp_of(value_of(PLAIN)).sum) == SUM_DIGITS


names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
versions = st.builds(Version, st.integers(0, 10**EPOCH_DIGITS_MAX - 1), st.integers(0, HLC_MAX), names)
records = st.builds(
    Placement,
    tenant=st.from_regex(r"[a-z0-9_-]{1,63}", fullmatch=True),
    home=names,
    standby=st.lists(names, max_size=3).map(tuple),
    failover=st.sampled_from(Failover),
    hosts=st.lists(texts, max_size=3).map(tuple),
    public=st.dictionaries(names, texts, max_size=2),
    misroute=st.none() | st.sampled_from(Misroute),
    state=st.sampled_from(State),
    cluster=st.none() | texts,
    labels=st.dictionaries(texts, texts, max_size=3),
    version=versions,
    partition=st.sampled_from(Partition),
    claims=st.dictionaries(texts, st.integers(0, HLC_MAX), max_size=2),
    by=texts,
    why=texts,
    takeover=st.booleans(),
)


@quick
@given(records, st.lists(versions, max_size=LINEAGE_MAX))
def test_any_record_is_read_as_it_was_written(record: Placement, replaces: list[Version]):
    value = encode_value(record.tenant, record.version, replaces, encode_body(record))
    assert decode_value(record.tenant, value) == record
    assert stamp_of(value).replaces == tuple(replaces)


@quick
@given(records, st.data())
def test_one_byte_more_less_or_other_is_found(record: Placement, data: st.DataObject):
    """Whatever the damage: it is no record, or it is the same one (a byte of `replaces`, which the sum leaves out)."""
    value = value_of(record, "0.1.us", "0.0.eu")
    at = data.draw(st.integers(0, len(value) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=1))
    for damaged in (value[:at], value[:at] + value[at + 1 :], value[:at] + byte + value[at:],
                    value[:at] + byte + value[at + 1 :]):  # fmt: skip
        try:
            read = decode_value(record.tenant, damaged)
        except BadValue:
            continue
        assert read == record
        assert damaged.partition(b"\n")[2] == value.partition(b"\n")[2]


def test_a_value_belongs_to_one_tenant():
    with pytest.raises(BadValue, match="its sum does not hold"):
        check_value("t-2", value_of(PLAIN))


BODY = encode_body(PLAIN)


def sealed(version: str, replaces: str = "-", body: bytes = BODY, tenant: str = "t-1") -> bytes:
    return f"1 {version} {replaces} {sum_of(tenant, version, body)}\n".encode() + body


DAMAGED = [
    (b"", "expected `1 VERSION"),
    (BODY, "expected `1 VERSION"),
    (b"2" + sealed("1.1.eu")[1:], "expected `1 VERSION"),
    (sealed("1.1.eu").replace(b"\n", b"\r\n", 1), "expected `1 VERSION"),
    (sealed("1.1.eu").replace(b"\n", b" ", 1), "expected `1 VERSION"),
    (sealed("1.1.eu").upper(), "expected `1 VERSION"),
    (sealed("1.1.eu", "-  "), "expected `1 VERSION"),
    (sealed("1.1.eu")[:-1], "its sum does not hold"),
    (sealed("1.1.eu") + b" ", "its sum does not hold"),
    (sealed("1.1"), "no version"),
    (sealed("1.1.EU"), "no version"),
    (sealed("-1.1.eu"), "no version"),
    (sealed("1.\N{ARABIC-INDIC DIGIT ONE}.eu"), "no version"),
    (sealed("1.1.eu", "x"), "no version"),
    (sealed("1.1.eu", "1.0.eu,"), "no version"),
    (sealed("1.1.eu", "-,1.0.eu"), "no version"),
    (sealed("1" * (EPOCH_DIGITS_MAX + 1) + ".1.eu"), "out of range"),
    (sealed(f"1.{HLC_MAX + 1}.eu"), "out of range"),
    (sealed("1.1.eu", body=b"{}"), "no record"),
    (sealed("1.1.eu", body=b"[]"), "no record"),
    (sealed("1.1.eu", body=b'{"home":"eu"'), "no record"),
    (sealed("1.1.eu", body=b'{"home":"eu","state":"happy"}'), "no record"),
    (sealed("1.1.eu", body=b'{"home":"eu","labels":{"a":1}}'), "no record"),
    (sealed("1.1.eu", body=b'{"home":"e\xff"}'), "no record"),
    (sealed("1.1.eu", body=b'{"home":"EU"}'), "no region's name"),
    (sealed("1.1.eu", body=b'{"home":""}'), "no region's name"),
    (sealed("1.1.eu", body=b'{"home":"eu","standby":["us","/etc"]}'), "no region's name"),
    (sealed("1.1.eu", body=b'{"home":"eu"}' + b" " * VALUE_BYTES_MAX), "expected at most"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), DAMAGED)
def test_what_is_no_record_says_why(value: bytes, message: str):
    with pytest.raises(BadValue, match=message):
        decode_value("t-1", value)


@pytest.mark.parametrize("tenant", ["", "ACME", "a b", "a" * 64, "a\n", "../x", "b\u00fccher"])
def test_what_is_no_tenant_says_so(tenant: str):
    with pytest.raises(BadValue, match="is no tenant id"):
        decode_value(tenant, sealed("1.1.eu", tenant=tenant))


def test_a_key_that_a_later_program_adds_is_no_damage():
    value = sealed("1.1.eu", body=b'{"home":"eu","moon":"full"}')
    assert decode_value("t-1", value) == PLAIN


# --- whatever comes, in whatever order


def merged(stamps: Iterable[Stamp]) -> tuple[Stamp | None, list[Stamp], list[Stamp]]:
    """Where a region ends that is given these: what is current, what is in history, what came late and was left out."""
    current: Stamp | None = None
    history: list[Stamp] = []
    late: list[Stamp] = []
    for incoming in stamps:
        outcome = judge(current, incoming, {past.version for past in history})
        if outcome in TAKES:
            if current is not None:
                history.append(current)
            current = incoming
        elif outcome is Outcome.CONFLICT_LOST:
            history.append(incoming)
        elif outcome is Outcome.STALE:
            late.append(incoming)
    return current, history, late


few_versions = st.builds(Version, st.integers(1, 3), st.integers(1, 12), st.sampled_from(("ap", "eu", "us")))
any_stamps = st.lists(
    st.builds(
        Stamp,
        few_versions,
        st.lists(few_versions, max_size=LINEAGE_MAX).map(lambda found: tuple(sorted(found, reverse=True))),
        st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=12,
)


@quick
@given(any_stamps, st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_ends_in_the_same(stamps: list[Stamp], rng: random.Random):
    """Even of stamps that no program would write: their lineages say what they like."""
    order = [*stamps, *rng.choices(stamps, k=len(stamps))]
    rng.shuffle(order)
    current, history, late = merged(order)
    assert current is not None
    assert current[::2] == max(found[::2] for found in stamps)
    seen = {found[::2] for found in (current, *history, *late)}
    assert seen == {found[::2] for found in stamps}, "a value is current, in history, or known to be an ancestor's"


@quick
@given(any_stamps)
def test_equal_versions_of_other_content_end_as_one(stamps: list[Stamp]):
    level = [found._replace(version=Version(1, 1, "us")) for found in stamps]
    for order in itertools.islice(itertools.permutations(level), 24):
        current, history, _ = merged(order)
        assert current is not None
        assert current.sum == max(found.sum for found in level)
        assert {found.sum for found in history} | {current.sum} == {found.sum for found in level}


class Written:
    """Stamps as regions write them: each on what is current there, which merging and writing have made of it."""

    def __init__(self, regions: Sequence[str]) -> None:
        self.at: dict[str, list[Stamp]] = {region: [] for region in regions}
        self.parents: dict[Version, Version | None] = {}
        self.all: list[Stamp] = []
        self._hlc = 0

    def write(self, region: str, raises_epoch: bool) -> None:
        current = merged(self.at[region])[0]
        self._hlc += 1
        epoch = (1 if current is None else current.version.epoch) + raises_epoch
        written = Stamp(Version(epoch, self._hlc, region), lineage(current), f"{len(self.all):x}")
        self.parents[written.version] = None if current is None else current.version
        self.at[region].append(written)
        self.all.append(written)

    def tell(self, region: str, index: int) -> None:
        """One of all values, whenever it was written, comes to this region."""
        if self.all:
            self.at[region].append(self.all[index % len(self.all)])

    def descends(self, younger: Version, older: Version) -> bool:
        at: Version | None = younger
        while at is not None and at != older:
            at = self.parents[at]
        return at == older


acts = st.lists(
    st.tuples(st.sampled_from(("ap", "eu", "us")), st.booleans() | st.integers(0, 50)), min_size=1, max_size=40
)


@quick
@given(acts)
def test_what_regions_write_is_never_called_a_conflict_where_it_is_none(steps: list[tuple[str, bool | int]]):
    world = Written(("ap", "eu", "us"))
    for region, act in steps:
        if isinstance(act, bool):
            world.write(region, act)
            continue
        before = merged(world.at[region])
        world.tell(region, act)
        if not world.all or before[0] is None:
            continue
        current, incoming = before[0], world.at[region][-1]
        outcome = judge(current, incoming, {past.version for past in before[1]})
        older, younger = sorted((current, incoming), key=lambda found: found.version)
        related = world.descends(younger.version, older.version)
        if outcome in CONFLICTS:
            assert not related
        elif outcome is not Outcome.DUPLICATE and len(younger.replaces) < LINEAGE_MAX:
            assert related or incoming.version in {past.version for past in before[1]}


@quick
@given(acts)
def test_regions_that_were_told_everything_are_the_same_and_kept_their_own(steps: list[tuple[str, bool | int]]):
    world = Written(("ap", "eu", "us"))
    for region, act in steps:
        if isinstance(act, bool):
            world.write(region, act)
        else:
            world.tell(region, act)
    for stamps in world.at.values():
        stamps.extend(world.all)
    ends = {region: merged(stamps) for region, stamps in world.at.items()}
    assert len({end[0] for end in ends.values()}) == 1
    for written in world.all:
        current, history, _ = ends[written.version.region]
        assert written == current or written in history


# --- following a log

AT = Offset("x", 7)


@pytest.mark.parametrize(
    ("offset", "log_id", "seq", "expected"),
    [
        (None, "x", 1, Step.RESYNC),
        (AT, "y", 8, Step.RESYNC),
        (AT, "y", 7, Step.RESYNC),
        (AT, "x", 8, Step.APPLIED),
        (AT, "x", 7, Step.DUPLICATE),
        (AT, "x", 1, Step.DUPLICATE),
        (AT, "x", 9, Step.GAP),
        (Offset("x", 0), "x", 1, Step.APPLIED),
    ],
)
def test_step(offset: Offset | None, log_id: str, seq: int, expected: Step):
    assert step(offset, log_id, seq) is expected


@pytest.mark.parametrize(
    ("offset", "head", "follows", "lag"),
    [
        (None, Head("x", 1, 9), False, 9),
        (AT, Head("x", 1, 9), True, 2),
        (AT, Head("x", 1, 7), True, 0),
        (AT, Head("y", 1, 9), False, 9),
        (AT, Head("y", 8, 9), False, 9),
        # rolled back
        (AT, Head("x", 1, 6), False, 0),
        # trimmed: up to what we have, and one further
        (AT, Head("x", 8, 9), True, 2),
        (AT, Head("x", 9, 9), False, 2),
        # emptied by trimming, with and without something that we have not seen; never written to
        (AT, Head("x", 8, 7), True, 0),
        (AT, Head("x", 9, 8), False, 1),
        (Offset("x", 0), Head("x", 1, 0), True, 0),
    ],
)
def test_can_follow_and_lag(offset: Offset | None, head: Head, follows: bool, lag: int):
    assert can_follow(offset, head) is follows
    assert lag_records(offset, head) == lag


@pytest.mark.parametrize(
    ("before", "after", "resynced", "expected"),
    [
        (None, AT, True, True),
        (None, AT, False, False),
        (AT, Offset("x", 8), False, True),
        (AT, Offset("x", 8), True, True),
        (AT, Offset("x", 7), False, False),
        (AT, Offset("x", 7), True, False),
        (AT, Offset("x", 6), True, False),
        (AT, Offset("y", 1), True, True),
        (AT, Offset("y", 9), False, False),
    ],
)
def test_goes_forward(before: Offset | None, after: Offset, resynced: bool, expected: bool):
    assert goes_forward(before, after, resynced) is expected


@quick
@given(st.from_regex(r"[0-9a-f]{16}", fullmatch=True), st.integers(0, HLC_MAX))
def test_an_offset_is_read_as_it_was_written(log_id: str, seq: int):
    assert parse_offset(str(Offset(log_id, seq))) == Offset(log_id, seq)


@pytest.mark.parametrize("text", ["", "x", "x ", " 7", "x -1", "x 1.5", "x \N{ARABIC-INDIC DIGIT ONE}", "x y 7"])
def test_what_is_no_offset_is_followed_from_the_beginning(text: str):
    assert parse_offset(text) is None


class Log:
    """A log that grows, is trimmed, and begins anew under another name or, rolled back, under its old one."""

    def __init__(self) -> None:
        self.name, self.first, self.entries = "0", 1, list[int]()

    @property
    def head(self) -> Head:
        return Head(self.name, self.first, len(self.entries))


@quick
@given(st.lists(st.sampled_from(("write", "write", "trim", "renew", "read", "repeat", "skip")), max_size=60))
def test_a_follower_misses_nothing_and_takes_nothing_twice(steps: list[str]):
    """Reads are cut off, repeated and skipped; what the offset claims is here all the same."""
    log, offset, seen, taken = Log(), Offset("0", 0), set[int](), list[int]()
    number = 0
    for act in steps:
        match act:
            case "write":
                number += 1
                log.entries.append(number)
            case "trim":
                log.first = max(log.first, len(log.entries))
            case "renew":
                del log.entries[len(log.entries) // 2 :]
                log.name += "'"
                log.first = 1
            case _ if not can_follow(offset, log.head):
                seen |= set(log.entries)
                after = Offset(log.name, len(log.entries))
                assert goes_forward(offset, after, resynced=True)
                offset = after
            case _:
                seq = offset.seq + {"read": 1, "repeat": 0, "skip": 2}[act]
                if step(offset, log.name, seq) is Step.APPLIED and seq <= len(log.entries):
                    assert seq >= log.first
                    taken.append(log.entries[seq - 1])
                    after = Offset(log.name, seq)
                    assert goes_forward(offset, after, resynced=False)
                    offset = after
        if offset.log_id == log.name:
            assert set(log.entries[: offset.seq]) <= seen | set(taken)
    assert len(taken) == len(set(taken))
