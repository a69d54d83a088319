"""One replicator against real servers: it follows, compares, retries, buries, repairs; and says how it stands."""

from __future__ import annotations

from pathlib import Path

from tests.support.replication import EU, US, until, world


async def test_what_is_written_there_comes_here(tmp_path: Path) -> None:
    async with world(tmp_path, US, EU) as w:
        us, eu = w.regions
        await us.write(*(f"t{n}" for n in range(1500)))
        eu.replicate()
        await until(lambda: eu.is_even_with(us))
        assert await w.converged()
        await us.write("acme", home=EU)
        await until(lambda: eu.is_even_with(us))
        assert await eu.current("acme") == await us.current("acme") is not None
        await until(lambda: eu.has_state(us, "following"))
        print(await eu.state(us))
