"""The demonstration's application, over real HTTP."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from aiohttp.test_utils import TestClient, TestServer

from gateway.cli.demo_app import application
from gateway.supervisor import child_environ, python_module


async def test_it_says_what_it_saw() -> None:
    async with TestClient(TestServer(application("us-east-1"))) as client:
        headers = {"X-Tenant": "acme", "X-Gateway-Hops": "eu-west-1>us-east-1", "Via": "1.1 a", "Secret": "no"}
        seen = await (await client.get("/a%20b?c=d", headers=headers)).json()
        fields = seen.pop("fields")
        assert seen == {
            "region": "us-east-1",
            "tenant": "acme",
            "hops": "eu-west-1>us-east-1",
            "method": "GET",
            "path": "/a%20b?c=d",
        }
        assert fields["Via"] == "1.1 a"
        assert "Host" in fields
        assert "Secret" not in fields


async def test_bodies_are_counted_and_hashed() -> None:
    body = bytes(range(256)) * 1024
    async with TestClient(TestServer(application("us-east-1"))) as client:
        seen = await (await client.post("/x", data=body)).json()
        assert seen["body"] == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        assert (await client.get("/healthz")).status == 200


async def test_a_websocket_is_greeted_and_echoed() -> None:
    async with (
        TestClient(TestServer(application("us-east-1"))) as client,
        client.ws_connect("/ws", headers={"X-Tenant": "acme"}) as socket,
    ):
        assert await socket.receive_json() == {"region": "us-east-1", "tenant": "acme", "hops": None}
        await socket.send_str("text")
        assert await socket.receive_str() == "text"
        await socket.send_bytes(b"bytes")
        assert await socket.receive_bytes() == b"bytes"


def test_it_ends_when_its_starter_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*python_module("gateway.cli.demo_app"), "--region", "r", "--listen", "127.0.0.1:0", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        env=child_environ({}),
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0


def test_an_address_that_is_not_ours_is_a_line() -> None:
    done = subprocess.run(
        [*python_module("gateway.cli.demo_app"), "--region", "r", "--listen", "192.0.2.1:1"],
        capture_output=True,
        text=True,
        env=child_environ({}),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("demo application of r: 192.0.2.1:1: ")
    assert "Traceback" not in done.stderr
