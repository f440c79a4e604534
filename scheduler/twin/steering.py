"""A load in virtual time that is watched: predictions at each switch, guard and autopilot if asked for.

It stands between the driver and the scenario's ``Workload`` and looks like one. What guard and autopilot
decide comes out as the workload's own actions would.
"""

from __future__ import annotations

from math import inf
from typing import Any

from scheduler.core.autopilot import Autopilot, Goal
from scheduler.core.guard import CHECK_S, Guard, GuardRule
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Request, State
from scheduler.load.workload import Action, SwitchPolicy, Workload
from scheduler.twin.future import POINT_SEED, draw_future
from scheduler.twin.gpu import Gpu
from scheduler.twin.outlook import Window
from scheduler.twin.picture import Exposure, Picture, Recent
from scheduler.twin.predictions import Prediction, Predictions
from scheduler.twin.preview import forecasts, horizon_of, play

GUARD, AUTOPILOT = "guard", "autopilot"  # who asked for a switch

FUTURES = 9
"""What an autopilot's preview plays of each policy."""


class Watched:
    """Records what came and what ended lately; takes pictures of now."""

    def __init__(self, workload: Workload, scheduler: Scheduler, gpu: Gpu[Request]) -> None:
        self.scheduler = scheduler
        self._workload = workload
        self._gpu = gpu
        self._recent = Recent()
        self._submitted: list[Request] = []  # taken, and by the next call submitted

    def next_time(self) -> float:
        return self._workload.next_time()

    def take(self, now: float) -> list[Action]:
        for request in self._submitted:
            self._recent.arrived(request)
        actions = self._workload.take(now)
        self._submitted = [action for action in actions if type(action) is Request]
        return actions

    def on_ended(self, request: Request, now: float) -> None:
        if request.state is State.FINISHED:
            self._recent.ended(request)
        self._workload.on_ended(request, now)

    def on_drained(self, now: float) -> None:
        self._workload.on_drained(now)

    def picture(self, now: float) -> Picture:
        gpu = self._gpu
        gpu.advance(now)  # what it had to tell by now, it has told
        return Exposure(
            self.scheduler,
            self._recent,
            gpu.profile,
            now,
            max_num_seqs=gpu.max_num_seqs,
            generated=lambda request: gpu.tokens(request),
        ).whole()


class Steered(Watched):
    """With the rules that a scenario gives."""

    def __init__(
        self,
        workload: Workload,
        scheduler: Scheduler,
        gpu: Gpu[Request],
        guard: GuardRule | None,
        goal: Goal | None,
    ) -> None:
        super().__init__(workload, scheduler, gpu)
        self._policy = scheduler.policy.describe()  # once what has been taken is done
        self._predictions = Predictions()
        self._closes_s = inf  # when the span of the latest prediction is over
        self._guard = None if guard is None else Guard(guard)
        self._window = None if guard is None else Window(guard.over_s)
        self._autopilot = None if goal is None else Autopilot(goal)
        self._checks_s = inf  # there is nothing to roll back
        self._previews_s = inf if goal is None else goal.every_s

    def next_time(self) -> float:
        load_s = super().next_time()
        if load_s == inf and self.scheduler.idle:
            return inf  # nothing is left to steer
        return min(load_s, self._closes_s, self._checks_s, self._previews_s)

    def take(self, now: float) -> list[Action]:
        scheduler = self.scheduler
        if self._closes_s <= now:
            self._closes_s = inf
            self._predictions.close(now, scheduler.active())
        actions = super().take(now)
        for action in actions:
            if type(action) is SwitchPolicy:
                self._on_switch(policy_from(action.spec).describe(), action.by, now)
        if self._checks_s <= now and (target := self._check(now)) is not None:
            actions.append(SwitchPolicy(target, GUARD))
            self._on_switch(target, GUARD, now)
        if self._previews_s <= now and (target := self._preview(now)) is not None:
            actions.append(SwitchPolicy(target, AUTOPILOT))
            self._on_switch(target, AUTOPILOT, now)
        return actions

    def on_ended(self, request: Request, now: float) -> None:
        self._predictions.on_ended(request)
        if self._window is not None:
            self._window.add(request)
        super().on_ended(request, now)

    def document(self, now: float) -> list[dict[str, Any]]:
        """``predictions`` of run.json."""
        return self._predictions.document(now, self.scheduler.active())

    def _on_switch(self, target: str, by: str, now: float) -> None:
        source, self._policy = self._policy, target
        if source == target:
            return
        if self._autopilot is not None:
            self._autopilot.on_switch(source, now)
        if self._guard is not None:
            self._checks_s = now + CHECK_S
            if by != GUARD:
                self._guard.on_switch(source, now)
        picture = self.picture(now)
        horizon_s = horizon_of(picture)
        prediction = Prediction(now, source, target, horizon_s, picture.tenants)
        self._predictions.begin(prediction, self.scheduler.active())
        self._closes_s = now + horizon_s
        future = draw_future(picture, horizon_s, POINT_SEED)
        prediction.stay = play(picture, source, future, horizon_s).figures
        prediction.predicted, prediction.course = play(picture, target, future, horizon_s, CHECK_S)

    def _check(self, now: float) -> str | None:
        """What the guard goes back to."""
        guard, window, scheduler = self._guard, self._window, self.scheduler
        assert guard is not None
        assert window is not None
        self._checks_s = now + CHECK_S
        figures = window.figures(scheduler.books.configs.values(), now, guard.switched_s)
        beside = self._predictions.beside(now, scheduler.active())
        return guard.check(self._policy, figures, now, beside)

    def _preview(self, now: float) -> str | None:
        """What the autopilot goes on to."""
        autopilot = self._autopilot
        assert autopilot is not None
        self._previews_s = now + autopilot.goal.every_s
        picture = self.picture(now)
        policies = dict.fromkeys([self._policy, *autopilot.goal.candidates])
        found = forecasts(picture, policies, FUTURES, horizon_of(picture))
        return autopilot.choose(self._policy, found, now)
