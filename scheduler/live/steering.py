"""Guard and autopilot of a live run: they look now and then, and switch the policy as an operator would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scheduler.core.autopilot import Autopilot, Goal
from scheduler.core.guard import CHECK_S, Guard, GuardRule
from scheduler.core.policies import policy_from
from scheduler.core.types import Request
from scheduler.engines.clock import Clock
from scheduler.live.preview import Previewer
from scheduler.live.session import Session
from scheduler.live.tasks import cancel_all
from scheduler.twin.outlook import Window
from scheduler.twin.steering import AUTOPILOT, FUTURES, GUARD


class Steering:
    """Both, as far as the scenario asks for them. Times are run seconds."""

    def __init__(
        self, session: Session, clock: Clock, previewer: Previewer, guard: GuardRule | None, goal: Goal | None
    ) -> None:
        self._session = session
        self._clock = clock
        self._previewer = previewer
        self._guard = None if guard is None else Guard(guard)
        self._window = None if guard is None else Window(guard.over_s)
        self._autopilot = None if goal is None else Autopilot(goal)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._previewing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The run's clock has started."""
        if self._autopilot is not None:
            self._every(AUTOPILOT, 0.0, self._autopilot.goal.every_s, self._preview)

    def _every(self, name: str, start_s: float, seconds: float, look: Callable[[float], None]) -> None:
        """From ``start_s`` on, instead of what is done by that name so far."""

        def turn(at_s: float) -> None:
            self._timers[name] = self._clock.call_at(at_s + seconds, turn, at_s + seconds)
            if at_s > start_s and not self._session.scheduler.idle:
                look(self._clock.now())

        if name in self._timers:
            self._timers[name].cancel()
        turn(start_s)

    def on_switch(self, source: str, by: str, now: float) -> None:
        """The policy changes from ``source`` to another."""
        if not self._clock.started:
            return  # there is nothing to go by
        if self._autopilot is not None:
            self._autopilot.on_switch(source, now)
        if self._guard is not None:
            self._every(GUARD, now, CHECK_S, self._check)
            if by != GUARD:
                self._guard.on_switch(source, now)

    def on_ended(self, request: Request) -> None:
        if self._window is not None:
            self._window.add(request)

    def _check(self, now: float) -> None:
        guard, window, scheduler = self._guard, self._window, self._session.scheduler
        assert guard is not None
        assert window is not None
        if scheduler.paused:
            guard.let_go()  # what waits grows old under any policy, and shows in the figures for long
            return
        figures = window.figures(scheduler.books.configs.values(), now, guard.switched_s)
        target = guard.check(scheduler.policy.describe(), figures, now, self._previewer.beside(now))
        if target is not None:
            self._session.switch_policy(policy_from(target), by=GUARD)

    def _preview(self, now: float) -> None:
        if self._previewing is None or self._previewing.done():  # the one before takes its time
            assert self._autopilot is not None
            self._previewing = asyncio.get_running_loop().create_task(self._choose(self._autopilot))

    async def _choose(self, autopilot: Autopilot) -> None:
        scheduler = self._session.scheduler
        current = scheduler.policy.describe()
        policies = list(dict.fromkeys([current, *autopilot.goal.candidates]))
        found = await self._previewer.forecasts(policies, FUTURES)
        if found is None or scheduler.policy.describe() != current:
            return  # nothing is known, or somebody else was faster
        target = autopilot.choose(current, found, self._clock.now())
        if target is not None:
            self._session.switch_policy(policy_from(target), by=AUTOPILOT)

    async def stop(self) -> None:
        """No timer and no task is left."""
        for timer in self._timers.values():
            timer.cancel()
        if self._previewing is not None:
            await cancel_all(self._previewing)
