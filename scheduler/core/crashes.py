"""When an engine that keeps crashing is given up."""

from __future__ import annotations

MAX_CRASHES, CRASH_SPAN_S = 3, 60.0
GIVEN_UP = f"{MAX_CRASHES} crashes within {CRASH_SPAN_S:g} s"


class Crashes:
    """Counts an engine's crashes, in the run's own time."""

    def __init__(self) -> None:
        self._lately_s: list[float] = []

    def add(self, now: float) -> bool:
        """True when this one was one too many: three within 60 s."""
        self._lately_s = [at_s for at_s in self._lately_s if now - at_s < CRASH_SPAN_S] + [now]
        return len(self._lately_s) >= MAX_CRASHES
