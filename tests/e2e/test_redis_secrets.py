"""FAULTS 36 with the replicated map: the password of a Redis gets nowhere, whatever goes wrong with the connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from gateway.control.admin import ROUTES
from gateway.control.replication import keys
from gateway.control.replication.region_map import RegionMap
from gateway.supervisor import child_environ, python_module
from tests.support.application_process import application_process
from tests.support.client import once
from tests.support.fleet import EU, US, Gateway, request, until
from tests.support.links import Link
from tests.support.redis_fleet import RedisFleet, of_homes

PASSWORD = "CANARY/with@all:of?it#" + "0123456789abcdef"
ENCODED = "CANARY%2Fwith%40all%3Aof%3Fit%230123456789abcdef"
SECRETS = (PASSWORD, ENCODED, "CANARY")
RULES = (f"~{keys.PREFIX}*", "+@all", "-@dangerous", "+info")


class Guarded(RedisFleet):
    """Regions whose Valkeys ask for a password, which stands in a file beside the gateways."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (US, EU))
        (folder / "redis").write_text(PASSWORD + "\n")
        for region, server in self.servers.items():
            server.cli("ACL", "SETUSER", "landbridge", "on", f">{PASSWORD}", *RULES)
            self.maps[region] = RegionMap(f"redis://landbridge:{ENCODED}@127.0.0.1:{server.port}/0", region)
            server.cli("ACL", "SETUSER", "default", "nopass", "-@all", "+ping", "+acl", "+client")

    def _url(self, link: Link) -> str:
        return "redis://landbridge:${file:../redis}@" + super()._url(link).removeprefix("redis://")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with AsyncExitStack() as stack:
        made = Guarded(tmp_path)
        ports = await stack.enter_async_context(application_process(US, EU))
        stack.push_async_callback(made.stop)
        for gateway in made.gateways.values():
            gateway.application.port = ports[gateway.region]
        await made.seed(of_homes({"acme": US, "globex": EU}))
        await made.start()
        yield made


async def test_no_password_of_a_redis_gets_out(fleet: Guarded) -> None:
    us = fleet[US]
    done = await fleet.write("globex", EU, labels={"it": "works"})
    await fleet.used("globex", done.version)
    said = {f"GET {route.path}": await answer(us, route.path) for route in ROUTES if route.read}
    commands = ("check", "map status", "tenants export", "explain --host x")
    printed = await asyncio.gather(*(output(us, *words.split()) for words in commands))
    said |= dict(zip(commands, printed, strict=True))
    assert b"globex" in said["tenants export"], "the right password is known"

    good = us.config.read_text()
    for bad, place in (("http://u:", "h"), ("redis://u:", "h:0")):
        seen = us.log().count("configuration refused")
        us.config.write_text(good.replace('url: "redis://', f'url: "{bad}{PASSWORD}@{place}", urls: "redis://', 1))
        said[f"check of {bad}"] = await output(us, "check", code=2)
        await until(partial(refused_more_than, us, seen), "it is refused")
    us.config.write_text(good)
    await us.logged("configuration applied")

    fleet.servers[US].cli("ACL", "SETUSER", "landbridge", "resetpass", ">another")
    fleet.servers[US].cli("CLIENT", "KILL", "USER", "landbridge")
    await us.logged("invalid username-password pair")
    said["command without the right password"] = await output(us, "tenants", "export", code=1)
    fleet.servers[EU].kill()
    said["status without it"] = await answer(us, "/api/v1/status")
    said["metrics without it"] = await answer(us, "/metrics")
    for gateway in fleet.gateways.values():
        await gateway.pids()
        said |= {f"{pid} cmdline": text for pid, text in cmdlines(gateway)}
        await gateway.stop()
        said |= dict(files(gateway.folder))
    assert len(said) > 40
    hits = [(where, secret) for where, text in said.items() for secret in SECRETS if secret.encode() in text]
    assert hits == []


async def refused_more_than(gateway: Gateway, seen: int) -> bool:
    return gateway.log().count("configuration refused") > seen


async def answer(gateway: Gateway, path: str) -> bytes:
    query = {"/api/v1/explain": "?host=acme.demo.test"}
    reply = await once(gateway.admin, request("localhost", path.replace("{id}", "acme") + query.get(path, "")))
    return b"\n".join([*reply.lines, reply.body])


async def output(gateway: Gateway, *words: str, code: int = 0) -> bytes:
    """What a command prints, run where the gateway's configuration is."""
    child = await asyncio.create_subprocess_exec(
        *(*python_module("gateway"), *words, "-c", "gateway.yaml"),
        cwd=gateway.folder,
        env=child_environ({k: v for k, v in os.environ.items() if not k.startswith("LANDBRIDGE")}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await child.communicate()
    assert child.returncode == code, printed
    return printed


def cmdlines(gateway: Gateway) -> Iterator[tuple[int, bytes]]:
    for pid in {gateway.pid, *gateway.started}:
        with contextlib.suppress(OSError):
            yield pid, Path(f"/proc/{pid}/cmdline").read_bytes()


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that a gateway wrote, but for its configuration."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "gateway.yaml":
            yield str(path.relative_to(folder.parent)), path.read_bytes()
