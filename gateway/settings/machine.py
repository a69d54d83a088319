"""What `workers: auto` means: how many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

CPU_MAX: Final = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2: `quota period` in microseconds, or `max period`. A container sees it at this path."""


def usable_cores(cpu_max: Path = CPU_MAX) -> int:
    """Cores of the affinity mask, or the container's CPU limit rounded up when that is less; at least 1.

    A container limited to two cores on a machine of sixty-four would otherwise start sixty-four workers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text("ascii").split()
        if quota != "max" and int(period) > 0:
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: the affinity mask stands
    return max(1, cores)
