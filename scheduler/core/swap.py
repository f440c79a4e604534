"""A hot swap under way: the new queue filled slice by slice while the old one still orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


class Swap:
    """``waiting`` is what was queued when the swap began; later arrivals are pushed to both queues."""

    def __init__(
        self,
        queue: ReadyQueue,
        waiting: Sequence[Request],
        last_ticket: int,
        now: float,
        by: str,
    ) -> None:
        self.queue = queue
        self.requested_s = now
        self.by = by
        self.ranked = 0
        self.waiting = waiting
        self._last_ticket = last_ticket
        self._moved = 0
        self.reestimate: Callable[[Request], None] | None = None  # set when the estimator changes, too

    @property
    def share_done(self) -> float:
        return self._moved / len(self.waiting) if self.waiting else 1.0

    def step(self, max_items: int) -> bool:
        """Rank up to ``max_items`` more; True once nothing is left."""
        end = min(len(self.waiting), self._moved + max_items)
        for request in self.waiting[self._moved : end]:
            # It may have left the queue since, or left and come back (a retry is pushed to both).
            if not 0 <= request.ticket <= self._last_ticket:
                continue
            if self.reestimate is not None:
                self.reestimate(request)
            self.queue.push(request)
            self.ranked += 1
        self._moved = end
        return end == len(self.waiting)
