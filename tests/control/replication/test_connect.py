"""Every kind of URL against a server of its kind: a socket, an ACL user, TLS, Cluster, Sentinel with a failover."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from gateway.control.replication import keys
from gateway.control.replication.region_map import MapUnavailable, RegionMap, Write, Written
from gateway.core.placement import Placement
from gateway.core.replication import encode_body
from gateway.settings.schema import TlsSettings
from tests.support.eventually import eventually
from tests.support.valkey import Valkey, free_port

US = "us-east-1"
BODY = encode_body(Placement(tenant="acme", home=US))


async def is_usable(region_map: RegionMap, tenant: str = "acme") -> None:
    """Write, read what was written, and wait on a stream: all kinds of commands that we use."""
    done = (await region_map.write([Write(tenant, None, 1, BODY)]))[0]
    assert isinstance(done, Written)
    assert (await region_map.get([tenant]))[0] is not None
    head = await region_map.head()
    assert [row[1] for row in await region_map.read_log(done.seq - 1, 10, 100)] == [tenant]
    assert head.records >= 1
    assert [rows async for rows in region_map.scan()]
    assert await region_map.digests()
    assert await region_map.acquire("token", 1000)
    assert await region_map.gateways() == []


async def test_a_socket(tmp_path: Path) -> None:
    with Valkey(tmp_path / "v", durable=False, extra=("--unixsocket", str(tmp_path / "s"))):
        region_map = RegionMap(f"unix://{tmp_path}/s?db=3", US)
        await is_usable(region_map)
        await region_map.close()


async def test_an_acl_user_needs_no_more_than_the_maps_keys(tmp_path: Path) -> None:
    with Valkey(tmp_path / "v", durable=False) as server:
        server.cli("ACL", "SETUSER", "gateway", "on", ">pass:w@rd", f"~{keys.PREFIX}*", "+@all", "-@dangerous", "+info")
        server.cli("ACL", "SETUSER", "reader", "on", ">r", f"%R~{keys.PREFIX}*", "+@read", "+@connection", "+time")
        place = server.url.removeprefix("redis://")
        region_map = RegionMap(f"redis://gateway:pass:w%40rd@{place}", US)
        await is_usable(region_map)
        await region_map.close()
        reader = RegionMap(f"redis://reader:r@{place}", US)
        assert (await reader.head()).records == 1
        assert await reader.read_log(0, 10, 0)
        with pytest.raises(MapUnavailable, match="permission"):
            await reader.write([Write("b", None, 1, BODY)])
        await reader.close()
        wrong = RegionMap(f"redis://gateway:guess@{place}", US)
        with pytest.raises(MapUnavailable) as error:
            await wrong.head()
        assert "guess" not in str(error.value)
        await wrong.close()


async def test_a_cluster(tmp_path: Path) -> None:
    with Valkey(
        tmp_path / "v", durable=False, extra=("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    ) as server:
        server.cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await eventually(lambda: b"cluster_state:ok" in server.cli("CLUSTER", "INFO"))
        region_map = RegionMap(f"redis+cluster://127.0.0.1:{server.port}", US)
        await is_usable(region_map)
        server.kill()
        with pytest.raises(MapUnavailable):
            await region_map.head()
        server.start()
        await eventually(lambda: b"cluster_state:ok" in server.cli("CLUSTER", "INFO"))
        assert (await region_map.head()).region in ("", US)
        await region_map.close()


async def test_sentinels_lead_to_the_server_that_was_promoted(tmp_path: Path) -> None:
    with Valkey(tmp_path / "a") as first, Valkey(tmp_path / "b") as second:
        second.cli("REPLICAOF", "127.0.0.1", str(first.port))
        await eventually(lambda: b"master_link_status:up" in second.cli("INFO", "replication"))
        rules = f"sentinel monitor map 127.0.0.1 {first.port} 1\nsentinel down-after-milliseconds map 300\n"
        with Valkey(tmp_path / "s", sentinel=rules) as sentinel:
            region_map = RegionMap(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/map/0", US)
            await is_usable(region_map)
            before = await region_map.head()
            second.cli("WAIT", "0", "100")
            await eventually(lambda: f"port={second.port}".encode() in first.cli("INFO", "replication"))
            await eventually(lambda: str(second.port).encode() in sentinel.cli("SENTINEL", "REPLICAS", "map"))
            first.kill()
            assert sentinel.cli("SENTINEL", "FAILOVER", "map")
            await eventually(lambda: b"role:master" in second.cli("INFO", "replication"), 20)

            async def promoted() -> bool:
                try:
                    return await region_map.begin() != before.log_id
                except MapUnavailable:
                    return False

            async with asyncio.timeout(20):
                while not await promoted():
                    await asyncio.sleep(0.05)
            assert (await region_map.head()).records == 1
            await region_map.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
async def test_tls_is_verified(tmp_path: Path) -> None:
    """The wheel's server has no TLS of its own: a relay in front of it speaks it."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Valkey(tmp_path / "v", durable=False) as server:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer), return_exceptions=True)

        async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as relays:
            url = f"rediss://127.0.0.1:{relays.sockets[0].getsockname()[1]}/0"
            region_map = RegionMap(url, US, TlsSettings(ca=str(certificate)))
            await is_usable(region_map)
            await region_map.close()
            stranger = RegionMap(url, US)
            with pytest.raises(MapUnavailable, match="certificate"):
                await stranger.head()
            await stranger.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
