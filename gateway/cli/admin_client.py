"""Asking a running gateway over its admin API. With the standard library: a command has to start fast.

A token goes to the machine that was named and nowhere else: over loopback or TLS only unless told otherwise, never
through a proxy to loopback, and a redirect is not followed.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.cli.output import Exit, fail
from gateway.settings.units import is_loopback

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
TOKEN_BYTES_MAX: Final = 4096
SCHEMES: Final = {"http": 80, "https": 443}
_CODES: Final = {400: Exit.BAD_INPUT, 409: Exit.REFUSED}


@dataclass(frozen=True, slots=True)
class Gateway:
    """Which gateway to ask, and how; without `admin` the one of this machine, which has other ways."""

    admin: str | None
    token_file: Path | None
    insecure: bool

    def ask(self, path: str, change: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object that it answers with; see `ask`."""
        assert self.admin is not None, "it is asked in other ways"
        found: dict[str, Any] = json.loads(ask(self.admin, path, (), self.token_file, self.insecure, change))
        return found


def ask(
    admin: str,
    path: str,
    query: Sequence[tuple[str, str]] = (),
    token_file: Path | None = None,
    insecure: bool = False,
    change: Mapping[str, Any] | None = None,
) -> bytes:
    """The body of one GET, or of one POST of `change`, that was answered with 200. Ends the command with a line for
    everything else: with 2 where the change cannot be, with 3 where a rule of safety forbids it.
    """
    base, local = _base(admin, insecure)
    fields = {"Accept": "application/json"}
    if token_file is not None:
        fields["Authorization"] = f"Bearer {_token(token_file)}"
    data = None
    if change is not None:
        data, fields["Content-Type"] = json.dumps(change).encode(), "application/json"
    asked = urllib.request.Request(
        f"{base}{path}?{urllib.parse.urlencode(query, errors='surrogateescape')}", data=data, headers=fields
    )
    opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))
    try:
        with opener.open(asked, timeout=TIMEOUT_S) as response:
            body: bytes = response.read(ANSWER_BYTES_MAX + 1)
            status: int = response.status
    except urllib.error.HTTPError as error:
        with error:
            code = Exit.FAILED if change is None else _CODES.get(error.code, Exit.FAILED)
            fail(f"{base} answered {error.code}: {_detail(error)}", code)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        fail(f"{base} cannot be asked: {reason}")
    if status != 200 or len(body) > ANSWER_BYTES_MAX:
        fail(f"{base} answered with something that is no gateway's")
    return body


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A 3xx is an error like any other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _base(admin: str, insecure: bool) -> tuple[str, bool]:
    """(scheme and authority, whether that is this machine)."""
    try:
        url = urllib.parse.urlsplit(admin if "://" in admin else f"http://{admin}")
        host, port = url.hostname or "", url.port
    except ValueError:
        host, port = "", None
    if not host or url.scheme not in SCHEMES or url.username is not None or url.path.strip("/") or url.query:
        fail("--admin: expected a URL such as http://127.0.0.1:8081", Exit.BAD_INPUT)
    local = is_loopback(host) or host.endswith(".localhost")
    if url.scheme == "http" and not local and not insecure:
        fail(f"--admin: {host} is another machine, and http would show it the token and you the answer of anybody: "
             "use https, or --insecure", Exit.BAD_INPUT)  # fmt: skip
    name = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{name}:{port or SCHEMES[url.scheme]}", local


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except OSError as error:
        fail(f"--token-file {path}: {(error.strerror or 'an error').lower()}", Exit.BAD_INPUT)
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > TOKEN_BYTES_MAX or not text.isprintable() or " " in text:
        fail(f"--token-file {path}: expected one token", Exit.BAD_INPUT)
    return text


def _detail(error: urllib.error.HTTPError) -> str:
    """What the problem document says, on one line."""
    try:
        said = json.loads(error.read(ANSWER_BYTES_MAX))["detail"]
        text = said if isinstance(said, str) else error.reason
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        text = error.reason
    return "".join(c if c.isprintable() else " " for c in text)
