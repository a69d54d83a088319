"""`landbridge serve`: this process becomes the supervisor."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.supervisor import run


def serve(config: Path, region: str | None) -> int:
    """Serve until a signal ends it; the supervisor's exit code."""
    environ = dict(os.environ)
    if region:
        environ["LANDBRIDGE_REGION"] = region
    return run(config, environ)
