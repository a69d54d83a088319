"""An application in a process of its own that can be killed with -9, and started again on the same port."""

from __future__ import annotations

import asyncio
import sys

from tests.support.processes import alive


class Mortal:
    """`async with Mortal("us-east-1") as app:` runs it at `app.port`; see `application_process` for its answers, each
    of which takes `after_s`."""

    def __init__(self, region: str, after_s: float = 0.0) -> None:
        self.region = region
        self.after_s = after_s
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Mortal:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await self.kill()

    async def start(self) -> None:
        """Returns once it listens."""
        assert self._process is None
        pipe = asyncio.subprocess.PIPE
        module = (
            sys.executable,
            "-m",
            "tests.support.application_process",
            f"{self.region}:{self.port}:{self.after_s}",
        )
        self._process = await asyncio.create_subprocess_exec(*module, stdin=pipe, stdout=pipe)
        assert self._process.stdout is not None
        self.port = int(await self._process.stdout.readline())

    async def kill(self) -> None:
        """SIGKILL: its connections are reset, new ones refused."""
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()
        await process.wait()
        assert not alive(process.pid)
