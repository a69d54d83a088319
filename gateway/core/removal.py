"""When a filter that keeps failing is taken out: ten errors within ten seconds (DESIGN, 3).

Pure: the worker says that a filter failed and when, and hears whether that was once too often. What a filter costs
until then is bounded by this rule; what it costs an hour, when it fails now and then, is not: that is what the
metric `landbridge_filter_errors_total` is for.
"""

from __future__ import annotations

from collections import deque
from typing import Final

ERRORS_MAX: Final = 10
"""Fewer could be one client that sends what nobody foresaw; more would be seen by everybody."""
WINDOW_S: Final = 10.0


class Failures:
    """The last errors of each filter: at most ERRORS_MAX times per name, and names are those of the chain."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def note(self, name: str, now: float) -> bool:
        """Filter `name` failed at `now` (monotonic seconds): whether this is the tenth time within ten seconds."""
        times = self._times.get(name)
        if times is None:
            times = self._times[name] = deque(maxlen=ERRORS_MAX)
        times.append(now)
        return len(times) == ERRORS_MAX and now - times[0] <= WINDOW_S
