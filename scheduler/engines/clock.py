"""The run's clock in the live world: the event loop's time, or a simulated engine's at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

SETTLE_TURNS = 5
"""Turns of the loop until all that follows at once from a callback has been done. The longest chain takes
three: the engine aborts a stream, its reader ends the request, the stream of the next request begins.
"""

_SWEEP_AT = 64  # planned callbacks below which cancelled ones are not worth looking for


class Clock:
    """Seconds of run time since ``start``, 0 before. A run's time begins once its engine is up."""

    speed = 1.0  # run seconds in a real second

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._origin: float | None = None

    def start(self) -> None:
        """Begin at 0; once."""
        if self._origin is None:
            self._origin = self._loop.time()

    @property
    def started(self) -> bool:
        return self._origin is not None

    def now(self) -> float:
        return 0.0 if self._origin is None else (self._loop.time() - self._origin) * self.speed

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call back when the run's time reaches ``when``; the clock must have started."""
        assert self._origin is not None
        return self._loop.call_at(self._origin + when / self.speed, callback, *args)


class PlannedClock(Clock):
    """For simulated engines: time stops at each instant for which a callback was asked, until that has been
    called and all that follows from it is done.

    So a loop that is late or busy delays the run by the wall, but moves no instant in it: the run takes the
    course that it takes in virtual time. ``speed`` run seconds pass in each real second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, speed: float = 1.0) -> None:
        super().__init__(loop)
        self.speed = speed
        self._planned: list[tuple[float, int, asyncio.TimerHandle, Callable[..., object]]] = []
        self._serial = count()
        self._sweep_at = _SWEEP_AT
        self._latest = 0.0  # the clock has shown
        self._settling = 0  # turns of the loop for which time still stands still
        self._alarm: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._origin is None:
            super().start()
            self._hold()  # for what begins with the run

    def now(self) -> float:
        if not self._settling:
            self._latest = max(self._latest, min(super().now(), self._due_s()))
        return self._latest

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        when = max(when, self.now())
        handle = asyncio.TimerHandle(when, callback, args, self._loop)
        heappush(self._planned, (when, next(self._serial), handle, lambda: callback(*args)))
        if len(self._planned) > self._sweep_at:
            self._sweep()
        self._set_alarm()
        return handle

    def _sweep(self) -> None:
        """Forget what was cancelled long before its time, lest it outnumber what is to come."""
        self._planned = [planned for planned in self._planned if not planned[2].cancelled()]
        heapify(self._planned)
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._planned))

    def _due_s(self) -> float:
        planned = self._planned
        while planned and planned[0][2].cancelled():
            heappop(planned)
        return planned[0][0] if planned else inf

    def _set_alarm(self) -> None:
        """Wake at the next instant, unless one is being settled: then that comes first."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due_s = self._due_s()
        if due_s < inf and not self._settling:
            self._alarm = super().call_at(due_s, self._ring)

    def _ring(self) -> None:
        """If the next instant has come, it is that one, whatever the loop's clock says."""
        due_s = self._due_s()
        if due_s > super().now():
            self._set_alarm()
            return
        self._latest = due_s
        self._hold()
        heappop(self._planned)[3]()

    def _hold(self) -> None:
        self._settling = SETTLE_TURNS
        self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling -= 1
        if self._settling:
            self._loop.call_soon(self._settle)
        else:
            self._ring()
