"""Previews of a live run: on demand for an operator, and at each switch for the record.

The loop takes the picture, in slices, and collects what really happens; the playing is done by ``Players``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from scheduler.core.autopilot import Forecast
from scheduler.core.bounds import Figures
from scheduler.core.guard import CHECK_S, Beside
from scheduler.core.policies import POLICIES, policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import FINISHED, Request
from scheduler.engines.clock import Clock
from scheduler.live.players import Packed, PlayerLost, Players, longest_first, pack
from scheduler.live.tasks import Tasks
from scheduler.live.view import CommandError, NotNow, Predicted, Preview
from scheduler.twin.future import POINT_SEED
from scheduler.twin.packing import SLICE
from scheduler.twin.picture import Exposure, Recent
from scheduler.twin.predictions import Prediction, Predictions
from scheduler.twin.preview import HORIZON_S, Played, band, forecast, who_waits_longer
from scheduler.twin.profile import Profile

SEEDS = range(1, 9)
"""Futures played for the bands."""

MIN_FUTURES = 4
"""Fewer are no band."""

MAX_PICTURED = 100_000
"""Queued requests up to which a switch is predicted: what is read of them at once takes 10 to 20 ms."""

BANDS_S = 3.5
"""Bands get what futures can be played within about so long."""


class Previewer:
    """One run's previews. ``profile`` gives the engine's step model as of now, None where there is none yet;
    ``tell`` gets a line when a prediction can be held against what was observed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        profile: Callable[[], Profile | None],
        max_num_seqs: int,
        tell: Callable[[str], None],
    ) -> None:
        self.latest: Preview | None = None
        self.recent = Recent()
        self._scheduler = scheduler
        self._clock = clock
        self._profile = profile
        self._max_num_seqs = max_num_seqs
        self._tell = tell
        self._predictions = Predictions()
        self._players = Players()
        self._asked = 0
        self._tasks = Tasks()
        self._timer: asyncio.TimerHandle | None = None

    # -- what the run tells --------------------------------------------------------------------------

    def on_arrived(self, request: Request) -> None:
        """Let in or not; its estimate is made."""
        self.recent.arrived(request)

    def on_ended(self, request: Request) -> None:
        if request.state is FINISHED:
            self.recent.ended(request)
        self._predictions.on_ended(request)

    def on_paused(self, now: float) -> None:
        """From now on what waits grows old under any policy."""
        self._predictions.close(now, self._scheduler.active())

    def on_switch(self, source: str, target: str, now: float) -> None:
        """The policy changes: predict what comes of it, and of staying, where that can be told."""
        if not self._clock.started:
            return
        books = self._scheduler.books
        exposure = self._expose() if books.totals.queued <= MAX_PICTURED else None
        prediction = Prediction(now, source, target, HORIZON_S, books.configs.values())
        self._predictions.begin(prediction, self._scheduler.active())
        if self._scheduler.paused:
            self.on_paused(now)
        self._observe_later(prediction)
        if exposure is not None:
            self._tasks.spawn(self._predict(exposure, prediction))

    async def _predict(self, exposure: Exposure, prediction: Prediction) -> None:
        packed = await _packed(exposure, CHECK_S)
        prediction.horizon_s = packed.horizon_s
        if prediction is self._predictions.latest:
            self._observe_later(prediction)
        found: dict[str, Played] = {}

        def keep(policy: str, seed: int, played: Played) -> None:
            found[policy] = played

        jobs = [(prediction.source, POINT_SEED), (prediction.target, POINT_SEED)]
        try:
            await self._players.play(packed, jobs, keep)
        except PlayerLost:
            return  # the record then has no prediction
        prediction.stay = found[prediction.source].figures
        prediction.predicted, prediction.course = found[prediction.target]

    def _observe_later(self, prediction: Prediction) -> None:
        """When its horizon is over."""
        if self._timer is not None:
            self._timer.cancel()
        over_s = prediction.at_s + prediction.horizon_s
        self._timer = self._clock.call_at(over_s, self._observe, prediction)

    def _observe(self, prediction: Prediction) -> None:
        prediction.close(self._clock.now(), self._scheduler.active())
        if (line := prediction.line()) is not None:
            self._tell(line)

    def beside(self, now: float) -> Beside | None:
        """What is observed since the latest switch, beside its prediction."""
        return self._predictions.beside(now, self._scheduler.active())

    async def forecasts(self, policies: Sequence[str], futures: int) -> dict[str, Forecast] | None:
        """All policies, by full name, over the same futures; None where there is no way to tell."""
        exposure = self._expose()
        if exposure is None:
            return None
        packed = await _packed(exposure)
        draws: dict[str, list[Figures]] = {policy: [] for policy in policies}

        def keep(policy: str, seed: int, played: Played) -> None:
            draws[policy].append(played.figures)

        seeds = range(POINT_SEED, POINT_SEED + futures)
        try:
            await self._players.play(packed, [(policy, seed) for seed in seeds for policy in policies], keep)
        except PlayerLost:
            return None
        return {policy: forecast(found) for policy, found in draws.items()}

    # -- what an operator asks -----------------------------------------------------------------------

    def ask(self, specs: Sequence[str] = ()) -> None:
        """Predict these policies, or all that are known by name, and today's; ``latest`` shows them as they
        come. Raises CommandError.
        """
        try:
            wanted = [policy_from(spec).describe() for spec in specs or POLICIES]
        except ValueError as error:
            raise CommandError(str(error)) from error
        exposure = self._expose()
        if exposure is None:
            raise NotNow("no preview yet: nothing is known of the engine's pace")
        today = self._scheduler.policy.describe()
        self._asked += 1
        self.latest = Preview(self._clock.now(), HORIZON_S, today, {}, done=False)
        self._tasks.spawn(self._answer(self._asked, exposure, list(dict.fromkeys([today, *wanted]))))

    async def _answer(self, number: int, exposure: Exposure, policies: Sequence[str]) -> None:
        """The points of all policies, then future after future for their bands, while there is time."""
        packed = await _packed(exposure)
        draws: dict[str, dict[int, Figures]] = {policy: {} for policy in policies}
        time = asyncio.get_running_loop().time

        def wanted() -> bool:
            return number == self._asked

        def update(**changes: Any) -> None:
            if wanted() and self.latest is not None:
                self.latest = replace(self.latest, **changes)

        def jobs() -> Iterator[tuple[str, int]]:
            today, *others = policies
            yield from ((policy, POINT_SEED) for policy in (today, *longest_first(others)))
            until_s = time() + BANDS_S
            for seed in SEEDS:
                if seed < MIN_FUTURES or time() < until_s:
                    yield from ((policy, seed) for policy in policies)

        def show(policy: str, seed: int, played: Played) -> None:
            draws[policy][seed] = played.figures
            update(policies=_table(draws))

        update(horizon_s=packed.horizon_s)
        try:
            await self._players.play(packed, jobs(), show, wanted)
        except PlayerLost as error:
            update(error=str(error))
        update(done=True)

    def _expose(self) -> Exposure | None:
        """The picture of now; None where nothing is known of the engine's pace."""
        profile, now = self._profile(), self._clock.now()
        if profile is None:
            return None
        return Exposure(self._scheduler, self.recent, profile, now, max_num_seqs=self._max_num_seqs)

    # -- the end -------------------------------------------------------------------------------------

    def document(self, now: float) -> list[dict[str, Any]]:
        """``predictions`` of run.json; one whose span is not over is held against what there was of it."""
        return self._predictions.document(now, self._scheduler.active())

    async def stop(self) -> None:
        """Nothing is left behind: no task, no timer, no process."""
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.stop()
        await self._players.stop()


async def _packed(exposure: Exposure, step_s: float = inf) -> Packed:
    return await pack(exposure.picture, exposure.queued(SLICE), step_s)


def _table(draws: Mapping[str, Mapping[int, Figures]]) -> dict[str, Predicted]:
    """A row for each policy whose point is there, over the futures that all have met; first today's."""
    met = set.intersection(*(set(found) for found in draws.values())) or {POINT_SEED}
    played = {policy: [found[seed] for seed in met] for policy, found in draws.items() if POINT_SEED in found}
    usual = {policy: forecast(figures).usual for policy, figures in played.items()}
    today = usual.get(next(iter(draws)), {})
    rows = {}
    for policy, figures in played.items():
        low, high = band(figures) if len(figures) >= MIN_FUTURES else ({}, {})
        rows[policy] = Predicted(usual[policy], low, high, who_waits_longer(usual[policy], today))
    return rows
