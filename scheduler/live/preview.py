"""Previews of a live run: on demand for an operator, and at each switch for the record.

The loop takes the picture (some milliseconds for 5,000 queued requests) and collects what really happens; the
playing is done by ``Players``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
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
from scheduler.live.players import Packed, PlayerLost, Players
from scheduler.live.view import CommandError, NotNow, Predicted, Preview
from scheduler.twin.future import POINT_SEED
from scheduler.twin.picture import Recent, take_picture
from scheduler.twin.predictions import Prediction, Predictions
from scheduler.twin.preview import HORIZON_S, Played, band, forecast, horizon_of, who_waits_longer
from scheduler.twin.profile import Profile

SEEDS = range(1, 9)
"""Futures played for the bands."""

MIN_FUTURES = 4
"""Fewer are no band."""

MAX_PICTURED = 20_000
"""Queued requests up to which a switch is predicted: their picture takes tens of milliseconds of the loop."""

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
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    # -- what the run tells --------------------------------------------------------------------------

    def on_arrived(self, request: Request) -> None:
        """Let in or not; its estimate is made."""
        self.recent.arrived(request)

    def on_ended(self, request: Request) -> None:
        if request.state is FINISHED:
            self.recent.ended(request)
        self._predictions.on_ended(request)

    def on_switch(self, source: str, target: str, now: float) -> None:
        """The policy changes: predict what comes of it, and of staying, where that can be told."""
        if not self._clock.started:
            return
        books = self._scheduler.books
        packed = self._take(CHECK_S) if books.totals.queued <= MAX_PICTURED else None
        horizon_s = HORIZON_S if packed is None else packed.horizon_s
        prediction = Prediction(now, source, target, horizon_s, books.configs.values())
        self._predictions.begin(prediction, self._scheduler.active())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(now + horizon_s, self._observe, prediction)
        if packed is not None:
            self._spawn(self._predict(packed, prediction))

    async def _predict(self, packed: Packed, prediction: Prediction) -> None:
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

    def _observe(self, prediction: Prediction) -> None:
        prediction.close(self._clock.now(), self._scheduler.active())
        if (line := prediction.line()) is not None:
            self._tell(line)

    def beside(self, now: float) -> Beside | None:
        """What is observed since the latest switch, beside its prediction."""
        return self._predictions.beside(now, self._scheduler.active())

    async def forecasts(self, policies: Sequence[str], futures: int) -> dict[str, Forecast] | None:
        """All policies, by full name, over the same futures; None where there is no way to tell."""
        packed = self._take()
        if packed is None:
            return None
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
        packed = self._take()
        if packed is None:
            raise NotNow("no preview yet: nothing is known of the engine's pace")
        today = self._scheduler.policy.describe()
        self._asked += 1
        self.latest = Preview(self._clock.now(), packed.horizon_s, today, {}, done=False)
        self._spawn(self._answer(self._asked, packed, list(dict.fromkeys([today, *wanted]))))

    async def _answer(self, number: int, packed: Packed, policies: Sequence[str]) -> None:
        """The points of all policies, then future after future for their bands, while there is time."""
        draws: dict[str, dict[int, Figures]] = {policy: {} for policy in policies}
        time = asyncio.get_running_loop().time

        def wanted() -> bool:
            return number == self._asked

        def update(**changes: Any) -> None:
            if wanted() and self.latest is not None:
                self.latest = replace(self.latest, **changes)

        def jobs() -> Iterator[tuple[str, int]]:
            yield from ((policy, POINT_SEED) for policy in policies)
            until_s = time() + BANDS_S
            for seed in SEEDS:
                if seed < MIN_FUTURES or time() < until_s:
                    yield from ((policy, seed) for policy in policies)

        def show(policy: str, seed: int, played: Played) -> None:
            draws[policy][seed] = played.figures
            update(policies=_table(draws))

        try:
            await self._players.play(packed, jobs(), show, wanted)
        except PlayerLost as error:
            update(error=str(error))
        update(done=True)

    def _take(self, step_s: float = inf) -> Packed | None:
        profile = self._profile()
        if profile is None:
            return None
        now = self._clock.now()
        picture = take_picture(self._scheduler, self.recent, profile, now, max_num_seqs=self._max_num_seqs)
        return Packed(picture, horizon_of(picture), step_s)

    # -- the end -------------------------------------------------------------------------------------

    def document(self, now: float) -> list[dict[str, Any]]:
        """``predictions`` of run.json; one whose span is not over is held against what there was of it."""
        return self._predictions.document(now, self._scheduler.active())

    async def stop(self) -> None:
        """Nothing is left behind: no task, no timer, no process."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._players.stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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
