"""A hot swap under way: the new queue filled slice by slice while the old one still orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.core.queue import ReadyQueue
from scheduler.core.types import Request


@dataclass(frozen=True, slots=True)
class SwapRecord:
    """A swap that was applied."""

    requested_s: float
    applied_s: float
    source: str
    target: str
    queued: int  # requests re-ranked
    by: str

    def told(self, took_ms: float) -> dict[str, Any]:
        """As run.json and the log have it; how long it took, its driver knows."""
        switch = {"at_s": self.applied_s, "from": self.source, "to": self.target, "queued": self.queued}
        return {**switch, "took_ms": took_ms, "by": self.by}


class Swap:
    """``active`` is what was queued or in flight when the swap began; what of it waits when its turn comes is
    ranked. Later arrivals are pushed to both queues.
    """

    def __init__(
        self,
        queue: ReadyQueue,
        active: Sequence[Request],
        last_ticket: int,
        now: float,
        by: str,
    ) -> None:
        self.queue = queue
        self.requested_s = now
        self.by = by
        self.ranked = 0
        self._active = active
        self._last_ticket = last_ticket
        self._moved = 0
        self.reestimate: Callable[[Request], None] | None = None  # set when the estimator changes, too

    @property
    def share_done(self) -> float:
        return self._moved / len(self._active) if self._active else 1.0

    def step(self, max_items: int) -> bool:
        """Rank up to ``max_items`` more; True once nothing is left."""
        end = min(len(self._active), self._moved + max_items)
        for request in self._active[self._moved : end]:
            # It may be running, or have left the queue and come back (a retry is pushed to both).
            if not 0 <= request.ticket <= self._last_ticket:
                continue
            if self.reestimate is not None:
                self.reestimate(request)
            self.queue.push(request)
            self.ranked += 1
        self._moved = end
        return end == len(self._active)
