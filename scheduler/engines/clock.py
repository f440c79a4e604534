"""The run's clock in the live world: the event loop's time, scaled for simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Clock:
    """Seconds of run time since ``start``, 0 before; ``speed`` run seconds pass in each real second.

    A run's time begins once its engine is up, however long that took.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, speed: float = 1.0) -> None:
        self._loop = loop
        self._origin: float | None = None
        self.speed = speed

    def start(self) -> None:
        """Begin at 0; once."""
        if self._origin is None:
            self._origin = self._loop.time()

    def now(self) -> float:
        return 0.0 if self._origin is None else (self._loop.time() - self._origin) * self.speed

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call back when the run's time reaches ``when``; the clock must have started."""
        assert self._origin is not None
        return self._loop.call_at(self._origin + when / self.speed, callback, *args)
