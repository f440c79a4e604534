"""Hot swaps of a live run: the queue is ranked anew in slices, each of which rides on a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from scheduler.core.estimate import Estimator
from scheduler.core.policy import Policy
from scheduler.core.scheduler import Scheduler
from scheduler.engines.clock import Clock

SWAP_SLICE = 1000
"""Queued requests re-ranked in one turn of the loop: about 5 ms."""
ESTIMATE_SLICE = 50
"""The same where each is estimated anew, which takes up to a hundred times as long."""


class HotSwap:
    """Begins swaps and sees them through; a later one supersedes one that is under way.

    ``on_switched`` gets what is told of each that changed the policy, ``on_done`` is called after every one:
    other requests may come first now.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        *,
        on_switched: Callable[[dict[str, Any]], None],
        on_done: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._on_switched = on_switched
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()

    def policy(self, policy: Policy, *, by: str) -> None:
        """Rank all that waits by another policy."""
        started_s = self._loop.time()
        self._scheduler.begin_swap(policy, self._clock.now(), by=by)
        self._step(self._scheduler.swap, started_s)

    def estimator(self, estimator: Estimator, *, by: str) -> None:
        """Estimate all that waits anew, and rank it by that."""
        started_s = self._loop.time()
        self._scheduler.set_estimator(estimator, self._clock.now(), by=by)
        self._step(self._scheduler.swap, started_s)

    def _step(self, swap: object, started_s: float) -> None:
        scheduler = self._scheduler
        if scheduler.swap is not swap:
            return  # superseded
        swaps = len(scheduler.swaps)
        reestimates = scheduler.swap is not None and scheduler.swap.reestimate is not None
        if not scheduler.swap_step(self._clock.now(), ESTIMATE_SLICE if reestimates else SWAP_SLICE):
            self._loop.call_soon(self._step, swap, started_s)
            return
        if len(scheduler.swaps) > swaps:  # else the policy is as before
            self._on_switched(scheduler.swaps[-1].told((self._loop.time() - started_s) * 1e3))
        self._on_done()
        self._retire()

    def _retire(self) -> None:
        """Freeing the old queue's entries takes as long as a few slices, so it is done in slices too."""
        if not self._scheduler.waiting.retire(SWAP_SLICE * 10):
            self._loop.call_soon(self._retire)
