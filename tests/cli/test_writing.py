"""Plans and their execution: what happens between looking and writing, and what a plan keeps of a million tenants."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import writing
from gateway.cli.export import said, written_as
from gateway.cli.options import Format
from gateway.cli.plans import Ids, Plan, Spool, make_plan
from gateway.cli.regions import Regions
from gateway.cli.tenants import settings_of
from gateway.cli.waiting import wait
from gateway.cli.wanted import wanted_of
from gateway.cli.writing import Result, write
from gateway.control.replication.region_map import MapUnavailable, Refused, RegionMap, Write, Written
from gateway.core.placement import Failover, Misroute, Partition, Placement, State, Version
from gateway.core.planning import Author, Change, Kind, plan
from gateway.core.replication import decode_value, encode_body
from gateway.settings.schema import Settings
from tests.support.operator_world import HERE, THERE, World
from tests.support.valkey import Valkey

AUTHOR = Author("alice", "why")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Valkey]]:
    folder = tmp_path_factory.mktemp("valkey")
    with Valkey(folder / HERE, durable=False) as here, Valkey(folder / THERE, durable=False) as there:
        yield {HERE: here, THERE: there}


@pytest.fixture
def settings(tmp_path: Path, servers: dict[str, Valkey]) -> Settings:
    for server in servers.values():
        server.cli("FLUSHALL")
    return settings_of(World(tmp_path, servers).config(), None)


@pytest.fixture
async def regions(settings: Settings) -> AsyncIterator[Regions]:
    async with Regions(settings) as made:
        yield made


def wish(tenant: str = "acme", home: str = HERE, **parts: object) -> Placement:
    return Placement(tenant=tenant, home=home, **parts)  # type: ignore[arg-type]


async def put(map_: RegionMap, placement: Placement, epoch: int = 1) -> Version:
    """Write a record over whatever is there."""
    (value,) = await map_.get([placement.tenant])
    expected = None if value is None else decode_value(placement.tenant, value).version
    (done,) = await map_.write([Write(placement.tenant, expected, epoch, encode_body(placement))])
    assert isinstance(done, Written)
    return done.version


async def current(map_: RegionMap, tenant: str = "acme") -> Placement:
    (value,) = await map_.get([tenant])
    assert value is not None
    return decode_value(tenant, value)


async def planned(regions: Regions, settings: Settings, made: Plan, *wanted: Placement) -> Plan:
    await make_plan(made, regions, settings, wanted, AUTHOR)
    return made


async def execute(regions: Regions, made: Plan, lost: Sequence[str] = ()) -> Result:
    result = Result()
    await write(regions, made.changes, frozenset(lost), result, lambda done: None)
    return result


# --- what was changed between plan and write


async def test_the_same_change_is_made_over_a_newer_version(regions: Regions, settings: Settings) -> None:
    """Somebody wrote the same record once more, which changes nothing of what was shown."""
    await put(regions.here, wish(labels={"a": "1"}))
    with Plan() as made:
        await planned(regions, settings, made, wish(labels={"a": "2"}))
        between = await put(regions.here, wish(labels={"a": "1"}, by="bob"))
        result = await execute(regions, made)
    assert (result.kinds[Kind.CHANGED], result.overtaken) == (1, [])
    now = await current(regions.here)
    assert (now.labels, now.by) == ({"a": "2"}, "alice")
    assert now.version > between


async def test_another_change_is_left_alone_and_named(regions: Regions, settings: Settings) -> None:
    await put(regions.here, wish(labels={"a": "1"}))
    with Plan() as made:
        await planned(regions, settings, made, wish(labels={"a": "2"}), wish("other"))
        between = await put(regions.here, wish(standby=(THERE,), labels={"a": "1"}, by="bob"), epoch=2)
        result = await execute(regions, made)
    assert result.overtaken == [f"acme: it was changed meanwhile (version {between} by bob): plan again"]
    assert result.kinds == {Kind.CREATED: 1}
    assert (await current(regions.here)).standby == (THERE,)


async def test_a_change_that_somebody_else_made_is_so_already(regions: Regions, settings: Settings) -> None:
    with Plan() as made:
        await planned(regions, settings, made, wish(labels={"a": "2"}))
        await put(regions.here, wish(labels={"a": "2"}))
        result = await execute(regions, made)
    assert (result.written, result.already, result.overtaken) == (0, 1, [])


async def test_a_tenant_that_moved_away_is_not_written_where_it_was(regions: Regions, settings: Settings) -> None:
    """Planned here as one that lives here; it lives there by now, so nothing of it may be written here."""
    await put(regions.here, wish())
    with Plan() as made:
        await planned(regions, settings, made, wish(state=State.SUSPENDED))
        await put(regions.here, wish(home=THERE), epoch=2)
        result = await execute(regions, made)
    assert len(result.overtaken) == 1
    assert (await current(regions.here)).home == THERE


async def test_an_answer_that_is_lost_is_no_second_write(
    regions: Regions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WAIT_S", 0.0)
    send = regions.here.write
    lost = 2

    async def losing(items: Sequence[Write]) -> list[Written | Refused]:
        nonlocal lost
        answer = await send(items)
        if lost:
            lost -= 1
            raise MapUnavailable("here: no answer")
        return answer

    monkeypatch.setattr(regions.here, "write", losing)
    with Plan() as made:
        await planned(regions, settings, made, *(wish(f"t{n}") for n in range(10)))
        result = await execute(regions, made)
    assert (result.already, result.overtaken, result.regions) == (10, [], {HERE})
    assert (await regions.here.head()).log.last == 10


async def test_a_region_that_goes_away_in_the_middle(
    regions: Regions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written stays, and counts; applying again does the rest."""
    monkeypatch.setattr(writing, "WAIT_S", 0.0)
    monkeypatch.setattr(writing, "WRITES_MAX", 10)
    monkeypatch.setattr(writing, "CALLS_MAX", 1)
    send = regions.here.write
    calls = 0

    async def failing(items: Sequence[Write]) -> list[Written | Refused]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise MapUnavailable("here: no answer")
        return await send(items)

    wanted = [wish(f"t{n}") for n in range(50)]
    monkeypatch.setattr(regions.here, "write", failing)
    with Plan() as made:
        await planned(regions, settings, made, *wanted)
        result = Result()
        with pytest.raises(MapUnavailable):
            await write(regions, made.changes, frozenset(), result, lambda done: None)
    assert result.written == 20
    monkeypatch.undo()
    with Plan() as made:
        await planned(regions, settings, made, *wanted)
        assert (made.tally.unchanged, made.tally.changes) == (20, 30)
        assert (await execute(regions, made)).written == 30


async def test_a_takeover_is_written_here_and_flagged(regions: Regions, settings: Settings) -> None:
    await put(regions.here, wish(home=THERE))
    with Plan() as made:
        await planned(regions, settings, made, wish(), wish("new", home=THERE))
        assert dict(made.tally.regions) == {THERE: 2}
        await execute(regions, made, lost=[THERE])
    now = await current(regions.here)
    assert (now.home, now.takeover, now.version.epoch, now.version.region) == (HERE, True, 2, HERE)
    assert (await current(regions.here, "new")).takeover


async def test_waiting_without_anybody_is_told(regions: Regions, settings: Settings) -> None:
    await put(regions.here, wish())
    found = await wait(regions, [HERE], 0.0)
    assert found == (0, (), ("here: no gateway is alive", "there: no gateway is alive"))
    found = await wait(regions, [HERE], 0.0, lost=[THERE])
    assert found.silent[-1].startswith("there: taken over from")


# --- a plan's memory


def test_a_spool_gives_back_what_it_was_given() -> None:
    spool = Spool()
    changes = [plan(wish(f"t{n}", hosts=(f"h{n}.test",)), None, HERE, AUTHOR) for n in range(100)]
    for change in changes:
        assert change is not None
        spool.add(change)
    for _ in range(2):
        assert [found.placement for found in spool] == [change.placement for change in changes if change is not None]
    spool.close()


def test_ids_are_found_again() -> None:
    ids = Ids()
    for n in range(1000):
        ids.add(f"t{n}")
    assert all(f"t{n}" in ids for n in range(1000))
    assert not any(f"t{n}" in ids for n in range(1000, 3000))


async def test_a_plan_of_many_tenants_needs_little_memory(regions: Regions, settings: Settings, tmp_path: Path) -> None:
    """5,000 records are some 5 MB as objects; what is kept of them does not grow with their number."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"tenant":"t{n}","home":"here","hosts":["h{n}.test"]}}\n' for n in range(5_000)))
    tracemalloc.start()
    with wanted_of(str(path), Format.JSONL, settings) as wanted, Plan() as made:
        await make_plan(made, regions, settings, wanted.read(), AUTHOR)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert made.tally.changes == 5_000
    assert peak < 2_500_000, peak


async def test_interrupted_it_has_written_whole_batches(
    regions: Regions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WRITES_MAX", 10)
    monkeypatch.setattr(writing, "CALLS_MAX", 1)
    result = Result()

    def stop(done: int) -> None:
        if done == 20:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    with Plan() as made:
        await planned(regions, settings, made, *(wish(f"t{n}") for n in range(50)))
        task = asyncio.get_running_loop().create_task(write(regions, made.changes, frozenset(), result, stop))
        with pytest.raises(asyncio.CancelledError):
            await task
    assert result.written == (await regions.here.head()).records == 20


# --- what is exported is read as the same


text = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)
placements = st.builds(
    Placement,
    tenant=st.from_regex(r"[a-z0-9_-]{1,12}", fullmatch=True),
    home=st.just(HERE),
    standby=st.sampled_from([(), (THERE,)]),
    failover=st.sampled_from(Failover),
    hosts=st.lists(st.sampled_from(["a.test", "b.test", "x_1.b.test"]), unique=True).map(tuple),
    public=st.dictionaries(st.sampled_from([HERE, THERE]), st.sampled_from(["https://x.test", "http://y.test:81"])),
    misroute=st.sampled_from([None, *Misroute]),
    state=st.sampled_from([State.ACTIVE, State.SUSPENDED]),
    cluster=st.sampled_from([None, "app"]),
    labels=st.dictionaries(st.from_regex(r"[A-Za-z0-9._/-]{1,8}", fullmatch=True), text, max_size=3),
    partition=st.sampled_from(Partition),
    version=st.builds(Version, st.integers(0, 10**18 - 1), st.just(0), st.just("")),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, Valkey]) -> tuple[Path, Settings]:
    folder = tmp_path_factory.mktemp("export")
    return folder, settings_of(World(folder, servers).config(), None)


@given(placements, st.sampled_from(Format))
def test_what_is_written_is_read_again(exported: tuple[Path, Settings], placement: Placement, format_: Format) -> None:
    """Whatever ids, labels and epochs: words that YAML takes for something else, and every printable character."""
    body = written_as(placement, format_)
    head = "tenants:\n" if format_ is Format.YAML else ""
    folder, settings = exported
    path = folder / f"one.{format_}"
    path.write_text(head + body, encoding="utf-8")
    with wanted_of(str(path), None, settings) as wanted:
        assert list(wanted.read()) == [placement]


def test_a_held_tenant_is_exported_as_one_that_is_wanted() -> None:
    assert said(wish(state=State.HELD)) == {"home": HERE}


def test_a_change_is_small_when_written_down() -> None:
    change = plan(wish(hosts=("h.test",)), None, HERE, AUTHOR)
    assert isinstance(change, Change)
    assert len(msgspec.msgpack.encode(change)) < 300
