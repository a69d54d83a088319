"""One GET for keys: bounded in time and size, never redirected, and judged before it counts."""

from __future__ import annotations

import logging
from typing import Final

import aiohttp

from gateway.core.jwks import SET_BYTES_MAX, BadKeys, read_keys

LOG = logging.getLogger("landbridge.control")

FETCH_LIMIT_S: Final = 5.0
"""From the name's look-up to the last byte."""
PEM_BYTES_MAX: Final = 4096
_PEM: Final = b"-----BEGIN PUBLIC KEY-----"


class FetchFailed(Exception):
    """No keys; the message says why, for the operator. `is_absent`: the source answered, and lacks what was asked."""

    def __init__(self, why: str, is_absent: bool = False) -> None:
        super().__init__(why)
        self.is_absent = is_absent


class Fetcher:
    """Keeps one session; `close` ends it. It trusts what the system trusts (`SSL_CERT_FILE` names others)."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._left_out: dict[str, list[str]] = {}

    async def key_set(self, url: str) -> str:
        """A key set that can be used. Raises FetchFailed."""
        body = await self._get(url, SET_BYTES_MAX)
        left_out: list[str] = []
        try:
            read_keys(body, left_out)
        except BadKeys as error:
            raise FetchFailed(f"what it answers is no key set: {error}") from error
        if left_out and left_out != self._left_out.get(url):
            LOG.warning("keys of %s: left out: %s", url.partition("?")[0], "; ".join(left_out))
        self._left_out[url] = left_out
        return body.decode(errors="replace")

    async def pem(self, url: str) -> str:
        """One public key. Raises FetchFailed."""
        body = await self._get(url, PEM_BYTES_MAX)
        if not body.lstrip().startswith(_PEM):
            raise FetchFailed("what it answers is no public key")
        return body.decode(errors="replace")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _get(self, url: str, bytes_max: int) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=8, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=FETCH_LIMIT_S),
                headers={
                    "Accept": "application/json, application/x-pem-file, */*;q=0.1",
                    "Accept-Encoding": "identity",
                },
                auto_decompress=False,  # a small body that unpacks to a large one
            )
        try:
            # a redirect could lead to plain http, or to a place that only this machine can reach
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    is_absent = response.status in (403, 404, 410)  # S3 says 403 of what is not there
                    raise FetchFailed(f"status {response.status}", is_absent)
                body = b""
                async for piece in response.content.iter_chunked(16 * 1024):
                    body += piece
                    if len(body) > bytes_max:
                        raise FetchFailed(f"more than {bytes_max} bytes")
                return body
        except TimeoutError as error:
            raise FetchFailed(f"no whole answer within {FETCH_LIMIT_S:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchFailed(str(error) or type(error).__name__) from error
