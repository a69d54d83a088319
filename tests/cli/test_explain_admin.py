"""`landbridge explain --admin`: a running gateway explains, and its token goes nowhere else."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from tests.control.test_admin import CONFIG, TENANTS, VIEWER, write_tokens
from tests.support.control_process import control_process


def explain(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["explain", "--host", "acme.test", *arguments])
    assert result.exit_code == code, result.output
    return result


class Elsewhere(http.server.ThreadingHTTPServer):
    """Answers all with one status and body; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes, *fields: tuple[str, str]) -> None:
        self.status, self.body, self.fields = status, body, fields
        self.asked: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Answer)
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Elsewhere

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.send_response(self.server.status)
        for name, value in (("Content-Length", str(len(self.server.body))), *self.server.fields):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(VIEWER + "\n")
    return path


async def test_it_prints_what_the_files_would_give_by_what_the_gateway_knows(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    config = CONFIG.replace("ADMIN", "0.0.0.0")
    async with control_process(tmp_path, config, TENANTS, "0.0.0.0") as control:
        await control.logged("tenants applied")
        url, token = f"http://127.0.0.1:{control.port}", str(tmp_path / "viewer.token")
        asked = ("--admin", url, "--token-file", token, "--path", "/a?b=c&d", "--header", "Accept: text/html; q=0.5")
        by_gateway = json.loads((await asyncio.to_thread(explain, *asked, "--json")).stdout)
        files = ("-c", str(control.file), "--file", str(control.tenants), *asked[4:])
        by_files = json.loads(explain(*files, "--json").stdout)
        assert by_gateway.pop("map") == f"of the gateway at {url}"
        assert by_files.pop("map") != by_gateway
        assert by_gateway == by_files
        printed = (await asyncio.to_thread(explain, *asked)).stdout.splitlines()
        assert [line for line in printed if not line.startswith("map ")] == [
            line for line in explain(*files).stdout.splitlines() if not line.startswith("map ")
        ]
        refused = await asyncio.to_thread(explain, "--admin", url, code=1)
        assert refused.stderr == (f"landbridge: {url} answered 401: a token is needed, as Authorization: Bearer\n")
        assert VIEWER not in control.log()


def closing(server: Elsewhere) -> Iterator[Elsewhere]:
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def other() -> Iterator[Elsewhere]:
    yield from closing(Elsewhere(200, b"{}"))


def test_a_redirect_is_not_followed(other: Elsewhere, token_file: Path) -> None:
    for redirecting in closing(Elsewhere(302, b"", ("Location", other.url))):
        result = explain("--admin", redirecting.url, "--token-file", str(token_file), code=1)
        assert "answered 302" in result.stderr
        [(path, fields)] = redirecting.asked
        assert path == "/api/v1/explain?host=acme.test&method=GET&path=%2F"
        assert fields["Authorization"] == f"Bearer {VIEWER}"
    assert other.asked == []


def test_no_proxy_stands_before_loopback(other: Elsewhere, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in closing(Elsewhere(200, b"{}")):
        monkeypatch.setenv("http_proxy", proxy.url)
        explain("--admin", other.url, "--token-file", str(token_file), code=1)
        assert (len(other.asked), proxy.asked) == (1, [])


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"{}", "answered with something that is no gateway's"),
        (200, b"<html>", "answered with something that is no gateway's"),
        (204, b"", "answered with something that is no gateway's"),
        (403, b'{"detail": "no\\u001b[1m way"}', "answered 403: no [1m way"),
        (500, b"oops", "answered 500: Internal Server Error"),
        (500, b'{"detail": [1]}', "answered 500: Internal Server Error"),
    ],
)
def test_what_is_no_explanation_is_one_line(status: int, body: bytes, said: str) -> None:
    for server in closing(Elsewhere(status, body)):
        result = explain("--admin", server.url, code=1)
        assert result.stderr == f"landbridge: {server.url} {said}\n"
        assert result.stdout == ""


def test_nobody_there_is_one_line(other: Elsewhere) -> None:
    other.shutdown()
    other.server_close()
    assert (
        explain("--admin", other.url, code=1).stderr
        == f"landbridge: {other.url} cannot be asked: [Errno 111] Connection refused\n"
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "ftp://a",
        "http://a:b@localhost",
        "http://localhost/api",
        "http://localhost?x=1",
        "http://[::1",
        "http://localhost:x",
    ],
)
def test_what_is_no_url(url: str) -> None:
    assert "--admin: expected a URL" in explain("--admin", url, code=2).stderr


def test_plain_http_to_another_machine_has_to_be_asked_for(other: Elsewhere, token_file: Path) -> None:
    url = f"http://0.0.0.0:{other.server_port}"  # no loopback address, and yet this machine
    result = explain("--admin", url, "--token-file", str(token_file), code=2)
    assert "--admin: 0.0.0.0 is another machine" in result.stderr
    assert other.asked == []
    assert "no gateway's" in explain("--admin", url, "--insecure", code=1).stderr
    assert len(other.asked) == 1
    assert "cannot be asked" in explain("--admin", f"https://localhost:{other.server_port}", code=1).stderr, "no TLS"


def test_options_that_do_not_fit_each_other(token_file: Path, tmp_path: Path) -> None:
    for more in (["--from", "x"], ["--file", "x"]):
        assert "neither --from nor --file" in explain("--admin", "http://localhost", *more, code=2).stderr
    assert "are for --admin" in explain("--token-file", str(token_file), code=2).stderr
    for content in (b"", b"two tokens", b"\xff", b"x" * 5000):
        token_file.write_bytes(content)
        result = explain("--admin", "http://localhost", "--token-file", str(token_file), code=2)
        assert result.stderr.endswith("expected one token\n")
    result = explain("--admin", "http://localhost", "--token-file", str(tmp_path / "none"), code=2)
    assert "no such file" in result.stderr
