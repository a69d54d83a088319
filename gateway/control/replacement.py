"""Workers replaced because a configuration asks for others: it is written down, and the supervisor is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gateway.control.reload import Loaded, write_candidate
from gateway.settings.schema import Settings

LIMIT_S: Final = 60.0
LIMIT_EACH_S: Final = 25.0
"""When the supervisor is given up: it says itself when a worker does not serve within 20 s."""


class Replacement:
    """One at a time. `ask` says something to the supervisor; False when it does not hear."""

    def __init__(self, state_dir: Path, ask: Callable[[dict[str, Any]], bool]) -> None:
        self._state_dir = state_dir
        self._ask = ask
        self._ticket = 0
        self._candidate: Settings | None = None
        self._ended: asyncio.Future[str] | None = None

    async def run(self, loaded: Loaded) -> str:
        """Have new workers run `loaded`. "" once they serve; otherwise why they do not."""
        self._ticket += 1
        self._candidate = loaded.settings
        self._ended = asyncio.get_running_loop().create_future()
        limit_s = LIMIT_S + LIMIT_EACH_S * loaded.settings.workers
        try:
            await asyncio.to_thread(write_candidate, self._state_dir, loaded.sources)
            if not self._ask({"ask": "replace", "ticket": self._ticket, "configuration": True}):
                return "the supervisor does not hear"
            async with asyncio.timeout(limit_s):
                return await self._ended
        except TimeoutError:  # before OSError, which it is one of
            return f"the supervisor did not answer within {limit_s:g} s"
        except OSError as error:
            return f"{self._state_dir}: {error.strerror}"
        finally:
            self._candidate = self._ended = None

    def answered(self, ticket: object, why: str) -> None:
        """The supervisor's answer to the request of that ticket; one to an earlier request is too late."""
        if ticket == self._ticket:
            self.failed(why)

    def failed(self, why: str) -> None:
        """It is over, whatever was asked for: "" is that the new workers serve."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(why)

    def settings_for(self, digest: str, current: Settings) -> Settings:
        """What a worker that runs the settings of this digest is told: a newcomer's are not the gateway's yet."""
        candidate = self._candidate
        return candidate if candidate is not None and candidate.digest == digest else current
