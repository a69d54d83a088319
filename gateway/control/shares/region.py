"""A region's table of shares in its Redis, as two typed operations. What goes wrong is a SharesUnavailable."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError

from gateway.control.replication import keys
from gateway.control.replication.connect import connect
from gateway.core.shares import Answer, Report
from gateway.settings import redis_url
from gateway.settings.problems import masked_url
from gateway.settings.schema import RedisSettings

SHARES: Final = keys.PREFIX + "shares"
"""Hash: gateway to its row, `@` to the table's own; MessagePack."""

TIMEOUT_S: Final = 0.5
"""An answer that takes longer is of no use: the next question is due five times over."""

_SCRIPT: Final = (Path(__file__).parent / "shares.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()


class SharesUnavailable(Exception):
    """The Redis does not answer now; the message is for the operator and holds no password."""


class RegionShares:
    """One Redis. `calls` counts what was asked of it."""

    def __init__(self, settings: RedisSettings, region: str) -> None:
        self._url = redis_url.read(settings.url)
        self._connected = connect(self._url, settings.tls, TIMEOUT_S, f"landbridge-shares-{region}")
        self._client: Any = self._connected.client
        self.calls = 0

    async def call(self, gateway: str, using: int, seen: int, reports: Mapping[str, Report]) -> Answer:
        """Report what is held and asked for; what may be held. Raises SharesUnavailable."""
        arguments: list[str | bytes] = ["call", gateway, str(using), str(seen)]
        for key, report in reports.items():
            arguments += (key.encode("utf-8", "replace"), f"{report.held:.12f}", f"{report.demand:.9f}")
        count, parts, *rest = await self._run(arguments)
        return Answer(
            int(count),
            int(parts),
            {
                key.decode("utf-8", "replace"): None if share == b"-" else float(share)
                for key, share in zip(rest[::2], rest[1::2], strict=True)
            },
        )

    async def leave(self, gateway: str) -> None:
        """What this gateway held is free at once. Raises SharesUnavailable."""
        await self._run(["leave", gateway])

    async def close(self) -> None:
        await self._connected.close(TIMEOUT_S)

    async def _run(self, arguments: list[str | bytes]) -> Any:
        self.calls += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    return await self._client.evalsha(_SHA, 1, SHARES, *arguments)
                except NoScriptError:
                    return await self._client.eval(_SCRIPT, 1, SHARES, *arguments)
        except TimeoutError:
            await self._connected.hang_up()
            raise SharesUnavailable(f"no answer within {TIMEOUT_S:g} s") from None
        except (RedisError, OSError) as error:
            await self._connected.hang_up()
            raise SharesUnavailable(masked_url(str(error))) from error
