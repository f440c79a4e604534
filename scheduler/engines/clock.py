"""The run's clock in the live world: the event loop's time, scaled for simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Clock:
    """Seconds of run time since this clock was made; ``speed`` run seconds pass in each real second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, speed: float = 1.0) -> None:
        self._loop = loop
        self._origin = loop.time()
        self.speed = speed

    def now(self) -> float:
        return (self._loop.time() - self._origin) * self.speed

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call back when the run's time reaches ``when``."""
        return self._loop.call_at(self._origin + when / self.speed, callback, *args)
